"""Pods of a rendered chart, the gateway's and Jobs', run by podman, with the test in the kubelet's part.

The kubelet's part is: volumes, whose ConfigMaps and Secrets are mounted as it mounts them, images that are volumes, an
emptyDir of each pod's own, the claim with the group of `fsGroup`, and probes, which the test asks itself. Each pod has
a network of its own with nothing but a loopback interface, which the test steps into to talk to it; or several have one
together.
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
from types import MappingProxyType
from typing import Any, Final, TypeVar

import pytest
import yaml

from tests.chart.helm import Document, of_kind, render, workload
from tests.chart.mount import Mount
from tests.support.process import binary, new_directory, wait_until

CONTAINERS_CONF: Final = Path(__file__).with_name("containers.conf")
IMAGE: Final = {"registry": "localhost", "repository": "gatepost", "tag": "test"}
_PODMAN_FAILED: Final = 125
"""Its own failure, and no command's within a container."""
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
    if result.returncode == _PODMAN_FAILED and status is not None:
        pytest.fail(f"podman {arguments}: {result.stderr}\nIt needs root that may mount and make namespaces")
    assert status is None or result.returncode == status, f"podman {arguments}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr if errors else result.stdout


def made(values: Mapping[str, Any]) -> tuple[Document, ...]:
    """What the chart makes of these values, for the image that is built here."""
    return render({**values, "image": IMAGE})


def within(namespace: str | int, work: Callable[[], T]) -> T:
    """Do work in a network, given by path or descriptor. Sockets that it opens stay there, and may be used anywhere."""
    outcome: list[T] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            with open(namespace, "rb", closefd=isinstance(namespace, str)) as file:
                # The namespace is this thread's only, and its children's.
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
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


class Network:
    """A network with nothing but a loopback interface, for pods that are to reach each other; it outlives them."""

    def __init__(self) -> None:
        command = [binary("unshare"), "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"
        self._namespace = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)

    def inside(self, work: Callable[[], T]) -> T:
        """See `within`."""
        return within(self._namespace, work)

    def close(self) -> None:
        os.close(self._namespace)
        self._holder.communicate(timeout=30)


class _Played:
    """What pods of all kinds have in common: volumes, one container that matters, its log and its end."""

    def __init__(
        self,
        name: str,
        spec: Document,
        container: str,
        documents: Sequence[Document],
        secrets: Mapping[str, Mapping[str, str | bytes]],
        claims: Mapping[str, Path] | None,
        network: Network | None,
    ) -> None:
        """Without `claims` the pod has one of its own."""
        self.directory = new_directory("pod")
        self.mounts: dict[str, Mount] = {}
        """By the names of volumes."""
        self.name = name
        self.container = f"{name}-{container}"
        self._network = network
        self._contents: dict[str, Mapping[str, str | bytes]] = {
            **secrets,
            **{document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")},
        }
        self._claims = claims
        self._images: list[str] = []
        spec = copy.deepcopy(spec)
        spec["volumes"] = [self._volume(volume, spec) for volume in spec["volumes"]]
        spec["restartPolicy"] = "Never"
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            # podman would publish ports, and asks probes by a program that the image does not have.
            for key in ("ports", "readinessProbe", "livenessProbe", "startupProbe"):
                each.pop(key, None)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name}, "spec": spec}
        (self.directory / "pod.yaml").write_text(yaml.safe_dump(pod))

    def play(self) -> None:
        """Start the pod, in place of one with its name."""
        podman("pod", "rm", "--force", "--ignore", self.name)
        # The host's network is that of whoever runs podman.
        mode = "none" if self._network is None else "host"
        self._there("kube", "play", f"--network={mode}", str(self.directory / "pod.yaml"))

    def _there(self, *arguments: str) -> None:
        """Run podman in the network where the containers that it starts are to be."""
        if self._network is None:
            podman(*arguments)
        else:
            self._network.inside(lambda: podman(*arguments))

    def _volume(self, volume: Document, spec: Document) -> Document:
        if "emptyDir" in volume:
            # podman would have one for all pods.
            empty = self.directory / f"empty-{volume['name']}"
            empty.mkdir()
            empty.chmod(0o777)
            return {"name": volume["name"], "hostPath": {"path": str(empty)}}
        if "image" in volume:
            image = volume["image"]["reference"]
            path = podman("image", "mount", image).strip()
            self._images.append(image)
            return {"name": volume["name"], "hostPath": {"path": path}}
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            claim = self.directory / "claim" if self._claims is None else self._claims[name]
            if not claim.exists():
                claim.mkdir()
                os.chown(claim, 0, spec["securityContext"]["fsGroup"])
                claim.chmod(0o2770)
            return {"name": volume["name"], "hostPath": {"path": str(claim)}}
        name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
        if name is None:
            return volume
        mount = self.mounts[volume["name"]] = Mount(self.directory / volume["name"])
        mount.put(self._contents[name])
        return {"name": volume["name"], "hostPath": {"path": str(mount.path)}}

    @property
    def pid(self) -> int:
        """Process 1 of the container, as this machine knows it; 0 when it has ended."""
        return int(podman("inspect", "--format", "{{.State.Pid}}", self.container))

    @property
    def status(self) -> dict[str, str]:
        """What the kernel says of process 1: its user, rights, and so on."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    @property
    def writable(self) -> set[str]:
        """Where process 1 may write, of what is no part of the kernel's or the runtime's."""
        mounts = [line.split() for line in Path(f"/proc/{self.pid}/mounts").read_text().splitlines()]
        found = {where for _, where, _, options, *_ in mounts if "rw" in options.split(",")}
        runtime = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"}
        return {where for where in found - runtime if not where.startswith(("/proc", "/sys", "/dev"))}

    @property
    def log(self) -> str:
        return podman("logs", self.container, status=None, errors=True)

    def vanish(self) -> None:
        """Be gone, with all that is not on a claim."""
        podman("pod", "rm", "--force", "--ignore", "--time=0", self.name)
        for empty in self.directory.glob("empty-*"):
            shutil.rmtree(empty)

    def remove(self) -> None:
        self.vanish()
        while self._images:
            podman("image", "unmount", self._images.pop())
        shutil.rmtree(self.directory)


class Job(_Played):
    """The pod of a Job. `claims` are the directories behind the claims that it names."""

    def __init__(
        self,
        job: Document,
        documents: Sequence[Document],
        secrets: Mapping[str, Mapping[str, str | bytes]] = MappingProxyType({}),
        *,
        claims: Mapping[str, Path] = MappingProxyType({}),
        network: Network | None = None,
    ) -> None:
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        self._seconds = float(job["spec"]["activeDeadlineSeconds"])
        super().__init__(job["metadata"]["name"], spec, container["name"], documents, secrets, claims, network)

    def ended(self) -> int:
        """Wait within its deadline until it has ended; gives its exit status."""
        return int(podman("wait", self.container, seconds=self._seconds))

    def run(self) -> int:
        """Run it from its beginning to its end; gives its exit status."""
        self.play()
        return self.ended()


class Pod(_Played):
    """A running pod of what a chart made. `secrets` are the contents of Secrets that it names; `end` ends its name."""

    def __init__(
        self,
        documents: Sequence[Document],
        secrets: Mapping[str, Mapping[str, str | bytes]],
        *,
        end: str = "0",
        network: Network | None = None,
    ) -> None:
        runs = workload(documents)
        name = f"{runs['metadata']['name']}-{end}"
        spec = copy.deepcopy(runs["spec"]["template"]["spec"])
        self.grace = int(spec["terminationGracePeriodSeconds"])
        for template in runs["spec"].get("volumeClaimTemplates", []):
            volume = template["metadata"]["name"]
            spec["volumes"].append({"name": volume, "persistentVolumeClaim": {"claimName": f"{volume}-{name}"}})
        super().__init__(name, spec, "gatepost", documents, secrets, None, network)
        self.claim = self.directory / "claim"
        self.play()
        try:
            self.wait_ready()
        except BaseException:
            print(self.log)
            self.remove()
            raise

    def wait_ready(self) -> None:
        wait_until(lambda: self.get("/startupz")[0] == 200 and self.get("/readyz")[0] == 200, "the pod is ready")

    def inside(self, work: Callable[[], T]) -> T:
        """Do work in the pod's network; see `within`."""
        pid = self.pid
        if not pid:
            raise ConnectionRefusedError("the container does not run")
        return within(f"/proc/{pid}/ns/net", work)

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
        # podman ends the rest of the pod a moment later than its container.
        wait_until(
            lambda: podman("pod", "inspect", "--format={{.State}}", self.name) == "Exited\n", "the pod has ended"
        )
        self._there("start", self.container)
        self.wait_ready()
