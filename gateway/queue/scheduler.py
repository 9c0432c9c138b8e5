"""The scheduler: takes due messages from the spool, has them delivered, and stores what came of it.

Which mail leaves the disk next is decided by `gateway.spool.rounds`, whose turn it is within a destination by
`gateway.queue.waiting`, and how many attempts may run by `gateway.queue.pace`; here is what drives them.

*Promises*: a message's outcomes are stored in one settlement, together with the DSN that they owe. An outcome is
never forgotten quietly: while the spool cannot store it, storing is tried again. A slow or dead destination does not
hold up the others, nor deferred mail new mail. What is in memory is bounded, whatever waits on the disk.

*Fails by*: delivering twice what was delivered and could not be settled before the process ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.mail.address import Address, AddressError, Sender
from gateway.mail.reply import Reply, clean
from gateway.ops import log
from gateway.queue.attempts import Attempts, Transports
from gateway.queue.gauges import Gauges
from gateway.queue.lane import (
    BAD_DOMAIN,
    CROWDED,
    OUR_TROUBLE,
    SUSPENDED,
    UNREACHABLE,
    Job,
    Lane,
    Work,
)
from gateway.queue.lifecycle import due_now
from gateway.queue.options import SchedulerOptions
from gateway.queue.places import Places
from gateway.queue.retry import RetryOptions
from gateway.queue.returnpath import AS_THEY_CAME, ReturnPaths
from gateway.queue.settler import UNSIGNED, BounceOptions, Settler, Signer
from gateway.sdk.services import Clock
from gateway.services.tasks import Tasks
from gateway.spool.spool import Claimed, Spool, SpoolError, Stored
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result

_log = log.get()
_BATCH: Final = 200
_SOON: Final = 5.0
_LANES: Final = 10_000
"""Destinations remembered; the least used ones without mail go first."""
_ONLY: Final = (0,)
_Groups = dict[tuple[Destination | Outcome, Sender], list[int]]
"""Recipients by where their mail goes, and with which sender."""
__all__ = ["Router", "Scheduler", "SchedulerOptions", "Transports"]


class Router(Protocol):
    """Says where a recipient's mail goes."""

    def resolve(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
        """No I/O. `sender` is the message's own, before return paths are rewritten.

        Raises `AddressError` for a domain that can't be a mail domain.
        """


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
        self._attempts = Attempts(transports, clock)
        self._clock = clock
        self._options = options or SchedulerOptions()
        self._lanes: dict[Destination, Lane] = {}
        self._tasks = Tasks()
        self._places = Places(self._options, suspended)
        self._full = False
        self._again = True
        self._hungry: dict[str, None] = {}
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
        return self._places.all

    def ring(self) -> None:
        """Have a look into the spool soon. Carries no data; ringing once too often is harmless."""
        self._rung = True
        self._wake()

    def renew(self, retry: RetryOptions, hostname: str, options: SchedulerOptions) -> None:
        """Go on with other options; for attempts under way too, when they are settled. Routes may be others now."""
        self._options = self._places.options = options
        for lane in list(self._lanes.values()):
            self._sort_again(lane)
        for destination, lane in list(self._lanes.items()):
            if lane.waiting or lane.workers or lane.settling:
                lane.renew(options.own(destination))
            else:
                # The way there may be another one now, and what lies on the disk under its name may go elsewhere.
                del self._lanes[destination]
        self._settler.renew(retry, hostname)
        self._again = True
        self._wake()

    def _wake(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    # The loop that claims.

    async def run(self) -> None:
        """Claim and deliver until `drain` is called."""
        self._spool.attend(self.ring)
        gauge = self._tasks.start(Gauges(self._spool, self._lanes, self._clock).run(), name="queue-gauge")
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
        now = self._clock.monotonic()
        room = self._places.make_room(self._lanes.values(), tuple(self._hungry), now, _BATCH, again=self._again)
        self._full = min(room.unfiled, room.filed) <= 0
        self._again = False
        if room.filed > 0:
            self._hungry.clear()
        try:
            # What comes in now takes no place: it goes on, though a reload may allow less than there is in hand.
            claimed = await self._spool.claim(self._clock.now(), max(room.total, 0) + _BATCH, room)
        except SpoolError as error:
            _log.error("queue.claim_failed", error=str(error))
            self._again = True
            return False
        if self._draining.is_set():
            return False
        if self._spool.changed():
            self._reopen()
        stored = 0
        for item in claimed:
            stored += item.lane is not None
            self._begin(item)
        return len(claimed) - stored >= _BATCH or 0 < room.total <= stored

    def _reopen(self) -> None:
        """An operator changed something: what was given up for a while is probed at once."""
        for lane in self._lanes.values():
            if lane.pace.reopen():
                self._again = self._rung = True

    async def _wait(self) -> float:
        """How long there is nothing to claim, at most `poll` seconds."""
        if self._places.free()[0] <= 0:
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
        """About once per `poll`: forget idle lanes, and look again at those that there was no room for."""
        now = self._clock.monotonic()
        if now - self._ticked < self._options.poll:
            return
        self._ticked = now
        self._again = True
        excess = len(self._lanes) - _LANES
        for destination, lane in list(self._lanes.items()):
            if lane.idle(now) or (excess > 0 and not lane.waiting and not lane.workers):
                del self._lanes[destination]
                excess -= 1

    # One message.

    def _begin(self, claimed: Claimed) -> None:
        """Give a message's due recipients to the lanes of their destinations."""
        self._places.take(claimed)
        message = claimed.message
        work = Work(claimed, 1)
        if len(message.slots) == 1 and message.slots[0].status.open:
            self._enqueue(work, self._route(message, 0), self._sender(message, 0), _ONLY)
            return
        groups = self._sort(message, due_now(message, self._clock.now()))
        self._spread(work, groups)
        if not groups:
            self._tasks.start(self._settle(work), name=message.id)

    def _sort(self, message: Stored, slots: Sequence[int]) -> _Groups:
        groups: _Groups = {}
        for number in slots:
            groups.setdefault((self._route(message, number), self._sender(message, number)), []).append(number)
        return groups

    def _spread(self, work: Work, groups: _Groups) -> None:
        """What was one group goes on as these."""
        work.pending += len(groups) - 1
        for (destination, sender), slots in groups.items():
            self._enqueue(work, destination, sender, slots)

    def _sort_again(self, lane: Lane) -> None:
        """What waits here and was not begun goes where the routes lead now, as they say."""
        waiting = [lane.waiting.take() for _ in range(len(lane.waiting))]
        for job in waiting:
            work, message = job.work, job.work.claimed.message
            groups = self._sort(message, job.slots)
            if list(groups) == [(lane.destination, job.delivery.sender)]:
                lane.waiting.put(job, message.envelope.priority, old=not work.fresh)
                continue
            for slot in job.slots:
                del work.lanes[slot]
            self._spread(work, groups)

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
            self._attempts.put_off(None, job, destination)
            self._end(work)
            return
        lane = self._lanes.get(destination)
        if lane is None:
            options = self._options.own(destination)
            lane = self._lanes[destination] = Lane(destination, options, self._clock.monotonic())
        for slot in slots:
            work.lanes[slot] = lane
        self._admit(lane, job)

    def _admit(self, lane: Lane, job: Job) -> None:
        """Have a job wait in its lane, or on the disk where the lane is closed or has enough."""
        work = job.work
        # Filed under another one when the routes were others, it counts as not filed.
        filed = work.claimed.lane == lane.label
        if work.claimed.lane:
            lane.more = True
        closed = lane.pace.dead and not filed and bool(lane.waiting or lane.workers)
        if closed or not lane.pace.limit(self._clock.monotonic()):
            self._leave_alone(lane, job)
            self._end(work)
        elif not filed and lane.crowded(work.fresh, self._places.spare()) and self._alone(work, lane):
            lane.more = True
            self._tasks.start(self._put_back(work), name=work.claimed.message.id)
        elif filed and lane.overfull(self._places.spare()):
            # Its lane had no room for it: it comes since its sender is to hear of it.
            self._attempts.put_off(lane, job, Outcome(Result.DEFERRED, CROWDED, fault=Fault.PEER), self._clock.now())
            self._end(work)
        else:
            lane.waiting.put(job, work.claimed.message.envelope.priority, old=not work.fresh)
            self._staff(lane)

    def _alone(self, work: Work, lane: Lane) -> bool:
        """Whether a message is this lane's alone, and nothing has been done about it yet."""
        return work.pending == 1 and not work.attempted and work.lane(work.claimed.message.slots) is lane

    def _leave_alone(self, lane: Lane, job: Job) -> None:
        """The destination is dead: its mail waits, without an attempt, until that may have changed."""
        now = self._clock.now()
        # While it is probed, that will be known soon.
        due = now + max(_SOON, lane.pace.dead_until - self._clock.monotonic())
        lane.more = True
        self._attempts.put_off(lane, job, Outcome(Result.DEFERRED, UNREACHABLE, fault=Fault.CONNECT), due)

    def _staff(self, lane: Lane) -> None:
        """Start a worker for what waits, unless the lane has as many as it may have, or must wait itself."""
        now = self._clock.monotonic()
        if not lane.waiting or lane.workers >= max(1, lane.pace.limit(now)):
            return
        wait = lane.pace.wait(now)
        if not wait:
            lane.workers += 1
            self._tasks.start(self._serve(lane), name=lane.label)
        elif not lane.timed:
            lane.timed = True
            asyncio.get_running_loop().call_later(min(wait, self._options.poll), self._staff_again, lane)

    def _staff_again(self, lane: Lane) -> None:
        lane.timed = False
        if not self._draining.is_set():
            self._staff(lane)

    async def _serve(self, lane: Lane) -> None:
        """One worker of a lane: attempt by attempt until nothing waits or the lane has too many workers."""
        try:
            while lane.waiting:
                now = self._clock.monotonic()
                limit = lane.pace.limit(now)
                if limit and (lane.workers > limit or lane.pace.wait(now)):
                    break
                job = lane.waiting.take()
                if self._suspended(lane.label):
                    self._attempts.put_off(lane, job, Outcome(Result.DEFERRED, SUSPENDED, fault=Fault.OURS))
                elif limit:
                    await self._attempts.make(lane, job)
                    self._staff(lane)
                else:
                    self._leave_alone(lane, job)
                self._refill(lane)
                work = job.work
                work.pending -= 1
                if work.pending:
                    continue
                # The next attempt need not wait until this one is written down. But the more there is of that, the
                # more is delivered twice after a crash.
                if lane.settling <= lane.pace.window:
                    lane.settling += 1
                    self._tasks.start(self._settle(work, lane), name=work.claimed.message.id)
                else:
                    await self._settle(work)
        finally:
            lane.workers -= 1
            if not self._draining.is_set():
                self._staff(lane)

    def _refill(self, lane: Lane) -> None:
        """Have a look for more of a lane's mail when there is little left of it in memory."""
        if lane.more and lane.low():
            lane.more = False
            self._hungry[lane.label] = None
            self._again = True
            self.ring()

    def _end(self, work: Work) -> None:
        """One group of a message has come to its end outside of a lane's worker."""
        work.pending -= 1
        if not work.pending:
            self._tasks.start(self._settle(work), name=work.claimed.message.id)

    async def _settle(self, work: Work, lane: Lane | None = None) -> None:
        try:
            if await self._settler.settle(work, self._clock.now()):
                self.ring()
        except Exception:  # noqa: BLE001 - a bug; the lane goes on, and a restart finds the message as it was
            _log.exception("message.stuck", id=work.claimed.message.id, fault="ours")
        finally:
            if lane is not None:
                lane.settling -= 1
            self._done(work)

    async def _put_back(self, work: Work) -> None:
        try:
            await self._settler.put_back(work, self._clock.now())
        except Exception:  # noqa: BLE001 - as above
            _log.exception("message.stuck", id=work.claimed.message.id, fault="ours")
        finally:
            self._done(work)

    def _done(self, work: Work) -> None:
        """The message is worked on no more; where its place was wanted, somebody has it soon."""
        self._places.take(work.claimed, -1)
        if self._full and min(self._places.free()) >= max(1, self._options.active // 8):
            self._full = False
            self._again = True
            self.ring()

    # Stopping.

    async def drain(self, seconds: float) -> bool:
        """Stop claiming, finish and settle the attempts in flight; after `seconds`, cut them off.

        True when all were settled. What was claimed and not attempted stays in the spool as it was.
        """
        self._draining.set()
        self.ring()
        for lane in self._lanes.values():
            while lane.waiting:
                self._leave(lane.waiting.take().work)
        try:
            async with asyncio.timeout(seconds):
                await self._tasks.wait()
        except TimeoutError:
            _log.warning("queue.drain_cut", active=self._places.all)
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
            self._places.take(work.claimed, -1)
