"""Does the mail store behind us take this recipient? By the configured list, or by asking the next hop and remembering.

A recipient that exists is believed for `refresh` and kept for `positive_ttl`: while the store is down, mail for
people whom it knew yesterday still comes in. One that does not exist is believed for `negative_ttl`, which is short,
since a new mailbox should not wait. The store's own words are for the record and never for the wire.

*RFCs*: 5321 section 4.5.1 (postmaster), 3463 (X.1.1, X.4.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from gateway.sdk import (
    PROCEED,
    Address,
    Callout,
    CalloutState,
    Duration,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    RecipientRule,
    RecipientState,
    RecipientStatus,
    Stage,
    Verdict,
    defer,
    finds,
    reject,
)


class RecipientOptions(PluginOptions):
    """Options of `recipient`."""

    positive_ttl: Duration = Field(7 * 86400.0, gt=0, description="How long a recipient that exists is remembered.")
    refresh: Duration = Field(86400.0, gt=0, description="Age from which a remembered recipient is asked for again.")
    negative_ttl: Duration = Field(3600.0, gt=0, description="How long a recipient that does not exist is remembered.")
    unavailable_ttl: Duration = Field(30.0, gt=0, description="How long a store that did not answer is left alone.")
    when_down: Literal["defer", "accept"] = Field(
        "defer", description="What to do with a recipient whose store does not answer."
    )
    callouts: int = Field(20, gt=0, le=1000, description="Callouts at once, per worker; the others wait.")


class RecipientPolicy(Policy):
    """Refuse unknown recipients in the session, so that nobody has to be told later."""

    name = "recipient"
    Options = RecipientOptions
    options: RecipientOptions

    def on_rcpt(self, status: RecipientStatus) -> Verdict:
        if status.state is RecipientState.UNKNOWN:
            return reject("1.1", "recipient unknown", reason=f"not known by {status.source}")
        if status.state is RecipientState.UNAVAILABLE and self.options.when_down == "defer":
            return defer("4.1", "recipient cannot be checked now, try again later", reason="the store did not answer")
        # Where we do not take mail for the domain at all, relay control speaks, and that is not ours.
        return PROCEED


@dataclass(frozen=True, slots=True)
class _Known:
    """What a callout found, when, and from when on to ask again."""

    callout: Callout
    at: float
    again: float

    def dump(self) -> bytes:
        return json.dumps([self.callout.state.value, self.callout.reply[:500], self.at, self.again]).encode()

    @classmethod
    def load(cls, value: bytes) -> _Known | None:
        """None for what another version has left behind: then it is asked for anew."""
        try:
            state, reply, at, again = json.loads(value)
            return cls(Callout(CalloutState(state), str(reply)), float(at), float(again))
        except (ValueError, TypeError):
            return None


class RecipientPlugin(Plugin):
    """Looks recipients up in the directory, and remembers callouts."""

    name = "recipient"
    Options = RecipientOptions
    policy = RecipientPolicy
    options: RecipientOptions

    async def start(self) -> None:
        self._slots = asyncio.Semaphore(self.options.callouts)
        # Per address that is being asked for: the lock, and how many hold or want it.
        self._asking: dict[str, tuple[asyncio.Lock, int]] = {}

    @finds(Stage.RCPT)
    async def status(self, recipient: Recipient) -> RecipientStatus:
        """What is known of the recipient, after a callout where there is need for one."""
        address = recipient.address
        rule = self.services.directory.rule(address)
        if rule is RecipientRule.NOT_OURS and address.domain:
            return RecipientStatus(RecipientState.NOT_OURS, "list")
        if address.local.lower() == "postmaster":
            return RecipientStatus(RecipientState.EXISTS, "list")
        match rule:
            case RecipientRule.CALLOUT:
                return await self._ask(address)
            case RecipientRule.LISTED:
                return RecipientStatus(RecipientState.EXISTS, "list")
            case RecipientRule.NOT_LISTED:
                return RecipientStatus(RecipientState.UNKNOWN, "list")
            case RecipientRule.ANY:
                return RecipientStatus(RecipientState.ASSUMED, "list")
            case RecipientRule.NOT_OURS:
                return RecipientStatus(RecipientState.NOT_OURS, "list")

    async def _ask(self, address: Address) -> RecipientStatus:
        key = _cache_key(address)
        if known := await self._remembered(key):
            return _status(known.callout, "cache")
        async with self._alone(key):
            # Whoever had the lock before us may have asked meanwhile.
            if known := await self._remembered(key):
                return _status(known.callout, "cache")
            async with self._slots:
                callout = await self.services.directory.callout(address)
            if callout.state is CalloutState.UNAVAILABLE and (old := await self._remembered(key, stale=True)):
                await self._keep(key, old)
                return _status(old.callout, "cache")
            await self._remember(key, callout)
            return _status(callout, "callout")

    async def _remembered(self, key: str, *, stale: bool = False) -> _Known | None:
        value = await self.services.state.get(key)
        known = _Known.load(value) if value else None
        return known if known and (stale or self.services.clock.now() < known.again) else None

    async def _remember(self, key: str, callout: Callout) -> None:
        now = self.services.clock.now()
        match callout.state:
            case CalloutState.EXISTS:
                ttl, fresh = self.options.positive_ttl, self.options.refresh
            case CalloutState.UNKNOWN:
                ttl = fresh = self.options.negative_ttl
            case CalloutState.UNAVAILABLE:
                ttl = fresh = self.options.unavailable_ttl
        await self.services.state.put(key, _Known(callout, now, now + fresh).dump(), ttl)

    async def _keep(self, key: str, old: _Known) -> None:
        """Believe the old answer a little longer, but not beyond its time, and leave the store alone meanwhile."""
        now = self.services.clock.now()
        left = old.at + self.options.positive_ttl - now
        if left > 0:
            again = now + self.options.unavailable_ttl
            await self.services.state.put(key, _Known(old.callout, old.at, again).dump(), left)

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One at a time per address. When the one who asks is cancelled, the next one asks in its place."""
        lock, wanted = self._asking.get(key, (asyncio.Lock(), 0))
        self._asking[key] = (lock, wanted + 1)
        try:
            async with lock:
                yield
        finally:
            wanted = self._asking[key][1] - 1
            if wanted:
                self._asking[key] = (lock, wanted)
            else:
                del self._asking[key]


def _cache_key(address: Address) -> str:
    """The cache keeps no addresses in the clear, and whatever stands in them, the key is short."""
    return "recipient " + hashlib.sha256(address.key.encode("utf-8", "surrogatepass")).hexdigest()


def _status(callout: Callout, source: str) -> RecipientStatus:
    state = {
        CalloutState.EXISTS: RecipientState.EXISTS,
        CalloutState.UNKNOWN: RecipientState.UNKNOWN,
        CalloutState.UNAVAILABLE: RecipientState.UNAVAILABLE,
    }[callout.state]
    return RecipientStatus(state, source, callout.reply)
