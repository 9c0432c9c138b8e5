"""Decision records of strangers: a file that somebody else has written, and rows that are damaged."""

from __future__ import annotations

import ipaddress
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gateway.cli.tree import tree
from gateway.ops.archive import ArchiveError, _read, write_line
from gateway.ops.archive import Kept as Line
from gateway.ops.deciding import decided
from gateway.ops.redaction import Redactor
from gateway.ops.search import Search
from gateway.ops.shadow import ShadowReport
from gateway.ops.whatif import BY, WhatIf
from gateway.pipeline.difference import Difference
from gateway.pipeline.past import NotTold, Past
from gateway.pipeline.without import without
from tests.pipeline.test_replay import BASE, RECORDS, nobody
from tests.pipeline.traffic import pipeline

SEEDS = [RECORDS[number] for number in (1, 2, 3, 5, 8, 13, 21, 34, 55)]
NOW = pipeline(BASE)
REPLAYS = {"default": NOW.replay(), "strict": NOW.replay({entry.name for entry in NOW.entries})}
REDACT = Redactor(bytes(32))
SEARCH = Search("a@b.example", "c", ipaddress.ip_network("192.0.2.0/24"), action="reject").through(REDACT.address)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(
        ["", "<>", "a@b.example", "~" + "a" * 24 + "@b.example", "reject", "rcpt", "\x1b[2J", "…", "helo"]
    )
    | st.text(max_size=6),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record of real traffic in which a few places hold something else."""
    told: dict[str, Any] = deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = told
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(VALUES)
            break
        if draw(st.booleans()):
            told["redacted"] = draw(st.just([]) | st.just(["helo", "tls.sni"]) | VALUES)
    return told


def everything(told: dict[str, Any]) -> None:
    """All that judges records."""
    difference = Difference(REPLAYS, nobody, REDACT)
    difference.add(told)
    assert difference.total == 1
    try:
        past = Past(told, nobody)
    except NotTold:
        return
    for entry in BASE:
        found = without(REPLAYS, past, entry).to_json()
        assert found["plugin"] == entry


@settings(max_examples=300, deadline=None)
@given(records())
def test_a_damaged_row_is_judged_or_said_to_be_no_record(told: dict[str, Any]) -> None:
    everything(told)
    assert "redacted" in REDACT.record(told)


@settings(max_examples=300, deadline=None)
@given(records())
def test_a_line_that_is_taken_can_be_shown_counted_and_judged(told: dict[str, Any]) -> None:
    try:
        kept = _read(write_line(Line(told)))
    except ArchiveError:
        return
    record = kept.record
    everything(record)
    SEARCH.matches(record)
    for by in BY:
        WhatIf(by, "reject").add(record, matched=True)
    ShadowReport().add(record)
    console = Console(width=200, highlight=False, record=True, file=None, quiet=True)
    console.print(tree({"record": record, "decided": decided(record), "attempts": [], "without": []}))
    assert "\x1b" not in console.export_text()
