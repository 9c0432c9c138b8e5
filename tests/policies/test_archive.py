"""Copies for an archive."""

from __future__ import annotations

import pytest

from gateway.sdk import Action, AddHeader, AddRecipient, DeleteHeader
from gateway.sdk.testing import Bench, make_message, make_transaction
from policies.archive import Archive


def edits(options, *recipients: str):
    verdict = Bench().judge(
        Archive,
        options,
        transaction=make_transaction(recipients=recipients),
        message=make_message(b"To: anna@example.org\r\n\r\n"),
    )
    assert verdict.action is Action.PROCEED
    return verdict.edits


def test_every_message_is_copied_and_nobody_is_told_when_that_fails():
    first, second = edits({"to": ["archive@example.org", "b@example.net"]}, "anna@example.org", "ben@example.org")
    assert isinstance(first, AddRecipient) and isinstance(second, AddRecipient)
    assert str(first.recipient.address) == "archive@example.org" and first.recipient.notify == {"NEVER"}


def test_the_envelope_is_written_down_on_demand_and_nobody_elses_word_is_left():
    options = {"to": ["archive@example.org"], "header": "X-Envelope-To"}
    delete, add, copy = edits(options, "ben@example.org")
    assert (delete, add) == (DeleteHeader("X-Envelope-To"), AddHeader("X-Envelope-To", "ben@example.org"))
    assert isinstance(copy, AddRecipient)
    assert len(edits(options, "anna@example.org", "ben@example.org")) == 1, "ben is a blind copy"


def test_without_recipients_there_is_nothing_to_keep():
    assert edits({"to": ["archive@example.org"]}) == ()


@pytest.mark.parametrize("options", [{"to": []}, {"to": ["archive"]}, {"to": ["a@b.test"], "header": "X Y"}, {}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=r"validation error"):
        edits(options, "anna@example.org")
