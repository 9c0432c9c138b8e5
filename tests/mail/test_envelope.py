"""The envelope survives being stored."""

from __future__ import annotations

import json

import pytest

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient, Ret

ANNA = Address("anna", "example.org")


@pytest.mark.parametrize("sender", [NULL_SENDER, ANNA, Address("two words", "bücher.example")])
@pytest.mark.parametrize(
    "parameters",
    [
        MailParameters(),
        MailParameters(body=Body.EIGHT_BIT, smtputf8=True, ret=Ret.HEADERS, envid="QQ314159"),
        MailParameters(ret=Ret.FULL),
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
