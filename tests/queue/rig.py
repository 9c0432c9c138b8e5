"""What the tests of the queue share: a clock that is set by hand, builders, and scripted transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from gateway.mail.address import NULL_SENDER, Address, Sender, parse_mailbox
from gateway.mail.envelope import Envelope, MailParameters, Notify, Origin, Priority, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import new_session_id, transaction_id
from gateway.queue.retry import RetryOptions
from gateway.queue.scheduler import Scheduler, SchedulerOptions
from gateway.spool.spool import NewMessage, Slot, State, Stored
from gateway.spool.sqlite import SqliteSpool
from gateway.transport.transport import Delivery, Destination, Fault, Kind, Outcome, Result

START = 1_700_000_000.0
HOST = "mx.example.org"
CONTENT = (
    b"From: ben@example.net\r\nTo: anna@example.org\r\nSubject: hello\r\nMessage-ID: <1@example.net>\r\n\r\nBody\r\n"
)

DELIVERED = Outcome(Result.DELIVERED, Reply(250, "0.0", "taken"), "store.example.org", replied=True)
DEFERRED = Outcome(Result.DEFERRED, Reply(450, "2.0", "busy"), "store.example.org", replied=True, fault=Fault.PEER)
FAILED = Outcome(Result.FAILED, Reply(550, "1.1", "no such user"), "store.example.org", replied=True, fault=Fault.PEER)
UNREACHED = Outcome(Result.DEFERRED, Reply(451, "4.1", "connection refused"), fault=Fault.CONNECT)


class ManualClock:
    """Time stands still until it is moved."""

    def __init__(self) -> None:
        self.time = START
        self._began = START

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - self._began

    def advance(self, seconds: float) -> None:
        self.time += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock on, or back."""
        self.time += seconds
        self._began += seconds


def address(text: str) -> Address:
    return parse_mailbox(text, utf8=True)


def recipient(text: str, *notify: Notify, orcpt: str = "") -> Recipient:
    return Recipient(address(text), frozenset(notify), orcpt)


def stored(
    *recipients: Recipient,
    sender: Sender | str = "ben@example.net",
    owed: bool = True,
    warned: bool = False,
    parameters: MailParameters = MailParameters(),  # noqa: B008 - frozen
    size: int = len(CONTENT),
) -> Stored:
    """A message that was received at START, all recipients pending."""
    chosen = recipients or (recipient("anna@example.org"),)
    who = address(sender) if isinstance(sender, str) else sender
    slots = tuple(Slot(r, due=START) for r in chosen)
    return Stored("Q1", State.QUEUED, Envelope(who, chosen, parameters), slots, START, size, owed, False, warned)


class Octets:
    """`Content` from memory."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets
        self.read = 0

    @property
    def size(self) -> int:
        return len(self.octets)

    @property
    def eight_bit(self) -> bool:
        return not self.octets.isascii()

    async def blocks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.octets), 16384):
            self.read = start + 16384
            yield self.octets[start : start + 16384]


Answer = Callable[[Delivery], Awaitable[list[Outcome]]]


class Script:
    """A transport that answers from a list, then always with the last; keeps what it was given."""

    def __init__(self, *outcomes: Outcome | Sequence[Outcome] | Exception) -> None:
        self.outcomes = list(outcomes) or [DELIVERED]
        self.deliveries: list[Delivery] = []
        self.contents: list[bytes] = []
        self.keeps_contents = False
        self.now = 0
        self.most = 0
        self.gate: asyncio.Event | None = None

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        self.deliveries.append(delivery)
        if self.keeps_contents:
            self.contents.append(b"".join([block async for block in delivery.content.blocks()]))
        self.now += 1
        self.most = max(self.most, self.now)
        answer = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        finally:
            self.now -= 1
        if isinstance(answer, Exception):
            raise answer
        return [answer] * len(delivery.recipients) if isinstance(answer, Outcome) else list(answer)

    async def close(self) -> None:
        pass


class World:
    """A scheduler on a real spool; destinations by recipient domain, each with a `Script`."""

    def __init__(self, spool: SqliteSpool, *, options: SchedulerOptions, retry: RetryOptions) -> None:
        self.clock = ManualClock()
        self.keeps_contents = False
        self.spool = spool
        self.scripts: dict[str, Script] = {}
        self.senders: list[Sender | None] = []
        self.scheduler = Scheduler(
            spool, self, self, retry=retry, clock=self.clock, hostname=HOST, options=options, rng=lambda: 0.5
        )
        self.task: asyncio.Task[None] | None = None

    def resolve(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
        self.senders.append(sender)
        if address.domain == "nowhere.example":
            raise LookupError("no route")
        return Destination(Kind.SMTP, host=address.ascii_domain, port=25)

    def for_destination(self, destination: Destination) -> Script:
        script = self.script(destination.host)
        script.keeps_contents = self.keeps_contents
        return script

    def script(self, domain: str) -> Script:
        return self.scripts.setdefault(domain, Script())

    def on(self, domain: str, *outcomes: Outcome | Sequence[Outcome] | Exception) -> Script:
        self.scripts[domain] = Script(*outcomes)
        return self.scripts[domain]

    async def send(
        self,
        *recipients: Recipient | str,
        sender: Sender | str = "ben@example.net",
        owed: bool = True,
        content: bytes = CONTENT,
        parameters: MailParameters = MailParameters(),  # noqa: B008 - frozen
        origin: Origin | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> str:
        """Commit a message, as the intake does, and ring."""
        id = transaction_id(new_session_id(), 0)
        chosen = tuple(recipient(r) if isinstance(r, str) else r for r in recipients)
        who = address(sender) if isinstance(sender, str) else sender
        draft = self.spool.draft(id)
        await draft.write(content)
        record = {"id": id, "time": self.clock.now()}
        envelope = Envelope(who, chosen, parameters, origin=origin, priority=priority)
        await self.spool.commit(draft, NewMessage(id, envelope, self.clock.now(), b"", owed=owed, record=record))
        self.scheduler.ring()
        return id

    def to_disk(self) -> None:
        """Have what was sent and not claimed come from the disk, as after an operator's change."""
        self.spool._shards[0].stale = True

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.scheduler.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until `condition` holds; the test fails when it never does."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Until everything that is due was worked on and stored."""
        async with asyncio.timeout(10):
            while True:
                self.scheduler.ring()
                await asyncio.sleep(0.002)
                queued = await self.spool.list(state=State.QUEUED)
                if not self.scheduler.active and all(m.due > self.clock.now() for m in queued):
                    return

    async def find(self, id: str) -> Stored | None:
        claimed = await self.spool.show(id)
        return claimed.message if claimed else None

    async def dsns(self) -> list[Stored]:
        """What lies in the spool from the null sender."""
        return [m for m in await self.spool.list() if m.envelope.sender is NULL_SENDER]

    async def stop(self) -> None:
        await self.scheduler.drain(5)
        if self.task:
            await self.task
        await self.spool.close()
