"""Records outside of the spool: written and read back, and files that somebody else has written."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ops import archive
from gateway.ops.archive import ArchiveError, Kept, read_lines, write_line

RECORD: dict[str, Any] = {
    **{"v": 1, "id": "1M32500000000000", "session": "1M3250000000000", "time": 1.7e9, "listener": "edge"},
    **{"client": {"ip": "192.0.2.1", "port": 1}, "tls": None, "helo": "x.example", "sender": "<>", "size": 0},
    "recipients": [{"address": "ben@example.org", "reply": "250 ok"}],
    "findings": [{"stage": "connect", "plugin": "p", "finding": "P", "ms": 1, "value": {"x": [1, {"y": None}]}}],
    "verdicts": [{"stage": "connect", "plugin": "p", "policy": "p", "version": "1", "action": "proceed"}],
    "edits": [{"edit": "DeleteHeader", "name": "X", "nth": 0, "was": ["a"]}],
    **{"outcome": "accepted", "reply": "250 ok", "pipeline": "default", "something": "new"},
}
ATTEMPT = {
    "time": 1.7e9,
    "recipient": "ben@example.org",
    "outcome": "delivered",
    "reply": "250",
    "host": "",
    "seconds": 1,
}
TLS = {"version": "TLSv1.3", "cipher": "any", "sni": ""}
LINE: dict[str, Any] = {"v": 1, "record": RECORD, "attempts": [ATTEMPT]}


def read(*lines: bytes) -> list[Kept]:
    return list(read_lines(io.BytesIO(b"".join(lines)), "records.jsonl"))


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_what_was_written_is_read_back() -> None:
    kept = Kept(RECORD, [ATTEMPT])
    shown = {"verified": True, "fingerprint": "AB", "subject": "a", "names": ["DNS:a"], "issuer": "b", "serial": "1"}
    encrypted = Kept({**RECORD, "tls": {**TLS, "client": shown}}, [])
    assert read(write_line(encrypted)) == [encrypted]
    odd = Kept({**RECORD, "helo": "\ud800", "size": 2**70}, [])
    assert json.loads(write_line(kept)) == LINE
    assert read(write_line(kept), b"\n", write_line(kept)) == [kept, kept]
    assert json.loads(write_line(odd))["record"] == odd.record


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (b"{", "no JSON"),
        (b"\xff\n", "no JSON"),
        (line([]), "expected an object"),
        (line({"v": 1, "record": []}), "expected an object"),
        (line({**LINE, "v": 2}), "another version"),
        (line({**LINE, "record": {**RECORD, "v": 2}}), "another version"),
        (line({**LINE, "record": {**RECORD, "id": "../x"}}), "record.id"),
        (line({**LINE, "record": {**RECORD, "id": "x\n"}}), "record.id"),
        (line({**LINE, "record": {**RECORD, "time": 1e30}}), "record.time"),
        (line({**LINE, "record": {**RECORD, "client": "192.0.2.1"}}), "record.client"),
        (line({**LINE, "record": {**RECORD, "tls": {**TLS, "client": {"verified": 1}}}}), "record.tls.client.verified"),
        (line({**LINE, "record": {**RECORD, "findings": [1]}}), "record.findings.0"),
        (line({**LINE, "record": {**RECORD, "verdicts": [{"action": 1}]}}), "record.verdicts.0.action"),
        (line({**LINE, "record": {k: v for k, v in RECORD.items() if k != "helo"}}), "record.helo"),
        (line({**LINE, "attempts": [{}]}), "attempts.0.time"),
        (b'{"v": 1, "record": ' + b'{"v":' * 500 + b"1" + b"}" * 500 + b"}\n", "deeper|version|no JSON"),
        (line({**LINE, "record": {**RECORD, "deep": json.loads("[" * 70 + "]" * 70)}}), "nested deeper"),
    ],
)
def test_what_is_no_record_ends_the_reading_with_its_line(wrong: bytes, why: str) -> None:
    with pytest.raises(ArchiveError, match=rf"^records\.jsonl:2: .*({why})"):
        read(line(LINE), wrong)


def test_a_line_without_an_end_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LINE_OCTETS", 2000)
    with pytest.raises(ArchiveError, match=r"records\.jsonl:2: longer than 2000 octets"):
        read(line(LINE), b" " * 10_000)
    assert len(read(line(LINE)[:-1])) == 1


def test_the_documented_keys_of_a_record_are_those_that_are_relied_on() -> None:
    page = (Path(__file__).parents[2] / "docs/records.md").read_text()
    documented = set(re.findall(r"(?m)^\| `([a-z]+)` \|", page))
    assert documented == {"v", *archive._Record.__annotations__}
    parts = (archive._Finding, archive._Verdict, archive._Attempt, archive._Mta, archive._Client, archive._Tls)
    for part in (*parts, archive._ClientCertificate):
        assert [name for name in part.__annotations__ if f"`{name}`" not in page] == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(RECORD)), VALUES)
def test_a_record_with_anything_in_one_place_is_read_or_refused(key: str, value: Any) -> None:
    try:
        (kept,) = read(line({**LINE, "record": {**RECORD, key: value}}))
    except ArchiveError:
        return
    assert kept.record[key] == value or kept.record[key] is value


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    try:
        assert read(octets) == []
    except ArchiveError:
        pass
