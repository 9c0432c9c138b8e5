"""Postfix asks `gatepost delegate` at RCPT and at the end of the message; what it does then is seen in what arrives."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import Any

import pytest

from tests.interop.explained import found
from tests.support.clients import reference, transact
from tests.support.guest import Guest, PosingClient, ask_policy, read_action, rules
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import wait_until
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

BOX = "ben@example.test"
DOWN = "451 4.3.5 no policy"


def postfix(guest: Guest, sink: SmtpSink, **more: str) -> Postfix:
    """Takes mail for example.test only, and hands it to the sink. Relay control comes after our answer on purpose."""
    service = f"check_policy_service inet:127.0.0.1:{guest.listen_port}"
    return Postfix(
        {
            "relay_domains": "example.test",
            "mynetworks": "127.0.0.99",
            "relayhost": f"[127.0.0.1]:{sink.port}",
            "smtpd_relay_restrictions": "permit",
            "smtpd_recipient_restrictions": f"{service}, reject_unauth_destination",
            "smtpd_end_of_data_restrictions": service,
            "smtpd_policy_service_default_action": DOWN,
            "smtpd_policy_service_retry_delay": "1s",
            "smtpd_error_sleep_time": "0",
            **more,
        }
    )


def send(server: Postfix, client: str, sender: str = "ann@sender.test", *to: str) -> tuple[int, str]:
    with PosingClient(server.port, client) as smtp:
        return transact(smtp, sender, list(to) or [BOX])


def records(guest: Guest, text: str) -> Any:
    return guest.cli("explain", reference(text))


def test_a_refusal_is_postfixs_reply_and_its_reference_is_explained(running):
    deny = {"access": {"lists": [{"match": "recipient", "entries": ["no@example.test reject 5.1.1 not here"]}]}}
    guest = running(Guest("delegate", [deny]))
    sink = running(SmtpSink(dump=True))
    server = running(postfix(guest, sink))

    with PosingClient(server.port, "192.0.2.7") as smtp:
        assert smtp.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250
        assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 250
        code, answer = smtp.docmd("RCPT", "TO:<no@example.test>")
        assert smtp.docmd("RCPT", "TO:<eva@example.test>")[0] == 250
        assert smtp.data(b"Subject: x\r\n\r\nHello.\r\n")[0] == 250
    text = answer.decode().partition(": Recipient address rejected: ")[2] or answer.decode()
    assert code == 550
    assert re.search(r"5\.1\.1 .*not here \(ref \w+\)", answer.decode()), answer
    sink.wait_count(1)
    (explained,) = records(guest, text)
    record = explained["record"]
    assert record["client"]["ip"] == "192.0.2.7"
    assert record["helo"] == "client.test"
    replies = {r["address"]: r["reply"] for r in record["recipients"]}
    assert replies == {
        BOX: "let through",
        "no@example.test": "550 5.1.1 not here",
        "eva@example.test": "let through",
    }, "several recipients are one transaction"
    wait_until(lambda: guest.events("message.accepted"), "the transaction has ended with its message")
    (event,) = guest.events("message.accepted")
    assert event["recipients"] == [BOX, "eva@example.test"]
    queue_id = server.wait_logged(r"smtpd\[\d+\]: (\w+): client=")[1]
    assert event["queue_id"] == queue_id
    assert records(guest, text)[0]["record"]["mta"] == {"through": "delegate", "queue_id": queue_id}
    assert [r["id"] for r in guest.cli("explain", "--queue-id", queue_id)] == [event["id"]]
    assert f"queue id {queue_id}" in guest.run("explain", reference(text))
    assert event["size"] == len("Subject: x\r\n\r\nHello.\r\n")


def test_what_we_do_not_refuse_is_not_relayed(running):
    chosen = {"access": {"lists": [{"match": "recipient", "entries": ["somebody@elsewhere.test accept"]}]}}
    guest = running(Guest("delegate", [chosen]))
    server = running(postfix(guest, running(SmtpSink())))
    code, text = send(server, "192.0.2.7", "ann@sender.test", "somebody@elsewhere.test")
    assert (code, "Relay access denied" in text) == (554, True)
    guest = running(Guest("delegate", [chosen], "--ok"))
    server = running(postfix(guest, running(SmtpSink())))
    code, text = send(server, "192.0.2.7", "ann@sender.test", "somebody@elsewhere.test")
    assert code == 250, "who says --ok in front of relay control was told what that does"


def test_lists_spf_rates_and_greylisting_work_behind_postfix(running):
    dns = running(
        Unbound(
            [
                "2.0.0.127.bl.test. 60 IN A 127.0.0.2",
                "7.2.0.192.bl.test. 60 IN A 127.0.0.2",
                'strict.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
            ]
        )
    )
    pipeline = [
        {"dnsbl": {"zones": {"bl.test": 3}, "reject_at": 2}},
        {"spf": {"reject_fail": True}},
        {"ratelimit": {"rate": "40/1h", "key": ["client"], "count": "messages"}},
        {"greylist": {"delay": "1s"}},
    ]
    guest = running(Guest("delegate", pipeline, dns={"nameservers": [dns.address], "timeout": "2s"}))
    sink = running(SmtpSink(dump=True))
    server = running(postfix(guest, sink))

    code, text = send(server, "192.0.2.7")
    assert (code, "(ref " in text) == (550, True)
    (finding,) = found(records(guest, text), "Dnsbl")
    assert finding["hits"] == [{"zone": "bl.test", "codes": ["127.0.0.2"], "weight": 3}]
    code, text = send(server, "192.0.2.9", "eva@strict.test")
    assert (code, "5.7.23" in text) == (550, True)
    (finding,) = found(records(guest, text), "Spf")
    assert finding["result"] == "fail"

    code, text = send(server, "192.0.2.10")
    assert (code, "4.7.1" in text) == (451, True), "greylisted"
    (finding,) = found(records(guest, text), "Greylist")
    wait_until(lambda: send(server, "192.0.2.10")[0] == 250 or None, "it is let through after a second")
    sink.wait_count(1)
    for _ in range(50):
        code, text = send(server, "192.0.2.10")
        if code != 250:
            break
    assert (code, "too many messages" in text) == (451, True)
    assert [r["key"] for r in found(records(guest, text), "Rate") if not r["allowed"]] == ["client 192.0.2.10"]


def test_hold_discard_prepend_bcc_and_filter_do_what_they_say(running):
    pipeline = [
        rules(
            hold={"mail": ["quarantine looks odd"]},
            drop={"rcpt": ["discard not wanted"]},
            head={
                "mail": ["proceed", ["add", "X-One", "first"]],
                "rcpt": ["proceed", ["add", "X-Two", "a\n b", "end"]],
            },
            copy={"data": ["proceed", ["to", "log@example.test"]]},
            swap={"rcpt": ["proceed", ["redirect", "new@example.test"]]},
        )
    ]
    guest = running(Guest("delegate", pipeline))
    sink = running(SmtpSink(dump=True))
    server = running(
        postfix(guest, sink, smtpd_data_restrictions=f"check_policy_service inet:127.0.0.1:{guest.listen_port}")
    )

    assert send(server, "192.0.2.9", "hold@sender.test")[0] == 250
    wait_until(lambda: os.listdir(server.home / "queue/hold"), "the message is on hold")
    assert "looks odd" in server.log
    assert send(server, "192.0.2.9", "drop@sender.test")[0] == 250
    server.wait_logged("discard: RCPT from .*not wanted")
    assert send(server, "192.0.2.9", "head@sender.test")[0] == 250
    assert send(server, "192.0.2.9", "copy@sender.test")[0] == 250
    assert send(server, "192.0.2.9", "swap@sender.test")[0] == 250
    sink.wait_count(3)
    by_sender = {re.search(r"X-Mail-Args: <(\w+)", m)[1]: m for m in sink.messages()}
    assert set(by_sender) == {"head", "copy", "swap"}, "neither what is on hold nor what was thrown away has arrived"
    assert re.search(r"X-One: first\nX-Two: a b\n", by_sender["head"]), by_sender["head"]
    assert re.findall(r"X-Rcpt-Args: <(\S+)>", by_sender["copy"]) == [BOX, "log@example.test"]
    assert re.findall(r"X-Rcpt-Args: <(\S+)>", by_sender["swap"]) == ["new@example.test"]
    (held,) = guest.events("message.quarantined")
    assert held["queue_id"] == os.listdir(server.home / "queue/hold")[0]
    edits = guest.cli("explain", guest.events("message.accepted")[0]["id"])[0]["record"]["edits"]
    assert [e["name"] for e in edits] == ["X-One", "X-Two"]


def test_what_postfix_cannot_be_told_is_logged_and_recorded(running):
    edits = [["body", "other"], ["delete", "Subject"], ["sender", "x@y.test"], ["add", "X-A", "1"], ["add", "X-B", "2"]]
    guest = running(Guest("delegate", [rules(much={"rcpt": ["proceed", *edits]})]))
    sink = running(SmtpSink(dump=True))
    server = running(postfix(guest, sink))
    assert send(server, "192.0.2.9", "much@sender.test")[0] == 250
    sink.wait_count(1)
    (event,) = wait_until(lambda: guest.events("guest.left_out"), "what was left out is in the log")
    left_out = ["ReplaceBody 5", "DeleteHeader Subject 0", "ChangeSender x@y.test", "AddHeader X-B 0"]
    assert event["edits"] == left_out, "one action for each answer, and no header at the end of the message"
    assert "X-A: 1" in sink.messages()[0]
    record = guest.cli("explain", event["id"])[0]["record"]
    assert record["mta"]["left_out"] == left_out
    assert [e["name"] for e in record["edits"]] == ["X-A"]
    assert guest.metric("gatepost_guest_left_out_total", through="delegate") == 4


def test_asking_twice_about_one_message_judges_once(running):
    guest = running(Guest("delegate", [{"ratelimit": {"rate": "1/1h", "key": ["client"], "count": "messages"}}]))
    service = f"check_policy_service inet:127.0.0.1:{guest.listen_port}"
    sink = running(SmtpSink())
    everywhere = {f"smtpd_{name}_restrictions": service for name in ("client", "helo", "sender", "data")}
    server = running(postfix(guest, sink, smtpd_delay_reject="no", **everywhere))
    with PosingClient(server.port, "192.0.2.9") as smtp:
        assert transact(smtp, "ann@sender.test", [BOX, "eva@example.test"])[0] == 250
        code, text = transact(smtp, "ann@sender.test", [BOX])
        assert (code, "4.7.1" in text) == (451, True), "the second message on the same connection is another one"
    assert len(found_ids := {e["session"] for e in guest.events("message.accepted")}) == 1, found_ids


def test_disconnect_hangs_up_and_connect_refusals_stand_for_every_recipient(running):
    guest = running(
        Guest("delegate", [rules(bad={"connect": ["reject 554 7.1 not you"]}, bot={"mail": ["disconnect 554 7.0 go"]})])
    )
    server = running(postfix(guest, running(SmtpSink())))
    with PosingClient(server.port, "192.0.2.7", "bad.host.test") as smtp:
        smtp.docmd("MAIL", "FROM:<ann@sender.test>")
        for box in (BOX, "eva@example.test"):
            code, text = smtp.docmd("RCPT", f"TO:<{box}>")
            assert (code, b"not you (ref " in text) == (554, True)
    record = records(guest, text.decode())[0]["record"]
    assert [r["address"] for r in record["recipients"]] == [BOX, "eva@example.test"]
    with PosingClient(server.port, "192.0.2.7") as smtp:
        smtp.docmd("MAIL", "FROM:<bot@sender.test>")
        assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 521
        with pytest.raises(Exception, match="closed"):
            smtp.docmd("NOOP")


def test_postfix_goes_on_without_us_and_finds_us_again(running):
    guest = running(Guest("delegate", [rules(bad={"mail": ["reject 550 7.1 no"]})]))
    sink = running(SmtpSink())
    server = running(postfix(guest, sink))
    with PosingClient(server.port, "192.0.2.9") as smtp:
        assert transact(smtp, "ann@sender.test", [BOX])[0] == 250
        first = guest.worker
        os.kill(first, signal.SIGKILL)
        # The socket outlives the worker, so that requests wait for its successor.
        assert transact(smtp, "bad@sender.test", [BOX])[0] == 550
        assert guest.worker != first
        guest.kill()
        code, text = transact(smtp, "ann@sender.test", [BOX])
        assert (code, text.startswith("4.3.5")) == (451, True), "Postfix's own default action"
        guest.start()
        wait_until(lambda: transact(smtp, "ann@sender.test", [BOX])[0] == 250 or None, "Postfix asks us again")
        assert transact(smtp, "bad@sender.test", [BOX])[0] == 550


def test_garbage_is_not_answered(running):
    guest = running(Guest("delegate", []))
    with socket.create_connection(("127.0.0.1", guest.listen_port), timeout=20) as sock:
        assert ask_policy(sock) == "DUNNO"
        sock.sendall(b"request=junk\n\n")
        assert read_action(sock) == ""
    garbage = [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\n",
        b"request=smtpd_access_policy\nprotocol_state=RSET\n\n",
        b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=nowhere\n\n",
        b"a=" + b"a" * 99_999,
    ]
    for octets in garbage:
        with socket.create_connection(("127.0.0.1", guest.listen_port), timeout=20) as sock:
            sock.sendall(octets)
            assert read_action(sock) == ""
    wait_until(lambda: len(guest.events("delegate.bad_request")) == 6, "all of it is logged")
    assert guest.metric("gatepost_sessions_total", end="bad-request") == 6
    with socket.create_connection(("127.0.0.1", guest.listen_port), timeout=20) as sock:
        assert ask_policy(sock) == "DUNNO"


def test_a_reload_changes_the_pipeline_for_sessions_that_begin_then(running):
    guest = running(Guest("delegate", []))
    with socket.create_connection(("127.0.0.1", guest.listen_port), timeout=20) as sock:
        assert ask_policy(sock) == "DUNNO"
        guest.rewrite(pipeline=[rules(ann={"mail": ["reject 550 7.1 no"]})])
        guest.process.signal(signal.SIGHUP)
        wait_until(lambda: guest.events("reload.done"), "the worker has the new pipeline")
        assert ask_policy(sock, recipient="eva@example.test") == "DUNNO", "one message is not judged by two pipelines"
        assert ask_policy(sock, instance="2.2.2").startswith("550 5.7.1 no (ref ")
    guest.rewrite(pipeline=["no-such-thing"])
    guest.process.signal(signal.SIGHUP)
    wait_until(lambda: guest.events("reload.refused"), "the supervisor has found it wrong")


def test_a_unix_socket_has_the_mode_it_was_given_and_goes_with_us(running, directory):
    path = directory / "policy.sock"
    guest = running(Guest("delegate", [], "--mode", "666", listen=f"unix:{path}"))
    assert path.stat().st_mode & 0o777 == 0o666
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(20)
        assert ask_policy(sock) == "DUNNO"
    guest.process.signal(signal.SIGTERM)
    assert guest.process.wait() == 0
    assert not path.exists()
