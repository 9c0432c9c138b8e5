"""A message as an HTTP request, and what the response means for its recipients. Pure, but for the time.

*RFCs*: 9110 section 10.2.3 (Retry-After) and 15 (status codes), 6585 section 4 (429), 8470 section 5.2 (425), 6750
section 2.1 (bearer tokens), 7578 (multipart/form-data), 3463 section 3 (enhanced status codes).
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from gateway.mail.envelope import Recipient
from gateway.mail.message import Content
from gateway.mail.reply import Reply, clean
from gateway.transport.options import WebhookFormat
from gateway.transport.sysexits import first_lines
from gateway.transport.transport import Delivery, Fault, Outcome, Result

_PLAIN: Final = "!#$&'*+-/=?^_`{|}~.@[]:"
_LATER: Final = frozenset({408, 421, 425, 429})
_CREDENTIALS: Final = frozenset({401, 407})
_DETAILS: Final = {401: "3.5", 407: "3.5", 413: "3.4", 415: "6.1", 429: "4.5", 503: "4.5"}
_LONGEST_WAIT: Final = 86400.0
_SECONDS: Final = re.compile(r"[0-9]{1,9}\Z")


@dataclass(frozen=True, slots=True)
class Posting:
    """A request: its header fields, and the octets before and after the message. `size` is that of the whole body."""

    headers: dict[str, str]
    before: bytes
    after: bytes
    size: int

    async def body(self, content: Content) -> AsyncIterator[bytes]:
        """The body, block by block."""
        if self.before:
            yield self.before
        async for block in content.blocks():
            yield block
        if self.after:
            yield self.after


def compose(delivery: Delivery, recipients: Sequence[Recipient], format: WebhookFormat, token: str) -> Posting:
    """The request for some of a delivery's recipients."""
    headers = {
        "Idempotency-Key": idempotency_key(delivery.id, recipients),
        "User-Agent": "Gatepost",
        "Accept": "text/plain, application/json;q=0.5, */*;q=0.1",
        "Accept-Encoding": "identity",
    }
    if token:
        headers["Authorization"] = f"Bearer {token}"
    before = after = b""
    if format is WebhookFormat.MESSAGE:
        headers["Content-Type"] = "message/rfc822"
        headers["Gatepost-Queue-Id"] = delivery.id
        headers["Gatepost-Sender"] = path(str(delivery.sender))
        headers["Gatepost-Recipients"] = ", ".join(path(str(recipient.address)) for recipient in recipients)
    else:
        # Nobody can write a line into a message that this chance would make.
        boundary = f"gatepost-{secrets.token_hex(16)}"
        headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        before = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="envelope"\r\nContent-Type: application/json\r\n\r\n'
            f"{json.dumps(envelope(delivery, recipients))}\r\n"
            f'--{boundary}\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
            "Content-Type: message/rfc822\r\n\r\n"
        ).encode()
        after = f"\r\n--{boundary}--\r\n".encode()
    size = len(before) + delivery.content.size + len(after)
    headers["Content-Length"] = str(size)
    return Posting(headers, before, after, size)


def envelope(delivery: Delivery, recipients: Sequence[Recipient]) -> dict[str, object]:
    """The envelope as the JSON of a multipart request shows it."""
    parameters = delivery.parameters
    return {
        "id": delivery.id,
        "sender": str(delivery.sender),
        "recipients": [
            {"address": str(r.address), "notify": sorted(n.value for n in r.notify), "orcpt": r.orcpt}
            for r in recipients
        ],
        "body": parameters.body.value,
        "smtputf8": parameters.smtputf8,
        "ret": parameters.ret.value if parameters.ret else "",
        "envid": parameters.envid,
    }


def path(address: str) -> str:
    """An address in angle brackets, percent-encoded but for what needs no quotes in it."""
    return f"<{quote(address, safe=_PLAIN)}>"


def idempotency_key(id: str, recipients: Sequence[Recipient]) -> str:
    """The same for each attempt of the same message for the same recipients, and for nothing else."""
    addresses = "\n".join(sorted(str(recipient.address) for recipient in recipients))
    return f"{id}-{hashlib.sha256(addresses.encode()).hexdigest()[:32]}"


def judge(status: int, text: bytes, retry_after: str, now: float, host: str) -> Outcome:
    """The outcome of a response. Text that begins with an enhanced status of the right class gives the status.

    Delivered is 2xx only. 4xx fails for good, except for what says "later" and for our own credentials being wrong.
    """
    said = first_lines(text)
    if 200 <= status < 300:
        return Outcome(Result.DELIVERED, _reply(250, "0.0", status, said), host, replied=True)
    if 400 <= status < 500 and status not in _LATER and status not in _CREDENTIALS:
        code = 552 if status == 413 else 554
        reply = _reply(code, _DETAILS.get(status, "0.0"), status, said)
        return Outcome(Result.FAILED, reply, host, replied=True, fault=Fault.PEER)
    ours = status in _CREDENTIALS or 300 <= status < 400
    reply = _reply(451, _DETAILS.get(status, "3.5" if ours else "3.0"), status, said)
    wait = parse_retry_after(retry_after, now)
    fault = Fault.OURS if ours else Fault.PEER
    return Outcome(Result.DEFERRED, reply, host, replied=True, fault=fault, retry_after=wait)


def _reply(code: int, detail: str, status: int, said: str) -> Reply:
    found = Reply.parse(code, said)
    text = f"HTTP {status}" + (f": {found.text}" if found.text else "")
    return Reply(code, found.detail or detail, clean(text))


def parse_retry_after(value: str, now: float) -> float:
    """Seconds from a Retry-After field, of either form; 0 for none, for nonsense and for the past. At most a day."""
    value = value.strip()
    if _SECONDS.match(value):
        return min(float(value), _LONGEST_WAIT)
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(at - now, 0.0), _LONGEST_WAIT)
