"""Texts that look like others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sdk.lookalikes import TEXT_CHARACTERS, edit_distance, name_words, skeleton


@pytest.mark.parametrize(
    "text",
    [
        "EXAMPLE",
        "ex\u0430mp\u04cf\u0435",  # Cyrillic a, palochka, e
        "\u0395\u03a7\u0391M\u03a1LE",  # Greek capitals
        "examp1e",
        "exampIe",
        "e\u0301xample",
        "\u00e9xample",
        "ex\u200bam\u00adple",
        "\uff45\uff58\uff41\uff4d\uff50\uff4c\uff45",  # wide
        "\U0001d41e\U0001d431\U0001d41a\U0001d426\U0001d429\U0001d425\U0001d41e",  # bold of mathematics
        "exarnple",
    ],
)
def test_what_looks_like_a_text_has_its_skeleton(text):
    assert skeleton(text) == skeleton("example")


def test_what_looks_different_has_another_one():
    assert len({skeleton(text) for text in ("example", "sample", "exemple", "ex-ample", "examples")}) == 5


def test_invisible_characters_in_front_hide_nothing():
    assert skeleton("\u200b" * (TEXT_CHARACTERS - 10) + "anna") == skeleton("anna")


def test_a_name_is_its_words_whatever_stands_between_them():
    assert name_words("Muster, Anna (CEO)") == name_words("MUSTER | \u00c0nna - ceo")
    assert name_words("\u202e...") == ()


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "xabc", 1),
     ("abcd", "badc", 2), ("abc", "xyz", 3), ("abc", "", 3)],
)  # fmt: skip
def test_wrong_keys_are_counted(one, other, keys):
    assert edit_distance(one, other, 5) == edit_distance(other, one, 5) == keys
    assert edit_distance(one, other, 1) == min(keys, 2)


def slow_distance(one: str, other: str) -> int:
    """By the definition, without bounds."""
    table = [[i + j for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            same = table[i - 1][j - 1] + (one[i - 1] != other[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, same)
            if i > 1 and j > 1 and (one[i - 1], one[i - 2]) == (other[j - 2], other[j - 1]):
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


@settings(max_examples=300)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.integers(0, 3))
def test_the_bounded_count_is_the_plain_one_up_to_its_bound(one, other, most):
    assert edit_distance(one, other, most) == min(slow_distance(one, other), most + 1)


@given(st.text(max_size=200))
def test_any_text_has_a_skeleton_that_case_does_not_change(text):
    assert skeleton(text) == skeleton(skeleton(text)) or not text.isascii()
    if text.isascii():
        assert skeleton(text) == skeleton(text.upper())
