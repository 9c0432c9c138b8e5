"""The scheduler on a real spool, with scripted transports and a clock set by hand."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.kit.contracts.stock import hasten
from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Notify, Origin, Priority, Recipient
from gateway.mail.reply import Reply
from gateway.queue.lane import OUR_TROUBLE, UNREADABLE
from gateway.queue.options import OwnOptions, PaceOptions
from gateway.queue.retry import RetryOptions
from gateway.queue.scheduler import SchedulerOptions
from gateway.spool.spool import RecipientStatus, Settlement, SpoolError, SpoolOptions, State
from gateway.spool.sqlite import SqliteSpool, open_all
from gateway.transport.transport import BrokenOff, Delivery, Destination, Kind, Outcome
from tests.queue.rig import CONTENT, DEFERRED, DELIVERED, FAILED, HOST, UNREACHED, World, address, recipient

DAY = 86400.0
PACE = {field.name for field in fields(PaceOptions)}
Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a scenario in a world of its own."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            spool = await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=0))
            pace = PaceOptions(**{"dead_after": 3, **{name: options.pop(name) for name in PACE & options.keys()}})
            world = World(spool, options=SchedulerOptions(pace=pace, **options), retry=RetryOptions())
            try:
                await scenario(world)
            finally:
                await world.stop()

        asyncio.run(main())

    return run


def settlements(world: World) -> list[Settlement]:
    """What is settled from now on, in order."""
    seen: list[Settlement] = []
    settle = world.spool.settle

    async def watched(settlement: Settlement) -> None:
        seen.append(settlement)
        await settle(settlement)

    world.spool.settle = watched  # type: ignore[method-assign]
    return seen


def test_a_delivered_message_leaves_the_spool_and_its_attempt_is_recorded(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.start()
        id = await world.send("anna@example.org")
        await world.settled()
        assert await world.find(id) is None
        (delivery,) = world.script("example.org").deliveries
        assert delivery.id == id and str(delivery.sender) == "ben@example.net"
        assert b"".join([block async for block in delivery.content.blocks()]) == CONTENT
        (explained,) = await world.spool.explain(id)
        (attempt,) = explained.attempts
        assert (attempt["recipient"], attempt["outcome"], attempt["reply"], attempt["host"]) == (
            "anna@example.org", "delivered", "250 2.0.0 taken", "store.example.org",
        )  # fmt: skip

    play(scenario)


def test_a_delivery_knows_whom_its_message_came_from_and_a_report_comes_from_nobody(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        origin = Origin(ipaddress.ip_address("192.0.2.7"), 4711, "client.test", "helo.test")
        world.on("example.org", FAILED)
        world.start()
        await world.send("anna@example.org", origin=origin)
        await world.settled()
        assert [d.origin for d in world.script("example.org").deliveries] == [origin]
        assert [d.origin for d in world.script("example.net").deliveries] == [None]

    play(scenario)


def test_mail_that_waits_in_the_spool_is_found_without_a_bell(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        id = await world.send("anna@example.org")
        world.start()
        await world.until(lambda: not world.scheduler.active and bool(world.script("example.org").deliveries))
        await world.settled()
        assert await world.find(id) is None

    play(scenario)


def test_an_owed_failure_gets_its_dsn_in_the_same_settlement(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        seen = settlements(world)
        world.start()
        id = await world.send("anna@example.org", owed=True)
        await world.settled()
        first = next(s for s in seen if s.id == id)
        (owed,) = first.dsns
        assert first.slots[0].status is RecipientStatus.FAILED
        assert [s.id for s in seen].count(id) == 1
        assert await world.find(id) is None
        (report,) = world.script("example.net").deliveries
        assert report.sender is NULL_SENDER and [str(r.address) for r in report.recipients] == ["ben@example.net"]
        assert b"Final-Recipient: rfc822; anna@example.org" in owed.content

    play(scenario)


def test_a_strangers_failed_message_is_held_and_not_bounced(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.start()
        id = await world.send("anna@example.org", owed=False)
        await world.settled()
        held = await world.find(id)
        assert held is not None and held.state is State.HOLD
        assert held.reason == "undeliverable: 550 5.1.1 no such user, sender not proved, no bounce sent"
        assert not world.script("example.net").deliveries

    play(scenario)


def test_the_null_sender_is_never_bounced(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.start()
        id = await world.send("anna@example.org", sender=NULL_SENDER, owed=True)
        await world.settled()
        held = await world.find(id)
        assert held is not None and held.state is State.HOLD and held.reason.startswith("undeliverable bounce")
        assert len(await world.spool.list()) == 1

    play(scenario)


def test_a_dsn_that_fails_is_held_and_makes_no_other(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.on("example.net", FAILED)
        world.start()
        await world.send("anna@example.org")
        await world.settled()
        (bounce,) = await world.spool.list()
        assert bounce.envelope.sender is NULL_SENDER and bounce.state is State.HOLD

    play(scenario)


def test_notify_never_ends_without_a_dsn_and_without_a_hold(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.start()
        with structlog.testing.capture_logs() as events:
            await world.send(recipient("anna@example.org", Notify.NEVER), owed=True)
            await world.settled()
        assert await world.spool.list() == []
        assert not world.script("example.net").deliveries
        assert [e["recipient"] for e in events if e["event"] == "dsn.unwanted"] == ["anna@example.org"]

    play(scenario)


def test_a_delay_is_reported_once_and_the_message_expires_with_a_report(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", DEFERRED)
        world.start()
        id = await world.send("anna@example.org")
        await world.settled()
        first = await world.find(id)
        assert first is not None and first.slots[0].due == world.clock.now() + 300
        reports = world.script("example.net").deliveries
        for _ in range(4):
            world.clock.advance(2 * 3600)
            await world.settled()
        assert len(reports) == 1
        world.clock.advance(5 * DAY)
        await world.settled()
        assert len(reports) == 2
        assert await world.spool.list() == []

    play(scenario)


def test_nothing_is_tried_before_it_is_due(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DEFERRED, DELIVERED)
        world.start()
        await world.send("anna@example.org")
        await world.settled()
        world.clock.advance(299)
        await world.settled()
        assert len(script.deliveries) == 1
        world.clock.advance(2)
        await world.settled()
        assert len(script.deliveries) == 2

    play(scenario)


def test_when_the_clock_goes_back_new_mail_goes_at_once_and_old_mail_when_its_time_is_there_again_or_at_a_flush(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        put_off = world.on("example.org", DEFERRED, DELIVERED)
        world.start()
        await world.send("anna@example.org")
        await world.settled()
        await world.send("unbegun@example.com")
        world.to_disk()
        world.clock.jump(-DAY)
        await world.send("new@example.net")
        await world.settled()
        assert len(world.script("example.net").deliveries) == 1
        world.clock.advance(DAY - 1)
        await world.settled()
        assert len(put_off.deliveries) == 1 and world.script("example.com").deliveries == []
        world.clock.advance(1)
        await world.settled()
        assert len(world.script("example.com").deliveries) == 1 and len(put_off.deliveries) == 1
        world.clock.jump(-DAY)
        await hasten(world.spool)
        await world.settled()
        assert len(put_off.deliveries) == 2 and await world.spool.list() == []

    play(scenario)


def test_when_the_clock_goes_on_beyond_the_time_of_all_mail_each_is_tried_once_more(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("there.example", DEFERRED, DELIVERED)
        world.on("away.example", DEFERRED)
        world.start()
        await world.send("anna@there.example")
        await world.send("ben@away.example", sender="ann@sender.example")
        await world.settled()
        world.clock.jump(6 * DAY)
        await world.settled()
        assert [len(world.script(f"{name}.example").deliveries) for name in ("there", "away", "sender")] == [2, 2, 1]
        assert await world.spool.list() == []

    play(scenario)


def test_two_destinations_of_one_message_settle_once(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        slow = world.on("slow.example", DEFERRED)
        slow.gate = asyncio.Event()
        seen = settlements(world)
        world.start()
        id = await world.send("a@example.org", "b@slow.example", "c@example.org")
        await world.until(lambda: bool(world.script("example.org").deliveries) and slow.now == 1)
        assert seen == []
        slow.gate.set()
        await world.settled()
        (settlement,) = seen
        assert [s.status.value for s in settlement.slots] == ["delivered", "deferred", "delivered"]
        assert len(settlement.attempts) == 3
        (together,) = world.script("example.org").deliveries
        assert [r.address.local for r in together.recipients] == ["a", "c"]
        world.clock.advance(301)
        await world.settled()
        assert len(world.script("example.org").deliveries) == 1 and len(slow.deliveries) == 2
        kept = await world.find(id)
        assert kept is not None and kept.slots[1].attempts == 2

    play(scenario)


def test_the_router_is_told_who_sent_the_message(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.start()
        await world.send("a@example.org", sender="ben@example.net")
        await world.send("a@example.org", "b@example.org", sender=NULL_SENDER)
        await world.settled()
        assert [str(sender) for sender in world.senders] == ["ben@example.net", "", ""]

    play(scenario)


def test_recipients_of_one_delivery_keep_their_own_outcomes(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", [DELIVERED, DEFERRED, FAILED])
        world.start()
        id = await world.send("a@example.org", "b@example.org", "c@example.org")
        await world.settled()
        kept = await world.find(id)
        assert kept is not None
        assert [s.status.value for s in kept.slots] == ["delivered", "deferred", "failed"]

    play(scenario)


def test_the_concurrency_of_a_destination_is_never_exceeded(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        script.gate = asyncio.Event()
        world.start()
        for n in range(30):
            await world.send(f"u{n}@example.org")
        await world.until(lambda: script.now == 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert script.most == 4
        script.gate.set()
        await world.settled()
        assert len(script.deliveries) == 30 and script.most == 4

    play(scenario, start=4, most=4)


def test_other_options_hold_from_then_on_for_what_is_waiting_too(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DEFERRED)
        script.gate = asyncio.Event()
        world.start()
        for n in range(10):
            await world.send(f"u{n}@example.org")
        await world.until(lambda: script.now == 4)
        world.scheduler.renew(RetryOptions(first=60.0), "mx2.test", SchedulerOptions(pace=PaceOptions(start=2, most=2)))
        script.gate.set()
        await world.settled()
        assert {slot.due for m in await world.spool.list() for slot in m.slots} == {world.clock.now() + 60}
        script.most, script.gate = 0, asyncio.Event()
        world.clock.advance(61)
        world.scheduler.ring()
        await world.until(lambda: script.now == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert script.most == 2
        script.gate.set()
        await world.settled()

    play(scenario, start=4, most=4)


def test_new_mail_goes_on_when_a_reload_allows_less_than_there_is_in_hand(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        gate = asyncio.Event()
        for name in ("a", "b", "c"):
            world.on(f"{name}.slow.example", DELIVERED).gate = gate
        for n in range(360):
            await world.send(f"anna@{'abc'[n % 3]}.slow.example")
        world.to_disk()
        world.start()
        await world.until(lambda: world.scheduler.active > 300)
        await world.until(lambda: all(world.script(f"{name}.slow.example").now == 5 for name in "abc"))
        world.scheduler.renew(RetryOptions(), HOST, SchedulerOptions(active=10))
        script = world.on("example.org", DELIVERED)
        await world.send("ben@example.org")
        await world.until(lambda: len(script.deliveries) == 1)
        gate.set()

    play(scenario)


def test_a_slow_destination_does_not_hold_up_another(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        slow = world.on("slow.example", DELIVERED)
        slow.gate = asyncio.Event()
        world.start()
        for n in range(10):
            await world.send(f"u{n}@slow.example")
        for n in range(10):
            await world.send(f"u{n}@example.org")
        await world.until(lambda: len(world.script("example.org").deliveries) == 10)
        assert slow.now == 2
        slow.gate.set()
        await world.settled()

    play(scenario, start=2, most=2)


def test_what_comes_from_the_disk_is_bounded(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        script.gate = asyncio.Event()
        for n in range(12):
            await world.send(f"u{n}@example.org")
        world.to_disk()
        world.start()
        # A quarter of the five places is kept for mail that was tried already.
        await world.until(lambda: world.scheduler.active == 4)
        for _ in range(20):
            world.scheduler.ring()
            await asyncio.sleep(0)
        assert world.scheduler.active == 4
        script.gate.set()
        await world.settled()
        assert len(script.deliveries) == 12

    play(scenario, active=5)


def test_a_slow_destination_does_not_keep_others_on_the_disk(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        slow = world.on("slow.example", DELIVERED)
        slow.gate = asyncio.Event()
        ids = [await world.send(f"u{n}@slow.example") for n in range(40)]
        await world.send("anna@example.org")
        world.to_disk()
        world.start()
        await world.until(lambda: bool(world.script("example.org").deliveries))
        await world.until(lambda: world.scheduler.active < 15)
        kept = [m for m in [await world.find(id) for id in ids] if m is not None]
        # What it has no room for waits on the disk as it came: it was not tried, and nobody says so.
        assert len(kept) == 40
        assert all(m.slots[0].status is RecipientStatus.PENDING and not m.slots[0].last for m in kept)
        slow.gate.set()
        await world.settled()
        assert len(slow.deliveries) == 40

    play(scenario, active=20, start=2, most=2)


def test_new_mail_overtakes_a_flood_of_deferred_mail(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        slow = world.on("slow.example", DEFERRED)
        for n in range(60):
            await world.send(f"u{n}@slow.example")
        world.start()
        await world.settled()
        slow.gate = asyncio.Event()
        world.clock.advance(600)
        world.scheduler.ring()
        await world.until(lambda: slow.now == 2)
        await world.send("anna@example.org")
        await world.until(lambda: bool(world.script("example.org").deliveries))
        # To the same destination, it is next but one at most.
        late = await world.send("late@slow.example")
        before = len(slow.deliveries)
        slow.gate.set()
        await world.until(lambda: late in [d.id for d in slow.deliveries])
        assert [d.id for d in slow.deliveries].index(late) - before <= 3
        await world.settled()

    play(scenario, active=20, start=2, most=2)


def test_deferred_mail_goes_on_while_new_mail_pours_in(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DEFERRED, DELIVERED)
        world.start()
        old = await world.send("old@example.org")
        await world.settled()
        script.gate = asyncio.Event()
        for n in range(50):
            await world.send(f"new{n}@example.org")
        await world.until(lambda: script.now == 1)
        world.clock.advance(600)
        world.scheduler.ring()
        await world.until(lambda: world.scheduler.active == 51)
        script.gate.set()
        await world.settled()
        assert [d.id for d in script.deliveries[1:]].index(old) <= 2

    play(scenario, start=1, most=1)


def test_mail_of_high_priority_goes_first_and_low_is_not_forgotten(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        ids = {}
        for n in range(10):
            for priority in reversed(Priority):
                ids[await world.send(f"{priority}{n}@example.org", priority=priority)] = priority
        world.to_disk()
        world.start()
        await world.settled()
        order = [ids[d.id] for d in script.deliveries]
        assert len(order) == 30
        assert [order[:14].count(p) for p in Priority] == [8, 4, 2]

    play(scenario, start=1, most=1)


def test_a_dead_destination_is_left_alone_then_probed_once_then_used_again(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("dead.example", UNREACHED)
        world.start()
        with structlog.testing.capture_logs() as events:
            for n in range(3):
                await world.send(f"u{n}@dead.example")
                await world.settled()
            assert len(script.deliveries) == 3
            id = await world.send("late@dead.example")
            await world.settled()
            assert len(script.deliveries) == 3
            late = await world.find(id)
            assert late is not None and late.slots[0].attempts == 0
            assert late.slots[0].status is RecipientStatus.DEFERRED and late.slots[0].due == world.clock.now() + 60
            (explained,) = await world.spool.explain(id)
            assert explained.attempts[0]["reply"].startswith("451 4.4.1 destination could not be reached lately")

            world.clock.advance(301)
            script.gate = asyncio.Event()
            world.scheduler.ring()
            await world.until(lambda: script.now == 1)
            for _ in range(20):
                world.scheduler.ring()
                await asyncio.sleep(0.001)
            assert script.now == 1
            script.outcomes = [DELIVERED]
            # The probe was answered from the script as it was: it fails, and the rest is not even looked at.
            script.gate.set()
            await world.until(lambda: not world.scheduler.active)
            assert len(script.deliveries) == 4
            assert [m.slots[0].attempts for m in await world.spool.list()].count(1) >= 2

            world.clock.advance(3600)
            await world.settled()
            assert len(script.deliveries) == 8
            assert await world.spool.list() == []
        told = [(e["event"], e.get("failures")) for e in events if e["event"].startswith("destination.")]
        assert told == [
            ("destination.unreachable", 3), ("destination.unreachable", 4), ("destination.reachable", None),
        ]  # fmt: skip

    play(scenario)


def test_a_backlog_does_not_leave_all_at_once_when_its_destination_is_back(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("dead.example", UNREACHED)
        world.start()
        for n in range(100):
            await world.send(f"u{n}@dead.example")
        await world.until(lambda: not world.scheduler.active)
        tried = len(script.deliveries)
        assert tried <= 10
        script.outcomes = [DELIVERED]
        script.most = 0
        most = []
        deliver = script.deliver

        async def watched(delivery: Delivery) -> list[Outcome]:
            most.append(script.now + 1)
            return await deliver(delivery)

        script.deliver = watched  # type: ignore[method-assign]
        world.clock.advance(400)
        await world.settled()
        assert len(script.deliveries) == tried + 100 and await world.spool.list() == []
        # One, then two at once, then three: after n rounds of successes n more.
        assert most[0] == 1 and all(now * (now - 1) / 2 <= number for number, now in enumerate(most))

    play(scenario)


def test_mail_for_a_dead_destination_costs_nothing_until_it_is_probed(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("dead.example", UNREACHED)
        world.start()
        for n in range(20):
            await world.send(f"u{n}@dead.example")
        await world.until(lambda: not world.scheduler.active)
        seen, tried = settlements(world), len(script.deliveries)
        for _ in range(12):
            world.clock.advance(300)
            world.scheduler.ring()
            await asyncio.sleep(0.005)
            await world.until(lambda: not world.scheduler.active)
        # An hour: probes, and nothing else.
        assert 4 <= len(script.deliveries) - tried == len(seen) <= 8

    play(scenario)


def test_mail_for_a_dead_destination_is_warned_of_and_expires_in_time(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("dead.example", UNREACHED)
        world.start()
        for n in range(30):
            await world.send(f"u{n}@dead.example")
        reports = world.script("example.net").deliveries
        await world.until(lambda: not world.scheduler.active)

        async def pass_by(seconds: float) -> None:
            world.clock.advance(seconds)
            for _ in range(40):
                world.scheduler.ring()
                await asyncio.sleep(0.002)
            await world.until(lambda: not world.scheduler.active)

        await pass_by(4 * 3600 + 60)
        await world.until(lambda: len(reports) == 30)
        await pass_by(3600)
        assert len(reports) == 30
        await pass_by(5 * DAY)
        await world.until(lambda: len(reports) == 60)
        await world.settled()
        assert await world.spool.list() == []

    play(scenario)


def test_an_operators_change_has_a_dead_destination_probed_at_once(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        script = world.on("dead.example", UNREACHED)
        world.start()
        for n in range(4):
            await world.send(f"u{n}@dead.example")
            await world.settled()
        tried = len(script.deliveries)
        script.outcomes = [DELIVERED]
        view = await open_all(SpoolOptions(str(tmp_path / "spool")))
        assert await hasten(view) == 4
        await view.close()
        await world.until(lambda: len(script.deliveries) == tried + 4)

    play(scenario)


def test_what_lies_on_the_disk_for_one_destination_goes_where_the_routes_lead_now(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("dead.example", UNREACHED)
        world.start()
        for n in range(8):
            await world.send(f"u{n}@dead.example")
        await world.until(lambda: not world.scheduler.active)
        resolve = world.resolve
        world.scheduler._router = type(
            "Moved", (), {"resolve": lambda _, a, next_hop="", sender=None: resolve(address("x@new.example"))}
        )()
        world.scheduler.renew(RetryOptions(), "mx.test", SchedulerOptions())
        world.clock.advance(300)
        await world.settled()
        assert len(world.script("new.example").deliveries) == 8

    play(scenario)


def test_what_waits_in_memory_for_one_destination_goes_where_the_routes_lead_after_a_reload(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        old, other = world.on("old.example", DELIVERED), world.on("other.example", DELIVERED)
        old.gate = other.gate = asyncio.Event()
        left, right = world.on("left.example", DELIVERED), world.on("right.example", DELIVERED)
        world.start()
        ids = [await world.send(f"a{n}@old.example", f"b{n}@old.example", f"c{n}@other.example") for n in range(3)]
        await world.until(lambda: old.now == other.now == 1 and world.scheduler.active == 3)

        def moved(address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
            domain = {"a": "left.example", "b": "right.example"}.get(address.local[0], address.domain)
            return Destination(Kind.SMTP, host=domain, port=25)

        world.resolve = moved  # type: ignore[method-assign]
        world.scheduler.renew(RetryOptions(), HOST, SchedulerOptions(pace=PaceOptions(start=1, most=1)))
        await world.until(lambda: len(left.deliveries) == len(right.deliveries) == 2)
        old.gate.set()
        await world.settled()
        # The one that had begun ended where it was.
        assert len(old.deliveries) == 1 and len(other.deliveries) == 3
        assert {delivery.recipients[0].address.local for delivery in left.deliveries} == {"a1", "a2"}
        assert [await world.find(id) for id in ids] == [None] * 3

    play(scenario, start=1, most=1)


def test_a_message_with_one_dead_destination_reaches_the_other_and_is_not_tried_again_and_again(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        for name in ("dead.example", "gone.example"):
            world.on(name, UNREACHED)
        world.start()
        for n in range(3):
            await world.send(f"u{n}@dead.example", f"u{n}@gone.example")
            await world.settled()
        seen = settlements(world)
        id = await world.send("a@dead.example", "b@gone.example", "c@example.org")
        await world.until(lambda: bool(world.script("example.org").deliveries))
        await world.until(lambda: not world.scheduler.active)
        assert [d.id for d in world.script("example.org").deliveries] == [id]
        world.clock.advance(61)
        for _ in range(40):
            world.scheduler.ring()
            await asyncio.sleep(0.001)
        await world.until(lambda: not world.scheduler.active)
        assert len(seen) <= 9

    play(scenario)


def test_a_rate_spaces_attempts_out(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.script("example.org")
        world.start()
        for n in range(3):
            await world.send(f"u{n}@example.org")
        await world.until(lambda: len(script.deliveries) == 1)
        for number in (2, 3):
            await asyncio.sleep(0.02)
            assert len(script.deliveries) == number - 1
            world.clock.advance(10)
            await world.until(lambda number=number: len(script.deliveries) == number)

    play(scenario, gap=10.0, poll=0.01)


def test_a_destinations_own_schedule_holds_for_its_recipients(tmp_path: Path) -> None:
    async def main() -> None:
        own = OwnOptions(PaceOptions(), RetryOptions(first=7.0, jitter=0.0, give_up=100.0, warn_after=0))
        spool = await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=0))
        options = SchedulerOptions(named={".example": own})
        world = World(spool, options=options, retry=RetryOptions(jitter=0.0))
        try:
            for name in ("quick.example", "example.org"):
                world.on(name, DEFERRED)
            world.start()
            id = await world.send("a@quick.example", "b@example.org")
            await world.settled()
            kept = await world.find(id)
            assert kept is not None and [slot.due - world.clock.now() for slot in kept.slots] == [7.0, 300.0]
            world.clock.advance(101)
            await world.settled()
            kept = await world.find(id)
            assert kept is not None and [s.status.value for s in kept.slots] == ["expired", "deferred"]
        finally:
            await world.stop()

    asyncio.run(main())


def test_a_reply_of_the_destination_shows_that_it_lives(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", *[UNREACHED] * 2, DEFERRED, *[UNREACHED] * 2, DELIVERED)
        world.start()
        for n in range(6):
            await world.send(f"u{n}@example.org")
            await world.settled()
        assert len(script.deliveries) == 6

    play(scenario)


def test_a_transport_that_raises_defers_and_the_lane_goes_on(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", ValueError("bug"), DELIVERED)
        world.start()
        with structlog.testing.capture_logs() as events:
            id = await world.send("anna@example.org")
            await world.settled()
            other = await world.send("ben@example.org")
            await world.settled()
        kept = await world.find(id)
        assert kept is not None and kept.slots[0].status is RecipientStatus.DEFERRED
        assert kept.slots[0].last.startswith("451 4.3.0")
        assert await world.find(other) is None
        assert [e["id"] for e in events if e["event"] == "delivery.bug"] == [id]

    play(scenario)


def test_a_transport_that_miscounts_defers_all(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", [DELIVERED])
        world.start()
        id = await world.send("a@example.org", "b@example.org")
        await world.settled()
        kept = await world.find(id)
        assert kept is not None and [s.last[:9] for s in kept.slots] == ["451 4.3.0"] * 2

    play(scenario)


@pytest.mark.parametrize("problem", [SpoolError("content is gone"), OSError("disk")])
def test_content_that_cannot_be_read_defers(play: Callable[..., None], problem: Exception) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", problem)
        world.start()
        id = await world.send("anna@example.org")
        await world.settled()
        kept = await world.find(id)
        assert kept is not None and kept.slots[0].last == "451 4.3.0 local error: content cannot be read"

    play(scenario)


@pytest.mark.parametrize(("problem", "said"), [(SpoolError("gone"), UNREADABLE), (ValueError("bug"), OUR_TROUBLE)])
def test_a_delivery_that_breaks_off_is_tried_again_for_those_who_had_no_turn(
    play: Callable[..., None], problem: Exception, said: Reply
) -> None:
    async def scenario(world: World) -> None:
        broken = BrokenOff([DELIVERED, FAILED])
        broken.__cause__ = problem
        script = world.on("example.org", broken, DELIVERED)
        world.start()
        id = await world.send("a@example.org", "b@example.org", "c@example.org", "d@example.org")
        await world.settled()
        kept = await world.find(id)
        assert kept is not None
        assert [s.status.value for s in kept.slots] == ["delivered", "failed", "deferred", "deferred"]
        assert {s.last for s in kept.slots[2:]} == {str(said)}
        world.clock.advance(86_000)
        await world.settled()
        assert [r.address.local for r in script.deliveries[-1].recipients] == ["c", "d"]

    play(scenario)


def test_a_recipient_without_a_route_is_deferred_and_the_others_are_delivered(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.start()
        id = await world.send("x@nowhere.example", "anna@example.org")
        alone = await world.send("y@nowhere.example")
        await world.settled()
        kept, lonely = await world.find(id), await world.find(alone)
        assert kept is not None and [s.status.value for s in kept.slots] == ["deferred", "delivered"]
        assert lonely is not None and lonely.slots[0].last == "451 4.3.0 local error in delivery"

    play(scenario)


def test_a_recipient_whose_domain_is_none_fails_for_good(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.start()
        id = await world.send(Recipient(Address("x", "xn--\u00e4")), owed=False)
        await world.settled()
        held = await world.find(id)
        assert held is not None and held.state is State.HOLD and held.slots[0].last.startswith("550 5.1.2")

    play(scenario)


def test_an_outcome_is_kept_while_the_spool_cannot_store_it(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        settle, failures = world.spool.settle, [SpoolError("full"), SpoolError("full")]

        async def failing(settlement: Settlement) -> None:
            if failures:
                raise failures.pop()
            await settle(settlement)

        world.spool.settle = failing  # type: ignore[method-assign]
        world.start()
        with structlog.testing.capture_logs() as events:
            id = await world.send("anna@example.org")
            await world.settled()
        assert await world.find(id) is None
        assert len(world.script("example.org").deliveries) == 1
        assert [e["id"] for e in events if e["event"] == "queue.settle_failed"] == [id, id]

    play(scenario)


def test_a_spool_that_cannot_claim_is_asked_again(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        claim, failures = world.spool.claim, [SpoolError("busy")]

        async def failing(now: float, limit: int, room: Any = None) -> Any:
            if failures:
                raise failures.pop()
            return await claim(now, limit, room)

        world.spool.claim = failing  # type: ignore[method-assign]
        world.start()
        id = await world.send("anna@example.org")
        await world.settled()
        assert await world.find(id) is None

    play(scenario)


def test_draining_settles_what_is_in_flight_and_leaves_the_rest(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        script.gate = asyncio.Event()
        seen = settlements(world)
        world.start()
        ids = [await world.send(f"u{n}@example.org") for n in range(6)]
        await world.until(lambda: script.now == 2 and world.scheduler.active == 6)
        drained = asyncio.get_running_loop().create_task(world.scheduler.drain(5))
        await asyncio.sleep(0.01)
        assert not drained.done()
        script.gate.set()
        assert await drained is True
        assert world.scheduler.active == 0
        assert {s.id for s in seen} == {d.id for d in script.deliveries} and len(seen) == 2
        left = {m.id for m in await world.spool.list()}
        assert left == set(ids) - {s.id for s in seen}

    play(scenario, start=2, most=2)

    async def after_a_restart(world: World) -> None:
        world.start()
        await world.settled()
        assert len(world.script("example.org").deliveries) == 4
        assert await world.spool.list() == []

    play(after_a_restart)


def test_draining_stores_the_half_of_a_message_that_was_attempted(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        blocked = world.on("slow.example", DELIVERED)
        blocked.gate = asyncio.Event()
        world.start()
        await world.send("first@slow.example")
        await world.until(lambda: blocked.now == 1)
        id = await world.send("a@example.org", "b@slow.example")
        await world.until(lambda: len(world.script("example.org").deliveries) == 1)
        drained = asyncio.get_running_loop().create_task(world.scheduler.drain(5))
        await asyncio.sleep(0)
        blocked.gate.set()
        assert await drained is True
        kept = await world.find(id)
        assert kept is not None and [s.status.value for s in kept.slots] == ["delivered", "pending"]

    play(scenario, start=1, most=1)


def test_draining_cuts_off_what_takes_too_long(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        script = world.on("example.org", DELIVERED)
        script.gate = asyncio.Event()
        world.start()
        id = await world.send("anna@example.org")
        await world.until(lambda: script.now == 1)
        with structlog.testing.capture_logs() as events:
            assert await world.scheduler.drain(0.05) is False
        assert events == [{"event": "queue.drain_cut", "log_level": "warning", "active": 1}]
        kept = await world.find(id)
        assert kept is not None and kept.slots[0].status is RecipientStatus.PENDING

    play(scenario)


def test_the_log_tells_each_outcome_with_its_fields(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", [DELIVERED, DEFERRED, FAILED])
        world.start()
        with structlog.testing.capture_logs() as events:
            id = await world.send("a@example.org", "b@example.org", "c@example.org")
            world.clock.advance(2)
            await world.settled()
        told = {e["event"]: e for e in events if e.get("recipient") != "ben@example.net" or e["event"] == "dsn.queued"}
        assert {"delivery.delivered", "delivery.deferred", "delivery.failed", "dsn.queued"} <= set(told)
        assert told["delivery.delivered"] == {
            "event": "delivery.delivered", "log_level": "info", "id": id, "recipient": "a@example.org",
            "destination": "smtp:example.org:25", "host": "store.example.org", "reply": "250 2.0.0 taken",
            "attempts": 1, "seconds": 0.0, "delay": 2.0,
        }  # fmt: skip
        assert told["dsn.queued"]["about"] == id and told["dsn.queued"]["kind"] == "failure"

    play(scenario)


def test_an_expired_message_is_logged_as_such(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", DEFERRED)
        world.start()
        with structlog.testing.capture_logs() as events:
            id = await world.send("a@example.org", owed=False)
            world.clock.advance(6 * DAY)
            await world.settled()
        assert [(e["id"], e["attempts"]) for e in events if e["event"] == "message.expired"] == [(id, 1)]
        assert [e["id"] for e in events if e["event"] == "message.held"] == [id]

    play(scenario)


def test_a_failure_that_cannot_be_reported_is_held(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("bug")

    monkeypatch.setattr("gateway.queue.dsn.write", broken)

    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.start()
        id = await world.send("anna@example.org", owed=True)
        await world.settled()
        held = await world.find(id)
        assert held is not None and held.state is State.HOLD and held.reason == "the DSN could not be written"

    play(scenario)


def test_a_released_message_is_tried_again(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED, DELIVERED)
        world.start()
        id = await world.send("anna@example.org", owed=False)
        await world.settled()
        assert await world.spool.release([id]) == 1
        await world.settled()
        assert await world.spool.list() == []

    play(scenario)


def test_destinations_that_hang_leave_places_for_one_that_works(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for number in range(30):
            world.on(f"hangs{number}.example", DEFERRED)
        world.on("works.example", DEFERRED)
        for number in range(30):
            for n in range(3):
                await world.send(f"u{n}@hangs{number}.example")
        for n in range(60):
            await world.send(f"u{n}@works.example")
        world.start()
        await world.settled()
        for number in range(30):
            world.script(f"hangs{number}.example").gate = asyncio.Event()
        works = world.on("works.example", DELIVERED)
        for lane in world.scheduler._lanes.values():
            lane.pace.proven = lane.destination.host == "works.example"
        world.clock.advance(600)
        # Nothing that hangs ever ends, and all of the others' mail leaves all the same.
        await world.until(lambda: len(works.deliveries) == 60)
        for number in range(30):
            gate = world.script(f"hangs{number}.example").gate
            assert gate is not None
            gate.set()
        await world.until(lambda: not world.scheduler.active)

    play(scenario, active=40, start=2, most=4)


def test_old_mail_for_a_slow_destination_is_warned_of_and_still_leaves_places(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        slow = world.on("slow.example", DEFERRED)
        world.on("example.org", DEFERRED)
        for n in range(80):
            await world.send(f"u{n}@slow.example")
        await world.send("anna@example.org")
        world.start()
        await world.settled()
        slow.gate = asyncio.Event()
        world.on("example.org", DELIVERED)
        world.clock.advance(5 * 3600)
        world.scheduler.ring()
        await world.until(lambda: len(world.script("example.org").deliveries) == 1)
        # Those whom nobody has tried meanwhile have told their senders all the same.
        await world.until(lambda: len(world.script("example.net").deliveries) > 40)
        slow.gate.set()
        await world.until(lambda: len(world.script("example.net").deliveries) == 80)
        await world.settled()
        assert len(await world.spool.list()) == 80

    play(scenario, active=40, start=1, most=2)
