"""Evacuation: the mail of a spool is handed over to other gateways, message by message, until it is empty.

Works on the spool of a stopped gateway and beside one that runs or drains; one evacuation of a spool at a time. What is
left from an earlier one is settled first, with the peer that it was offered to.

*Promises*: those of `gateway.spool.handover`. Peers are asked one after the other as they are ready; one that does not
answer as it should gets nothing more in that round. Ends within the time that it is given, and a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.app.outbound import make_resolver
from gateway.config import Config
from gateway.mail.session import new_session_id
from gateway.ops import log, metrics
from gateway.ops.handover_api import Intake
from gateway.ops.operations import WHY_NOT, Amended, Leave
from gateway.services.clock import SystemClock
from gateway.spool.handover import Handover, Pack, read_description
from gateway.spool.identity import evacuating, has_room, is_evacuated, spool_id
from gateway.spool.offers import Offer
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import Spool, SpoolError, SpoolFull, State
from gateway.spool.sqlite import open_all
from gateway.transport.peer import Peer, Said, Told

if TYPE_CHECKING:
    from gateway.transport.peers import Peers

_log = log.get()
_BATCH: Final = 16
"""Offered to one peer at once."""
_PAGE: Final = 1000
_PAUSE: Final = 1.0
_REST_MAX: Final = 30.0
_CLAIMED_SECONDS: Final = 2.0
_LAST_SECONDS: Final = 10.0
_TOLD: Final = 20
_ANY: Final = "any"
"""In place of a spool: no peer can take the message."""
_SETTLE_SECONDS: Final = 15.0


@dataclass(slots=True)
class Evacuated:
    """What came of it. `left` are the messages that are still here by state; `why` says what was in the way."""

    handed: int = 0
    octets: int = 0
    left: dict[str, int] = field(default_factory=dict)
    unsettled: list[Offer] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not sum(self.left.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "handed_over": self.handed,
            "octets": self.octets,
            "left": self.left,
            "unsettled": [{"id": one.id, "peer": one.name, "url": one.url} for one in self.unsettled],
            "why": self.why,
            "messages": self.messages,
        }


class Evacuation:
    """Of one spool. `by` says who wants it, for the record; `name` is what peers know us by."""

    def __init__(self, handover: Handover, peers: Peers, *, name: str, by: str) -> None:
        self._handover = handover
        self._peers = peers
        self._name = name
        self._by = by
        self._ours = spool_id(handover.root)
        self._done = Evacuated()
        self._amiss: dict[str, set[str]] = {}
        """By message: the spools that cannot take it."""
        self._tired: dict[str, tuple[float, float]] = {}
        """Spools that failed us, until when they get nothing more, and for how long that is."""
        self._problems: list[str] = []
        self._failed: dict[str, str] = {}
        """What went wrong with a peer last, by its URL."""
        self._deadline = 0.0

    async def run(self, seconds: float) -> Evacuated:
        """Hand over what can be within so many seconds. Raises `SpoolError`."""
        self._deadline = time.monotonic() + seconds
        _log.info("evacuation.begun", spool=self._ours, by=self._by)
        while True:
            before = self._done.handed
            await self.settle()
            peers = await self._ready()
            waiting = await self._candidates(peers)
            if not waiting or self._left_seconds() <= 0:
                break
            if peers:
                await asyncio.gather(*(self._feed(peer, waiting) for peer in peers))
            if self._done.handed == before and self._left_seconds() > 0:
                await asyncio.sleep(min(_PAUSE / 4, self._left_seconds()))
        return await self._end()

    async def settle(self, seconds: float = 60.0) -> None:
        """Have the peers say what came of offers that nobody knows the end of. Raises `SpoolError`."""
        pending = await self._handover.pending()
        if not pending:
            return
        deadline = time.monotonic() + seconds
        found, _ = await self._peers.find()
        known: dict[str, Peer | None] = {peer.spool: peer for peer in found}
        for offer in pending:
            if time.monotonic() > deadline:
                return
            if offer.spool not in known:
                there = await self._peers.look(offer.url, offer.url.partition("://")[2])
                known[offer.spool] = there if isinstance(there, Peer) and there.spool == offer.spool else None
            peer = known[offer.spool]
            if peer is not None and await self._settle(peer, offer, Said(Told.UNKNOWN)) is Told.UNKNOWN:
                # It is not asked again for each of the others.
                known[offer.spool] = None

    async def forget(self, peer: str) -> None:
        """Take back what is leaving to a peer of this name or URL, though it may have it. Raises `SpoolError`."""
        for offer in await self._handover.pending():
            if peer.rstrip("/") in (offer.name, offer.url):
                await self._handover.back(offer)
                _log.warning("handover.forgotten", id=offer.id, peer=offer.name, url=offer.url, by=self._by)

    async def _ready(self) -> list[Peer]:
        """Peers that take mail now; the others' reasons are noted."""
        found, problems = await self._peers.find()
        others = [peer for peer in found if peer.spool != self._ours]
        ready = [peer for peer in others if peer.ready and not self._rests(peer)]
        why = problems + [f"{peer.name} at {peer.url}: {peer.why}" for peer in others if not peer.ready]
        if not others and not problems:
            why.append("no other gateway was found: all that was is this spool's own")
        self._problems = why
        return ready

    async def _candidates(self, peers: Sequence[Peer]) -> deque[str]:
        """Messages that some of these peers may take; the oldest first."""
        out: deque[str] = deque()
        after = ""
        while len(out) < _PAGE and (page := await self._handover.candidates(after, _PAGE)):
            after = page[-1]
            out += [id for id in page if not peers or any(self._may_take(peer, id) for peer in peers)]
        return out

    def _may_take(self, peer: Peer, id: str) -> bool:
        amiss = self._amiss.get(id, ())
        return peer.spool not in amiss and _ANY not in amiss

    async def _feed(self, peer: Peer, waiting: deque[str]) -> None:
        """Offer a peer what waits, a few at once, until nothing does or something is wrong with it."""
        skipped: list[str] = []
        while waiting and not self._rests(peer) and self._left_seconds() > 0:
            ids = [waiting.popleft() for _ in range(min(_BATCH, len(waiting)))]
            mine = [id for id in ids if self._may_take(peer, id)]
            skipped += [id for id in ids if id not in mine]
            to = Leave(new_session_id(), peer.spool, peer.url, peer.name)
            marked = await self._handover.offer(mine, to, wait=min(_CLAIMED_SECONDS, self._left_seconds()))
            for id in [id for id, result in marked.items() if result is Amended.UNREADABLE]:
                self._cannot_go(id, _ANY, WHY_NOT[Amended.UNREADABLE])
            offers = await self._handover.pending(to.offer)
            await asyncio.gather(*(self._hand_over(peer, offer) for offer in offers))
        waiting += skipped

    async def _hand_over(self, peer: Peer, offer: Offer) -> None:
        """Send one message, and see what became of it."""
        try:
            pack = await self._handover.pack(offer, self._name)
        except SpoolError as error:
            # No peer can take what cannot be read here.
            self._cannot_go(offer.id, _ANY, str(error))
            await self._settle(peer, offer, Said(Told.NOT_SENT))
            return
        said = await self._send(peer, offer, pack)
        if said.told is Told.AMISS:
            self._cannot_go(offer.id, peer.spool, f"{peer.name}: {said.why}")
        elif said.told is not Told.TAKEN:
            self._let_rest(peer)
            self._failed[peer.url] = f"{peer.name} at {peer.url}: {said.why}"
            _log.warning("handover.failed", id=offer.id, peer=peer.name, url=peer.url, reason=said.why)
        if await self._settle(peer, offer, said) is Told.TAKEN:
            self._done.octets += pack.content.size

    async def _send(self, peer: Peer, offer: Offer, pack: Pack) -> Said:
        try:
            async with asyncio.timeout(self._left_seconds() + _LAST_SECONDS / 2):
                return await self._peers.offer(peer, offer.id, offer.offer, self._ours, pack.description, pack.content)
        except SpoolError as error:
            self._cannot_go(offer.id, _ANY, str(error))
            return Said(Told.UNKNOWN, str(error))
        except TimeoutError:
            return Said(Told.UNKNOWN, "no time is left")

    def _rests(self, peer: Peer) -> bool:
        return self._tired.get(peer.spool, (0.0, 0.0))[0] > time.monotonic()

    def _let_rest(self, peer: Peer) -> None:
        """Leave it alone for a while, so that others get what it does not take; each time for longer."""
        if not self._rests(peer):
            pause = min(_REST_MAX, max(_PAUSE, 2 * self._tired.get(peer.spool, (0.0, 0.0))[1]))
            self._tired[peer.spool] = (time.monotonic() + pause, pause)

    def _cannot_go(self, id: str, where: str, why: str) -> None:
        self._amiss.setdefault(id, set()).add(where)
        self._done.messages[id] = why

    async def _settle(self, peer: Peer, offer: Offer, said: Said) -> Told:
        """Bring our copy in line with what the peer says; it is asked where that is not known."""
        if said.told in (Told.UNKNOWN, Told.AMISS):
            said = await self._peers.withdraw(peer, offer.id, offer.offer, self._ours)
        match said.told:
            case Told.TAKEN:
                await self._handover.left(offer, self._by)
                self._done.handed += 1
                self._done.messages.pop(offer.id, None)
                _log.info("handover.done", id=offer.id, offer=offer.offer, peer=peer.name, url=peer.url)
            case Told.REFUSED | Told.NOT_SENT:
                await self._handover.back(offer)
                _log.info("handover.back", id=offer.id, offer=offer.offer, peer=peer.name)
            case _:
                _log.warning("handover.unsettled", id=offer.id, offer=offer.offer, peer=peer.name, reason=said.why)
        metrics.HANDOVER_SENT.labels(said.told.value).inc()
        return said.told

    async def _end(self) -> Evacuated:
        done = self._done
        done.why = [*self._problems, *self._failed.values()][:_TOLD]
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self.settle()
        except TimeoutError:
            done.why.append("peers did not say in time what came of some offers")
        done.left = await self._handover.counts()
        done.unsettled = await self._handover.pending()
        done.messages = dict(list(done.messages.items())[:_TOLD])
        if done.empty:
            done.why, done.messages = [], {}
        _log.info("evacuation.ended", handed=done.handed, octets=done.octets, left=done.left, why=done.why)
        return done

    def _left_seconds(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


class AlreadyEvacuated(Exception):
    """Somebody else evacuates the spool just now."""


@asynccontextmanager
async def evacuation(
    config: Config, urls: Sequence[str], token: str, by: str, on_step: OnStep = no_step, *, settling: bool = False
) -> AsyncIterator[Evacuation]:
    """An evacuation of the spool that is configured. Raises `SpoolError` and `AlreadyEvacuated`.

    One that is only `settling` blocks for nobody, and leaves the gateway open to what others hand over.
    """
    if config.spool.postgres is not None:
        raise SpoolError("spool.postgres is shared: whoever shares it delivers its mail, and nothing is handed over")
    # An HTTP client takes a while to import, and few gateways ever hand anything over.
    from gateway.transport.peers import Peers

    spool = await open_all(config.spool.options(), on_step)
    resolver = make_resolver(config, SystemClock())
    peers = Peers(urls, token, resolver)
    try:
        with evacuating(spool.handover.root, patient=not settling, closed=not settling) as alone:
            if not alone:
                raise AlreadyEvacuated
            yield Evacuation(spool.handover, peers, name=config.hostname, by=by)
    finally:
        await peers.close()
        await resolver.close()
        await spool.close()


def token_of(config: Config) -> str:
    """The token for peers."""
    return config.evacuate.secret or config.admin.secret


def intake(config: Config) -> Intake | None:
    """How the gateway takes over mail of others; None for one whose spool is shared, and so has a part in all mail."""
    if config.spool.postgres is not None:
        return None
    options = config.spool.options()
    root = Path(options.path)
    return Intake(
        config.hostname,
        lambda: spool_id(root),
        lambda: is_evacuated(root),
        lambda: has_room(options),
        read_description,
        SpoolFull,
    )


def work(config: Config, on_step: OnStep = no_step) -> int:
    """Be the process that hands over what is left when the gateway stops; gives the exit status."""
    log.setup(config.log.format, config.log.level, worker="evacuation")
    os.umask(0o077)
    try:
        return asyncio.run(_at_end(config, on_step))
    except BaseException as error:  # noqa: BLE001  (the process ends, and must say why)
        _log.error("evacuation.failed", exc_info=error)
        return 1


async def _at_end(config: Config, on_step: OnStep) -> int:
    options = config.evacuate
    try:
        async with evacuation(config, options.peers, token_of(config), "the gateway, at its end", on_step) as running:
            return 0 if (await running.run(options.time)).empty else 1
    except (SpoolError, AlreadyEvacuated) as error:
        _log.error("evacuation.failed", reason=str(error) or "another evacuation is under way")
        return 1


async def settle_again_and_again(current: Callable[[], Config], spool: Spool) -> None:
    """Settle what an evacuation that was cut off has left; of a worker that owns shards."""
    # What is shared is handed over by nobody.
    while current().spool.postgres is None:
        try:
            if (await spool.counts()).get(State.LEAVING):
                await _settle_once(current())
        except SpoolError as error:
            _log.warning("evacuation.failed", reason=str(error))
        await asyncio.sleep(_SETTLE_SECONDS)


async def _settle_once(config: Config) -> None:
    try:
        async with evacuation(config, config.evacuate.peers, token_of(config), "the gateway", settling=True) as running:
            await running.settle()
    except AlreadyEvacuated:
        # Whoever does it settles first.
        return
