"""What the tests of the transports share: a Gatepost that delivers to one, and what became of a message."""

from __future__ import annotations

import json
import mailbox
from pathlib import Path
from typing import Any

from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.process import wait_until

DOMAIN = "example.org"
LARGE = b"Subject: large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 60_000
"""More than is kept in memory."""


def to(transport: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Options of a Gatepost that delivers mail of a domain to this transport."""
    domains = {DOMAIN: {"next_hop": "transport:it", "recipients": "any"}}
    return {"transports": {"it": transport}, "domains": domains, **more}


def send(gate: Any, *recipients: str, content: bytes = MESSAGE, sender: str = "ann@sender.test") -> str:
    """Hand in a message for these local parts; gives its id."""
    addresses = [f"{recipient}@{DOMAIN}" for recipient in recipients or ("anna",)]
    with connect(gate.port) as client:
        return queue_id(transact(client, sender, addresses, content))


def deferred(gate: Any, attempts: int = 1) -> str:
    """The last reply for the only recipient in the queue, once it was tried so many times."""

    def tried() -> str:
        (message,) = json.loads(gate.http("GET", "/api/v1/queue")[1])["messages"]
        (recipient,) = message["recipients"]
        return str(recipient["last"]) if recipient["attempts"] >= attempts else ""

    return wait_until(tried, "it was tried and is in the queue")


def again(gate: Any) -> None:
    """Try all that waits, and wait until nothing does."""
    gate.run("queue", "flush")
    gate.wait_empty()


def mails(path: Path) -> list[bytes]:
    """The messages of an mbox, as Python's own reader sees them."""
    box = mailbox.mbox(path)
    try:
        return [box.get_bytes(key) for key in box.keys()]
    finally:
        box.close()
