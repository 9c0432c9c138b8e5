"""Redacted records judged again: as others where nobody looks at what is hidden, and not at all where somebody does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.mail.address import Address
from gateway.ops.redaction import Redactor
from gateway.pipeline.difference import Difference, Kind
from gateway.pipeline.hidden import Hidden, HiddenAddress, NotTold
from gateway.pipeline.loader import Catalog, load
from gateway.pipeline.past import Past
from gateway.pipeline.replay import Fate, Unknown
from gateway.sdk import (
    PROCEED,
    Finding,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Recipient,
    Session,
    Stage,
    Transaction,
    Verdict,
    finds,
    reject,
)
from tests.pipeline.setting import services
from tests.pipeline.test_replay import BASE, RECORDS, nobody
from tests.pipeline.traffic import pipeline

REDACT = Redactor(bytes(32))
REDACTED = {number: REDACT.record(json.loads(json.dumps(told))) for number, told in RECORDS.items()}
ACCEPTED = next(t for t in RECORDS.values() if t["outcome"] == "accepted" and t["sender"] != "<>")


def test_redacted_traffic_is_judged_as_the_same_traffic_with_its_local_parts() -> None:
    for number, told in REDACTED.items():
        for address in (RECORDS[number]["sender"], *(r["address"] for r in RECORDS[number]["recipients"])):
            assert not address or address == "<>" or address not in json.dumps(told)
    for options in (BASE, {**BASE, "recipient-value": {"reject_at": 60}}, {**BASE, "content": {"discard_at": 60}}):
        made = pipeline(options)
        for redactor in (None, REDACT):
            plain = Difference({"default": made.replay()}, nobody)
            hidden = Difference({"default": made.replay()}, nobody, redactor)
            for number in RECORDS:
                before, after = plain.add(RECORDS[number]), hidden.add(REDACTED[number])
                assert (before.kind, before.then, before.now) == (after.kind, after.then, after.now)


class Looking(Policy):
    """Asks what a test wants to ask of sender and recipient."""

    name = "looking"
    Options = PolicyOptions
    question: Callable[[Session, Transaction, Recipient], bool] = staticmethod(lambda session, txn, recipient: False)

    def on_rcpt(self, session: Session, txn: Transaction, recipient: Recipient) -> Verdict:
        return reject("7.1", "no") if type(self).question(session, txn, recipient) else PROCEED


def judge(question: Callable[[Any, Any, Any], bool], told: dict[str, Any], redactor: Redactor | None) -> Fate | Unknown:
    made = load("default", ["looking"], services(), known=Catalog({}, {"looking": Looking}))
    Looking.question = staticmethod(question)
    past = Past(told, nobody, redactor)
    return made.replay().judge(past, past.reached)


HIDDEN = REDACT.record(ACCEPTED)
TO = ACCEPTED["recipients"][0]["address"].partition("@")[0]


@pytest.mark.parametrize(
    "question",
    [
        lambda session, txn, recipient: txn.sender.local == "x",
        lambda session, txn, recipient: str(txn.sender) == "x",
        lambda session, txn, recipient: recipient.address.key == "x",
        lambda session, txn, recipient: "x" in f"{recipient.address}",
        lambda session, txn, recipient: recipient.address.needs_smtputf8,
        lambda session, txn, recipient: recipient.address.local.lower() in {"postmaster"},
    ],
)
def test_who_looks_at_a_hidden_local_part_is_not_judged_again(question: Callable[[Any, Any, Any], bool]) -> None:
    assert isinstance(judge(question, ACCEPTED, None), Fate)
    found = judge(question, HIDDEN, REDACT)
    assert found == Unknown("looking", "the local part of an address was redacted")


def test_who_asks_for_names_gets_an_answer_where_there_is_one() -> None:
    def named(*names: str) -> Callable[[Any, Any, Any], bool]:
        return lambda session, txn, recipient: bool(recipient.address.has_local(names))

    for names, word in (((TO,), "rejected"), (("postmaster", "nobody"), "accepted"), (("postmaster",), "accepted")):
        found = judge(named(*names), HIDDEN, REDACT)
        assert isinstance(found, Fate) and found.word == word
    # Without the key only names can be told that are never redacted.
    assert isinstance(judge(named("postmaster", "abuse"), HIDDEN, None), Fate)
    assert isinstance(judge(named(TO), HIDDEN, None), Unknown)


def test_a_session_text_that_was_changed_is_not_taken_for_what_was_there() -> None:
    told = REDACT.record({**ACCEPTED, "helo": ACCEPTED["sender"].partition("@")[0]})
    assert told["redacted"] == ["helo"]
    assert judge(lambda session, txn, recipient: session.helo == "x", told, None) == Unknown(
        "looking", "session.helo was redacted"
    )
    assert isinstance(judge(lambda session, txn, recipient: session.trusted, told, None), Fate)


@dataclass(frozen=True, slots=True)
class Store(Finding):
    there: bool
    reply: str


class StorePolicy(Policy):
    name = "store"
    Options = PluginOptions
    reads: Callable[[Store], bool] = staticmethod(lambda found: not found.there)

    def on_rcpt(self, found: Store) -> Verdict:
        return reject("1.1", "no") if type(self).reads(found) else PROCEED


class StorePlugin(Plugin):
    name = "store"
    Options = PluginOptions
    policy = StorePolicy

    @finds(Stage.RCPT)
    async def find(self, recipient: Recipient) -> Store:
        return Store(True, "")


@pytest.mark.parametrize(
    ("reads", "why"),
    [
        (lambda found: not found.there, ""),
        (lambda found: found.reply == "x", "Store.reply was redacted"),
        (lambda found: found.reply.startswith("x"), "Store.reply was redacted"),
        (lambda found: bool(found.reply), "Store.reply was redacted"),
        (lambda found: __import__("re").match("x", found.reply), "its policy failed at a redacted record: TypeError"),
    ],
)
def test_a_finding_is_as_good_as_what_was_left_of_it(reads: Callable[[Any], Any], why: str) -> None:
    address = ACCEPTED["recipients"][0]["address"]
    note = {"stage": "rcpt", "plugin": "store", "finding": "Store", "recipient": address, "ms": 1.0}
    told = {**ACCEPTED, "recipients": ACCEPTED["recipients"][:1]}
    told["findings"] = [{**note, "value": {"there": True, "reply": f"250 {address} is there"}}]
    made = load("default", ["store"], services(), known=Catalog({"store": StorePlugin}, {}))
    StorePolicy.reads = staticmethod(reads)
    past = Past(REDACT.record(told), nobody)
    found = made.replay().judge(past, past.reached)
    assert found == Unknown("store", why) if why else isinstance(found, Fate) and found.word == "accepted"


def test_what_is_hidden_refuses_every_question() -> None:
    hidden = Hidden("x")
    for question in (
        str,
        repr,
        len,
        bool,
        list,
        hash,
        lambda h: h == 1,
        lambda h: h + "x",
        lambda h: f"{h}",
        lambda h: h.x,
    ):
        with pytest.raises(NotTold, match="x was redacted"):
            question(hidden)


def test_a_hidden_address_is_equal_to_itself_and_to_no_other() -> None:
    text = REDACT.address("anna@example.org")
    one, same, other = (
        HiddenAddress(text, None),
        HiddenAddress(text, REDACT),
        HiddenAddress(REDACT.address("b@c.example"), None),
    )
    assert one == same != other and len({one, same, other}) == 2 and one != Address("anna", "example.org")
    assert (one.domain, one.ascii_domain) == ("example.org", "example.org") and text in repr(one)


def test_an_address_that_only_looks_hidden_is_read_as_it_is() -> None:
    told = {**ACCEPTED, "sender": REDACT.address("anna@example.org")}
    assert isinstance(judge(lambda session, txn, recipient: txn.sender.local == "x", told, None), Fate)


def test_kinds_of_redacted_records_are_all_there() -> None:
    difference = Difference({"default": pipeline(BASE).replay()}, nobody)
    for told in REDACTED.values():
        assert difference.add(told).kind is Kind.SAME
