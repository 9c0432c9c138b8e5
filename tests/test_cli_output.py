"""How lists are printed, short ones and long ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import output

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=4), below, max_size=3),
    max_leaves=6,
)


def printed(capsys: pytest.CaptureFixture[str], listing: Any, *pages: list[Any]) -> str:
    for page in pages:
        listing.add(page)
    listing.end()
    return capsys.readouterr().out


@given(st.lists(st.lists(VALUES, max_size=3), max_size=3))
def test_an_array_reads_as_if_it_were_printed_at_once_and_is_ascii(pages: list[list[Any]]) -> None:
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output.click, "echo", lambda text, nl=True: texts.append(text + ("\n" if nl else "")))
        listing = output.JsonArray()
        for page in pages:
            listing.add(page)
        listing.end()
    assert "".join(texts) == json.dumps([item for page in pages for item in page], indent=2) + "\n"


def test_a_few_rows_are_a_table_and_many_are_lines_of_the_same_columns(capsys: pytest.CaptureFixture[str]) -> None:
    row = ("ID", "anna@example.org", "x\x1b[2Jy")
    few = printed(capsys, output.Columns(("A", "B", "C")), [row], [row])
    assert few.splitlines()[0].split() == ["A", "B", "C"] and few.count("x\\x1b[2Jy") == 2
    many = printed(capsys, output.Columns(("A", "B", "C")), [row] * 150, [row] * 150, [])
    assert [line.split() for line in many.splitlines()] == [["A", "B", "C"], *[list(few.splitlines()[1].split())] * 300]
    assert len({line.index("anna") for line in many.splitlines()[1:]}) == 1


def test_one_endless_cell_does_not_push_all_others_away(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, output.Columns(("A", "B")), [("x" * 5000, "1")] + [("y", "2")] * 300)
    assert max(len(line) for line in text.splitlines()[2:]) < 100


def test_nothing_is_an_empty_array_and_a_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, output.JsonArray()) == "[]\n"
    assert printed(capsys, output.Columns(("A", "B"))).split() == ["A", "B"]
