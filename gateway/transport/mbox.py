"""The mbox transport: each message is appended to a file, in the form that is called mboxrd.

The message is made ready first, so that the mailbox is locked for a short time only. It is written without the first
octet of its ``From`` line, which follows when all else is on the disk: until then no reader takes it for a message.

*Promises*: a recipient is delivered only when the whole message is synced. What cannot be written to its end is cut
off again, after a crash by whoever of us comes next.

*Fails by*: deferrals: 4.2.0 for a mailbox that others keep locked, 4.2.2 when there is no room, else 4.3.0.

*RFCs*: 5321 section 4.4 (Return-Path), 4155 (mbox; its line ends and quoting are left to the system).
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from gateway.mail.address import Address
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.ops import log
from gateway.sdk.services import Clock
from gateway.transport.content import FromQuoter, LineFeeds
from gateway.transport.mailboxlock import Mailbox
from gateway.transport.options import MboxOptions
from gateway.transport.storage import (
    SMALL,
    DiskError,
    from_line,
    head,
    in_thread,
    mailbox_path,
    of_the_disk,
    scratch,
    trouble,
    write_all,
)
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result

_log = log.get()
_STORED: Final = Outcome(Result.DELIVERED, Reply(250, "0.0", "stored"))
_LOCKED: Final = Outcome(Result.DEFERRED, Reply(451, "2.0", "the mailbox is locked"), fault=Fault.PEER)
_PAUSE: Final = 0.02
_PAUSE_MAX: Final = 1.0
_KEEP: Final = 30.0
"""Seconds after which the dotlock is made to look new."""


class MboxTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.MBOX`.

    The destination's path may hold ``{local}`` and ``{domain}``, both in lower case. Line ends are stored as LF.
    """

    def __init__(self, destination: Destination, hostname: str, clock: Clock) -> None:
        options = destination.options
        self._options = options if isinstance(options, MboxOptions) else MboxOptions()
        self._path = destination.path
        self._hostname = hostname
        self._clock = clock
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once; see `gateway.transport.transport.Transport`."""
        try:
            text = await _make_ready(delivery.content)
        except DiskError as error:
            return [trouble(error.cause, "directory for temporary files")] * len(delivery.recipients)
        try:
            return [await self._store(delivery, recipient.address, text) for recipient in delivery.recipients]
        finally:
            text.close()

    async def close(self) -> None:
        """Nothing is open."""

    async def _store(self, delivery: Delivery, address: Address, text: _Text) -> Outcome:
        path = mailbox_path(self._path, address, self._hostname)
        now = time.asctime(time.gmtime(self._clock.now()))
        top = from_line(delivery.sender, now) + head(delivery, address)
        # Our own deliveries into it wait in a row, so that none of them is passed over.
        turn = self._turns.setdefault(path, asyncio.Lock())
        try:
            async with asyncio.timeout(self._options.lock_timeout):
                await turn.acquire()
        except TimeoutError:
            return _LOCKED
        try:
            return await self._persist(path, top, text)
        except DiskError as error:
            return trouble(error.cause, "mailbox")
        finally:
            turn.release()

    async def _persist(self, path: Path, top: bytes, text: _Text) -> Outcome:
        """Try until it is ours, or until the time for that is over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.lock_timeout
        pause = _PAUSE
        while not await in_thread(self._append, path, top, text):
            if loop.time() + pause > until:
                return _LOCKED
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _PAUSE_MAX)
        return _STORED

    def _append(self, path: Path, top: bytes, text: _Text) -> bool:
        """Append the message; False when the mailbox is locked."""
        with of_the_disk():
            box = Mailbox.lock(path, self._clock.now(), self._options.stale_lock)
            if box is None:
                return False
            try:
                _write(box, top, text)
            except BaseException:
                _cut_off(box, path)
                raise
            box.release()
            return True


def _write(box: Mailbox, top: bytes, text: _Text) -> None:
    before = _separator(box)
    start = box.size + len(before)
    box.note(start)
    box.end = start + len(top)
    write_all(box.fd, before, box.size)
    write_all(box.fd, top[1:], start + 1)
    at = box.end
    kept = time.monotonic()
    for block in text.blocks():
        box.end = at + len(block)
        write_all(box.fd, block, at)
        at = box.end
        if time.monotonic() - kept > _KEEP:
            box.keep()
            kept = time.monotonic()
    os.fdatasync(box.fd)
    write_all(box.fd, top[:1], start)
    os.fsync(box.fd)


def _separator(box: Mailbox) -> bytes:
    """What is missing of the empty line in front of a ``From`` line."""
    if not box.size:
        return b""
    end = os.pread(box.fd, 2, max(box.size - 2, 0))
    if end == b"\n\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


def _cut_off(box: Mailbox, path: Path) -> None:
    """Put the mailbox back as it was, unless somebody wrote behind us who does not care for locks."""
    try:
        if os.fstat(box.fd).st_size > box.end:
            raise OSError("others wrote into it meanwhile")
        os.ftruncate(box.fd, box.size)
        os.fsync(box.fd)
    except OSError as error:
        _log.error("mbox.not_truncated", path=str(path), error=str(error))
        box.abandon()
    else:
        box.release()


class _Text:
    """A message as it is stored, without what stands above it: in memory or in a file without a name."""

    def __init__(self, data: bytes = b"", file: io.FileIO | None = None) -> None:
        self._data = data
        self._file = file

    def blocks(self) -> Iterator[bytes]:
        """Its octets; may be asked for again."""
        if self._file is None:
            yield self._data
            return
        at = 0
        while block := os.pread(self._file.fileno(), SMALL, at):
            yield block
            at += len(block)

    def close(self) -> None:
        """Give back the file, if any."""
        if self._file is not None:
            self._file.close()


async def _make_ready(content: Content) -> _Text:
    """Line ends as LF, lines quoted, an empty line at the end. Raises `DiskError`."""
    if content.size <= SMALL:
        return _Text(b"".join([part async for part in _parts(content)]))
    with of_the_disk():
        file = await in_thread(scratch, content.size)
    try:
        async for part in _parts(content):
            with of_the_disk():
                await in_thread(write_all, file.fileno(), part)
    except BaseException:
        file.close()
        raise
    return _Text(file=file)


async def _parts(content: Content) -> AsyncIterator[bytes]:
    lines, quoter = LineFeeds(), FromQuoter()
    last = b""
    async for block in content.blocks():
        part = quoter.feed(lines.feed(block))
        last = part[-1:] or last
        yield part
    rest = quoter.feed(lines.end()) + quoter.end()
    yield rest + (b"\n" if (rest[-1:] or last) == b"\n" else b"\n\n")
