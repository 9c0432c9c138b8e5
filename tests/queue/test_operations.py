"""What the postmaster did, as the scheduler takes it: mail that is returned, destinations that are suspended."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Envelope
from gateway.mail.session import new_session_id, transaction_id
from gateway.ops.operations import (
    Amended,
    Drop,
    EditRecipients,
    Hold,
    Redirect,
    Release,
    Retry,
    Return,
    Selection,
    Suspension,
)
from gateway.queue.lane import SUSPENDED
from gateway.queue.quarantine import Keeper
from gateway.queue.retry import RetryOptions
from gateway.queue.scheduler import Scheduler, SchedulerOptions
from gateway.spool.spool import NewMessage, SpoolOptions, State
from gateway.spool.sqlite import SqliteSpool, open_all
from gateway.spool.suspensions import Watch
from gateway.transport.transport import Delivery, Outcome
from tests.queue.rig import (
    CONTENT,
    DEFERRED,
    DELIVERED,
    FAILED,
    HOST,
    START,
    UNREACHED,
    ManualClock,
    Script,
    World,
    address,
    recipient,
)


class JumpingClock(ManualClock):
    """A clock whose wall time is set by somebody else now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.jump = 0.0

    def now(self) -> float:
        return super().now() + self.jump


def in_world(directory: Path, work: Callable[[World], Awaitable[None]], **retry: float) -> None:
    """`work` in a world whose scheduler runs and can be told what is suspended, in `world.suspended`."""

    async def run() -> None:
        spool = await SqliteSpool.open(SpoolOptions(str(directory / "spool"), min_free=0))
        options = RetryOptions(**{"first": 60.0, "give_up": 86400.0, "jitter": 0.0, **retry})
        world = World(spool, options=SchedulerOptions(), retry=options)
        world.clock = JumpingClock()
        watch = Watch(spool.postmaster.listing, nothing)
        world.scheduler = Scheduler(
            *(spool, world, world),
            retry=options,
            clock=world.clock,
            hostname=HOST,
            rng=lambda: 0.5,
            suspended=watch.suspended,
        )
        watches[world.scheduler] = watch
        world.start()
        try:
            await work(world)
        finally:
            await world.stop()

    asyncio.run(run())


watches: dict[Scheduler, Watch] = {}


async def nothing(_: frozenset[str]) -> None:
    """Nobody is told."""


def hop(local: str, domain: str, *_: str) -> str:
    return f"smtp:{domain}:25"


def test_a_returned_message_is_not_tried_and_its_sender_gets_a_bounce_that_says_why(tmp_path):
    async def check(world: World) -> None:
        script = world.on("example.org", DEFERRED)
        id = await world.send("anna@example.org", "cem@example.org")
        await world.settled()
        assert len(script.deliveries) == 1
        world.clock.advance(1)
        results = await world.spool.postmaster.amend([id], Return("moved away"), by="anna")
        assert results == {id: Amended.DONE}
        world.keeps_contents = True
        bounced = world.on("example.net", DELIVERED)
        await world.settled()
        assert len(script.deliveries) == 1, "nobody was tried again"
        assert await world.find(id) is None
        (content,) = bounced.contents
        assert b"554 5.7.1 returned: moved away" in content and b"cem@example.org" in content
        assert bounced.deliveries[0].recipients[0].address == address("ben@example.net")
        (explained,) = await world.spool.explain(id)
        # By two clocks here, so in any order.
        told = Counter(note["outcome"] for note in explained.attempts)
        assert told == {"deferred": 2, "returned": 2, "failed": 2}

    in_world(tmp_path, check)


def test_the_sender_of_returned_mail_is_not_told_again_of_who_was_refused_before(tmp_path):
    async def check(world: World) -> None:
        world.on("example.org", [FAILED, DEFERRED])
        world.keeps_contents = True
        bounced = world.on("example.net", DELIVERED)
        id = await world.send("anna@example.org", "cem@example.org")
        await world.settled()
        assert len(bounced.contents) == 1 and b"Final-Recipient: rfc822; anna@" in bounced.contents[0]
        assert await world.spool.postmaster.amend([id], Return("moved away"), by="anna") == {id: Amended.DONE}
        await world.settled()
        assert await world.find(id) is None
        assert len(bounced.contents) == 2 and b"Final-Recipient: rfc822; cem@" in bounced.contents[1]
        assert b"Final-Recipient: rfc822; anna@" not in bounced.contents[1]

    in_world(tmp_path, check)


def test_nothing_is_tried_at_a_suspended_destination_and_others_go_on(tmp_path):
    async def check(world: World) -> None:
        postmaster, watch = world.spool.postmaster, watches[world.scheduler]
        assert await postmaster.suspend(Suspension("smtp:example.org:25", "anna", START, "moving"))
        await watch.look()
        script, other = world.on("example.org", DELIVERED), world.on("example.com", DELIVERED)
        id = await world.send("anna@example.org", "cem@example.com")
        await world.settled()
        assert (len(script.deliveries), len(other.deliveries)) == (0, 1)
        waiting = await world.find(id)
        assert waiting is not None and waiting.slots[0].last == str(SUSPENDED) and waiting.slots[0].attempts == 0
        # A worker that starts knows it too.
        fresh = Watch(postmaster.listing, nothing)
        assert await fresh.look() == frozenset() and fresh.suspended("smtp:example.org:25")
        assert not fresh.suspended("smtp:example.com:25")
        # Resumed, it is made due, and goes.
        ended = await postmaster.resume("smtp:example.org:25", by="bob")
        assert ended is not None and ended.reason == "moving"
        assert await watch.look() == {"smtp:example.org:25"}
        wanted = Selection(next_hop="smtp:example.org:25", reason=SUSPENDED.text)
        found = await postmaster.find(wanted, hop, limit=9)
        assert [one.message.id for one in found] == [id]
        await postmaster.amend([id], Retry(), by="the end of a suspension")
        await world.settled()
        assert len(script.deliveries) == 1 and await world.find(id) is None

    in_world(tmp_path, check)


@pytest.mark.parametrize(
    "amendment",
    [
        Redirect((recipient("cem@example.com"),)),
        EditRecipients((recipient("cem@example.com"),), (address("anna@example.org"),)),
    ],
)
def test_what_is_given_other_recipients_does_not_wait_for_the_destination_of_the_first(tmp_path, amendment):
    async def check(world: World) -> None:
        postmaster, watch = world.spool.postmaster, watches[world.scheduler]
        assert await postmaster.suspend(Suspension("smtp:example.org:25", "anna", START))
        await watch.look()
        elsewhere = world.on("example.com", DELIVERED)
        id = await world.send("anna@example.org")
        await world.settled()
        assert await postmaster.amend([id], amendment, by="anna") == {id: Amended.DONE}
        await world.settled()
        assert len(elsewhere.deliveries) == 1 and await world.find(id) is None

    in_world(tmp_path, check)


def test_what_waits_in_a_lane_when_its_destination_is_suspended_is_put_off_at_once(tmp_path):
    async def check(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        script.gate = asyncio.Event()
        ids = [await world.send(f"u{n}@example.org") for n in range(30)]
        await world.until(lambda: script.now == 5)
        await world.spool.postmaster.suspend(Suspension("smtp:example.org:25", "anna", START))
        await watches[world.scheduler].look()
        script.gate.set()
        await world.settled()
        assert len(script.deliveries) == 5, "those under way end, and no other begins"
        left = [m.id for m in await world.spool.list(state=State.QUEUED)]
        assert len(left) == 25 and set(left) <= set(ids)
        # Nothing is claimed any more, so that they can be moved.
        results = await world.spool.postmaster.amend(left, Hold(), by="anna")
        assert set(results.values()) == {Amended.DONE}

    in_world(tmp_path, check)


def test_a_suspension_does_not_stop_the_time_of_a_message(tmp_path):
    async def check(world: World) -> None:
        await world.spool.postmaster.suspend(Suspension("smtp:example.org:25", "anna", START))
        await watches[world.scheduler].look()
        world.on("example.net", DELIVERED)
        id = await world.send("anna@example.org")
        await world.settled()
        world.clock.advance(86401)
        await world.settled()
        assert await world.find(id) is None
        assert world.script("example.net").deliveries, "its sender was told"

    in_world(tmp_path, check)


def test_the_wall_clock_may_jump(tmp_path):
    """Back: what is due is late, by the jump at most, and goes at once when it is retried. Forward: nothing is lost."""

    async def check(world: World) -> None:
        script = world.on("example.org", DEFERRED)
        id = await world.send("anna@example.org")
        await world.settled()
        stored = await world.find(id)
        assert stored is not None and stored.due == START + 60
        world.clock.jump -= 7200
        await world.settled()
        assert len(script.deliveries) == 1
        again = await world.find(id)
        assert again is not None and again.due == START + 60
        await world.spool.postmaster.amend([id], Retry(), by="anna")
        await world.settled()
        assert len(script.deliveries) == 2
        again = await world.find(id)
        assert again is not None and again.due == world.clock.now() + 120, "from now on by the clock as it is"
        # New mail is not held up by it.
        other = await world.send("cem@example.com")
        await world.settled()
        assert await world.find(other) is None
        # Forward, for long: it has had its time, and its sender hears of it.
        world.clock.jump += 86400 * 400
        world.on("example.net", DELIVERED)
        await world.settled()
        assert await world.find(id) is None
        assert [d.recipients[0].address for d in world.script("example.net").deliveries] == [
            Address("ben", "example.net")
        ]

    in_world(tmp_path, check)


def test_a_message_that_had_its_time_in_a_jump_is_tried_once_more_before_it_is_given_up(tmp_path):
    async def check(world: World) -> None:
        script = world.on("example.org", DEFERRED, DELIVERED)
        id = await world.send("anna@example.org")
        await world.settled()
        world.clock.jump += 86400 * 400
        await world.settled()
        assert len(script.deliveries) == 2 and await world.find(id) is None
        assert await world.dsns() == []

    in_world(tmp_path, check)


def test_a_destination_that_is_left_alone_is_so_by_a_clock_that_does_not_jump(tmp_path):
    async def check(world: World) -> None:
        script = world.on("example.org", UNREACHED)
        for n in range(5):
            await world.send(f"u{n}@example.org")
            await world.settled()
        tried = len(script.deliveries)
        # The wall clock alone: what is due waits on the disk, without an attempt.
        world.clock.jump = 3600.0
        for _ in range(20):
            world.scheduler.ring()
            await asyncio.sleep(0.001)
        await world.until(lambda: not world.scheduler.active)
        assert len(script.deliveries) == tried == 5
        world.clock.advance(3600)
        await world.settled()
        assert len(script.deliveries) > tried

    in_world(tmp_path, check)


def test_quarantine_is_kept_by_the_wall_clock_and_a_jump_back_drops_nothing(tmp_path):
    async def run() -> None:
        spool = await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=0))
        clock = JumpingClock()
        id = transaction_id(new_session_id(), 0)
        draft = spool.draft(id)
        await draft.write(CONTENT)
        to = Envelope(NULL_SENDER, (recipient("anna@example.org"),))
        await spool.commit(draft, NewMessage(id, to, START, b"", state=State.QUARANTINE, reason="x"))
        keeper = Keeper(spool, clock, lambda: 3600.0)
        for jump in (0.0, -86400.0, 3599.0):
            clock.jump = jump
            await keeper.sweep()
            assert await spool.show(id) is not None
        clock.jump = 3601.0
        await keeper.sweep()
        assert await spool.show(id) is None
        await spool.close()

    asyncio.run(run())


class Counting(Script):
    """A transport that counts what it has taken, by queue id."""

    def __init__(self, got: Counter[str], *outcomes: Outcome) -> None:
        super().__init__(*outcomes)
        self.got = got

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        outcomes = await super().deliver(delivery)
        self.got[delivery.id] += outcomes[0] is DELIVERED
        return outcomes


def test_whatever_postmasters_do_beside_deliveries_each_message_ends_once(tmp_path):
    """Each is delivered once to those it was meant for then, or was dropped; none is lost, none goes twice."""

    async def check(world: World) -> None:
        view = await open_all(SpoolOptions(str(tmp_path / "spool"), min_free=0))
        chance = random.Random(7)
        got: Counter[str] = Counter()
        world.scripts["example.org"] = Counting(got, *([DEFERRED, DELIVERED] * 40), DELIVERED)
        world.scripts["example.com"] = Counting(got, DELIVERED)
        elsewhere = (recipient("max@example.com"),)
        dropped: set[str] = set()
        ids: list[str] = []

        async def meddle() -> None:
            while len(dropped) < 6 or chance.random() < 0.9:
                wanted = chance.sample(ids, min(4, len(ids)))
                amendment = chance.choice([Hold(), Release(), Retry(), Redirect(elsewhere), Drop()])
                results = await view.postmaster.amend(wanted, amendment, by="anna")
                dropped.update(id for id, result in results.items() if amendment == Drop() and result.done)
                await asyncio.sleep(0)

        for _ in range(40):
            ids.append(await world.send("anna@example.org"))
        await meddle()
        # What was put on hold in the middle of an attempt can be released when that has ended.
        await view.postmaster.amend(ids, Release(), by="anna", wait=10.0)
        async with asyncio.timeout(20):
            while await world.spool.list():
                world.clock.advance(600)
                world.scheduler.ring()
                world.spool._shards[0].next_due = 0.0
                await asyncio.sleep(0.005)
        assert {id for id in ids if not got[id]} <= dropped, "lost"
        assert max(got.values()) == 1, "delivered twice"
        await view.close()

    in_world(tmp_path, check)
