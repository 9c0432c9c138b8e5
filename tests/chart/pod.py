"""The first pod of a rendered chart, run by podman, with the test in the kubelet's part.

The kubelet's part is: volumes, whose ConfigMaps and Secrets are mounted as it mounts them, an emptyDir of each pod's
own, the claim with the group of `fsGroup`, and probes, which the test asks itself. The pod has a network of its own
with nothing but a loopback interface, which the test steps into to talk to it.
"""

from __future__ import annotations

import copy
import ctypes
import http.client
import json
import os
import shutil
import smtplib
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from tests.chart.helm import Document, of_kind, render, workload
from tests.chart.mount import Mount
from tests.support.process import binary, new_directory, wait_until

CONTAINERS_CONF: Final = Path(__file__).with_name("containers.conf")
IMAGE: Final = {"registry": "localhost", "repository": "gatepost", "tag": "test"}
_CLONE_NEWNET: Final = 0x40000000
T = TypeVar("T")


def podman(*arguments: str, status: int | None = 0, seconds: float = 120, errors: bool = False) -> str:
    """Run podman; gives what it prints, with or without its errors."""
    result = subprocess.run(
        [binary("podman"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "CONTAINERS_CONF": str(CONTAINERS_CONF)},
    )
    assert status is None or result.returncode == status, f"podman {arguments}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr if errors else result.stdout


def made(values: Mapping[str, Any]) -> tuple[Document, ...]:
    """What the chart makes of these values, for the image that is built here."""
    return render({**values, "image": IMAGE})


class Pod:
    """A running pod of what a chart made. `secrets` are the contents of Secrets that it names; `end` ends its name."""

    def __init__(
        self, documents: Sequence[Document], secrets: Mapping[str, Mapping[str, str | bytes]], *, end: str = "0"
    ) -> None:
        self.directory = new_directory("pod")
        runs = workload(documents)
        self.mounts: dict[str, Mount] = {}
        """By the names of volumes."""
        contents: dict[str, Mapping[str, str | bytes]] = {
            **secrets,
            **{document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")},
        }
        spec = copy.deepcopy(runs["spec"]["template"]["spec"])
        self.grace = int(spec["terminationGracePeriodSeconds"])
        self.claim = self.directory / "claim"
        spec["volumes"] = [self._volume(volume, contents) for volume in spec["volumes"]]
        if runs["kind"] == "StatefulSet":
            self.claim.mkdir()
            os.chown(self.claim, 0, spec["securityContext"]["fsGroup"])
            self.claim.chmod(0o2770)
            spec["volumes"].append({"name": "queue", "hostPath": {"path": str(self.claim)}})
        spec["restartPolicy"] = "Never"
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            # podman would publish ports, and asks probes by a program that the image does not have.
            for key in ("ports", "readinessProbe", "livenessProbe", "startupProbe"):
                container.pop(key, None)
        self.name = f"{runs['metadata']['name']}-{end}"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}
        (self.directory / "pod.yaml").write_text(yaml.safe_dump(pod))
        podman("pod", "rm", "--force", "--ignore", self.name)
        podman("kube", "play", "--network=none", str(self.directory / "pod.yaml"))
        try:
            self.wait_ready()
        except BaseException:
            print(self.log)
            self.remove()
            raise

    def _volume(self, volume: Document, contents: Mapping[str, Mapping[str, str | bytes]]) -> Document:
        if "emptyDir" in volume:
            # podman would have one for all pods.
            empty = self.directory / f"empty-{volume['name']}"
            empty.mkdir()
            empty.chmod(0o777)
            return {"name": volume["name"], "hostPath": {"path": str(empty)}}
        name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
        if name is None:
            return volume
        mount = self.mounts[volume["name"]] = Mount(self.directory / volume["name"])
        mount.put(contents[name])
        return {"name": volume["name"], "hostPath": {"path": str(mount.path)}}

    @property
    def container(self) -> str:
        return f"{self.name}-gatepost"

    @property
    def pid(self) -> int:
        """Process 1 of the container, as this machine knows it."""
        return int(podman("inspect", "--format", "{{.State.Pid}}", self.container))

    @property
    def log(self) -> str:
        return podman("logs", self.container, status=None, errors=True)

    def wait_ready(self) -> None:
        wait_until(lambda: self.get("/startupz")[0] == 200 and self.get("/readyz")[0] == 200, "the pod is ready")

    def inside(self, work: Callable[[], T]) -> T:
        """Do work in the pod's network. Sockets that it opens stay there, and may be used anywhere."""
        outcome: list[T] = []
        problem: list[BaseException] = []
        pid = self.pid
        if not pid:
            raise ConnectionRefusedError("the container does not run")

        def run() -> None:
            try:
                with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                    # The namespace is this thread's only, and ends with it.
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                outcome.append(work())
            except BaseException as error:
                problem.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return outcome[0]

    def connect(self, port: int, source: str = "127.0.0.1") -> smtplib.SMTP:
        """A client that has said EHLO."""

        def client() -> smtplib.SMTP:
            made = smtplib.SMTP("127.0.0.1", port, "client.test", timeout=30, source_address=(source, 0))
            made.ehlo()
            return made

        return self.inside(client)

    def get(self, path: str) -> tuple[int, str]:
        """Ask the open address, as the kubelet and Prometheus do."""
        sock = self.inside(lambda: socket.create_connection(("127.0.0.1", 8080), 10))
        connection = http.client.HTTPConnection("127.0.0.1", 8080)
        connection.sock = sock
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{text}"' in sample for key, text in labels.items()):
                total += float(value)
        return total

    def run(self, *arguments: str, status: int = 0) -> str:
        """A ``gatepost`` command in the container, which has no shell."""
        return podman("exec", self.container, "gatepost", *arguments, status=status)

    def queue(self) -> list[str]:
        """Ids of what is in the queue."""
        return [entry["id"] for entry in json.loads(self.run("queue", "list", "--json"))]

    def signal(self, name: str) -> None:
        podman("kill", "--signal", name, self.container)

    def ended(self) -> int:
        """Wait within the grace period until the container has ended; gives its exit status."""
        return int(podman("wait", self.container, seconds=self.grace))

    def again(self) -> None:
        """Start the container again, on the same claim."""
        podman("start", self.container)
        self.wait_ready()

    def vanish(self) -> None:
        """Be gone, with all that is not on a claim."""
        podman("pod", "rm", "--force", "--ignore", "--time=0", self.name)
        for empty in self.directory.glob("empty-*"):
            shutil.rmtree(empty)

    def remove(self) -> None:
        self.vanish()
        shutil.rmtree(self.directory)
