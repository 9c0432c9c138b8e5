"""What stands without being judged as a whole, beside the whole judged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from gateway.pipeline import standing
from gateway.pipeline.difference import Kind, compare, counterparts, unchanged
from gateway.pipeline.loader import Pipeline, PipelineError, load
from gateway.pipeline.past import Past
from gateway.pipeline.replay import Replay, Unknown
from gateway.pipeline.rollout import Rollout
from gateway.sdk import Action, Verdict
from gateway.sdk.testing import make_session
from tests.pipeline.setting import services
from tests.pipeline.test_replay import BASE, OPTIONS, RECORDS, nobody
from tests.pipeline.traffic import CATALOG, ClientValue, mailings, record

DIGEST = "0123456789ab"
PASTS = {number: Past({**told, "config": DIGEST}, nobody) for number, told in RECORDS.items()}
Entries = list[tuple[str, Any]]


@pytest.fixture(autouse=True)
def known_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policies of the tests' traffic keep their versions as ours do."""
    monkeypatch.setattr(standing, "_OURS", ("tests",))


def of(entries: Entries) -> Pipeline:
    return load("default", [{name: dict(options)} for name, options in entries], services(), known=CATALOG)


THEN = of(list(BASE.items()))


def replay(now: Pipeline, then: Pipeline = THEN, digest: str = DIGEST) -> Replay:
    pair = then.entries, now.entries
    return now.replay(unchanged(*pair), counterparts(*pair), (then.plan, digest))


def standing_of(made: Replay) -> set[int]:
    """Numbers of what stands; all of it is the same when it is judged as a whole, or cannot be.

    What does not stand comes out as when everybody is asked, or else that is not known.
    """
    found: set[int] = set()
    for number, past in PASTS.items():
        fate, whole = made.again(past), made.judge(past, past.reached)
        if fate is None:
            found.add(number)
            assert compare(made, past).kind in (Kind.SAME, Kind.UNKNOWN), (number, whole)
        else:
            assert fate == whole or isinstance(whole, Unknown), (number, fate, whole)
    return found


@st.composite
def candidates(draw: st.DrawFn) -> Entries:
    """The entries of then: some changed, left out, twice there, or elsewhere."""
    entries: Entries = []
    for name, options in BASE.items():
        entries += draw(
            st.sampled_from([[(name, dict(options))]] * 3 + [[]])
            | st.tuples(st.just(name), OPTIONS).map(lambda changed: [changed])
            | st.tuples(st.just(name), OPTIONS).map(lambda more: [(more[0], dict(BASE[more[0]])), more])
        )
    if draw(st.integers(0, 3)) == 0:
        entries = draw(st.permutations(entries))
    return entries


@settings(max_examples=60, deadline=None)
@given(candidates())
def test_what_stands_is_what_judging_the_whole_of_it_gives(entries: Entries) -> None:
    try:
        now = of(entries)
    except PipelineError:
        # A policy asks for what nobody finds, or only somebody after it.
        reject()
    standing_of(replay(now))


def test_with_one_entry_changed_most_stands_and_what_it_judges_otherwise_does_not() -> None:
    made = replay(of([*list(BASE.items())[:3], ("content", {"reject_at": 80, "quarantine_at": 60})]))
    left = set(PASTS) - standing_of(made)
    assert 0 < len(left) < len(PASTS) // 2
    assert any(compare(made, PASTS[number]).kind is Kind.CHANGED for number in left)


def test_nothing_stands_of_another_configuration_or_without_one() -> None:
    assert standing_of(replay(THEN)) == set(PASTS)
    assert standing_of(replay(THEN, digest="ffffffffffff")) == set()
    plain = THEN.replay({e.name for e in THEN.entries})
    assert all(plain.again(past) is not None for past in PASTS.values())


def test_nothing_stands_where_entries_changed_places() -> None:
    first, *others = BASE.items()
    assert standing_of(replay(of([*others[:1], first, *others[1:]]))) == set()


def test_an_entry_that_is_gone_must_have_said_nothing() -> None:
    made = replay(of(list(BASE.items())[1:]))
    gone = {
        number
        for number, past in PASTS.items()
        if any(v.plugin == "client" and not v.silent for v in past.told.verdicts)
    }
    assert gone and standing_of(made) == set(PASTS) - gone


def test_what_an_entry_said_that_is_in_shadow_now_does_not_stand() -> None:
    first, *others = [{name: dict(options)} for name, options in BASE.items()]
    made = replay(load("default", [{**first, "shadow": True}, *others], services(), known=CATALOG))
    stands = standing_of(made)
    said = {n for n, past in PASTS.items() if any(v.plugin == "client" and not v.silent for v in past.told.verdicts)}
    assert said and stands == set(PASTS) - said


def odd(told: dict[str, Any], **changes: Any) -> bool:
    return replay(THEN).again(Past({**told, "config": DIGEST, **changes}, nobody)) is None


def test_what_is_not_sure_does_not_stand() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    assert odd(told)
    first, *others = told["verdicts"]
    assert not odd(told, verdicts=[{**first, "version": "0"}, *others]), "said by another version"
    assert not odd(told, verdicts=[{**first, "plugin": "stranger"}, *others])
    assert not odd(told, verdicts=[first, {"truncated": True}])
    found, *more = told["findings"]
    failed = {key: value for key, value in found.items() if key != "value"} | {"fault": "timeout"}
    assert not odd(told, findings=[failed, *more]), "what a fault means is said by its owner"


def test_who_said_nothing_is_not_asked_again_where_others_say_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replay(of([*list(BASE.items())[:3], ("content", {"reject_at": 80, "quarantine_at": 60})]))
    stands = standing_of(made)
    changed = [past for number, past in PASTS.items() if number not in stands]
    policy: Any = type(THEN.entries[0].policy)
    asked: list[ClientValue] = []
    monkeypatch.setattr(policy, "on_connect", lambda self, found: asked.append(found) or Verdict(Action.PROCEED))
    made = replay(of([*list(BASE.items())[:3], ("content", {"reject_at": 80, "quarantine_at": 60})]))
    assert changed and all(made.again(past) is not None for past in changed)
    assert not asked


def test_a_rollout_goes_by_the_name_of_then() -> None:
    """Without the first of two, the second has its name, and is enforced elsewhere."""
    place = {name: next(n for n in range(101) if enforced(name, n)) for name in ("client", "client#2")}
    share = f"{(place['client'] + place['client#2']) / 2:g}%"
    rest: list[dict[str, Any]] = [{name: dict(options)} for name, options in list(BASE.items())[1:]]
    second = {"client": {"reject_at": 40}, "enforce": share}
    then = load("default", [{"client": {}}, second, *rest], services(), known=CATALOG)
    now = load("default", [second, *rest], services(), known=CATALOG)
    records = record(then, mailings(50, seed=2))
    made = replay(now, then)
    for told in records.values():
        past = Past({**told, "config": DIGEST}, nobody)
        assert made.again(past) is not None or compare(made, past).kind is Kind.SAME


def enforced(name: str, share: int) -> bool:
    session = make_session(client="192.0.2.1")
    return Rollout(share / 100).covers(name, session, None)


def test_an_authors_policies_are_asked_though_their_options_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "_OURS", ("gateway",))
    policy: Any = type(THEN.entries[0].policy)
    asked: list[ClientValue] = []
    original = policy.on_connect

    def on_connect(self: Any, found: ClientValue) -> Verdict:
        asked.append(found)
        said: Verdict = original(self, found)
        return said

    monkeypatch.setattr(policy, "on_connect", on_connect)
    assert standing_of(replay(of(list(BASE.items()))))
    assert asked
