"""The delegation plugin on the bench: its options, what actions mean, and what becomes of an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    AddRecipient,
    Address,
    DelegatedAction,
    Notify,
    Recipient,
    Redirect,
    Reroute,
    Stage,
    Verdict,
    When,
)
from gateway.sdk.testing import (
    Bench,
    make_recipient,
    make_transaction,
)
from plugins.delegation import DelegationOptions, DelegationPlugin
from plugins.delegation.actions import ActionError, parse_action
from plugins.delegation.attributes import PostfixVersion, Question, attributes
from plugins.delegation.plugin import PolicyServerError
from tests.support.policy_server import PolicyServer, Trouble

STAGES = [stage.value for stage in (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.MESSAGE)]


# Actions


def act(text: str) -> DelegatedAction:
    return parse_action(text, "the service")


def judged(text: str, stage: Stage = Stage.RCPT) -> Verdict:
    options = {"connect": "127.0.0.1:1", "at": [stage.value]}
    return Bench().judge(DelegationPlugin, options, stage, findings=[act(text)])


@pytest.mark.parametrize("text", ["OK", "ok", "Ok and more", "RELAY", "permit", "4711", "550", "0"])
def test_ok_and_bare_numbers_end_the_list_at_this_stage(text):
    assert judged(text).action is Action.ACCEPT


@pytest.mark.parametrize("text", ["DUNNO", "dunno", "DUNNO whatever", "INFO seen", "warn odd", "INFO", "WARN"])
def test_dunno_info_and_warn_change_nothing(text):
    verdict = judged(text)
    assert not verdict.decisive
    assert not verdict.edits
    assert verdict.reason.startswith("the service: ")


@pytest.mark.parametrize(
    ("text", "action", "reply"),
    [
        ("REJECT", Action.REJECT, "554 5.7.1 access denied"),
        ("reject go away", Action.REJECT, "554 5.7.1 go away"),
        ("REJECT 5.1.1 no such user", Action.REJECT, "554 5.1.1 no such user"),
        ("REJECT 4.1.1 the class follows the code", Action.REJECT, "554 5.1.1 the class follows the code"),
        ("REJECT 5.1.1", Action.REJECT, "554 5.1.1 access denied"),
        ("REJECT 5.7.1x is no status", Action.REJECT, "554 5.7.1 5.7.1x is no status"),
        ("DEFER", Action.DEFER, "450 4.7.1 try again later"),
        ("defer 4.2.0 come back", Action.DEFER, "450 4.2.0 come back"),
        ("450 come back", Action.DEFER, "450 4.7.1 come back"),
        ("451 4.3.5 trouble", Action.DEFER, "451 4.3.5 trouble"),
        ("550 5.7.23 SPF says no", Action.REJECT, "550 5.7.23 SPF says no"),
        ("554 5.7.1", Action.REJECT, "554 5.7.1 access denied"),
        ("421 4.7.0 bye", Action.DISCONNECT, "421 4.7.0 bye"),
        ("521 bye", Action.DISCONNECT, "521 5.7.1 bye"),
    ],
)
def test_refusals_have_their_code_status_and_text(text, action, reply):
    verdict = judged(text)
    assert (verdict.action, str(verdict.reply), verdict.when) == (action, reply, When.ALWAYS)


@pytest.mark.parametrize(
    ("text", "when", "reply"),
    [
        ("DEFER_IF_PERMIT", When.IF_PERMIT, "450 4.7.1 try again later"),
        ("defer_if_permit Greylisted", When.IF_PERMIT, "450 4.7.1 Greylisted"),
        ("DEFER_IF_REJECT 4.4.3 no DNS", When.IF_REJECT, "450 4.4.3 no DNS"),
    ],
)
def test_a_conditional_deferral_waits_for_what_others_say(text, when, reply):
    verdict = judged(text)
    assert (verdict.action, verdict.when, str(verdict.reply)) == (Action.DEFER, when, reply)


def test_hold_sets_aside_and_discard_throws_away_with_their_reason():
    held, thrown = judged("HOLD looks odd"), judged("discard spam")
    assert (held.action, held.reason) == (Action.QUARANTINE, "the service: HOLD looks odd")
    assert (thrown.action, thrown.reason) == (Action.DISCARD, "the service: DISCARD spam")


ANNA = Address("anna", "example.org")


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("PREPEND X-Policy: seen: yes", AddHeader("X-Policy", "seen: yes")),
        ("prepend X-Policy:seen", AddHeader("X-Policy", "seen")),
        ("PREPEND X-Policy : spaced", AddHeader("X-Policy", "spaced")),
        ("PREPEND X-Policy:", AddHeader("X-Policy", "")),
        (f"PREPEND X-Policy: {'a' * 600} {'b' * 600}", AddHeader("X-Policy", f"{'a' * 600}\n {'b' * 600}")),
        ("BCC anna@example.org", AddRecipient(Recipient(ANNA, frozenset({Notify.NEVER})))),
        ("REDIRECT <anna@example.org>", Redirect(Recipient(ANNA))),
        ("FILTER smtp:[127.0.0.1]:10025", Reroute("smtp:127.0.0.1:10025")),
        ("FILTER smtp:[2001:db8::1]:26", Reroute("smtp:[2001:db8::1]:26")),
        ("FILTER smtp:[ipv6:2001:db8::1]", Reroute("smtp:[2001:db8::1]:25")),
        ("FILTER relay:filter.example.org", Reroute("smtp:filter.example.org:25")),
        ("FILTER smtp:[filter.example.org]", Reroute("smtp:filter.example.org:25")),
        ("FILTER smtp:filter.example.org:26", Reroute("smtp:filter.example.org:26")),
        ("FILTER lmtp:inet:127.0.0.1:24", Reroute("lmtp:127.0.0.1:24")),
        ("FILTER lmtp:[store.example.org]", Reroute("lmtp:store.example.org:24")),
        ("FILTER lmtp:unix:/run/lmtp", Reroute("lmtp:unix:/run/lmtp")),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_edits_are_made_at_every_stage(stage, text, edit):
    verdict = judged(text, Stage(stage))
    assert (verdict.action, verdict.edits) == (Action.PROCEED, (edit,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "maybe",
        "reject_unauth_destination",
        "check_client_access hash:/etc/x",
        "250 fine",
        "999 what",
        "55 short",
        "HANGUP",
        "PREPEND",
        "PREPEND no colon",
        "PREPEND bad name: x",
        "PREPEND : x",
        "BCC",
        "BCC nobody",
        "BCC a@b@c d",
        "REDIRECT anna@example.org, ben@example.org",
        "FILTER",
        "FILTER smtp",
        "FILTER smtp:",
        "FILTER pipe:whatever",
        "FILTER smtp:[127.0.0.1",
        "FILTER smtp:127.0.0.1:smtp",
        "FILTER smtp:a.example, smtp:b.example",
        "FILTER maildir:/tmp/x",
        "FILTER discard:",
    ],
)
def test_anything_else_is_no_action(text):
    with pytest.raises(ActionError):
        act(text)


# Options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"connect": "nowhere"},
        {"connect": "127.0.0.1:1", "at": []},
        {"connect": "127.0.0.1:1", "at": ["auth"]},
        {"connect": "127.0.0.1:1", "default_action": "whatever"},
        {"connect": "127.0.0.1:1", "connections": 0},
        {"connect": "127.0.0.1:1", "reply_size": 1},
        {"connect": "127.0.0.1:1", "postfix": "3.6"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        DelegationOptions.model_validate(options)


def test_it_is_asked_at_rcpt_unless_told_otherwise():
    for at, wanted in (({}, ["rcpt"]), ({"at": ["helo", "message"]}, ["helo", "message"])):
        options = DelegationOptions.model_validate({"connect": "127.0.0.1:1", **at})
        made = DelegationPlugin(options, Bench().services)
        assert [finder.stage.value for finder in made.finders] == wanted
        assert all(finder.acts for finder in made.finders)
        assert sorted(stage.value for stage in DelegationPlugin.policy(options).hooks) == sorted(wanted)


def test_without_an_answer_the_default_action_is_taken_where_there_is_one():
    options = {"connect": "127.0.0.1:1"}
    assert Bench().judge(DelegationPlugin, options, Stage.RCPT) == PROCEED
    verdict = Bench().judge(
        DelegationPlugin, {**options, "default_action": "DEFER_IF_PERMIT 4.3.5 policy down"}, Stage.RCPT
    )
    assert (verdict.when, str(verdict.reply)) == (When.IF_PERMIT, "450 4.3.5 policy down")
    assert verdict.reason == "default_action: DEFER_IF_PERMIT policy down"


# A server


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    made = PolicyServer()
    yield made
    made.stop()


def test_a_server_is_asked_and_its_answer_is_the_finding(server):
    server.always("prepend X-Seen: yes")
    transaction = make_transaction(sender="ben@sender.example")
    found = Bench().find(
        DelegationPlugin,
        {"connect": server.address, "policy_context": "inbound", "postfix": "3.7"},
        transaction=transaction,
        recipient=make_recipient("anna@example.org"),
    )
    address = server.address.removeprefix("inet:")
    edits = (AddHeader("X-Seen", "yes"),)
    assert found == DelegatedAction("PREPEND", address, text="X-Seen: yes", edits=edits)
    assert found.to_json()["edits"] == [{"edit": "AddHeader", "name": "X-Seen", "index": 0, "value": "yes"}]
    (request,) = server.take()
    assert request["recipient"] == "anna@example.org"
    assert request["policy_context"] == "inbound"
    assert request.names == [
        name for name, _ in attributes(Question(Stage.RCPT, transaction.session), PostfixVersion.V3_7)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_be_asked_at(server, stage):
    server.always("WARN odd")
    found = Bench().find(DelegationPlugin, {"connect": server.address, "at": [stage]})
    assert isinstance(found, DelegatedAction)
    assert (found.action, found.text) == ("WARN", "odd")


def test_an_action_that_nobody_knows_fails(server):
    server.always(Trouble.UNKNOWN)
    with pytest.raises(PolicyServerError, match="'MAYBE' is no action"):
        Bench().find(DelegationPlugin, {"connect": server.address})
