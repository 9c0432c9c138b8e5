"""The settler: stores what came of a message, and writes the DSNs that it owes.

*Promises*: an outcome is never forgotten quietly. While the spool cannot store it, storing is tried again. A bounce
that cannot be delivered makes one message to the postmaster at most, and that one makes none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol

from gateway.mail.address import Address, AddressError
from gateway.mail.envelope import Ret
from gateway.mail.session import new_session_id, transaction_id
from gateway.ops import log, metrics
from gateway.queue import dsn
from gateway.queue.lane import Work
from gateway.queue.lifecycle import Judgement, Notice, Report, deadline, judge, wants_failure
from gateway.queue.retry import RetryOptions
from gateway.queue.returnpath import AS_THEY_CAME, ReturnPaths
from gateway.spool.schema import NEVER
from gateway.spool.spool import Claimed, NewDsn, RecipientStatus, Settlement, Slot, Spool, SpoolError, Stored

_log = log.get()
_PAUSE: Final = 0.1
_PAUSE_MAX: Final = 10.0
_ENDED_BADLY: Final = (RecipientStatus.FAILED, RecipientStatus.EXPIRED)


class Double(StrEnum):
    """What becomes of mail from the null sender that cannot be delivered."""

    POSTMASTER = "postmaster"
    """The postmaster gets a report with it."""
    HOLD = "hold"
    """It stays, on hold."""
    DROP = "drop"
    """It is removed."""


@dataclass(frozen=True, slots=True)
class BounceOptions:
    """See `bounces:` in gatepost.example.yaml. Without a `postmaster` nobody can be told: what he would get is held."""

    address: Address | None = None
    without_ret: Ret = Ret.HEADERS
    double: Double = Double.HOLD
    postmaster: Address | None = None


class Signer(Protocol):
    """Signs mail that we write ourselves."""

    async def sign(self, content: bytes) -> bytes:
        """The message with its signatures on top, or as it was. Does not raise, and does not take long."""


class Unsigned:
    """Where nobody signs; implements `Signer`."""

    async def sign(self, content: bytes) -> bytes:
        return content


UNSIGNED: Final = Unsigned()


class Settler:
    """Settles one message after another. `draining` is set when waits are to be short.

    `bounces` gives the options that are in force; a reload may change them.
    """

    def __init__(
        self,
        spool: Spool,
        retry: RetryOptions,
        hostname: str,
        rng: Callable[[], float],
        draining: asyncio.Event,
        bounces: Callable[[], BounceOptions],
        *,
        paths: ReturnPaths = AS_THEY_CAME,
        signer: Signer = UNSIGNED,
    ) -> None:
        self._spool = spool
        self._bounces = bounces
        self._rng = rng
        self._draining = draining
        self._paths = paths
        self._signer = signer
        self.renew(retry, hostname)

    def renew(self, retry: RetryOptions, hostname: str) -> None:
        """Settle by these options from now on."""
        self._retry = retry
        self._hostname = hostname

    async def settle(self, work: Work, now: float) -> bool:
        """Store the outcomes of all recipients in one step; True when that queued a DSN."""
        message = work.claimed.message
        judgement = judge(message, work.attempted, now, self._retry, self._rng())
        dsns: tuple[NewDsn, ...] = ()
        hold = judgement.hold
        options = self._bounces()
        double = _double(message, options) if judgement.lost else None
        own = next((item.retry for item in work.attempted if item.retry), self._retry)
        if judgement.reports:
            dsns = await self._write(work.claimed, self._by_reader(message, judgement.reports), now, options, own)
            if not dsns and judgement.notice is Notice.FAILURE:
                hold = "the DSN could not be written"
        elif double is Double.POSTMASTER and options.postmaster is not None:
            # All of it: nobody else will ever see it again.
            everything = replace(options, without_ret=Ret.FULL)
            dsns = await self._write(work.claimed, {options.postmaster: judgement.lost}, now, everything, own)
            hold = "" if dsns else hold
        elif double is Double.DROP:
            hold = ""
        warned = judgement.warned and bool(dsns)
        lane, until = self._file(work, judgement.slots, warned, now)
        records = tuple(work.records)
        await self._store(Settlement(message.id, judgement.slots, records, dsns, hold, warned, lane, until))
        self._tell(work, judgement, dsns, hold, now)
        return bool(dsns)

    async def put_back(self, work: Work, now: float) -> None:
        """Have a message wait on the disk, filed under its destination; nothing else about it changes."""
        message = work.claimed.message
        lane, until = self._file(work, message.slots, False, now)
        await self._store(Settlement(message.id, message.slots, lane=lane, deadline=until))

    def _file(self, work: Work, slots: Sequence[Slot], warned: bool, now: float) -> tuple[str, float]:
        """Under which destination a message waits, empty for none; and until when that is all there is to it."""
        if not any(slot.status.open for slot in slots):
            return "", NEVER
        lane = work.lane(slots)
        options = (lane.retry if lane else None) or self._retry
        return lane.label if lane else "", deadline(work.claimed.message, warned, now, options)

    def _by_reader(self, message: Stored, reports: Sequence[Report]) -> dict[Address, list[Report]]:
        """The reports by whom they go to: VERP makes an address for each recipient."""
        out: dict[Address, list[Report]] = {}
        for report in reports:
            reader = self._paths.reports_to(message.envelope.sender, report.recipient.address)
            if isinstance(reader, Address):
                out.setdefault(reader, []).append(report)
        return out

    async def _write(
        self,
        claimed: Claimed,
        readers: Mapping[Address, Sequence[Report]],
        now: float,
        options: BounceOptions,
        own: RetryOptions,
    ) -> tuple[NewDsn, ...]:
        """The DSNs, signed; none when they cannot be written."""
        message = claimed.message
        writer = dsn.Writer(self._hostname, own.give_up, options.address, options.postmaster)
        original = None
        try:
            original = await dsn.read_original(message, claimed.content, without_ret=options.without_ret)
        except (SpoolError, OSError) as error:
            _log.error("dsn.original_unreadable", id=message.id, error=str(error))
        try:
            made = [
                dsn.write(transaction_id(new_session_id(), 0), message, reports, original, now, writer, reader)
                for reader, reports in readers.items()
            ]
            return tuple([await self._signed(new) for new in made])
        except Exception:  # noqa: BLE001 - a bug in writing it must not lose the message that it is about
            _log.exception("dsn.bug", id=message.id, fault="ours")
            return ()

    async def _signed(self, new: NewDsn) -> NewDsn:
        content = await self._signer.sign(new.content)
        record = {**(new.message.record or {}), "size": len(content)}
        return NewDsn(replace(new.message, record=record), content)

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

    def _tell(self, work: Work, judgement: Judgement, dsns: Sequence[NewDsn], hold: str, now: float) -> None:
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
        if judgement.lost:
            outcome = "hold" if hold else "postmaster" if dsns else "drop"
            metrics.DOUBLE_BOUNCES.labels(outcome).inc()
            lost = [str(report.recipient.address) for report in judgement.lost]
            _log.warning(
                "bounce.undeliverable",
                id=message.id,
                outcome=outcome,
                recipients=lost,
                reply=judgement.lost[0].reply,
            )
        if hold:
            _log.warning("message.held", id=message.id, reason=hold)
        for new in dsns:
            kind = (new.message.record or {})["dsn"]["kind"]
            metrics.DSNS.labels(kind).inc()
            to = str(new.message.envelope.recipients[0].address)
            _log.info("dsn.queued", id=new.message.id, about=message.id, kind=kind, recipient=to)


def _double(message: Stored, options: BounceOptions) -> Double:
    """What to do with a bounce that could not be delivered. The postmaster's own mail is not reported to him."""
    if options.double is not Double.POSTMASTER:
        return options.double
    if options.postmaster is None or any(_same(s.recipient.address, options.postmaster) for s in message.slots):
        return Double.HOLD
    return Double.POSTMASTER


def _same(one: Address, other: Address) -> bool:
    try:
        return one.key == other.key
    except AddressError:
        # Something in the spool that no front door let in.
        return False
