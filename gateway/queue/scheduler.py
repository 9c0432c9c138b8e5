"""The scheduler: takes due messages from the spool, has them delivered, and stores what came of it.

*Promises*: a message's outcomes are stored in one settlement, together with the DSN that they owe. An outcome is
never forgotten quietly: while the spool cannot store it, storing is tried again. A slow or dead destination does not
hold up the others.

*Fails by*: delivering twice what was delivered and could not be settled before the process ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.mail.address import Address, AddressError, Sender
from gateway.mail.reply import Reply, clean
from gateway.ops import log, metrics
from gateway.queue.lane import (
    BAD_DOMAIN,
    CROWDED,
    OUR_TROUBLE,
    SUSPENDED,
    UNREACHABLE,
    UNREADABLE,
    Job,
    Lane,
    SchedulerOptions,
    Work,
)
from gateway.queue.lifecycle import Attempted
from gateway.queue.retry import RetryOptions
from gateway.queue.returnpath import AS_THEY_CAME, ReturnPaths
from gateway.queue.settler import UNSIGNED, BounceOptions, Settler, Signer
from gateway.sdk.services import Clock
from gateway.services.tasks import Tasks
from gateway.spool.spool import AttemptRecord, Claimed, Spool, SpoolError, State, Stored
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result, Transport

_log = log.get()
_BATCH: Final = 200
_GAUGE_SECONDS: Final = 10.0
_ONLY: Final = (0,)
_EVENTS: Final = {
    Result.DELIVERED: "delivery.delivered",
    Result.DEFERRED: "delivery.deferred",
    Result.FAILED: "delivery.failed",
}

__all__ = ["Router", "Scheduler", "SchedulerOptions", "Transports"]


class Router(Protocol):
    """Says where a recipient's mail goes."""

    def resolve(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
        """No I/O. `sender` is the message's own, before return paths are rewritten.

        Raises `AddressError` for a domain that can't be a mail domain.
        """


class Transports(Protocol):
    """Has a transport for every destination."""

    def for_destination(self, destination: Destination) -> Transport:
        """Asked before each attempt, so that it knows which are in use."""


class Scheduler:
    """One per worker. `run` it as a task; `ring` it when something became due; `drain` it to stop."""

    def __init__(
        self,
        spool: Spool,
        router: Router,
        transports: Transports,
        *,
        retry: RetryOptions,
        clock: Clock,
        hostname: str,
        options: SchedulerOptions | None = None,
        bounces: Callable[[], BounceOptions] = BounceOptions,
        paths: ReturnPaths = AS_THEY_CAME,
        signer: Signer = UNSIGNED,
        suspended: Callable[[str], bool] = lambda _: False,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._spool = spool
        self._router = router
        self._transports = transports
        self._clock = clock
        self._options = options or SchedulerOptions()
        self._lanes: dict[Destination, Lane] = {}
        self._tasks = Tasks()
        self._active = 0
        self._full = False
        self._rung = False
        self._bell: asyncio.Future[None] | None = None
        self._draining = asyncio.Event()
        self._paths = paths
        self._suspended = suspended
        self._settler = Settler(spool, retry, hostname, rng, self._draining, bounces, paths=paths, signer=signer)
        self._ticked = float("-inf")

    @property
    def active(self) -> int:
        """Messages that are being worked on now."""
        return self._active

    def ring(self) -> None:
        """Have a look into the spool soon. Carries no data; ringing once too often is harmless."""
        self._rung = True
        self._wake()

    def renew(self, retry: RetryOptions, hostname: str, options: SchedulerOptions) -> None:
        """Go on with other options; for attempts under way too, when they are settled."""
        self._options = options
        for lane in self._lanes.values():
            lane.options = options
        self._settler.renew(retry, hostname)
        self._wake()

    def _wake(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    # The loop that claims.

    async def run(self) -> None:
        """Claim and deliver until `drain` is called."""
        gauge = self._tasks.start(self._count(), name="queue-gauge")
        try:
            while not self._draining.is_set():
                self._rung = False
                more = await self._claim()
                self._tick()
                await self._rest(0.0 if more else await self._wait())
        finally:
            gauge.cancel()

    async def _claim(self) -> bool:
        """Begin what is due, as far as there is room; True when there may be more at once."""
        limit = min(self._options.active - self._active, _BATCH)
        self._full = limit <= 0
        if self._full:
            return False
        try:
            claimed = await self._spool.claim(self._clock.now(), limit)
        except SpoolError as error:
            _log.error("queue.claim_failed", error=str(error))
            return False
        if self._draining.is_set():
            return False
        for item in claimed:
            self._begin(item)
        return len(claimed) >= limit

    async def _wait(self) -> float:
        """How long there is nothing to claim, at most `poll` seconds."""
        if self._full:
            return self._options.poll
        now = self._clock.now()
        try:
            due = await self._spool.next_due(now)
        except SpoolError as error:
            _log.error("queue.claim_failed", error=str(error))
            due = None
        # Never at once: the spool was just asked, and what it says to be due may be another's.
        return self._options.poll if due is None else min(self._options.poll, max(due - now, 0.01))

    async def _rest(self, seconds: float) -> None:
        """Until the bell rings, `seconds` at most; lets the other tasks run in any case."""
        if self._rung or self._draining.is_set():
            seconds = 0.0
        loop = asyncio.get_running_loop()
        self._bell = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._bell
        finally:
            timer.cancel()
            self._bell = None

    def _tick(self) -> None:
        """About once per `poll`: forget idle lanes; have crowded ones give back when they fill the active set."""
        now = self._clock.monotonic()
        if now - self._ticked < self._options.poll:
            return
        self._ticked = now
        for destination, lane in list(self._lanes.items()):
            if lane.idle(now):
                del self._lanes[destination]
            else:
                for job in lane.crowd(now, full=self._full):
                    self._put_off(lane, job, Outcome(Result.DEFERRED, CROWDED, fault=Fault.PEER))
                    self._end(job.work)

    async def _count(self) -> None:
        gauges = {state: metrics.QUEUE_MESSAGES.labels(state.value) for state in State}
        while True:
            try:
                counts = await self._spool.counts()
            except SpoolError as error:
                _log.warning("queue.count_failed", error=str(error))
            else:
                for state, gauge in gauges.items():
                    gauge.set(counts.get(state, 0))
            await asyncio.sleep(_GAUGE_SECONDS)

    # One message.

    def _begin(self, claimed: Claimed) -> None:
        """Give a message's due recipients to the lanes of their destinations."""
        self._active += 1
        message = claimed.message
        work = Work(claimed, 1)
        if len(message.slots) == 1 and message.slots[0].status.open:
            self._enqueue(work, self._route(message, 0), self._sender(message, 0), _ONLY)
            return
        groups: dict[tuple[Destination | Outcome, Sender], list[int]] = {}
        for number in _due(message, self._clock.now()):
            groups.setdefault((self._route(message, number), self._sender(message, number)), []).append(number)
        work.pending = len(groups)
        for (destination, sender), slots in groups.items():
            self._enqueue(work, destination, sender, slots)
        if not groups:
            self._tasks.start(self._settle(work), name=message.id)

    def _route(self, message: Stored, number: int) -> Destination | Outcome:
        if message.returned:
            return Outcome(Result.FAILED, Reply(554, "7.1", clean(message.reason)))
        try:
            envelope = message.envelope
            return self._router.resolve(message.slots[number].recipient.address, envelope.next_hop, envelope.sender)
        except AddressError:
            return Outcome(Result.FAILED, BAD_DOMAIN)
        except Exception:  # noqa: BLE001 - a bug or a hole in the routing: no mail may be lost by it
            _log.exception("delivery.no_route", id=message.id, fault="ours")
            return Outcome(Result.DEFERRED, OUR_TROUBLE, fault=Fault.OURS)

    def _sender(self, message: Stored, number: int) -> Sender:
        """What MAIL says. Recipients who see different senders are in different transactions."""
        return self._paths.sender(message.id, message.envelope.sender, message.slots[number].recipient.address)

    def _enqueue(self, work: Work, destination: Destination | Outcome, sender: Sender, slots: Sequence[int]) -> None:
        message = work.claimed.message
        envelope = message.envelope
        recipients = tuple([message.slots[n].recipient for n in slots])
        content = work.claimed.content
        delivery = Delivery(message.id, sender, envelope.parameters, recipients, content, envelope.origin)
        job = Job(work, slots, delivery)
        if isinstance(destination, Outcome):
            self._put_off(None, job, destination)
            self._end(work)
            return
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = Lane(destination, self._options, self._clock.monotonic())
        lane.jobs.append(job)
        self._staff(lane)

    def _staff(self, lane: Lane) -> None:
        """Start a worker for what waits, unless the lane has as many as it may have."""
        if lane.jobs and lane.workers < lane.limit(self._clock.monotonic):
            lane.workers += 1
            self._tasks.start(self._serve(lane), name=lane.label)

    async def _serve(self, lane: Lane) -> None:
        """One worker of a lane: attempt by attempt until nothing waits or the lane has too many workers."""
        try:
            while lane.jobs and lane.workers <= lane.limit(self._clock.monotonic):
                job = lane.jobs.popleft()
                if self._suspended(lane.label):
                    self._put_off(lane, job, Outcome(Result.DEFERRED, SUSPENDED, fault=Fault.OURS))
                elif lane.dead(self._clock.monotonic):
                    self._put_off(lane, job, Outcome(Result.DEFERRED, UNREACHABLE, fault=Fault.CONNECT))
                else:
                    await self._attempt(lane, job)
                    self._staff(lane)
                work = job.work
                work.pending -= 1
                if not work.pending:
                    await self._settle(work)
        finally:
            lane.workers -= 1
            if not self._draining.is_set():
                self._staff(lane)

    async def _attempt(self, lane: Lane, job: Job) -> None:
        started = self._clock.monotonic()
        try:
            outcomes = await self._transports.for_destination(lane.destination).deliver(job.delivery)
        except (SpoolError, OSError) as error:
            _log.error("delivery.unreadable", id=job.delivery.id, error=str(error), fault="ours")
            outcomes = [Outcome(Result.DEFERRED, UNREADABLE, fault=Fault.OURS)] * len(job.slots)
        except Exception:  # noqa: BLE001 - a bug there must not stop the lane
            _log.exception("delivery.bug", id=job.delivery.id, destination=lane.label, fault="ours")
            outcomes = [Outcome(Result.DEFERRED, OUR_TROUBLE, fault=Fault.OURS)] * len(job.slots)
        if len(outcomes) != len(job.slots):
            _log.error("delivery.bug", id=job.delivery.id, destination=lane.label, outcomes=len(outcomes))
            outcomes = [Outcome(Result.DEFERRED, OUR_TROUBLE, fault=Fault.OURS)] * len(job.slots)
        ended = self._clock.monotonic()
        lane.seconds.observe(ended - started)
        for number, outcome in zip(job.slots, outcomes, strict=True):
            lane.counts[outcome.result].inc()
            self._note(lane, job, number, outcome, ended - started)
        if lane.learn(outcomes, ended):
            _log.warning(
                "destination.unreachable", destination=lane.label, failures=lane.failures, until=lane.dead_until - ended
            )

    def _put_off(self, lane: Lane | None, job: Job, outcome: Outcome) -> None:
        """Give all recipients of a job the same outcome without an attempt."""
        for number in job.slots:
            self._note(lane, job, number, outcome, 0.0, made=False)

    def _note(
        self, lane: Lane | None, job: Job, number: int, outcome: Outcome, seconds: float, *, made: bool = True
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
        work.attempted.append(Attempted(number, outcome, lane is not None and lane.final, made))
        tls = (outcome.tls, outcome.tls_policy, outcome.tls_peer)
        work.records.append(AttemptRecord(now, recipient, outcome.result.value, reply, outcome.host, seconds, *tls))

    def _end(self, work: Work) -> None:
        """One group of a message has come to its end outside of a lane's worker."""
        work.pending -= 1
        if not work.pending:
            self._tasks.start(self._settle(work), name=work.claimed.message.id)

    async def _settle(self, work: Work) -> None:
        try:
            if await self._settler.settle(work, self._clock.now()):
                self.ring()
        except Exception:  # noqa: BLE001 - a bug; the lane goes on, and a restart finds the message as it was
            _log.exception("message.stuck", id=work.claimed.message.id, fault="ours")
        finally:
            self._active -= 1
            if self._full and self._active <= self._options.active - max(1, self._options.active // 4):
                self.ring()

    # Stopping.

    async def drain(self, seconds: float) -> bool:
        """Stop claiming, finish and settle the attempts in flight; after `seconds`, cut them off.

        True when all were settled. What was claimed and not attempted stays in the spool as it was.
        """
        self._draining.set()
        self.ring()
        for lane in self._lanes.values():
            while lane.jobs:
                self._leave(lane.jobs.popleft().work)
        try:
            async with asyncio.timeout(seconds):
                await self._tasks.wait()
        except TimeoutError:
            _log.warning("queue.drain_cut", active=self._active)
            await self._tasks.cancel()
            return False
        return True

    def _leave(self, work: Work) -> None:
        """A group was not attempted; the message is settled only if another one was."""
        work.pending -= 1
        if work.pending:
            return
        if work.attempted:
            self._tasks.start(self._settle(work), name=work.claimed.message.id)
        else:
            self._active -= 1


def _tls_fields(outcome: Outcome) -> dict[str, str]:
    """What a log event says of TLS: nothing where the transport has none."""
    if not outcome.tls_policy:
        return {}
    return {"tls": outcome.tls, "tls_policy": outcome.tls_policy, "tls_peer": outcome.tls_peer}


def _due(message: Stored, now: float) -> list[int]:
    """Numbers of the recipients to attempt now. A claim says that something is due, so it is never none of the open."""
    open = [n for n, slot in enumerate(message.slots) if slot.status.open]
    return [n for n in open if message.slots[n].due <= now] or open
