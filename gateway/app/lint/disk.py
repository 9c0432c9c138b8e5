"""What kind of file system a path is on, and how large that is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mounts")
MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system. `kind` is empty where the system does not say; `size` in octets."""

    kind: str
    size: int

    @property
    def in_memory(self) -> bool:
        return self.kind in MEMORY


def disk_of(path: str, mounts: Path = MOUNTS) -> Disk:
    """The file system that a path is on, or will be on once it is made. Raises OSError."""
    there = Path(os.path.realpath(path))
    while not there.exists() and there != there.parent:
        there = there.parent
    found = os.statvfs(there)
    return Disk(_kind(there, mounts), found.f_blocks * found.f_frsize)


def _kind(path: Path, mounts: Path) -> str:
    """The type of the mount that is nearest above the path; of several at one place, the last one covers the others."""
    best, kind = -1, ""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        return ""
    for line in lines:
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = Path(_unescaped(parts[1]))
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), parts[2]
    return kind


def _unescaped(text: str) -> str:
    """proc_mounts(5) writes blanks, tabs, line feeds and backslashes in octal."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, character)
    return text
