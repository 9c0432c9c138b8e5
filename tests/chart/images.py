"""Images that are built here, without a registry: the gateway's own, and plugins', as their authors make them."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from gateway.cli import main
from tests.chart.helm import ROOT
from tests.support.process import binary

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


@cache
def build_gateway() -> None:
    """Build the gateway's image from this tree; once for all tests."""
    subprocess.run([str(ROOT / "tools/image.sh")], check=True, stdin=subprocess.DEVNULL, timeout=1200)


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
