"""Which domains are ours."""

from __future__ import annotations

import asyncio

import pytest

from gateway.mail.address import Address
from gateway.sdk.services import RecipientRule
from gateway.smtp.domains import Domain, Domains

DOMAINS = Domains(
    {
        "example.org": Domain("example.org", rule=RecipientRule.LISTED, listed=frozenset({"anna", "ben"})),
        ".example.org": Domain(".example.org", "relaxed"),
        "xn--bcher-kva.test": Domain("xn--bcher-kva.test", rule=RecipientRule.CALLOUT),
    }
)


@pytest.mark.parametrize(
    ("domain", "entry"),
    [
        ("example.org", "example.org"),
        ("EXAMPLE.Org", "example.org"),
        ("a.example.org", ".example.org"),
        ("b.a.example.org", ".example.org"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("badexample.org", None),
        ("org", None),
        ("example.org.evil.test", None),
        ("[192.0.2.1]", None),
    ],
)
def test_a_domain_is_found_by_its_name_or_by_what_it_is_below(domain, entry):
    found = DOMAINS.find(Address("anna", domain))
    assert (found.name if found else None) == entry


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (Address("Anna", "example.org"), RecipientRule.LISTED),
        (Address("carl", "example.org"), RecipientRule.NOT_LISTED),
        (Address("PostMaster", "example.org"), RecipientRule.LISTED),
        (Address("anyone", "a.example.org"), RecipientRule.ANY),
        (Address("anyone", "bücher.test"), RecipientRule.CALLOUT),
        (Address("anna", "elsewhere.test"), RecipientRule.NOT_OURS),
    ],
)
def test_the_rule_for_a_recipient_is_its_domains(address, rule):
    assert asyncio.run(DOMAINS.rule(address)) is rule


@pytest.mark.parametrize(
    ("local", "rule"),
    [
        ("anna", RecipientRule.LISTED),
        ("Anna+news", RecipientRule.LISTED),
        ("anna+a+b", RecipientRule.LISTED),
        ("anna-news", RecipientRule.LISTED),
        ("list-owner", RecipientRule.LISTED),
        ("list", RecipientRule.NOT_LISTED),
        ("carl+anna", RecipientRule.NOT_LISTED),
        ("+anna", RecipientRule.NOT_LISTED),
        ("anna=news", RecipientRule.NOT_LISTED),
        ("annanews", RecipientRule.NOT_LISTED),
    ],
)
def test_a_subaddress_is_looked_up_as_it_is_and_then_without_it(local, rule):
    listed = frozenset({"anna", "list-owner"})
    domain = Domain("example.org", rule=RecipientRule.LISTED, listed=listed, subaddress="+-")
    assert asyncio.run(Domains({"example.org": domain}).rule(Address(local, "example.org"))) is rule


def test_without_the_option_a_subaddress_is_a_name_like_any_other():
    assert asyncio.run(DOMAINS.rule(Address("anna+news", "example.org"))) is RecipientRule.NOT_LISTED


def test_a_list_that_changes_is_asked_for_each_time():
    class Changing:
        names = frozenset({"anna"})

        async def current(self) -> frozenset[str]:
            return self.names

    changing = Changing()
    domains = Domains({"example.org": Domain("example.org", rule=RecipientRule.LISTED, file=changing)})
    assert asyncio.run(domains.rule(Address("ben", "example.org"))) is RecipientRule.NOT_LISTED
    changing.names = frozenset({"ben"})
    assert asyncio.run(domains.rule(Address("ben", "example.org"))) is RecipientRule.LISTED
    assert asyncio.run(domains.rule(Address("anna", "example.org"))) is RecipientRule.NOT_LISTED


def test_postmaster_is_that_of_our_own_name_or_of_the_first_domain():
    assert DOMAINS.postmaster("mx.example.org") == Address("postmaster", "mx.example.org")
    assert DOMAINS.postmaster("mx.elsewhere.test") == Address("postmaster", "example.org")
    assert Domains().postmaster("mx.example.org") is None
