"""A small disk of its own for a test."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.process import binary
from tests.support.servers import require_root


@contextlib.contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """Mount one at ``disk`` below `directory`, with these options of tmpfs."""
    require_root("mounting a small disk")
    mount = directory / "disk"
    mount.mkdir()
    subprocess.run([binary("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run([binary("umount"), "--lazy", str(mount)], check=True)


def read_only(mount: Path, *, on: bool) -> None:
    """Make it read-only, or writable again."""
    subprocess.run([binary("mount"), "-o", f"remount,{'ro' if on else 'rw'}", str(mount)], check=True)


def free(path: Path) -> int:
    """Octets that are left."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
