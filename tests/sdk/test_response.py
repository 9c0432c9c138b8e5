"""What a policy does about a message that it doubts."""

from __future__ import annotations

from gateway.sdk import Action, AddHeader, Response, Verdict, quarantine, reject, respond

MARK = AddHeader("X-Mark", "yes")


def test_each_response_is_a_verdict_with_the_reason():
    assert respond(Response.RECORD, "why", MARK) == Verdict(Action.PROCEED, reason="why")
    assert respond(Response.TAG, "why", MARK) == Verdict(Action.PROCEED, reason="why", edits=(MARK,))
    assert respond(Response.QUARANTINE, "why", MARK) == quarantine("why", MARK)
    assert respond(Response.REJECT, "why", MARK) == reject("7.1", "not accepted", reason="why")


def test_who_is_refused_hears_the_text_and_not_the_reason():
    verdict = respond(Response.REJECT, "secret", detail="7.26", text="no")
    assert str(verdict.reply) == "550 5.7.26 no" and verdict.reason == "secret"
