"""No room, no port, no sense: clear errors, bounded damage, and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

import pytest

from tests.interop.settings import delivered, maildir, unreachable
from tests.support.clients import connect, queue_id, transact
from tests.support.disk import free, small_disk
from tests.support.gatepost import ROOT, configuration, refused_start, write_configuration
from tests.support.process import Process, free_port, wait_until

pytestmark = pytest.mark.slow


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 3_000_000], ids=["inline", "in a file"])
def test_a_full_disk_says_452_and_stores_nothing_half(gatepost, directory: Path, size: int):
    with small_disk(directory, "size=12m") as disk:
        gate = gatepost(spool={"path": str(disk / "spool"), "min_free": "1B"}, domains=unreachable())
        content = b"Subject: large\r\n\r\n" + (b"z" * 70 + b"\r\n") * (size // 72)
        with connect(gate.port) as client:
            stored = [queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))]
            with (disk / "filler").open("wb") as filler:
                filler.write(bytes(max(0, free(disk) - size // 2)))
            before = free(disk)
            for _ in range(20):
                code, text = transact(client, "ann@sender.test", ["ben@example.org"], content)
                if code != 250:
                    break
                stored.append(queue_id((code, text)))
            assert code == 452
            assert text.startswith("4.3.1 ")
            assert {entry["id"] for entry in gate.queue()} == set(stored)
            if len(stored) == 1:
                assert free(disk) >= before - (256 << 10), "what had arrived of it is gone again"

            (disk / "filler").unlink()

            def taken() -> tuple[int, str] | None:
                reply = transact(client, "ann@sender.test", ["ben@example.org"], content)
                return reply if reply[0] == 250 else None

            stored.append(queue_id(wait_until(taken, "there is room again")))
            assert {entry["id"] for entry in gate.queue()} == set(stored)
        gate.stop()


def test_with_less_than_min_free_mail_is_refused_early_and_it_is_not_ready(gatepost, directory: Path):
    with small_disk(directory, "size=8m") as disk:
        gate = gatepost(spool={"path": str(disk / "spool"), "min_free": "4MiB"}, domains=unreachable())
        (disk / "filler").write_bytes(bytes(free(disk) - (2 << 20)))
        with connect(gate.port) as client:

            def refused() -> tuple[int, bytes] | None:
                reply = client.docmd("MAIL", "FROM:<ann@sender.test> SIZE=1000")
                client.rset()
                return reply if reply[0] != 250 else None

            code, text = wait_until(refused, "it has noticed")
            assert code == 452
            assert text.startswith(b"4.3.1 ")
        wait_until(lambda: gate.http("GET", "/readyz")[0] == 503, "it is not ready")
        assert gate.http("GET", "/livez")[0] == 200
        gate.stop()


# --- what refuses to start --------------------------------------------------------------------------------------------


def test_a_busy_port_is_named_and_the_status_is_2():
    with socket.create_server(("127.0.0.1", free_port())) as holder:
        port = holder.getsockname()[1]
        status, said = refused_start({"listeners": [{"address": f"127.0.0.1:{port}", "role": "edge"}]})
    assert status == 2, said
    assert str(port) in said
    assert "Traceback" not in said


def test_a_busy_admin_port_is_named_and_the_status_is_2():
    with socket.create_server(("127.0.0.1", free_port())) as holder:
        port = holder.getsockname()[1]
        status, said = refused_start({"admin": {"address": f"127.0.0.1:{port}"}})
    assert status == 2, said
    assert str(port) in said
    assert "Traceback" not in said


def test_a_spool_that_cannot_be_written_is_named_and_the_status_is_2(directory: Path):
    with small_disk(directory, "size=1m,ro") as disk:
        status, said = refused_start({"spool": {"path": str(disk / "spool")}})
    assert status == 2, said
    assert str(disk / "spool") in said
    assert "Traceback" not in said


def test_a_spool_path_that_is_a_file_is_named_and_the_status_is_2(directory: Path):
    (directory / "spool").write_text("not a directory")
    status, said = refused_start({"spool": {"path": str(directory / "spool")}})
    assert status == 2, said
    assert str(directory / "spool") in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("hostname: mx.example.org\nlistners: []\n", 2, "listners"),
        ("hostname: mx.example.org\nworkers: many\nlisteners: [{address: '127.0.0.1:2525'}]\n", 2, "workers"),
        ("hostname: a.example\nworkers: 1\nhostname: b.example\n", 3, "hostname"),
        ("listeners: [{address: '127.0.0.1:2525'}]\npipeline:\n  - spff: {}\n", 3, "spff"),
        ("listeners: [{address: '127.0.0.1:2525'}]\npipeline:\n  - dnsbl: {zons: {}}\n", 3, "zons"),
        ("listeners: [{address: '127.0.0.1:2525'}\n", 1, ""),
    ],
    ids=["unknown key", "wrong type", "duplicate key", "unknown plugin", "unknown plugin option", "no YAML"],
)
def test_a_wrong_configuration_is_refused_with_file_and_line(text: str, line: int, word: str):
    status, said = refused_start({}, text=text)
    assert status == 2, said
    assert re.search(rf"gatepost\.yaml:{line}\b" if word else r"gatepost\.yaml:\d+", said), said
    assert word in said
    assert "Traceback" not in said


def test_check_and_pipeline_tell_right_from_wrong(directory: Path):
    program = str(ROOT / ".venv/bin/gatepost")
    good = write_configuration(directory, configuration(directory, {"pipeline": ["spf"]}))
    check = Process([program, "check", "-c", str(good)], directory / "log")
    assert check.wait() == 0, check.log
    table = Process([program, "pipeline", "-c", str(good)], directory / "table")
    assert table.wait() == 0, table.log
    assert "spf" in table.log
    missing = Process([program, "check", "-c", str(directory / "nowhere.yaml")], directory / "log2")
    assert missing.wait() == 2, missing.log


def test_the_demo_configuration_is_valid(directory: Path):
    check = Process(
        [str(ROOT / ".venv/bin/gatepost"), "check", "-c", str(ROOT / "gatepost.demo.yaml")], directory / "log", cwd=ROOT
    )
    assert check.wait() == 0, check.log


# --- hostile clients --------------------------------------------------------------------------------------------------


def conversation(port: int, sent: bytes) -> list[bytes]:
    """Send these octets after the greeting; gives the lines that came back until the server closed."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        assert sock.recv(1000).startswith(b"220 ")
        with contextlib.suppress(OSError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            while block := sock.recv(65536):
                said += block
    return said.splitlines()


def test_an_http_client_is_cut_off_at_once(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory))
    lines = conversation(
        gate.port,
        b"POST / HTTP/1.1\r\nHost: mx\r\n\r\nEHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<ben@example.org>\r\nDATA\r\n"
        b"Subject: smuggled\r\n\r\n.\r\nQUIT\r\n",
    )
    assert not [line for line in lines if line.startswith((b"250", b"354"))], lines
    assert gate.metric("gatepost_messages_total", outcome="accepted") == 0


@pytest.mark.parametrize("garbage", [b"\0\xff" * 5000, b"A" * 200_000, b"\r\n" * 1000, b"EHLO\r\n" * 100])
def test_garbage_ends_the_session_and_nothing_else(gatepost, directory: Path, garbage: bytes):
    gate = gatepost(domains=maildir(directory))
    start = time.monotonic()
    lines = conversation(gate.port, garbage)
    assert time.monotonic() - start < 20
    assert not [line for line in lines if line.startswith(b"250 2.0.0")]
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))


def test_a_message_over_the_limit_is_refused_and_the_session_goes_on(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory), limits={"message_size": "64KiB"})
    with connect(gate.port) as client:
        code, _ = transact(client, "ann@sender.test", ["ben@example.org"], parameters=" SIZE=100000")
        assert code == 552
        code, _ = transact(
            client, "ann@sender.test", ["ben@example.org"], b"Subject: x\r\n\r\n" + b"y" * 90_000 + b"\r\n"
        )
        assert code == 552
        queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
    gate.wait_empty()
    assert len(delivered(directory)) == 1


def test_smuggled_ends_of_data_stay_inside_one_message(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory))
    inner = b"MAIL FROM:<evil@sender.test>\r\nRCPT TO:<ben@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nHi\r\n"
    ends = (b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\n.\n")
    for end in ends:
        with connect(gate.port) as client:
            client.docmd("MAIL", "FROM:<ann@sender.test>")
            client.docmd("RCPT", "TO:<ben@example.org>")
            assert client.docmd("DATA")[0] == 354
            client.send(b"Subject: outer\r\n\r\nHello" + end + inner + b".\r\n")
            code, text = client.getreply()
            queue_id((code, text.decode()))
            assert client.docmd("NOOP")[0] == 250, "and this is the very next reply"
    gate.wait_empty()
    assert len(delivered(directory)) == len(ends)
    for path in delivered(directory):
        stored = path.read_bytes()
        assert b"Subject: smuggled" in stored
        assert b"\r" not in stored.replace(b"\r\n", b"")
