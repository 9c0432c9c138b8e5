"""Results of TLS towards other domains, counted for the reports that those domains ask for.

Counted in memory and put into the state store every `PAUSE` seconds, by day (UTC) and domain, for all workers together.
What a killed process had not stored yet is lost.

*Promises*: what waits in memory is bounded; what is stored goes away after `KEEP` seconds.

*Fails by*: losing counts, with a log event: a report is worth less than a delivery.

*RFCs*: 8460 sections 4.2 to 4.4.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from gateway.ops import log
from gateway.sdk.services import Clock, State, StateError
from gateway.services.tasks import Tasks
from gateway.transport.rule import Applied, Failure

_log = log.get()

PAUSE: Final = 30.0
KEEP: Final = 4 * 86_400.0
WAITING: Final = 10_000
DAY: Final = 86_400
_REASON: Final = 200
_STRINGS: Final = 50
_STRING: Final = 300


@dataclass(frozen=True, slots=True)
class Session:
    """One attempt at a session, with everything that tells it from others; no `failure` for one that came about."""

    domain: str
    applied: Applied
    failure: Failure | None = None
    reason: str = ""
    host: str = ""
    address: str = ""
    local: str = ""


@dataclass(slots=True)
class Results:
    """Counts sessions; `close` stores what waits."""

    state: State
    clock: Clock
    _waiting: Counter[tuple[int, Session]] = field(default_factory=Counter)
    _tasks: Tasks = field(default_factory=Tasks)
    _flusher: asyncio.Task[None] | None = None

    def count(self, session: Session) -> None:
        """Take note of a session. No I/O."""
        key = (int(self.clock.now()) // DAY, session)
        if len(self._waiting) >= WAITING and key not in self._waiting:
            return
        self._waiting[key] += 1
        if self._flusher is None or self._flusher.done():
            self._flusher = self._tasks.start(self._later(), name="tls-results")

    async def _later(self) -> None:
        await asyncio.sleep(PAUSE)
        await self.flush()

    async def flush(self) -> None:
        """Store what waits."""
        while self._waiting:
            (day, session), times = self._waiting.popitem()
            try:
                await store(self.state, day, session, times)
            except StateError as error:
                _log.warning("tls_results.lost", sessions=times + self._waiting.total(), reason=str(error))
                self._waiting.clear()

    async def close(self) -> None:
        await self._tasks.cancel()
        await self.flush()


def domains_key(day: int) -> str:
    """The tally of domains that were written to on a day (days since 1970, UTC)."""
    return f"tls-results:{day}"


def rows_key(day: int, domain: str) -> str:
    """The tally of a domain's sessions."""
    return f"tls-results:{day}:{domain}"


def policy_key(name: str) -> str:
    """Where the text of a policy is, by its hash."""
    return f"tls-policy:{name}"


async def store(state: State, day: int, session: Session, times: int) -> None:
    """Add to a day's counts. Raises `StateError`."""
    applied = session.applied
    shown = {
        "kind": applied.kind,
        "strings": [text[:_STRING] for text in applied.strings[:_STRINGS]],
        "mx": [text[:_STRING] for text in applied.mx[:_STRINGS]],
    }
    policy = json.dumps(shown, separators=(",", ":")).encode()
    name = hashlib.sha256(policy).hexdigest()[:32]
    await state.put_new(policy_key(name), policy, KEEP)
    row = {
        "policy": name,
        "failure": session.failure.value if session.failure else "",
        "reason": session.reason.encode("ascii", "replace").decode()[:_REASON],
        "host": session.host[:_STRING],
        "address": session.address,
        "local": session.local,
    }
    await state.count(rows_key(day, session.domain), json.dumps(row, separators=(",", ":")), KEEP, times)
    await state.count(domains_key(day), session.domain, KEEP, times)
