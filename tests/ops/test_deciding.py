"""Who decided, by what the record has of verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ops.deciding import decided


def said(plugin: str, action: str, stage: str = "rcpt", **more: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "plugin": plugin,
        "policy": plugin,
        "version": "1",
        "action": action,
        "shadow": False,
        **more,
    }


@pytest.mark.parametrize(
    ("verdicts", "names"),
    [
        ([], []),
        ([said("a", "proceed")], []),
        ([said("a", "proceed"), said("b", "reject")], ["b"]),
        ([said("a", "reject", shadow=True), said("b", "defer")], ["b"]),
        ([said("a", "accept", "helo"), said("b", "reject", "message")], ["a", "b"]),
        ([said("a", "reject", recipient="x@y"), said("b", "defer", recipient="z@y")], ["a", "b"]),
        ([said("a", "defer", when="if-permit")], ["a"]),
        ([said("a", "defer", when="if-permit"), said("b", "accept")], ["a"]),
        ([said("a", "defer", when="if-permit"), said("b", "reject")], ["b"]),
        ([said("a", "defer", when="if-reject")], []),
        ([said("a", "defer", when="if-reject"), said("b", "reject")], ["a"]),
        ([said("a", "defer", when="if-reject"), said("b", "defer")], ["b"]),
        ([said("a", "quarantine", "message", recipients=["x@y"]), said("b", "reject", "message")], ["a", "b"]),
        ([said("a", "proceed", "message", recipients=["x@y"])], []),
        # Of two pipelines, for two copies.
        ([said("a", "reject", "message"), said("b", "quarantine", "message")], ["a", "b"]),
        ([said("a", "proceed"), {"truncated": True}], []),
    ],
)
def test_those_who_decided_are_named(verdicts: list[dict[str, Any]], names: list[str]) -> None:
    found = decided({"verdicts": verdicts})
    assert [told["plugin"] for told in found] == names
    for told in found:
        assert verdicts[told["verdict"]]["plugin"] == told["plugin"] and "shadow" not in told


NOTES = st.dictionaries(
    st.sampled_from(["stage", "plugin", "action", "when", "recipient", "recipients", "shadow", "truncated"]),
    st.none() | st.booleans() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(st.none() | st.lists(NOTES | st.none() | st.text(max_size=3)))
def test_a_damaged_record_names_nobody_that_is_not_there(verdicts: Any) -> None:
    for told in decided({"verdicts": verdicts}):
        assert 0 <= told["verdict"] < len(verdicts)
