"""Does the mail store behind us take this recipient? By the configured list, or by asking and remembering.

A recipient that exists is believed for `refresh` and kept for `positive_ttl`: while the store is down, mail for
people whom it knew yesterday still comes in. One that does not exist is believed for `negative_ttl`, which is short,
since a new mailbox should not wait. The store's own words are for the record and never for the wire.

A store that is down is left alone after a few questions, whoever they were for; then one question at a time finds out
whether it is back. So a store that hangs costs a few recipients their patience and not every one, and the domains of
other stores nothing.

*RFCs*: 5321 section 4.5.1 (postmaster), 3463 (X.1.1, X.4.1).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram
from pydantic import Field

from gateway.sdk import (
    PROCEED,
    Address,
    Callout,
    CalloutState,
    Clock,
    Duration,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    RecipientRule,
    RecipientState,
    RecipientStatus,
    Stage,
    Store,
    Turns,
    Verdict,
    WhenDown,
    defer,
    finds,
    get_logger,
    reject,
)

_FAULTS: Final = 3
"""Questions in a row without an answer after which a store is left alone."""
_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

LOOKUPS = Counter("gatepost_recipient_lookups", "Recipients looked up.", ["source", "state"])
STORE_SECONDS = Histogram(
    "gatepost_recipient_store_seconds", "Time of a question to a store.", ["source"], buckets=_SECONDS
)
STORE_DOWN = Gauge(
    "gatepost_recipient_store_down", "1 while a store is left alone.", ["store"], multiprocess_mode="livemax"
)

_log = get_logger()


class RecipientOptions(PluginOptions):
    """Options of `recipient`."""

    positive_ttl: Duration = Field(7 * 86400.0, gt=0, description="How long a recipient that exists is remembered.")
    refresh: Duration = Field(86400.0, gt=0, description="Age from which a remembered recipient is asked for again.")
    negative_ttl: Duration = Field(3600.0, gt=0, description="How long a recipient that does not exist is remembered.")
    unavailable_ttl: Duration = Field(30.0, gt=0, description="How long a store that did not answer is left alone.")
    when_down: WhenDown = Field(
        WhenDown.DEFER,
        description="What to do with a recipient whose store does not answer, where its domain does not say.",
    )
    wait: Duration = Field(
        8.0, gt=0, description="Time for one question; keep it below the entry's timeout, or `on_error` decides."
    )
    callouts: int = Field(20, gt=0, le=1000, description="Questions at once to one store, per worker; the others wait.")


class RecipientPolicy(Policy):
    """Refuse unknown recipients in the session, so that nobody has to be told later."""

    name = "recipient"
    version = "2"
    Options = RecipientOptions
    options: RecipientOptions

    def on_rcpt(self, status: RecipientStatus) -> Verdict:
        if status.state is RecipientState.UNKNOWN:
            return reject("1.1", "recipient unknown", reason=f"not known by {status.source}")
        when_down = status.when_down or self.options.when_down
        if status.state is RecipientState.UNAVAILABLE and when_down is WhenDown.DEFER:
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


class _Health:
    """Whether a store is worth asking. A question that may be asked ends in `answered`, `failed` or `withdrawn`.

    `slots` are its own: while one store hangs, questions to others need not wait for that.
    """

    def __init__(self, name: str, clock: Clock, pause: float, callouts: int) -> None:
        self.slots = asyncio.Semaphore(callouts)
        self._name = name
        self._clock = clock
        self._pause = pause
        self._faults = 0
        self._until = 0.0
        self._probing = False

    def may_ask(self) -> bool:
        """True, but while the store is left alone False; when that is over, True for one question at a time."""
        if self._faults < _FAULTS:
            return True
        if self._probing or self._clock.monotonic() < self._until:
            return False
        self._probing = True
        return True

    def answered(self) -> None:
        if self._faults >= _FAULTS:
            STORE_DOWN.labels(self._name).set(0)
            _log.info("store.back", store=self._name)
        self._faults, self._probing = 0, False

    def failed(self, reason: str) -> None:
        self._faults += 1
        self._probing = False
        if self._faults >= _FAULTS:
            self._until = self._clock.monotonic() + self._pause
            STORE_DOWN.labels(self._name).set(1)
        if self._faults == _FAULTS:
            _log.warning("store.lost", store=self._name, reason=reason, seconds=self._pause)

    def withdrawn(self) -> None:
        """It was called off before anybody could know."""
        self._probing = False

    def close(self) -> None:
        """Nobody is going to ask any more, and so to find it back."""
        if self._faults >= _FAULTS:
            STORE_DOWN.labels(self._name).set(0)


class RecipientPlugin(Plugin):
    """Looks recipients up in the directory, and remembers what stores have said."""

    name = "recipient"
    Options = RecipientOptions
    policy = RecipientPolicy
    options: RecipientOptions

    async def start(self) -> None:
        self._turns = Turns()
        # As many as the configuration has domains, at most.
        self._health: dict[str, _Health] = {}

    async def close(self) -> None:
        for health in self._health.values():
            health.close()

    def patience(self) -> float:
        return self.options.wait

    @finds(Stage.RCPT)
    async def status(self, recipient: Recipient) -> RecipientStatus:
        """What is known of the recipient, after a question to its store where there is need for one."""
        status = await self._status(recipient.address)
        LOOKUPS.labels(status.source, status.state.value).inc()
        return status

    async def _status(self, address: Address) -> RecipientStatus:
        directory = self.services.directory
        rule, store = await directory.rule(address), directory.store(address)
        if address.local.lower() == "postmaster" and (store is not None or not address.domain):
            return RecipientStatus(RecipientState.EXISTS, "list")
        match rule:
            case RecipientRule.CALLOUT | RecipientRule.LDAP if store is not None:
                return await self._ask(address, rule, store)
            case RecipientRule.LISTED:
                return RecipientStatus(RecipientState.EXISTS, "list")
            case RecipientRule.NOT_LISTED:
                return RecipientStatus(RecipientState.UNKNOWN, "list")
            case RecipientRule.ANY:
                return RecipientStatus(RecipientState.ASSUMED, "list")
        return RecipientStatus(RecipientState.NOT_OURS, "list")

    async def _ask(self, address: Address, rule: RecipientRule, store: Store) -> RecipientStatus:
        key = _cache_key(address, store)
        if known := await self._remembered(key):
            return _status(known.callout, "cache", store)
        try:
            async with asyncio.timeout(self.options.wait) as limit, self._turns.of(key):
                # Whoever had the turn before us may have asked meanwhile.
                if known := await self._remembered(key):
                    return _status(known.callout, "cache", store)
                health = self._health_of(store)
                async with health.slots:
                    callout = await self._callout(address, rule, health, limit)
                limit.reschedule(None)
                return await self._settle(key, callout, rule, store)
        except TimeoutError:
            if not limit.expired():
                raise
        return await self._settle(key, self._no_answer(), rule, store)

    def _health_of(self, store: Store) -> _Health:
        health = self._health.get(store.name)
        if health is None:
            options = self.options
            health = _Health(store.name, self.services.clock, options.unavailable_ttl, options.callouts)
            self._health[store.name] = health
        return health

    async def _callout(
        self, address: Address, rule: RecipientRule, health: _Health, limit: asyncio.Timeout
    ) -> Callout | None:
        """Ask; None when the store is left alone just now."""
        if not health.may_ask():
            return None
        begun = self.services.clock.monotonic()
        try:
            callout = await self.services.directory.callout(address)
        except BaseException:
            # Our own time has run out, or somebody has called it off, and that says nothing of the store.
            if limit.expired():
                health.failed(self._no_answer().reply)
            else:
                health.withdrawn()
            raise
        finally:
            STORE_SECONDS.labels(rule.value).observe(self.services.clock.monotonic() - begun)
        if callout.down:
            health.failed(callout.reply)
        else:
            health.answered()
        return callout

    def _no_answer(self) -> Callout:
        return Callout(CalloutState.UNAVAILABLE, f"no answer within {self.options.wait:g} s", down=True)

    async def _settle(self, key: str, callout: Callout | None, rule: RecipientRule, store: Store) -> RecipientStatus:
        """Remember the answer. Where there is none, what was known before is believed as long as it may be."""
        if callout is None or callout.state is CalloutState.UNAVAILABLE:
            if old := await self._remembered(key, stale=True):
                await self._keep(key, old)
                return _status(old.callout, "cache", store)
        if callout is None:
            left = Callout(CalloutState.UNAVAILABLE, "the store did not answer just before", down=True)
            return _status(left, "left-alone", store)
        await self._remember(key, callout)
        return _status(callout, rule.value, store)

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


def _cache_key(address: Address, store: Store) -> str:
    """The cache keeps no addresses in the clear, and whatever stands in them, the key is short.

    What one store said is not believed of another that takes its place.
    """
    text = f"{store.name} {address.key}"
    return "recipient " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _status(callout: Callout, source: str, store: Store) -> RecipientStatus:
    state = {
        CalloutState.EXISTS: RecipientState.EXISTS,
        CalloutState.UNKNOWN: RecipientState.UNKNOWN,
        CalloutState.UNAVAILABLE: RecipientState.UNAVAILABLE,
    }[callout.state]
    return RecipientStatus(state, source, callout.reply, store.when_down)
