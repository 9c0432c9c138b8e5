"""The envelope survives being stored."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace

import pytest

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Origin, Recipient, Ret

ANNA = Address("anna", "example.org")


@pytest.mark.parametrize("sender", [NULL_SENDER, ANNA, Address("two words", "bücher.example")])
@pytest.mark.parametrize(
    "parameters",
    [
        MailParameters(),
        MailParameters(body=Body.EIGHT_BIT, smtputf8=True, ret=Ret.HEADERS, envid="QQ314159"),
        MailParameters(ret=Ret.FULL, requiretls=True),
    ],
)
def test_an_envelope_survives_json(sender: Sender, parameters: MailParameters) -> None:
    recipients = (Recipient(ANNA),)
    envelope = Envelope(sender, recipients, parameters)
    assert Envelope.from_json(json.loads(json.dumps(envelope.to_json())), recipients) == envelope


@pytest.mark.parametrize(
    "recipient",
    [
        Recipient(ANNA),
        Recipient(Address("postmaster", "")),
        Recipient(ANNA, frozenset({Notify.NEVER}), "rfc822;Anna+2B@Example.ORG"),
        Recipient(ANNA, frozenset({Notify.SUCCESS, Notify.FAILURE, Notify.DELAY})),
    ],
)
def test_a_recipient_survives_json(recipient: Recipient) -> None:
    assert Recipient.from_json(json.loads(json.dumps(recipient.to_json()))) == recipient


def test_where_a_message_came_from_survives_json_and_may_be_missing() -> None:
    recipients = (Recipient(ANNA),)
    full = Origin(ipaddress.ip_address("2001:db8::1"), 25, "a.test", "b.test", esmtp=False)
    for origin in (None, full, Origin(ipaddress.ip_address("192.0.2.1"))):
        envelope = Envelope(ANNA, recipients, origin=origin)
        assert Envelope.from_json(json.loads(json.dumps(envelope.to_json())), recipients) == envelope
    assert "origin" not in Envelope(ANNA, recipients).to_json()


@pytest.mark.parametrize("origin", [{}, {"client": "nowhere"}, {"client": "192.0.2.1", "port": 70000}, [], 1])
def test_an_origin_that_is_none_is_refused(origin: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Envelope.from_json({"origin": origin}, ())


def test_only_what_is_certainly_the_same_mailbox_repeats_a_recipient():
    one = Recipient(Address("b", "example.org"), frozenset(), "rfc822;b@example.org")
    assert one.repeats(Recipient(Address("b", "EXAMPLE.org"), frozenset(), "rfc822;b@EXAMPLE.org"))
    assert Recipient(Address("b", "bücher.example")).repeats(Recipient(Address("b", "xn--bcher-kva.example")))
    assert not one.repeats(Recipient(Address("B", "example.org"), frozenset(), "rfc822;b@example.org"))
    assert not one.repeats(Recipient(Address("b", "example.org")))
    assert not one.repeats(replace(one, notify=frozenset({Notify.NEVER})))
