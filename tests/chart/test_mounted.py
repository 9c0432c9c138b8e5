"""A gateway whose files are mounted as Kubernetes does it, asked by a selftest, and ended while clients come."""

from __future__ import annotations

import http.client
import json
import signal
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from gateway.app.watch import Watch
from gateway.config import load
from tests.chart.mount import Mount
from tests.interop.settings import maildir
from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.gatepost import GatepostProcess
from tests.support.process import free_port, new_directory, wait_until
from tests.support.servers import make_certificate


def certificate_files(directory: Path) -> dict[str, str | bytes]:
    made = make_certificate(directory)
    return {"tls.crt": made.certificate.read_bytes(), "tls.key": made.key.read_bytes()}


class Mounted(GatepostProcess):
    """A gateway that reads mounted files, and shows probes and metrics at an address of their own."""

    def start(self) -> None:
        self.configuration, self.secret = Mount(self.directory / "config"), Mount(self.directory / "tls")
        self.secret.put(certificate_files(self.directory))
        tls = {"certificate": f"{self.secret.path}/tls.crt", "key": f"{self.secret.path}/tls.key"}
        self.options["listeners"][0]["tls"] = tls
        self.put()
        self.config = self.configuration.path / "gatepost.yaml"
        super().start()

    def put(self, **options: object) -> None:
        self.configuration.put({"gatepost.yaml": json.dumps({**self.options, **options})})

    @property
    def health_port(self) -> int:
        return int(self.options["admin"]["health"].rpartition(":")[2])

    def health(self, path: str, method: str = "GET") -> int:
        """The status of an answer at the open address, asked by a name that is none of ours."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=10)
        try:
            connection.request(method, path, headers={"Host": f"10.1.2.3:{self.health_port}"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def reloads(self) -> tuple[float, float, float]:
        """Done and refused ones, and whether the last one was done."""
        return (
            self.metric("gatepost_config_reloads_total", result="done"),
            self.metric("gatepost_config_reloads_total", result="refused"),
            self.metric("gatepost_config_last_reload_successful"),
        )


@pytest.fixture(scope="module")
def gate() -> Iterator[Mounted]:
    directory = new_directory("mounted")
    options = {
        "admin": {"address": f"127.0.0.1:{free_port()}", "health": f"0.0.0.0:{free_port()}"},
        "domains": maildir(directory),
        "reload": {"watch": "100ms"},
        "timeouts": {"drain_delay": "3s"},
    }
    made = Mounted(options)
    yield made
    made.kill()


def expiry(gate: Mounted) -> datetime:
    return datetime.fromtimestamp(gate.metric("gatepost_certificate_expiry_timestamp_seconds"), UTC)


def serial(gate: Mounted) -> int:
    """The serial number of the certificate that a new session is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(gate.port) as client:
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        der = client.sock.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der).serial_number


@pytest.mark.slow
def test_the_open_address_answers_probes_and_metrics_and_nothing_else(gate: Mounted) -> None:
    answers = {path: gate.health(path) for path in ("/livez", "/readyz", "/startupz", "/metrics", "/api/v1/queue")}
    assert answers == {"/livez": 200, "/readyz": 200, "/startupz": 200, "/metrics": 200, "/api/v1/queue": 404}
    assert gate.health("/drain", "POST") == 404
    assert gate.http("GET", "/api/v1/queue")[0] == 200


@pytest.mark.slow
def test_a_turned_link_is_taken_and_a_broken_file_behind_it_is_refused_until_it_is_turned_again(gate: Mounted) -> None:
    gate.put(hostname="other.example.org")
    wait_until(lambda: gate.reloads() == (1, 0, 1), "the new file is taken")
    with connect(gate.port) as client:
        assert client.ehlo()[1].startswith(b"other.example.org")
    gate.configuration.put({"gatepost.yaml": "listeners: ["})
    wait_until(lambda: gate.reloads() == (1, 1, 0), "the broken file is refused")
    with connect(gate.port) as client:
        assert client.ehlo()[1].startswith(b"other.example.org")
    gate.put()
    wait_until(lambda: gate.reloads() == (2, 1, 1), "the good file is taken")


@pytest.mark.slow
def test_a_new_certificate_is_shown_to_new_sessions(gate: Mounted) -> None:
    before = serial(gate)
    files = certificate_files(gate.directory)
    made = x509.load_pem_x509_certificate(bytes(files["tls.crt"]))  # type: ignore[arg-type]
    gate.secret.put(files)
    wait_until(lambda: serial(gate) != before, "the new certificate")
    assert serial(gate) == made.serial_number
    assert expiry(gate) == made.not_valid_after_utc


@pytest.mark.slow
def test_a_selftest_says_what_it_asked_and_what_went_wrong(gate: Mounted) -> None:
    from click.testing import CliRunner

    from gateway.cli import main

    def run(*arguments: str) -> tuple[int, dict[str, bool]]:
        result = CliRunner().invoke(main, ["selftest", *arguments, "--json"])
        return result.exit_code, {trial["name"]: trial["ok"] for trial in json.loads(result.stdout)}

    smtp, http = ["--smtp", f"127.0.0.1:{gate.port}"], ["--http", f"http://127.0.0.1:{gate.health_port}"]
    status, trials = run(*smtp, *http, "--to", "ben@example.org", "--send", "--starttls")
    assert status == 0
    assert list(trials) == ["greeting", "starttls", "relaying is refused", "mail is taken", "/readyz", "/metrics"]
    # An address of ours is no stranger's: taking it looks like relaying.
    assert run(*smtp, "--foreign", "ben@example.org") == (1, {"greeting": True, "relaying is refused": False})
    assert run(*smtp, "--to", "ben@example.net")[1]["mail is taken"] is False
    nobody = free_port()
    assert run("--smtp", f"127.0.0.1:{nobody}", "--http", f"http://127.0.0.1:{nobody}") == (
        1,
        {"greeting": False, "/readyz": False, "/metrics": False},
    )


@pytest.mark.slow
def test_new_sessions_are_served_after_sigterm_until_the_delay_is_over(gate: Mounted) -> None:
    long = connect(gate.port)
    assert long.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250
    gate.process.signal(signal.SIGTERM)
    began = time.monotonic()
    wait_until(lambda: gate.health("/readyz") == 503, "readiness is gone")
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
    wait_until(lambda: closed(gate), "nobody is taken any more")
    assert time.monotonic() - began >= 3
    # The transaction that was open all the time ends as any other, and the session with it.
    assert long.docmd("RCPT", "TO:<ben@example.org>")[0] == 250
    assert long.docmd("DATA")[0] == 354
    long.send(MESSAGE + b".\r\n")
    assert long.getreply()[0] == 250
    assert long.getreply()[0] == 421
    long.close()
    assert gate.process.wait() == 0


def closed(gate: Mounted) -> bool:
    try:
        connect(gate.port).close()
    except OSError:
        return True
    return False


def test_a_watch_sees_files_behind_links_and_files_that_come_and_go(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "config")
    base = {"hostname": "mx.example.org", "listeners": [{"address": "127.0.0.1:25"}], "reload": {"watch": "5s"}}
    folder = tmp_path / "policies"
    folder.mkdir()
    mount.put({"gatepost.yaml": json.dumps({**base, "policy_folder": str(folder)})})
    config = load(str(mount.path / "gatepost.yaml"))
    watch = Watch(config, 100.0)
    assert not watch.changed(config, 105.0)
    mount.put({"gatepost.yaml": json.dumps(base)})
    assert not watch.changed(config, 109.9), "it is not time for a look"
    assert watch.changed(config, 110.0)
    (folder / "own.py").write_text("")
    (folder / "__pycache__").mkdir()
    assert watch.changed(config, 115.0)
    (folder / "own.txt").write_text("")
    assert not watch.changed(config, 120.0)
    (folder / "own.py").unlink()
    assert watch.changed(config, 125.0)
    watch.adopt(load(str(mount.path / "gatepost.yaml")))
    assert not watch.changed(load(str(mount.path / "gatepost.yaml")), 130.0)


def test_a_configuration_that_asks_for_no_watch_is_not_watched(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"
    file.write_text(json.dumps({"hostname": "mx.example.org", "listeners": [{"address": "127.0.0.1:25"}]}))
    config = load(str(file))
    watch = Watch(config, 0.0)
    file.unlink()
    assert not watch.changed(config, 1e9)
