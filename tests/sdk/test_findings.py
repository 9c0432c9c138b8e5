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


@dataclass(frozen=True, slots=True)
class Anything(Finding):
    value: Any


def test_ours_are_plain_json() -> None:
    assert Dnsbl(3.0, (ListHit("zen.test", ("127.0.0.2",), 3.0),), ("dead.test",)).to_json() == {
        "score": 3.0,
        "hits": [{"zone": "zen.test", "codes": ["127.0.0.2"], "weight": 3.0}],
        "failed": ["dead.test"],
    }
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


def test_a_finding_for_which_nothing_was_asked_is_idle() -> None:
    assert not Dnsbl(0.0).idle()
    assert [Rate(True, key, 1.0, 0.0).idle() for key in ("client 192.0.2.1", "")] == [False, True]
    assert [state for state in GreylistState if Greylist(state, "key").idle()] == [GreylistState.EXEMPT]
