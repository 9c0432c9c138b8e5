"""The card of the rules policy says what there is, and its example does what it says."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gateway.sdk import (
    Action,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    Dnsbl,
    Given,
    RecipientState,
    RecipientStatus,
    Spf,
    SpfResult,
    Stage,
    Verdict,
)
from gateway.sdk.testing import make_message, make_recipient, make_session, make_transaction
from policies.rules import Rule, Rules, RulesOptions
from policies.rules.actions import NAMES
from policies.rules.check import COST
from policies.rules.functions import FUNCTIONS, MACROS
from policies.rules.inputs import INPUTS
from policies.rules.syntax import DEPTH, LENGTH, NODES
from policies.rules.types import INNER, ITEMS, TEXT, Kind
from tests.plugins.test_cards import card, table

CARD = card("rules")
STAGES = {
    Dnsbl: tuple(Stage),
    RecipientStatus: (Stage.RCPT,),
    Spf: tuple(Stage)[3:],
    Dkim: (Stage.MESSAGE,),
    Dmarc: (Stage.MESSAGE,),
}


def section(title: str) -> str:
    return CARD.split(f"## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> set[str]:
    """Names in the first column of the section's table."""
    rows = re.findall(r"(?m)^\| (`[^|]*?) \|", section(title))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def example() -> list[dict[str, Any]]:
    (block,) = re.findall(r"(?s)```yaml\n(.*?)```", CARD)
    rules: list[dict[str, Any]] = yaml.safe_load(block)["pipeline"][-2]["rules"]
    return rules


class Asked:
    """The example's rules, wired as its pipeline wires them."""

    def __init__(self) -> None:
        self.policy = Rules(RulesOptions.model_validate({"rules": example()}))
        self.policy.wire(Given(STAGES, lambda kind: ()))

    def at(self, stage: Stage, *values: Any) -> Verdict:
        hook = self.policy.hooks[stage]
        given = [next((v for v in values if isinstance(v, kind)), None) for kind in hook.inputs]
        verdict: Verdict = getattr(self.policy, hook.name)(*given)
        return verdict


def test_every_variable_and_field_stands_on_the_card() -> None:
    assert first_cells("Variables") == set(INPUTS)
    for name, found in INPUTS.items():
        row = next(line for line in section("Variables").splitlines() if line.startswith(f"| `{name}`"))
        named = set(re.findall(r"`(\w+)", row))
        if found.type.kind is Kind.OBJECT and name != "recipient":
            assert set(found.type.fields) <= named, name


def test_every_function_and_macro_stands_on_the_card_and_no_other() -> None:
    named = {re.findall(r"(\w+)\(", cell)[-1] for cell in first_cells("Functions")} | {"cidr"}
    assert named == set(FUNCTIONS) | set(MACROS) | {"has"}


def test_every_action_stands_on_the_card_and_no_other() -> None:
    assert first_cells("Actions") == set(NAMES)


def test_bounds_are_those_of_the_code() -> None:
    text = " ".join(CARD.split())
    assert f"at most {LENGTH} characters, {NODES} parts and {DEPTH} levels" in text
    assert f"more than {COST:,} steps" in text
    assert f"cut at {TEXT} characters, lists at {ITEMS} items (lists within them at {INNER})" in text


def test_the_options_of_one_rule_are_on_the_card() -> None:
    assert table(Rule) in CARD


def test_the_rules_of_the_example_are_asked_where_the_card_says() -> None:
    hooks = Asked().policy.hooks
    assert set(hooks) == {Stage.RCPT, Stage.MESSAGE}
    assert set(hooks[Stage.RCPT].inputs) == {RecipientStatus, Dnsbl}


FORGED = Dmarc(AuthResult.FAIL, "example.org")
UNSIGNED = Dkim((DkimSignature(AuthResult.FAIL, "example.org"),))
SESSION = make_session(helo="mail.client.example")
INVOICE = make_message(b"Subject: Ihre Rechnung Nr. 7\r\n\r\n")


def test_a_forged_own_domain_is_rejected() -> None:
    verdict = Asked().at(Stage.MESSAGE, SESSION, FORGED, Dnsbl(3.0), UNSIGNED, make_message())
    assert (str(verdict.reply), verdict.reason) == ("550 5.7.1 not accepted", "forged-own-domain")


def test_our_own_machines_pass_all_rules_of_the_stage() -> None:
    ours = make_session(helo="mail.client.example", trusted=True)
    verdict = Asked().at(Stage.MESSAGE, ours, FORGED, Dnsbl(3.0), UNSIGNED, INVOICE)
    assert (verdict.action, verdict.reason) == (Action.PROCEED, "our-own-machines")


def test_unknown_recipients_of_a_listed_client_end_its_session() -> None:
    unknown = RecipientStatus(RecipientState.UNKNOWN, "list")
    verdict = Asked().at(Stage.RCPT, unknown, Dnsbl(1.0), make_recipient())
    assert str(verdict.reply) == "421 4.7.0 too many unknown recipients"
    assert Asked().at(Stage.RCPT, unknown, Dnsbl(0.0)).action is Action.PROCEED


def test_an_unverified_invoice_is_marked_and_set_aside() -> None:
    asked, txn = Asked(), make_transaction(SESSION)
    for spf, action in (
        (None, Action.QUARANTINE),
        (Spf(SpfResult.SOFTFAIL, "a.test", SpfResult.NONE, "b.test"), Action.QUARANTINE),
        (Spf(SpfResult.PASS, "a.test", SpfResult.NONE, "b.test"), Action.PROCEED),
    ):
        verdict = asked.at(Stage.MESSAGE, SESSION, txn, UNSIGNED, INVOICE, *([spf] if spf else []))
        assert verdict.action is action
    assert [type(edit).__name__ for edit in asked.at(Stage.MESSAGE, SESSION, txn, UNSIGNED, INVOICE).edits] == [
        "ChangeHeader",
        "AddHeader",
    ]


def test_large_newsletters_go_another_way() -> None:
    message = make_message(b"List-Id: <news.example>\r\n\r\n" + b"x" * 200_001)
    (edit,) = Asked().at(Stage.MESSAGE, SESSION, message, Dkim()).edits
    assert getattr(edit, "next_hop", "") == "smtp:slow.store.example.net:25"
