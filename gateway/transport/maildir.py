"""The Maildir transport: one file per recipient, written durably.

*Promises*: a recipient is delivered only when the file is synced, stands in ``new/``, and ``new/`` is synced. A crash
before that leaves at most a file in ``tmp/``, which no reader looks at.

*Fails by*: deferrals with `Fault.OURS`: 4.2.2 when there is no room, else 4.3.0.

*RFCs*: 5321 section 4.4 (Return-Path).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import re
import secrets
from pathlib import Path
from typing import Final

from gateway.mail.address import Address
from gateway.mail.edit import render_field
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.sdk.services import Clock
from gateway.transport.content import LineFeeds, whole
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result

SMALL: Final = 1 << 20
"""Content up to this many octets is written in one go for all recipients; beyond it, block by block."""

_STORED: Final = Outcome(Result.DELIVERED, Reply(250, "0.0", "stored"))
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9._+-]|^\.")
_count = itertools.count()


class MaildirTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.MAILDIR`.

    The destination's path may hold ``{local}`` and ``{domain}``, both in lower case. Line ends are stored as LF.
    """

    def __init__(self, destination: Destination, hostname: str, clock: Clock) -> None:
        self._path = destination.path
        self._hostname = hostname
        self._clock = clock

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once; see `gateway.transport.transport.Transport`."""
        if delivery.content.size > SMALL:
            return [await self._stream(delivery, r.address) for r in delivery.recipients]
        body = (await whole(delivery.content)).replace(b"\r\n", b"\n")
        jobs = [(self._folder(r.address), self._name(), _head(delivery, r.address)) for r in delivery.recipients]
        return await asyncio.to_thread(_store_all, jobs, body)

    async def close(self) -> None:
        """Nothing is open."""

    def _folder(self, address: Address) -> Path:
        domain = address.ascii_domain or self._hostname
        path = self._path.replace("{domain}", safe_name(domain))
        return Path(path.replace("{local}", safe_name(address.local.lower())))

    def _name(self) -> str:
        """A name that no other delivery on this disk has: time, process, counter and chance."""
        now = self._clock.now()
        host = self._hostname.replace("/", "\\057").replace(":", "\\072")
        return f"{int(now)}.M{int(now % 1 * 1e6)}P{os.getpid()}Q{next(_count)}R{secrets.token_hex(4)}.{host}"

    async def _stream(self, delivery: Delivery, address: Address) -> Outcome:
        """A content too large for memory: the disk work of each block in a thread."""
        file = _File(self._folder(address), self._name())
        try:
            await asyncio.to_thread(file.open)
            await asyncio.to_thread(file.write, _head(delivery, address))
            await _copy(delivery.content, file)
            await asyncio.to_thread(file.commit)
        except _DiskError as error:
            return _trouble(error.cause)
        finally:
            await asyncio.to_thread(file.discard)
        return _STORED


async def _copy(content: Content, file: _File) -> None:
    lines = LineFeeds()
    async for block in content.blocks():
        await asyncio.to_thread(file.write, lines.feed(block))
    await asyncio.to_thread(file.write, lines.end())


def safe_name(text: str) -> str:
    """`text` as one path component: percent-encoded outside of letters, digits and ``._+-``, with no dot in front."""
    return _UNSAFE.sub(lambda m: b"%%%02X" % ord(m[0]), text.encode()).decode("ascii")


def _head(delivery: Delivery, address: Address) -> bytes:
    fields = render_field("Return-Path", f"<{delivery.sender}>") + render_field("Delivered-To", str(address))
    return fields.replace(b"\r\n", b"\n")


class _DiskError(Exception):
    """An OSError of the Maildir, told apart from one of the spool."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _File:
    """One message file on its way through ``tmp/`` to ``new/``. All methods block; the first failure raises."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._tmp = folder / "tmp" / name
        self._new = folder / "new" / name
        self._fd = -1
        self._left = False

    def open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            try:
                self._fd = os.open(self._tmp, flags, 0o600)
            except FileNotFoundError:
                _make_maildir(self._folder)
                self._fd = os.open(self._tmp, flags, 0o600)
            self._left = True
        except OSError as error:
            raise _DiskError(error) from error

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _DiskError(error) from error

    def commit(self) -> None:
        """Sync the file, move it into ``new/`` and sync that."""
        try:
            os.fsync(self._fd)
            try:
                os.rename(self._tmp, self._new)
            except FileNotFoundError:
                _make_maildir(self._folder)
                os.rename(self._tmp, self._new)
            self._left = False
            _sync_directory(self._new.parent)
        except OSError as error:
            raise _DiskError(error) from error

    def discard(self) -> None:
        """Close, and remove what was not committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._left:
            self._left = False
            # What stays in tmp/ does no harm, and why it had to go is reported already.
            with contextlib.suppress(OSError):
                self._tmp.unlink()


def _store_all(jobs: list[tuple[Path, str, bytes]], body: bytes) -> list[Outcome]:
    return [_store(folder, name, head + body) for folder, name, head in jobs]


def _store(folder: Path, name: str, data: bytes) -> Outcome:
    file = _File(folder, name)
    try:
        file.open()
        file.write(data)
        file.commit()
    except _DiskError as error:
        return _trouble(error.cause)
    finally:
        file.discard()
    return _STORED


def _trouble(error: OSError) -> Outcome:
    if error.errno in _NO_ROOM:
        reply = Reply(452, "2.2", "no room in the Maildir")
    else:
        reply = Reply(451, "3.0", f"Maildir: {error.strerror or error}")
    return Outcome(Result.DEFERRED, reply, fault=Fault.OURS)


def _make_maildir(folder: Path) -> None:
    """Create what is missing of a Maildir, the way to it included, mode 0700, and sync every directory that changed."""
    missing = [p for p in [folder, *folder.parents] if not p.exists()]
    for path in [*reversed(missing), folder / "tmp", folder / "new", folder / "cur"]:
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
