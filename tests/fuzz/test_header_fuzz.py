"""Header splitting and edits against arbitrary octets: nothing lost, nothing let out of its line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.edit import AddHeader, ChangeHeader, DeleteHeader, apply_edits, render_field
from gateway.mail.message import split_header

PIECE = st.one_of(
    st.sampled_from([b"Subject", b"X-A", b":", b": ", b" ", b"\t", b"\r\n", b"\r", b"\n", b"\r\n ", b"\x00", b"\xff"]),
    st.binary(max_size=20),
)
CONTENT = st.lists(PIECE, max_size=60).map(b"".join)
NAME = st.one_of(st.sampled_from(["Subject", "X-A", "x-a"]), st.text(max_size=10))
VALUE = st.text(st.one_of(st.sampled_from("ab:\r\n\t \x00\udc80"), st.characters()), max_size=40)


@settings(max_examples=500, deadline=None)
@given(CONTENT)
def test_fields_and_rest_are_the_content(content: bytes) -> None:
    fields, offset = split_header(content)
    assert b"".join(field.raw for field in fields) + content[offset:] == content
    for field in fields:
        assert field.raw.startswith(field.name.encode())
        assert "\r\n" not in field.value
        # A field that was read alone is read the same way again.
        again, end = split_header(field.raw)
        assert (again, end) == ([field], len(field.raw))


@settings(max_examples=500, deadline=None)
@given(NAME, VALUE)
def test_a_field_that_can_be_made_is_one_field_on_the_wire(name: str, value: str) -> None:
    try:
        AddHeader(name, value)
    except ValueError:
        return
    raw = render_field(name, value)
    fields, end = split_header(raw + b"\r\nBody: x\r\n")
    assert [field.raw for field in fields] == [raw]
    assert end == len(raw)
    assert b"\r" not in raw.replace(b"\r\n", b"") and b"\n" not in raw.replace(b"\r\n", b"")


EDIT = st.one_of(
    st.builds(AddHeader, st.just("X-A"), st.just("new"), st.integers(0, 50)),
    st.builds(ChangeHeader, st.sampled_from(["X-A", "subject"]), st.integers(1, 5), st.just("changed")),
    st.builds(DeleteHeader, st.sampled_from(["x-a", "Subject"]), st.integers(0, 5)),
)


@settings(max_examples=300, deadline=None)
@given(CONTENT, st.lists(EDIT, max_size=8))
def test_an_edited_header_section_is_still_a_header_section(content: bytes, edits: list[AddHeader]) -> None:
    fields, _ = split_header(content)
    edited = apply_edits(fields, edits)
    again, end = split_header(b"".join(field.raw for field in edited))
    assert [field.name for field in again] == [field.name for field in edited]
    assert end == sum(len(field.raw) for field in edited)
