"""A running gateway takes one configuration after another, under load, and nobody notices."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import smtplib
import ssl
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import delivered, maildir
from tests.support.clients import connect, queue_id, reference, transact
from tests.support.gatepost import GatepostProcess, write_configuration
from tests.support.guest import Guest
from tests.support.process import free_port, wait_until
from tests.support.servers import Certificate, make_certificate

pytestmark = [pytest.mark.slow, pytest.mark.first]

RELOADS = 100
BROKEN = ("pipeline: [", '{"listeners": []}', '{"pipeline": ["nosuchplugin"]}')


def policy(number: int) -> list[Any]:
    """Tells in a refusal, and in a field of what it takes, that it is this one."""
    rules = [
        {"when": 'recipient.local == "probe"', "at": "rcpt", "then": {"reject": f"5.7.1 policy {number}"}},
        {"when": "message.size > 0", "then": {"add_header": {"X-Policy": f"{number}"}}},
    ]
    return [{"rules": rules}]


class File:
    """The configuration file of a gateway, replaced in each of the ways in which operators do it."""

    def __init__(self, gate: GatepostProcess) -> None:
        self.gate = gate
        self.path = gate.config
        self._count = 0

    def write(self, text: str) -> str:
        """Write it, and give its digest."""
        self._count += 1
        beside = self.path.with_suffix(f".{self._count}")
        beside.write_text(text)
        match self._count % 3:
            case 0:
                os.replace(beside, self.path)
            case 1:
                # As Kubernetes does with a ConfigMap: the name stays a link, and leads elsewhere at once.
                link = self.path.with_suffix(".link")
                link.symlink_to(beside)
                os.replace(link, self.path)
            case _:
                self.path.write_text(text)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def take(self, number: int) -> str:
        return self.write(json.dumps({**self.gate.options, "pipeline": policy(number)}))


class Load(threading.Thread):
    """A client that sends messages in session after session, some of them long, and keeps what it was told."""

    def __init__(self, gate: GatepostProcess, name: str, length: int) -> None:
        super().__init__(name=name)
        self.gate = gate
        self.length = length
        self.ending = threading.Event()
        self.problems: list[str] = []
        self.sent: dict[str, str] = {}
        self.sessions: list[set[str]] = []

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                self._session()
            except (OSError, smtplib.SMTPException, AssertionError) as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def _session(self) -> None:
        heard: set[str] = set()
        self.sessions.append(heard)
        with connect(self.gate.port) as client:
            for _ in range(self.length):
                code, text = transact(client, "ann@sender.test", ["probe@example.org"])
                found = re.search(r"policy (\d+) ", text)
                assert code == 550 and found, (code, text)
                heard.add(found[1])
                marker = f"{self.name}-{len(self.sent)}"
                content = f"Subject: {marker}\r\nFrom: a@sender.test\r\n\r\nHello.\r\n".encode()
                queue_id(transact(client, "ann@sender.test", ["ben@example.org"], content))
                self.sent[marker] = found[1]
                self.ending.wait(0.02)


def status(gate: GatepostProcess) -> list[tuple[int, str]]:
    """Generation and digest, by worker."""
    workers = json.loads(gate.http("GET", "/api/v1/status")[1])["workers"]
    return [(worker["generation"], worker["config"]) for worker in workers]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_hundred_reloads_under_load_lose_no_session_and_no_message(gatepost, directory: Path):
    limits = {"errors": 1000, "sessions_per_client": 1000}
    gate = gatepost(workers=2, domains=maildir(directory), limits=limits, pipeline=policy(0))
    file = File(gate)
    before = [descriptors(pid) for pid in (gate.process.pid, *gate.workers)]
    loads = [Load(gate, f"client{i}", length) for i, length in enumerate((2, 2, 10, 50))]
    for load in loads:
        load.start()
    try:
        for number in range(1, RELOADS + 1):
            digest = file.take(number)
            everywhere = [(number + 1, digest)] * 2
            if number % 2:
                gate.process.signal(signal.SIGHUP)
                wait_until(lambda now=everywhere: status(gate) == now, f"reload {number} takes effect everywhere")
            else:
                code, body = gate.http("POST", "/api/v1/reload")
                assert (code, json.loads(body)["result"]) == (200, "done"), body
                assert status(gate) == everywhere
            if number % 10 == 5:
                file.write(BROKEN[number // 10 % len(BROKEN)])
                code, body = gate.http("POST", "/api/v1/reload")
                assert (code, json.loads(body)["result"]) == (409, "refused")
                assert status(gate) == everywhere
    finally:
        for load in loads:
            load.ending.set()
        for load in loads:
            load.join()
    assert [load.problems for load in loads] == [[]] * len(loads)
    # One and the same policy from the beginning of each session to its end; and sessions did span reloads.
    assert all(len(heard) <= 1 for load in loads for heard in load.sessions)
    assert len({number for load in loads for heard in load.sessions for number in heard}) > RELOADS // 10
    gate.wait_empty()
    assert sum(len(load.sent) for load in loads) > RELOADS
    sent = {marker: number for load in loads for marker, number in load.sent.items()}
    arrived = [arrived_as(path) for path in delivered(directory)]
    assert Counter(marker for marker, _ in arrived) == Counter(sent.keys())
    assert dict(arrived) == sent
    assert gate.metric("gatepost_config_reloads_total", result="done") == RELOADS
    assert gate.metric("gatepost_config_reloads_total", result="refused") == RELOADS // 10

    def closed() -> bool:
        after = [descriptors(pid) for pid in (gate.process.pid, *gate.workers)]
        return all(now <= then + 4 for then, now in zip(before, after, strict=True))

    wait_until(closed, "what old configurations used is closed")


def arrived_as(path: Path) -> tuple[str, str]:
    """Marker and policy of a message in a mailbox."""
    text = path.read_text()
    marker, number = re.search(r"(?m)^Subject: (.*)$", text), re.search(r"(?m)^X-Policy: (.*)$", text)
    assert marker and number, text
    return marker[1], number[1]


def fingerprint(gate: GatepostProcess, shown: Certificate) -> tuple[smtplib.SMTP, bytes]:
    """A session over TLS that shows a certificate, and the one that it was offered."""
    client = connect(gate.port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(shown.certificate, shown.key)
    client.starttls(context=context)
    client.ehlo()
    assert isinstance(client.sock, ssl.SSLSocket)
    return client, client.sock.getpeercert(binary_form=True) or b""


def certificates_seen(gate: GatepostProcess) -> tuple[float, float]:
    verified, unverified = (
        gate.metric("gatepost_client_certificates_total", result=result) for result in ("verified", "unverified")
    )
    return verified, unverified


def der(made: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(made.certificate.read_text())


def test_certificates_are_read_anew_and_sessions_keep_theirs(gatepost, directory: Path, certificate: Certificate):
    used = Certificate(directory / "cert.pem", directory / "key.pem")
    for new, old in zip((used.certificate, used.key), (certificate.certificate, certificate.key), strict=True):
        shutil.copy(old, new)
    clients = directory / "clients.pem"
    shutil.copy(certificate.certificate, clients)
    tls = {"certificate": str(used.certificate), "key": str(used.key), "client_ca": str(clients)}
    listeners = [{"address": f"127.0.0.1:{free_port()}", "tls": tls}]
    gate = gatepost(workers=2, domains=maildir(directory), listeners=listeners)
    before, first = fingerprint(gate, certificate)
    assert first == der(certificate)
    other = make_certificate(directory)
    shutil.copy(other.certificate, clients)
    assert gate.cli("reload")["result"] == "done"
    for _ in range(4):
        after, second = fingerprint(gate, certificate)
        after.quit()
        assert second == der(other) != first
    queue_id(transact(before, "ann@sender.test", ["ben@example.org"]))
    before.quit()
    # A key that does not belong to the certificate is no configuration.
    key = used.key.read_bytes()
    used.key.write_bytes(certificate.key.read_bytes())
    assert "listeners[0].tls.certificate" in gate.refused("reload")
    assert gate.http("POST", "/api/v1/reload")[0] == 409
    used.key.write_bytes(key)
    clients.write_text("-----BEGIN CERTIFICATE-----")
    assert "listeners[0].tls.client_ca" in gate.refused("reload")
    after, third = fingerprint(gate, certificate)
    after.quit()
    assert third == second
    # The first CA vouched for the one session before the reload, and the second for none of the others.
    assert certificates_seen(gate) == (1.0, 5.0)


def test_the_command_checks_first_and_tells_what_came_of_it(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    said = gate.cli("reload")
    digest = hashlib.sha256(gate.config.read_bytes()).hexdigest()[:12]
    assert (said["result"], said["generation"], said["config"], said["checked"]) == ("done", 2, digest, digest)
    assert [worker["generation"] for worker in said["workers"]] == [2, 2]
    assert said["needs_restart"] == []
    assert said["file"] == str(gate.config)

    write_configuration(gate.directory, {**gate.options, "workers": 3, "spool": {"path": "elsewhere"}})
    assert "needs a restart: workers\nneeds a restart: spool.path\n" in gate.run("reload")
    assert gate.log.count("reload.needs_restart") == 2

    write_configuration(gate.directory, {**gate.options, "pipeline": ["nosuchplugin"]})
    assert "pipeline[0]: no plugin or policy is called nosuchplugin" in gate.refused("reload")
    problems = gate.cli("reload", status=2)["problems"]
    assert [problem["key"] for problem in problems] == ["pipeline[0]"]
    assert {generation for generation, _ in status(gate)} == {3}
    assert "reload.refused" not in gate.log

    # What the gateway runs with is another file than that which was checked.
    other = gate.directory / "other.yaml"
    write_configuration(gate.directory, gate.options)
    other.write_text(json.dumps({**gate.options, "hostname": "other.test"}))
    assert "the file that was checked is" in gate.refused("reload", status=1, config=other)
    gate.stop()
    assert "does the gateway run" in gate.refused("reload", status=1)


def test_what_a_worker_cannot_start_none_takes(gatepost, directory: Path):
    table = directory / "table"
    table.write_text("/^Subject: bad/ REJECT\n")
    entry = {"content-checks": {"tables": [{"match": ["header"], "kind": "regexp", "file": str(table)}]}}
    gate = gatepost(workers=2, domains=maildir(directory), pipeline=[entry])
    table.write_text("/^Subject: bad\n")
    said = gate.cli("reload", status=1)
    assert said["result"] == "refused" and "content-checks" in said["reason"]
    assert {generation for generation, _ in status(gate)} == {1}
    with connect(gate.port) as client:
        code, text = transact(client, "ann@sender.test", ["ben@example.org"], b"Subject: bad\r\n\r\n")
    assert code == 550
    record = gate.cli("explain", reference(text))[0]["record"]
    assert record["config"] == status(gate)[0][1]


def test_a_worker_that_dies_comes_back_with_the_last_good_configuration(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory), pipeline=policy(1))
    file = File(gate)
    digest = file.take(2)
    assert gate.cli("reload")["generation"] == 2
    file.write("pipeline: [")
    victims = gate.workers
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: status(gate) == [(2, digest)] * 2, "both are back, with what was good")
    for _ in range(4):
        with connect(gate.port) as client:
            assert "policy 2 " in transact(client, "ann@sender.test", ["probe@example.org"])[1]
    assert gate.http("POST", "/api/v1/reload")[0] == 409
    # A reload while a worker is away, or just starting, kills nobody, and the worker has it when it is back.
    digest = file.take(3)
    os.kill(gate.workers[0], signal.SIGKILL)
    gate.process.signal(signal.SIGHUP)
    wait_until(lambda: status(gate) == [(3, digest)] * 2, "both have the new one")
    assert gate.metric("gatepost_worker_restarts_total") == 3


def test_reloads_that_are_asked_for_at_once_are_all_answered(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory), pipeline=policy(1))
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(gate.http("POST", "/api/v1/reload"))) for _ in range(8)]
    digest = File(gate).take(2)
    for thread in threads:
        thread.start()
        gate.process.signal(signal.SIGHUP)
    for thread in threads:
        thread.join()
    assert [(code, json.loads(body)["config"]) for code, body in answers] == [(200, digest)] * 8


def test_a_lent_pipeline_is_reloaded_too_and_must_still_be_there(running):
    guest = running(Guest("delegate", [], "--pipeline", "lent", pipelines={"lent": ["spf"]}))
    said = guest.cli("reload")
    assert (said["result"], said["generation"], said["needs_restart"]) == ("done", 2, [])
    guest.rewrite(pipelines={"other": []})
    said = guest.cli("reload", status=1)
    assert (said["result"], said["generation"]) == ("refused", 2)
    assert "no pipeline lent any more" in said["reason"]


POLICY = '''
"""A policy that stands in a file."""

from gateway.sdk import Policy, Session, Verdict, reject


class Filed(Policy):
    """Refuses everybody, and says which one it is."""

    name = "filed"

    def on_helo(self, session: Session) -> Verdict:
        return reject("7.1", "policy {}")
'''


def test_policies_in_files_are_read_anew(gatepost, directory: Path):
    folder = directory / "policies"
    folder.mkdir()
    (folder / "filed.py").write_text(POLICY.replace("{}", "one"))
    gate = gatepost(workers=2, domains=maildir(directory), policy_folder=str(folder), pipeline=["filed"])

    def said() -> set[bytes]:
        answers = set()
        for _ in range(4):
            with smtplib.SMTP("127.0.0.1", gate.port, local_hostname="client.test") as client:
                answers.add(client.ehlo()[1].partition(b" (ref")[0])
        return answers

    assert said() == {b"5.7.1 policy one"}
    (folder / "filed.py").write_text(POLICY.replace("{}", "two"))
    assert said() == {b"5.7.1 policy one"}
    assert gate.cli("reload")["generation"] == 2
    assert said() == {b"5.7.1 policy two"}
    (folder / "filed.py").write_text("class Filed(")
    assert "filed.py:1" in gate.refused("reload")
    assert gate.http("POST", "/api/v1/reload")[0] == 409
    assert said() == {b"5.7.1 policy two"}
