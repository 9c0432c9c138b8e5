"""The quota of a Maildir, kept as Maildir++ keeps it: in the file ``maildirsize``, which all who deliver append to.

The first line is the quota (``1000000S,100C``: octets and messages), every other line what was added or taken away.
Nobody locks it: a few messages too many may get in, and the numbers are counted anew from the files whenever they say
that a mailbox is full, or when the file has grown too long.

*Fails by*: OSError. All of it blocks.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.transport.storage import sync_directory, write_all

FILE: Final = "maildirsize"
LONGEST: Final = 5120
"""From this size on the file is not read but written anew."""
FRESH: Final = 900.0
"""Seconds that numbers which were just counted are believed when they say that a mailbox is full."""

_LIMIT: Final = re.compile(rb"([0-9]{1,18})([SC])\Z")
_LINE: Final = re.compile(rb"[ \t]*(-?[0-9]{1,18})[ \t]+(-?[0-9]{1,18})[ \t]*\Z")
_SIZE: Final = re.compile(rb",S=([0-9]{1,18})(?=[:,]|\Z)")
_TRASHED: Final = re.compile(rb":2,[A-Za-z]*T")
_TRASH: Final = b".Trash"


@dataclass(frozen=True, slots=True)
class Quota:
    """Octets and messages; 0 is no limit."""

    octets: int = 0
    messages: int = 0

    def __bool__(self) -> bool:
        return bool(self.octets or self.messages)

    def __str__(self) -> str:
        limits = ((self.octets, "S"), (self.messages, "C"))
        return ",".join(f"{limit}{letter}" for limit, letter in limits if limit)

    def holds(self, usage: Usage) -> bool:
        """Whether a mailbox with this in it is within the quota."""
        too_large = self.octets and usage.octets > self.octets
        return not too_large and not (self.messages and usage.messages > self.messages)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is in a mailbox."""

    octets: int = 0
    messages: int = 0

    def plus(self, octets: int) -> Usage:
        """With one message more."""
        return Usage(self.octets + octets, self.messages + 1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """A ``maildirsize`` that was read. `counted` says that its numbers were just counted: it has a single one."""

    quota: Quota
    usage: Usage
    counted: bool


def parse(data: bytes) -> Sizes | None:
    """Read the file's octets; None when they are no ``maildirsize`` or too many."""
    if len(data) >= LONGEST or not data.endswith(b"\n"):
        return None
    first, *lines = data[:-1].split(b"\n")
    limits = {}
    for part in first.strip().split(b",") if first.strip() else []:
        match = _LIMIT.match(part)
        if not match:
            return None
        limits[match[2]] = int(match[1])
    octets = messages = 0
    for line in lines:
        match = _LINE.match(line)
        if not match:
            return None
        octets += int(match[1])
        messages += int(match[2])
    return Sizes(Quota(limits.get(b"S", 0), limits.get(b"C", 0)), Usage(octets, messages), len(lines) == 1)


class MaildirQuota:
    """The quota of one Maildir; with an empty `wanted`, the one that its own file names, if any."""

    def __init__(self, folder: Path, wanted: Quota) -> None:
        self._folder = folder
        self._file = folder / FILE
        self._wanted = wanted

    def admits(self, octets: int, name: str, now: float) -> bool:
        """Whether a message of that size is within the quota. `name` is one that no other file has, `now` the time."""
        data, age = self._read(now)
        sizes = parse(data)
        quota = self._wanted or (sizes.quota if sizes else Quota())
        if not quota:
            return True
        if sizes is None or sizes.quota != quota:
            return quota.holds(self._count(quota, name).plus(octets))
        if quota.holds(sizes.usage.plus(octets)):
            return True
        if sizes.counted and age < FRESH:
            return False
        return quota.holds(self._count(quota, name).plus(octets))

    def added(self, octets: int) -> None:
        """Note a message that was delivered, where a quota is kept."""
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            # One write of lines of a fixed width: appending at the same time mixes nothing up, on NFS neither.
            write_all(fd, f"{octets} 1".ljust(13).encode() + b"\n")
        finally:
            os.close(fd)

    def _read(self, now: float) -> tuple[bytes, float]:
        """The file, at most `LONGEST` octets of it, and its age in seconds."""
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return b"", 0.0
        try:
            return os.read(fd, LONGEST), now - os.fstat(fd).st_mtime
        finally:
            os.close(fd)

    def _count(self, quota: Quota, name: str) -> Usage:
        """Count what is there and write the file anew, unless the mailbox changed meanwhile."""
        before = self._changed()
        usage = Usage()
        for folder in self._folders():
            for size in _sizes(folder):
                usage = usage.plus(size)
        data = f"{quota}\n".encode() + f"{usage.octets} {usage.messages}".ljust(13).encode() + b"\n"
        made = self._folder / "tmp" / name
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data)
            os.fsync(fd)
            os.rename(made, self._file)
        except OSError:
            with contextlib.suppress(OSError):
                made.unlink()
            raise
        finally:
            os.close(fd)
        sync_directory(self._folder)
        if self._changed() > before:
            with contextlib.suppress(FileNotFoundError):
                self._file.unlink()
        return usage

    def _changed(self) -> int:
        """When a message last came or went, in nanoseconds."""
        return max((os.stat(folder).st_mtime_ns for folder in self._folders()), default=0)

    def _folders(self) -> Iterator[bytes]:
        root = os.fsencode(self._folder)
        with os.scandir(root) as entries:
            names = [e.name for e in entries if e.name.startswith(b".") and e.name != _TRASH]
        for name in [b"", *names]:
            for part in (b"new", b"cur"):
                folder = os.path.join(root, name, part)
                if os.path.isdir(folder):
                    yield folder


def _sizes(folder: bytes) -> Iterator[int]:
    """Sizes of the messages in ``new`` or ``cur``, without those that are marked as deleted."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b".") or _TRASHED.search(entry.name):
                continue
            if match := _SIZE.search(entry.name):
                yield int(match[1])
                continue
            # It may have been moved or removed since.
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield status.st_size
