"""What would have become of a transaction without the entry that decided, beside what did in a second run."""

from __future__ import annotations

from typing import Any

from gateway.ops.deciding import decided
from gateway.pipeline.past import Past
from gateway.pipeline.without import Without, without
from tests.pipeline.test_replay import BASE, RECORDS, TRAFFIC, ended, nobody
from tests.pipeline.traffic import pipeline, record

NOW = pipeline(BASE)
REPLAYS = {"default": NOW.replay({entry.name for entry in NOW.entries})}


def judge(told: dict[str, Any], entry: str) -> Without:
    return without(REPLAYS, Past(told, nobody), entry)


def test_what_it_says_is_what_a_pipeline_without_the_entry_does() -> None:
    seen = set()
    for name in BASE:
        anew = record({key: value for key, value in BASE.items() if key != name}, TRAFFIC[:150])
        for number, real in anew.items():
            told = RECORDS[number]
            if name not in {d["plugin"] for d in decided(told)}:
                continue
            found = judge(told, name)
            if found.unknown or found.beyond:
                # Nobody looked any further then.
                assert ended(told) in ("rejected", "deferred")
                continue
            assert found.outcome == ended(real), (told["id"], found)
            seen.add((name, ended(told), found.outcome))
    assert ("content", "quarantined", "accepted") in seen and ("content", "rejected", "accepted") in seen


def test_behind_the_stage_where_it_ended_nothing_is_known() -> None:
    told = next(t for t in RECORDS.values() if t["sender"] is None)
    found = judge(told, "client")
    assert (found.outcome, found.beyond) == ("accepted", "helo") or found.beyond == "connect"
    assert found.to_json()["beyond"] == found.beyond


def test_one_recipient_that_was_refused_by_others_stays_refused() -> None:
    told = next(
        t
        for t in RECORDS.values()
        if t["outcome"] == "accepted" and any(not r["reply"].startswith("2") for r in t["recipients"])
    )
    refused = {r["address"] for r in told["recipients"] if not r["reply"].startswith("2")}
    assert set(judge(told, "content").refused) == refused
    assert set(judge(told, "recipient-value").refused) == {a for a in refused if a.endswith("elsewhere.example")}


def test_it_is_not_known_where_it_cannot_be() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "quarantined")
    stricter = pipeline({**BASE, "client": {"reject_at": 0}})
    changed = {"default": stricter.replay({entry.name for entry in stricter.entries})}
    assert "judges it otherwise: rejected" in without(changed, Past(told, nobody), "content").unknown
    assert "no pipeline default" in without({}, Past(told, nobody), "content").unknown
    assert "several copies" in judge({**told, "copies": ["a", "b"]}, "content").unknown
    lost = {**told, "findings": [], "verdicts": []}
    assert "was not looked up" in judge(lost, "content").unknown
    assert judge(lost, "content").to_json() == {"plugin": "content", "unknown": judge(lost, "content").unknown}
