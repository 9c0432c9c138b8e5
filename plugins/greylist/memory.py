"""What a greylist remembers, in the shared state: first attempts, who has passed, how often a client did.

*Promises*: of attempts that come at once, on whichever worker, one is the first. A clock that jumps back costs a
client one more `delay` at most. What another version, or nobody, has written counts as nothing. Keys are hashes.

*RFCs*: 6647 section 5 (window, expiry).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from gateway.sdk import GreylistState, Services
from plugins.greylist.identity import Identity
from plugins.greylist.options import GreylistOptions

_VERSION: Final = "1"
_RECORD_OCTETS: Final = 100
# The time of who is known is put off when this part of it is over, not with every message.
_REFRESH: Final = 36


@dataclass(frozen=True, slots=True)
class Record:
    """When somebody came first and last, and whether they have passed."""

    first: float
    seen: float
    passed: bool = False

    def dump(self) -> bytes:
        """As it is stored: version, state, times."""
        return f"{_VERSION} {'passed' if self.passed else 'waits'} {self.first!r} {self.seen!r}".encode()

    @classmethod
    def load(cls, value: bytes) -> Record | None:
        """None for what was not written by `dump` of this version."""
        if len(value) > _RECORD_OCTETS:
            return None
        try:
            version, state, first, seen = value.decode("ascii").split(" ")
            record = cls(float(first), float(seen), state == "passed")
        except ValueError:
            return None
        if version != _VERSION or state not in ("passed", "waits"):
            return None
        return record if math.isfinite(record.first) and math.isfinite(record.seen) else None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an attempt stands. `wait` and `delay` as in `gateway.sdk.Greylist`."""

    state: GreylistState
    wait: float = 0.0
    delay: float = 0.0


class Memory:
    """A greylist's memory. Every call may raise `StateError`."""

    def __init__(self, options: GreylistOptions, services: Services) -> None:
        self._options = options
        self._state = services.state
        self._clock = services.clock

    async def attempt(self, client: Identity, sender: str, recipient: str) -> Standing:
        """One attempt of this client, sender and recipient: remember it, or recognise it."""
        options, now = self._options, self._clock.now()
        key = _key("attempt", str(client), sender, recipient)
        there = await self._state.put_new(key, Record(now, now).dump(), options.window)
        if there is None:
            await self._bound(client, key)
            return Standing(GreylistState.NEW, wait=options.delay)
        record = Record.load(there)
        if record is None:
            return await self._again(key, now, GreylistState.NEW)
        if record.passed:
            await self._keep(key, record, now)
            return Standing(GreylistState.KNOWN)
        age = now - record.first
        if age < 0:
            # The clock went back. Counting from the old time could make it wait for hours.
            return await self._again(key, now, GreylistState.EARLY)
        if age > options.window:
            return await self._again(key, now, GreylistState.NEW)
        if age < options.delay:
            return Standing(GreylistState.EARLY, wait=options.delay - age)
        await self._state.put(key, Record(record.first, now, True).dump(), options.remember)
        return Standing(GreylistState.PASSED, delay=age)

    async def has_passed(self, client: Identity, sender: str, recipient: str) -> bool:
        """Whether this client, sender and recipient have passed; changes nothing."""
        value = await self._state.get(_key("attempt", str(client), sender, recipient))
        record = Record.load(value) if value is not None else None
        return record is not None and record.passed

    async def knows(self, client: Identity) -> bool:
        """Whether all mail of this client passes."""
        key = _key("client", str(client))
        value = await self._state.get(key)
        record = Record.load(value) if value is not None else None
        if record is None or not record.passed:
            return False
        await self._keep(key, record, self._clock.now())
        return True

    async def learn(self, client: Identity) -> bool:
        """One more message of this client was accepted; says whether all its mail passes from now on."""
        options, now = self._options, self._clock.now()
        accepted = await self._state.count(_key("accepted", str(client)), "messages", options.remember)
        if accepted < options.learn_after:
            return False
        await self._state.put(_key("client", str(client)), Record(now, now, True).dump(), options.remember)
        return True

    async def _again(self, key: str, now: float, state: GreylistState) -> Standing:
        await self._state.put(key, Record(now, now).dump(), self._options.window)
        return Standing(state, wait=self._options.delay)

    async def _keep(self, key: str, record: Record, now: float) -> None:
        if now - record.seen >= self._options.remember / _REFRESH:
            await self._state.put(key, Record(record.first, now, True).dump(), self._options.remember)

    async def _bound(self, client: Identity, key: str) -> None:
        """Forget the attempt again when this client has too many, so that nobody can fill the store."""
        pending = await self._state.count(_key("pending", str(client)), "attempts", self._options.window)
        if pending > self._options.pending:
            await self._state.delete(key)


def _key(*parts: str) -> str:
    kind, *rest = parts
    text = "\0".join(rest).encode("utf-8", "surrogatepass")
    return f"greylist {kind} {hashlib.sha256(text).hexdigest()}"
