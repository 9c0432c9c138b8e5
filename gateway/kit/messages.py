"""Messages for tests, as octets with CRLF: well made by default, and broken in exactly the ways that a test asks for.

*RFCs*: 5322 (messages), 2045 and 2046 (MIME), 2047 (encoded words), 6532 (UTF-8 in header fields).
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from enum import StrEnum
from typing import Final

__all__ = [
    "Attached",
    "Damage",
    "MessageFactory",
]

DATE: Final = "Sat, 01 Nov 2025 10:00:00 +0000"

_MADE: Final = email.policy.SMTP.clone(cte_type="7bit")
_WRITTEN: Final = {False: email.policy.SMTP, True: email.policy.SMTPUTF8}


class Damage(StrEnum):
    """What can be wrong with a message. Each is done to the finished octets, in this order."""

    NO_FROM = "no-from"
    TWO_FROMS = "two-froms"
    NO_DATE = "no-date"
    NO_MESSAGE_ID = "no-message-id"
    NO_MIME_VERSION = "no-mime-version"
    LATIN1_HEADER = "latin1-header"
    """A field with octets over 127 that are no UTF-8."""
    BAD_CHARSET = "bad-charset"
    """A charset that nobody knows."""
    BAD_BASE64 = "bad-base64"
    """A part whose Base64 holds other characters, and padding in the middle."""
    NO_CLOSING_BOUNDARY = "no-closing-boundary"
    """The last boundary of a multipart is missing."""
    HEADER_CUT_OFF = "header-cut-off"
    """A line that is no header field stands in the middle of the header section."""
    LONG_LINE = "long-line"
    """A line of 2000 octets; RFC 5322 section 2.1.1 allows 998."""
    NUL = "nul"
    """A NUL in the body."""
    BARE_LF = "bare-lf"
    """A line of the body ends in LF alone."""
    BARE_CR = "bare-cr"
    """A CR stands alone in the body."""
    NO_LAST_LINE_END = "no-last-line-end"


@dataclass(frozen=True, slots=True)
class Attached:
    """A file in a message."""

    name: str
    content: bytes
    type: str = "application/octet-stream"


class MessageFactory:
    """Makes messages; ``message_factory(subject="Hi", attachments=[Attached("a.pdf", b"%PDF")])`` gives octets.

    The same calls give the same octets: dates stand still, and Message-IDs and boundaries are counted.
    """

    def __init__(self) -> None:
        self._count = 0

    def __call__(
        self,
        text: str | None = "Hello\n",
        *,
        sender: str = "Ben <ben@sender.example>",
        to: str = "Anna <anna@example.org>",
        subject: str = "test",
        html: str | None = None,
        attachments: Sequence[Attached] = (),
        messages: Sequence[bytes] = (),
        nested: int = 0,
        headers: Iterable[tuple[str, str]] = (),
        eight_bit: bool = False,
        utf8: bool = False,
        damage: Iterable[Damage | str] = (),
    ) -> bytes:
        """One message.

        With `html` beside `text` it is multipart/alternative. `messages` are attached as message/rfc822, written anew.
        `nested` wraps the whole in so many multiparts. What is not ASCII stands in texts as quoted-printable or Base64,
        or with `eight_bit` as it is; in header fields as encoded words, or with `utf8` as it is, which needs SMTPUTF8.
        `headers` come last.

        Raises ValueError for a kind of damage that there is not, or that this message cannot have.
        """
        self._count += 1
        made = _body(text, html, eight_bit)
        for attachment in attachments:
            main, _, sub = attachment.type.partition("/")
            made.add_attachment(attachment.content, maintype=main, subtype=sub, filename=attachment.name)
        for inner in messages:
            made.add_attachment(email.message_from_bytes(inner, policy=_MADE))
        for _ in range(nested):
            made = _wrapped(made)
        for number, part in enumerate(part for part in made.walk() if part.is_multipart()):
            if part.get_content_maintype() == "multipart":
                part.set_boundary(f"=_{self._count}_{number}")
        fields = {
            "From": sender,
            "To": to,
            "Subject": subject,
            "Date": DATE,
            "Message-ID": f"<{self._count}@kit.example>",
        }
        for name, value in (*fields.items(), *headers):
            made[name] = value
        octets = made.as_bytes(policy=_WRITTEN[utf8])
        for kind in sorted({Damage(kind) for kind in damage}, key=list(Damage).index):
            octets = _damaged(octets, kind)
        return octets


def _body(text: str | None, html: str | None, eight_bit: bool) -> EmailMessage:
    encoding = "8bit" if eight_bit else None
    made = EmailMessage(policy=_MADE)
    made.set_content(
        text if text is not None else html or "", subtype="html" if text is None and html else "plain", cte=encoding
    )
    if text is not None and html is not None:
        made.add_alternative(html, subtype="html", cte=encoding)
    return made


def _wrapped(inner: EmailMessage) -> EmailMessage:
    del inner["MIME-Version"]
    outer = EmailMessage(policy=_MADE)
    outer["MIME-Version"] = "1.0"
    outer["Content-Type"] = "multipart/mixed"
    outer.attach(inner)
    return outer


def _damaged(octets: bytes, kind: Damage) -> bytes:
    damaged = _DAMAGES[kind](octets)
    if damaged == octets:
        raise ValueError(f"this message cannot have {kind}")
    return damaged


def _without(name: bytes) -> Callable[[bytes], bytes]:
    field = re.compile(rb"(?mi)\A(.*?^)?" + name + rb":[^\r]*\r\n(?:[ \t][^\r]*\r\n)*", re.DOTALL)

    def remove(octets: bytes) -> bytes:
        head, body = _split(octets)
        return field.sub(lambda match: match[1] or b"", head, count=1) + body

    return remove


def _split(octets: bytes) -> tuple[bytes, bytes]:
    """The header section, and the rest with the empty line before it."""
    at = octets.index(b"\r\n\r\n") + 2
    return octets[:at], octets[at:]


def _field(line: bytes) -> Callable[[bytes], bytes]:
    """Put a line below the header section."""

    def add(octets: bytes) -> bytes:
        head, body = _split(octets)
        return head + line + b"\r\n" + body

    return add


def _line(line: bytes) -> Callable[[bytes], bytes]:
    """Put octets in front of the body."""

    def add(octets: bytes) -> bytes:
        head, body = _split(octets)
        return head + body[:2] + line + body[2:]

    return add


def _bad_charset(octets: bytes) -> bytes:
    return re.sub(rb'charset="?[A-Za-z0-9-]+"?', b"charset=x-nobody-knows", octets, count=1)


def _bad_base64(octets: bytes) -> bytes:
    encoded = re.compile(rb"(?i)(content-transfer-encoding: base64\r\n(?:[^\r]+\r\n)*\r\n[A-Za-z0-9+/]{2})[^\r]*")
    return encoded.sub(lambda match: match[1] + b"*!=A", octets, count=1)


def _no_closing_boundary(octets: bytes) -> bytes:
    at = octets.rfind(b"--\r\n")
    begin = octets.rfind(b"\r\n--", 0, max(at, 0))
    return octets[: begin + 2] + octets[at + 4 :] if begin >= 0 else octets


def _header_cut_off(octets: bytes) -> bytes:
    first = octets.index(b"\r\n") + 2
    return octets[:first] + b"this is no header field\r\n" + octets[first:]


_DAMAGES: Final[dict[Damage, Callable[[bytes], bytes]]] = {
    Damage.NO_FROM: _without(b"From"),
    Damage.TWO_FROMS: _field(b"From: somebody-else@other.example"),
    Damage.NO_DATE: _without(b"Date"),
    Damage.NO_MESSAGE_ID: _without(b"Message-ID"),
    Damage.NO_MIME_VERSION: _without(b"MIME-Version"),
    Damage.LATIN1_HEADER: _field(b"X-Latin: Gr\xfc\xdfe"),
    Damage.BAD_CHARSET: _bad_charset,
    Damage.BAD_BASE64: _bad_base64,
    Damage.NO_CLOSING_BOUNDARY: _no_closing_boundary,
    Damage.HEADER_CUT_OFF: _header_cut_off,
    Damage.LONG_LINE: _line(b"x" * 2000 + b"\r\n"),
    Damage.NUL: _line(b"\0\r\n"),
    Damage.BARE_LF: _line(b"bare line feed\n.\n"),
    Damage.BARE_CR: _line(b"bare carriage\rreturn\r\n"),
    Damage.NO_LAST_LINE_END: lambda octets: octets.removesuffix(b"\r\n"),
}
