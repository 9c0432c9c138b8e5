"""Findings in the form that the record keeps."""

from __future__ import annotations

import ipaddress
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.sdk import (
    Dnsbl,
    Finding,
    Greylist,
    GreylistState,
    ListHit,
    Rate,
    RecipientState,
    RecipientStatus,
    Spf,
    SpfResult,
)
from gateway.sdk.findings import is_cut


@dataclass(frozen=True, slots=True)
class Anything(Finding):
    value: Any


def test_ours_are_plain_json() -> None:
    assert Dnsbl(3.0, (ListHit("zen.test", ("127.0.0.2",), 3.0),), ("dead.test",)).to_json() == {
        "score": 3.0,
        "hits": [{"zone": "zen.test", "codes": ["127.0.0.2"], "weight": 3.0}],
        "failed": ["dead.test"],
    }
    known = Dnsbl(0.0, (), (), ("zen.test 127.0.0.4: exploited host",), "2026-11-26").to_json()
    assert (known["meanings"], known["tables"]) == (["zen.test 127.0.0.4: exploited host"], "2026-11-26")
    assert Spf(SpfResult.PASS, "example.org", SpfResult.NONE, "mx.example.org").to_json()["result"] == "pass"
    assert RecipientStatus(RecipientState.NOT_OURS, "list").to_json()["state"] == "not-ours"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1: b"\xff"}, {"1": "\xff"}),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (ipaddress.ip_address("192.0.2.1"), "192.0.2.1"),
        ((None, True, 1.5), [None, True, 1.5]),
    ],
)
def test_other_values_become_plain(value: Any, plain: Any) -> None:
    assert Anything(value).to_json() == {"value": plain}


def test_what_is_long_or_deep_is_cut() -> None:
    deep: Any = "end"
    for _ in range(100):
        deep = (deep, deep[:1])
    for value in ("x" * 10**6, b"x" * 10**6, tuple(range(10**5)), {str(i): i for i in range(10**5)}, deep):
        assert len(json.dumps(Anything(value).to_json(), allow_nan=False)) < 20_000


@pytest.mark.parametrize(
    "value",
    [
        "x" * 4001,
        tuple(range(1001)),
        tuple(map(str, range(1001))),
        {str(i): i for i in range(1001)},
        (("a",), tuple(map(str, range(1001)))),
    ],
)
def test_a_mark_says_that_something_was_cut(value: Any) -> None:
    assert is_cut(Anything(value).to_json())


@pytest.mark.parametrize("value", ["x" * 4000, "and so on…", tuple(range(990)), ("a", "b"), {"a": 1}, None])
def test_what_is_whole_has_no_mark(value: Any) -> None:
    assert not is_cut(Anything(value).to_json())


def test_a_finding_for_which_nothing_was_asked_is_idle() -> None:
    assert not Dnsbl(0.0).idle()
    assert [Rate(True, key, 1.0, 0.0).idle() for key in ("client 192.0.2.1", "")] == [False, True]
    assert [state for state in GreylistState if Greylist(state, "key").idle()] == [GreylistState.EXEMPT]
