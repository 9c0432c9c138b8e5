"""Attempts: a job goes to its transport, and what comes of it is logged, counted and kept for the settlement.

*Fails by*: nothing. What a transport raises is a deferral, and a bug in it must not stop the lane.
"""

from __future__ import annotations

from typing import Final, Protocol

from gateway.mail.reply import Reply, clean
from gateway.ops import log, metrics
from gateway.queue.lane import OUR_TROUBLE, UNREADABLE, Job, Lane
from gateway.queue.lifecycle import Attempted
from gateway.queue.pace import Change, read
from gateway.sdk.services import Clock
from gateway.spool.spool import AttemptRecord, SpoolError
from gateway.transport.transport import BrokenOff, Destination, Fault, Outcome, Result, Transport

_log = log.get()
_EVENTS: Final = {
    Result.DELIVERED: "delivery.delivered",
    Result.DEFERRED: "delivery.deferred",
    Result.FAILED: "delivery.failed",
}


class Transports(Protocol):
    """Has a transport for every destination."""

    def for_destination(self, destination: Destination) -> Transport:
        """Asked before each attempt, so that it knows which are in use."""


class Attempts:
    """Makes them."""

    def __init__(self, transports: Transports, clock: Clock) -> None:
        self._transports = transports
        self._clock = clock

    async def make(self, lane: Lane, job: Job) -> None:
        """Attempt a job once, and note what came of it."""
        started = self._clock.monotonic()
        ticket = lane.pace.begin(started)
        outcomes = await self._deliver(lane, job)
        ended = self._clock.monotonic()
        lane.seconds.observe(ended - started)
        for number, outcome in zip(job.slots, outcomes, strict=True):
            lane.counts[outcome.result].inc()
            self._note(lane, job, number, outcome, ended - started)
        lane.touched = ended
        change = lane.pace.end(ticket, read(outcomes), ended)
        if change is Change.DIED:
            left_alone = lane.pace.dead_until - ended
            _log.warning("destination.unreachable", destination=lane.label, failures=lane.pace.lost, seconds=left_alone)
        elif change is Change.REVIVED:
            _log.info("destination.reachable", destination=lane.label)
            # What waits for it on the disk is due by now.
            lane.more = True

    async def _deliver(self, lane: Lane, job: Job) -> list[Outcome]:
        """One outcome per recipient, whatever is raised; who had his turn before that keeps his own."""
        outcomes: list[Outcome] = []
        try:
            outcomes = await self._transports.for_destination(lane.destination).deliver(job.delivery)
            if len(outcomes) == len(job.slots):
                return outcomes
            _log.error("delivery.bug", id=job.delivery.id, destination=lane.label, outcomes=len(outcomes))
            outcomes, trouble = [], OUR_TROUBLE
        except BrokenOff as broken:
            outcomes, trouble = broken.outcomes, _trouble(lane, job, broken.__cause__)
        except Exception as error:  # noqa: BLE001 - a bug there must not stop the lane
            trouble = _trouble(lane, job, error)
        return outcomes + [Outcome(Result.DEFERRED, trouble, fault=Fault.OURS)] * (len(job.slots) - len(outcomes))

    def put_off(self, lane: Lane | None, job: Job, outcome: Outcome, due: float = 0.0) -> None:
        """Give all recipients of a job the same outcome without an attempt."""
        for number in job.slots:
            self._note(lane, job, number, outcome, 0.0, made=False, due=due)

    def _note(
        self,
        lane: Lane | None,
        job: Job,
        number: int,
        outcome: Outcome,
        seconds: float,
        *,
        made: bool = True,
        due: float = 0.0,
    ) -> None:
        """Log one recipient's outcome and keep it for the settlement."""
        work = job.work
        message = work.claimed.message
        now = self._clock.now()
        slot = message.slots[number]
        recipient = str(slot.recipient.address)
        reply = clean(str(outcome.reply))
        delay = now - message.received
        if outcome.result is Result.DELIVERED:
            metrics.DELIVERY_DELAY.observe(delay)
        _log.info(
            _EVENTS[outcome.result],
            id=message.id,
            recipient=recipient,
            destination=lane.label if lane else "",
            host=outcome.host,
            reply=reply,
            attempts=slot.attempts + made,
            seconds=round(seconds, 4),
            delay=round(delay, 3),
            **_tls_fields(outcome),
        )
        final, own = (lane.final, lane.retry) if lane else (False, None)
        work.attempted.append(Attempted(number, outcome, final, made, due, own))
        tls = (outcome.tls, outcome.tls_policy, outcome.tls_peer)
        work.records.append(AttemptRecord(now, recipient, outcome.result.value, reply, outcome.host, seconds, *tls))


def _trouble(lane: Lane, job: Job, error: BaseException | None) -> Reply:
    """What is said of recipients when this was raised."""
    if isinstance(error, (SpoolError, OSError)):
        _log.error("delivery.unreadable", id=job.delivery.id, error=str(error), fault="ours")
        return UNREADABLE
    _log.error("delivery.bug", id=job.delivery.id, destination=lane.label, fault="ours", exc_info=error)
    return OUR_TROUBLE


def _tls_fields(outcome: Outcome) -> dict[str, str]:
    """What a log event says of TLS: nothing where the transport has none."""
    if not outcome.tls_policy:
        return {}
    return {"tls": outcome.tls, "tls_policy": outcome.tls_policy, "tls_peer": outcome.tls_peer}
