"""The header fields that stand in front of a message for spamd: from whom and from where it came.

Gatepost's own Received field is made later, when the message is stored. Without one spamd would take the sender's
newest Received field for the client.

*RFCs*: 5321 section 4.4 (Received).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from gateway.sdk import ReverseName, Transaction

_NAME: Final = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}\Z")


def trace_fields(transaction: Transaction, reverse: ReverseName | None, hostname: str, now: float) -> bytes:
    """X-Envelope-From and Received, in the form that SpamAssassin reads; `now` in seconds since 1970."""
    session = transaction.session
    helo = session.helo if _NAME.match(session.helo) else "unknown"
    found = (reverse.name if reverse else "") or session.name
    name = found if _NAME.match(found) else "unknown"
    protocol = ("ESMTPS" if session.tls else "ESMTP") if session.esmtp else "SMTP"
    lines = [
        f"X-Envelope-From: <{transaction.sender}>",
        f"Received: from {helo} ({name} [{session.client}])",
        f"\tby {hostname} (Gatepost) with {protocol} id {transaction.id};",
        f"\t{format_datetime(datetime.fromtimestamp(now, UTC))}",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()
