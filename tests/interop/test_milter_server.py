"""Postfix asks `gatepost milter`; what it was told to change is seen in what arrives, and the rest in its queue."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.interop.explained import found
from tests.interop.test_dkim import dkimsign, txt
from tests.support.clients import reference, transact
from tests.support.dkimkeys import rsa
from tests.support.guest import Guest, PosingClient, rules
from tests.support.postfix import Postfix, SmtpSink, smtp_source
from tests.support.process import binary, wait_until
from tests.support.scripted_dns import ScriptedDns

pytestmark = pytest.mark.slow

BOX = "ben@example.test"
SIMPLE = ("--hcanon", "simple", "--bcanon", "simple")
CONTENT = (
    b"Received: from a.test by b.test; Sun, 01 Nov 2026 10:00:00 +0000\r\n"
    b"X-Tag: one\r\nSubject:  two spaces,\r\n and a fold\r\nX-Tag: two\r\nFrom: Ann <ann@sender.test>\r\n"
    b"X-Tag: three\r\nX-Raw: caf\xe9\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@sender.test>\r\n"
    b"\r\nHello.\r\n"
)


def postfix(guest: Guest, sink: SmtpSink, **more: str) -> Postfix:
    return Postfix(
        {
            "relay_domains": "example.test",
            "mynetworks": "127.0.0.99",
            "relayhost": f"[127.0.0.1]:{sink.port}",
            "smtpd_recipient_restrictions": "reject_unauth_destination",
            "smtpd_milters": f"inet:127.0.0.1:{guest.listen_port}",
            "milter_default_action": "tempfail",
            "milter_connect_timeout": "5s",
            "smtpd_error_sleep_time": "0",
            **more,
        }
    )


def header_of(dump: str) -> list[str]:
    """The lines of a dumped message's header section below the sink's own; Postfix's Received is one line, ``own``."""
    header = re.sub(r"Received: from client\.test .*\n\t.*\n\t.*", "own", dump.partition("\n\n")[0])
    return header.partition("smtp-sink")[2].split("\n")[2:]


def test_edits_arrive_as_they_were_asked_for(running):
    edits = {
        "top": [["add", "X-A", "first"], ["add", "X-B", "second"], ["add", "X-C", "a long\n value"]],
        "end": [["add", "X-A", "first", "end"], ["add", "X-B", "second", "end"]],
        "middle": [["add", "X-M", "here", 2]],
        "change": [["change", "X-Tag", 2, "TWO"], ["change", "Subject", 1, "new"], ["delete", "X-Tag", 1]],
        "delete": [["delete", "X-Tag", 2], ["delete", "X-Tag", 2], ["add", "X-Tag", "four", "end"]],
        "all": [["delete", "X-Tag"], ["add", "X-Tag", "only"], ["delete", "Received"]],
        "body": [["body", "Another.\r\n.\r\nLast.\r\n"], ["sender", "x@y.test"]],
        "rcpt": [["to", "log@example.test"], ["not-to", BOX]],
        "raw": [["add", "X-Umlaut", "grüß"]],
    }
    policy = rules(
        **{name: {"message": ["proceed", *made]} for name, made in edits.items()},
        early={"mail": ["proceed", ["add", "X-E", "mail"]], "rcpt": ["proceed", ["add", "X-R", "rcpt"]]},
    )
    guest = running(Guest("milter", [policy]))
    sink = running(SmtpSink(dump=True))
    server = running(postfix(guest, sink))
    with PosingClient(server.port, "192.0.2.7") as smtp:
        for name in (*edits, "early", "nothing"):
            to = [BOX, "eva@example.test"]
            assert transact(smtp, f"{name}@sender.test", to, CONTENT)[0] == 250, (name, guest.log)
    sink.wait_count(len(edits) + 2)
    arrived = {re.search(r"X-Mail-Args: <(\w+)@", m)[1]: m for m in sink.messages()}
    seen = {name: header_of(message) for name, message in arrived.items()}
    first = "Received: from a.test by b.test; Sun, 01 Nov 2026 10:00:00 +0000"
    tags = ["X-Tag: one", "X-Tag: two", "X-Tag: three"]
    subject = ["Subject:  two spaces,", " and a fold"]
    plain = ["own", first, tags[0], *subject, tags[1], "From: Ann <ann@sender.test>", tags[2]]
    assert seen["nothing"][:8] == plain
    assert seen["top"][:12] == ["X-C: a long", " value", "X-B: second", "X-A: first", *plain]
    assert seen["end"][-2:] == ["X-A: first", "X-B: second"]
    assert seen["middle"][:5] == ["own", first, tags[0], "X-M: here", subject[0]]
    assert seen["change"][:6] == ["own", first, "Subject: new", "X-Tag: TWO", "From: Ann <ann@sender.test>", tags[2]]
    assert [line for line in seen["delete"] if line.startswith("X-Tag")] == ["X-Tag: one", "X-Tag: four"]
    assert [line for line in seen["all"] if line.startswith("X-Tag")] == ["X-Tag: only"]
    assert first not in seen["all"] and "own" in seen["all"]
    assert "X-Umlaut: grüß" in seen["raw"]
    assert seen["early"][:3] == ["X-R: rcpt", "X-E: mail", "own"]
    assert arrived["x"].partition("\n\n")[2].strip() == "Another.\n.\nLast."
    assert re.findall(r"X-Rcpt-Args: <(\S+)>", arrived["rcpt"]) == ["eva@example.test", "log@example.test"]
    record = guest.cli("explain", guest.events("message.accepted")[0]["id"])[0]["record"]
    assert [e["name"] for e in record["edits"]] == ["X-A", "X-B", "X-C"]


def test_refusals_at_every_stage_are_the_clients_reply(running):
    policy = rules(
        bad={"connect": ["reject 554 7.1 not this host"], "helo": ["defer 451 7.1 not this name"]},
        m={"mail": ["reject 550 7.1 100% sure\nand a second line"]},
        r={"rcpt": ["defer 450 2.1 mailbox busy"]},
        d={"data": ["reject 554 7.0 not now"]},
        e={"message": ["reject 550 7.7 not this"]},
        bot={"mail": ["disconnect 554 7.0 go"]},
        late={"message": ["defer 421 3.2 slow"]},
    )
    guest = running(Guest("milter", [policy]))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink))
    with PosingClient(server.port, "192.0.2.7") as smtp:
        code, text = smtp.docmd("MAIL", "FROM:<m@sender.test>")
        lines = text.decode().split("\n")
        assert (code, lines[0]) == (550, "5.7.1 100% sure")
        assert re.fullmatch(r"5\.7\.1 and a second line \(ref \w+\)", lines[1])
        assert guest.cli("explain", reference(lines[1]))[0]["record"]["outcome"] == "rejected"
        assert smtp.docmd("MAIL", "FROM:<r@sender.test>")[0] == 250
        code, text = smtp.docmd("RCPT", f"TO:<{BOX}>")
        assert (code, text.startswith(b"4.2.1 mailbox busy (ref ")) == (450, True)
        smtp.rset()
        for sender, expected in (("d", "5.7.0 not now"), ("e", "5.7.7 not this"), ("late", "4.3.2 slow")):
            code, text = transact(smtp, f"{sender}@sender.test", [BOX])
            assert text.startswith(expected + " (ref "), (sender, text)
            assert code == {"d": 554, "e": 550, "late": 451}[sender]
            assert guest.cli("explain", reference(text))[0]["record"]["sender"] == f"{sender}@sender.test"
        assert transact(smtp, "fine@sender.test", [BOX])[0] == 250, "the session goes on"
        assert smtp.docmd("MAIL", "FROM:<bot@sender.test>")[0] == 521
    with PosingClient(server.port, "192.0.2.7", helo="bad.test") as smtp:
        code, text = smtp.docmd("MAIL", "FROM:<fine@sender.test>")
        assert (code, b"not this name (ref " in text) == (451, True)
    with PosingClient(server.port, "192.0.2.7", "bad.host.test") as smtp:
        assert smtp.banner[0] == 554
        code, text = smtp.docmd("MAIL", "FROM:<fine@sender.test>")
        assert (code, b"not this host (ref " in text) == (554, True), text
    sink.wait_count(1)


def test_what_is_set_aside_is_on_hold_and_what_is_thrown_away_is_gone(running):
    policy = rules(
        q={"rcpt": ["quarantine looks odd", ["add", "X-Why", "odd"]]},
        d={"message": ["discard not wanted"]},
        some={"message": ["reject 550 7.1 not for this one"]},
    )
    guest = running(Guest("milter", [policy]))
    sink = running(SmtpSink(dump=True))
    server = running(postfix(guest, sink))
    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert transact(smtp, "q@sender.test", [BOX, "eva@example.test"])[0] == 250
        assert transact(smtp, "d@sender.test", [BOX])[0] == 250
        assert transact(smtp, "some@sender.test", [BOX, "only@example.test"])[0] == 250
        assert transact(smtp, "fine@sender.test", [BOX])[0] == 250
    sink.wait_count(1)
    wait_until(lambda: len(os.listdir(server.home / "queue/hold")) == 2, "two messages are on hold")
    assert "milter triggers HOLD action" in server.log
    held = b"".join(path.read_bytes() for path in (server.home / "queue/hold").iterdir())
    assert b"X-Why: odd" in held
    assert len(sink.messages()) == 1
    outcomes = [guest.events(f"message.{how}") for how in ("quarantined", "discarded", "accepted")]
    assert [len(events) for events in outcomes] == [2, 1, 1]
    assert {e["queue_id"] for e in outcomes[0]} == set(os.listdir(server.home / "queue/hold"))
    assert guest.metric("gatepost_messages_total", outcome="quarantined") == 2


def test_postfix_tells_who_the_client_is_and_a_large_message_is_whole(running, directory):
    entry = "2001:db8::7 reject 5.7.1 not you"
    deny = {"access": {"lists": [{"match": "client", "kind": "cidr", "entries": [entry]}]}}
    dns = running(ScriptedDns([txt("r._domainkey.sender.test", rsa(2048).record)]))
    options = {"limits": {"message_size": "4MiB"}, "dns": {"nameservers": [dns.address], "timeout": "5s"}}
    guest = running(Guest("milter", [deny, {"spf": {}}, {"dkim": {}}], **options))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink, message_size_limit="99000000", inet_protocols="all"))
    with PosingClient(server.port, "2001:db8::7") as smtp:
        code, text = transact(smtp, "ann@sender.test", [BOX])
        assert (code, text.startswith("5.7.1 not you (ref ")) == (550, True)
    with PosingClient(server.port, "192.0.2.7") as smtp:
        large = dkimsign(CONTENT + b"0123456789abcdef\r\n" * 50_000, "r", rsa(2048), directory, *SIMPLE)
        assert transact(smtp, "ann@sender.test", [BOX], large, parameters=" BODY=8BITMIME SMTPUTF8 RET=HDRS")[0] == 250
        (event,) = guest.events("message.accepted")
        assert event["size"] == len(large)
        record = guest.cli("explain", event["id"])[0]["record"]
        assert record["client"]["ip"] == "192.0.2.7"
        assert record["mta"]["queue_id"] == event["queue_id"] == server.wait_logged(r"(\w+): message-id=")[1]
        ((signature,),) = [finding["signatures"] for finding in found(record, "Dkim")]
        assert signature["result"] == "pass", "every octet of header and body is as it was"
        code, text = transact(smtp, "ann@sender.test", [BOX], b"Subject: x\r\n\r\n" + b"0123456789abcdef\r\n" * 300_000)
        assert (code, text.startswith("5.3.4 message is too big (ref")) == (552, True)
    worker = Path(f"/proc/{guest.worker}/fd")
    left = [link for fd in worker.iterdir() if "gatepost-milter" in (link := os.readlink(fd))]
    assert left == [], "the file of the large message is closed"


def test_twenty_sessions_at_once_are_judged_apart_by_milter_and_policy_server(running):
    milter = running(Guest("milter", [rules(foo={"message": ["proceed", ["add", "X-A", "1"], ["body", "Other."]]})]))
    delegate = running(Guest("delegate", [rules(foo={"rcpt": ["proceed", ["add", "X-B", "2"]]})]))
    sink = running(SmtpSink(dump=True))
    service = f"check_policy_service inet:127.0.0.1:{delegate.listen_port}"
    more = {"smtpd_recipient_restrictions": f"reject_unauth_destination, {service}"}
    server = running(postfix(milter, sink, **more, smtpd_end_of_data_restrictions=service))
    smtp_source(server.port, "-s", "20", "-m", "200", "-r", "2", "-f", "foo@sender.test", "-t", BOX)
    sink.wait_count(200)
    for guest in (milter, delegate):
        wait_until(lambda: len(guest.events("message.accepted")) == 200, "every message has its end")  # noqa: B023
        events = guest.events("message.accepted")
        assert len({event["queue_id"] for event in events}) == 200
        assert {len(event["recipients"]) for event in events} == {2}
        assert guest.metric("gatepost_messages_total", outcome="accepted") == 200
    messages = sink.messages()
    assert all("X-A: 1" in m and "X-B: 2" in m and m.rstrip().endswith("Other.") for m in messages)


def test_a_dead_milter_is_tempfail_and_the_next_one_is_found(running):
    guest = running(Guest("milter", [rules(bad={"mail": ["reject 550 7.1 no"]})]))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink))
    smtp = PosingClient(server.port, "192.0.2.7")
    assert smtp.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250
    first = guest.worker
    os.kill(first, signal.SIGKILL)
    assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 451
    smtp.close()

    def refused() -> bool:
        with PosingClient(server.port, "192.0.2.7") as client:
            return client.docmd("MAIL", "FROM:<bad@sender.test>")[0] == 550

    wait_until(refused, "the supervisor has started another worker")
    assert guest.worker != first
    guest.kill()
    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert transact(smtp, "ann@sender.test", [BOX])[0] == 451, "Postfix's own default action"
    guest.start()
    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert transact(smtp, "ann@sender.test", [BOX])[0] == 250
    assert refused()


def test_sigterm_lets_a_message_end_and_sighup_changes_the_pipeline(running):
    guest = running(Guest("milter", []))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink))
    guest.rewrite(pipeline=[rules(ann={"mail": ["reject 550 7.1 no"]})])
    guest.process.signal(signal.SIGHUP)
    wait_until(lambda: guest.events("reload.done"), "the worker has the new pipeline")
    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert transact(smtp, "ann@sender.test", [BOX])[0] == 550
        assert smtp.docmd("MAIL", "FROM:<eva@sender.test>")[0] == 250
        assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 250
        guest.process.signal(signal.SIGTERM)
        wait_until(lambda: guest.events("worker.draining"), "it has begun to stop")
        assert smtp.data(b"Subject: x\r\n\r\nHello.\r\n")[0] == 250
    assert guest.process.wait() == 0
    assert [e["sender"] for e in guest.events("message.accepted")] == ["eva@sender.test"]


LUA = """
conn = mt.connect("inet:{port}@127.0.0.1")
if conn == nil then error("no connection") end
mt.set_timeout(30)
mt.conninfo(conn, "host.test", "192.0.2.9")
mt.helo(conn, "client.test")
mt.macro(conn, SMFIC_MAIL, "i", "QUEUED1")
for _, sender in ipairs({{"plain", "change", "gone"}}) do
  mt.mailfrom(conn, "<" .. sender .. "@sender.test>", "SIZE=100")
  mt.rcptto(conn, "<ben@example.test>", "NOTIFY=NEVER")
  mt.rcptto(conn, "<eva@example.test>")
  mt.data(conn)
  mt.header(conn, "From", "Ann <ann@sender.test>")
  mt.header(conn, "Subject", "one")
  mt.header(conn, "Subject", "two")
  mt.bodystring(conn, "Hello.\\r\\n")
  mt.eom(conn)
  mt.echo(sender .. " " .. string.char(mt.getreply(conn)))
end
mt.abort(conn)
mt.mailfrom(conn, "<change@sender.test>")
mt.rcptto(conn, "<ben@example.test>")
mt.header(conn, "Subject", "one")
mt.header(conn, "Subject", "two")
mt.bodystring(conn, "Hello.\\r\\n")
mt.eom(conn)
mt.echo(tostring(mt.eom_check(conn, MT_HDRCHANGE, "Subject", " changed")))
mt.echo(tostring(mt.eom_check(conn, MT_HDRINSERT, "X-A", " b", 0)))
mt.echo(tostring(mt.eom_check(conn, MT_RCPTADD, "<log@example.test>")))
mt.echo(tostring(mt.eom_check(conn, MT_RCPTDELETE, "<ben@example.test>")))
mt.echo(tostring(mt.eom_check(conn, MT_BODYCHANGE, "Other.\\r\\n")))
mt.mailfrom(conn, "<aborted@sender.test>")
mt.rcptto(conn, "<ben@example.test>")
mt.disconnect(conn, false)
"""


def test_miltertest_sees_every_modification_and_an_abrupt_end_is_recorded(running, directory):
    made = [
        ["change", "Subject", 2, "changed"],
        ["add", "X-A", "b"],
        ["to", "log@example.test"],
        ["not-to", BOX],
        ["body", "Other.\r\n"],
    ]
    policy = rules(change={"message": ["proceed", *made]}, gone={"message": ["reject 550 7.1 no"]})
    guest = running(Guest("milter", [policy]))
    script = directory / "talk.lua"
    script.write_text(LUA.format(port=guest.listen_port))
    result = subprocess.run([binary("miltertest"), "-s", str(script)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr + guest.log
    assert result.stdout.split("\n")[:8] == ["plain c", "change c", "gone y", *["true"] * 5]

    def ended() -> list[dict[str, object]]:
        return guest.events("message.disconnected") + guest.events("message.aborted")

    (event,) = wait_until(ended, "the message that was under way is recorded")
    assert event["sender"] == "aborted@sender.test"


def test_garbage_on_the_socket_harms_nobody_else(running):
    guest = running(Guest("milter", []))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink))
    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert smtp.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250
        for octets in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\0\0\0\x0dO" + b"\xff" * 12,
            b"\xff" * 4,
            b"\0\0\0\x01M",
            b"\0\0\0\x05Q",
        ):
            with socket.create_connection(("127.0.0.1", guest.listen_port), timeout=20) as sock:
                sock.sendall(octets)
        assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 250
        assert smtp.data(b"Subject: x\r\n\r\nHello.\r\n")[0] == 250
    assert guest.metric("gatepost_guest_answers_total", stage="message", answer="continue") == 1
