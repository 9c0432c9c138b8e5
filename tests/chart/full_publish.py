"""A version is published in a real registry and installed from there: ``make chart-full``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.chart.full_release import Release, values
from tests.chart.helm import CHART, MAJORS, ROOT, workload
from tests.chart.images import build_gateway
from tests.chart.pod import podman
from tests.chart.signing import NAME, KeyRing
from tests.support.process import Process, binary, free_port, listens, new_directory

VERSION = str(yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])


class Storage:
    """docker-registry on a port of its own, by plain HTTP."""

    def __init__(self) -> None:
        self.home = new_directory("registry")
        self.host = f"127.0.0.1:{free_port()}"
        options = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.home / "data")}},
            "http": {"addr": self.host},
        }
        (self.home / "config.yml").write_text(yaml.safe_dump(options))
        argv = [binary("docker-registry"), "serve", str(self.home / "config.yml")]
        self._process = Process(argv, self.home / "log")
        self._process.wait_ready(lambda: listens(int(self.host.partition(":")[2])))

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home)


@dataclass(frozen=True)
class Published:
    """A version in a registry, and what was told about it."""

    host: str
    image: str
    """Its name and digest."""
    directory: Path
    ring: KeyRing

    @property
    def chart(self) -> str:
        return f"oci://{self.host}/mail/charts/gatepost"


def publish(*arguments: str, ring: KeyRing | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/publish.py"), *arguments]
    environment = {**os.environ, **(ring.environment if ring else {})}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    image = build_gateway()
    directory = tmp_path_factory.mktemp("dist")
    storage, ring = Storage(), KeyRing()
    try:
        signed = ["--sign-key", NAME, "--passphrase-file", str(ring.passphrase)]
        there = ["--registry", f"{storage.host}/mail", "--plain-http", "--image", image, "--output", str(directory)]
        done = publish(*there, *signed, ring=ring)
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert told[0].startswith(f"{storage.host}/mail/gatepost:{VERSION}@sha256:")
        assert told[1].startswith("helm install gatepost oci://") and "--verify" in told[1]
        yield Published(storage.host, told[0], directory, ring)
    finally:
        ring.close()
        storage.stop()


@pytest.mark.parametrize("major", MAJORS)
def test_a_release_is_installed_from_the_registry_when_its_signature_is_good(
    published: Published, major: int, tmp_path: Path
) -> None:
    release = Release(major, tmp_path)
    try:
        source = [published.chart, "--version", VERSION, "--plain-http"]
        stranger = KeyRing()
        try:
            public = tmp_path / "stranger.gpg"
            public.write_bytes(stranger.exported())
        finally:
            stranger.close()
        verified = ["--verify", "--keyring", str(public)]
        said = release.helm("install", "rel", *source, *verified, values=values(), status=1)
        assert "signature" in said and not release.api.of_kind("StatefulSet"), said
        verified = ["--verify", "--keyring", str(published.directory / "gatepost.gpg")]
        release.helm("install", "rel", *source, *verified, "--wait", "--timeout", "60s", values=values())
        (container,) = workload(release.api.objects.values())["spec"]["template"]["spec"]["containers"]
        assert container["image"] == published.image.partition("@")[0]
        release.helm("upgrade", "rel", *source, *verified, values=values(config={"pipeline": ["spf"]}))
        assert release.configuration()["pipeline"] == ["spf"]
        assert release.ran == [("rel-gatepost-check", ["check"])]
    finally:
        release.api.close()


def test_the_image_in_the_registry_is_the_one_that_was_built(published: Published) -> None:
    name, _, digest = published.image.rpartition("@")
    by_digest = f"{name.rpartition(':')[0]}@{digest}"
    podman("pull", "-q", "--tls-verify=false", by_digest, seconds=300)
    try:
        confined = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
        said = podman("run", "--rm", *confined, by_digest, "--version")
        assert said.strip() == f"gatepost, version {VERSION}"
    finally:
        podman("rmi", by_digest)


def test_its_contents_are_all_packages_of_the_image(published: Published) -> None:
    told = json.loads((published.directory / f"gatepost-{VERSION}.cdx.json").read_text())
    assert (told["bomFormat"], told["metadata"]["component"]["version"]) == ("CycloneDX", VERSION)
    components = {(component["name"].lower(), component["version"]) for component in told["components"]}
    python = ("run", "--rm", "--network=none", "--entrypoint=/opt/gatepost/bin/python", build_gateway())
    inside = json.loads(podman(*python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    packages = {(package["name"].lower(), package["version"]) for package in inside if package["name"] != "gatepost"}
    assert components - {("libmilter", "1.0.1")} == packages
    assert all(component.get("licenses") for component in told["components"] if component["name"] != "libmilter")


def test_a_version_that_is_published_is_not_replaced(published: Published, tmp_path: Path) -> None:
    again = publish(
        "--registry", f"{published.host}/mail", "--plain-http", "--unsigned", "--output", str(tmp_path)
    )  # fmt: skip
    assert again.returncode == 1 and f"has {VERSION} already" in again.stderr, again.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_published_where_it_fails_before_the_end(published: Published, tmp_path: Path) -> None:
    other = ["--registry", f"{published.host}/other", "--plain-http", "--image", build_gateway()]
    nobody = publish(*other, "--sign-key", "nobody@example.org", "--output", str(tmp_path), ring=published.ring)
    assert nobody.returncode == 1 and "no secret key" in nobody.stderr, nobody.stderr
    unsaid = publish(*other, "--output", str(tmp_path))
    assert unsaid.returncode == 1 and "either --sign-key or --unsigned" in unsaid.stderr
    closed = publish("--registry", f"127.0.0.1:{free_port()}/mail", "--plain-http", "--unsigned")
    assert closed.returncode == 1 and "refused" in closed.stderr, closed.stderr
    with urllib.request.urlopen(f"http://{published.host}/v2/_catalog", timeout=30) as answer:
        assert json.load(answer) == {"repositories": ["mail/charts/gatepost", "mail/gatepost"]}
