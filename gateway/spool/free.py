"""How much room there is where the spool lies, asked often and looked up about once a second."""

from __future__ import annotations

import shutil
import time
from typing import Final

from gateway.spool.spool import SpoolError, SpoolFull

_SECONDS: Final = 1.0


class FreeSpace:
    """The free space of the file system under `path`, of which `min_free` octets stay free."""

    def __init__(self, path: str, min_free: int) -> None:
        self._path = path
        self._min_free = min_free
        self._checked = -_SECONDS
        self._free = 0

    def check(self, size: int) -> None:
        """Raise `SpoolFull` when `size` more octets would leave too little, and `SpoolError` when nobody can say."""
        now = time.monotonic()
        if now - self._checked >= _SECONDS:
            try:
                self._free = shutil.disk_usage(self._path).free
            except OSError as error:
                raise SpoolError(f"spool directory: {error.strerror}") from error
            self._checked = now
        if self._free - size < self._min_free:
            raise SpoolFull(f"{self._free} octets free, spool.min_free is {self._min_free}")
