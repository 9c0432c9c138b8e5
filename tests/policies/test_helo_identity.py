"""The helo-identity policy on the bench."""

from __future__ import annotations

import pytest

from gateway.sdk import PROCEED
from gateway.sdk.testing import Bench, make_recipient, make_session
from policies.helo_identity import HeloIdentity

OWN = {"own_names": ["MX.example.org", "example.org."]}


def judge(helo: str, options=OWN, *, trusted=False, recipient="anna@example.org"):
    return Bench().judge(
        HeloIdentity, options, session=make_session(helo=helo, trusted=trusted), recipient=make_recipient(recipient)
    )


@pytest.mark.parametrize("helo", ["mx.example.org", "MX.Example.Org", "example.org", "example.org."])
def test_a_stranger_with_our_name_is_refused_with_5_7_1(helo):
    verdict = judge(helo)
    assert str(verdict.reply) == "550 5.7.1 host name is not yours"
    assert "one of our own names" in verdict.reason


def test_names_below_ours_are_protected_when_asked_for():
    assert judge("web.example.org") == PROCEED
    assert judge("web.example.org", OWN | {"subdomains": True}).decisive
    assert judge("notexample.org", OWN | {"subdomains": True}) == PROCEED


@pytest.mark.parametrize("helo", ["192.0.2.1", "2001:db8::1"])
def test_a_bare_address_is_refused_unless_told_otherwise(helo):
    assert judge(helo).reply.status == "5.7.1"
    assert judge(helo, {"reject_bare_address": False}) == PROCEED


def test_an_address_literal_is_refused_only_when_asked_for():
    assert judge("[192.0.2.1]") == PROCEED
    assert judge("[IPv6:2001:db8::1]", {"reject_literal": True}).reply.status == "5.7.1"


def test_other_names_proceed_and_no_helo_too():
    assert judge("mail.sender.example") == PROCEED
    assert judge("") == PROCEED


def test_trusted_clients_may_use_our_names():
    assert judge("mx.example.org", trusted=True) == PROCEED


@pytest.mark.parametrize("recipient", ["postmaster@example.org", "Postmaster"])
def test_everybody_may_write_to_postmaster(recipient):
    assert judge("mx.example.org", recipient=recipient) == PROCEED


def test_the_policy_named_in_the_configuration_is_this_one():
    session = make_session(helo="mx.example.org")
    assert Bench().judge("helo-identity", "own_names: [mx.example.org]", session=session).decisive
