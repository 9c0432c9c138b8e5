"""Delivery status notifications: the mail we write ourselves.

*Promises*: whatever stands in replies, addresses, parameters or the original message, a DSN is well-formed: CRLF
line ends only, no line over 998 octets, no header field or MIME part that we did not mean, at most about 100 KiB of
the original. A DSN to an ASCII address can be written in seven bits, for next hops without 8BITMIME.

*RFCs*: 3464 (the report), 3461 section 6 (ENVID, ORCPT, RET), 6522 (multipart/report), 6533 (UTF-8 addresses), 3834
(Auto-Submitted), 5321 section 4.5.5 (null sender), 6152 section 3 (8BITMIME), 8689 section 5 (REQUIRETLS).
"""

from __future__ import annotations

import binascii
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Address, AddressError
from gateway.mail.envelope import Body, Envelope, MailParameters, Recipient, Ret
from gateway.mail.message import Content, split_header
from gateway.mail.sevenbit import fits_seven_bits
from gateway.queue.lifecycle import Action, Notice, Report
from gateway.spool.spool import NewDsn, NewMessage, Stored

FULL_OCTETS: Final = 100 << 10
HEADER_OCTETS: Final = 64 << 10
_LINE_OCTETS: Final = 998
_VALUE_OCTETS: Final = 800

_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,64}\Z")
_STATUS = re.compile(r"([245])\d\d(?: ([245]\.\d{1,3}\.\d{1,3})(?= |\Z))?")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_CODE_POINT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_NOT_QCHAR = re.compile(r"[^\x21-\x2a\x2c-\x3c\x3e-\x5b\x5d-\x7e]")
_MESSAGE_ID = re.compile(r"<[\x21-\x3b\x3d\x3f-\x7e]{1,400}>\Z")
_GLOBAL: Final = b"Content-Type: message/global-delivery-status"
_LINE_END = re.compile(rb"\r\n|\r|\n")

_SUBJECT: Final = {
    Notice.FAILURE: "Mail could not be delivered",
    Notice.DELAY: "Mail is delayed",
    Notice.SUCCESS: "Mail was delivered",
    Notice.DOUBLE: "Bounce could not be delivered",
}
_EXPLANATION: Final = {
    Action.FAILED: "Your message could NOT be delivered to the following, and it will not be tried again:",
    Action.DELAYED: "Your message has not yet been delivered to the following. You need not do anything: delivery is"
    " still being tried, until {until}.",
    Action.DELIVERED: "Your message was delivered to the following:",
    Action.RELAYED: "Your message was handed on to a mail system that does not send receipts. You will hear no more"
    " about the following, unless it fails there:",
}
_LOST: Final = (
    "A message from the null sender, which is a bounce as a rule, could NOT be delivered to the following. Nobody else"
    " can be told of it. What is left of it is below, and its history is shown by: gatepost explain {id}"
)


@dataclass(frozen=True, slots=True)
class Original:
    """What is returned of the message: all its octets when `full`, else its header section."""

    octets: bytes
    full: bool


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: the name of this host, and how long mail is kept trying (`RetryOptions.give_up`, seconds).

    `address` is the author of DSNs (From), MAILER-DAEMON at this host without it; `postmaster` who can help.
    """

    hostname: str
    give_up: float
    address: Address | None = None
    postmaster: Address | None = None

    @property
    def author(self) -> str:
        """The address in From."""
        return _line(str(self.address)) if self.address else f"MAILER-DAEMON@{_line(self.hostname)}"

    @property
    def help(self) -> str:
        """The address of who can help."""
        return _line(str(self.postmaster)) if self.postmaster else f"postmaster@{_line(self.hostname)}"


async def read_original(message: Stored, content: Content, *, without_ret: Ret = Ret.HEADERS) -> Original:
    """What a DSN for `message` returns (RFC 3461 section 4.3): the header section, unless RET=FULL and it is small.

    `without_ret` holds where the sender did not say. Raises what reading the content raises.
    """
    full = (message.envelope.parameters.ret or without_ret) is Ret.FULL and message.size <= FULL_OCTETS
    limit = FULL_OCTETS if full else HEADER_OCTETS
    octets = b""
    blocks = content.blocks()
    try:
        async for block in blocks:
            octets += block[: limit - len(octets)]
            if len(octets) >= limit:
                break
    finally:
        close = getattr(blocks, "aclose", None)
        if close is not None:
            await close()
    _, end = split_header(octets)
    if full and _can_stand(octets) and _is_header(octets[:end], utf8=message.envelope.parameters.smtputf8):
        return Original(octets, True)
    return _header(octets)


def _header(octets: bytes) -> Original:
    """The whole fields of a header section, and of a message no more than that."""
    fields, _ = split_header(octets)
    return Original(b"".join(field.raw for field in fields if field.raw.endswith(b"\r\n")), False)


def write(
    id: str,
    message: Stored,
    reports: Sequence[Report],
    original: Original | None,
    now: float,
    writer: Writer,
    reader: Address | None = None,
) -> NewDsn:
    """The DSN that tells about `reports`, under the new queue id `id`: its sender, or the `reader` who is named.

    Without `original` (its content cannot be read) nothing is returned with it, and where nobody's delivery failed no
    more than its header section (RFC 3461 section 4.3). The null sender is never told anything; what it sent can only
    be reported to a reader.
    """
    sender = reader or message.envelope.sender
    if not isinstance(sender, Address):
        raise TypeError("the null sender gets no DSN")
    notice = _notice(message, reports)
    if original is not None and original.full and notice not in (Notice.FAILURE, Notice.DOUBLE):
        original = _header(original.octets)
    to, utf8 = _mailbox(sender)
    allow_utf8 = utf8 or message.envelope.parameters.smtputf8
    parts = [
        _text_part(message, notice, reports, writer),
        _status_part(message, reports, now, writer, allow_utf8, plain=not utf8),
    ]
    if original is not None and original.octets:
        parts.append(_original_part(original, allow_utf8))
    host = _line(writer.hostname)
    kind = "global-delivery-status" if parts[1].startswith(_GLOBAL) else "delivery-status"
    boundary = _boundary(id, parts)
    head = [
        f"From: Mail Delivery System <{writer.author}>",
        f"To: <{to}>",
        f"Subject: {_SUBJECT[notice]}",
        f"Date: {_date(now)}",
        f"Message-ID: <{_line(id)}@{host}>",
        *_references(original),
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type={kind};\r\n boundary="{boundary}"',
        "",
        "This is a delivery report in MIME format.",
        "",
    ]
    delimiter = f"\r\n--{boundary}".encode()
    content = (
        "\r\n".join(head).encode() + b"".join(delimiter + b"\r\n" + part for part in parts) + delimiter + b"--\r\n"
    )
    body = Body.SEVEN_BIT if content.isascii() else Body.EIGHT_BIT
    if original is not None and original.full and not utf8 and not fits_seven_bits(content):
        # A host without 8BITMIME could not have it, and what cannot be told with all of the message is told without.
        return write(id, message, reports, _header(original.octets), now, writer, reader)
    # What is told of a message is to be protected as it was (RFC 8689 section 5).
    parameters = MailParameters(body=body, smtputf8=utf8, requiretls=message.envelope.parameters.requiretls)
    record = _record(id, message, sender, notice, reports, len(content), now)
    envelope = Envelope(NULL_SENDER, (Recipient(sender),), parameters)
    return NewDsn(NewMessage(id, envelope, now, b"", record=record), content)


def _record(
    id: str, message: Stored, reader: Address, notice: Notice, reports: Sequence[Report], size: int, now: float
) -> dict[str, Any]:
    """The decision record of a DSN, in the form of `gateway.pipeline.record`: nobody was asked, and `dsn` says why."""
    return {
        "v": 1,
        "id": id,
        "session": "",
        "time": now,
        "listener": "",
        "client": None,
        "tls": None,
        "helo": "",
        "sender": "<>",
        "recipients": [{"address": str(reader), "reply": ""}],
        "size": size,
        "findings": [],
        "verdicts": [],
        "edits": [],
        "outcome": "accepted",
        "reply": "",
        "pipeline": "",
        "dsn": {
            "kind": notice.value,
            "about": message.id,
            "recipients": [str(report.recipient.address) for report in reports],
        },
    }


def _notice(message: Stored, reports: Sequence[Report]) -> Notice:
    if message.envelope.sender is NULL_SENDER:
        return Notice.DOUBLE
    actions = {report.action for report in reports}
    if Action.FAILED in actions:
        return Notice.FAILURE
    return Notice.DELAY if Action.DELAYED in actions else Notice.SUCCESS


# The parts. Each is its MIME header, an empty line and its body, without the line end before the delimiter.


def _text_part(message: Stored, notice: Notice, reports: Sequence[Report], writer: Writer) -> bytes:
    host = _line(writer.hostname)
    out = [f"This is the mail system at {host}."]
    for action, explanation in _EXPLANATION.items():
        chosen = [report for report in reports if report.action is action]
        if chosen:
            if notice is Notice.DOUBLE:
                explanation = _LOST.replace("{id}", _line(message.id))
            out += ["", *_wrap(explanation.format(until=_date(message.received + writer.give_up)), "")]
            for report in chosen:
                out += ["", f"  <{_line(str(report.recipient.address), ascii=False)}>", *_wrap(_cause(report), "    ")]
    out += [
        "",
        *_wrap(f"If you need help, write to <{writer.help}> and quote the reference {_line(message.id)}.", ""),
    ]
    out += ["", f"Your message arrived here: {_date(message.received)}", ""]
    text = "\r\n".join(out)
    if text.isascii():
        return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + text.encode("ascii")
    header = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    return header + binascii.b2a_qp(text.encode())


def _cause(report: Report) -> str:
    reply = _line(report.reply, ascii=False)
    if not reply:
        return ""
    return f"{_line(report.host, ascii=False)} answered: {reply}" if report.replied and report.host else reply


def _status_part(
    message: Stored, reports: Sequence[Report], now: float, writer: Writer, utf8: bool, *, plain: bool
) -> bytes:
    """The machine's part; with `plain` in seven bits, for a reader whom hosts without SMTPUTF8 can reach, too."""
    groups = [_message_fields(message, writer)]
    groups += [_recipient_fields(message, report, now, writer, utf8) for report in reports]
    body = "\r\n".join("".join(f"{name}: {value}\r\n" for name, value in group) for group in groups)
    if body.isascii():
        return b"Content-Type: message/delivery-status\r\n\r\n" + body.encode("ascii")
    header = _GLOBAL + b"\r\nContent-Transfer-Encoding: "
    if plain:
        return header + b"quoted-printable\r\n\r\n" + binascii.b2a_qp(body.encode())
    return header + b"8bit\r\n\r\n" + body.encode()


_Fields = list[tuple[str, str]]


def _message_fields(message: Stored, writer: Writer) -> _Fields:
    """RFC 3464 section 2.2."""
    out: _Fields = []
    if message.envelope.parameters.envid:
        out.append(("Original-Envelope-Id", _line(_unxtext(message.envelope.parameters.envid))))
    out.append(("Reporting-MTA", f"dns; {_line(writer.hostname)}"))
    out.append(("X-Gatepost-Queue-ID", _line(message.id)))
    out.append(("Arrival-Date", _date(message.received)))
    return out


def _recipient_fields(message: Stored, report: Report, now: float, writer: Writer, utf8: bool) -> _Fields:
    """RFC 3464 section 2.3, in its order."""
    out: _Fields = []
    original = _original_recipient(report.recipient.orcpt, utf8)
    if original:
        out.append(("Original-Recipient", original))
    out.append(("Final-Recipient", _typed(str(report.recipient.address), utf8)))
    out.append(("Action", report.action.value))
    out.append(("Status", _status(report)))
    if report.host:
        out.append(("Remote-MTA", f"dns; {_line(report.host)}"))
    reply = _line(report.reply, ascii=not utf8)
    if reply:
        kind = "smtp" if report.replied else "x-gatepost"
        out.append(("Diagnostic-Code", "\r\n ".join(_wrap(f"{kind}; {reply}", "", 58))))
    if report.tried:
        out.append(("Last-Attempt-Date", _date(now)))
    if report.action is Action.DELAYED:
        out.append(("Will-Retry-Until", _date(message.received + writer.give_up)))
    return out


def _original_part(original: Original, utf8: bool) -> bytes:
    octets = _LINE_END.sub(b"\r\n", original.octets)
    ascii = octets.isascii()
    if original.full:
        kind = b"message/rfc822" if ascii or not utf8 else b"message/global"
        encoding = b"7bit" if ascii else b"8bit"
    else:
        kind = b"text/rfc822-headers" if ascii or not utf8 else b"message/global-headers"
        encoding = b"7bit" if ascii and _can_stand(octets) else b"quoted-printable"
        if encoding == b"quoted-printable":
            octets = binascii.b2a_qp(octets)
    return b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n" + octets


def _can_stand(octets: bytes) -> bool:
    """Whether octets may be sent as they are: no NUL, no line over 998 octets, no stray CR or LF."""
    lines = octets.split(b"\r\n")
    return b"\0" not in octets and all(len(n) <= _LINE_OCTETS and b"\r" not in n and b"\n" not in n for n in lines)


def _is_header(section: bytes, *, utf8: bool) -> bool:
    """Whether a header section may stand in message/rfc822, or with `utf8` in message/global: hosts refuse others."""
    if section.isascii():
        return True
    try:
        section.decode()
    except UnicodeDecodeError:
        return False
    return utf8


def _boundary(id: str, parts: Sequence[bytes]) -> str:
    """A boundary that occurs in no part: nobody can end a part from the inside."""
    base = re.sub(r"[^A-Za-z0-9]", "-", id)[:32]
    number = 0
    while True:
        boundary = f"=_{base}.{number}"
        if not any(boundary.encode() in part for part in parts):
            return boundary
        number += 1


def _references(original: Original | None) -> list[str]:
    """In-Reply-To and References (RFC 3834 section 3.1.5), when the original has one good Message-ID."""
    if original is None:
        return []
    fields, _ = split_header(original.octets)
    ids = [field.value for field in fields if field.name.lower() == "message-id"]
    if len(ids) != 1 or not _MESSAGE_ID.match(ids[0]):
        return []
    return [f"In-Reply-To: {ids[0]}", f"References: {ids[0]}"]


# Values.


def _line(text: str, *, ascii: bool = True) -> str:
    """One line of at most 800 octets, without control characters, and without non-ASCII ones when `ascii`."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text[:_VALUE_OCTETS])
    octets = text.encode("ascii" if ascii else "utf-8", "replace")[:_VALUE_OCTETS]
    return octets.decode("utf-8", "ignore").strip()


def _wrap(text: str, indent: str, width: int = 76) -> list[str]:
    """The text in lines of about `width` characters, broken at spaces only; never an empty line."""
    lines = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line for line in lines if line.strip()]


def _date(time: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(time), UTC))


def _status(report: Report) -> str:
    """The Status field: the next hop's enhanced code where it gave one (RFC 3464 section 2.3.4)."""
    match = _STATUS.match(report.reply)
    success = report.action in (Action.DELIVERED, Action.RELAYED)
    if match and (match[1] == "2") is success:
        if match[2] and match[2][0] == match[1]:
            return match[2]
        # A failure without a code of its own that began with 4 is a message whose time was over.
        return "4.4.7" if report.action is Action.FAILED and match[1] == "4" else f"{match[1]}.0.0"
    return {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(report.action, "2.0.0")


def _mailbox(address: Address) -> tuple[str, bool]:
    """An address for the To field, with A-labels where that spares SMTPUTF8; and whether it needs SMTPUTF8."""
    if not address.needs_smtputf8 and not address.domain.isascii():
        try:
            address = Address(address.local, address.ascii_domain)
        except AddressError:
            pass
    text = _line(str(address), ascii=False)
    return text, not text.isascii()


def _typed(address: str, utf8: bool) -> str:
    """An address with its type (RFC 3464 section 2.1.2, RFC 6533 section 3)."""
    text = _line(address, ascii=False)
    if text.isascii():
        return f"rfc822; {text}"
    return f"utf-8; {text}" if utf8 else f"utf-8; {_to_code_points(text)}"


def _original_recipient(orcpt: str, utf8: bool) -> str:
    """The Original-Recipient field from ORCPT, decoded; empty when there is none or it is malformed."""
    kind, semicolon, value = orcpt.partition(";")
    if not semicolon or not value or not _ATOM.match(kind):
        return ""
    if kind.lower() == "utf-8":
        text = _line(_CODE_POINT.sub(_from_code_point, value), ascii=False)
        return f"{kind}; {text if utf8 or text.isascii() else _to_code_points(text)}"
    return f"{kind}; {_line(_unxtext(value))}"


def _unxtext(text: str) -> str:
    """xtext decoded (RFC 3461 section 4)."""
    return _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def _from_code_point(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else match[0]


def _to_code_points(text: str) -> str:
    """The 7-bit form utf-8-addr-xtext of RFC 6533 section 3, cut where it would be over-long."""
    out = ""
    for c in text:
        more = f"\\x{{{ord(c):02X}}}" if _NOT_QCHAR.match(c) else c
        if len(out) + len(more) > _VALUE_OCTETS:
            break
        out += more
    return out
