"""Connecting to the first of several places that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.services.tasks import Tasks
from gateway.transport.client import Codec
from gateway.transport.connection import Connection
from gateway.transport.hosts import Unreachable, deferred
from gateway.transport.options import Timeouts
from gateway.transport.race import Race
from tests.transport.peer import run

NO: Unreachable = deferred("4.1", "no")


class Field:
    """Places that answer when the test says so, and a while that ends when the test says so."""

    def __init__(self, places: str, *, most: int = 10, room: int = 10) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.pauses = 0
        self.answers: dict[str, asyncio.Future[Connection | Unreachable]] = {}
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.room = room
        self._tasks = Tasks()
        self.race: Race[str] = Race(places, self._dial, pause=self._pause, room=self._has_room, most=most)

    def ask(self) -> asyncio.Task[tuple[str, Connection | Unreachable] | None]:
        return self._tasks.start(self.race.next(), name="next")

    async def _dial(self, place: str) -> Connection | Unreachable:
        self.asked.append(place)
        self.answers[place] = asyncio.get_running_loop().create_future()
        try:
            return await self.answers[place]
        except asyncio.CancelledError:
            self.cancelled.append(place)
            raise

    async def _pause(self) -> None:
        self.pauses += 1
        self.over = asyncio.get_running_loop().create_future()
        await self.over

    def _has_room(self) -> bool:
        return len(self.asked) < self.room

    async def turn(self, done: Callable[[], bool]) -> None:
        """Wait until the race has done this much."""
        for _ in range(100):
            if done():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"it did not come to that: asked {self.asked}, pauses {self.pauses}")


def connection() -> Connection:
    return Connection(Codec("gate.test", lmtp=False, wants_tls=False), Timeouts(), "peer.test")


def racing(test: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        await test()

    run(main())


def test_while_the_first_is_within_its_while_nobody_else_is_asked():
    async def test() -> None:
        it = Field("abc")
        asking = it.ask()
        await it.turn(lambda: it.pauses == 1)
        assert it.asked == ["a"]
        made = connection()
        it.answers["a"].set_result(made)
        assert await asking == ("a", made)
        assert it.asked == ["a"] and not it.cancelled

    racing(test)


def test_the_next_is_asked_beside_one_that_does_not_answer_and_the_loser_is_given_up():
    async def test() -> None:
        it = Field("abc")
        asking = it.ask()
        await it.turn(lambda: it.pauses == 1)
        it.over.set_result(None)
        await it.turn(lambda: it.asked == ["a", "b"])
        made = connection()
        it.answers["b"].set_result(made)
        assert await asking == ("b", made)
        assert it.cancelled == ["a"]

    racing(test)


def test_a_loser_is_asked_again_when_the_winner_turns_out_useless():
    async def test() -> None:
        it = Field("abc")
        asking = it.ask()
        await it.turn(lambda: it.pauses == 1)
        it.over.set_result(None)
        await it.turn(lambda: it.asked == ["a", "b"])
        it.answers["b"].set_result(connection())
        await asking
        again = it.ask()
        await it.turn(lambda: it.asked == ["a", "b", "a"])
        it.answers["a"].set_result(NO)
        assert await again == ("a", NO)
        await it.turn(lambda: it.asked == ["a", "b", "a", "c"])
        await it.race.close()

    racing(test)


def test_after_a_failure_the_next_is_asked_at_once():
    async def test() -> None:
        it = Field("ab")
        asking = it.ask()
        await it.turn(lambda: it.asked == ["a"])
        it.answers["a"].set_result(NO)
        assert await asking == ("a", NO)
        asking = it.ask()
        await it.turn(lambda: it.asked == ["a", "b"])
        it.answers["b"].set_result(NO)
        assert await asking == ("b", NO)
        assert await it.race.next() is None

    racing(test)


def test_without_room_nobody_is_asked_beside_another():
    async def test() -> None:
        it = Field("ab", room=1)
        asking = it.ask()
        for pauses in (1, 2, 3):
            await it.turn(lambda pauses=pauses: it.pauses == pauses)  # type: ignore[misc]
            it.over.set_result(None)
        await it.turn(lambda: it.pauses == 4)
        assert it.asked == ["a"]
        it.answers["a"].set_result(NO)
        assert await asking == ("a", NO)
        asking = it.ask()
        await it.turn(lambda: it.asked == ["a", "b"])
        asking.cancel()
        await it.race.close()

    racing(test)


def test_no_more_are_asked_than_allowed():
    async def test() -> None:
        it = Field("abcdef", most=2)
        for place in "ab":
            asking = it.ask()
            await it.turn(lambda place=place: place in it.answers)  # type: ignore[misc]
            it.answers[place].set_result(NO)
            await asking
        assert await it.race.next() is None
        assert it.asked == ["a", "b"] and it.race.left == 0

    racing(test)


def test_places_that_are_forgotten_are_not_asked():
    async def test() -> None:
        it = Field("abc")
        asking = it.ask()
        await it.turn(lambda: it.asked == ["a"])
        it.race.forget(lambda place: place == "b")
        it.answers["a"].set_result(NO)
        await asking
        await it.turn(lambda: it.asked == ["a", "c"])
        await it.race.close()
        assert it.cancelled == ["c"]

    racing(test)


def test_of_two_that_answer_at_once_one_is_taken_and_the_other_closed():
    async def test() -> None:
        it = Field("ab")
        asking = it.ask()
        await it.turn(lambda: it.pauses == 1)
        it.over.set_result(None)
        await it.turn(lambda: it.asked == ["a", "b"])
        first, second = connection(), connection()
        it.answers["a"].set_result(first)
        it.answers["b"].set_result(second)
        assert await asking == ("a", first)
        assert not second.usable and second._codec.phase.value == "closed" and first._codec.phase.value != "closed"

    racing(test)


def test_a_bug_in_a_try_is_not_swallowed():
    async def test() -> None:
        it = Field("ab")
        asking = it.ask()
        await it.turn(lambda: it.asked == ["a"])
        it.answers["a"].set_exception(ZeroDivisionError())
        (raised,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(raised, ZeroDivisionError)
        await it.race.close()

    racing(test)


def test_giving_up_gives_up_all():
    async def test() -> None:
        it = Field("ab")
        asking = it.ask()
        await it.turn(lambda: it.pauses == 1)
        it.over.set_result(None)
        await it.turn(lambda: it.asked == ["a", "b"])
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await it.race.close()
        assert sorted(it.cancelled) == ["a", "b"]

    racing(test)
