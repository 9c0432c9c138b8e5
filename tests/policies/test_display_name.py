"""The display-name policy: whose name is shown, and whether the address may bear it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AddHeader, AuthResult, ChangeHeader, DeleteHeader, Dmarc, Spf, SpfResult
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session
from policies.display_name import DisplayName, DisplayNameOptions
from tests.policies.whole import SPF, send

NAMES = {"Anna Muster": ["anna.muster@home.test"], "Bj\u00f6rn de Vries": []}
BASE = {"names": NAMES, "own_domains": ["example.org"], "action": "reject"}


def judge(author: str, *findings, trusted=False, **options):
    message = make_message(f"From: {author}\r\nSubject: hello\r\n\r\n".encode())
    session = make_session(trusted=trusted)
    return Bench().judge(DisplayName, BASE | options, session=session, message=message, findings=findings)


def dmarc(result: str, domain: str) -> Dmarc:
    return Dmarc(AuthResult(result), domain)


@pytest.mark.parametrize(
    "author",
    [
        "Anna Muster <x@mail.test>",
        '"Muster, Anna" <x@mail.test>',
        '"Anna Muster (CEO)" <x@mail.test>',
        "Anna (ANNA MUSTER) <x@mail.test>, Anna-Maria Muster <y@mail.test>",
        "x@mail.test (Anna Muster)",
        "AnnaMuster <x@mail.test>",
        "MusterAnna via Sales <x@mail.test>",
        "\u0410nn\u0430 Must\u0435r <x@mail.test>",
        "A\u200bnna M\u00fbster <x@mail.test>",
        "=?utf-8?q?Anna?= =?utf-8?q?_Muster?= <x@mail.test>",
        "Bjorn De Vries <x@mail.test>",
        "Anna Muster",
        "Anna Muster <anna@example.org.evil.test>",
        "Anna Muster <anna@[192.0.2.1]>",
        '"anna@example.org" <x@mail.test>',
        "Anna <anna@sub.example.org> <x@mail.test>, anna@example.org <x@mail.test>",
    ],
)
def test_a_borrowed_name_is_seen_however_it_is_written(author):
    verdict = judge(author, dmarc("pass", "mail.test"))
    assert str(verdict.reply) == "550 5.7.1 the sender's name is not accepted with this address"
    assert "shows" in verdict.reason


@pytest.mark.parametrize(
    "author",
    [
        "Anna Muster <anna@example.org>",
        "Anna Muster <anna@sub.example.org>",
        "Anna Muster <Anna.Muster@HOME.test>",
        "Anna Mustermann <x@mail.test>",
        "Anna Becker <x@mail.test>",
        "Muster <x@mail.test>",
        "x@mail.test",
        '"shop@mail.test" <x@mail.test>',
        "",
    ],
)
def test_its_bearers_and_other_names_pass(author):
    assert judge(author) == PROCEED


def test_the_address_must_not_be_forged_itself():
    for author, domain in (("anna@example.org", "example.org"), ("anna.muster@home.test", "home.test")):
        assert judge(f"Anna Muster <{author}>", dmarc("fail", domain)).action is Action.REJECT
        assert judge(f"Anna Muster <{author}>", dmarc("pass", domain)) == PROCEED
        assert judge(f"Anna Muster <{author}>", dmarc("temperror", domain)) == PROCEED
    assert judge("Anna Muster <x@example.org>", Spf(SpfResult.FAIL, "e.test", SpfResult.NONE, "h")).decisive


def test_an_address_elsewhere_is_good_for_its_own_name_only():
    assert judge("Bjorn de Vries <anna.muster@home.test>").action is Action.REJECT


def test_of_names_within_one_another_the_longest_is_meant():
    names = {"Anna Muster": [], "Anna Muster Becker": ["amb@home.test"], "Anna Becker": []}
    assert judge('"Dr. Anna Muster-Becker" <amb@home.test>', names=names) == PROCEED
    assert judge('"Dr. Anna Muster" <amb@home.test>', names=names).decisive


def test_a_name_of_one_word_said_twice_needs_both():
    options = {"names": ["Ling Ling"]}
    assert judge("Ling Ling <x@mail.test>", **options).decisive
    assert judge('"Ling, Ling (CFO)" <x@mail.test>', **options).decisive
    assert judge("Ling Wang <x@mail.test>", **options) == PROCEED
    assert judge("Ling <x@mail.test>", **options) == PROCEED
    assert DisplayNameOptions.model_validate(BASE | {"names": ["Ling Ling", "Ling Ling Wang"]})


def test_whole_names_only_and_no_addresses_when_asked_for():
    assert judge('"Anna Muster (CEO)" <x@mail.test>', whole=True) == PROCEED
    assert judge('"Muster, Anna" <x@mail.test>', whole=True).decisive
    assert judge('"anna@example.org" <x@mail.test>', addresses=False) == PROCEED


def test_by_default_the_message_is_marked_and_the_mark_is_ours():
    verdict = judge("Anna Muster <x@mail.test>", action="tag", subject="[odd name]")
    assert verdict.action is Action.PROCEED
    assert verdict.edits == (
        DeleteHeader("X-Impersonation"),
        AddHeader("X-Impersonation", "the sender's name is that of somebody else"),
        ChangeHeader("Subject", 1, "[odd name] hello"),
    )
    assert judge("Anna Muster <x@mail.test>", action="quarantine").action is Action.QUARANTINE


def test_trusted_clients_pass():
    assert judge("Anna Muster <x@mail.test>", trusted=True) == PROCEED


def test_names_may_be_a_list():
    assert judge("Anna Muster <x@mail.test>", names=["Anna Muster"]).decisive


@pytest.mark.parametrize(
    "options",
    [
        {"names": []},
        {"names": ["Anna"]},
        {"names": ["Anna Muster", "MUSTER, \u00c1nna"]},
        {"names": {"Anna Muster": ["no address"]}},
        {"names": "Anna Muster"},
        {"own_domains": []},
        {"subject": "a\nb"},
        {"action": "discard"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        DisplayNameOptions.model_validate(BASE | options)


@settings(max_examples=150)
@given(
    st.text('anMuster <>@"(),;:=?\\\u0430\u200b\u202e', max_size=80) | st.binary(max_size=80).map(repr),
    st.booleans(),
)
def test_hostile_fields_get_a_verdict_and_what_is_added_can_be_written(text, quoted):
    author = "".join(c for c in text if c not in "\r\n")
    verdict = judge(f'"{author}" <x@mail.test>' if quoted else author, action="tag", subject="[x]")
    assert verdict.action is Action.PROCEED and verdict.reason.isprintable() and len(verdict.reason) < 600
    assert judge(f"{author} Anna Muster <x@mail.test>" if author.isalnum() else "Anna Muster <x@mail.test>").decisive


def test_in_a_pipeline_dmarc_says_who_is_who():
    dns = FakeDns(txt={**SPF, "example.org": ["v=spf1 -all"], "_dmarc.example.org": ["v=DMARC1; p=none"]})
    entries = ["spf", "dkim", "dmarc", {"display-name": BASE}]
    forged, _ = send(
        [{"spf": {}, "policy": "none"}, *entries[1:]], b"From: Anna Muster <a@example.org>\r\n\r\n", dns=dns
    )
    assert (forged.verdict.action, forged.entry) == (Action.REJECT, "display-name")
    assert "shows 'Anna Muster'" in forged.verdict.reason
    borrowed, _ = send(entries, b"From: Anna Muster <ben@sender.example>\r\n\r\n", dns=dns)
    assert borrowed.entry == "display-name"
    honest, edits = send(entries, b"From: Ben <ben@sender.example>\r\n\r\n", dns=dns)
    assert not honest.verdict.decisive and edits == ()
