"""The Postfix policy protocol as octets: a request goes out, a reply comes in. No I/O.

Both are lines ``name=value``, and an empty line ends them. A reply is read as Postfix reads it: the first ``action``
counts, attributes that nobody knows are skipped, and a line without ``=`` or with octets that are no UTF-8 makes it
worthless. So do an attribute list without an action, octets behind the empty line, and a reply that is too long.

*Promises*: no value breaks out of its line, whatever a client sent; what is kept of a reply is bounded.
*Source*: Postfix, SMTPD_POLICY_README.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

VALUE_OCTETS: Final = 4096
"""What is longer is cut: no value that SMTP lets a client send comes near it."""

_BREAKING: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What ends a line to somebody, a terminal obeys, or is no character."""


class CodecError(ValueError):
    """The octets are no reply of a policy server. ``str(error)`` says why."""


def encode(attributes: Iterable[tuple[str, str]]) -> bytes:
    """The octets of a request."""
    return b"".join(b"%s=%s\n" % (name.encode("ascii"), _value(value)) for name, value in attributes) + b"\n"


def _value(text: str) -> bytes:
    """The value as it may stand on a line: what could break out of it becomes a question mark."""
    octets = _BREAKING.sub("?", text).encode()
    if len(octets) <= VALUE_OCTETS:
        return octets
    return octets[:VALUE_OCTETS].decode("utf-8", "ignore").encode()


class State(StrEnum):
    """How far a reply has come."""

    EMPTY = "empty"
    """Nothing has come: the server may have closed the connection before it saw the request."""
    ATTRIBUTES = "attributes"
    NAMED = "named"
    """Its action has come, its end has not."""
    DONE = "done"


class ReplyReader:
    """Reads one reply of at most `limit` octets."""

    __slots__ = ("_buffer", "_left", "action", "state")

    def __init__(self, limit: int) -> None:
        self.state = State.EMPTY
        self.action = ""
        self._buffer = b""
        self._left = limit

    def feed(self, octets: bytes) -> bool:
        """Take what has come; says whether the reply is there, in `action`. Raises `CodecError`."""
        self._left -= len(octets)
        if self._left < 0:
            raise CodecError("the reply is too long")
        if octets and self.state is State.EMPTY:
            self.state = State.ATTRIBUTES
        *lines, self._buffer = (self._buffer + octets).split(b"\n")
        for line in lines:
            _STEPS[self.state](self, line)
        if self.state is State.DONE and self._buffer:
            raise CodecError("more came than one reply")
        return self.state is State.DONE

    def end(self) -> CodecError:
        """What it means that the server has closed the connection here."""
        if self.state is State.EMPTY:
            return CodecError("the connection was closed without a reply")
        return CodecError("the reply was cut off")

    def _attribute(self, line: bytes) -> None:
        if not line:
            raise CodecError("the reply names no action")
        name, value = _attribute(line)
        if name == "action":
            self.action = value
            self.state = State.NAMED

    def _skip(self, line: bytes) -> None:
        if line:
            _attribute(line)
        else:
            self.state = State.DONE

    def _too_much(self, line: bytes) -> None:
        raise CodecError("more came than one reply")


_STEPS: Final[dict[State, Callable[[ReplyReader, bytes], None]]] = {
    State.ATTRIBUTES: ReplyReader._attribute,
    State.NAMED: ReplyReader._skip,
    State.DONE: ReplyReader._too_much,
}
"""What a line means, by state. No line comes in state `EMPTY`, which ends with the first octet."""


def _attribute(line: bytes) -> tuple[str, str]:
    name, equals, value = line.partition(b"=")
    if not equals or not name:
        raise CodecError("a line of the reply is no attribute")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise CodecError("the reply is not UTF-8") from None
    text = text.replace("\t", " ")
    if _BREAKING.search(text):
        raise CodecError("the reply holds control characters")
    return name.decode("latin-1"), text.strip(" ")
