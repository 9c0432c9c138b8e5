"""Text of somebody else's as the value of a header field."""

from __future__ import annotations

import pytest

from gateway.sdk import AddHeader, field_value
from gateway.sdk.fields import LINE_OCTETS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("", ""),
        ("  led by spaces  ", "led by spaces"),
        ("a\r\n\tb\n c\rd", "a\n\tb\n c\n\td"),
        ("a\r\n\r\n  \r\nb", "a\n\tb"),
        ("\r\nBcc: x@y.test", "Bcc: x@y.test"),
        ("nul \0 bell \a del \x7f", "nul ? bell ? del ?"),
        ("tab\tstays, é too", "tab\tstays, é too"),
        ("half a pair \ud800 goes, an octet \udcff stays", "half a pair ? goes, an octet \udcff stays"),
    ],
)
def test_it_cannot_break_out_of_its_field(text, value):
    assert field_value(text) == value
    assert AddHeader("X-Any", value).value == value


def test_long_lines_are_folded_at_spaces_and_elsewhere_when_there_is_none():
    words = field_value("word " * 1000)
    assert all(len(line) <= LINE_OCTETS for line in words.split("\n"))
    assert words.split() == ["word"] * 1000
    solid = field_value("x" * 5000)
    assert all(len(line) <= LINE_OCTETS + 1 for line in solid.split("\n"))
    assert "".join(solid.split()) == "x" * 5000
    assert all(len(line.encode()) <= LINE_OCTETS + 1 for line in field_value("é" * 5000).split("\n"))


def test_what_is_too_much_is_cut_off():
    assert field_value("abcdef", 3) == "abc"
