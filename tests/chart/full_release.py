"""The life of a release by either Helm, from its installation to its removal: ``make chart-full``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.app import load_pipelines
from gateway.config import ConfigError, parse
from tests.chart.api import Api
from tests.chart.helm import CHART, MAJORS, ROOT, Document, program


class Release:
    """A release of the chart in a server of its own, handled by one Helm."""

    def __init__(self, major: int, home: Path) -> None:
        self.ran: list[tuple[str, list[str]]] = []
        """Jobs and pods, and what they were told to run."""
        self.api = Api(self._ends)
        self._major = major
        self._home = home
        self._config = home / "kubeconfig"
        self._config.write_text(self.api.kubeconfig())

    def _ends(self, document: Document, api: Api) -> bool:
        """Play the kubelet for hooks: the check of the configuration is the gateway's own."""
        spec = document["spec"]["template"]["spec"] if document["kind"] == "Job" else document["spec"]
        arguments = [list(container["args"]) for container in spec["containers"]]
        self.ran.append((document["metadata"]["name"], [args[0] for args in arguments]))
        if document["kind"] == "Pod":
            return True
        name = next(v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "config")
        text = api.of_kind("ConfigMap")[name]["data"]["gatepost.yaml"]
        try:
            load_pipelines(parse(text.encode(), "gatepost.yaml"))
        except ConfigError:
            return False
        return True

    def helm(self, *arguments: str, values: dict[str, Any] | None = None, status: int = 0) -> str:
        options = ["--values", "-"] if values is not None else []
        given = json.dumps(values) if values is not None else ""
        return self._run(program(self._major), *arguments, *options, given=given, status=status)

    def kubectl(self, *arguments: str) -> str:
        path = ROOT / f".venv/tools/kubectl{self._major}"
        assert path.exists(), "run tools/setup.sh full, which installs it"
        return self._run(path, *arguments)

    def _run(self, path: Path, *arguments: str, given: str = "", status: int = 0) -> str:
        result = subprocess.run(
            [str(path), *arguments, "--namespace", "mail"],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "KUBECONFIG": str(self._config), "HOME": str(self._home)},
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout + result.stderr

    def configuration(self) -> Document:
        found: Document = yaml.safe_load(self.api.of_kind("ConfigMap")["rel-gatepost"]["data"]["gatepost.yaml"])
        return found


@pytest.fixture(params=MAJORS)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Release]:
    made = Release(request.param, tmp_path)
    yield made
    made.api.close()


def values(**more: Any) -> dict[str, Any]:
    domains = {"example.org": {"next_hop": "discard", "recipients": "any"}}
    return {"config": {"hostname": "mx.example.org", "domains": domains, **more.pop("config", {})}, **more}


def test_a_release_lives_from_its_installation_to_its_removal(release: Release) -> None:
    wait = ("--wait", "--timeout", "60s")
    notes = release.helm("install", "rel", str(CHART), *wait, values=values())
    assert "Gatepost" in notes and "There is no certificate" in notes
    assert release.ran == [], "before an installation there is nothing to protect"

    more = {"monitoring": {"podMonitor": {"enabled": True}}, "replicas": 3}
    release.helm("upgrade", "rel", str(CHART), *wait, values=values(config={"pipeline": ["spf"]}, **more))
    assert release.ran == [("rel-gatepost-check", ["check"])]
    assert release.configuration()["pipeline"] == ["spf"] and "rel-gatepost" in release.api.of_kind("PodMonitor")
    assert "rel-gatepost-check" not in release.api.of_kind("ConfigMap"), "what a hook makes goes with it"

    # A plugin that there is not: the schema cannot know, and the gateway does.
    bad = values(config={"pipeline": ["no-such-plugin"]}, **more)
    release.helm("upgrade", "rel", str(CHART), *wait, values=bad, status=1)
    assert release.configuration()["pipeline"] == ["spf"], "a refused upgrade has changed something"

    larger = values(persistence={"size": "99Gi"}, **more)
    said = release.helm("upgrade", "rel", str(CHART), *wait, values=larger, status=1)
    assert "volumeClaimTemplates" in said and "Forbidden" in said
    # As UPGRADING.md has it: the StatefulSet is made anew around its pods.
    release.kubectl("delete", "statefulset", "rel-gatepost", "--cascade=orphan")
    release.helm("upgrade", "rel", str(CHART), *wait, values=larger)
    (claim,) = release.api.of_kind("StatefulSet")["rel-gatepost"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "99Gi"

    release.ran.clear()
    release.helm("test", "rel")
    assert release.ran == [("rel-gatepost-selftest", ["selftest", "selftest"])]

    # A rollback to claims of another size needs the same.
    release.kubectl("delete", "statefulset", "rel-gatepost", "--cascade=orphan")
    release.helm("rollback", "rel", "1", *wait)
    assert "pipeline" not in release.configuration()
    release.helm("uninstall", "rel", "--wait")
    assert {(key.plural, key.name) for key in release.api.objects} == {("pods", "rel-gatepost-selftest")}


def test_an_installation_may_be_checked_before_anything_is_made(release: Release) -> None:
    bad = values(config={"pipeline": ["no-such-plugin"]}, checkBeforeInstall=True)
    release.helm("install", "rel", str(CHART), values=bad, status=1)
    assert release.ran == [("rel-gatepost-check", ["check"])]
    assert not release.api.of_kind("StatefulSet") and not release.api.of_kind("ServiceAccount")
    release.ran.clear()
    release.helm("upgrade", "--install", "rel", str(CHART), values=values(checkBeforeInstall=True))
    assert release.ran == [("rel-gatepost-check", ["check"])]
    assert release.api.of_kind("StatefulSet") and release.api.of_kind("ServiceAccount")
