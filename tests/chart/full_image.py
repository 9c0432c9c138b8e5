"""The container image, built from this tree without a registry: ``make chart-full``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.helm import ROOT
from tests.chart.pod import podman
from tests.support import summary

IMAGE = "localhost/gatepost:test"
BUDGET = 230_000_000
"""Octets of all layers, unpacked."""
CONFINED = ("--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The files of the image."""
    subprocess.run([str(ROOT / "tools/image.sh")], check=True, stdin=subprocess.DEVNULL, timeout=1200)
    mounted = podman("image", "mount", IMAGE).strip()
    yield Path(mounted)
    podman("image", "unmount", IMAGE)


def test_it_is_no_larger_than_its_budget(root: Path) -> None:
    size = int(json.loads(podman("image", "inspect", IMAGE))[0]["Size"])
    summary.TEXTS.append(f"the image has {size / 1e6:.0f} MB of {BUDGET / 1e6:.0f} MB")
    assert size <= BUDGET


def test_it_has_no_shell_no_package_manager_and_nothing_that_gives_rights(root: Path) -> None:
    assert root.is_dir()
    assert [name for name in ("bin/sh", "bin/bash", "usr/bin/apt-get", "usr/bin/gcc") if (root / name).exists()] == []
    rights = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and (
                mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(path)
            ):
                rights.append(str(path.relative_to(root)))
    assert rights == []


def test_it_starts_as_any_user_without_a_right_or_a_place_to_write(root: Path) -> None:
    for user in ("10001:10001", "1000650000:0"):
        said = podman("run", *CONFINED, "--user", user, IMAGE, "--version")
        assert said.startswith("gatepost, version")
    listed = podman("run", *CONFINED, "--tmpfs=/tmp", "--unsetenv=GATEPOST_CONFIG", IMAGE, "plugin", "list", "--json")
    assert {"spf", "milter", "milter-host"} <= {plugin["name"] for plugin in json.loads(listed)}


def test_what_is_in_it_is_this_tree(root: Path) -> None:
    (inside,) = root.glob("opt/gatepost/lib/python3.*/site-packages/gateway")
    for source in (ROOT / "gateway").rglob("*.py"):
        assert (inside / source.relative_to(ROOT / "gateway")).read_bytes() == source.read_bytes()


def test_its_parts_fit_together(root: Path) -> None:
    check = "import importlib.metadata as m; print(len(list(m.distributions())))"
    python = ["--entrypoint", "/opt/gatepost/bin/python"]
    assert int(podman("run", *CONFINED, *python, IMAGE, "-c", check)) > 20
    podman("run", *CONFINED, *python, IMAGE, "-c", "import Milter, ldap3, maxminddb, uvloop")
    podman("run", *CONFINED, "--tmpfs", "/tmp", *python, IMAGE, "-m", "pip", "check")
