"""Evacuation: every message gets to a peer whole, and has one owner whatever crashes, lies or does not answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app.evacuation import AlreadyEvacuated, Evacuated, Evacuation, evacuation, settle_again_and_again, token_of
from gateway.app.outbound import make_resolver
from gateway.cli import main
from gateway.config import Config, ConfigError, parse
from gateway.mail.session import ids_from, new_session_id
from gateway.ops.board import WorkerState
from gateway.ops.handover_api import HandoverApi
from gateway.ops.operations import Amended, Drop, Hold, Leave, Release, Retry
from gateway.ops.queue_api import IMPORT_OCTETS
from gateway.ops.why import Scene as View
from gateway.ops.why import reasons
from gateway.sdk.fakes import FakeDns
from gateway.services.clock import SystemClock
from gateway.services.tasks import Tasks
from gateway.spool.draft import MemoryContent
from gateway.spool.fsck import Kind, check
from gateway.spool.handover import Handover, Pack
from gateway.spool.identity import evacuating, is_evacuated, spool_id
from gateway.spool.offers import Answer, Offer, read_papers
from gateway.spool.parcel import ParcelError
from gateway.spool.shard import no_step
from gateway.spool.spool import State, Step, Stored
from gateway.spool.sqlite import SqliteSpool, open_all
from gateway.transport.peer import Peer, PeersError, Told, check_url
from gateway.transport.peers import PATH, Peers
from tests.ops.test_admin import call
from tests.spool.rig import HEAD, LARGE, NOW, SMALL, defer, message, new_id, put, query, take
from tests.support.gates import TOKEN, Gate, owners, served
from tests.support.process import free_port, listens, wait_until

pytestmark = pytest.mark.slow


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


async def fill(spool: SqliteSpool) -> dict[str, bytes]:
    """One message of each state, a large one, and one that was tried."""
    tried = await put(spool, recipients=("ben", "col"))
    claimed = await take(spool)
    await defer(spool, claimed[tried].message, NOW + 60)
    out = {tried: HEAD + SMALL}
    for content, state in ((LARGE, State.QUEUED), (SMALL, State.HOLD), (SMALL, State.QUARANTINE)):
        out[await put(spool, content, state=state, reason="odd" if state is not State.QUEUED else "")] = HEAD + content
    return out


def test_all_of_it_gets_to_the_peer_as_it_was(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        contents = await a.make(fill)
        await b.make()
        before = await a.messages()
        attempts = query(a.options, "SELECT id, n, body FROM attempt ORDER BY id, n")
        async with b.serving(), a.evacuation(b) as running:
            done = await running.run(30)
        assert (done.handed, done.left, done.empty) == (4, {}, True)
        after = await b.messages()
        assert after == before and not await a.messages()
        for id, octets in contents.items():
            assert await b.octets(id) == octets
        assert query(b.options, "SELECT count(*) FROM record") == [(4,)]
        there = query(b.options, "SELECT id, n, body FROM attempt ORDER BY id, n")
        assert [row for row in attempts if row in there] == attempts
        outcomes = query(b.options, "SELECT DISTINCT body ->> '$[0].outcome' FROM attempt ORDER BY 1")
        assert ("taken-over",) in outcomes
        assert ("handed-over",) in query(a.options, "SELECT DISTINCT body ->> '$[0].outcome' FROM attempt")
        assert not list((a.root / "shard-00/content").iterdir())
        for table in ("content", "offer"):
            assert query(a.options, f"SELECT count(*) FROM {table}") == [(0,)]

    run(work())


def test_a_message_larger_than_any_request_of_the_api_goes_block_by_block(tmp_path: Path) -> None:
    content = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * (20 << 16)

    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        id = await a.make(lambda spool: put(spool, content))
        await b.make()
        async with b.serving(), a.evacuation(b) as running:
            done = await running.run(30)
        assert done.handed == 1 and done.octets == len(HEAD + content) > IMPORT_OCTETS
        assert await b.octets(id) == HEAD + content

    run(work())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say to whom"),
        (["--to", "ftp://a"], "expected http://HOST:PORT"),
        (["--to", "http://a", "--wait", "x"], "x"),
        (["--to", "http://a", "--token-file", "nowhere"], "nowhere"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(tmp_path: Path, arguments: list[str], said: str) -> None:
    a = Gate(tmp_path, "a")
    run(a.make())
    file = a.write_config(tmp_path / "gatepost.yaml")
    result = CliRunner().invoke(main, ["queue", "evacuate", *arguments, "-c", str(file)])
    assert result.exit_code == 2 and said in result.output


# Whoever dies, each message has one owner.


def forked(work: Callable[[], Awaitable[Any]], log: Path) -> int:
    """Run it in a process of its own; gives its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            null = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(null, 1)
            os.dup2(null, 2)
            run(work())
            status = 0
        finally:
            os._exit(status)
    return pid


def killer(step: Step, count: int) -> Callable[[Step], None]:
    """Kills the process that reaches this step for the `count`-th time."""
    seen: list[Step] = []

    def on_step(reached: Step) -> None:
        seen.append(reached)
        if seen.count(step) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


async def stay(gate: Gate) -> None:
    async with gate.serving():
        await asyncio.sleep(60)


async def send(gate: Gate, *to: Gate) -> None:
    async with gate.evacuation(*to) as running:
        await running.run(30)


def ended(pid: int, deadline: float = 30.0) -> int:
    """Wait for it; gives what `waitpid` says."""
    end = time.monotonic() + deadline
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("it did not end")
        time.sleep(0.01)  # noqa: TID251 - no event loop here


@dataclass
class Scene:
    """Two gateways with their processes; `a` has mail, `b` takes it over."""

    a: Gate
    b: Gate
    ids: set[str]
    log: Path
    pids: list[int] = field(default_factory=list)

    def serve(self) -> int:
        pid = forked(lambda: stay(self.b), self.log)
        self.pids.append(pid)
        wait_until(lambda: listens(self.b.port), "the peer listens")
        return pid

    def evacuate(self) -> int:
        pid = forked(lambda: send(self.a, self.b), self.log)
        self.pids.append(pid)
        return pid

    def stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.pids.remove(pid)

    def looks_right(self) -> None:
        """Nobody has what another has for certain, and nothing is nowhere."""
        found = owners(run(self.a.messages()), run(self.b.messages()))
        assert set(found) == self.ids
        assert all(count <= 1 for count in found.values()), found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
    ids = set(run(a.make(fill)))
    run(b.make())
    b.port = free_port()
    scene = Scene(a, b, ids, tmp_path / "log")
    try:
        yield scene
    finally:
        print(scene.log.read_text(errors="replace")[-4000:] if scene.log.exists() else "")
        for pid in scene.pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@pytest.mark.parametrize("step", [Step.LEAVE_DONE, Step.LEFT_BEGUN, Step.LEFT_DONE])
def test_a_sender_that_is_killed_leaves_one_owner_and_goes_on(scene: Scene, step: Step) -> None:
    server = scene.serve()
    scene.a.on_step = killer(step, 1 if step is Step.LEAVE_DONE else 2)
    pid = scene.evacuate()
    assert os.WTERMSIG(ended(pid)) == signal.SIGKILL
    scene.pids.remove(pid)
    scene.looks_right()
    scene.a.on_step = no_step
    pid = scene.evacuate()
    assert ended(pid) == 0
    scene.pids.remove(pid)
    scene.looks_right()
    assert set(run(scene.b.messages())) == scene.ids
    scene.stop(server)


@pytest.mark.parametrize("step", [Step.TAKE_BEGUN, Step.TAKE_DONE])
def test_a_receiver_that_is_killed_is_asked_again_before_anybody_else(scene: Scene, step: Step) -> None:
    scene.b.on_step = killer(step, 2)
    server = scene.serve()
    pid = scene.evacuate()
    assert os.WTERMSIG(ended(server)) == signal.SIGKILL
    scene.pids.remove(server)
    scene.stop(pid)
    scene.looks_right()
    leaving = {id for id, m in run(scene.a.messages()).items() if m.state is State.LEAVING}
    assert leaving, "it is not known whose they are"
    # Nobody else gets them while the peer is away.
    other = Gate(scene.log.parent, "c")
    run(other.make())

    async def to_another() -> Evacuated:
        async with other.serving(), scene.a.evacuation(other) as running:
            return await running.run(20)

    done = run(to_another())
    assert leaving == {offer.id for offer in done.unsettled} == {*run(scene.a.messages())}
    assert not leaving & set(run(other.messages()))
    # It comes back and says what it has.
    scene.b.on_step = no_step
    scene.serve()
    assert ended(scene.evacuate()) == 0
    found = owners(run(scene.a.messages()), run(scene.b.messages()), run(other.messages()))
    assert found == dict.fromkeys(scene.ids, 1)


def test_the_command_hands_over_and_says_what_is_left(scene: Scene) -> None:
    file = scene.a.write_config(scene.log.with_name("gatepost.yaml"))
    token = scene.log.with_name("token")
    token.write_text(f"{TOKEN}\n")
    with sqlite3.connect(scene.a.root / "shard-00/spool.db") as database:
        (broken,) = database.execute("SELECT min(id) FROM message").fetchone()
        database.execute("UPDATE message SET slots = '[' WHERE id = ?", (broken,))
    database.close()
    command = ["queue", "evacuate", "--to", scene.b.url, "--token-file", str(token), "-c", str(file)]
    gone = CliRunner().invoke(main, [*command, "--wait", "0"])
    assert (
        gone.exit_code == 1 and "left: 2 queued" not in gone.output and "All connection attempts failed" in gone.output
    )
    scene.serve()
    shown = CliRunner().invoke(main, [*command, "--wait", "5s", "--json"])
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["handed_over"] == len(scene.ids) - 1
    assert json.loads(shown.stdout)["left"] == {"queued": 1}
    assert "left: 1 queued" in shown.stderr and f"{broken}: it cannot be read" in shown.stderr
    assert CliRunner().invoke(main, [*command, "--settle"]).exit_code == 0


def test_what_was_taken_and_delivered_meanwhile_is_not_taken_again(scene: Scene) -> None:
    scene.b.on_step = killer(Step.TAKE_DONE, 1)
    scene.b.options = replace(scene.b.options, record=False)
    server = scene.serve()
    pid = scene.evacuate()
    ended(server)
    scene.pids.remove(server)
    scene.stop(pid)
    taken = set(run(scene.b.messages()))
    assert taken
    assert run(scene.b.make(lambda spool: spool.drop(list(taken)))) == len(taken)
    scene.b.on_step = no_step
    scene.serve()
    assert ended(scene.evacuate()) == 0
    assert set(run(scene.b.messages())) == scene.ids - taken
    assert not run(scene.a.messages())


async def settled(a: Gate, b: Gate) -> dict[str, Stored]:
    """What is left at `a` when it runs again and has asked `b` about all that is leaving."""
    worker = await SqliteSpool.open(a.options)
    tasks = Tasks()
    try:
        tasks.start(settle_again_and_again(lambda: a.config(b), worker), name="settle")
        while (await worker.counts())[State.LEAVING]:
            await asyncio.sleep(0.02)
        assert not is_evacuated(a.root), "mail of others would be refused meanwhile"
    finally:
        await tasks.cancel()
        await worker.close()
    return await a.messages()


@pytest.mark.parametrize("step", [Step.LEAVE_DONE, Step.LEFT_BEGUN])
def test_a_gateway_that_runs_again_settles_what_it_has_leaving(scene: Scene, step: Step) -> None:
    scene.serve()
    scene.a.on_step = killer(step, 1)
    pid = scene.evacuate()
    assert os.WTERMSIG(ended(pid)) == signal.SIGKILL
    scene.pids.remove(pid)
    assert State.LEAVING in {message.state for message in run(scene.a.messages()).values()}
    here = run(settled(scene.a, scene.b))
    there = run(scene.b.messages())
    assert not here.keys() & there.keys() and here.keys() | there.keys() == scene.ids
    assert bool(there) is (step is Step.LEFT_BEGUN)


def test_all_shards_are_evacuated_and_a_gateway_that_took_no_mail_yet_can_take_some(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        ids = []
        for worker in range(3):
            spool = await SqliteSpool.open(a.options, worker=worker, workers=3)
            ids += [await put(spool, LARGE) for _ in range(9)]
            await spool.close()
        await b.make()
        async with b.serving(), a.evacuation(b) as running:
            assert (await running.run(30)).handed == 27
        assert set(await b.messages()) == set(ids)

    run(work())


# What peers may say, and do.


async def first_offer(a: Gate, b: Gate) -> tuple[Handover, Offer, Pack, Peers, Peer]:
    """One message of `a`, marked as leaving to `b`; the spool of `a` is left open."""
    spool = await open_all(a.options)
    handover = spool.handover
    peers = Peers([b.url], TOKEN, make_resolver(a.config(), SystemClock()))
    peer = await peers.look(b.url, "127.0.0.1")
    assert isinstance(peer, Peer)
    (id, *_) = await handover.candidates("", 10)
    await handover.offer([id], Leave(new_session_id(), peer.spool, peer.url, peer.name))
    (offer,) = await handover.pending()
    return handover, offer, await handover.pack(offer, "a"), peers, peer


class Slow:
    """Content that comes when it is let go."""

    eight_bit = False

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data
        self.go = asyncio.Event()

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self._data[:100]
        await self.go.wait()
        yield self._data[100:]


def test_an_offer_that_is_withdrawn_while_it_is_on_its_way_is_not_taken(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(put)
        await b.make()
        async with b.serving():
            _, offer, pack, peers, peer = await first_offer(a, b)
            slow = Slow(await a.octets(offer.id))
            ours = spool_id(a.root)
            on_its_way = peers.offer(peer, offer.id, offer.offer, ours, pack.description, slow)
            sending = Tasks().start(on_its_way, name="offer")
            await asyncio.sleep(0.1)
            assert (await peers.withdraw(peer, offer.id, offer.offer, ours)).told is Told.REFUSED
            slow.go.set()
            assert (await sending).told is Told.REFUSED
            assert not await b.messages()
            # And never again by this offer, but by another one.
            again = await peers.offer(peer, offer.id, offer.offer, ours, pack.description, pack.content)
            assert again.told is Told.REFUSED
            new = await peers.offer(peer, offer.id, new_session_id(), ours, pack.description, pack.content)
            assert new.told is Told.TAKEN
            assert set(await b.messages()) == {offer.id}

    run(work())


def test_the_same_offer_is_taken_once_and_answered_alike_ever_after(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(put)
        await b.make()
        async with b.serving():
            _, offer, pack, peers, peer = await first_offer(a, b)
            args = (peer, offer.id, offer.offer, spool_id(a.root))
            for _ in range(2):
                assert (await peers.offer(*args, pack.description, pack.content)).told is Told.TAKEN
            assert (await peers.withdraw(*args)).told is Told.TAKEN
            await b.make(lambda spool: spool.drop([offer.id]))
            assert (await peers.offer(*args, pack.description, pack.content)).told is Told.TAKEN
            assert (await peers.withdraw(*args)).told is Told.TAKEN
            assert not await b.messages()
            # An offer of a time that nothing is known of any more is neither taken nor refused.
            old = (peer, offer.id, ids_from(1.0e9) + "0000", spool_id(a.root))
            assert (await peers.withdraw(*old)).told is Told.UNKNOWN
            assert (await peers.offer(*old, pack.description, pack.content)).told is Told.AMISS

    run(work())


@pytest.mark.parametrize("what", ["cut", "longer", "other", "id", "papers", "json", "hop"])
def test_a_message_that_is_not_what_its_description_says_is_not_taken(tmp_path: Path, what: str) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(put)
        await b.make()
        async with b.serving():
            _, offer, pack, peers, peer = await first_offer(a, b)
            said = json.loads(pack.description)
            octets = await a.octets(offer.id)
            match what:
                case "cut":
                    octets = octets[:-1]
                case "longer":
                    octets += b"x"
                case "other":
                    octets = octets[:-1] + b"x"
                case "id":
                    said["message"]["id"] = new_id()
                case "papers":
                    said["papers"]["attempts"] = [[-1, [{}]]]
                case "hop":
                    said["message"]["envelope"]["next_hop"] = "transport:nobody"
            description = b"{" if what == "json" else json.dumps(said).encode()
            content = MemoryContent(octets, False)
            args = (peer, offer.id, offer.offer, spool_id(a.root))
            told = await peers.offer(*args, description, content)
            assert told.told is Told.AMISS, told
            assert not await b.messages()
            assert not list((b.root / "shard-00/content").iterdir())
            assert (await peers.withdraw(*args)).told is Told.REFUSED

    run(work())


def test_descriptions_are_bounded_each_and_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(put)
        await b.make()
        async with b.serving():
            _, offer, pack, peers, peer = await first_offer(a, b)
            args = (peer, offer.id, offer.offer, spool_id(a.root))
            size = len(pack.description)
            monkeypatch.setattr("gateway.ops.handover_api.DESCRIPTION_OCTETS", size - 1)
            said = await peers.offer(*args, pack.description, pack.content)
            assert said.told is Told.AMISS and "too long" in said.why
            monkeypatch.setattr("gateway.ops.handover_api.DESCRIPTION_OCTETS", size * 3 // 2)
            held: list[int] = []
            hold = HandoverApi._hold
            monkeypatch.setattr(HandoverApi, "_hold", lambda api, count: (held.append(count), hold(api, count)))
            slow = Slow(await a.octets(offer.id))
            first = Tasks().start(peers.offer(*args, pack.description, slow), name="offer")
            # Without the end of its line.
            while sum(held) < size - 1:
                await asyncio.sleep(0.005)
            second = await peers.offer(peer, offer.id, new_session_id(), args[3], pack.description, pack.content)
            assert second.told is Told.UNKNOWN and "together" in second.why
            slow.go.set()
            assert (await first).told is Told.TAKEN

    run(work())


def test_who_does_not_take_mail_is_passed_over_and_nothing_is_marked(tmp_path: Path) -> None:
    async def work() -> None:
        a, draining, leaving, full, filled, good = (Gate(tmp_path, name) for name in ("a", "b", "c", "d", "e", "f"))
        ids = set(await a.make(fill))
        for gate in (draining, leaving, full, filled, good):
            await gate.make()
        full.roomy = False
        async with a.serving(), draining.serving(), leaving.serving(), full.serving(), filled.serving(), good.serving():
            # It says that there is room, and there is none any more when the message comes.
            filled.options = replace(filled.options, min_free=1 << 60)
            draining.ready(WorkerState.DRAINING)
            with evacuating(leaving.root):
                async with a.evacuation(a, draining, leaving, full) as running:
                    done = await running.run(0.5)
                assert not done.handed and set(await a.messages()) == ids
                assert not done.unsettled and set(done.left) == {"queued", "hold", "quarantine"}
                why = "\n".join(done.why)
                assert "draining" in why and "handed over" in why and "full" in why
                async with a.evacuation(a, draining, leaving, full, filled, good) as running:
                    done = await running.run(20)
                assert done.empty and set(await good.messages()) == ids

    run(work())


def test_a_name_leads_to_all_gateways_behind_it_but_oneself_and_each_gets_some(tmp_path: Path) -> None:
    async def work() -> None:
        a, b, c = (Gate(tmp_path, name, f"127.0.0.{n}") for n, name in enumerate("abc", 2))
        ids = set(await a.make(lambda spool: asyncio.gather(*(put(spool) for _ in range(60)))))
        await b.make()
        await c.make()
        a.port = b.port = c.port = free_port()
        dns = FakeDns(a={"pods.test": [gate.host for gate in (a, b, c)] + ["127.0.0.9"]})
        peers = Peers([f"http://pods.test:{a.port}"], TOKEN, dns)
        spool = await open_all(a.options)
        async with a.serving(), b.serving(), c.serving():
            done = await Evacuation(spool.handover, peers, name="a", by="anna").run(30)
        await peers.close()
        await spool.close()
        there, elsewhere = set(await b.messages()), set(await c.messages())
        assert done.empty and there and elsewhere and not there & elsewhere and there | elsewhere == ids

    run(work())


def test_two_that_leave_to_each_other_do_not_move_mail_about(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        here, there = set(await a.make(fill)), set(await b.make(fill))
        async with a.serving(), b.serving(), a.evacuation(b) as one, b.evacuation(a) as two:
            done = await asyncio.gather(one.run(0.4), two.run(0.4))
        assert [one.handed for one in done] == [0, 0]
        assert (set(await a.messages()), set(await b.messages())) == (here, there)
        async with b.serving(), a.evacuation(b) as running:
            assert (await running.run(20)).empty
        assert set(await b.messages()) == here | there

    run(work())


def test_one_spool_is_evacuated_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.spool.identity._TRY_SECONDS", 0.001)

    async def work() -> None:
        a = Gate(tmp_path, "a")
        await a.make()
        async with a.evacuation():
            with pytest.raises(AlreadyEvacuated):
                async with a.evacuation():
                    pass

    run(work())


def test_a_message_that_another_has_by_the_same_id_stays(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        id = await a.make(put)
        await b.make(lambda spool: put(spool, LARGE, new=message(id)))
        async with b.serving(), a.evacuation(b) as running:
            done = await running.run(10)
        assert done.left == {"queued": 1} and "another message of this id" in done.messages[id]
        assert await b.octets(id) == HEAD + LARGE

    run(work())


def test_what_a_worker_has_in_hand_is_not_offered(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make()
        await b.make()
        worker = await SqliteSpool.open(a.options)
        first = await put(worker)
        claimed = await take(worker)
        async with b.serving(), a.evacuation(b) as running:
            going = Tasks().start(running.run(20), name="evacuation")
            await asyncio.sleep(0.3)
            assert set(await a.messages()) == {first} and not await b.messages()
            await defer(worker, claimed[first].message, NOW + 60)
            assert (await going).empty
        (moved,) = (await b.messages()).values()
        assert moved.slots[0].attempts == 1
        assert not await take(worker, NOW + 100)
        await worker.close()

    run(work())


def test_what_is_leaving_is_not_claimed_dropped_or_changed_and_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        id = await a.make(put)
        await b.make()
        async with b.serving():
            await first_offer(a, b)
        worker = await SqliteSpool.open(a.options)
        assert not await take(worker, NOW + 1e6)
        for amendment in (Drop(), Hold(), Release(), Retry()):
            assert await worker.postmaster.amend([id], amendment, by="anna") == {id: Amended.WRONG_STATE}
        assert not await worker.drop([id])
        (shown,) = await worker.list(state=State.LEAVING)
        scene = View(NOW, 1.0, 1.0, lambda *_: "", {}, attended=True)
        assert [reason.code for reason in reasons(shown, scene)] == ["leaving"]
        assert b.url in shown.reason
        await worker.close()
        async with a.evacuation(b) as running:
            await running.forget(b.url)
        assert (await a.messages())[id].state is State.QUEUED

    run(work())


Answerer = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


async def answer(send: Any, status: int, body: bytes, *, more: bool = False, **headers: str) -> None:
    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def liar(spool: str, taken: Callable[[str, str, str], dict[str, Any]]) -> Answerer:
    """A peer that answers offers with what `taken` makes of spool, id and offer."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            said = {"spool": spool, "name": "liar", "ready": True, "why": ""}
        else:
            said = taken(*scope["path"].rsplit("/", 3)[1:])
        while (await receive()).get("more_body"):
            pass
        await answer(send, 200, json.dumps(said).encode())

    return app


OTHER = "ab" * 16
LIES: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "another message": lambda spool, id, offer: {"result": "taken", "spool": spool, "id": id + "1", "offer": offer},
    "another offer": lambda spool, id, offer: {"result": "taken", "spool": spool, "id": id, "offer": "0" * 13},
    "another spool": lambda spool, id, offer: {"result": "taken", "spool": "0" * 32, "id": id, "offer": offer},
    "no such word": lambda spool, id, offer: {"result": "perhaps", "spool": spool, "id": id, "offer": offer},
    "odd types": lambda spool, id, offer: {"result": ["taken"], "spool": spool, "id": [id], "offer": {}},
    "nothing": lambda spool, id, offer: {},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_peer_that_speaks_of_something_else_is_not_believed(tmp_path: Path, lie: str) -> None:
    async def work() -> None:
        a = Gate(tmp_path, "a")
        id = await a.make(put)
        async with served(liar(OTHER, LIES[lie])) as port:
            done = await evacuate_to(a, port, 20)
        assert done.handed == 0 and [offer.id for offer in done.unsettled] == [id]
        assert (await a.messages())[id].state is State.LEAVING

    run(work())


async def evacuate_to(gate: Gate, port: int, seconds: float) -> Evacuated:
    urls = [f"http://127.0.0.1:{port}"]
    async with evacuation(gate.config(), urls, TOKEN, "anna") as running:
        return await running.run(seconds)


async def _garbage(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, 200, b"\xff\x00" * 1000)


async def _redirect(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, 307, b"", location="http://127.0.0.1:1/")


async def _endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await answer(send, 200, b" " * 60000, more=True)
    while True:
        await send({"type": "http.response.body", "body": b" " * 60000, "more_body": True})
        await asyncio.sleep(0)


async def _silent(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.mark.parametrize("app", [_garbage, _redirect, _endless, _silent])
@pytest.mark.parametrize("when", ["at once", "with the message"])
def test_a_peer_that_makes_no_sense_costs_a_bounded_time_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Answerer, when: str
) -> None:
    for name in ("_LOOK", "_ANSWER"):
        monkeypatch.setattr(f"gateway.transport.peers.{name}", 0.1)
    friendly = liar(OTHER, lambda *_: {})

    async def late(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await (friendly if scope["method"] == "GET" else app)(scope, receive, send)

    async def work() -> None:
        a = Gate(tmp_path, "a")
        id = await a.make(put)
        async with served(app if when == "at once" else late) as port:
            done = await evacuate_to(a, port, 0.05 if when == "at once" else 20)
        assert done.handed == 0 and set(await a.messages()) == {id}
        state = (await a.messages())[id].state
        assert state is (State.QUEUED if when == "at once" else State.LEAVING)
        assert done.why

    run(work())


def test_a_wrong_token_moves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(put)
        await b.make()
        async with b.serving(), a.evacuation(b, token="another-token-of-sixteen") as running:
            done = await running.run(0.2)
        assert done.left == {"queued": 1} and "401" in done.why[0]

    run(work())


def test_a_peer_that_cannot_be_reached_any_more_strands_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        id = await a.make(put)
        await b.make()
        async with b.serving(), a.evacuation(b) as running:
            found = await running._ready()
        # It said that it was ready, and was gone when it was to get the message.
        async with a.evacuation(b) as running:
            running._deadline = time.monotonic() + 5
            await running._feed(found[0], deque([id]))
        assert (await a.messages())[id].state is State.QUEUED

    run(work())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["message", "papers", "by", "id"]), inner),
    max_leaves=8,
)


ODD = st.one_of(st.text(max_size=30), st.sampled_from([OTHER, "0" * 13, "1HF7YAT0100001", "..", "%00"]))


def test_whatever_is_asked_gets_an_answer_and_stores_nothing(tmp_path: Path) -> None:
    b = Gate(tmp_path, "b")
    run(b.make())
    ours = spool_id(b.root)
    app = b.application()

    @settings(max_examples=50, deadline=None)
    @given(
        st.sampled_from(["PUT", "DELETE"]),
        st.tuples(st.just(ours) | ODD, ODD, st.sampled_from([new_session_id(), "0" * 13]) | ODD),
        st.just(OTHER) | ODD,
        st.binary(max_size=200) | st.builds(lambda part: json.dumps(part).encode() + b"\nx", JSON),
    )
    def ask(method: str, parts: tuple[str, ...], sender: str, body: bytes) -> None:
        path = f"{PATH}/" + "/".join(quote(part, safe="") for part in parts)
        headers = {"host": "b", "authorization": f"Bearer {TOKEN}", "gatepost-spool": quote(sender)}
        status, _ = run(call(app, path, method, headers, body))
        assert status in (200, 307, 400, 404, 405, 409, 410, 421, 422), status
        assert not query(b.options, "SELECT id FROM message")

    ask()


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["record", "attempts", "redacted", "x"]), inner)
        ),
    )
    | st.fixed_dictionaries(
        {
            "record": st.none() | st.just({"x": 1}) | st.integers(),
            "attempts": st.lists(st.tuples(st.integers(-1, 3), st.lists(st.just({"x": 1}))).map(list), max_size=3),
            "redacted": st.booleans() | st.integers(0, 1),
        }
    )
)
def test_papers_of_any_form_are_read_or_refused(data: Any) -> None:
    try:
        papers = read_papers(data)
    except ParcelError as error:
        assert str(error).startswith("its record and attempts ")
        return
    attempts = [[n, notes] for n, notes in papers.attempts]
    assert data == {"record": papers.record, "attempts": attempts, "redacted": papers.redacted}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ftp://a",
        "http://",
        "http://a/b",
        "http://a?x",
        "http://u@a",
        "http://a:0",
        "http://a:b",
        "http://[::1",
        "http://ä",
    ],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(PeersError):
        check_url(text)


def test_peers_are_named_by_host_and_port() -> None:
    for text in ("http://a", "http://a:1/", "https://a.b:2", "http://[::1]:3"):
        assert check_url(text) == text.rstrip("/")


def configured(tmp_path: Path, text: str) -> Config:
    head = "hostname: a.example\nlisteners: [{address: '127.0.0.1:2525'}]\n"
    return parse(f"{head}{text}\n".encode(), str(tmp_path / "gatepost.yaml"))


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("evacuate: {when: drain}", "evacuate.peers", "no peers are named"),
        ("evacuate: {when: drain, peers: 'http://b/x'}", "evacuate.peers", "expected http://HOST:PORT"),
        (
            "evacuate: {when: drain, peers: 'http://b'}\nspool: {postgres: 'postgresql://a@b/c'}",
            "evacuate.when",
            "who shares spool.postgres",
        ),
        ("evacuate: {peers: 'http://b', token_file: short}", "evacuate.token_file", "16 to 1000 characters"),
        ("admin: {token_file: short}", "admin.token_file", "16 to 1000 characters"),
        ("admin: {handover: '127.0.0.1:9926'}", "admin.handover", "needs admin.token"),
        (f"admin: {{token: {TOKEN}, handover: '127.0.0.1:9925'}}", "admin.handover", "another port than admin.address"),
        (
            f"admin: {{token: {TOKEN}, health: '127.0.0.1:1', handover: '127.0.0.1:1'}}",
            "admin.handover",
            "another port than admin.health",
        ),
    ],
)
def test_a_configuration_that_cannot_hand_over_says_why(tmp_path: Path, text: str, key: str, said: str) -> None:
    (tmp_path / "short").write_text("short\n")
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.path.startswith(key) and said in problem.message and problem.line == 3


def test_tokens_come_from_files_and_peers_have_ours_unless_they_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text(f"{TOKEN}\nand more\n")
    (tmp_path / "theirs").write_text("another-token-of-sixteen\n")
    ours = configured(tmp_path, "admin: {token_file: ours}\nevacuate: {peers: 'http://pods:9926'}")
    assert ours.admin.secret == token_of(ours) == TOKEN and ours.evacuate.peers == ("http://pods:9926",)
    assert token_of(configured(tmp_path, "admin: {token_file: ours}\nevacuate: {token_file: theirs}")) != TOKEN
    assert configured(tmp_path, f"admin: {{token: {TOKEN}}}").admin.secret == TOKEN


def test_a_repair_keeps_what_is_leaving_and_what_was_taken(tmp_path: Path) -> None:
    async def mark() -> tuple[str, str]:
        a, b = Gate(tmp_path, "a"), Gate(tmp_path, "b")
        await a.make(fill)
        await b.make()
        async with b.serving():
            handover, offer, _, peers, _ = await first_offer(a, b)
            taken = new_session_id()
            assert await handover.withdraw("ABC", taken, OTHER) is Answer.REFUSED
            await peers.close()
            return offer.id, taken

    id, taken = run(mark())
    a = Gate(tmp_path, "a")
    path = a.root / "shard-00/spool.db"
    query(a.options, "PRAGMA wal_checkpoint(TRUNCATE)")
    ((page,), (size,)) = query(a.options, "SELECT rootpage FROM sqlite_master WHERE name = 'attempt'") + query(
        a.options, "PRAGMA page_size"
    )
    octets = bytearray(path.read_bytes())
    octets[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(octets)
    assert Kind.DATABASE in {found.kind for found in check(a.root, repair=True).findings}
    assert (run(a.messages()))[id].state is State.LEAVING
    assert [row[0] for row in query(a.options, "SELECT id FROM offer")] == [id]
    assert query(a.options, "SELECT id, taken FROM taken WHERE offer = ?", taken) == [("ABC", 0)]


def test_a_message_that_is_leaving_and_nobody_knows_to_whom_is_found_and_put_on_hold(tmp_path: Path) -> None:
    a = Gate(tmp_path, "a")
    id = run(a.make(put))
    query(a.options, "UPDATE message SET state = 'leaving' WHERE id = ?", id)
    assert [(found.kind, found.name) for found in check(a.root).findings] == [(Kind.SCHEDULE, id)]
    check(a.root, repair=True)
    assert run(a.messages())[id].state is State.HOLD and not check(a.root).findings
