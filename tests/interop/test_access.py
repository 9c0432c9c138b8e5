"""Access lists in a running Gatepost: real clients, files that change, the record, and no way to a relay."""

from __future__ import annotations

import json
import smtplib
from pathlib import Path
from typing import Any

import pytest

from tests.interop.explained import found
from tests.interop.settings import delivered, maildir
from tests.support.clients import ProxiedClient, connect, queue_id, reference, swaks, transact
from tests.support.gatepost import refused_start
from tests.support.process import free_port, wait_until

pytestmark = pytest.mark.slow

STRANGER, FRIEND, LISTED = "203.0.113.9", "198.51.100.7", "192.0.2.7"
BOX = "anna@example.org"


def proxied(directory: Path, *pipeline: Any, **more: Any) -> dict[str, Any]:
    listener = {"address": f"127.0.0.1:{free_port()}", "role": "edge", "proxy_protocol": {"trusted": ["127.0.0.1/32"]}}
    return {"domains": maildir(directory), "listeners": [listener], "pipeline": list(pipeline), **more}


def send(port: int, client: str, sender: str = "ann@sender.test", to: str = BOX) -> tuple[int, str]:
    with ProxiedClient(port, client) as smtp:
        smtp.ehlo()
        return transact(smtp, sender, [to])


def test_a_client_in_a_file_is_refused_and_the_record_names_file_and_line(gatepost, directory):
    path = directory / "clients.cidr"
    path.write_text(
        "# friends first\n198.51.100.7 ok\n\n192.0.2.0/24\n  REJECT 5.7.1 your network is listed\n0.0.0.0/0 dunno\n"
    )
    gate = gatepost(
        **proxied(directory, {"access": {"lists": [{"match": "client", "kind": "cidr", "file": str(path)}]}})
    )
    code, text = send(gate.port, LISTED)
    assert (code, text.partition(" (ref ")[0]) == (550, "5.7.1 your network is listed")
    (finding,) = found(gate.cli("explain", reference(text)), "Access")
    assert (finding["action"], finding["where"], finding["pattern"]) == ("reject", f"{path}:4", "192.0.2.0/24")
    (finding,) = found(gate.cli("explain", queue_id(send(gate.port, FRIEND))), "Access")
    assert (finding["action"], finding["where"]) == ("ok", f"{path}:2")
    assert f"{path}:4" in gate.run("explain", reference(text)), "and the tree for people shows it"
    assert gate.metric("gatepost_access_matches_total", match="client", action="reject") == 1


def test_a_changed_file_is_in_force_without_a_reload_and_a_broken_one_is_not(gatepost, directory):
    path = directory / "senders"
    path.write_text("ann@sender.test reject\n")
    gate = gatepost(**proxied(directory, {"access": {"lists": [{"match": "sender", "file": str(path)}]}}))
    assert send(gate.port, STRANGER)[0] == 550

    path.write_text("ann@sender.test ok\neva@sender.test defer\n")
    wait_until(lambda: send(gate.port, STRANGER)[0] == 250, "the file is read again")
    assert send(gate.port, STRANGER, "eva@sender.test")[0] == 450

    path.write_text("# no more\nann@sender.test rejekt\n")
    # Nothing looks at the file but mail.
    wait_until(lambda: send(gate.port, STRANGER)[0] == 250 and "file.unusable" in gate.log, "the broken file is seen")
    assert "line 2: 'rejekt' is no action" in gate.log
    assert send(gate.port, STRANGER, "eva@sender.test")[0] == 450, "what was read before stays in force"

    path.unlink()
    wait_until(lambda: send(gate.port, STRANGER)[0] == 250 and "No such file" in gate.log, "the missing file is seen")
    assert send(gate.port, STRANGER, "eva@sender.test")[0] == 450


def test_no_entry_opens_the_relay(gatepost, directory):
    actions = ("accept", "ok", "discard", "quarantine", "dunno")
    pipelines, listeners = {}, []
    for action in actions:
        everybody = {"match": "client", "kind": "cidr", "entries": [f"0.0.0.0/0 {action}"]}
        to_all = {"match": "recipient", "kind": "glob", "entries": [f"* {action}"]}
        pipelines[action] = [
            *({"access": {"at": stage, "lists": [everybody]}} for stage in ("connect", "helo", "mail", "rcpt")),
            {"access": {"lists": [to_all]}},
        ]
        address = f"127.0.0.1:{free_port()}"
        listeners.append({"address": address, "role": "edge", "pipeline": action})
    gate = gatepost(domains=maildir(directory), listeners=listeners, pipelines=pipelines)
    for action, port in zip(actions, gate.ports, strict=True):
        for to in ("ben@elsewhere.test", "ben%elsewhere.test@elsewhere.test", "@example.org:ben@elsewhere.test"):
            with connect(port) as smtp:
                code, text = transact(smtp, "ann@sender.test", [to])
            assert (code, text.partition(" (ref ")[0]) == (550, "5.7.1 relaying denied"), (action, to)
        with connect(port) as smtp:
            id = queue_id(transact(smtp, "ann@sender.test", [BOX]))
        (finding, *_) = found(gate.cli("explain", id), "Access")
        assert finding["action"] == action, "and the list was asked"


def test_a_client_refused_at_connect_gets_no_session(gatepost, directory):
    lists = [{"match": "client", "entries": ["192.0.2.7", "192.0.2.8 defer"], "action": "reject"}]
    gate = gatepost(**proxied(directory, {"access": {"at": "connect", "lists": lists}}))
    for client, code in ((LISTED, 554), ("192.0.2.8", 421)):
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            ProxiedClient(gate.port, client)
        assert refused.value.smtp_code == code
    assert send(gate.port, STRANGER)[0] == 250


def test_accept_leaves_out_later_entries_and_ok_does_not(gatepost, directory):
    first = {"match": "sender", "entries": ["friend@sender.test accept", "known@sender.test ok"]}
    second = {"match": "client", "entries": ["192.0.2.7 reject"]}
    gate = gatepost(**proxied(directory, {"access": {"lists": [first]}}, {"access": {"lists": [second]}}))
    codes = [send(gate.port, LISTED, f"{who}@sender.test")[0] for who in ("friend", "known", "other")]
    assert codes == [250, 550, 550]


def test_what_is_discarded_or_quarantined_is_answered_with_250_and_not_delivered(gatepost, directory):
    senders = {"match": "sender", "entries": ["gone@ discard", "aside@ quarantine"]}
    gate = gatepost(**proxied(directory, {"access": {"lists": [senders]}}))
    queue_id(send(gate.port, STRANGER, "gone@sender.test"))
    aside = queue_id(send(gate.port, STRANGER, "aside@sender.test"))
    queue_id(send(gate.port, STRANGER, "ann@sender.test"))
    wait_until(lambda: len(delivered(directory)) == 1, "the third is delivered")
    (left,) = gate.queue()
    assert (left["id"], left["state"]) == (aside, "quarantine")
    assert len(delivered(directory)) == 1


def test_swaks_is_told_by_helo_and_by_the_name_that_xclient_gives(gatepost, directory):
    lists = [
        {"match": "recipient", "entries": ["postmaster@ ok"]},
        {"match": "name", "entries": [".dial.example reject 5.7.1 use your provider's relay"]},
        {"match": "helo", "kind": "regexp", "entries": [r"/^\[?[0-9.]+\]?$/ 504 5.5.2 give your name"]},
    ]
    listener = {"address": f"127.0.0.1:{free_port()}", "role": "edge", "xclient": {"trusted": ["127.0.0.1/32"]}}
    gate = gatepost(domains=maildir(directory), listeners=[listener], pipeline=[{"access": {"lists": lists}}])
    to = ("--to", BOX, "--from", "ann@sender.test")
    said = swaks(gate.port, *to, "--helo", "192.0.2.7")
    assert said.status != 0
    assert "504 5.5.2 give your name (ref " in said.text
    said = swaks(gate.port, *to, "--xclient", "ADDR=192.0.2.7 NAME=h7.dial.example", "--helo", "mx.sender.test")
    assert "550 5.7.1 use your provider's relay (ref " in said.text
    said = swaks(
        gate.port, "--to", "postmaster", "--from", "ann@sender.test", "--xclient", "ADDR=192.0.2.7 NAME=h7.dial.example"
    )
    assert said.status == 0, said.text
    assert swaks(gate.port, *to, "--helo", "mx.sender.test").status == 0


def test_a_shadowed_list_is_recorded_and_refuses_nobody(gatepost, directory):
    entry = {"access": {"lists": [{"match": "client", "entries": ["192.0.2.7 reject"]}]}, "shadow": True}
    gate = gatepost(**proxied(directory, entry))
    (finding,) = found(gate.cli("explain", queue_id(send(gate.port, LISTED))), "Access")
    assert finding["action"] == "reject"


def test_a_wrong_list_stops_the_start_and_a_wrong_entry_the_check(gatepost, directory):
    gate = gatepost(domains=maildir(directory))
    path = directory / "clients.cidr"
    path.write_text("192.0.2.1 ok\n192.0.2.2 allow\n")
    entry = {"access": {"lists": [{"match": "client", "kind": "cidr", "entries": ["192.0.2.1/24 ok"]}]}}
    options = {**gate.options, "pipeline": [entry]}
    gate.config.write_text(json.dumps(options))
    assert "host bits set: did you mean 192.0.2.0/24?" in json.dumps(gate.cli("check", status=2))
    entry = {"access": {"lists": [{"match": "client", "kind": "cidr", "file": str(path)}]}}
    status, said = refused_start({"domains": maildir(directory), "pipeline": [entry]})
    assert status != 0
    assert f"{path}: line 2: 'allow' is no action" in said
