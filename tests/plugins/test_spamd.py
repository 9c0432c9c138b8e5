"""The plugin `spamd` on the bench, with a scripted spamd."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    AuthResult,
    ChangeHeader,
    DeleteHeader,
    ReverseName,
    SpamScore,
    Tls,
    Verdict,
)
from gateway.sdk.testing import Bench, make_message, make_session, make_transaction
from plugins.spamd import SpamdPlugin
from plugins.spamd.codec import BODY_OCTETS, Command, SpamdError, request
from plugins.spamd.fields import read_header
from tests.support.process import free_port
from tests.support.scripted import Scripted, read_spamc, read_to

CONTENT = b"From: ann@sender.test\r\nSubject: x\r\n\r\nHello.\r\n"
SYMBOLS = b"GP_SIX,NO_RELAYS"
SPAM = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 15\r\nSpam: True ; 6.2 / 5.0\r\n\r\nGP_SIX,NO_RELAY"
HAM = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; -0.1 / 5.0\r\n\r\n"


class Spamd(Scripted):
    """Reads a request and answers with `reply`."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(self._answer)

    def _answer(self, link: socket.socket) -> None:
        self.requests.append(read_spamc(link))
        link.sendall(self.reply)


def check(endpoint: str, content: bytes = CONTENT, *, transaction=None, findings=(), **options) -> SpamScore:
    found = Bench().find(
        SpamdPlugin,
        {"connect": endpoint, **options},
        transaction=transaction,
        message=make_message(content),
        findings=findings,
    )
    assert isinstance(found, SpamScore)
    return found


def judge(found: SpamScore | None, content: bytes = CONTENT, **options) -> Verdict:
    findings = [found] if found else []
    return Bench().judge(SpamdPlugin, options, message=make_message(content), findings=findings)


def score(points: float, **more) -> SpamScore:
    return SpamScore(points, 5.0, points >= 5, "spamd", **more)


def test_the_score_and_the_rules_that_matched():
    with Spamd(SPAM) as spamd:
        assert check(spamd.endpoint) == SpamScore(6.2, 5.0, True, "spamd", symbols=("GP_SIX", "NO_RELAY"))
        assert [first for first, _, _ in spamd.requests] == ["SYMBOLS SPAMC/1.5"]
        assert spamd.requests[0][2].endswith(CONTENT)


def test_ham_is_no_spam():
    with Spamd(HAM) as spamd:
        assert check(spamd.endpoint) == SpamScore(-0.1, 5.0, False, "spamd")


def test_spamd_is_told_where_the_message_came_from():
    session = make_session("198.51.100.7", helo="relay.sender.test", tls=Tls("TLSv1.3", "X"))
    transaction = make_transaction(session, sender="ann@sender.test")
    confirmed = ReverseName(AuthResult.PASS, "198.51.100.7", "out.sender.test")
    with Spamd(HAM) as spamd:
        check(spamd.endpoint, transaction=transaction, findings=[confirmed])
        check(spamd.endpoint, transaction=make_transaction(make_session(helo="a b\r\nX: y"), sender=""))
        told, strange = (body.decode().splitlines() for _, _, body in spamd.requests)
    assert told[:3] == [
        "X-Envelope-From: <ann@sender.test>",
        "Received: from relay.sender.test (out.sender.test [198.51.100.7])",
        f"\tby mx.example.org (Gatepost) with ESMTPS id {transaction.id};",
    ]
    assert told[4] == "From: ann@sender.test"
    assert strange[:2] == ["X-Envelope-From: <>", "Received: from unknown (unknown [192.0.2.1])"]


@pytest.mark.parametrize(
    ("options", "recipients", "user"),
    [
        ({}, ["anna@example.org"], None),
        ({"user": "mail"}, ["anna@example.org"], "mail"),
        ({"user": "mail", "recipient_user": "address"}, ["anna@example.org"], "anna@example.org"),
        ({"user": "mail", "recipient_user": "local-part"}, ["anna@example.org"], "anna"),
        ({"user": "mail", "recipient_user": "address"}, ["anna@example.org", "ben@example.org"], "mail"),
        ({"user": "mail", "recipient_user": "local-part"}, ['"a b"@example.org'], "mail"),
        ({"user": "mail", "recipient_user": "local-part"}, ["ä@example.org"], "mail"),
    ],
)
def test_whose_preferences_spamd_uses(options, recipients, user):
    with Spamd(HAM) as spamd:
        check(spamd.endpoint, transaction=make_transaction(recipients=recipients), **options)
        assert spamd.requests[0][1].get("User") == user


def test_only_the_score_where_no_more_is_asked_for():
    with Spamd(b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1000.0 / 5.0\r\n\r\n") as spamd:
        assert check(spamd.endpoint, ask="check") == SpamScore(1000.0, 5.0, True, "spamd")
        assert spamd.requests[0][0] == "CHECK SPAMC/1.5"


REPORT = b"""\
has identified this incoming email as possible spam.

 pts rule name              description
---- ---------------------- --------------------------------------------------
 6.0 GP_SIX                 The subject is worth six points
-0.0 NO_RELAYS              Informational: message was not relayed via SMTP
"""


def test_a_report_gives_the_rules_and_a_field():
    reply = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: True ; 6.0 / 5.0\r\n\r\n" % len(REPORT)
    with Spamd(reply + REPORT) as spamd:
        found = check(spamd.endpoint, ask="report")
    assert found.symbols == ("GP_SIX", "NO_RELAYS")
    (edit,) = found.edits
    assert isinstance(edit, AddHeader)
    assert edit.name == "X-Spam-Report"
    assert edit.value.splitlines()[0] == "has identified this incoming email as possible spam."
    assert edit.value.splitlines()[-1].startswith("\t-0.0 NO_RELAYS  ")
    assert judge(found).edits[-1] == edit


HEADERS = (
    b"X-Spam-Flag: YES\r\nX-Spam-Status: Yes, score=6.0 required=5.0 tests=GP_SIX,MSGID_SHORT,\r\n"
    b"\tNO_RELAYS autolearn=disabled version=4.0.1\r\nFrom: ann@sender.test\r\nSubject: ***SPAM*** x\r\n\r\n"
)


def test_the_fields_that_spamds_own_configuration_makes():
    reply = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: True ; 6.0 / 5.0\r\n\r\n" % len(HEADERS)
    with Spamd(reply + HEADERS) as spamd:
        found = check(spamd.endpoint, ask="headers")
    assert found.symbols == ("GP_SIX", "MSGID_SHORT", "NO_RELAYS")
    status = "Yes, score=6.0 required=5.0 tests=GP_SIX,MSGID_SHORT,\n\tNO_RELAYS autolearn=disabled version=4.0.1"
    assert found.edits == (
        AddHeader("X-Spam-Flag", "YES", 0),
        AddHeader("X-Spam-Status", status, 1),
        ChangeHeader("Subject", 1, "***SPAM*** x"),
    )
    assert judge(found, ask="headers").edits == found.edits, "and none of ours beside them"


def test_a_field_begins_where_a_line_does():
    body = b"Subject: x\nno field at all X-Spam-Flag: NO\nX-Spam-Level: ***\n"
    assert read_header(body, "x")[1] == (AddHeader("X-Spam-Level", "***", 0),)


def test_a_subject_that_spamd_leaves_alone_is_not_changed():
    body = HEADERS.replace(b"***SPAM*** x", b"=?utf-8?q?x?=\r\n y")
    reply = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: True ; 6.0 / 5.0\r\n\r\n" % len(body)
    content = CONTENT.replace(b"Subject: x", b"Subject: =?utf-8?q?x?=\r\n y")
    with Spamd(reply + body) as spamd:
        found = check(spamd.endpoint, content, ask="headers")
    assert all(isinstance(edit, AddHeader) for edit in found.edits)


def test_a_message_over_max_size_is_not_sent_and_says_so():
    with Spamd(SPAM) as spamd:
        found = check(spamd.endpoint, max_size=10)
        assert (found.skipped, found.idle(), spamd.connections) == ("larger than 10 octets", True, 0)
    assert judge(found) is PROCEED


@pytest.mark.parametrize(
    ("reply", "kind", "error"),
    [
        (b"SPAMD/1.0 76 Bad header line: BLAH\r\n", SpamdError, "spamd says: 76 Bad header line"),
        (b"SPAMD/1.0 75 EX_TEMPFAIL\r\n", SpamdError, "75"),
        (b"220 mx.example.test ESMTP\r\n", SpamdError, "garbage"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: Perhaps ; 6.0 / 5.0\r\n\r\n", SpamdError, "score is none"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; nan / 5.0\r\n\r\n", SpamdError, "score is none"),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1e400 / 5.0\r\n\r\n", SpamdError, "score is none"),
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: 3\r\n\r\nabc", SpamdError, "says no score"),
        (SPAM + b"more", SpamdError, "longer than it may be"),
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: 99999999\r\n", SpamdError, "no length that can be taken"),
        (b"SPAMD/1.1 0 EX_OK\r\nContent-length: -1\r\n", SpamdError, "no length that can be taken"),
        (b"SPAMD/1.1 0 EX_OK\r\n\x00\x01\r\n", SpamdError, "garbage"),
        (b"SPAMD/1.1 0 EX_OK\r\n" + b"X: y\r\n" * 5000, SpamdError, "longer than 8192 octets"),
        (b"x" * 9000, SpamdError, "longer than 8192 octets"),
        (HAM.replace(b"Content-length: 0\r\n", b"") + b"x" * (BODY_OCTETS + 1), SpamdError, "longer than it may be"),
        (b"", ConnectionError, "before its response was over"),
        (SPAM[:-1], ConnectionError, "before its response was over"),
        (SPAM[:30], ConnectionError, "before its response was over"),
    ],
)
def test_errors_garbage_and_half_responses_are_faults(reply, kind, error):
    with Spamd(reply) as spamd, pytest.raises(kind, match=error):
        check(spamd.endpoint)


def test_a_spamd_that_answers_before_it_had_the_message_has_not_looked_at_it():
    def hasty(link: socket.socket) -> None:
        read_to(link, b"\r\n\r\n")
        link.sendall(HAM)
        assert server.done.wait(20)

    with Scripted(hasty) as server:
        with pytest.raises(ConnectionError):
            check(server.endpoint, CONTENT + b"x" * (16 << 20), max_size="20MiB")
        server.done.set()


def test_a_spamd_that_is_not_there_is_a_fault():
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        check(f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("points", "options", "action"),
    [
        (14.9, {}, Action.PROCEED),
        (15.0, {}, Action.REJECT),
        (1000.0, {"reject_at": None}, Action.PROCEED),
        (7.9, {"quarantine_at": 8}, Action.PROCEED),
        (8.0, {"quarantine_at": 8}, Action.QUARANTINE),
        (15.0, {"quarantine_at": 8}, Action.REJECT),
        (15.0, {"quarantine_at": 8, "reject_at": None}, Action.QUARANTINE),
    ],
)
def test_thresholds(points, options, action):
    assert judge(score(points), **options).action is action


def test_spam_is_refused_and_the_rules_stay_here():
    verdict = judge(score(20, symbols=("GP_SIX", "GP_TWELVE")))
    assert str(verdict.reply) == "550 5.7.1 message looks like spam"
    assert verdict.reason == "score 20: GP_SIX, GP_TWELVE"


def test_the_fields_that_are_added():
    assert judge(score(6.25, symbols=("GP_SIX", "NO_RELAYS"))).edits == (
        AddHeader("X-Spam-Status", "Yes, score=6.2 required=5.0\n\ttests=GP_SIX,NO_RELAYS", 0),
        AddHeader("X-Spam-Score", "6.2", 1),
        AddHeader("X-Spam-Flag", "YES", 2),
        AddHeader("X-Spam-Level", "******", 3),
    )
    assert judge(score(-2)).edits == (
        AddHeader("X-Spam-Status", "No, score=-2.0 required=5.0\n\ttests=none", 0),
        AddHeader("X-Spam-Score", "-2.0", 1),
    )
    assert judge(score(1000), headers=["level"], reject_at=None).edits == (AddHeader("X-Spam-Level", "*" * 50),)
    assert judge(score(6), headers=[]) is PROCEED


def test_tag_at_is_ours_instead_of_spamds_threshold():
    assert AddHeader("X-Spam-Flag", "YES") in judge(score(4), tag_at=4, headers=["flag"]).edits
    assert judge(score(6), tag_at=7, headers=["flag"]) is PROCEED


def test_many_rules_are_folded():
    names = tuple(f"A_RULE_OF_MANY_{n}" for n in range(200))
    (edit,) = judge(score(6, symbols=names), headers=["status"]).edits
    assert isinstance(edit, AddHeader)
    assert max(map(len, edit.value.splitlines())) < 80
    assert "".join(edit.value.split()).count("A_RULE_OF_MANY_") == 200


FORGED = (
    b"X-Spam-Status: No, score=-100\r\nx-spam-flag: NO\r\nX-Spam-Whatever: 1\r\nX-Spammer: me\r\nX-Spam-Flag: NO\r\n"
)


@pytest.mark.parametrize("found", [None, score(-5), score(6), score(0, skipped="too large")])
def test_what_the_sender_says_of_spam_is_removed_first_whatever_the_score(found):
    deletions = (DeleteHeader("x-spam-flag"), DeleteHeader("x-spam-status"), DeleteHeader("x-spam-whatever"))
    assert judge(found, FORGED + CONTENT).edits[:3] == deletions
    assert not any(isinstance(edit, DeleteHeader) for edit in judge(found).edits)


def test_hundreds_of_such_fields_are_no_mail():
    fields = b"".join(b"X-Spam-%d: 1\r\n" % n for n in range(101))
    verdict = judge(None, fields + CONTENT)
    assert str(verdict.reply) == "550 5.6.0 too many X-Spam header fields"


def test_quarantined_mail_has_its_fields_too():
    verdict = judge(score(9), FORGED + CONTENT, quarantine_at=8)
    assert AddHeader("X-Spam-Flag", "YES", 2) in verdict.edits
    assert DeleteHeader("x-spam-flag") in verdict.edits


@pytest.mark.parametrize(
    "options",
    [{"ask": "ping"}, {"user": "a b"}, {"tag_at": "many"}, {"tag_at": float("nan")}, {"headers": ["colour"]}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        SpamdPlugin.Options.model_validate(options)


def test_no_user_breaks_out_of_its_line():
    with pytest.raises(ValueError, match="no such user"):
        request(Command.CHECK, 1, "anna\r\nSet: local")


def test_a_symbol_that_spamd_would_not_say_is_not_written_into_the_message():
    found = SpamScore(6.0, 5.0, True, "another", symbols=("GOOD", "a\r\nX-Spam-Flag: NO", ""))
    verdict = Bench().judge("spamd", message=make_message(), findings=[found])
    (status,) = [edit.value for edit in verdict.edits if getattr(edit, "name", "") == "X-Spam-Status"]
    assert "tests=GOOD" in status and "Flag" not in status
