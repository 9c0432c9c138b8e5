"""A disk whose power can be cut: what was not synced by then is gone.

A file is served as a block device by nbdkit and nbdfuse, and mounted over a loop device. Killing nbdkit is the
power cut: whatever only the kernel's memory holds can not be written any more, and the journal of the file system is
replayed at the next mount.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.support.process import Process, alive, binary, children, new_directory, wait_until
from tests.support.servers import require_root

_SIZE = 256 << 20


class Disk:
    """Mounted at `path` from the start."""

    def __init__(self) -> None:
        require_root("mounting a disk")
        self._home = new_directory("disk")
        self._image, self._device = self._home / "image", self._home / "device"
        self.path = self._home / "mounted"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(_SIZE)
        self._plug()
        subprocess.run([binary("mkfs.ext4"), "-q", "-F", str(self._device)], check=True)
        self._mount()

    def _plug(self) -> None:
        self._device.write_bytes(b"")
        argv = [binary("nbdfuse"), str(self._device), "--command", binary("nbdkit"), "-s", "--exit-with-parent"]
        self._process = Process([*argv, "file", str(self._image)], self._home / "log")
        self._process.wait_ready(lambda: self._device.stat().st_size == _SIZE)

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
        self._mount()

    def _unmount(self) -> None:
        for path in (self.path, self._device):
            wait_until(lambda path=path: _unmounted(path), f"{path} is not mounted any more")  # type: ignore[misc]
        self._process.wait()

    def stop(self) -> None:
        self._unmount()
        shutil.rmtree(self._home)


def _unmounted(path: Path) -> bool:
    subprocess.run([binary("umount"), str(path)], capture_output=True)
    return f" {path} " not in Path("/proc/mounts").read_text()
