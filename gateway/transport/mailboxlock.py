"""Locks on an mbox: an fcntl lock on the file, and a dotlock beside it. Who keeps to either is kept out.

The fcntl lock is taken first, and neither is waited for while the other is held, so that nobody waits in a circle
(Debian Policy section 11.6). It belongs to the open file and not to the process, so it also keeps out other
deliveries of ours. The dotlock says where in the mailbox its holder is writing. Since whoever of us holds a dotlock
holds the fcntl lock too, one of ours that is found under that lock was left by a process that was killed; the half
message that it wrote is taken away then. Any other dotlock counts as left behind when it is older than some minutes.

*Fails by*: OSError. All of it blocks, though never for another's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
from pathlib import Path
from typing import Final

from gateway.ops import log
from gateway.transport.storage import make_directories, sync_directory, write_all

_log = log.get()

_FLOCK: Final = struct.Struct("hhqqi0q")
"""struct flock of Linux: type, whence, start, length, pid."""
_NOTE: Final = re.compile(rb"[0-9]{1,10}\ngatepost (\S{1,255})(?: ([0-9]{1,18}) ([0-9]{1,18}))?\n\Z")
_NOTE_OCTETS: Final = 512
_SEPARATOR: Final = 2
"""Octets that may stand between the end of the mailbox and a new message, at most."""


class Mailbox:
    """An mbox that is open and locked. `fd` is for reading and writing, `size` its size in octets when it was locked.

    `end` is the size that it has at most since its holder began to write.
    """

    def __init__(self, fd: int, dotlock: Path) -> None:
        self.fd = fd
        self.size = self.end = os.fstat(fd).st_size
        self._dotlock = dotlock

    @classmethod
    def lock(cls, path: Path, now: float, stale: float) -> Mailbox | None:
        """Open and lock it, creating it if need be; None when somebody else has it now.

        A dotlock older than `stale` seconds at the time `now` is broken.
        """
        fd = _open(path)
        try:
            if not _lock_file(fd) or not _is_still(path, fd):
                os.close(fd)
                return None
            dotlock = path.with_name(path.name + ".lock")
            if not _make_dotlock(dotlock) and not (_break(dotlock, fd, now, stale) and _make_dotlock(dotlock)):
                os.close(fd)
                return None
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        return cls(fd, dotlock)

    def note(self, start: int) -> None:
        """Tell whoever finds our dotlock after us that we write from `start`, and that the rest ends at `size`."""
        fd = os.open(self._dotlock, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write_all(fd, _text(f" {self.size} {start}"))
        finally:
            os.close(fd)

    def keep(self) -> None:
        """Make the dotlock look new, in the middle of a long delivery."""
        os.utime(self._dotlock, follow_symlinks=False)

    def release(self) -> None:
        """Give up both locks. A dotlock that cannot be removed is one that we left behind."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._dotlock.unlink()
        except OSError as error:
            _log.warning("mbox.lock_left", path=str(self._dotlock), error=str(error))
        finally:
            os.close(self.fd)

    def abandon(self) -> None:
        """Give up the mailbox with a half message in it: the dotlock stays, and whoever breaks it takes that away."""
        os.close(self.fd)


def _open(path: Path) -> int:
    """The mbox, made if need be. A link, a device or a pipe in its place is refused."""
    # Opened without waiting, in case it is a named pipe.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    made = False
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        make_directories(path.parent)
        made = True
        fd = os.open(path, flags | os.O_CREAT, 0o600)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise OSError("it is no plain file, or has several names")
    if made:
        sync_directory(path.parent)
    return fd


def _lock_file(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_still(path: Path, fd: int) -> bool:
    """Whether the file that was locked is the mailbox still: a reader may have put another in its place."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _make_dotlock(dotlock: Path) -> bool:
    try:
        fd = os.open(dotlock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    try:
        write_all(fd, _text())
    except OSError:
        with contextlib.suppress(OSError):
            dotlock.unlink()
        raise
    finally:
        os.close(fd)
    return True


def _text(where: str = "") -> bytes:
    # Programs that understand the first line look whether the process is alive.
    return f"{os.getpid()}\ngatepost {os.uname().nodename}{where}\n".encode()


def _break(dotlock: Path, fd: int, now: float, stale: float) -> bool:
    """Remove a dotlock that was left behind; False when it has to be kept to. `fd` is the mbox, under its lock."""
    try:
        lock = os.open(dotlock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        found = os.fstat(lock)
        # In a directory like /var/mail anybody may make files; what they say is none of our notes.
        note = _NOTE.match(os.read(lock, _NOTE_OCTETS)) if found.st_uid == os.geteuid() else None
    finally:
        os.close(lock)
    ours = note is not None and note[1].decode("ascii", "replace") == os.uname().nodename
    if not ours and now - found.st_mtime < stale:
        return False
    try:
        if not os.path.samestat(os.stat(dotlock, follow_symlinks=False), found):
            return False
    except FileNotFoundError:
        return True
    if note and note[2]:
        _take_away(fd, int(note[2]), int(note[3]), str(dotlock))
    _log.warning("mbox.lock_broken", path=str(dotlock), age=round(now - found.st_mtime))
    with contextlib.suppress(FileNotFoundError):
        dotlock.unlink()
    return True


def _take_away(fd: int, size: int, start: int, path: str) -> None:
    """Cut off a message that was never completed: the first octet of its ``From`` is missing."""
    is_now = os.fstat(fd).st_size
    if size <= start <= size + _SEPARATOR and size < is_now and b"\0rom ".startswith(os.pread(fd, 5, start)):
        os.ftruncate(fd, size)
        os.fsync(fd)
        _log.warning("mbox.half_message_removed", path=path, octets=is_now - size)
