"""Which lists are to be believed: each is asked from time to time for addresses of which the answer is known.

127.0.0.2 must be listed and 127.0.0.1 must not; where a list knows IPv6, the same goes for ::FFFF:7F00:2 and
::FFFF:7F00:1 (RFC 5782 section 5). A list that lists the second one lists everybody; one whose answers are error codes
or no codes at all does not serve us: it is bypassed at once. One that gives no answer or has lost its test entry is
bypassed when that happens twice in a row. A bypassed list is probed ten times as often, and one good probe is enough.

*Promises*: what one worker found out holds for all that share the state; only one of them asks. Nothing about a list is
kept under its name: a paid list's key is in it.

*Fails by*: believing. When the state store does not answer, each worker probes for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from prometheus_client import Gauge

from gateway.sdk import Answer, DnsStatus, Services, StateError, get_logger
from plugins.dnsbl.codes import NO_LISTING, answered, can_be_listing, is_error
from plugins.dnsbl.zone import FAMILIES, IPAddress, Zone, query_key

_log = get_logger()

BYPASSED = Gauge(
    "gatepost_dnsbl_bypassed",
    "1 while a DNS list is bypassed because its probe failed.",
    ["list", "family"],
    multiprocess_mode="livemax",
)

_AGAIN: Final = 10
"""So many times as often a list is probed that failed."""
_IN_A_ROW: Final = 2
_LONGEST_TURN: Final = 5.0
_LISTED: Final[dict[int, IPAddress]] = {
    4: ipaddress.IPv4Address("127.0.0.2"),
    6: ipaddress.IPv6Address("::ffff:7f00:2"),
}
_CLEAN: Final[dict[int, IPAddress]] = {
    4: ipaddress.IPv4Address("127.0.0.1"),
    6: ipaddress.IPv6Address("::ffff:7f00:1"),
}


# How many pipelines of this process bypass a list; one that was reloaded away must not hide what the next one does.
_bypassing: dict[tuple[str, str], int] = {}


def _count(labels: tuple[str, str], by: int) -> None:
    _bypassing[labels] = _bypassing.get(labels, 0) + by
    BYPASSED.labels(*labels).set(_bypassing[labels] > 0)


@dataclass(frozen=True, slots=True)
class Health:
    """What the last probe found: `problem` is empty when it passed. The next one is due at `again`, epoch seconds."""

    problem: str
    failures: int
    bypassed: bool
    again: float

    def dump(self) -> bytes:
        return json.dumps([self.problem, self.failures, self.bypassed, self.again]).encode()

    @classmethod
    def load(cls, value: bytes) -> Health | None:
        """None for what another version has left behind: then it is probed anew."""
        try:
            problem, failures, bypassed, again = json.loads(value)
            health = cls(str(problem)[:200], int(failures), bool(bypassed), float(again))
        except (ValueError, TypeError, OverflowError):
            return None
        return health if math.isfinite(health.again) else None


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a list; `certain` when it is no passing trouble."""

    problem: str
    certain: bool


def examine(zone: Zone, listed: Answer, clean: Answer) -> Flaw | None:
    """What a list's answers for the address that must be listed and the one that must not say about the list."""
    for answer in (clean, listed):
        codes = answered(answer.records)
        if codes and zone.usable(answer) is None:
            strange = codes[0]
            if is_error(strange) or can_be_listing(strange):
                return Flaw(f"it answers with the error code {strange}: it does not serve us", True)
            return Flaw("it answers outside 127.0.0.0/8: it is no list any more", True)
    if any(code != NO_LISTING for code in zone.usable(clean) or ()):
        return Flaw("it lists an address that no list may: it lists everybody", True)
    for answer in (listed, clean):
        if answer.status is DnsStatus.FAILED:
            return Flaw(f"it does not answer ({answer.problem or 'no reason given'})", False)
    if not zone.usable(listed):
        return Flaw("it does not list its test entry", False)
    return None


class _Subject:
    """One list and one IP version under probation."""

    __slots__ = ("health", "key", "version", "zone")

    def __init__(self, zone: Zone, version: int) -> None:
        self.zone = zone
        self.version = version
        digest = hashlib.sha256(f"{version} {zone.zone}".encode()).hexdigest()[:40]
        self.key = f"dnsbl:probe:{digest}"
        self.health: Health | None = None

    @property
    def labels(self) -> tuple[str, str]:
        return self.zone.shown, FAMILIES[self.version]

    @property
    def bypassed(self) -> bool:
        return self.health is not None and self.health.bypassed


class Prober:
    """Probes lists every `interval` seconds; `wait` is the time for one answer."""

    def __init__(self, zones: Iterable[Zone], services: Services, interval: float, wait: float) -> None:
        self._services = services
        self._interval = interval
        self._wait = wait
        self._subjects = {(s.zone, s.version): s for s in _subjects(zones)} if interval else {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what is known already, and go on in the background."""
        for subject in self._subjects.values():
            _count(subject.labels, 0)
            with contextlib.suppress(StateError):
                self._adopt(subject, await self._shared(subject), found=True)
        if self._subjects:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="dnsbl probes")

    async def close(self) -> None:
        """Stop probing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for subject in self._subjects.values():
            if subject.bypassed:
                _count(subject.labels, -1)
            subject.health = None

    def bypasses(self, zone: Zone, version: int) -> bool:
        """Whether the list is not to be asked for clients of this IP version."""
        subject = self._subjects.get((zone, version))
        return subject is not None and subject.bypassed

    async def _run(self) -> None:
        pause = min(_LONGEST_TURN, self._interval / _AGAIN / 2)
        while True:
            # First the pause: a start is busy enough, and what the last run found out is known already.
            await asyncio.sleep(pause)
            await self.turn()

    async def turn(self) -> None:
        """Probe the lists whose time has come; what fails unexpectedly is logged and tried again next time."""
        now = self._services.clock.now()
        due = [s for s in self._subjects.values() if s.health is None or s.health.again <= now]
        results = await asyncio.gather(*(self._visit(subject) for subject in due), return_exceptions=True)
        for subject, result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                # Only its kind: the text of a strange error may hold the zone, and so the key.
                _log.error("dnsbl.probe_failed", list=subject.zone.shown, error=type(result).__name__)

    async def _visit(self, subject: _Subject) -> None:
        """Take what another worker found, or find it out; nothing when another one is at it."""
        state, now = self._services.state, self._services.clock.now()
        try:
            shared = await self._shared(subject)
            if shared and shared.again > now:
                self._adopt(subject, shared, found=False)
                return
            lock = subject.key + ":turn"
            if await state.put_new(lock, b"1", 2 * self._wait + 1) is not None:
                return
            # Somebody may have been at it between our look and our turn.
            shared = await self._shared(subject)
            if shared and shared.again > now:
                health, found = shared, False
            else:
                health, found = await self._probe(subject, shared or subject.health), True
            await state.put(subject.key, health.dump(), 2 * self._interval + 60)
            await state.delete(lock)
        except StateError:
            health, found = await self._probe(subject, subject.health), True
        self._adopt(subject, health, found=found)

    async def _shared(self, subject: _Subject) -> Health | None:
        value = await self._services.state.get(subject.key)
        return Health.load(value) if value else None

    async def _probe(self, subject: _Subject, before: Health | None) -> Health:
        listed, clean = await asyncio.gather(
            self._ask(subject, _LISTED[subject.version]), self._ask(subject, _CLEAN[subject.version])
        )
        now = self._services.clock.now()
        flaw = examine(subject.zone, listed, clean)
        if flaw is None:
            return Health("", 0, False, now + self._interval)
        failures = min(before.failures if before else 0, 1000) + 1
        bypassed = flaw.certain or failures >= _IN_A_ROW
        return Health(flaw.problem, failures, bypassed, now + self._interval / _AGAIN)

    async def _ask(self, subject: _Subject, address: IPAddress) -> Answer:
        try:
            async with asyncio.timeout(self._wait):
                return await self._services.dns.lookup(f"{query_key(address)}.{subject.zone.zone}", "A")
        except TimeoutError:
            return Answer(DnsStatus.FAILED, problem="timeout")

    def _adopt(self, subject: _Subject, health: Health | None, *, found: bool) -> None:
        """Act on it from now on. `found` says that it is news and nobody has logged it."""
        if health is None:
            return
        was = subject.bypassed
        # A machine whose clock is ahead must not keep the others from probing.
        latest = self._services.clock.now() + self._interval
        subject.health = replace(health, again=min(health.again, latest))
        _count(subject.labels, health.bypassed - was)
        name, family = subject.labels
        if found and health.bypassed and not was:
            _log.warning("dnsbl.bypassed", list=name, family=family, reason=health.problem)
        elif found and was and not health.bypassed:
            _log.info("dnsbl.restored", list=name, family=family)


def _subjects(zones: Iterable[Zone]) -> Iterator[_Subject]:
    for zone in zones:
        if zone.options.probe:
            yield _Subject(zone, 4)
            # That a list may be asked for IPv6 clients does not mean that it has the test entries.
            if zone.options.ipv6:
                yield _Subject(zone, 6)
