"""What the transports that write into mailboxes share: names of files, the fields on top, and trouble with disks.

*RFCs*: 5321 section 4.4 (Return-Path).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from gateway.mail.address import Address, Sender
from gateway.mail.edit import render_field
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.transport.content import LineFeeds
from gateway.transport.transport import Delivery, Fault, Outcome, Result

_P = ParamSpec("_P")
_T = TypeVar("_T")

SMALL: Final = 1 << 20
"""Content up to this many octets is kept in memory as a whole; beyond it, block by block."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9._+-]|^\.")


class DiskError(Exception):
    """An OSError of a mailbox, told apart from one of the spool."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As `asyncio.to_thread`; cancelled, it waits until the function has ended, for that still uses its files."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))  # noqa: TID251 - awaited here
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


@contextlib.contextmanager
def of_the_disk() -> Iterator[None]:
    """Every OSError inside becomes a `DiskError`."""
    try:
        yield
    except OSError as error:
        raise DiskError(error) from error


def trouble(error: OSError, what: str) -> Outcome:
    """The deferral that follows from an error of the disk: 4.2.2 when there is no room, else 4.3.0."""
    if error.errno in _NO_ROOM:
        reply = Reply(452, "2.2", f"no room in the {what}")
    else:
        reply = Reply(451, "3.0", f"{what}: {error.strerror or error}")
    return Outcome(Result.DEFERRED, reply, fault=Fault.OURS)


def safe_name(text: str) -> str:
    """`text` as one path component: percent-encoded outside of letters, digits and ``._+-``, with no dot in front."""
    return _UNSAFE.sub(lambda m: b"%%%02X" % ord(m[0]), text.encode()).decode("ascii")


def mailbox_path(template: str, address: Address, hostname: str) -> Path:
    """`template` with ``{local}`` and ``{domain}`` put in, in lower case; a bare ``postmaster`` is at `hostname`."""
    path = template.replace("{domain}", safe_name(address.ascii_domain or hostname))
    return Path(path.replace("{local}", safe_name(address.local.lower())))


def return_path(sender: Sender) -> bytes:
    """The field with its CRLF."""
    return render_field("Return-Path", f"<{sender}>")


def delivered_to(address: Address) -> bytes:
    """The field with its CRLF."""
    return render_field("Delivered-To", str(address))


def head(delivery: Delivery, address: Address) -> bytes:
    """What stands above the message in a mailbox, with LF."""
    return (return_path(delivery.sender) + delivered_to(address)).replace(b"\r\n", b"\n")


def from_line(sender: Sender, asctime: str) -> bytes:
    """The line that separates messages in an mbox; `asctime` is the time in UTC as ``asctime`` writes it."""
    name = re.sub(r"\s", "-", str(sender)) or "MAILER-DAEMON"
    return f"From {name} {asctime}\n".encode()


def scratch(size: int) -> io.FileIO:
    """A file without a name, for a message of about `size` octets: in memory for a small one."""
    if size <= SMALL:
        return io.FileIO(os.memfd_create("message", os.MFD_CLOEXEC), "r+")
    with tempfile.TemporaryFile(buffering=0) as file:
        return io.FileIO(os.dup(file.fileno()), "r+")


async def unix_lines(content: Content) -> bytes:
    """All octets of a small content, with LF."""
    lines = LineFeeds()
    return b"".join([lines.feed(block) async for block in content.blocks()]) + lines.end()


def make_directories(*folders: Path) -> None:
    """Create what is missing of each and of the way to it, mode 0700, and sync every directory that changed."""
    for folder in folders:
        missing = [path for path in [folder, *folder.parents] if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was created or renamed in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int = -1) -> None:
    """Write all of `data`, from `offset` of the file or, without one, where it stands."""
    view = memoryview(data)
    while view:
        if offset < 0:
            written = os.write(fd, view)
        else:
            written = os.pwrite(fd, view, offset)
            offset += written
        view = view[written:]
