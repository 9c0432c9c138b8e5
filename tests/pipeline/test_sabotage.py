"""Finders that fail as told: what is left of a plan, what failures are, and what has to come of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.decision import Decision
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.plan import OnError
from gateway.pipeline.sabotage import Sabotage, Saboteur, Trial, Way, parse_sabotage, stand_in
from gateway.sdk import Plugin, Policy, Session, Spf, Stage
from gateway.sdk.verdict import Action
from tests.pipeline.quick import run
from tests.pipeline.setting import MESSAGE, SESSION, TRANSACTION, A, B, Counter, finder, make, plugin, rejecting

ERROR = Sabotage(Way.ERROR)


def sabotaged(
    name: str, sabotage: Sabotage, entries: list[Any], *things: type[Plugin] | type[Policy]
) -> tuple[Pipeline, Trial, Saboteur]:
    """The pipeline with the first finder of the entry sabotaged."""
    made = make(entries, *things)
    node = next(node for node in made.finders if node.entry.name == name)
    saboteur = Saboteur(node.finder.finding, sabotage)
    return *made.sabotaged(node, saboteur), saboteur


async def whole(pipeline: Pipeline) -> list[Decision]:
    """Decisions at connect, mail and message."""
    session = pipeline.open()
    out = [await session.connect(SESSION)]
    txn = session.begin(TRANSACTION)
    out += [await txn.mail(TRANSACTION), await txn.message(TRANSACTION, MESSAGE)]
    await txn.close()
    await session.close()
    return out


def actions(decisions: list[Decision]) -> list[str]:
    return [decision.verdict.action.value for decision in decisions]


@pytest.mark.parametrize("on_error", list(OnError))
@pytest.mark.parametrize("sabotage", [ERROR, Sabotage(Way.TIMEOUT), Sabotage(Way.GARBAGE), Sabotage(Way.SLOW, 11.0)])
def test_what_fails_is_decided_by_its_entry_and_by_nobody_else(sabotage: Sabotage, on_error: OnError) -> None:
    asked = Counter(A())
    victim = plugin("victim", finder(Stage.CONNECT, A, [Session], asked), policy=rejecting("x", Stage.MAIL, A))
    other = plugin("other", finder(Stage.CONNECT, B, [Session], asked), policy=rejecting("y", Stage.CONNECT, B))
    entries = ["other", "alone", {"victim": None, "on_error": on_error.value}]
    alone = rejecting("alone", Stage.CONNECT, Session)
    pipeline, trial, _ = sabotaged("victim", sabotage, entries, victim, other, alone)
    assert trial.declared(halfway=False) is on_error
    assert actions(run(whole(pipeline))) == ["proceed", on_error.value, "proceed"]
    assert asked.calls == 0


def test_what_depends_on_it_fails_with_it_where_it_is_asked_for() -> None:
    victim = plugin("victim", finder(Stage.CONNECT, A, [Session]))
    heir = plugin("heir", finder(Stage.MAIL, B, [A, Session]), policy=rejecting("x", Stage.MESSAGE, B))
    pipeline, trial, _ = sabotaged("victim", ERROR, ["victim", "heir"], victim, heir)
    assert [(asked.stage, asked.by.name) for asked in trial.asked] == [(Stage.MESSAGE, "heir")]
    assert actions(run(whole(pipeline))) == ["proceed", "proceed", "defer"]


def test_who_answers_in_time_or_again_decides_nothing() -> None:
    victim = plugin("victim", finder(Stage.CONNECT, A, [Session]), policy=rejecting("x", Stage.MAIL, A))
    pipeline, _, _ = sabotaged("victim", Sabotage(Way.SLOW, 9.0), ["victim"], victim)
    assert actions(run(whole(pipeline))) == ["proceed"] * 3
    pipeline, _, saboteur = sabotaged("victim", ERROR, ["victim"], victim)
    saboteur.healed = True
    assert actions(run(whole(pipeline))) == ["proceed"] * 3


def test_shadow_entries_and_findings_that_nobody_asks_for_change_nothing() -> None:
    judged = plugin("judged", finder(Stage.CONNECT, A, [Session]), policy=rejecting("x", Stage.MAIL, A))
    unasked = plugin("unasked", finder(Stage.CONNECT, B, [Session]))
    entries = [{"judged": None, "shadow": True}, "unasked"]
    for name, places in (("judged", 1), ("unasked", 0)):
        pipeline, trial, _ = sabotaged(name, ERROR, entries, judged, unasked)
        assert (len(trial.asked), trial.applied) == (places, ())
        assert trial.declared(halfway=True) is OnError.PROCEED
        assert actions(run(whole(pipeline))) == ["proceed"] * 3


def test_after_an_edit_has_begun_it_is_always_deferred() -> None:
    victim = plugin("victim", finder(Stage.MESSAGE, A, [], does=True), policy=rejecting("x", Stage.MESSAGE, A))
    for on_error in OnError:
        entries = [{"victim": None, "on_error": on_error.value}]
        pipeline, trial, _ = sabotaged("victim", Sabotage(Way.TIMEOUT, edited=True), entries, victim)
        assert trial.declared(halfway=True) is OnError.DEFER
        assert actions(run(whole(pipeline)))[-1] == Action.DEFER


def test_a_share_of_the_traffic_is_tried_as_that_share() -> None:
    victim = plugin("victim", finder(Stage.CONNECT, A, [Session]), policy=rejecting("x", Stage.MAIL, A))
    pipeline, _, _ = sabotaged("victim", ERROR, [{"victim": None, "enforce": "1%"}], victim)
    assert actions(run(whole(pipeline)))[1] == "defer"


def test_a_stand_in_is_of_its_kind_and_says_nothing() -> None:
    found = stand_in(Spf)
    assert isinstance(found, Spf) and found.to_json() == {} and found.authentication() == ()
    assert found.result is None and not found.idle()


def test_faults_are_read_as_the_command_line_has_them() -> None:
    assert [str(parse_sabotage(text)) for text in ("error", "timeout", "garbage", "slow:1500ms")] == [
        *("error", "timeout", "garbage", "slow:1.5s")
    ]
    for text in ("", "slow", "slow:", "slow:x", "slow:0s", "slow:2h", "error:", "error:2s", "Error", "dead"):
        with pytest.raises(ValueError):
            parse_sabotage(text)


@given(st.text(max_size=40))
def test_any_text_is_a_fault_or_a_value_error(text: str) -> None:
    try:
        assert parse_sabotage(text).way in Way
    except ValueError as error:
        assert len(str(error)) < 1000
