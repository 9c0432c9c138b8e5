"""Small shared state for replicas: rates, verified recipients, greylists. Redis or Valkey, shared by all of them.

Each call is one script in the server, so it is atomic between all workers of all replicas. Time is the server's: what
is stored, and how fast a bucket refills, does not depend on whose clock is right.

*Promises*: keys are made of the prefix, a kind and what the caller says, and of nothing about this machine. Whatever
stands in the store is checked when it is read: it is a value within its bounds, or none, or a `StateError`.

*Fails by*: `StateError`. A call that failed may have been carried out: its answer is what was lost.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, Final

from gateway.sdk.services import Clock, State, StateError, Taken
from gateway.services import redis_scripts as scripts
from gateway.services.redis_link import Link
from gateway.services.redis_options import RedisOptions
from gateway.services.state import check_bucket, check_key, check_member, check_value

_TALLY_PATIENCE: Final = 10.0
_EXACT: Final = 1 << 53
"""Counts are floating-point numbers in Redis; up to here they are exact."""


class Kept(StrEnum):
    """How something was stored while nobody else could see it."""

    NEW = "new"
    SET = "set"
    DELETE = "delete"


class RedisState:
    """`gateway.sdk.State` in Redis. Call `start` first and `close` at the end.

    `clock` is for tests, which own the time; without it all goes by the server's.
    """

    def __init__(self, options: RedisOptions, clock: Clock | None = None) -> None:
        self._prefix = options.prefix
        self._clock = clock
        self._link = Link(options)

    async def start(self) -> None:
        """Ask the server once. When it does not answer it is down from the beginning, which is logged and no error."""
        await self._link.start()

    async def close(self) -> None:
        """End calls and close all connections."""
        await self._link.close()

    async def wait_up(self) -> None:
        """Return as soon as the server answers."""
        await self._link.wait_up()

    @property
    def up(self) -> bool:
        """Whether the server answers, as far as we know."""
        return self._link.up

    @property
    def exact(self) -> State:
        return self

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        check_key(key)
        return _value(await self._run(scripts.GET, "v", key))

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store for `ttl` seconds."""
        check_value(key, value, ttl)
        await self._run(scripts.PUT, "v", key, bytes(value), _seconds(ttl))

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Store unless there is a value; give the value that was there, None when ours was stored."""
        check_value(key, value, ttl)
        return _value(await self._run(scripts.PUT_NEW, "v", key, bytes(value), _seconds(ttl)))

    async def delete(self, key: str) -> None:
        """Forget the key."""
        check_key(key)
        await self._run(scripts.DELETE, "v", key)

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        """Take `cost` tokens from the bucket `key`, all or none, in one atomic step."""
        check_key(key)
        check_bucket(capacity, per_second, cost)
        answer = await self._run(scripts.TAKE, "b", key, repr(capacity), repr(per_second), repr(cost))
        match answer:
            case [0 | 1 as allowed, bytes(text)]:
                tokens = min(max(0.0, _number(text)), capacity)
                return Taken(bool(allowed), tokens, 0.0 if allowed else max(0.0, cost - tokens) / per_second)
        raise StateError("the state store answered with no tokens")

    async def count(self, key: str, member: str, ttl: float, by: int = 1) -> int:
        """Add `by` to the count of `member` in the tally `key`; gives the new count."""
        check_member(key, member, ttl)
        answer = await self._run(scripts.COUNT, "t", key, member.encode(), str(by), _seconds(ttl))
        return _whole(answer)

    async def tally(self, key: str, limit: int = 10_000) -> dict[str, int]:
        """The counts of a tally, at most `limit` members, the largest counts first."""
        check_key(key)
        # One more than asked for: the tally's end is among them.
        answer = await self._run(scripts.TALLY, "t", key, str(limit), patience=_TALLY_PATIENCE)
        if not isinstance(answer, list) or len(answer) % 2:
            raise StateError("the state store answered with no tally")
        counts = [(name, _whole(n)) for m, n in zip(answer[::2], answer[1::2], strict=True) if (name := _member(m))]
        return dict(sorted(counts, key=lambda item: (-item[1], item[0]))[:limit])

    async def settle(self, key: str, kept: Kept, value: bytes, ttl: float, age: float) -> bool:
        """Store what was learned `age` seconds ago, for what is left of `ttl`; says whether it was, and not something
        that had come meanwhile was left in its place."""
        check_value(key, value, ttl)
        return bool(await self._run(scripts.SETTLE, "v", key, kept.value, bytes(value), _seconds(ttl), repr(age)))

    async def _run(self, script: str, kind: str, key: str, *arguments: str | bytes, patience: float = 1.0) -> Any:
        now = repr(self._clock.now()) if self._clock is not None else ""
        return await self._link.run(script, f"{self._prefix}:{kind}:{key}", (now, *arguments), patience=patience)


def _seconds(ttl: float) -> str:
    return repr(min(float(ttl), scripts.LONGEST))


def _value(answer: Any) -> bytes | None:
    match answer:
        case [None] | []:
            return None
        case [bytes(value)] if len(value) <= scripts.VALUE_OCTETS:
            return value
    raise StateError("the state store answered with no value")


def _number(text: Any) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise StateError("the state store answered with no number")
    return number


def _whole(text: Any) -> int:
    """Within its bounds, whatever somebody has counted there: what is to be added to it must find its end."""
    return int(max(-_EXACT, min(_EXACT, _number(text))))


def _member(name: Any) -> str:
    """Empty for what nobody has counted here."""
    try:
        return name.decode() if isinstance(name, bytes) else ""
    except UnicodeDecodeError:
        return ""
