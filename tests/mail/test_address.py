"""Addresses and paths by the grammar of RFC 5321 and RFC 6531."""

from __future__ import annotations

import re
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail import address
from gateway.mail.address import (
    NULL_SENDER,
    Address,
    AddressError,
    ascii_domain,
    parse_domain,
    parse_forward_path,
    parse_mailbox,
    parse_reverse_path,
    split_path,
)


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("anna@example.org", "anna", "example.org"),
        ("a.b+c@example.org", "a.b+c", "example.org"),
        ("!#$%&'*+/=?^_`{|}~-@example.org", "!#$%&'*+/=?^_`{|}~-", "example.org"),
        ('"two words"@example.org', "two words", "example.org"),
        ('"a@b"@example.org', "a@b", "example.org"),
        (r'"quo\"te\\"@example.org', 'quo"te\\', "example.org"),
        ('"plain"@example.org', "plain", "example.org"),
        ("anna@[192.0.2.1]", "anna", "[192.0.2.1]"),
        ("anna@[IPv6:2001:db8::1]", "anna", "[IPv6:2001:db8::1]"),
        ("anna@localhost", "anna", "localhost"),
        ("anna@_dmarc.example.org", "anna", "_dmarc.example.org"),
        ("A" * 64 + "@example.org", "A" * 64, "example.org"),
    ],
)
def test_addresses_of_the_grammar_are_read(text: str, local: str, domain: str) -> None:
    assert parse_mailbox(text) == Address(local, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "anna",
        "anna@",
        "@example.org",
        ".anna@example.org",
        "anna.@example.org",
        "an..na@example.org",
        "an na@example.org",
        "anna@exa mple.org",
        "anna@example..org",
        "anna@example.org.",
        "anna@-example.org",
        "anna@example-.org",
        "anna@ben@example.org",
        '"anna@example.org',
        '""@example.org',
        '"a"b@example.org',
        '"a\r\nb"@example.org',
        "anna@example.org\n",
        "an\x00na@example.org",
        "A" * 65 + "@example.org",
        "anna@" + "a" * 64 + ".org",
        "anna@" + "a." * 127 + "org",
        "anna@[192.0.2]",
        "anna@[192.0.2.1",
        "anna@[IPv6:fe80::1%eth0]",
        "anna@[IPv6:fe80::1%\r\nRCPT TO:<eve@example.org>]",
        "änna@example.org",
        "anna@exämple.org",
        "anna@example.org\udc80",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_mailbox(text)


@settings(deadline=None)
@given(st.text('aZ0.-_@+"[]\\ ä\n', max_size=70) | st.from_regex(address._USUAL))
def test_what_most_addresses_are_is_read_as_by_the_whole_grammar(text: str) -> None:
    def read() -> Address | str:
        try:
            return parse_mailbox.__wrapped__(text, utf8=True)
        except AddressError as error:
            return str(error)

    quick = read()
    with mock.patch.object(address, "_USUAL", re.compile(r"(?!)")):
        assert read() == quick


def test_utf8_is_read_when_it_was_asked_for() -> None:
    assert parse_mailbox("jürgen@bücher.example", utf8=True) == Address("jürgen", "bücher.example")
    assert parse_mailbox('"jür gen"@bücher.example', utf8=True).local == "jür gen"


@pytest.mark.parametrize(
    "text",
    [
        "an\udc80na@example.org",
        '"an\udc80na"@example.org',
        "anna@ex\udc80mple.org",
        "an\x9bna@example.org",
        "anna@" + "ü" * 60 + ".example",
        "anna@a..ü",
        "ü" * 33 + "@example.org",
    ],
)
def test_utf8_has_its_limits_too(text: str) -> None:
    with pytest.raises(AddressError):
        parse_mailbox(text, utf8=True)


def test_a_path_that_is_not_utf8_is_refused() -> None:
    for parse in (parse_reverse_path, parse_forward_path):
        with pytest.raises(AddressError):
            parse("anna\udcff@example.org", utf8=True)


def test_domains_are_compared_as_lower_case_a_labels() -> None:
    assert ascii_domain("BÜCHER.example") == ascii_domain("xn--bcher-kva.EXAMPLE") == "xn--bcher-kva.example"
    assert parse_mailbox("Anna@BÜCHER.example", utf8=True).key == "anna@xn--bcher-kva.example"
    with pytest.raises(AddressError):
        ascii_domain("a\u2028b")


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    assert parse_mailbox("jürgen@example.org", utf8=True).needs_smtputf8
    assert not parse_mailbox("anna@bücher.example", utf8=True).needs_smtputf8


@pytest.mark.parametrize("text", ["anna@example.org", '"two words"@example.org', r'"a\"b\\c"@example.org'])
def test_an_address_is_written_as_it_must_be_quoted(text: str) -> None:
    assert str(parse_mailbox(text)) == text


def test_needless_quotes_are_dropped() -> None:
    assert str(parse_mailbox('"anna"@example.org')) == "anna@example.org"


def test_the_null_sender_is_its_own_value() -> None:
    assert parse_reverse_path("") is NULL_SENDER
    assert str(NULL_SENDER) == ""
    with pytest.raises(AddressError):
        parse_forward_path("")


def test_a_source_route_is_read_and_dropped() -> None:
    assert parse_forward_path("@one.example,@two.example:anna@example.org") == Address("anna", "example.org")
    for wrong in ("@one.example", "@one.example,two.example:anna@example.org", "@:anna@example.org"):
        with pytest.raises(AddressError):
            parse_reverse_path(wrong)


@pytest.mark.parametrize("text", ["postmaster", "Postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain(text: str) -> None:
    address = parse_forward_path(text)
    assert (address.domain, address.key, str(address)) == ("", "postmaster", text)
    with pytest.raises(AddressError):
        parse_reverse_path(text)


def test_a_path_has_at_most_256_octets_with_its_brackets() -> None:
    domain = ".".join(["a" * 49] * 5)
    assert parse_forward_path("b" * 4 + "@" + domain).domain == domain
    with pytest.raises(AddressError, match="too long"):
        parse_forward_path("b" * 6 + "@" + domain)


@pytest.mark.parametrize(
    ("text", "inner", "rest"),
    [
        ("<anna@example.org>", "anna@example.org", ""),
        ("<>", "", ""),
        ("<anna@example.org> SIZE=100 BODY=8BITMIME", "anna@example.org", "SIZE=100 BODY=8BITMIME"),
        ('<"a>b"@example.org> X', '"a>b"@example.org', "X"),
        (r'<"a\">b"@example.org>', r'"a\">b"@example.org', ""),
    ],
)
def test_a_path_is_split_from_its_parameters(text: str, inner: str, rest: str) -> None:
    assert split_path(text) == (inner, rest)


@pytest.mark.parametrize("text", ["", "anna@example.org", "<anna@example.org", "<a>b", '<"a>', '<"a\\', " <a@b>"])
def test_a_path_without_its_brackets_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        split_path(text)


def test_a_domain_comes_back_as_it_was() -> None:
    assert parse_domain("Example.ORG") == "Example.ORG"
    with pytest.raises(AddressError):
        parse_domain("")
