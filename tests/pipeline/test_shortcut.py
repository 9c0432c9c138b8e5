"""Shortcuts: finders that are tried without a task of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.mail.session import Session
from gateway.sdk import Action, Finder, Finding, Plugin, Stage, edit_begun, progress
from tests.pipeline.quick import run
from tests.pipeline.setting import A, B, Counter, Flow, finder, plugin, proceeding, rejecting


def short(answer: Callable[..., Any], work: Counter, *inputs: Any, does: bool = True) -> type[Plugin]:
    """A plugin ``p`` whose only finder has this shortcut, and gives `A`."""
    made = plugin("p", finder(Stage.CONNECT, A, inputs, work, does=does), policy=rejecting("p", Stage.CONNECT, A))

    def shortcut(self: Plugin, finder: Finder) -> Callable[..., Finding | None]:
        return answer

    return type("Short", (made,), {"shortcut": shortcut})


def connected(thing: type[Plugin], *others: type[Plugin], times: int = 1) -> tuple[Any, dict[str, Any]]:
    """The decision at connect, the last of `times`, and the note of what ``p`` found."""

    async def scenario() -> tuple[Any, dict[str, Any]]:
        flow = Flow(["p", *(other.name for other in others)], thing, *others)
        for _ in range(times):
            decision = await flow.connect()
        (note,) = [note for note in flow.session.traces[0].findings if note["plugin"] == "p"]
        await flow.close()
        return decision, note

    return run(scenario())


@pytest.mark.parametrize("does", [True, False], ids=["acts", "finds"])
def test_what_a_shortcut_gives_is_the_finding_and_the_finder_is_not_run(does: bool) -> None:
    work = Counter(A())
    tasks: list[set[Any]] = []

    def answer(session: Session) -> A:
        tasks.append(asyncio.all_tasks())
        return A(7)

    decision, note = connected(short(answer, work, Session, does=does))
    assert decision.entry == "p"
    assert note["value"] == {"value": 7}
    assert "ms" in note
    assert work.calls == 0
    assert [len(running) for running in tasks] == [1], "nobody but who asks"


def test_a_shortcut_that_gives_none_has_the_finder_run() -> None:
    work = Counter(A(3))
    _, note = connected(short(lambda session: None, work, Session))
    assert note["value"] == {"value": 3}
    assert work.calls == 1


@pytest.mark.parametrize(
    ("raised", "detail"),
    [
        (OSError("gone"), "OSError: gone"),
        (ValueError("bug"), "ValueError: bug"),
        (asyncio.CancelledError(), "it was cancelled from within"),
    ],
)
def test_a_shortcut_that_raises_is_a_fault_of_its_entry(raised: BaseException, detail: str) -> None:
    def answer(session: Session) -> A:
        raise raised

    work = Counter(A())
    decision, note = connected(short(answer, work, Session))
    assert decision.verdict.action is Action.DEFER
    assert (note["fault"], note["detail"]) == ("error", detail)
    assert work.calls == 0


def test_a_shortcut_that_gives_another_finding_has_answered_garbage() -> None:
    decision, note = connected(short(lambda session: B(), Counter(A()), Session))
    assert decision.verdict.action is Action.DEFER
    assert note["fault"] == "garbage"


def test_faults_of_shortcuts_open_the_breaker() -> None:
    calls = []

    def answer(session: Session) -> A:
        calls.append(session)
        raise OSError("dead")

    _, note = connected(short(answer, Counter(A()), Session), times=7)
    assert note["fault"] == "breaker"
    assert len(calls) == 5


def test_a_finder_whose_input_is_still_looked_up_waits_for_it_in_a_task() -> None:
    slow = plugin(
        "slow", finder(Stage.CONNECT, B, [Session], Counter(B(), 0.05)), policy=proceeding("slow", Stage.CONNECT, B)
    )
    shortcuts: list[Any] = []
    work = Counter(A(2))
    _, note = connected(short(shortcuts.append, work, Session, B, does=False), slow)
    assert note["value"] == {"value": 2}
    assert (shortcuts, work.calls) == ([], 1)


def test_a_shortcut_may_say_that_it_gets_on_and_that_there_is_no_way_back() -> None:
    def answer(session: Session) -> A:
        progress()
        edit_begun()
        raise OSError("half done")

    thing = short(answer, Counter(A()), Session)

    async def scenario() -> Any:
        flow = Flow([{"p": {}, "on_error": "proceed"}], thing)
        decision = await flow.connect()
        await flow.close()
        return decision

    assert run(scenario()).verdict.action is Action.DEFER
