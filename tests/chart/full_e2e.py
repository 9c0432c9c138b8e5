"""tools/e2e.sh, with the real kubectl and Helm, against an API server in memory and a node that runs pods by podman.

``make chart-full``. What is played here: the API server with its defaults and admission, the controllers, the network
between pods. What is real: both programs of either age, the script, the pods, and what they are told to run.
"""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.api import STARTED, Api, Key
from tests.chart.helm import MAJORS, ROOT, Document, program
from tests.chart.images import IMAGE, build_gateway
from tests.chart.pod import CONTAINERS_CONF, Job, Pod
from tests.support.process import binary


class Node:
    """The kubelet, the controller of StatefulSets, and the way from a Service to a pod."""

    def __init__(self) -> None:
        self.api = Api(self._ends, self)
        self.pods: dict[str, Pod] = {}
        self.said: dict[str, str] = {}
        """What a pod that ended has said."""
        self.ran: list[str] = []
        """What it did, in order."""
        self._template: Document = {}

    def changed(self, document: Document) -> None:
        name = document["metadata"]["name"]
        if document["kind"] == "ConfigMap":
            if name in {f"{pod.name.rpartition('-')[0]}" for pod in self.pods.values()}:
                self.ran.append("configuration")
                for pod in self.pods.values():
                    pod.mounts["config"].put(document["data"])
            return
        template = document["spec"]["template"]
        if not self.pods:
            self.ran.append("start")
            documents = [document, *self.api.of_kind("ConfigMap").values()]
            for number in range(document["spec"]["replicas"]):
                pod = Pod(documents, {}, end=str(number))
                self.pods[pod.name] = pod
                key = Key("v1", "pods", document["metadata"]["namespace"], pod.name)
                self.api.put(key, self._running(pod.name, template))
        elif template != self._template:
            # Containers are the same ones then, so they are started again.
            assert template["spec"] == self._template["spec"]
            for pod in reversed(self.pods.values()):
                self.ran.append(f"restart {pod.name}")
                pod.signal("TERM")
                assert pod.ended() == 0, pod.log
                pod.again()
        self._template = copy.deepcopy(template)

    def _running(self, name: str, template: Document) -> Document:
        # A server would have defaulted what the schema of a Pod wants.
        status = {"phase": "Running", "startTime": STARTED}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": template["metadata"]["labels"]},
            "spec": copy.deepcopy(template["spec"]),
            "status": status,
        }

    def execute(self, pod: str, command: list[str]) -> tuple[bytes, bytes, int]:
        return self._podman("exec", self.pods[pod].container, *command)

    def log(self, pod: str, container: str) -> str:
        return self.said[container]

    def _podman(self, *arguments: str) -> tuple[bytes, bytes, int]:
        environment = {**os.environ, "CONTAINERS_CONF": str(CONTAINERS_CONF)}
        ran = subprocess.run(
            [binary("podman"), *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, env=environment
        )
        return ran.stdout, ran.stderr, ran.returncode

    def _ends(self, document: Document, api: Api) -> bool:
        """Run a hook: the check of a configuration in a container of its own, the test in the first pod's network."""
        if document["kind"] == "Job":
            job = Job(document, [*api.of_kind("ConfigMap").values()])
            try:
                status = job.run()
            finally:
                job.remove()
            self.ran.append(f"check {status}")
            return status == 0
        statuses = []
        for container in document["spec"]["containers"]:
            command = ["gatepost", *(self._reached(argument) for argument in container["args"])]
            out, errors, status = self.execute(next(iter(self.pods)), command)
            self.said[container["name"]] = (out + errors).decode()
            statuses.append(status)
        self.ran.append(f"test {statuses}")
        return not any(statuses)

    def _reached(self, argument: str) -> str:
        """Where a Service leads to, from inside of a pod."""
        for name, service in self.api.of_kind("Service").items():
            for port in service["spec"]["ports"]:
                ports = self._template["spec"]["containers"][0]["ports"]
                (target,) = (p["containerPort"] for p in ports if p["name"] == port["targetPort"])
                argument = argument.replace(f"{name}:{port['port']}", f"127.0.0.1:{target}")
        return argument

    def close(self) -> None:
        self.api.close()
        for pod in self.pods.values():
            pod.remove()


@pytest.fixture(params=MAJORS)
def surroundings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Node, dict[str, str]]]:
    """A node, and the environment of the script."""
    build_gateway()
    node = Node()
    major: int = request.param
    kubectl = ROOT / f".venv/tools/kubectl{major}"
    assert kubectl.exists(), "run tools/setup.sh full, which installs it"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").symlink_to(kubectl)
    (tmp_path / "config").write_text(node.api.kubeconfig())
    yield (
        node,
        {
            "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "KUBECONFIG": str(tmp_path / "config"),
            "HELM": str(program(major)),
            "IMAGE": IMAGE,
        },
    )
    node.close()


def test_the_script_goes_through_with_what_it_can_have_here(surroundings: tuple[Node, dict[str, Any]]) -> None:
    node, environment = surroundings
    ran = subprocess.run(
        [str(ROOT / "tools/e2e.sh")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env=environment,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{node.ran}"
    assert node.ran == [
        "start", "test [0, 0]", "check 0", "configuration", "check 2", "check 0", "configuration",
        "restart gatepost-1", "restart gatepost-0",
    ]  # fmt: skip
    assert not node.api.of_kind("Namespace"), "its namespace is left"
