"""A directory as a kubelet mounts a ConfigMap: files are links through ``..data``, which is turned at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Mount:
    """`put` replaces all of it in one step, as the kubelet does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        path.mkdir(parents=True)
        # The kubelet's have this mode; what keeps others from writing is that they are mounted read-only.
        path.chmod(0o777)

    def put(self, files: Mapping[str, str | bytes]) -> None:
        """Have these files, and no others."""
        self._count += 1
        before, now = self.path / f"..{self._count - 1}", self.path / f"..{self._count}"
        now.mkdir(mode=0o755)
        for name, content in files.items():
            file = now / name
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            file.chmod(0o644)
        turning = self.path / "..data_tmp"
        turning.symlink_to(now.name)
        os.replace(turning, self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        shutil.rmtree(before, ignore_errors=True)
