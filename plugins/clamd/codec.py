"""clamd's INSTREAM command, octets only: what is sent for a message, and what the reply means.

With the prefix ``z`` command and reply end in NUL. The message comes in chunks, each behind its length in four octets;
a length of zero ends it. clamd may answer before that, when the stream is longer than it takes. Source: clamd(8).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

CHUNK_OCTETS: Final = 1 << 16
REPLY_OCTETS: Final = 4096

_LENGTH: Final = struct.Struct(">I")
_FOUND: Final = re.compile(r"stream: ([\x21-\x7e]{1,500}?)(?:\([0-9a-f]{32,64}:[0-9]{1,20}\))? FOUND\Z")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+\Z")
_TOO_LARGE: Final = "INSTREAM size limit exceeded. ERROR"


class ClamdError(OSError):
    """clamd answered nonsense, or that it could not do it."""


class Outcome(StrEnum):
    """What a reply says."""

    CLEAN = "clean"
    FOUND = "found"
    TOO_LARGE = "too-large"
    """The stream was longer than clamd's StreamMaxLength; nothing was scanned."""
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Reply:
    """clamd's answer; `text` is the signature's name where something was found, and clamd's words for an error."""

    outcome: Outcome
    text: str = ""


class _State(Enum):
    FRESH = 0
    STREAMING = 1
    SENT = 2


class _Step(Enum):
    BEGIN = 0
    CHUNKS = 1
    END = 2


_NEXT: Final = {
    (_State.FRESH, _Step.BEGIN): _State.STREAMING,
    (_State.STREAMING, _Step.CHUNKS): _State.STREAMING,
    (_State.STREAMING, _Step.END): _State.SENT,
}


class Instream:
    """One exchange. What is to be sent comes from `begin`, `chunks` and `end`; what comes back goes to `receive`.

    After `reply` is there, nothing more needs to be sent.
    """

    def __init__(self) -> None:
        self._state = _State.FRESH
        self._received = bytearray()
        self.reply: Reply | None = None

    def begin(self) -> bytes:
        """The command."""
        self._step(_Step.BEGIN)
        return b"zINSTREAM\0"

    def chunks(self, block: bytes) -> Iterator[bytes]:
        """The block's octets in chunks, each ready to be sent."""
        self._step(_Step.CHUNKS)
        for at in range(0, len(block), CHUNK_OCTETS):
            chunk = block[at : at + CHUNK_OCTETS]
            yield _LENGTH.pack(len(chunk)) + chunk

    def end(self) -> bytes:
        """What says that this was all."""
        self._step(_Step.END)
        return _LENGTH.pack(0)

    def receive(self, data: bytes) -> None:
        """Octets from clamd. Raises ClamdError for what is no reply."""
        if self.reply is not None:
            raise ClamdError("clamd said more than one reply")
        self._received += data
        end = self._received.find(0)
        if end < 0 and len(self._received) <= REPLY_OCTETS:
            return
        if not 0 <= end <= REPLY_OCTETS:
            raise ClamdError(f"clamd's reply is longer than {REPLY_OCTETS} octets")
        if end + 1 < len(self._received):
            raise ClamdError("clamd said more than one reply")
        self.reply = read_reply(bytes(self._received[:end]))

    def closed(self) -> None:
        """clamd has closed the connection. Raises ConnectionError when it owes the reply."""
        if self.reply is None:
            cut = " in the midst of its reply" if self._received else " without a reply"
            raise ConnectionError(f"clamd closed the connection{cut}")

    def _step(self, step: _Step) -> None:
        after = _NEXT.get((self._state, step))
        if after is None:
            raise RuntimeError(f"{step.name} when {self._state.name}")
        self._state = after


def read_reply(line: bytes) -> Reply:
    """A reply without its NUL. Raises ClamdError for what is none."""
    text = line.decode("latin-1")
    if not _PRINTABLE.match(text):
        raise ClamdError(f"clamd answered garbage: {line[:80]!r}")
    if text == "stream: OK":
        return Reply(Outcome.CLEAN)
    if match := _FOUND.match(text):
        return Reply(Outcome.FOUND, match[1])
    if text == _TOO_LARGE:
        return Reply(Outcome.TOO_LARGE, text)
    if text.endswith(" ERROR") or text == "UNKNOWN COMMAND":
        return Reply(Outcome.ERROR, text)
    raise ClamdError(f"clamd answered garbage: {line[:80]!r}")
