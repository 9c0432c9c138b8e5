"""Mail for spools under test: messages to put in, and ways to take them out again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient, Ret
from gateway.mail.session import base32
from gateway.ops.operations import Amended, Retry, Selection
from gateway.spool.draft import SPILL
from gateway.spool.hands import OperatedSpool
from gateway.spool.spool import (
    AttemptRecord,
    Claimed,
    NewDsn,
    NewMessage,
    RecipientStatus,
    Settlement,
    Slot,
    Spool,
    SpoolError,
    Stored,
)

NOW: Final = 1_700_000_000.0
SENDER: Final = Address("ann", "sender.test")
HEAD: Final = b"Received: by mx.example.org\r\n"
SMALL: Final = b"Subject: small\r\n\r\n" + b"s" * 4000
LARGE: Final = b"Subject: large\r\n\r\n" + bytes(range(256)) * 4096
assert len(SMALL) <= SPILL < len(LARGE)
ENVELOPE: Final = Envelope(
    Address("\xe4nne", "sender.test"),
    (
        Recipient(Address("ben", "example.test"), frozenset({Notify.FAILURE, Notify.DELAY}), "rfc822;Ben+40x"),
        Recipient(Address("odd local", "b\u00fccher.test")),
    ),
    MailParameters(0, Body.EIGHT_BIT, True, Ret.HEADERS, "env+2Bid"),
)

_count = itertools.count(1)


def new_id() -> str:
    """An id as Gatepost makes them; each sorts after the one before."""
    return base32(int(NOW * 1000) + next(_count), 9) + "0000" + "1"


def message(id: str = "", recipients: Sequence[str] = ("ben",), **values: Any) -> NewMessage:
    to = tuple(Recipient(Address(local, "example.test")) for local in recipients)
    id = id or new_id()
    return NewMessage(
        id, **{"envelope": Envelope(SENDER, to), "received": NOW, "head": HEAD, "record": {"id": id}, **values}
    )


def new_dsn(content: bytes = b"Subject: sorry\r\n\r\n") -> NewDsn:
    id = new_id()
    envelope = Envelope(NULL_SENDER, (Recipient(SENDER),))
    return NewDsn(NewMessage(id, envelope, NOW + 1, b"", record={"id": id, "dsn": True}), content)


async def put(spool: Spool, content: bytes = SMALL, new: NewMessage | None = None, **values: Any) -> str:
    """Commit a message as the front door does; gives its id."""
    new = new or message(**values)
    draft = spool.draft(new.id)
    try:
        for at in range(0, len(content), 65536):
            await draft.write(content[at : at + 65536])
        await spool.commit(draft, new)
    except SpoolError:
        await draft.abandon()
        raise
    return new.id


async def octets(claimed: Claimed) -> bytes:
    """The whole content."""
    return b"".join([block async for block in claimed.content.blocks()])


async def take(spool: Spool, now: float = NOW, limit: int = 1000) -> dict[str, Claimed]:
    """What can be claimed, by id."""
    return {claimed.message.id: claimed for claimed in await spool.claim(now, limit)}


async def hasten(spool: OperatedSpool, ids: Sequence[str] | None = None) -> int:
    """Have an operator make these due now, or all that is queued; gives how many are."""
    if ids is None:
        results = await spool.postmaster.hasten(Selection(), lambda *_: "", by="anna on mx1")
    else:
        results = await spool.postmaster.amend(ids, Retry(), by="anna on mx1")
    return sum(result is Amended.DONE for result in results.values())


def attempt(outcome: str = "delivered", time: float = NOW) -> AttemptRecord:
    return AttemptRecord(time, "ben@example.test", outcome, "250 2.0.0 ok", "127.0.0.1:24", 0.25)


def after(stored: Stored, status: RecipientStatus, due: float = 0.0) -> tuple[Slot, ...]:
    """All slots, now in `status`."""
    return tuple(
        replace(slot, status=status, due=due, attempts=slot.attempts + 1, last="a reply") for slot in stored.slots
    )


async def deliver(spool: Spool, stored: Stored) -> None:
    """Settle it as delivered to everybody."""
    await spool.settle(Settlement(stored.id, after(stored, RecipientStatus.DELIVERED), (attempt(),)))


async def defer(spool: Spool, stored: Stored, due: float) -> None:
    """Settle it as put off for everybody."""
    await spool.settle(Settlement(stored.id, after(stored, RecipientStatus.DEFERRED, due), (attempt("deferred"),)))
