"""The settler: stores what came of a message, and writes the DSN that it owes.

*Promises*: an outcome is never forgotten quietly. While the spool cannot store it, storing is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.mail.session import new_session_id, transaction_id
from gateway.ops import log, metrics
from gateway.queue import dsn
from gateway.queue.lane import Work
from gateway.queue.lifecycle import Judgement, Notice, judge, wants_failure
from gateway.queue.retry import RetryOptions
from gateway.spool.spool import Claimed, NewDsn, RecipientStatus, Settlement, Spool, SpoolError

_log = log.get()
_PAUSE: Final = 0.1
_PAUSE_MAX: Final = 10.0
_ENDED_BADLY: Final = (RecipientStatus.FAILED, RecipientStatus.EXPIRED)


class Settler:
    """Settles one message after another. `draining` is set when waits are to be short."""

    def __init__(
        self, spool: Spool, retry: RetryOptions, hostname: str, rng: Callable[[], float], draining: asyncio.Event
    ) -> None:
        self._spool = spool
        self._rng = rng
        self._draining = draining
        self.renew(retry, hostname)

    def renew(self, retry: RetryOptions, hostname: str) -> None:
        """Settle by these options from now on."""
        self._retry = retry
        self._writer = dsn.Writer(hostname, retry.give_up)

    async def settle(self, work: Work, now: float) -> bool:
        """Store the outcomes of all recipients in one step; True when that queued a DSN."""
        message = work.claimed.message
        judgement = judge(message, work.attempted, now, self._retry, self._rng())
        owed, hold = None, judgement.hold
        if judgement.reports:
            owed, hold = await self._dsn(work.claimed, judgement, now)
        warned = judgement.warned and owed is not None
        await self._store(Settlement(message.id, judgement.slots, tuple(work.records), owed, hold, warned))
        self._tell(work, judgement, owed, hold, now)
        return owed is not None

    async def _dsn(self, claimed: Claimed, judgement: Judgement, now: float) -> tuple[NewDsn | None, str]:
        """The DSN that is owed, or a reason to hold the message when a failure cannot be reported."""
        message = claimed.message
        original = None
        try:
            original = await dsn.read_original(message, claimed.content)
        except (SpoolError, OSError) as error:
            _log.error("dsn.original_unreadable", id=message.id, error=str(error))
        try:
            id = transaction_id(new_session_id(), 0)
            return dsn.write(id, message, judgement.reports, original, now, self._writer), ""
        except Exception:  # noqa: BLE001 - a bug in writing it must not lose the message that it is about
            _log.exception("dsn.bug", id=message.id, fault="ours")
            return None, "the DSN could not be written" if judgement.notice is Notice.FAILURE else ""

    async def _store(self, settlement: Settlement) -> None:
        pause = _PAUSE
        while True:
            try:
                await self._spool.settle(settlement)
                return
            except SpoolError as error:
                _log.error("queue.settle_failed", id=settlement.id, error=str(error), again=pause)
            try:
                async with asyncio.timeout(pause):
                    await self._draining.wait()
                await asyncio.sleep(_PAUSE)
            except TimeoutError:
                pause = min(pause * 2, _PAUSE_MAX)

    def _tell(self, work: Work, judgement: Judgement, owed: NewDsn | None, hold: str, now: float) -> None:
        """Log what is durable now, as far as it is more than a delivery."""
        message = work.claimed.message
        for item in work.attempted:
            slot = judgement.slots[item.slot]
            if slot.status not in _ENDED_BADLY:
                continue
            recipient = str(slot.recipient.address)
            if slot.status is RecipientStatus.EXPIRED:
                delay = round(now - message.received, 3)
                fields = {"recipient": recipient, "reply": slot.last, "attempts": slot.attempts, "delay": delay}
                _log.info("message.expired", id=message.id, **fields)
            if not wants_failure(slot.recipient):
                _log.info("dsn.unwanted", id=message.id, recipient=recipient)
        if hold:
            _log.warning("message.held", id=message.id, reason=hold)
        if owed is not None and judgement.notice is not None:
            kind = judgement.notice.value
            metrics.DSNS.labels(kind).inc()
            to = str(owed.message.envelope.recipients[0].address)
            _log.info("dsn.queued", id=owed.message.id, about=message.id, kind=kind, recipient=to)
