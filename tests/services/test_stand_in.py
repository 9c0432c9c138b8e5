"""While Redis cannot be reached: the stand-in's answers, and what becomes of them when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ops import metrics
from gateway.sdk import State, StateError
from gateway.sdk.testing import ManualClock
from gateway.services import journal as module
from gateway.services import redis_link, stand_in
from gateway.services.journal import Journal, Learned
from gateway.services.redis_options import RedisOptions, RedisServer
from gateway.services.redis_state import Kept, RedisState
from gateway.services.stand_in import StandIn
from gateway.services.state import MemoryState
from tests.support import redis_server as real
from tests.support.redis_server import Wire

_places = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[real.RedisServer]:
    server = real.RedisServer()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(redis_link, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(stand_in, "_PAUSE", 0.01)


@dataclass
class Place:
    """A replica's state over a wire that can be cut, and another replica's, whose wire is whole."""

    state: StandIn
    other: RedisState
    local: MemoryState
    wire: Wire
    clock: ManualClock

    async def cut(self) -> None:
        await self.wire.cut()
        for _ in range(redis_link.FAULTS):
            await self.state.get("noticed")
        assert not self.state._shared.up

    async def mend(self) -> None:
        """The wire is whole again, and all that was learned has been given back."""
        await self.wire.mend()
        async with asyncio.timeout(30):
            await self.state._shared.wait_up()
            while self.state._journal or not (self.state._settler is None or self.state._settler.done()):
                await asyncio.sleep(0.001)


def run(server: real.RedisServer, check: Callable[[Place], Awaitable[None]]) -> list[dict[str, Any]]:
    """Run the check; gives what was logged."""

    async def checked() -> None:
        async with opened(server) as place:
            await check(place)

    with structlog.testing.capture_logs() as logs:
        asyncio.run(checked())
    return [dict(entry) for entry in logs]


@contextlib.asynccontextmanager
async def opened(server: real.RedisServer) -> AsyncIterator[Place]:
    clock, prefix = ManualClock(), f"place{next(_places)}"
    async with Wire(server.port) as wire:
        local = MemoryState(clock)
        near = RedisOptions(RedisServer("127.0.0.1", wire.port), prefix=prefix, timeout=10.0)
        state = StandIn(RedisState(near, clock), local, clock)
        other = RedisState(server.options(prefix=prefix, timeout=10.0), clock)
        await state.start()
        await other.start()
        try:
            yield Place(state, other, local, wire, clock)
        finally:
            await other.close()
            await state.close()


def test_what_was_learned_while_it_was_down_is_everybodys_afterwards_for_the_rest_of_its_time(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.state.put("set", b"value", 60)
        assert await place.state.put_new("new", b"first", 60) is None
        assert await place.state.put_new("new", b"second", 60) == b"first"
        assert await place.state.count("tally", "a", 60) == 1
        assert await place.state.count("tally", "a", 60, by=4) == 5
        assert await place.state.tally("tally") == {"a": 5}
        place.clock.advance(20)
        assert await place.other.count("tally", "a", 60) == 1
        await place.mend()
        assert await place.other.get("set") == b"value"
        assert await place.other.get("new") == b"first"
        assert await place.other.tally("tally") == {"a": 6}
        place.clock.advance(39)
        assert await place.other.get("set") == b"value"
        place.clock.advance(1)
        assert await place.other.get("set") is None
        assert await place.other.get("new") is None

    logs = run(server, check)
    assert [entry["event"] for entry in logs] == ["state.down", "state.back", "state.settled"]
    assert (logs[-1]["stored"], logs[-1]["newer"], logs[-1]["expired"]) == (3, 0, 0)


def test_what_others_wrote_later_stays(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.state.put("k", b"old", 60)
        place.clock.advance(5)
        await place.other.put("k", b"newer", 60)
        await place.mend()
        assert await place.other.get("k") == b"newer"

    logs = run(server, check)
    assert (logs[-1]["stored"], logs[-1]["newer"]) == (0, 1)


def test_what_others_wrote_before_is_replaced_but_not_by_what_was_new_to_this_replica_only(server):
    async def check(place: Place) -> None:
        for key in ("put", "new"):
            await place.other.put(key, b"before", 600)
        place.clock.advance(5)
        await place.cut()
        await place.state.put("put", b"after", 600)
        assert await place.state.put_new("new", b"a stranger", 600) is None
        place.clock.advance(5)
        await place.mend()
        assert await place.other.get("put") == b"after"
        assert await place.other.get("new") == b"before", "a known sender is not made a stranger"

    run(server, check)


def test_a_deletion_is_told_unless_there_is_something_newer(server):
    async def check(place: Place) -> None:
        for key in ("gone", "again"):
            await place.other.put(key, b"before", 600)
        place.clock.advance(5)
        await place.cut()
        await place.state.delete("gone")
        await place.state.delete("again")
        assert await place.state.put_new("never", b"x", 60) is None
        await place.state.delete("never")
        place.clock.advance(5)
        await place.other.put("again", b"newer", 600)
        await place.other.put("never", b"somebody else's", 600)
        await place.mend()
        assert await place.other.get("gone") is None
        assert await place.other.get("again") == b"newer"
        assert await place.other.get("never") == b"somebody else's"

    run(server, check)


def test_what_is_over_meanwhile_is_not_given_back(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.state.put("k", b"v", 10)
        await place.state.count("t", "m", 10)
        place.clock.advance(10)
        await place.mend()
        assert await place.other.get("k") is None
        assert await place.other.tally("t") == {}

    logs = run(server, check)
    assert logs[-1]["expired"] == 2


def test_buckets_begin_full_here_and_are_not_given_back(server):
    async def check(place: Place) -> None:
        async def take(state: State) -> float:
            return (await state.take("b", capacity=5, per_second=0.001)).remaining

        assert await take(place.state) == 4
        await place.cut()
        assert [await take(place.state) for _ in range(2)] == [4, 3]
        assert await take(place.other) == 3
        await place.mend()
        assert await take(place.state) == 2

    run(server, check)


def test_a_key_that_was_learned_is_given_back_before_it_is_asked_for(server):
    async def check(place: Place) -> None:
        await place.cut()
        for i in range(300):
            await place.state.put(f"k{i}", b"v", 60)
        await place.state.count("t", "m", 60)
        await place.wire.mend()
        async with asyncio.timeout(30):
            await place.state._shared.wait_up()
        assert await place.state.get("k299") == b"v"
        assert await place.state.count("t", "m", 60) == 2
        assert len(place.state._journal), "and not only since everything has been"
        await place.mend()

    run(server, check)


def test_a_replica_forgets_what_it_has_given_back(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.state.put("k", b"v", 600)
        await place.state.count("t", "m", 600)
        await place.mend()
        assert await place.local.get("k") is None
        assert await place.local.tally("t") == {}

    run(server, check)


def test_a_call_that_fails_once_is_answered_here_and_given_back_at_once(server):
    async def check(place: Place) -> None:
        before = metrics.STATE_STAND_IN._value.get()
        link = place.state._shared._link
        run_script, failing = link.run, [True]

        async def once(*arguments: Any, **more: Any) -> Any:
            if failing:
                failing.clear()
                raise StateError("no answer")
            return await run_script(*arguments, **more)

        link.run = once  # type: ignore[method-assign]
        await place.state.put("k", b"v", 60)
        assert place.state._shared.up
        async with asyncio.timeout(30):
            while place.state._journal:
                await asyncio.sleep(0.001)
        assert await place.other.get("k") == b"v"
        assert metrics.STATE_STAND_IN._value.get() == before + 1

    run(server, check)


def test_a_claim_is_nobodys_while_the_shared_store_is_down(server):
    async def check(place: Place) -> None:
        await place.cut()
        with pytest.raises(StateError, match="is down"):
            await place.state.exact.put_new("daily report", b"mine", 60)
        assert await place.other.exact.put_new("daily report", b"mine", 60) is None

    run(server, check)


def test_it_starts_while_the_shared_store_is_down(server):
    async def check() -> None:
        async with Wire(server.port) as wire:
            clock, prefix = ManualClock(), f"place{next(_places)}"
            options = RedisOptions(RedisServer("127.0.0.1", wire.port), prefix=prefix, timeout=10.0)
            await wire.cut()
            place = Place(
                state := StandIn(RedisState(options, clock), local := MemoryState(clock), clock),
                RedisState(server.options(prefix=prefix, timeout=10.0), clock),
                local,
                wire,
                clock,
            )
            await state.start()
            await place.other.start()
            await state.put("k", b"v", 60)
            await place.mend()
            assert await place.other.get("k") == b"v"
            await state.close()
            await place.other.close()

    asyncio.run(check())


def test_who_stops_gives_back_what_it_can_and_says_what_it_cannot(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.state.put("k", b"v", 60)

    assert run(server, check)[-1] == {"event": "state.not_settled", "entries": 1, "log_level": "warning"}

    async def up_again(place: Place) -> None:
        await place.cut()
        await place.state.put("k", b"v", 60)
        await place.wire.mend()
        async with asyncio.timeout(30):
            await place.state._shared.wait_up()
        settler = place.state._settler
        assert settler is not None
        settler.cancel()
        await place.state.close()
        assert await place.other.get("k") == b"v"

    run(server, up_again)


def test_when_both_stores_fail_it_is_a_state_error(server):
    async def check(place: Place) -> None:
        await place.cut()
        await place.local.close()
        with pytest.raises(StateError):
            await place.state.put("k", b"v", 60)
        assert not place.state._journal

    run(server, check)


def test_the_journal_is_bounded_in_entries_and_octets_and_what_does_not_fit_is_told_once(server, monkeypatch):
    monkeypatch.setattr(module, "ENTRIES", 3)

    async def check(place: Place) -> None:
        await place.cut()
        for i in range(5):
            await place.state.put(f"k{i}", b"v", 60)
            await place.state.count("t", f"m{i}", 60)
        assert len(place.state._journal) == 3
        await place.state.put("k0", b"changed", 60)
        await place.mend()
        assert await place.other.get("k0") == b"changed"
        assert await place.other.get("k4") is None
        assert await place.local.get("k4") == b"v"

    logs = run(server, check)
    assert [entry["event"] for entry in logs].count("state.journal_full") == 1

    journal = Journal()
    monkeypatch.setattr(module, "ENTRIES", 1000)
    monkeypatch.setattr(module, "OCTETS", 100_000)
    fitted = [journal.learn(f"k{i}", Learned(Kept.SET, b"x" * 40_000, 60, 0)) for i in range(3)]
    assert fitted == [True, True, False]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["learn", "count", "uncount", "forget", "forget_tally"]),
            st.sampled_from("abc"),
            st.sampled_from("xy"),
            st.integers(-3, 3),
        ),
        max_size=30,
    )
)
def test_a_journal_counts_what_is_in_it(steps):
    journal = Journal()
    for at, (step, key, member, by) in enumerate(steps):
        match step:
            case "learn":
                journal.learn(key, Learned(Kept.SET, member.encode() * (by + 4), 60, at))
            case "count":
                journal.count(key, member, by, 5, at)
            case "uncount":
                if (tally := journal.tally(key)) and member in tally.members:
                    journal.uncount(key, member, by)
            case "forget":
                journal.forget(key)
            case _:
                journal.forget_tally(key)
    values, members = len(journal._values), sum(len(tally.members) for tally in journal._tallies.values())
    assert len(journal) == values + members
    while journal:
        key = journal.first()
        assert key in journal
        journal.forget(key)
        journal.forget_tally(key)
    assert journal._octets == 0
