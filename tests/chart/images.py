"""Images that are built here, without a registry: the gateway's own, and plugins', as their authors make them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.chart.helm import ROOT
from tests.support.process import binary
from tests.support.servers import require_root

IMAGE: Final = "localhost/gatepost:test"
BASE: Final = "localhost/gatepost-base:bookworm"
BUILD_BASE: Final = "localhost/gatepost-build-base:bookworm"
"""What tools/image.sh makes. The first has nothing but Python, the second has what one expects, such as cp."""
_PLUGIN: Final = """\
ARG BASE
FROM {build} AS build
RUN python3 -m venv /venv
COPY *.whl /wheels/
RUN /venv/bin/pip install -q --no-index --no-deps --no-cache-dir --target /plugins /wheels/*.whl
FROM ${BASE}
COPY --from=build /plugins {path}
"""

_HINT: Final = (
    "tools/image.sh could not build the container image, for the reason above. It needs a machine where root may mount,"
    " and that reaches Debian's packages and Python's; on another one leave it out: make test"
    ' ARGS="--ignore=tests/chart/test_image.py"'
)


@cache
def build_gateway() -> str:
    """Build the gateway's image from this tree, once for all tests; gives its id, since others may take its name."""
    require_root("building and running the container image")
    for program in ("buildah", "podman", "runc", "mmdebstrap"):
        binary(program)
    with tempfile.NamedTemporaryFile("r") as id:
        command = [str(ROOT / "tools/image.sh"), "--iidfile", id.name]
        built = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
        if built.returncode != 0:
            pytest.fail(f"{built.stdout}{built.stderr}\n{_HINT}", pytrace=False)
        return id.read().strip()


def build_plugin(name: str, directory: Path, *, base: str, path: str = "/plugins") -> str:
    """Build an image with the package that ``gatepost plugin new`` makes; gives the image's name."""
    source = directory / name
    made = CliRunner().invoke(main, ["plugin", "new", name, "--directory", str(source)])
    assert made.exit_code == 0, made.output
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    _run(*wheel, "--no-build-isolation", "--wheel-dir", str(source), str(source))
    (source / "Containerfile").write_text(_PLUGIN.replace("{build}", BUILD_BASE).replace("{path}", path))
    image = f"localhost/gatepost-{name}:test"
    options = ["-q", "--layers", "--isolation", "chroot", "--build-arg", f"BASE={base}"]
    _run(binary("buildah"), "bud", *options, "-t", image, str(source))
    return image


def _run(*command: str) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
