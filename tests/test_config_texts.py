"""The place of a character inside a text of the configuration file, in every style in which YAML writes texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.document import read


def place(yaml: str, needle: str, *, end: bool = False) -> tuple[int, int]:
    """Where the file has the character of the value of `a` at which `needle` begins (or after which it ends)."""
    document = read(yaml, "file")
    value = document.values["a"]
    found = document.place(("a",), value.index(needle) + (len(needle) if end else 0))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("a: one bad two", (1, 8)),
        ("b: 1\na:   one bad two # bad", (2, 10)),
        ("a: 'it''s one bad two'", (1, 15)),
        ('a: "\\"one\\x21\\" bad two"', (1, 17)),
        ('a: "one\\tbad"', (1, 10)),
        ('a: "one\\\n   bad"', (2, 4)),
        ("a: |\n  one\n   bad\n", (3, 4)),
        ("a: |-  # bad\n  one\n\n  bad\n", (4, 3)),
        ("a: >-\n  one\n  two bad\n  three\n", (3, 7)),
        ("a: one\n  two\n  bad three", (3, 3)),
        ("a: !!str 'one bad'", (1, 15)),
        ("{b: 1, a: one bad}", (1, 15)),
        ("a: ö bad", (1, 6)),
    ],
)
def test_a_character_is_found_whatever_way_the_text_is_written(yaml: str, expected: tuple[int, int]) -> None:
    assert place(yaml, "bad") == expected


@pytest.mark.parametrize("yaml", ["a: one bad", "a: 'one bad'", "a: |\n  one bad\n", "a: >\n  one\n  bad\n"])
def test_the_end_of_a_text_is_behind_its_last_character(yaml: str) -> None:
    line, column = place(yaml, "bad")
    assert place(yaml, "bad", end=True) == (line, column + 3)


def test_other_values_have_no_places_inside() -> None:
    document = read("a: 1\nb: [x]", "file")
    assert document.place(("a",), 0) is None
    assert document.place(("c",), 0) is None
    assert document.place(("b", 0), 0) == (2, 5)


WORDS = st.lists(st.text("abc'\"\\:#ö&!", min_size=1, max_size=5), min_size=1, max_size=6)


@given(WORDS, st.sampled_from(["'", "|", ">"]), st.data())
def test_every_character_of_any_text_is_found(words: list[str], style: str, data: st.DataObject) -> None:
    if style == "'":
        lines = ["a: '" + " ".join(words).replace("'", "''") + "'"]
    else:
        lines = [f"a: {style}", *(f"  {word}" for word in words)]
    document = read("\n".join(lines) + "\n", "file")
    value = document.values["a"]
    at = data.draw(st.sampled_from([i for i, c in enumerate(value) if not c.isspace()]))
    found = document.place(("a",), at)
    assert found is not None
    assert lines[found[0] - 1][found[1] - 1] == value[at]
