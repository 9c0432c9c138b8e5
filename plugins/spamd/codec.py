"""The SPAMC protocol, octets only: the request in front of a message, and what spamd answers.

A request line with the version that lets spamd answer with several fields (1.3 and later), ``Content-length`` and
``User``, an empty line, the message. The response is a status line, fields, an empty line, and a body where one was
asked for. Source: spamd(8), and ``spamd/PROTOCOL`` of Apache SpamAssassin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

HEAD_OCTETS: Final = 8192
BODY_OCTETS: Final = 1 << 20

_STATUS: Final = re.compile(rb"SPAMD/[0-9]{1,3}\.[0-9]{1,3} ([0-9]{1,3}) ([\x20-\x7e]{0,500})\Z")
_FIELD: Final = re.compile(rb"([A-Za-z][A-Za-z-]{0,50}): *([\x20-\x7e\x80-\xff]*)\Z")
_LENGTH: Final = re.compile(rb"[0-9]{1,10}\Z")
_NUMBER: Final = rb"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
_SPAM: Final = re.compile(rb"(True|False|Yes|No) *; *" + _NUMBER + rb" */ *" + _NUMBER + rb" *\Z")
_USER: Final = re.compile(r"[\x21-\x7e]{1,320}\Z")


class SpamdError(OSError):
    """spamd answered nonsense, or that it could not do it: then with its status code and its words."""


class Command(StrEnum):
    """What spamd is asked for."""

    CHECK = "check"
    """The score only."""
    SYMBOLS = "symbols"
    """And the names of the rules that matched."""
    REPORT = "report"
    """And what it has to say about them, in words."""
    HEADERS = "headers"
    """And the header section as it would be by its own configuration."""


@dataclass(frozen=True, slots=True)
class Response:
    """What spamd says; `body` is what the command asks for beside the score."""

    spam: bool
    score: float
    threshold: float
    body: bytes = b""


def request(command: Command, size: int, user: str = "") -> bytes:
    """What stands in front of a message of `size` octets. Raises ValueError for a user that no line can carry."""
    lines = [f"{command.name} SPAMC/1.5", f"Content-length: {size}"]
    if user:
        if not _USER.match(user):
            raise ValueError("no such user can be named to spamd")
        lines.append(f"User: {user}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")


class _State(Enum):
    STATUS = 0
    FIELDS = 1
    BODY = 2
    DONE = 3


@dataclass(slots=True)
class _Seen:
    length: int | None = None
    verdict: tuple[bool, float, float] | None = None
    body: bytearray = field(default_factory=bytearray)


class ResponseReader:
    """Reads one response: octets go to `receive`, their end to `closed`, and then `response` is there.

    Both raise `SpamdError` when spamd says that it failed, and for what is no response.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._state = _State.STATUS
        self._buffer = bytearray()
        self._head = 0
        self._seen = _Seen()
        self.response: Response | None = None

    def receive(self, data: bytes) -> None:
        """Octets from spamd."""
        self._buffer += data
        while _STEPS[self._state](self):
            pass

    def closed(self) -> None:
        """spamd has closed the connection. Raises ConnectionError when it owes more."""
        if self._state is _State.BODY and self._seen.length is None:
            self._finish()
        if self.response is None:
            raise ConnectionError("spamd closed the connection before its response was over")

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if self._head + (end if end >= 0 else len(self._buffer)) > HEAD_OCTETS:
            raise SpamdError(f"the head of spamd's response is longer than {HEAD_OCTETS} octets")
        if end < 0:
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        self._head += end + 1
        return line

    def _status(self) -> bool:
        if (line := self._line()) is None:
            return False
        if not (match := _STATUS.match(line)):
            raise SpamdError(f"spamd answered garbage: {line[:80]!r}")
        if int(match[1]):
            raise SpamdError(f"spamd says: {match[1].decode()} {match[2].decode()[:200]}")
        self._state = _State.FIELDS
        return True

    def _fields(self) -> bool:
        if (line := self._line()) is None:
            return False
        if not line:
            if self._seen.verdict is None:
                raise SpamdError("spamd's response says no score")
            self._state = _State.BODY
            return True
        if not (match := _FIELD.match(line)):
            raise SpamdError(f"spamd answered garbage: {line[:80]!r}")
        match match[1].lower():
            case b"content-length":
                if self._seen.length is not None or not _LENGTH.match(match[2]) or int(match[2]) > BODY_OCTETS:
                    raise SpamdError("spamd's response has no length that can be taken")
                self._seen.length = int(match[2])
            case b"spam":
                if self._seen.verdict is not None or not (said := _SPAM.match(match[2])):
                    raise SpamdError(f"spamd's score is none: {line[:80]!r}")
                self._seen.verdict = (said[1] in (b"True", b"Yes"), float(said[2]), float(said[3]))
        return True

    def _body(self) -> bool:
        seen = self._seen
        seen.body += self._buffer
        self._buffer.clear()
        if self._command is Command.CHECK:
            # Nothing was asked for beside the score.
            seen.length = 0
        if len(seen.body) > (BODY_OCTETS if seen.length is None else seen.length):
            raise SpamdError("spamd's response is longer than it may be")
        if len(seen.body) == seen.length:
            self._finish()
        return False

    def _done(self) -> bool:
        if self._buffer:
            raise SpamdError("spamd's response is longer than it may be")
        return False

    def _finish(self) -> None:
        assert self._seen.verdict is not None  # the state BODY is not reached without it
        self.response = Response(*self._seen.verdict, bytes(self._seen.body))
        self._state = _State.DONE


_STEPS: Final[dict[_State, Callable[[ResponseReader], bool]]] = {
    _State.STATUS: ResponseReader._status,
    _State.FIELDS: ResponseReader._fields,
    _State.BODY: ResponseReader._body,
    _State.DONE: ResponseReader._done,
}
