"""Mailboxes of header fields, as readers of mail show them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sdk import Mailbox, mailboxes, read_mailboxes
from gateway.sdk.mailboxes import FIELD_CHARACTERS, MAILBOXES


def shown(*fields: str) -> list[tuple[str, str]]:
    return [(mailbox.name, mailbox.key) for mailbox in read_mailboxes(fields)]


@pytest.mark.parametrize(
    ("field", "name", "key"),
    [
        ("anna@example.org", "", "anna@example.org"),
        ("Anna Muster <Anna@Example.ORG>", "Anna Muster", "anna@example.org"),
        ('"Muster, Anna" <anna@example.org>', "Muster, Anna", "anna@example.org"),
        (r'"Anna \"A\" Muster" <anna@example.org>', 'Anna "A" Muster', "anna@example.org"),
        ("anna@example.org (Anna Muster)", "Anna Muster", "anna@example.org"),
        ("Anna (the (real) one) <anna@example.org>", "Anna", "anna@example.org"),
        ("(Anna) <anna@example.org>", "Anna", "anna@example.org"),
        ("=?utf-8?q?Anna_M=C3=BCster?= <anna@example.org>", "Anna M\u00fcster", "anna@example.org"),
        ('"=?utf-8?b?QW5uYQ==?=" <anna@example.org>', "Anna", "anna@example.org"),
        ("'\"Anna\"' <anna@example.org>", "Anna", "anna@example.org"),
        ("boss@example.org <x@evil.test>", "boss@example.org", "x@evil.test"),
        ("=?utf-8?q?Boss_=3Cboss=40example.org=3E?=", "Boss", "boss@example.org"),
        ("Anna <@relay.test:anna@example.org>", "Anna", "anna@example.org"),
        ("Anna <anna@b\u00fccher.example>", "Anna", "anna@xn--bcher-kva.example"),
        ("Anna <anna@example .org.>", "Anna", "anna@example.org"),
        ("Anna <anna@example.org", "Anna", "anna@example.org"),
        ('"Anna <anna@example.org>', "Anna", "anna@example.org"),
        ("Anna Muster", "Anna Muster", ""),
        ("Anna <>", "Anna", ""),
        ("Anna <anna@[192.0.2.1]>", "Anna", ""),
        ("Anna <anna>", "Anna", ""),
    ],
)
def test_one_mailbox_is_read_as_it_is_shown(field, name, key):
    assert shown(field) == [(name, key)]


def test_lists_groups_and_several_fields_are_read_in_order():
    assert shown("Friends: Anna <a@x.test>, b@x.test;, c@x.test", "d@x.test") == [
        ("Friends: Anna", "a@x.test"),
        ("", "b@x.test"),
        ("", "c@x.test"),
        ("", "d@x.test"),
    ]


def test_where_readers_disagree_about_the_address_each_is_given():
    assert shown("Anna <a@x.test> <b@y.test>") == [("Anna", "a@x.test"), ("Anna", "b@y.test")]
    assert shown("a@x.test b@y.test") == [("", "a@x.test"), ("", "b@y.test")]


def test_nothing_is_no_mailbox():
    assert shown() == shown("") == shown(" , ;") == shown("<>") == []


def test_a_reason_shows_nothing_that_a_terminal_obeys():
    text = str(Mailbox("Anna\u202e\x1b[2J" + "x" * 500, "a\x1b@x.test\u202e", "x.test"))
    assert text.isprintable() and len(text) < 250


def test_no_more_is_read_than_the_bounds_say():
    assert len(read_mailboxes(["a@x.test," * 500])) == MAILBOXES
    assert shown(" " * FIELD_CHARACTERS + "a@x.test") == []


@settings(max_examples=300)
@given(st.lists(st.text('aA@<>()"\\,;:=?.q \t\u00fc\u202e[]', max_size=60) | st.text(max_size=60), max_size=4))
def test_any_field_gives_mailboxes_within_the_bounds(fields):
    found = read_mailboxes(fields)
    assert len(found) <= MAILBOXES
    for mailbox in found:
        assert mailbox.name or mailbox.address
        assert mailbox.domain.isascii() and str(mailbox).isprintable()
        assert not mailbox.domain or "@" in mailbox.key


def test_a_long_name_beside_many_addresses_is_worked_out_once(monkeypatch):
    made = []
    original = mailboxes._plain
    monkeypatch.setattr(mailboxes, "_plain", lambda text: made.append(text) or original(text))
    found = read_mailboxes(["a@x.test " * 800 + "(" + "x y " * 2000 + ")"])
    assert len(found) == MAILBOXES and found[0].name.startswith("x y x y")
    assert len(made) == 1


@pytest.mark.parametrize("text", ['"', '<"', "(", "\\", '"\\', "=?", "<", "a@b ", "=?utf-8?q?a?= ", "\u00fc@"])
def test_long_hostile_fields_are_read_in_one_pass(text):
    # A pass that went back would take minutes here.
    assert len(read_mailboxes([text * FIELD_CHARACTERS] * 10)) <= MAILBOXES
