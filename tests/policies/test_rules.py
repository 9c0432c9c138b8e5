"""The rules policy on the bench: what expressions see, and what matching rules do."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Action,
    AddHeader,
    AddRecipient,
    AuthResult,
    ChangeHeader,
    DeleteHeader,
    DeleteRecipient,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Dnsbl,
    Finding,
    Geo,
    Given,
    HeloName,
    ListHit,
    Message,
    Prioritize,
    Priority,
    RecipientState,
    RecipientStatus,
    Reroute,
    Spf,
    SpfResult,
    Stage,
    Tls,
    Verdict,
    When,
)
from gateway.sdk.testing import (
    Bench,
    make_client_certificate,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
)
from policies.rules import Rules, RulesOptions
from policies.rules.inputs import finding_type
from policies.rules.policy import RuleFailed
from policies.rules.program import Contexts, compile

FORGED = Dmarc(AuthResult.FAIL, "example.org", policy=DmarcPolicy.REJECT)
LISTED = Dnsbl(2.5, (ListHit("bl.test", ("127.0.0.2",), 2.5),))
SIGNED = Dkim((DkimSignature(AuthResult.PASS, "example.org"), DkimSignature(AuthResult.FAIL, "list.test")))
FAILED = Spf(SpfResult.FAIL, "sender.example", SpfResult.NONE, "client.example")


def judge(when, then="discard", *findings, stage=Stage.MESSAGE, at=None, **given) -> Verdict:
    """What one rule says; it is asked at `message` unless something else is said."""
    rule = {"when": when, "then": then, "name": "the rule", "at": at or stage}
    return Bench().judge("rules", [rule], stage, findings=findings, **given)


def matches(when, *findings, **given) -> bool:
    return judge(when, "discard", *findings, **given).action is Action.DISCARD


def test_a_rule_over_two_findings_and_the_session_refuses_with_its_reply_and_names_itself_in_the_reason():
    when = 'dmarc.result == "fail" && session.helo.endsWith(".example") && dnsbl.score > 2.0'
    verdict = judge(when, {"reject": "5.7.1 not accepted"}, FORGED, LISTED)
    assert (str(verdict.reply), verdict.reason) == ("550 5.7.1 not accepted", "the rule")
    assert judge(when, {"reject": "5.7.1 not accepted"}, FORGED, Dnsbl(2.0)) == PROCEED


@pytest.mark.parametrize(
    "when",
    [
        "dnsbl.score > 2",
        "dnsbl.score == 2.5 && 2 < dnsbl.score",
        "dnsbl.hits.size() == 1 && size(dnsbl.failed) == 0",
        'dnsbl.hits.exists(hit, hit.zone == "bl.test" && "127.0.0.2" in hit.codes)',
        'dnsbl.hits.map(hit, hit.zone)[0] == "bl.test"',
        "dnsbl.hits.filter(hit, hit.weight > 2.0).size() == 1",
        "dnsbl.hits.all(hit, hit.weight < 3.0) && dnsbl.hits.exists_one(hit, true)",
        'dmarc.policy == "reject" && dmarc.domain in ["example.org", "example.net"]',
        'dkim.passed == ["example.org"] && dkim.signatures[1].result == "fail"',
        'spf.result != "pass" && spf.lookups + 1 == 1',
        'dkim.passed.exists(spf, spf == "example.org") && spf.result == "fail"',
        '[1, 2].all(x, dkim.passed.exists(x, x == "example.org") && x > 0)',
        'message.size > 0 && string(message.size).matches("^[0-9]+$")',
        'true ? spf.result == "fail" : false',
    ],
)
def test_findings_have_their_fields_with_types_of_the_language(when):
    assert matches(when, FORGED, LISTED, SIGNED, FAILED)


@pytest.mark.parametrize(
    "when",
    [
        'session.client == "192.0.2.9" && session.peer == session.client',
        'cidr("192.0.2.0/24").containsIP(session.client) && !cidr("10.0.0.0/8").containsIP(session.client)',
        '!cidr("192.0.2.0/24").containsIP(session.helo)',
        'session.helo.lowerAscii() == "mail.client.example" && session.helo.upperAscii().endsWith("EXAMPLE")',
        'session.tls.version == "TLSv1.3" && !session.trusted && session.esmtp',
        'session.tls.client.verified && "DNS:mx.partner.example" in session.tls.client.names',
        'session.tls.client != null && session.tls.client.subject == "partner" && session.tls.client.problem == ""',
        'session.tls.client.issuer == "Partners CA" && session.tls.client.fingerprint.size() == 95',
        'sender.address == "ben@sender.example" && sender.local == "ben" && sender.domain == "sender.example"',
        'recipients.exists(r, r.address == "anna@example.org") && recipients.size() == 2',
        "parameters.size == 0 && !parameters.smtputf8 && parameters.ret == null",
        'message.subject == "Grüße" && message.subject.size() == 5',
        'message.first("subject").startsWith("=?utf-8?") && message.first("X-None") == ""',
        'message.all("Received") == ["one", "two"] && message.all("X-None").size() == 0',
        'message.subject.matches("(?i)^gr.SSE?|gr") && "a b ".trim() == "a b"',
    ],
)
def test_session_envelope_and_message_are_there_beside_the_findings(when):
    tls = Tls("TLSv1.3", "any", client=make_client_certificate("partner", "DNS:mx.partner.example"))
    session = make_session("192.0.2.9", helo="Mail.Client.example", tls=tls)
    txn = make_transaction(session, recipients=["anna@example.org", "eve@example.net"])
    message = make_message(b"Received: one\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nReceived: two\r\n\r\n")
    assert matches(when, session=session, transaction=txn, message=message)


def test_the_null_sender_is_the_empty_text():
    assert matches('sender.address == "" && sender.domain == ""', transaction=make_transaction(sender=""))
    assert make_transaction(sender="").sender is NULL_SENDER


def test_a_recipient_is_there_at_rcpt_with_what_was_found_of_it():
    found = RecipientStatus(RecipientState.UNKNOWN, "list")
    when = 'recipient_status.state == "unknown" && recipient.local != "postmaster"'
    for address, action in (("anna@example.org", Action.REJECT), ("postmaster@example.org", Action.PROCEED)):
        verdict = judge(when, {"reject": "no"}, found, stage=Stage.RCPT, recipient=make_recipient(address))
        assert verdict.action is action


class TestWhatIsMissing:
    def test_a_rule_does_not_match_without_the_finding_that_it_looks_into(self):
        both = [
            {"when": 'geo.country == "DE" || true', "then": "discard"},
            {"when": "dnsbl.score > 2", "then": "accept"},
        ]
        rules = [{**rule, "at": "message"} for rule in both]
        bench = Bench()
        assert bench.judge("rules", rules, Stage.MESSAGE, findings=[Geo("DE"), LISTED]).action is Action.DISCARD
        # Bound as a pipeline binds it, with what one plugin did not find.
        policy = Rules(RulesOptions.model_validate({"rules": rules}))
        policy.wire(Given({Geo: (Stage.MESSAGE,), Dnsbl: (Stage.MESSAGE,)}, lambda kind: ()))
        hook = policy.hooks[Stage.MESSAGE]
        assert (hook.inputs, hook.optional) == ((Geo, Dnsbl), (True, True))
        assert getattr(policy, hook.name)(None, LISTED).action is Action.ACCEPT
        assert getattr(policy, hook.name)(None, None) == PROCEED

    def test_a_rule_that_asks_whether_it_is_there_is_asked_all_the_same(self):
        assert matches('geo == null && spf.result == "fail"', FAILED)
        assert matches('geo == null || geo.country == "DE"')
        assert not matches('geo != null && geo.country == "DE"')
        assert matches('geo != null && geo.country == "DE"', Geo("DE"))

    def test_what_may_be_missing_inside_of_something_is_told_apart_in_the_same_way(self):
        assert not matches('session.tls.version != "TLSv1"')
        assert matches('session.tls == null || session.tls.version == "TLSv1"')
        bare = make_session(tls=Tls("TLSv1.3", "any"))
        assert not matches('session.tls.client.subject != "partner"', session=bare)
        assert matches("session.tls.client == null", session=bare)
        assert matches('dmarc.policy != "reject"', Dmarc(AuthResult.NONE, "x.test"))
        assert not matches('dmarc.policy.startsWith("r")', Dmarc(AuthResult.NONE, "x.test"))
        assert not matches("helo_name.resolves", HeloName("x")) and matches(
            "helo_name.resolves", HeloName("x", (), True)
        )

    def test_an_item_that_is_not_there_is_no_match(self):
        assert not matches('dkim.signatures[0].domain == "example.org"', Dkim())
        assert matches('dkim.signatures[0].domain == "example.org"', SIGNED)


class TestActions:
    @pytest.mark.parametrize(
        ("then", "action", "reply"),
        [
            ({"reject": "5.7.1 not accepted"}, Action.REJECT, "550 5.7.1 not accepted"),
            ({"reject": "554 5.6.0 odd"}, Action.REJECT, "554 5.6.0 odd"),
            ({"reject": "not accepted"}, Action.REJECT, "550 5.7.1 not accepted"),
            ({"defer": "4.7.1 later"}, Action.DEFER, "451 4.7.1 later"),
            ({"disconnect": "bye"}, Action.DISCONNECT, "421 4.7.0 bye"),
            ({"disconnect": "5.7.0 bye"}, Action.DISCONNECT, "554 5.7.0 bye"),
            ("accept", Action.ACCEPT, None),
            ("discard", Action.DISCARD, None),
            ({"quarantine": None}, Action.QUARANTINE, None),
        ],
    )
    def test_decisions(self, then, action, reply):
        verdict = judge("true", then)
        assert (verdict.action, str(verdict.reply) if verdict.reply else None, verdict.when) == (
            action,
            reply,
            When.ALWAYS,
        )

    def test_a_note_stands_behind_the_rules_name_in_the_record(self):
        assert judge("true", {"quarantine": "looks forged"}).reason == "the rule: looks forged"

    def test_a_defer_may_wait_for_what_others_say(self):
        assert judge("true", {"defer_if_permit": "4.7.1 later"}).when is When.IF_PERMIT
        assert judge("true", {"defer_if_reject": "4.7.1 later"}).when is When.IF_REJECT

    @pytest.mark.parametrize("action", ["defer_if_permit", "defer_if_reject"])
    def test_a_defer_that_waits_takes_no_edits_away(self, action):
        rules = [
            {"when": "message.size > 0", "then": {"add_header": {"X-A": "1"}}, "name": "a"},
            {"when": "message.size > 0", "then": {action: "4.7.1 later"}, "name": "b"},
        ]
        verdict = Bench().judge("rules", rules, Stage.MESSAGE)
        assert (verdict.reason, verdict.edits) == ("a, b", (AddHeader("X-A", "1"),))

    def test_edits_are_made_in_the_order_in_which_they_stand_before_the_decision(self):
        txn = make_transaction(recipients=["anna@example.org"])
        then = [
            {"tag_subject": "[odd]"},
            {"add_header": {"X-Rule": "one"}, "set_header": {"X-Spam": "yes"}},
            {"delete_header": ["X-Old", "X-Older"]},
            {"redirect": "eve@example.net"},
            {"bcc": "log@example.org"},
            {"reroute": "smtp:[2001:db8::1]:25"},
            "quarantine",
        ]
        verdict = judge("true", then, transaction=txn)
        assert verdict.action is Action.QUARANTINE
        assert verdict.edits[:6] == (
            ChangeHeader("Subject", 1, "[odd] test"),
            AddHeader("X-Rule", "one"),
            DeleteHeader("X-Spam"),
            AddHeader("X-Spam", "yes"),
            DeleteHeader("X-Old"),
            DeleteHeader("X-Older"),
        )
        added = [str(e.recipient.address) for e in verdict.edits if isinstance(e, AddRecipient)]
        assert added == ["eve@example.net", "log@example.org"]
        assert DeleteRecipient(txn.recipients[0].address) in verdict.edits
        assert verdict.edits[-1] == Reroute("smtp:[2001:db8::1]:25")

    def test_a_rule_gives_a_message_its_priority(self):
        assert judge("true", {"priority": "low"}).edits == (Prioritize(Priority.LOW),)

    def test_rules_without_a_decision_add_up_until_one_decides(self):
        rules = [
            {"when": "message.size > 0", "then": {"add_header": {"X-A": "1"}}, "name": "a"},
            {"when": "message.size < 0", "then": {"add_header": {"X-B": "1"}}, "name": "b"},
            {"when": "message.size > 1", "then": {"add_header": {"X-C": "1"}}},
            {"when": "message.size > 2", "then": "accept", "name": "d"},
            {"when": "message.size > 3", "then": "discard", "name": "e"},
        ]
        verdict = Bench().judge("rules", rules, Stage.MESSAGE)
        assert (verdict.action, verdict.reason) == (Action.ACCEPT, "a, rule 3, d")
        assert verdict.edits == (AddHeader("X-A", "1"), AddHeader("X-C", "1"))
        undecided = Bench().judge("rules", rules[:3], Stage.MESSAGE)
        assert (undecided.action, undecided.reason) == (Action.PROCEED, "a, rule 3")

    def test_proceed_ends_the_rules_of_the_stage_and_nothing_else(self):
        rules = [
            {"when": 'sender.domain == "sender.example"', "then": "proceed", "at": "message", "name": "friends"},
            {"when": "message.size > 0", "then": "discard"},
        ]
        assert Bench().judge("rules", rules, Stage.MESSAGE) == Verdict(Action.PROCEED, reason="friends")
        stranger = make_transaction(sender="eve@else.example")
        assert Bench().judge("rules", rules, Stage.MESSAGE, transaction=stranger).action is Action.DISCARD


def test_a_rule_without_an_answer_is_a_fault_that_names_the_rule():
    with pytest.raises(RuleFailed, match="the rule: ZeroDivisionError"):
        judge("100 / (message.size - message.size) > 1")
    with pytest.raises(RuleFailed, match="the rule: OverflowError"):
        judge("message.size + 9223372036854775807 > 1")


def test_strangers_octets_that_are_no_text_do_no_harm():
    message = make_message(b"Subject: \xff\xfe bad\r\nX: " + b"a" * 9000 + b"\r\n\r\n")
    assert matches('message.subject.contains("bad") && message.first("X").size() == 4000', message=message)
    sender = make_transaction(sender="ben@sender.example")
    assert matches('message.first("Subject").endsWith("bad")', message=message, transaction=sender)
    found = HeloName("\udcff.example", ("\udc80",))
    assert matches('helo_name.name == "?.example" && helo_name.problems.size() == 1', found)


@dataclass(frozen=True, slots=True)
class MoonPhase(Finding):
    """Of somebody's own plugin."""

    percent: int
    names: tuple[str, ...] = ()
    weights: dict[str, float] | None = None

    @property
    def full(self) -> bool:
        return self.percent >= 99


def test_findings_of_anybodys_plugin_go_by_their_class_and_have_their_properties():
    moon = MoonPhase(99, ("harvest",), {"tide": 1.5})
    assert matches('moon_phase.full && "harvest" in moon_phase.names && moon_phase.percent == 99', moon)
    assert matches(
        'moon_phase.weights.tide > 1.0 && has(moon_phase.weights.tide) && "tide" in moon_phase.weights', moon
    )
    assert not matches("moon_phase.weights.wind > 1.0", moon)
    assert not matches("has(moon_phase.weights.wind)", moon)


@dataclass(frozen=True, slots=True)
class Loose(Finding):
    """A finding of somebody who cares little for types."""

    value: object = None


def test_values_that_are_equal_in_python_are_not_taken_for_each_other() -> None:
    contexts = Contexts({"loose": {"value"}})
    program = compile("loose.value == true", {"loose": finding_type(Loose)})

    def answers(value: object) -> bool:
        sources = {"loose": Loose(value)}
        return program.holds(contexts.make(sources, {}), sources)

    values: list[object] = [True, 1, 1.0, "true", None, float("nan"), (1,), Number(1)]
    for _ in range(2):
        assert [value for value in values if answers(value)] == [True]


class Number(int):
    """A number of a kind of its own."""


def test_the_same_values_are_made_once_and_those_of_a_session_never_kept() -> None:
    findings, sessions = Contexts({"spf": {"result"}}), Contexts({"spf": {"result"}, "session": {"helo"}})
    sources = {"spf": FAILED, "session": make_session()}
    again = {"spf": Spf(SpfResult.FAIL, "other.example", SpfResult.PASS, ""), "session": make_session()}
    message = make_message(b"Subject: x\r\n\r\n")
    holders = sys.getrefcount(message)
    assert findings.make(sources, {Message: message}) is findings.make(again, {})
    assert sys.getrefcount(message) == holders, "the message is kept, too"
    assert findings.make(sources, {}) is not findings.make({"spf": None}, {})
    assert sessions.make(sources, {}) is not sessions.make(sources, {})
