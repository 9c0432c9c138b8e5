"""Durations and sizes with their units, and models that refuse what they do not know."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import Duration, OptionsModel, Size
from gateway.sdk.options import format_duration, format_size, parse_duration, parse_size


class Options(OptionsModel):
    wait: Duration = 300.0
    room: Size = 1 << 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("5d", 432000), ("1.5 h", 5400), (0, 0), (2.5, 2.5)],
)
def test_durations_are_read_with_their_unit(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [5, True, "", "5", "5 weeks", "-5s", "s", "5sm", "5s\n", "\u0665s", "1e3s", -1.0, math.inf, math.nan, None, []],
)
def test_other_durations_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "octets"),
    [("100B", 100), ("64KiB", 65536), ("25MiB", 25 << 20), ("1GiB", 1 << 30), ("10MB", 10**7), (7, 7)],
)
def test_sizes_are_read_with_their_unit(text: Any, octets: int) -> None:
    assert parse_size(text) == octets


@pytest.mark.parametrize("text", ["5", "5mb", "1.5MiB", "-1B", True, 2.0, -1, "\u0665B", "9" * 5000 + "B", None])
def test_other_sizes_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(0, 10**8))
def test_a_duration_in_whole_milliseconds_survives_writing_and_reading(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@settings(deadline=None)
@given(st.integers(0, 1 << 50))
def test_a_size_survives_writing_and_reading(octets: int) -> None:
    assert parse_size(format_size(octets)) == octets


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.5, "500ms"), (90, "90s"), (300, "5m"), (86400, "1d")])
def test_durations_are_written_in_the_largest_exact_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_model_is_frozen_and_refuses_unknown_keys() -> None:
    options = Options.model_validate({"wait": "10s", "room": "1KiB"})
    assert (options.wait, options.room) == (10.0, 1024)
    assert options.model_dump(mode="json") == {"wait": "10s", "room": "1KiB"}
    with pytest.raises(ValidationError, match="frozen"):
        options.wait = 1.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        Options.model_validate({"weit": "10s"})
