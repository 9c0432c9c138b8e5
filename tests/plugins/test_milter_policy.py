"""What is done with what milters say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk import Action, AddHeader, MilterAction, MilterReply, Stage
from gateway.sdk.testing import Bench
from plugins.milter.policy import MilterPolicy, verdict_of, wire_text

STAGES = [stage for stage in Stage if stage is not Stage.AUTH]
EDIT = AddHeader("X-Seen", "yes")


def judge(action: MilterAction, stage: Stage = Stage.MESSAGE, **fields):
    return Bench().judge(MilterPolicy, stage=stage, findings=[MilterReply(action, "m", **fields)])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("action", "reply"),
    [
        (MilterAction.REJECT, "550 5.7.1 command rejected"),
        (MilterAction.TEMPFAIL, "451 4.7.1 service unavailable, try again later"),
        (MilterAction.CONNECTION_FAIL, "421 4.7.0 service unavailable, try again later"),
    ],
)
def test_a_refusal_without_words_gets_postfixs_codes(stage, action, reply):
    assert str(judge(action, stage).reply) == reply


def test_a_milters_own_reply_is_what_the_client_hears():
    verdict = judge(MilterAction.REJECT, code=554, detail="7.9", text="no such luck\nask again")
    assert (verdict.action, str(verdict.reply)) == (Action.REJECT, "554 5.7.9 no such luck\nask again")
    assert verdict.reply.wire() == b"554-5.7.9 no such luck\r\n554 5.7.9 ask again\r\n"


def test_a_code_without_a_status_stays_without():
    assert str(judge(MilterAction.REJECT, code=550, text="no").reply) == "550 no"


def test_421_closes_the_connection():
    verdict = judge(MilterAction.TEMPFAIL, Stage.RCPT, code=421, detail="7.0", text="go away")
    assert (verdict.action, str(verdict.reply)) == (Action.DISCONNECT, "421 4.7.0 go away")


def test_a_code_of_the_other_class_does_not_change_what_was_said():
    assert judge(MilterAction.REJECT, code=450).reply.code == 550
    assert judge(MilterAction.TEMPFAIL, code=550).reply.code == 451


@pytest.mark.parametrize("action", [MilterAction.CONTINUE, MilterAction.ACCEPT, MilterAction.SKIPPED])
def test_no_objection_lets_the_entries_after_it_speak(action):
    assert not judge(action).decisive


@pytest.mark.parametrize("action", [MilterAction.CONTINUE, MilterAction.ACCEPT])
def test_edits_are_made_unless_it_refuses(action):
    assert judge(action, edits=(EDIT,)).edits == (EDIT,)
    assert judge(MilterAction.REJECT, edits=(EDIT,)).edits == ()


def test_quarantine_is_no_answer_of_its_own_and_a_refusal_comes_before_it():
    verdict = judge(MilterAction.CONTINUE, quarantine="odd", edits=(EDIT,))
    assert (verdict.action, verdict.reason, verdict.edits) == (Action.QUARANTINE, "m: odd", (EDIT,))
    assert judge(MilterAction.REJECT, quarantine="odd").action is Action.REJECT


def test_discard_is_discard():
    assert judge(MilterAction.DISCARD).action is Action.DISCARD


@given(st.text(), st.integers(-5, 1000), st.text(max_size=8), st.sampled_from(MilterAction))
def test_whatever_a_milter_says_the_reply_keeps_to_its_lines_and_its_class(text, code, detail, action):
    reply = verdict_of(MilterReply(action, "m", code, detail, text)).reply
    if reply is not None:
        lines = reply.wire().split(b"\r\n")
        assert lines.pop() == b""
        assert all(line[:3] == str(reply.code).encode() and line.isascii() and len(line) < 510 for line in lines)
        assert all(b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines)
        assert (action is MilterAction.REJECT) == (reply.code >= 500)


def test_a_text_of_nothing_printable_is_bland():
    assert wire_text(" \n\n ", "no") == "no"
    assert wire_text("a\x00b\r\nc\rd", "no") == "a?b\nc?d"
