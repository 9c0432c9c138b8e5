"""A message while a milter hears of it: header fields and body chunks, the body in memory at first and then in a file.

Written by libmilter's threads, read by the event loop.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from typing import IO, Final

from gateway.mail.message import HeaderField

SPILL: Final = 256 << 10
_BLOCK: Final = 256 << 10


class TooBig(Exception):
    """The header section or the message is larger than is allowed."""


class MailBuffer:
    """A message's octets as they come, at most `limit`; beyond 256 KiB the body is in a file without a name.

    Implements `gateway.mail.message.Content`. `fields` are the header section's; `add_field` and `add_body` raise
    `TooBig`, and OSError when the disk has no room. To be closed by whoever made it.
    """

    def __init__(self, limit: int, header_limit: int) -> None:
        self.fields: list[HeaderField] = []
        self._limit = limit
        self._header_limit = header_limit
        self._head_size = 0
        self._size = 0
        self._eight_bit = False
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        # The empty line that ends the header section counts.
        return self._head_size + 2 + self._size

    @property
    def eight_bit(self) -> bool:
        return self._eight_bit

    def add_field(self, name: str, value: bytes, *, lead: bytes) -> None:
        """One header field, in the order of the message. Line feeds in the value are folds."""
        octets = value.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
        raw = name.encode("ascii", "replace") + b":" + lead + octets + b"\r\n"
        if self._head_size + len(raw) > self._header_limit:
            raise TooBig("header section is too big")
        self._head_size += len(raw)
        self._eight_bit = self._eight_bit or not raw.isascii()
        self.fields.append(HeaderField(name, raw))

    def add_body(self, chunk: bytes) -> None:
        """The next octets of the body."""
        if self.size + len(chunk) > self._limit:
            raise TooBig("message is too big")
        with self._lock:
            if self._closed:
                return
            self._eight_bit = self._eight_bit or not chunk.isascii()
            self._size += len(chunk)
            self._memory += chunk
            if len(self._memory) > SPILL:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="gatepost-milter-", buffering=0)
                view = memoryview(self._memory)
                while view:
                    view = view[self._file.write(view) :]
                view.release()
                self._memory = bytearray()

    async def blocks(self) -> AsyncIterator[bytes]:
        yield b"".join(field.raw for field in self.fields) + b"\r\n"
        if self._file is not None:
            at = 0
            while block := await asyncio.to_thread(self._read, at):
                yield block
                at += len(block)
        for start in range(0, len(self._memory), _BLOCK):
            yield bytes(self._memory[start : start + _BLOCK])

    def _read(self, at: int) -> bytes:
        with self._lock:
            if self._closed or self._file is None:
                raise OSError("the message is gone")
            return os.pread(self._file.fileno(), _BLOCK, at)

    def close(self) -> None:
        """Give memory and file back."""
        with self._lock:
            self._closed = True
            self._memory = bytearray()
            if self._file is not None:
                self._file.close()
                self._file = None
