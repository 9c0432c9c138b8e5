"""Both sides of a reload without processes: the supervisor's with workers that do as the test says, and a worker's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.app import wiring
from gateway.app.keeping import FIXED, keep
from gateway.app.reload import Outcome, Reload, Result, at_rest
from gateway.app.renewal import Bench, Renewal
from gateway.config import Config, ConfigError, load, parse
from gateway.ops.board import Board
from gateway.ops.orders import Orders, Phase
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.services.tenancy import Tenancy

BASE: dict[str, Any] = {"hostname": "mx.example.org", "workers": 2, "listeners": [{"address": "127.0.0.1:2525"}]}


def written(path: Path, **options: Any) -> Path:
    path.write_text(json.dumps({**BASE, **options}))
    return path


class Crew:
    """Two workers that answer each order as `answers` say: a reason for not preparing it, "" for doing it.

    `while_waiting` is called in each wait.
    """

    def __init__(self, folder: Path, *answers: str) -> None:
        self.file = written(folder / "gatepost.yaml")
        self.config = load(str(self.file))
        self.board = Board.create(2, 0.0)
        self.orders = Orders(2)
        self.reasons: list[str | None] = [*(answers or ("", ""))]
        self.engaged: list[tuple[str, int]] = []
        self.dead: list[int] = []
        self.died: list[int] = []
        self.given_up = 0
        self.while_waiting: Callable[[], bool] = lambda: True
        self.checked: Callable[[Config], None] = lambda config: None
        self.orders.prepare(1, b"")
        self.orders.take()
        for slot in self.board.slots:
            slot.set_config(1, self.config.digest)

    def reload(self) -> Outcome:
        return Reload(self, self.board, self.orders, lambda c: self.checked(c), FIXED).run(self.config, 1)

    @property
    def generations(self) -> list[int]:
        return [slot.generation for slot in self.board.slots]

    # What a reload asks of it

    def running(self) -> list[int]:
        return [i for i in (0, 1) if i not in self.dead]

    def ring(self) -> None:
        order = self.orders.order()
        self.given_up += order.phase is Phase.GIVE_UP
        for i in self.running():
            reason, answer = self.reasons[i], self.orders.answers[i]
            if order.phase is Phase.PREPARE and reason is not None:
                text = self.orders.text(order.number)
                assert text is not None
                answer.fail(order.number, reason) if reason else answer.done(order.number)
            if order.phase is Phase.TAKE and not reason and answer.ready == order.taken:
                self.board.slot(i).set_config(order.number, self.engaged[-1][0])

    def tend(self, seconds: float) -> bool:
        return self.while_waiting()

    def died_trying(self, number: int) -> list[int]:
        return self.died

    def engage(self, config: Config, generation: int) -> None:
        self.engaged.append((config.digest, generation))


def test_all_workers_take_what_all_have_prepared(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    written(crew.file, pipeline=["spf"])
    outcome = crew.reload()
    digest = hashlib.sha256(crew.file.read_bytes()).hexdigest()[:12]
    assert (outcome.result, outcome.generation, outcome.config.digest) == (Result.DONE, 2, digest)
    assert crew.generations == [2, 2] and crew.engaged == [(digest, 2)]
    assert [slot.config for slot in crew.board.slots] == [digest] * 2


def test_none_takes_what_one_cannot_prepare(tmp_path: Path) -> None:
    crew = Crew(tmp_path, "", "no such table")
    outcome = crew.reload()
    assert (outcome.result, outcome.reason) == (Result.REFUSED, "worker 1: no such table")
    assert crew.generations == [1, 1] and not crew.engaged and crew.given_up == 1
    assert outcome.to_json(crew.board)["workers"][1]["reason"] == "no such table"
    crew.reasons = ["", ""]
    assert crew.reload().result is Result.DONE


def test_a_configuration_that_kills_a_worker_is_given_up(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    crew.reasons[0] = None

    def dies() -> bool:
        crew.died, crew.dead = [0], [0]
        return crew.orders.order().number > 1

    crew.while_waiting = lambda: True if crew.orders.order().phase is not Phase.PREPARE else dies()
    outcome = crew.reload()
    assert (outcome.result, outcome.reason) == (
        Result.REFUSED,
        "worker 0: died while it prepared the configuration",
    )
    assert not crew.engaged


def test_a_worker_that_is_not_there_is_not_waited_for_and_starts_with_the_new_one(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    crew.dead = [1]
    crew.board.clear(1, 0.0)
    outcome = crew.reload()
    assert (outcome.result, outcome.reason) == (Result.FAILED, "worker 1: is not there, and will start with it")
    assert crew.engaged == [(crew.config.digest, 2)] and crew.generations == [2, 0]


def test_a_worker_that_hangs_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    crew.reasons[1] = None
    outcome = crew.reload()
    assert outcome.result is Result.REFUSED
    assert outcome.reason == "not prepared within 30 s: worker 1: is starting"


def test_a_worker_that_hangs_when_all_are_to_take_it_is_named_and_the_reload_stands(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    ring = crew.ring

    def hanging() -> None:
        if crew.orders.order().phase is Phase.TAKE:
            crew.dead = [1]
        ring()

    crew.ring = hanging  # type: ignore[method-assign]
    outcome = crew.reload()
    assert (outcome.result, outcome.reason) == (Result.FAILED, "worker 1: has not taken it yet")
    assert crew.engaged


def test_a_reload_ends_at_once_when_gatepost_is_to_stop(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    crew.reasons[1] = None
    crew.while_waiting = lambda: crew.orders.order().number < 2
    assert crew.reload().reason == "Gatepost is stopping"


def test_problems_are_told_as_check_tells_them_and_no_worker_hears_of_it(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    crew.file.write_text('{"listeners": []}')
    outcome = crew.reload()
    assert outcome.result is Result.REFUSED
    assert outcome.to_json(crew.board)["problems"] == [
        {"file": str(crew.file), "line": 1, "key": "listeners", "message": "must have at least one entry"}
    ]
    assert crew.orders.order().number == 1


def test_a_check_that_fails_by_a_bug_refuses_too(tmp_path: Path) -> None:
    crew = Crew(tmp_path)

    def broken(config: Config) -> None:
        raise KeyError("x")

    crew.checked = broken
    assert crew.reload().reason == "KeyError: 'x'"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_being_written_is_read_when_it_is_at_rest(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"
    pieces = iter([b"a", b"ab", b"abc"])
    file.write_bytes(b"")

    def writing(_: float) -> bool:
        if piece := next(pieces, b""):
            file.write_bytes(piece)
        return True

    assert at_rest(str(file), writing) == b"abc"


def test_a_moment_without_the_file_is_waited_out(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"

    def appears(_: float) -> bool:
        file.write_bytes(b"new")
        return True

    assert at_rest(str(file), appears) == b"new"


def test_a_file_that_is_gone_or_never_at_rest_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        at_rest(str(file), lambda _: True)
    counts = iter(range(1000))
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is being written all the time"):
        at_rest(str(file), lambda _: file.write_bytes(b"%d" % next(counts)) > 0)


# --- what needs a restart ---------------------------------------------------------------------------------------------


def test_keys_that_are_bound_to_the_start_are_kept_and_named(tmp_path: Path) -> None:
    old = load(str(written(tmp_path / "a")))
    new = load(str(written(tmp_path / "b", workers=3, spool={"path": "x", "min_free": "1MiB"}, hostname="b.test")))
    config, waiting = keep(old, new, FIXED)
    assert waiting == ["workers", "spool.path", "spool.min_free"]
    assert (config.workers, config.spool, config.hostname) == (2, old.spool, "b.test")
    assert config.digest == new.digest != old.digest


def test_a_listener_is_known_by_its_address_and_all_else_of_it_can_change(tmp_path: Path) -> None:
    here, there = {"address": "127.0.0.1:2525"}, {"address": "127.0.0.1:2526"}
    trusting = {**here, "xclient": {"trusted": ["127.0.0.1/32"]}}
    old = load(str(written(tmp_path / "a", listeners=[here, there])))
    config, waiting = keep(old, load(str(written(tmp_path / "b", listeners=[trusting, there]))), FIXED)
    assert waiting == [] and config.listeners[0].xclient is not None
    config, waiting = keep(old, load(str(written(tmp_path / "c", listeners=[trusting]))), FIXED)
    assert waiting == ["listeners"]
    assert [str(one.address) for one in config.listeners] == ["127.0.0.1:2525", "127.0.0.1:2526"]
    assert config.listeners[0].xclient is not None


# --- a worker ---------------------------------------------------------------------------------------------------------


class Equipment:
    """Counts what is open."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tenancy = Tenancy()
        self.closed = False

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


class Worker:
    """A renewal with a supervisor that the test plays."""

    def __init__(self, folder: Path) -> None:
        self.file = written(folder / "gatepost.yaml")
        self.board = Board.create(1, 0.0)
        self.orders = Orders(1)
        self.used: list[Equipment] = []
        self.made: list[Equipment] = []
        self.trouble: Exception | None = None

        async def make(text: bytes) -> Equipment:
            if self.trouble:
                raise self.trouble
            self.made.append(Equipment(parse(text, str(self.file))))
            return self.made[-1]

        first = Equipment(load(str(self.file)))
        bench = Bench(self.orders, self.board.slot(0), make, self.used.append)
        self.renewal = Renewal(bench, first, 1, grace=0.0)

    async def look(self) -> None:
        """Have it do what is ordered."""
        self.renewal.ring()
        for _ in range(20):
            await asyncio.sleep(0)

    async def prepare(self, number: int, **options: Any) -> None:
        self.orders.prepare(number, written(self.file, **options).read_bytes())
        await self.look()

    async def take(self) -> None:
        self.orders.take()
        await self.look()


@contextlib.asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[Worker]:
    made = Worker(folder)
    task = asyncio.get_running_loop().create_task(made.renewal.run())
    await asyncio.sleep(0)
    yield made
    task.cancel()
    await made.renewal.close()
    assert all(equipment.closed for equipment in made.made)


def test_what_is_prepared_is_used_only_when_all_take_it(tmp_path: Path) -> None:
    async def go() -> None:
        async with worker(tmp_path) as made:
            await made.prepare(2, hostname="two.test")
            slot = made.board.slot(0)
            assert (made.orders.answers[0].ready, made.used, slot.generation) == (2, [], 1)
            await made.take()
            assert [one.config.hostname for one in made.used] == ["two.test"]
            assert (slot.generation, slot.config) == (2, made.used[0].config.digest)
            await made.look()
            assert len(made.used) == 1

    asyncio.run(go())


def test_what_is_given_up_is_closed_and_never_used(tmp_path: Path) -> None:
    async def go() -> None:
        async with worker(tmp_path) as made:
            await made.prepare(2)
            made.orders.give_up()
            await made.look()
            assert made.made[0].closed and made.used == []
            await made.take()
            assert made.used == []

    asyncio.run(go())


def test_what_all_were_told_to_take_is_taken_also_by_who_looks_too_late(tmp_path: Path) -> None:
    async def go() -> None:
        async with worker(tmp_path) as made:
            await made.prepare(2, hostname="two.test")
            made.orders.take()
            await made.prepare(3, hostname="three.test")
            assert [one.config.hostname for one in made.used] == ["two.test"]
            assert made.orders.answers[0].ready == 3

    asyncio.run(go())


@pytest.mark.parametrize("trouble", [OSError("no such file"), RuntimeError("a bug")])
def test_who_cannot_prepare_says_why_and_goes_on_with_what_it_has(tmp_path: Path, trouble: Exception) -> None:
    async def go() -> None:
        async with worker(tmp_path) as made:
            made.trouble = trouble
            await made.prepare(2)
            answer = made.orders.answers[0]
            assert (answer.failed, answer.trying) == (2, 0) and str(trouble) in answer.reason
            made.trouble = None
            await made.prepare(3)
            assert answer.ready == 3

    asyncio.run(go())


def test_the_old_one_is_closed_when_its_last_session_has_ended_and_not_before(tmp_path: Path) -> None:
    async def go() -> None:
        async with worker(tmp_path) as made:
            await made.prepare(2)
            await made.take()
            old = made.renewal.current
            old.tenancy.enter()
            old.tenancy.enter()
            await made.prepare(3)
            await made.take()
            old.tenancy.leave()
            await made.look()
            assert not old.closed
            old.tenancy.leave()
            await made.look()
            assert old.closed and not made.renewal.retiring

    asyncio.run(go())


def test_a_tenancy_counts() -> None:
    tenancy = Tenancy()
    with pytest.raises(RuntimeError):
        tenancy.leave()
    tenancy.enter()
    assert len(tenancy) == 1


# --- nothing of the old ones is left ----------------------------------------------------------------------------------

ENTRIES: list[Any] = [
    {"dnsbl": {"zones": {"bl.test": 2}, "reject_at": 2}},
    "spf",
    "dkim",
    "dmarc",
    "greylist",
    {"milter": {"connect": "127.0.0.1:9"}},
    {"rules": [{"when": 'session.helo == "x"', "at": "mail", "then": "accept"}]},
]


def test_pipelines_that_were_replaced_are_collected_and_keep_nothing_open(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"
    board, orders = Board.create(1, 0.0), Orders(1)
    plugins: list[weakref.ref[Any]] = []

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def go() -> None:
        state = SqliteState(tmp_path, SystemClock())
        await state.start()

        async def make(text: bytes) -> wiring.Parts:
            parts = wiring.make_parts(parse(text, str(file)), state, SystemClock())
            await parts.start()
            plugins.extend(weakref.ref(e.plugin) for p in parts.pipelines.values() for e in p.entries if e.plugin)
            return parts

        first = await make(written(file, pipeline=ENTRIES).read_bytes())
        renewal = Renewal(Bench(orders, board.slot(0), make, lambda _: None), first, 1, grace=0.0)
        del first
        running = asyncio.get_running_loop().create_task(renewal.run())
        before = 0
        for number in range(2, 14):
            # Sessions on both sides of the reload.
            session, tenancy = renewal.current.pipelines["default"].open(), renewal.current.tenancy
            tenancy.enter()
            orders.prepare(number, written(file, pipeline=ENTRIES, hostname=f"mx{number}.test").read_bytes())
            while orders.answers[0].ready != number:
                renewal.ring()
                await asyncio.sleep(0.001)
            orders.take()
            while board.slot(0).generation != number:
                renewal.ring()
                await asyncio.sleep(0.001)
            await session.close()
            tenancy.leave()
            del session, tenancy
            while renewal.retiring:
                await asyncio.sleep(0.001)
            before = before or descriptors()
        await asyncio.sleep(0)
        assert descriptors() <= before
        gc.collect()
        alive = [ref() for ref in plugins if ref() is not None]
        assert len(plugins) > 12 * len(ENTRIES) // 2
        current = [e.plugin for p in renewal.current.pipelines.values() for e in p.entries if e.plugin]
        assert sorted(map(id, alive)) == sorted(map(id, current))
        running.cancel()
        await renewal.close()
        await state.close()

    asyncio.run(go())
