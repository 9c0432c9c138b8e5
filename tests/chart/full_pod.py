"""The pod that the chart makes, run confined by podman and runc, from its start to its end: ``make chart-full``."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.chart.helm import only
from tests.chart.images import BASE, BUILD_BASE, build_gateway, build_plugin
from tests.chart.pod import Job, Pod, made
from tests.support.clients import MESSAGE, queue_id, transact
from tests.support.process import binary, new_directory, wait_until
from tests.support.servers import make_certificate

POLICY = '''"""A policy of our own."""

from gateway.sdk import PROCEED, Policy, Recipient, Verdict, reject


class Inline(Policy):
    """Refuses whom it knows by name."""

    name = "inline"

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("7.1", "refused by inline") if recipient.address.has_local(("inline",)) else PROCEED
'''

COPY = (
    "import pathlib, shutil; "
    "[shutil.copytree(part, f'/opt/gatepost-plugins/{part.name}') for part in pathlib.Path('/srv/shape').iterdir()]"
)
"""For an image without cp. The directory itself is somebody else's, so its times cannot be set."""


def wheel(directory: Path) -> str:
    """A wheel with a plugin; gives its line of requirements."""
    module = POLICY.replace("inline", "wheel").replace("Inline", "Wheel")
    info = "gatepost_example-1.0.dist-info"
    path = directory / "gatepost_example-1.0-py3-none-any.whl"
    parts = {
        "gatepost_example.py": module,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: gatepost-example\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[gatepost.policies]\nwheel = gatepost_example:Wheel\n",
    }
    record = "".join(f"{name},,\n" for name in [*parts, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as made:
        for name, text in [*parts.items(), (f"{info}/RECORD", record)]:
            made.writestr(name, text)
    return f"gatepost-example==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def certificate(directory: Path) -> dict[str, bytes]:
    made = make_certificate(directory)
    return {"tls.crt": made.certificate.read_bytes(), "tls.key": made.key.read_bytes()}


def values(wheels: Path, requirements: str, images: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "config": {
            "hostname": "mx.example.org",
            "workers": 2,
            "domains": {
                "example.org": {"next_hop": "maildir:/var/lib/gatepost/mail", "recipients": "any"},
                "down.example.org": {"next_hop": "lmtp:127.0.0.1:9", "recipients": "any"},
            },
            "dns": {"nameservers": ["127.0.0.1:9"], "timeout": "1s"},
            "pipeline": ["inline", "wheel"],
            "pipelines": {"named": [{"colour": {"dots": 2}}, {"shape": {"dots": 3}}, {"mood": {"dots": 4}}]},
        },
        "services": {
            "mx": {"targetPort": 2525},
            "proxied": {"targetPort": 2526, "proxyProtocol": True, "trustedNetworks": ["127.0.0.0/8"]},
            "named": {"targetPort": 2527, "pipeline": "named"},
        },
        "tls": {"existingSecret": "certificate"},
        "reloadSeconds": 1,
        "drain": {"delaySeconds": 3, "sessionSeconds": 20},
        "terminationGracePeriodSeconds": 60,
        "plugins": {
            "inline": {"inline.py": POLICY},
            "images": images,
            "wheels": {"requirements": requirements, "source": {"hostPath": {"path": str(wheels)}}},
        },
    }


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    build_gateway()
    scratch = new_directory("wheels")
    images = [
        {"name": "plain", "image": build_plugin("colour", scratch, base=BUILD_BASE), "pullPolicy": "Never"},
        {
            "name": "bare",
            "image": build_plugin("shape", scratch, base=BASE, path="/srv/shape"),
            "pullPolicy": "Never",
            "command": ["/usr/bin/python3", "-c", COPY],
        },
        {"name": "whole", "image": build_plugin("mood", scratch, base=BASE), "pullPolicy": "Never", "volume": True},
    ]
    started = Pod(made(values(scratch, wheel(scratch), images)), {"certificate": certificate(scratch)})
    yield started
    started.remove()
    shutil.rmtree(scratch)


def test_it_runs_confined(pod: Pod) -> None:
    status = pod.status
    assert status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["NSpid"].split()[-1] == "1", "the supervisor is not process 1"
    assert pod.writable == {"/tmp", "/var/lib/gatepost"}


def test_it_takes_mail_refuses_to_relay_and_shows_its_metrics(pod: Pod) -> None:
    said = pod.run(
        "selftest", "--smtp", "127.0.0.1:2525", "--http", "http://127.0.0.1:8080", "--starttls",
        "--to", "ben@example.org", "--send", "--json",
    )  # fmt: skip
    assert [trial["ok"] for trial in json.loads(said)] == [True] * 6
    wait_until(lambda: list((pod.claim / "mail/new").glob("*")), "the message is delivered")


def test_policies_from_a_config_map_and_from_a_wheel_are_asked(pod: Pod) -> None:
    for name in ("inline", "wheel"):
        with pod.connect(2525) as client:
            code, text = transact(client, "ann@sender.test", [f"{name}@example.org"])
        assert code == 550 and f"refused by {name}" in text


def test_packages_from_images_are_asked_whoever_copies_them_and_if_nobody_does(pod: Pod) -> None:
    names = ("one.test", "one.two.test", "one.two.three.test", "one.two.three.four.test")
    for name, decided in zip(names, ("colour", "shape", "mood", ""), strict=True):
        with pod.connect(2527) as client:
            client.helo(name)
            code, text = transact(client, f"ann@{name}", ["ben@example.org"])
        assert (code, "not accepted here for now" in text) == ((451, True) if decided else (250, False)), text
        if decided:
            wait_until(partial(deferrals, pod, f"ann@{name}", decided), "the record says who decided")


def test_a_check_before_an_installation_loads_packages_from_a_claim(tmp_path: Path) -> None:
    build_gateway()
    wheel(tmp_path)
    packages = new_directory("packages")
    asked = {
        "config": {"hostname": "mx.example.org", "domains": {}, "pipeline": ["wheel"]},
        "plugins": {"existingClaim": "packages"},
        "checkBeforeInstall": True,
    }
    documents = made(asked)
    job = Job(only(documents, "Job", suffix="-check"), documents, claims={"packages": packages})
    try:
        assert job.run() == 2
        assert "wheel" in job.log, job.log
        install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index"]
        subprocess.run([*install, "--target", str(packages), *map(str, tmp_path.glob("*.whl"))], check=True)
        assert job.run() == 0, job.log
    finally:
        job.remove()
        shutil.rmtree(packages)


def deferrals(pod: Pod, sender: str, plugin: str) -> list[Any]:
    query = ("--sender", sender, "--plugin", plugin, "--verdict", "defer", "--json")
    found: list[Any] = json.loads(pod.run("explain", *query))
    return found


def test_haproxy_says_who_the_client_is_and_nobody_else_may(pod: Pod) -> None:
    config = pod.directory / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        "listen mx\n bind 127.0.0.1:2599\n server gate 127.0.0.1:2526 send-proxy-v2\n"
    )
    command = [binary("nsenter"), f"--net=/proc/{pod.pid}/ns/net", binary("haproxy"), "-db", "-f", str(config)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as haproxy:
        try:
            wait_until(lambda: pod.connect(2599).close() is None, "haproxy")
            with pod.connect(2599, source="127.0.0.77") as client:
                id = queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
            wait_until(
                lambda: [p for p in (pod.claim / "mail/new").glob("*") if id.encode() in p.read_bytes()], "delivery"
            )
            (message,) = (p for p in (pod.claim / "mail/new").glob("*") if id.encode() in p.read_bytes())
            assert b"127.0.0.77" in message.read_bytes().partition(b"\r\n\r\n")[0]
        finally:
            haproxy.terminate()
            haproxy.wait(30)
    with pod.inside(lambda: socket.create_connection(("127.0.0.1", 2526), 30)) as stranger:
        stranger.sendall(b"EHLO client.test\r\n")
        assert b"".join(iter(lambda: stranger.recv(1000), b"")).partition(b" ")[0] in (b"", b"421")


def test_a_new_config_map_is_taken_and_a_broken_one_refused(pod: Pod) -> None:
    mount = pod.mounts["config"]
    good = (mount.path / "gatepost.yaml").read_text()
    mount.put({"gatepost.yaml": good.replace("hostname: mx.example.org", "hostname: new.example.org")})
    wait_until(lambda: pod.metric("gatepost_config_reloads_total", result="done") == 1, "the new one is taken")
    with pod.connect(2525) as client:
        assert client.ehlo()[1].startswith(b"new.example.org")
    mount.put({"gatepost.yaml": good + "\nnonsense: true\n"})
    wait_until(lambda: pod.metric("gatepost_config_reloads_total", result="refused") == 1, "the broken one is refused")
    assert pod.metric("gatepost_config_last_reload_successful") == 0
    with pod.connect(2525) as client:
        assert client.ehlo()[1].startswith(b"new.example.org")
    mount.put({"gatepost.yaml": good})
    wait_until(lambda: pod.metric("gatepost_config_last_reload_successful") == 1, "the good one is taken")
    pod.mounts["policies"].put({"inline.py": POLICY.replace('(("inline",))', '(("other",))')})
    wait_until(lambda: pod.metric("gatepost_config_reloads_total", result="done") == 3, "the new policy is taken")
    with pod.connect(2525) as client:
        assert transact(client, "ann@sender.test", ["other@example.org"])[0] == 550


def test_a_new_certificate_is_taken(pod: Pod) -> None:
    files = certificate(pod.directory)
    wanted = x509.load_pem_x509_certificate(files["tls.crt"]).serial_number

    def shown() -> int:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with pod.connect(2525) as client:
            client.starttls(context=context)
            assert isinstance(client.sock, ssl.SSLSocket)
            return x509.load_der_x509_certificate(client.sock.getpeercert(binary_form=True) or b"").serial_number

    assert shown() != wanted
    pod.mounts["tls"].put(files)
    wait_until(lambda: shown() == wanted, "the new certificate")


def test_a_pod_that_is_killed_has_its_queue_when_it_comes_back(pod: Pod) -> None:
    with pod.connect(2525) as client:
        ids = {queue_id(transact(client, "ann@sender.test", ["ben@down.example.org"])) for _ in range(5)}
    pod.signal("KILL")
    assert pod.ended() == 137
    pod.again()
    assert set(pod.queue()) == ids


def test_sigterm_to_process_1_drains_and_ends_with_status_0(pod: Pod) -> None:
    long = pod.connect(2525)
    assert long.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250
    assert long.docmd("RCPT", "TO:<ben@down.example.org>")[0] == 250
    assert long.docmd("DATA")[0] == 354
    before = set(pod.queue())
    pod.signal("TERM")
    began = time.monotonic()
    wait_until(lambda: pod.get("/readyz")[0] == 503, "readiness is gone")
    assert pod.get("/livez")[0] == 200
    with pod.connect(2525) as client:
        late = queue_id(transact(client, "ann@sender.test", ["ben@down.example.org"]))
    wait_until(lambda: not open_to(pod), "nobody is taken any more")
    assert time.monotonic() - began >= 3
    long.send(MESSAGE + b".\r\n")
    code, text = long.getreply()
    found = re.search(rb"queued as (\w+)", text)
    assert code == 250 and found, text
    assert pod.ended() == 0, pod.log
    pod.again()
    assert set(pod.queue()) == before | {late, found[1].decode()}
    pod.signal("TERM")
    assert pod.ended() == 0


def open_to(pod: Pod) -> bool:
    try:
        pod.connect(2525).close()
    except OSError:
        return False
    return True
