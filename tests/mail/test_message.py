"""Header fields, edits, and the split between header section and body."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.edit import AddHeader, ChangeHeader, DeleteHeader, apply_edits, check_field, edit_json, render_field
from gateway.mail.message import dotted_line, split_header

HEADER = b"Received: one\r\nSubject: first\r\n folded\r\nReceived: two\r\n"


def joined(content: bytes, *edits: Any) -> bytes:
    fields, offset = split_header(content)
    return b"".join(field.raw for field in apply_edits(fields, edits)) + content[offset:]


def test_the_header_section_is_split_into_fields() -> None:
    fields, offset = split_header(HEADER + b"\r\nBody: no field\r\n")
    assert [(f.name, f.value) for f in fields] == [
        ("Received", "one"),
        ("Subject", "first folded"),
        ("Received", "two"),
    ]
    assert offset == len(HEADER)


@pytest.mark.parametrize(
    ("content", "names", "rest"),
    [
        (b"", [], b""),
        (b"\r\nbody", [], b"\r\nbody"),
        (b" white\r\nSubject: x\r\n", [], b" white\r\nSubject: x\r\n"),
        (b"Subject: x\r\nno field\r\n", ["Subject"], b"no field\r\n"),
        (b"Subject : x\r\n\r\n", ["Subject"], b"\r\n"),
        (b"Subject: x", ["Subject"], b""),
        (b"Subject: x\r\n ", ["Subject"], b""),
        (b": x\r\n", [], b": x\r\n"),
        (b"S\xc3\xbc: x\r\n", [], b"S\xc3\xbc: x\r\n"),
        (b"Subject:\r\n\r\n", ["Subject"], b"\r\n"),
    ],
)
def test_the_section_ends_at_the_first_line_that_is_no_field(content: bytes, names: list[str], rest: bytes) -> None:
    fields, offset = split_header(content)
    assert ([f.name for f in fields], content[offset:]) == (names, rest)


def test_octets_that_are_no_utf8_do_not_stop_a_value_from_being_read() -> None:
    fields, _ = split_header(b"Subject: \xff ok\r\n\r\n")
    assert fields[0].value == "\ufffd ok"


def test_no_edit_changes_no_octet() -> None:
    assert joined(HEADER + b"\r\nbody") == HEADER + b"\r\nbody"


def test_each_edit_sees_what_those_before_it_did() -> None:
    out = joined(
        HEADER + b"\r\nbody",
        AddHeader("X-Top", "1"),
        AddHeader("X-Second", "2", index=1),
        AddHeader("X-Last", "3", index=99),
        ChangeHeader("Received", 2, "changed"),
        DeleteHeader("SUBJECT"),
        ChangeHeader("X-None", 1, "nothing happens"),
        DeleteHeader("Received", 1),
        DeleteHeader("Received", 7),
    )
    assert out == b"X-Top: 1\r\nX-Second: 2\r\nReceived: changed\r\nX-Last: 3\r\n\r\nbody"


def test_a_field_that_the_messages_end_cut_off_does_not_run_into_the_next() -> None:
    assert joined(b"Subject: x", AddHeader("X-Last", "1", index=9)) == b"Subject: x\r\nX-Last: 1\r\n"


def test_folds_are_written_with_crlf() -> None:
    assert render_field("Subject", "one\n two") == b"Subject: one\r\n two\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Subject", "one\r\nBcc: eve@example.org"),
        ("Subject", "one\nBcc: eve@example.org"),
        ("Subject", "one\n\n two"),
        ("Subject", "one\n "),
        ("Subject", "one\n"),
        ("Subject", "one\x00"),
        ("Subject", "one\x7f"),
        ("Subject", "half a pair \ud800"),
        ("Sub ject", "one"),
        ("Subject:", "one"),
        ("", "one"),
        ("Bücher", "one"),
        ("S" * 78, "one"),
    ],
)
def test_a_field_that_could_break_out_of_its_line_cannot_be_made(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        check_field(name, value)
    with pytest.raises(ValueError):
        AddHeader(name, value)
    with pytest.raises(ValueError):
        ChangeHeader(name, 1, value)


@pytest.mark.parametrize(
    "make",
    [lambda: AddHeader("X", "1", index=-1), lambda: ChangeHeader("X", 0, "1"), lambda: DeleteHeader("X", -1)],
)
def test_places_count_from_where_they_say(make: Any) -> None:
    with pytest.raises(ValueError, match="counts from"):
        make()


def test_the_record_form_of_an_edit_has_its_own_fields() -> None:
    assert edit_json(AddHeader("X", "1")) == {"edit": "AddHeader", "name": "X", "index": 0, "value": "1"}
    assert edit_json(ChangeHeader("X", 2, "1")) == {"edit": "ChangeHeader", "name": "X", "nth": 2, "value": "1"}
    assert edit_json(DeleteHeader("X")) == {"edit": "DeleteHeader", "name": "X", "nth": 0}


@given(st.lists(st.sampled_from([b".", b"\r\n", b"a", b"\n", b"\r", b"." * 20]), max_size=60).map(b"".join))
def test_a_line_that_begins_with_a_dot_is_found_where_it_is(octets):
    assert dotted_line(octets) == octets.find(b"\r\n.")
