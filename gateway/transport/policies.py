"""The MTA-STS policies of domains that mail goes to: found, fetched, kept until their time is over.

*Promises*: a policy that was fetched holds for its `max_age`, whatever happens to its record or its host meanwhile. One
fetch at a time for a domain, `FETCHES` at a time for all; after one that failed, the next is some minutes later.

*Fails by*: `Sts` with a `failure`; a domain whose policy cannot be had is one without a policy, as the RFC wants it.

*RFCs*: 8461 sections 3.3 (fetching), 5.1 (caching).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.ops import log, metrics
from gateway.sdk.services import Clock, Dns, DnsStatus, State, StateError
from gateway.services.tasks import Tasks
from gateway.transport.mtasts import StsPolicy, read_policy, read_record
from gateway.transport.rule import Failure

_log = log.get()

FETCHES: Final = 20
KEPT: Final = 10_000
"""Policies in memory; all are in the state store."""
PAUSE: Final = 300.0
"""Seconds between two fetches for a domain whose first one failed (RFC 8461 section 3.3)."""
REFRESH: Final = 86_400.0
"""A policy that was fetched longer ago is fetched anew, though its id is the same: it shall not run out."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the policy's host gave: the policy's octets, or `problem` and which kind of failure it is."""

    body: bytes = b""
    problem: str = ""
    failure: Failure = Failure.STS_FETCH


class Fetch(Protocol):
    """Gets policy files."""

    async def __call__(self, domain: str) -> Fetched:
        """A domain's policy file. Does not raise."""

    async def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True, slots=True)
class Sts:
    """A domain's policy, None when it has none or it cannot be had; then `failure` and `problem` say why."""

    policy: StsPolicy | None = None
    failure: Failure | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    id: str
    fetched: float
    policy: StsPolicy
    body: bytes

    def lives(self, now: float) -> bool:
        return self.fetched <= now < self.fetched + self.policy.max_age


class Policies:
    """One per worker; what it has fetched is shared with the others by the state store. `close` it at the end.

    `make_fetch` is called when the first policy is fetched: an HTTP client takes a while to import.
    """

    def __init__(
        self, dns: Dns, state: State, clock: Clock, make_fetch: Callable[[], Fetch], ca_file: str = ""
    ) -> None:
        self.ca_file = ca_file
        """CAs that vouch for mail hosts; empty for the system's."""
        self._dns = dns
        self._state = state
        self._clock = clock
        self._make_fetch = make_fetch
        self._fetch: Fetch | None = None
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._failed: OrderedDict[str, tuple[float, Sts]] = OrderedDict()
        self._flying: dict[str, asyncio.Task[Sts]] = {}
        self._slots = asyncio.Semaphore(FETCHES)
        self._tasks = Tasks()

    async def of(self, domain: str) -> Sts:
        """The policy that holds for mail to this domain now. Does not raise."""
        answer = await self._dns.lookup(f"_mta-sts.{domain}", "TXT")
        id = read_record(answer.records) if answer.status is DnsStatus.OK else None
        now = self._clock.now()
        entry = self._kept.get(domain)
        if entry is None or not entry.lives(now) or id not in (None, entry.id):
            entry = await self._recall(domain, now)
        if id is None:
            # Whoever can make the record go away shall gain nothing by it.
            return Sts(entry.policy if entry else None)
        if entry is not None and entry.id == id:
            if now >= entry.fetched + min(REFRESH, entry.policy.max_age / 2):
                self._begin(domain, id)
            return Sts(entry.policy)
        found = await self._refresh(domain, id)
        if found.policy is None and entry is not None:
            return Sts(entry.policy, found.failure, found.problem)
        return found

    async def close(self) -> None:
        """Give up what is being fetched."""
        await self._tasks.cancel()
        if self._fetch is not None:
            await self._fetch.close()

    async def _recall(self, domain: str, now: float) -> _Entry | None:
        """What the state store keeps of the domain, if its time is not over."""
        try:
            stored = await self._state.get(_key(domain))
        except StateError as error:
            _log.warning("mta_sts.not_kept", domain=domain, reason=str(error))
            return self._kept.get(domain)
        entry = _read(stored) if stored else None
        if entry is None or not entry.lives(now):
            return None
        self._remember(domain, entry)
        return entry

    async def _refresh(self, domain: str, id: str) -> Sts:
        begun = self._begin(domain, id)
        if isinstance(begun, Sts):
            return begun
        # Who gives up waiting does not take the policy away from the others.
        await asyncio.wait([begun])
        return Sts(None, Failure.STS_FETCH, "closing") if begun.cancelled() else begun.result()

    def _begin(self, domain: str, id: str) -> asyncio.Task[Sts] | Sts:
        """The fetch for the domain; what the last one gave, while another would come too soon after it."""
        pause = self._failed.get(domain)
        if pause is not None and self._clock.monotonic() < pause[0]:
            return pause[1]
        if domain not in self._flying:
            self._flying[domain] = self._tasks.start(self._get(domain, id), name="mta-sts")
        return self._flying[domain]

    async def _get(self, domain: str, id: str) -> Sts:
        try:
            async with self._slots:
                self._fetch = self._fetch or self._make_fetch()
                fetched = await self._fetch(domain)
            found = self._judge(domain, fetched)
            metrics.STS_FETCHES.labels(found.failure.value if found.failure else "fetched").inc()
            if found.policy is not None:
                self._failed.pop(domain, None)
                await self._keep(domain, _Entry(id, self._clock.now(), found.policy, fetched.body))
            return found
        finally:
            del self._flying[domain]

    def _judge(self, domain: str, fetched: Fetched) -> Sts:
        try:
            if fetched.problem:
                raise ValueError(fetched.problem)
            policy = read_policy(fetched.body)
        except ValueError as error:
            failure = fetched.failure if fetched.problem else Failure.STS_INVALID
            _log.info("mta_sts.no_policy", domain=domain, failure=failure.value, reason=str(error))
            failed = Sts(None, failure, str(error))
            self._failed[domain] = (self._clock.monotonic() + PAUSE, failed)
            while len(self._failed) > KEPT:
                self._failed.popitem(last=False)
            return failed
        _log.info("mta_sts.policy", domain=domain, mode=policy.mode.value, max_age=policy.max_age)
        return Sts(policy)

    async def _keep(self, domain: str, entry: _Entry) -> None:
        self._remember(domain, entry)
        if not entry.policy.max_age:
            return
        try:
            await self._state.put(_key(domain), _write(entry), float(entry.policy.max_age))
        except (StateError, ValueError) as error:
            _log.warning("mta_sts.not_kept", domain=domain, reason=str(error))

    def _remember(self, domain: str, entry: _Entry) -> None:
        self._kept[domain] = entry
        self._kept.move_to_end(domain)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _key(domain: str) -> str:
    return f"mta-sts:{domain}" if len(domain) <= 255 else f"mta-sts:{hashlib.sha256(domain.encode()).hexdigest()}"


def _write(entry: _Entry) -> bytes:
    return json.dumps({"id": entry.id, "fetched": entry.fetched, "policy": entry.body.decode("utf-8")}).encode()


def _read(stored: bytes) -> _Entry | None:
    """The way back from `_write`; None for what cannot be read."""
    try:
        data = json.loads(stored)
        body = str(data["policy"]).encode()
        return _Entry(str(data["id"]), float(data["fetched"]), read_policy(body), body)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
