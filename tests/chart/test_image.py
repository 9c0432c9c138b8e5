"""The container image, built from this tree without a registry, and run: ``make image-test`` and ``make test``."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.helm import ROOT
from tests.chart.images import build_gateway
from tests.chart.pod import podman
from tests.support import summary
from tests.support.process import new_directory, wait_until

# Building it takes longest of all that `make test` does, so it begins first.
pytestmark = [pytest.mark.slow, pytest.mark.first]

BUDGET = 230_000_000
"""Octets of all layers, unpacked."""
CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
CONFIG = """
hostname: mx.example.org
workers: 1
listeners: [{address: "127.0.0.1:2525"}]
admin: {address: "127.0.0.1:9925", health: "127.0.0.1:8080"}
domains: {example.org: {next_hop: "lmtp:127.0.0.1:9", recipients: any}}
spool: {path: /var/lib/gatepost/spool}
state: {path: /var/lib/gatepost/state}
"""


@pytest.fixture(scope="module")
def image() -> str:
    """Its id."""
    return build_gateway()


@pytest.fixture(scope="module")
def root(image: str) -> Iterator[Path]:
    """The files of the image."""
    mounted = podman("image", "mount", image).strip()
    yield Path(mounted)
    podman("image", "unmount", image)


def test_it_is_no_larger_than_its_budget(image: str) -> None:
    size = int(json.loads(podman("image", "inspect", image))[0]["Size"])
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


def test_what_is_in_it_is_this_tree(root: Path) -> None:
    (inside,) = root.glob("opt/gatepost/lib/python3.*/site-packages/gateway")
    for source in (ROOT / "gateway").rglob("*.py"):
        assert (inside / source.relative_to(ROOT / "gateway")).read_bytes() == source.read_bytes()


def test_it_starts_as_any_user_without_a_right_or_a_place_to_write(image: str) -> None:
    assert podman("run", "--rm", *CONFINED, "--user=10001:10001", image, "--version").startswith("gatepost, version")


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[str]:
    """One that runs as somebody whom its image does not know, as on OpenShift, and may write to its spool only."""
    directory = new_directory("image")
    try:
        (directory / "gatepost.yaml").write_text(CONFIG)
        (directory / "spool").mkdir()
        (directory / "spool").chmod(0o777)
        volumes = (f"--volume={directory}:/etc/gatepost/config:ro", f"--volume={directory}/spool:/var/lib/gatepost")
        name = podman("create", *CONFINED, "--tmpfs=/tmp", *volumes, "--user=1000650000:0", image).strip()
        try:
            podman("start", name)
            yield name
        finally:
            podman("rm", "--force", "--time=0", name)
    finally:
        shutil.rmtree(directory)


def test_its_parts_fit_together(container: str) -> None:
    listed = podman("exec", container, "gatepost", "plugin", "list", "--json")
    assert {"spf", "milter", "milter-host"} <= {plugin["name"] for plugin in json.loads(listed)}
    python = ("exec", container, "/opt/gatepost/bin/python")
    podman(*python, "-c", "import Milter, ldap3, maxminddb, psycopg, redis, uvloop")
    podman(*python, "-m", "pip", "check")


def test_it_takes_mail_and_ends_well_when_it_is_told_to(container: str) -> None:
    ask = ("exec", container, "gatepost", "selftest")
    ready = (*ask, "--http", "http://127.0.0.1:8080")
    wait_until(lambda: podman(*ready, "--json", status=None).count('"ok": true') == 2, "it is ready")
    podman(*ask, "--smtp", "127.0.0.1:2525", "--to", "ben@example.org", "--send")
    (queued,) = json.loads(podman("exec", container, "gatepost", "queue", "list", "--json"))
    assert [recipient["address"] for recipient in queued["recipients"]] == ["ben@example.org"]
    podman("kill", "--signal=TERM", container)
    assert podman("wait", container, seconds=60).strip() == "0", podman("logs", container, status=None)
