"""A disk whose power can be cut: what was not synced by then is gone. It can fail, too.

A file is served as a block device by nbdkit and nbdfuse, and mounted over a loop device. nbdkit's cache is the write
cache of a drive: what it took reaches the file when the kernel orders a flush, and not before. Killing nbdkit is the
power cut: what only the kernel's memory or that cache holds is lost, and what an unclean end means to the file system
is put in order at the next mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.support.process import Process, alive, binary, children, new_directory, wait_until
from tests.support.servers import require_root

SIZE = 256 << 20


class Disk:
    """Mounted at `path` from the start. `journal`: ext4 as usual, or without its journal.

    Without it nothing is synced by chance together with something else, so a missing sync shows. But then a cut must
    find the file system at rest: what is half changed costs e2fsck synced data, too.
    """

    def __init__(self, *, journal: bool = True) -> None:
        require_root("mounting a disk")
        self._journal = journal
        self._home = new_directory("disk")
        self._image, self._device = self._home / "image", self._home / "device"
        self._trouble = self._home / "trouble"
        self.path = self._home / "mounted"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(SIZE)
        self._plug()
        features = [] if journal else ["-O", "^has_journal,^dir_index"]
        subprocess.run([binary("mkfs.ext4"), "-q", "-F", *features, str(self._device)], check=True)
        self._mount()

    def _plug(self) -> None:
        self._device.write_bytes(b"")
        served = [binary("nbdkit"), "-s", "--exit-with-parent", "--filter=error", "--filter=cache", "file"]
        served += [str(self._image), "cache=writeback", "error=EIO", f"error-file={self._trouble}"]
        served += ["error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%"]
        self._process = Process([binary("nbdfuse"), str(self._device), "--command", *served], self._home / "log")
        self._process.wait_ready(lambda: self._device.stat().st_size == SIZE)

    def _mount(self) -> None:
        subprocess.run([binary("mount"), "-o", "loop", str(self._device), str(self.path)], check=True)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk."""
        (server,) = children(self._process.pid)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not alive(server), "the disk is off")

    def power_on(self) -> None:
        """After a cut, when nobody uses the disk any more: mount it with what it holds."""
        self._unmount()
        self._plug()
        if not self._journal:
            # What a start of the machine does: without a journal there is nothing that could be replayed.
            status = subprocess.run([binary("e2fsck"), "-fy", str(self._device)], capture_output=True).returncode
            assert status in (0, 1), f"e2fsck ended with status {status}"
        self._mount()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Inside the block every write fails with EIO. ext4 turns itself read-only then, until it is mounted anew."""
        self._trouble.touch()
        try:
            yield
        finally:
            self._trouble.unlink()

    def is_read_only(self) -> bool:
        """Whether the file system takes nothing any more."""
        try:
            (self.path / "probe").touch()
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    def _unmount(self) -> None:
        for path in (self.path, self._device):
            wait_until(partial(_unmounted, path), f"{path} is not mounted any more")
        self._process.wait()

    def stop(self) -> None:
        self._unmount()
        shutil.rmtree(self._home)


def _unmounted(path: Path) -> bool:
    subprocess.run([binary("umount"), str(path)], capture_output=True)
    return f" {path} " not in Path("/proc/mounts").read_text()
