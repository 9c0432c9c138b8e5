"""What an operator does to a running Gatepost, and what befalls it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import smtplib
import socket
import threading
from pathlib import Path

import pytest

from tests.interop.settings import delivered, maildir, unreachable
from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.gatepost import GatepostProcess, write_configuration
from tests.support.process import alive, wait_until

pytestmark = pytest.mark.slow


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_is_listed_shown_flushed_and_dropped(gatepost):
    gate = gatepost(domains=unreachable())
    with connect(gate.port) as client:
        first = queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
        second = queue_id(transact(client, "", ["carl@example.org"]))

    def attempted() -> bool:
        return gate.metric("gatepost_attempts_total", outcome="deferred") >= 2

    wait_until(attempted, "both were tried")
    assert {entry["id"] for entry in gate.queue()} == {first, second}
    assert first in gate.run("queue", "list")
    shown = json.dumps(gate.cli("queue", "show", first))
    assert "ben@example.org" in shown
    assert "ann@sender.test" in shown
    before = gate.metric("gatepost_attempts_total")
    gate.run("queue", "flush")
    wait_until(lambda: gate.metric("gatepost_attempts_total") >= before + 2, "a flush tries both again")
    gate.run("queue", "drop", first)
    assert [entry["id"] for entry in gate.queue()] == [second]
    gate.run("queue", "drop", first, status=1)
    gate.run("queue", "show", "NOSUCHID", status=1)


def test_the_queue_can_be_read_and_changed_while_gatepost_is_down(gatepost):
    gate = gatepost(domains=unreachable())
    with connect(gate.port) as client:
        id = queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
    gate.stop()
    assert [entry["id"] for entry in gate.queue()] == [id]
    assert "ben@example.org" in json.dumps(gate.cli("explain", id))
    gate.run("queue", "drop", id)
    assert gate.queue() == []
    gate.start()
    assert gate.queue() == []


def test_mail_survives_a_restart_with_another_number_of_workers(gatepost, directory: Path):
    gate = gatepost(workers=3, domains=unreachable())
    ids = set()
    for _ in range(12):
        with connect(gate.port) as client:
            ids.add(queue_id(transact(client, "ann@sender.test", ["ben@example.org"])))
    gate.stop()

    gate.options["workers"] = 1
    gate.options["domains"] = maildir(directory)
    write_configuration(gate.directory, gate.options)
    gate.start()
    gate.run("queue", "flush")
    gate.wait_empty()
    assert len(ids) == 12
    assert len(delivered(directory)) == 12


# --- ending and dying -------------------------------------------------------------------------------------------------


def test_sigterm_lets_the_open_transaction_finish_and_delivers_it_once(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory))
    client = connect(gate.port)
    with contextlib.closing(client):
        client.docmd("MAIL", "FROM:<ann@sender.test>")
        client.docmd("RCPT", "TO:<ben@example.org>")
        assert client.docmd("DATA")[0] == 354
        client.send(MESSAGE[:50])
        gate.process.signal(signal.SIGTERM)

        def closed() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", gate.port), timeout=5) as sock:
                    return sock.recv(100)[:3] in (b"", b"421")
            except ConnectionError:
                return True

        wait_until(closed, "new clients are turned away")
        client.send(MESSAGE[50:] + b".\r\n")
        code, text = client.getreply()
        queue_id((code, text.decode()))
    assert gate.process.wait() == 0
    gate.start()
    gate.wait_empty()
    assert len(delivered(directory)) == 1


def test_idle_sessions_do_not_delay_sigterm_and_hear_421(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory))
    client = connect(gate.port)
    gate.process.signal(signal.SIGTERM)
    assert client.getreply()[0] == 421
    assert gate.process.wait(20) == 0
    client.close()


def test_a_killed_worker_is_replaced_and_its_mail_is_not_lost(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    ids = []
    for _ in range(10):
        with connect(gate.port) as client:
            ids.append(queue_id(transact(client, "ann@sender.test", ["ben@example.org"])))
    before = set(gate.workers)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: len(gate.workers) == 2 and victim not in gate.workers and all(map(alive, gate.workers)),
        "the worker is replaced",
    )
    wait_until(lambda: gate.http("GET", "/readyz")[0] == 200, "it takes mail again")
    for _ in range(10):
        with connect(gate.port) as client:
            ids.append(queue_id(transact(client, "ann@sender.test", ["ben@example.org"])))
    gate.wait_empty()
    assert len(set(ids)) == 20
    assert len(delivered(directory)) >= 20
    assert gate.metric("gatepost_worker_restarts_total") == 1


def test_a_killed_gatepost_delivers_what_it_had_acknowledged(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=unreachable())
    with connect(gate.port) as client:
        ids = [queue_id(transact(client, "ann@sender.test", ["ben@example.org"])) for _ in range(20)]
    gate.kill()
    gate.options["domains"] = maildir(directory)
    write_configuration(gate.directory, gate.options)
    gate.start()
    gate.run("queue", "flush")
    gate.wait_empty()
    arrived = b"".join(path.read_bytes() for path in delivered(directory)).decode()
    assert [id for id in ids if id not in arrived] == []


# --- health and metrics -----------------------------------------------------------------------------------------------


def test_health_and_metrics_are_served(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    for path in ("/livez", "/readyz", "/startupz"):
        assert gate.http("GET", path)[0] == 200, path
    for _ in range(6):
        with connect(gate.port) as client:
            queue_id(transact(client, "ann@sender.test", ["ben@example.org"]))
    wait_until(lambda: gate.metric("gatepost_messages_total", outcome="accepted") == 6, "all six are counted")
    gate.wait_empty()
    assert gate.metric("gatepost_spool_commit_seconds_count") > 0
    assert gate.metric("gatepost_replies_total", command="RCPT", code="250") == 6


def test_drain_makes_it_unready(gatepost, directory: Path):
    gate = gatepost(domains=maildir(directory))
    assert gate.http("POST", "/drain")[0] in (200, 202)
    wait_until(lambda: gate.process.status is not None or gate.http("GET", "/readyz")[0] == 503, "it is not ready")


# --- reload -----------------------------------------------------------------------------------------------------------


def reloaded(gate: GatepostProcess, times: int) -> None:
    """Wait until every worker said so."""
    wait_until(lambda: gate.log.count("reload.done") >= 2 * times, "both workers have reloaded")


def test_sighup_takes_a_new_policy_without_dropping_a_session(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    with connect(gate.port) as before:
        before.mail("ann@sender.test")
        domains = {**maildir(directory), "new.test": {"next_hop": f"maildir:{directory}/new", "recipients": "any"}}
        write_configuration(gate.directory, {**gate.options, "domains": domains})
        os.kill(gate.process.pid, signal.SIGHUP)
        reloaded(gate, 1)
        assert before.rcpt("ben@new.test")[0] == 550
        assert before.rcpt("ben@example.org")[0] == 250
        assert before.data(MESSAGE)[0] == 250
    with connect(gate.port) as after:
        assert transact(after, "ann@sender.test", ["ben@new.test"])[0] == 250
    gate.wait_empty()
    assert len(list((directory / "new/new").iterdir())) == 1


def test_a_bad_configuration_is_refused_at_reload_and_the_old_one_stays(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    write_configuration(gate.directory, {**gate.options, "domains": {"example.org": {"next_hop": "nonsense"}}})
    os.kill(gate.process.pid, signal.SIGHUP)
    wait_until(lambda: "reload.refused" in gate.log, "the reload was refused")
    with connect(gate.port) as client:
        assert transact(client, "ann@sender.test", ["ben@example.org"])[0] == 250
    wait_until(lambda: len(delivered(directory)) == 1, "it was delivered")
    write_configuration(gate.directory, gate.options)


# --- a worker that cannot come back at once ---------------------------------------------------------------------------


def test_a_worker_that_cannot_start_again_yet_does_not_stop_the_others(gatepost, directory: Path):
    gate = gatepost(workers=2, domains=maildir(directory))
    victim = gate.workers[1]
    with (gate.directory / "spool/shard-01/lock").open("r+") as lock:
        waiting = threading.Thread(target=fcntl.flock, args=(lock, fcntl.LOCK_EX))
        waiting.start()
        os.kill(victim, signal.SIGKILL)
        # The kernel gives the lock to who has waited longest, so the successor finds it taken.
        waiting.join()
        wait_until(lambda: "worker.cannot_start" in gate.log, "the successor could not start")
        with connected_to_the_other(gate) as client:
            assert transact(client, "ann@sender.test", ["ben@example.org"])[0] == 250
    wait_until(lambda: len(gate.workers) == 2 and victim not in gate.workers, "the worker is back")
    wait_until(lambda: gate.http("GET", "/startupz")[0] == 200, "it has read its spool")
    gate.wait_empty()


def connected_to_the_other(gate: GatepostProcess) -> smtplib.SMTP:
    """A session with the worker that lives: a connection may also wait in the queue of the dead one."""
    found: list[smtplib.SMTP] = []

    def served() -> bool:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            client = smtplib.SMTP(timeout=1)
            client.connect("127.0.0.1", gate.port)
            client.ehlo("client.test")
            found.append(client)
        return bool(found)

    wait_until(served, "a worker serves")
    return found[0]
