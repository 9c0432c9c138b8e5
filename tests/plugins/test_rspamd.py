"""The plugin `rspamd` on the bench, with a scripted rspamd."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    END,
    NULL_SENDER,
    PROCEED,
    Action,
    AddHeader,
    AddRecipient,
    Address,
    AuthResult,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Recipient,
    ReverseName,
    SpamScore,
    Tls,
    Verdict,
)
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session, make_transaction
from plugins.rspamd import RspamdPlugin
from plugins.rspamd.milter import EDITS, edits_of
from plugins.rspamd.plugin import RspamdOptions
from plugins.rspamd.reply import REPLY_OCTETS, RspamdError, read_reply
from tests.support.process import free_port
from tests.support.scripted import Scripted, read_http, read_to

CONTENT = b"From: ann@sender.test\r\nSubject: x\r\n\r\nHello.\r\n"
PASSWORD = "a-secret-of-rspamd"


def answer(**more: Any) -> dict[str, Any]:
    return {"action": "no action", "score": 1.5, "required_score": 15.0, "symbols": {}, "messages": {}, **more}


def http(body: Any, status: str = "200 OK", fields: str = "") -> bytes:
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(octets)}\r\n{fields}\r\n".encode() + octets


class Rspamd(Scripted):
    """Reads requests, as long as the connection is kept, and answers each with `reply`."""

    def __init__(self, reply: Any, **where) -> None:
        self.reply = reply if isinstance(reply, bytes) else http(reply)
        self.requests: list[tuple[str, list[tuple[str, str]], bytes]] = []
        super().__init__(self._answer, **where)

    def _answer(self, link: socket.socket) -> None:
        while True:
            try:
                self.requests.append(read_http(link))
            except EOFError:
                return
            link.sendall(self.reply)


def check(
    endpoint: str, content: bytes = CONTENT, *, bench: Bench | None = None, transaction=None, findings=(), **options
) -> SpamScore:
    found = (bench or Bench()).find(
        RspamdPlugin,
        {"connect": endpoint, **options},
        transaction=transaction,
        message=make_message(content),
        findings=findings,
    )
    assert isinstance(found, SpamScore)
    return found


def judge(found: SpamScore | None, content: bytes = CONTENT, **options) -> Verdict:
    findings = [found] if found else []
    return Bench().judge(RspamdPlugin, options, message=make_message(content), findings=findings)


def advice(action: str, **more) -> SpamScore:
    return SpamScore(7.0, 15.0, False, "rspamd", action, **more)


def edits(content: bytes = CONTENT, **reply: Any):
    return edits_of(read_reply(json.dumps(answer(**reply)).encode()), make_message(content).fields)


def test_action_score_and_rules():
    symbols = {
        "SMALL": {"name": "SMALL", "score": 0.5},
        "LARGE": {"score": -2, "options": ["a.test", "b.test"]},
        "EMPTY": {"score": 0.0, "options": {}},
    }
    with Rspamd(answer(action="add header", symbols=symbols)) as rspamd:
        assert check(rspamd.endpoint) == SpamScore(
            1.5, 15.0, True, "rspamd", "add header", ("LARGE(-2.00)[a.test, b.test]", "SMALL(0.50)", "EMPTY(0.00)")
        )
        assert rspamd.requests[0][0] == "POST /checkv2 HTTP/1.1"
        assert rspamd.requests[0][2] == CONTENT


def test_rspamd_is_told_what_is_known():
    session = make_session("2001:db8::7", helo="relay.sender.test", tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    transaction = make_transaction(
        session, sender="ann@sender.test", recipients=["anna@example.org", "ben@example.org"]
    )
    confirmed = ReverseName(AuthResult.PASS, "2001:db8::7", "out.sender.test")
    options = {"password": PASSWORD, "pass_all": True, "settings_id": "strict", "mta_tag": "edge"}
    with Rspamd(answer()) as rspamd:
        check(rspamd.endpoint, transaction=transaction, findings=[confirmed], **options)
        fields = rspamd.requests[0][1]
        assert ("Host", rspamd.endpoint) in fields
    for known in [
        ("Queue-ID", transaction.id),
        ("From", "<ann@sender.test>"),
        ("Rcpt", "<anna@example.org>"),
        ("Rcpt", "<ben@example.org>"),
        ("IP", "2001:db8::7"),
        ("Helo", "relay.sender.test"),
        ("Hostname", "out.sender.test"),
        ("TLS-Version", "TLSv1.3"),
        ("TLS-Cipher", "TLS_AES_256_GCM_SHA384"),
        ("MTA-Name", "mx.example.org"),
        ("Pass", "all"),
        ("Settings-ID", "strict"),
        ("MTA-Tag", "edge"),
        ("Password", PASSWORD),
        ("Content-Length", str(len(CONTENT))),
    ]:
        assert known in fields, known


def test_nothing_that_a_client_says_breaks_out_of_its_field():
    transaction = make_transaction(make_session(helo="a\r\nPassword: x\x00"), sender="")
    with Rspamd(answer()) as rspamd:
        check(rspamd.endpoint, transaction=transaction)
        fields = dict(rspamd.requests[0][1])
    assert (fields["Helo"], fields["From"]) == ("a??Password: x?", "<>")
    assert "Password" not in fields


def test_over_a_unix_socket_too(directory):
    with Rspamd(answer(), path=directory / "socket") as rspamd:
        assert check(rspamd.endpoint).action == "no action"


def test_a_host_name_is_looked_up_with_our_own_resolver_and_named_in_the_request():
    with Rspamd(answer()) as rspamd:
        bench = Bench(dns=FakeDns(a={"filter.test": ["127.0.0.1"]}))
        assert check(f"filter.test:{rspamd.port}", bench=bench).score == 1.5
        assert ("Host", f"filter.test:{rspamd.port}") in rspamd.requests[0][1]
    with pytest.raises(OSError, match=r"no address of elsewhere\.test"):
        check("elsewhere.test:11333")


def test_of_several_addresses_the_next_is_tried_when_nobody_is_there():
    with Rspamd(answer()) as rspamd:
        bench = Bench(dns=FakeDns(a={"filter.test": ["127.0.0.2", "127.0.0.1"]}))
        assert check(f"filter.test:{rspamd.port}", bench=bench).score == 1.5


def test_a_connection_is_kept_for_the_next_message():
    async def twice(options: RspamdOptions) -> None:
        plugin = RspamdPlugin(options, Bench().services)
        await plugin.start()
        for _ in range(2):
            await plugin.checked(make_transaction(), make_message(CONTENT), None)
        await plugin.close()

    with Rspamd(answer()) as rspamd:
        asyncio.run(twice(RspamdOptions.model_validate({"connect": rspamd.endpoint})))
        assert (len(rspamd.requests), rspamd.connections) == (2, 1)


def test_a_message_over_max_size_is_not_sent_and_says_so():
    with Rspamd(answer()) as rspamd:
        found = check(rspamd.endpoint, max_size=10)
        assert (found.skipped, found.idle(), rspamd.connections) == ("larger than 10 octets", True, 0)
    assert judge(found) is PROCEED


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (http({"error": "unauthorized"}, "403 Forbidden"), "rspamd says 403"),
        (http(b"", "302 Found", "Location: http://127.0.0.1/\r\n"), "rspamd says 302"),
        (http(b"hello"), "garbage"),
        (http(b""), "garbage"),
        (http([]), "garbage"),
        (http(b"[" * 100_000), "garbage"),
        (http({"action": "reject"}), "garbage: 'score'"),
        (http(answer(score="much")), "garbage: 'score'"),
        (http(b'{"action": "reject", "score": NaN}'), "garbage"),
        (http(b'{"action": "reject", "score": 1e999}'), "garbage"),
        (http(answer(action="burn")), "unknown action: 'burn'"),
        (http(answer(action=7)), "garbage: 'action'"),
        (http(answer(milter={"add_headers": {"X": {"order": 1}}})), "garbage: 'milter"),
        (http(answer(milter={"add_headers": {"X Y": "z"}})), "no header field"),
        (http(answer(milter={"add_rcpt": ["not an address"]})), "names an address that is none"),
        (http(b"{" + b" " * REPLY_OCTETS), f"longer than {REPLY_OCTETS} octets"),
        (b"220 mx.example.test ESMTP\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
        (http(answer())[:-5], "RemoteProtocolError"),
    ],
)
def test_errors_garbage_and_half_replies_are_faults(reply, error):
    def once(link: socket.socket) -> None:
        read_http(link)
        link.sendall(reply)

    with Scripted(once) as rspamd, pytest.raises(RspamdError, match=error) as caught:
        check(rspamd.endpoint, password=PASSWORD)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_rspamd_that_is_not_there_is_a_fault():
    with pytest.raises(OSError, match="no answer from rspamd: ConnectError"):
        check(f"127.0.0.1:{free_port()}")


def test_an_rspamd_that_hangs_up_in_the_midst_of_the_message_is_a_fault():
    with Scripted(lambda link: read_to(link, b"\r\n\r\n")) as server, pytest.raises(RspamdError):
        check(server.endpoint, CONTENT + b"x" * (16 << 20))


@pytest.mark.parametrize(
    ("action", "verdict", "reply"),
    [
        ("no action", Action.PROCEED, "None"),
        ("greylist", Action.PROCEED, "None"),
        ("add header", Action.PROCEED, "None"),
        ("rewrite subject", Action.PROCEED, "None"),
        ("soft reject", Action.DEFER, "451 4.7.1 try again later"),
        ("reject", Action.REJECT, "550 5.7.1 message looks like spam"),
        ("quarantine", Action.QUARANTINE, "None"),
        ("discard", Action.DISCARD, "None"),
    ],
)
def test_each_action_has_its_verdict(action, verdict, reply):
    given = judge(advice(action, text="Gtube pattern"))
    assert (given.action, str(given.reply)) == (verdict, reply)
    if given.decisive:
        assert given.reason == f"{action}, score 7 of 15: Gtube pattern"


@pytest.mark.parametrize(
    ("action", "does", "verdict"),
    [
        ("reject", "quarantine", Action.QUARANTINE),
        ("reject", "discard", Action.DISCARD),
        ("greylist", "defer", Action.DEFER),
        ("add header", "reject", Action.REJECT),
        ("soft reject", "proceed", Action.PROCEED),
        ("our own", "quarantine", Action.QUARANTINE),
    ],
)
def test_or_the_one_that_the_options_say(action, does, verdict):
    assert judge(advice(action), actions={action: does}).action is verdict


def test_an_action_of_ones_own_is_known_when_the_options_have_it():
    with Rspamd(answer(action="our own")) as rspamd:
        assert check(rspamd.endpoint, actions={"our own": "tag"}).action == "our own"


def test_what_rspamd_says_to_the_client_is_said_where_the_options_let_it():
    found = advice("soft reject", text="Greylisted, please try again")
    assert str(judge(found, messages=True).reply) == "451 4.7.1 Greylisted, please try again"
    assert str(judge(advice("reject"), messages=True).reply) == "550 5.7.1 message looks like spam"


def test_that_text_is_one_line_of_printable_ascii():
    with Rspamd(answer(messages={"smtp_message": "Spam\r\n250 fine \u2603" + "x" * 500})) as rspamd:
        text = check(rspamd.endpoint).text
    assert text.startswith("Spam 250 fine  x")
    assert len(text) == 200


FORGED = b"x-spam: No\r\n" + CONTENT


@pytest.mark.parametrize("found", [None, advice("no action"), advice("add header"), advice("", skipped="too large")])
def test_the_senders_own_word_for_it_is_removed_whatever_was_found(found):
    assert judge(found, FORGED).edits[0] == DeleteHeader("X-Spam")
    assert DeleteHeader("X-Spam") not in judge(found).edits


def test_a_tag_is_a_field():
    assert judge(advice("add header")).edits == (AddHeader("X-Spam", "Yes"),)
    assert judge(advice("add header"), spam_header="X-Junk").edits == (AddHeader("X-Junk", "Yes"),)


def test_the_changes_that_rspamd_asks_for_are_made_unless_the_message_is_refused():
    change = AddHeader("X-Spam-Status", "Yes", END)
    assert judge(advice("no action", edits=(change,))).edits == (change,)
    assert judge(advice("quarantine", edits=(change,))).edits == (change,)
    assert judge(advice("reject", edits=(change,))).edits == ()


def test_fields_are_added_where_rspamd_wants_them():
    block = {
        "X-End": "text",
        "X-Last": {"value": "v", "order": -1},
        "X-Top": {"value": "v", "order": 0},
        "X-Second": {"value": "v", "index": 1},
        "X-Before-Last": {"value": "v", "order": -2},
        "X-Far": {"value": "v", "order": -50},
        "X-Two": [{"value": "a", "order": 0}, "b"],
        "X-Folded": "a b\r\n\tc",
    }
    assert edits(milter={"add_headers": block}) == (
        AddHeader("X-End", "text", END),
        AddHeader("X-Last", "v", END),
        AddHeader("X-Top", "v", 0),
        AddHeader("X-Second", "v", 1),
        AddHeader("X-Before-Last", "v", 1),
        AddHeader("X-Far", "v", 0),
        AddHeader("X-Two", "a", 0),
        AddHeader("X-Two", "b", END),
        AddHeader("X-Folded", "a b\n\tc", END),
    )


def test_fields_are_removed_before_others_are_added():
    content = b"A: 1\r\nB: 1\r\nA: 2\r\nA: 3\r\n" + CONTENT
    block = {"add_headers": {"A": "new"}, "remove_headers": {"A": [1, -1], "B": 0, "C": 1}}
    assert edits(content, milter=block) == (
        DeleteHeader("A", 3),
        DeleteHeader("A", 1),
        DeleteHeader("B"),
        AddHeader("A", "new", END),
    )


def test_empty_tables_of_lua_are_lists():
    assert edits(milter=[], symbols=[], messages=[]) == ()
    assert edits(milter={"add_headers": [], "remove_headers": [], "add_rcpt": {}}) == ()


def test_the_envelope_is_changed_too():
    block = {"change_from": "<>", "add_rcpt": ["<carl@example.org>"], "del_rcpt": ["ben@example.org"]}
    assert edits(milter=block) == (
        ChangeSender(NULL_SENDER),
        AddRecipient(Recipient(Address("carl", "example.org"))),
        DeleteRecipient(Address("ben", "example.org")),
    )


def test_the_subject_is_rewritten_where_that_is_the_action():
    assert edits(action="rewrite subject", subject="[spam] x") == (ChangeHeader("Subject", 1, "[spam] x"),)
    assert edits(action="add header", subject="[spam] x") == ()
    assert edits(b"From: a@b.test\r\n\r\n", action="rewrite subject", subject="[spam]") == (
        AddHeader("Subject", "[spam]"),
    )


def test_signatures_go_on_top():
    signatures = ["v=1; a=rsa-sha256;\r\n\tb=AAAA", "v=1; b=BBBB"]
    assert edits(**{"dkim-signature": signatures}) == (
        AddHeader("DKIM-Signature", "v=1; a=rsa-sha256;\n\tb=AAAA", 0),
        AddHeader("DKIM-Signature", "v=1; b=BBBB", 1),
    )
    assert edits(**{"dkim-signature": "v=1; b=BBBB"}) == (AddHeader("DKIM-Signature", "v=1; b=BBBB", 0),)


@pytest.mark.parametrize(
    ("block", "action"),
    [
        ({"reject": "discard"}, "discard"),
        ({"reject": "quarantine"}, "quarantine"),
        ({"reject": "other"}, "reject"),
        ({"no_action": True}, "no action"),
    ],
)
def test_the_milter_block_may_change_the_action(block, action):
    with Rspamd(answer(action="reject", milter=block)) as rspamd:
        found = check(rspamd.endpoint)
    assert found.action == action
    assert (AddHeader("X-Rspamd-Action", "reject") in found.edits) == (action == "no action")


def test_its_own_spam_fields_take_the_place_of_those_that_are_there():
    block = {"spam_header": {"X-Junk": "99"}}
    assert edits(action="add header", milter=block) == (DeleteHeader("X-Junk"), AddHeader("X-Junk", "99"))
    assert edits(action="no action", milter=block) == ()


def test_too_many_changes_are_garbage():
    block = {"add_headers": {f"X-{n}": "v" for n in range(EDITS + 1)}}
    with pytest.raises(RspamdError, match="more than 500 changes"):
        edits(milter=block)


def test_octets_that_are_no_utf8_do_not_make_a_reply_garbage():
    octets = json.dumps(answer(subject="x")).encode().replace(b'"x"', b'"\xff\xfe"')
    assert read_reply(octets).subject == "\ufffd\ufffd"


def test_the_password_is_in_no_text():
    options = RspamdPlugin.Options.model_validate({"password": PASSWORD})
    assert PASSWORD not in f"{options} {options!r} {options.model_dump()} {options.model_dump_json()}"


@pytest.mark.parametrize(
    "options",
    [{"actions": {"reject": "burn"}}, {"actions": {"": "tag"}}, {"settings_id": "a b"}, {"spam_header": ""}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        RspamdPlugin.Options.model_validate(options)


def test_no_proxy_of_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    with Rspamd(answer()) as rspamd:
        assert check(rspamd.endpoint).score == 1.5
