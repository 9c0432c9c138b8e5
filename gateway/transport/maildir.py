"""The Maildir transport: one file per recipient, written durably, within the Maildir's quota.

*Promises*: a recipient is delivered only when the file is synced, stands in ``new/``, and ``new/`` is synced. A crash
before that leaves at most a file in ``tmp/``, which no reader looks at.

*Fails by*: deferrals with `Fault.OURS`: 4.2.2 when there is no room on the disk, else 4.3.0. A full mailbox is 4.2.2
or 5.2.2, by option.

*RFCs*: 5321 section 4.4 (Return-Path), 3463 section 3.3 (mailbox full).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from pathlib import Path
from typing import Final

from gateway.mail.address import Address
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.ops import log
from gateway.sdk.services import Clock
from gateway.transport.content import LineFeeds
from gateway.transport.options import MaildirOptions, OverQuota
from gateway.transport.quota import MaildirQuota, Quota
from gateway.transport.storage import (
    SMALL,
    DiskError,
    head,
    in_thread,
    mailbox_path,
    make_directories,
    of_the_disk,
    sync_directory,
    trouble,
    unix_lines,
    write_all,
)
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result, keeping

_log = log.get()
_STORED: Final = Outcome(Result.DELIVERED, Reply(250, "0.0", "stored"))
_FULL: Final = {
    OverQuota.DEFER: Outcome(Result.DEFERRED, Reply(452, "2.2", "mailbox full"), fault=Fault.PEER),
    OverQuota.FAIL: Outcome(Result.FAILED, Reply(552, "2.2", "mailbox full"), fault=Fault.PEER),
}
_WHAT: Final = "Maildir"
_HOST: Final = 150
_count = itertools.count()


class MaildirTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.MAILDIR`.

    The destination's path may hold ``{local}`` and ``{domain}``, both in lower case. Line ends are stored as LF.
    """

    def __init__(self, destination: Destination, hostname: str, clock: Clock) -> None:
        options = destination.options
        self._options = options if isinstance(options, MaildirOptions) else MaildirOptions()
        self._quota = Quota(self._options.quota, self._options.quota_messages)
        self._path = destination.path
        self._hostname = hostname
        self._clock = clock

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once; see `gateway.transport.transport.Transport`."""
        addresses = [recipient.address for recipient in delivery.recipients]
        if delivery.content.size > SMALL:
            outcomes: list[Outcome] = []
            with keeping(outcomes):
                for address in addresses:
                    outcomes.append(await self._stream(delivery, address))
            return outcomes
        body = await unix_lines(delivery.content)
        jobs = [(self._file(address), head(delivery, address)) for address in addresses]
        return await in_thread(self._store_all, jobs, body)

    async def close(self) -> None:
        """Nothing is open."""

    def _file(self, address: Address) -> _File:
        folder = mailbox_path(self._path, address, self._hostname)
        now = self._clock.now()
        return _File(folder, self._name(now), MaildirQuota(folder, self._quota), now)

    def _name(self, now: float) -> str:
        """A name that no other delivery on this disk has: time, process, counter and chance."""
        # A part of a long name will do: a file's has 255 octets.
        host = self._hostname.replace("/", "\\057").replace(":", "\\072")[:_HOST]
        return f"{int(now)}.M{int(now % 1 * 1e6)}P{os.getpid()}Q{next(_count)}R{secrets.token_hex(4)}.{host}"

    async def _stream(self, delivery: Delivery, address: Address) -> Outcome:
        """A content too large for memory: the disk work of each block in a thread."""
        file = self._file(address)
        top = head(delivery, address)
        try:
            # With CRLF it is a little larger than it will be.
            if not await in_thread(file.open, len(top) + delivery.content.size):
                return _FULL[self._options.over_quota]
            await in_thread(file.write, top)
            await _copy(delivery.content, file)
            await in_thread(file.commit)
        except DiskError as error:
            return trouble(error.cause, _WHAT)
        finally:
            await in_thread(file.discard)
        return _STORED

    def _store_all(self, jobs: list[tuple[_File, bytes]], body: bytes) -> list[Outcome]:
        return [self._store(file, top + body) for file, top in jobs]

    def _store(self, file: _File, data: bytes) -> Outcome:
        try:
            if not file.open(len(data)):
                return _FULL[self._options.over_quota]
            file.write(data)
            file.commit()
        except DiskError as error:
            return trouble(error.cause, _WHAT)
        finally:
            file.discard()
        return _STORED


async def _copy(content: Content, file: _File) -> None:
    lines = LineFeeds()
    async for block in content.blocks():
        await in_thread(file.write, lines.feed(block))
    await in_thread(file.write, lines.end())


class _File:
    """One message file on its way through ``tmp/`` to ``new/``. All methods block; the first failure raises."""

    def __init__(self, folder: Path, name: str, quota: MaildirQuota, now: float) -> None:
        self._folder = folder
        self._name = name
        self._tmp = folder / "tmp" / name
        self._quota = quota
        self._now = now
        self._size = 0
        self._fd = -1
        self._left = False

    def open(self, size: int) -> bool:
        """Begin a message of `size` octets; False when that is over the quota."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with of_the_disk():
            try:
                self._fd = os.open(self._tmp, flags, 0o600)
            except FileNotFoundError:
                _make_maildir(self._folder)
                self._fd = os.open(self._tmp, flags, 0o600)
            self._left = True
            return self._quota.admits(size, f"{self._name}.size", self._now)

    def write(self, data: bytes) -> None:
        self._size += len(data)
        with of_the_disk():
            write_all(self._fd, data)

    def commit(self) -> None:
        """Sync the file, move it into ``new/`` and sync that. Its name tells its size, as Maildir++ wants it."""
        new = self._folder / "new" / f"{self._name},S={self._size}"
        with of_the_disk():
            os.fsync(self._fd)
            try:
                os.rename(self._tmp, new)
            except FileNotFoundError:
                _make_maildir(self._folder)
                os.rename(self._tmp, new)
            self._left = False
            sync_directory(new.parent)
        try:
            self._quota.added(self._size)
        except OSError as error:
            # It is delivered. The numbers are counted anew before they can keep anything out.
            _log.warning("maildir.quota_not_noted", path=str(self._folder), error=str(error))

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


def _make_maildir(folder: Path) -> None:
    make_directories(folder, folder / "tmp", folder / "new", folder / "cur")
