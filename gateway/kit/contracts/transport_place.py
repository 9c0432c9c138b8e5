"""The far end of a transport under test, and what is handed to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.kit.contracts.running import given_by
from gateway.mail.address import Sender, parse_mailbox
from gateway.mail.envelope import Body, MailParameters, Recipient
from gateway.mail.message import Content
from gateway.sdk.fakes import BytesContent
from gateway.transport.transport import Delivery, Fault, Outcome, Result, Transport

SENDER: Final = parse_mailbox("ben@sender.example")
BLOCK: Final = 1 << 16
_CLASS: Final = {Result.DELIVERED: 2, Result.DEFERRED: 4, Result.FAILED: 5}


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message that one recipient has: `content` with whatever line ends and trace fields the far end has for it."""

    recipient: str
    content: bytes


class TransportPlace(Protocol):
    """Where a transport delivers to. Nothing has arrived at first."""

    def recipient(self, number: int) -> Recipient:
        """A recipient that is there, another one for each number."""

    def transport(self) -> Transport:
        """A new transport to this place."""

    async def received(self) -> list[Arrived]:
        """All that has arrived so far."""

    async def down(self) -> None:
        """From now on nothing can be delivered, for a reason that may pass: nobody listens, the disk is gone."""

    async def close(self) -> None:
        """The test is over; its transports have been closed."""


class RefusingPlace(TransportPlace, Protocol):
    """A place that can refuse one recipient of a message for good and take it for another one."""

    def stranger(self) -> Recipient:
        """A recipient that is not there."""


class StallingPlace(TransportPlace, Protocol):
    """A place that can keep a transport waiting. Its transports' own limits end that within a few seconds."""

    async def stall(self) -> None:
        """From now on the far end takes its time, and never comes to an end."""


class Stream:
    """Content of so many lines that is made while it is read; says what becomes of it.

    It `begins` when it is read, stops after the first blocks until `go_on` is set, and with `breaks` raises OSError
    then.
    """

    def __init__(self, marker: str, lines: int, *, waits: bool = False, breaks: bool = False) -> None:
        self._head = f"Subject: {marker}\r\n\r\n".encode()
        self._line = b"0123456789 %s\r\n" % marker.encode()
        self._lines = lines
        self._breaks = breaks
        self.begins = asyncio.Event()
        self.go_on = asyncio.Event()
        if not waits:
            self.go_on.set()

    @property
    def size(self) -> int:
        return len(self._head) + self._lines * len(self._line)

    @property
    def eight_bit(self) -> bool:
        return False

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self._head
        at_once = max(1, BLOCK // len(self._line))
        for at in range(0, self._lines, at_once):
            if at >= 4 * at_once:
                self.begins.set()
                await self.go_on.wait()
                if self._breaks:
                    raise OSError("the content cannot be read")
            yield self._line * min(at_once, self._lines - at)


def delivery(*recipients: Recipient, content: bytes | Content, sender: Sender = SENDER, id: str = "ID1") -> Delivery:
    """A delivery of this content."""
    body = BytesContent(content) if isinstance(content, bytes) else content
    parameters = MailParameters(body=Body.EIGHT_BIT if body.eight_bit else Body.SEVEN_BIT)
    return Delivery(id, sender, parameters, recipients, body)


def as_stored(content: bytes) -> bytes:
    """Content as it is looked for in what has arrived: with LF, and a line end at its end."""
    lines = content.replace(b"\r\n", b"\n")
    return lines if lines.endswith(b"\n") else lines + b"\n"


def holds(arrived: Arrived, content: bytes) -> bool:
    """Whether the whole content is in what has arrived."""
    return as_stored(content) in as_stored(arrived.content)


def only(arrived: list[Arrived]) -> Arrived:
    """The only one there is."""
    assert len(arrived) == 1, f"{len(arrived)} messages have arrived, of {[len(a.content) for a in arrived]} octets"
    return arrived[0]


def check(outcomes: list[Outcome], expected: int | list[Result]) -> None:
    """One outcome for each recipient, all delivered or as listed, and each true to itself."""
    results = [Result.DELIVERED] * expected if isinstance(expected, int) else expected
    assert [outcome.result for outcome in outcomes] == results, [str(outcome.reply) for outcome in outcomes]
    for outcome in outcomes:
        assert outcome.reply.code // 100 == _CLASS[outcome.result], f"{outcome.result} with {outcome.reply}"
        assert (outcome.fault is Fault.NONE) is (outcome.result is Result.DELIVERED)


class Handing:
    """The transports that a test opens, closed when it ends."""

    def __init__(self, make: Callable[[], Transport]) -> None:
        self._make = make
        self._opened: list[Transport] = []

    def __call__(self) -> Transport:
        self._opened.append(self._make())
        return self._opened[-1]

    async def close(self) -> None:
        for transport in self._opened:
            await transport.close()


@contextlib.asynccontextmanager
async def _closed_at_the_end(place: TransportPlace) -> AsyncIterator[dict[str, Any]]:
    handing = Handing(place.transport)
    try:
        yield {"place": place, "transport": handing}
    finally:
        await handing.close()
        await place.close()


with_transport = given_by("place", ("place", "transport"), _closed_at_the_end)
