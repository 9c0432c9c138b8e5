"""Verdicts cannot contradict their reply."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    Reply,
    Verdict,
    accept,
    annotate,
    defer,
    discard,
    disconnect,
    quarantine,
    reject,
)

HEADER = AddHeader("X-Seen", "1")


@pytest.mark.parametrize(
    ("verdict", "action", "reply", "decisive"),
    [
        (PROCEED, "proceed", "None", False),
        (annotate(HEADER), "proceed", "None", False),
        (accept("known"), "accept", "None", True),
        (reject("7.1", "no"), "reject", "550 5.7.1 no", True),
        (reject("7.1", "no", code=554), "reject", "554 5.7.1 no", True),
        (defer("7.1", "later"), "defer", "451 4.7.1 later", True),
        (defer("7.1", "later", code=450), "defer", "450 4.7.1 later", True),
        (discard("spam"), "discard", "None", True),
        (quarantine("virus"), "quarantine", "None", True),
        (disconnect("7.0", "bye"), "disconnect", "421 4.7.0 bye", True),
        (disconnect("7.0", "bye", code=554), "disconnect", "554 5.7.0 bye", True),
    ],
)
def test_each_maker_gives_its_action_and_reply(verdict: Verdict, action: str, reply: str, decisive: bool) -> None:
    assert (verdict.action, str(verdict.reply), verdict.decisive) == (action, reply, decisive)


@pytest.mark.parametrize(
    "make",
    [
        lambda: reject("7.1", "no", code=450),
        lambda: defer("7.1", "later", code=550),
        lambda: disconnect("7.0", "bye", code=250),
        lambda: Verdict(Action.REJECT),
        lambda: Verdict(Action.DEFER, Reply(550, "7.1", "no")),
        lambda: Verdict(Action.ACCEPT, Reply(250, "0.0", "ok")),
        lambda: reject("5.7.1", "a whole status instead of a detail"),
    ],
)
def test_a_reply_that_contradicts_the_action_cannot_be_made(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_the_record_form_has_only_what_there_is() -> None:
    assert PROCEED.to_json() == {"action": "proceed"}
    assert quarantine("bad", HEADER).to_json() == {
        "action": "quarantine",
        "reason": "bad",
        "edits": [{"edit": "AddHeader", "name": "X-Seen", "index": 0, "value": "1"}],
    }
    assert defer("7.1", "later", reason="why").to_json() == {
        "action": "defer",
        "reply": "451 4.7.1 later",
        "reason": "why",
    }
