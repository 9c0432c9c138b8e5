"""What rules say of themselves to `gatepost lint`."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sdk import Action, Spf, Stage
from gateway.sdk.lint import Setting, Trust
from gateway.sdk.policy import Given
from policies.rules import Rules
from policies.rules.policy import RulesOptions

GIVEN = Given({Spf: (Stage.RCPT, Stage.DATA, Stage.MESSAGE)}, lambda kind: ())


def rules(*written: dict[str, Any]) -> Rules:
    made = Rules(RulesOptions.model_validate({"rules": list(written)}))
    made.wire(GIVEN)
    return made


@pytest.mark.parametrize(
    ("when", "trust"),
    [
        ('sender.domain == "friend.example"', Trust.CLAIM),
        ('session.helo == "mx.friend.example"', Trust.CLAIM),
        ('message.first("List-Id") != ""', Trust.CLAIM),
        ('session.client == "192.0.2.1"', Trust.EVIDENCE),
        ('session.client == "192.0.2.1" && sender.local == "anna"', Trust.EVIDENCE),
        ('spf.result == "pass" && sender.domain == "friend.example"', Trust.EVIDENCE),
        ('recipient.local == "abuse"', Trust.RECIPIENT),
        ("size(recipients) == 1", Trust.RECIPIENT),
    ],
)
def test_a_rule_that_accepts_says_on_what_ground(when: str, trust: Trust) -> None:
    (way,) = rules({"when": when, "then": "accept", "name": "friends"}).ways()
    assert (way.action, way.trust, way.always, way.what) == (Action.ACCEPT, trust, False, "friends")


def test_what_comes_after_a_rule_that_always_decides_is_remarked_on_and_not_what_stands_at_another_stage() -> None:
    made = rules(
        {"when": "true", "at": "rcpt", "then": "proceed"},
        {"when": "session.trusted", "at": "rcpt", "then": "accept"},
        {"when": "message.size > 9", "then": "quarantine"},
    )
    assert [(r.check.code, r.path) for r in made.lint(Setting())] == [("rules/never-asked", ("rules", 1, "when"))]
    assert [(way.stage, way.action, way.always) for way in made.ways()] == [(Stage.RCPT, Action.PROCEED, True)]


def test_rules_that_only_edit_take_nothing_from_those_after_them() -> None:
    edit = {"when": "true", "at": "message", "then": {"add_header": {"X-Seen": "yes"}}}
    assert not list(rules(edit, edit, {"when": "message.size > 9", "then": "quarantine"}).lint(Setting()))


@pytest.mark.parametrize(
    ("then", "changes"),
    [
        ({"tag_subject": "[x]"}, True),
        ({"set_header": {"Reply-To": "a@example.org"}}, True),
        ({"delete_header": "Subject"}, True),
        ({"add_header": {"X-Seen": "yes"}}, False),
        ({"bcc": "archive@example.org"}, False),
        ("quarantine", False),
    ],
)
def test_rules_know_whether_they_change_what_is_signed(then: Any, changes: bool) -> None:
    assert rules({"when": "message.size > 9", "then": then}).changes() is changes
