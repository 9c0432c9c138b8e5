"""Recorded traffic judged again, beside the same traffic judged anew by the other configuration."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pipeline.difference import CUT, Compared, Difference, Kind, counterparts, other_options, unchanged
from gateway.pipeline.loader import Catalog, Pipeline, StageDeadlines, load
from gateway.pipeline.past import NotTold, Past
from gateway.pipeline.replay import Fate, Unknown
from gateway.sdk import (
    PROCEED,
    Message,
    Mime,
    MimePart,
    MimeText,
    Policy,
    PolicyOptions,
    Stage,
    Transaction,
    Verdict,
    reject,
)
from policies.rules.policy import Rules
from tests.pipeline.setting import A, B, finder, hook, plugin, policy, services
from tests.pipeline.setting import Counter as Work
from tests.pipeline.traffic import CATALOG, Mailing, Options, mailings, pipeline, record

RULES = Catalog({}, {"rules": Rules})
TRAFFIC = mailings(400, seed=1)
BASE: Options = {
    "client": {"reject_at": 95, "defer_at": 90},
    "sender-value": {"reject_at": 92},
    "recipient-value": {"reject_at": 85, "defer_at": 75},
    "content": {"reject_at": 80, "quarantine_at": 70},
}


def nobody(client: Any) -> bool:
    return False


def replay(now: Options, *, then: Options | None = None) -> Difference:
    candidate = pipeline(now)
    same = unchanged(pipeline(then).entries, candidate.entries) if then is not None else ()
    return Difference({"default": candidate.replay(same)}, nobody)


def refused(told: dict[str, Any]) -> set[str]:
    return {r["address"] for r in told["recipients"] if not r["reply"].startswith("2")}


def ended(told: dict[str, Any]) -> str:
    """How it ended for the client: who has no recipient taken gives up, but was refused."""
    if told["outcome"] == "aborted" and len(refused(told)) == len(told["recipients"]):
        return "deferred" if told["recipients"][-1]["reply"].startswith("4") else "rejected"
    return str(told["outcome"])


def kind_of(then: dict[str, Any], now: dict[str, Any]) -> Kind:
    """How two records of the same mailing differ, worked out from what the clients heard."""
    taken = ("accepted", "quarantined", "discarded", "aborted")
    if ended(then) in taken and ended(now) not in taken:
        return Kind.NEWLY_REFUSED
    if ended(then) not in taken and ended(now) in taken:
        return Kind.NEWLY_ACCEPTED
    if ended(now) in taken and refused(now) - refused(then):
        return Kind.NEWLY_REFUSED
    if ended(now) in taken and refused(then) - refused(now):
        return Kind.NEWLY_ACCEPTED
    return Kind.SAME if ended(then) == ended(now) else Kind.CHANGED


RECORDS = record(BASE, TRAFFIC)


def test_the_same_configuration_changes_nothing() -> None:
    difference = replay(BASE)
    for told in RECORDS.values():
        assert difference.add(told).kind is Kind.SAME
    assert difference.total == len(TRAFFIC) == difference.counts[Kind.SAME]
    assert {ended(told) for told in RECORDS.values()} == {"accepted", "quarantined", "rejected", "deferred", "aborted"}


THRESHOLD = st.integers(0, 100)
OPTIONS = st.fixed_dictionaries({"reject_at": THRESHOLD, "defer_at": THRESHOLD, "quarantine_at": THRESHOLD})


@settings(max_examples=10, deadline=None)
@given(st.fixed_dictionaries({name: OPTIONS for name in BASE}))
def test_a_replay_says_what_the_other_configuration_really_does(now: Options) -> None:
    traffic = TRAFFIC[:60]
    anew = record(now, traffic)
    difference = replay(now)
    for mailing in traffic:
        then = RECORDS[mailing.number]
        compared = difference.add(then)
        if compared.kind is Kind.UNKNOWN:
            # Only where it now goes on behind the stage at which its record ends.
            assert then["outcome"] in ("rejected", "deferred") or refused(then)
            continue
        real = anew[mailing.number]
        if compared.further:
            # Nothing is recorded of what comes after: there it may be refused for another reason.
            continue
        assert compared.kind is kind_of(then, real), (mailing, compared)
        if then["outcome"] != "aborted":
            assert compared.now == ended(real)


CHANGES: list[tuple[Options, Kind]] = [
    ({**BASE, "recipient-value": {"reject_at": 60}}, Kind.NEWLY_REFUSED),
    ({**BASE, "content": {"reject_at": 90, "discard_at": 70}}, Kind.NEWLY_ACCEPTED),
    ({**BASE, "content": {"reject_at": 80, "discard_at": 60}}, Kind.CHANGED),
]


@pytest.mark.parametrize(("now", "kind"), CHANGES)
def test_counts_agree_with_those_of_a_second_run(now: Options, kind: Kind) -> None:
    difference, expected = replay(now), Counter[Kind]()
    anew = record(now, TRAFFIC)
    for number, then in RECORDS.items():
        difference.add(then)
        expected[kind_of(then, anew[number])] += 1
    assert difference.counts[kind] > 0
    assert Counter(difference.counts) == Counter({**dict.fromkeys(Kind, 0), **expected})


def test_a_transaction_that_goes_further_now_is_counted_as_such() -> None:
    lenient: Options = {**BASE, "client": {}}
    difference = replay(lenient)
    for told in RECORDS.values():
        difference.add(told)
    early = sum(not told["recipients"] and told["sender"] is None for told in RECORDS.values())
    assert 0 < difference.further == early == difference.counts[Kind.NEWLY_ACCEPTED]


def test_a_finding_that_nobody_looked_up_makes_it_unknown_with_the_reason() -> None:
    difference = replay(BASE)
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    without = {**told, "findings": [f for f in told["findings"] if f["finding"] != "SenderValue"]}
    compared = difference.add(without)
    assert compared.kind is Kind.UNKNOWN and compared.why == "sender-value: SenderValue was not looked up"
    assert difference.to_json()["unknown_because"] == {compared.why: 1}


def test_an_unchanged_entry_that_cannot_be_asked_again_says_what_it_said_then() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "quarantined")
    without = {**told, "findings": [f for f in told["findings"] if f["finding"] != "ContentValue"]}
    assert replay(BASE).add(without).kind is Kind.UNKNOWN
    assert replay(BASE, then=BASE).add(without).kind is Kind.SAME
    changed: Options = {**BASE, "content": {"reject_at": 81, "quarantine_at": 70}}
    assert replay(changed, then=BASE).add(without).kind is Kind.UNKNOWN


def test_what_a_limit_refused_stays_refused() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted" and len(t["recipients"]) == 1)
    limit = {**told, "outcome": "rejected", "reply": "552 5.3.4 message is too big"}
    compared = replay(BASE).add(limit)
    assert (compared.kind, compared.then) == (Kind.SAME, "rejected")


def test_copies_and_unknown_pipelines_and_garbage_are_unknown() -> None:
    told = next(iter(RECORDS.values()))
    difference = replay(BASE)
    for strange in (
        {**told, "copies": ["a", "b"]},
        {**told, "pipeline": "default, relaxed"},
        {**told, "pipeline": "gone"},
        {**told, "client": {"ip": "nonsense"}},
        {},
        {"pipeline": "default"},
    ):
        assert difference.add(strange).kind is Kind.UNKNOWN
    assert difference.total == 6


def test_entries_are_compared_by_all_that_matters() -> None:
    then, now = pipeline(BASE).entries, pipeline({**BASE, "content": {}}).entries
    assert unchanged(then, now) == {"client", "sender-value", "recipient-value"}
    assert other_options(then, now) == {"content"}
    assert unchanged((), now) == set() == other_options((), now)


class Looks(Policy):
    """Looks into the message."""

    name = "looks"
    Options = PolicyOptions

    def on_message(self, message: Message) -> Verdict:
        return PROCEED


def test_a_policy_that_needs_the_message_cannot_be_asked_again() -> None:
    made = load("default", ["looks"], services(), known=Catalog({}, {"looks": Looks}))
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    found = made.replay().judge(Past(told, nobody), Stage.MESSAGE)
    assert found == Unknown("looks", "the message itself is not recorded")


def of(*entries: Any) -> Pipeline:
    return load("default", entries, services(), known=CATALOG)


def test_entries_are_known_by_what_they_are_and_not_by_their_number() -> None:
    strict, lax = {"client": {"reject_at": 95}}, {"client": {"reject_at": 10}}
    then = of(strict, lax, {"sender-value": {"reject_at": 92}})
    assert counterparts(then.entries, of(lax).entries) == {"client": "client#2"}
    assert unchanged(then.entries, of(lax).entries) == {"client"}
    turned = of(lax, {"client": {"reject_at": 3}}, {"content": {}}, "sender-value")
    assert counterparts(then.entries, turned.entries) == {
        "client": "client#2",
        "client#2": "client",
        "sender-value": "sender-value",
    }
    assert unchanged(then.entries, turned.entries) == {"client"}
    assert other_options(then.entries, turned.entries) == {"client#2", "sender-value"}


def test_the_finding_of_another_entry_is_not_taken_for_that_of_a_new_one() -> None:
    then, now = of("client"), of("client", {"client": {"reject_at": 0}})
    found = {"stage": "connect", "plugin": "client", "finding": "ClientValue", "ms": 1.0, "value": {"value": 7}}
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    past = Past({**told, "findings": [found]}, nobody)
    pairs = counterparts(then.entries, now.entries)
    unknown = now.replay((), pairs).judge(past, Stage.MESSAGE)
    assert unknown == Unknown("client#2", "ClientValue was not looked up")
    # Of an entry that is there no more it is taken: it may be the same one under another name.
    assert isinstance(of({"client": {"reject_at": 0}}).replay((), {}).judge(past, Stage.MESSAGE), Fate)


def test_what_was_refused_recipient_by_recipient_and_is_refused_at_once_now_is_not_accepted() -> None:
    difference = replay({**BASE, "client": {"reject_at": 0}})
    kinds = Counter(difference.add(told).kind for told in RECORDS.values())
    assert kinds[Kind.NEWLY_ACCEPTED] == 0 and kinds[Kind.NEWLY_REFUSED] > 0 and difference.further == 0


def test_it_says_who_sets_aside() -> None:
    difference = replay({**BASE, "content": {"quarantine_at": 0}})
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    compared = difference.add(told)
    assert (compared.kind, compared.now, compared.why) == (Kind.CHANGED, "quarantined", "content")


def test_a_limit_that_ended_it_before_the_message_was_judged_needs_no_findings_of_it() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted" and len(t["recipients"]) == 1)
    before = {name: [n for n in told[name] if n["stage"] != "message"] for name in ("findings", "verdicts")}
    limit = {**told, **before, "outcome": "rejected", "reply": "552 5.3.4 message is too big"}
    assert replay(BASE).add(limit).kind is Kind.SAME
    assert replay({**BASE, "client": {"reject_at": 0}}).add(limit).kind is Kind.SAME
    assert replay({**BASE, "client": {"defer_at": 0}}).add(limit).kind is Kind.CHANGED


def test_a_message_without_an_octet_is_judged_to_its_end() -> None:
    told = next(t for t in RECORDS.values() if any(v["stage"] == "message" and "reply" in v for v in t["verdicts"]))
    empty = {**told, "size": 0}
    assert empty["outcome"] == "rejected"
    assert replay(BASE, then=BASE).add(empty).kind is Kind.SAME
    assert replay({}, then=BASE).add(empty).kind is Kind.NEWLY_ACCEPTED


def test_what_a_fault_meant_for_others_is_not_taken_for_what_its_entry_said() -> None:
    asker = policy("asker", hook(Stage.MAIL, [A], lambda a: PROCEED), hook(Stage.MESSAGE, [A], lambda a: PROCEED))
    own = policy("own", hook(Stage.MESSAGE, [Message], lambda message: reject("7.1", "no")))
    failing = plugin("failing", finder(Stage.MAIL, A, [Transaction], Work(OSError("gone"))), policy=own)
    entries = ["asker", {"failing": None, "on_error": "proceed"}]
    made = load("default", entries, services(), known=Catalog({"failing": failing}, {"asker": asker}))
    (told,) = record(made, mailings(1, seed=3)).values()
    assert told["outcome"] == "rejected"
    difference = Difference({"default": made.replay({entry.name for entry in made.entries})}, nobody)
    assert difference.add(told).kind is Kind.SAME


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("!session.esmtp", "session.esmtp is not recorded"),
        ("parameters.smtputf8", "what MAIL declared beside the sender is not recorded"),
        ("parameters.ret == null", "what MAIL declared beside the sender is not recorded"),
        ("parameters.size > 10", "what MAIL declared beside the sender is not recorded"),
    ],
)
def test_what_no_record_holds_is_not_guessed(rule: str, why: str) -> None:
    made = load("default", [{"rules": [{"when": rule, "then": {"reject": "5.7.1 no"}}]}], services(), known=RULES)
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    assert made.replay().judge(Past(told, nobody), Stage.MESSAGE) == Unknown("rules", why)
    assert made.inquiry().ask(Past(told, nobody)).unknown == why
    (same,) = record(made, mailings(1, seed=3)).values()
    difference = Difference({"default": made.replay({"rules"})}, nobody)
    assert difference.add(same).kind is Kind.SAME, "as it is unchanged, it says what it said"


@pytest.mark.parametrize("on_error", ["proceed", "defer"])
def test_what_was_found_after_its_stage_was_over_is_not_taken_for_what_was_known_then(on_error: str) -> None:
    # Known from RCPT on.
    gate = asyncio.Event()

    async def wait(txn: Transaction) -> A:
        await gate.wait()
        return A()

    slow = plugin("slow", finder(Stage.MAIL, A, [Transaction], wait))
    needs = plugin("needs", finder(Stage.MAIL, B, [A]))
    asker = policy(
        "asker",
        hook(Stage.MAIL, [B], lambda b: reject("7.1", "no")),
        hook(Stage.RCPT, [], lambda: gate.set() or PROCEED),
        hook(Stage.DATA, [B], lambda b: PROCEED),
    )
    entries: list[Any] = [{"slow": None, "on_error": on_error}, "needs", "asker"]
    known = Catalog({"slow": slow, "needs": needs}, {"asker": asker})
    made = load("default", entries, services(), known=known, deadlines=StageDeadlines(mail=0.01))
    (told,) = record(made, mailings(1, seed=3)).values()
    assert told["outcome"] == {"proceed": "accepted", "defer": "deferred"}[on_error]
    assert Difference({"default": made.replay()}, nobody).add(told).kind is Kind.SAME


def test_texts_of_a_message_are_in_no_record() -> None:
    text = MimeText("1", "text/plain", "buy now")
    found = Mime((MimePart("1", "text/plain"),), 9, texts=(text,))
    mime = plugin("mime", finder(Stage.MESSAGE, Mime, [Message], Work(found)))
    rule = {"when": 'mime.texts.exists(t, t.text.contains("buy"))', "then": {"reject": "5.7.1 no"}}
    known = Catalog({"mime": mime}, {"rules": Rules})
    made = load("default", ["mime", {"rules": [rule]}], services(), known=known)
    (told,) = record(made, mailings(1, seed=3)).values()
    assert told["outcome"] == "rejected"
    assert made.inquiry().ask(Past(told, nobody)).unknown == "Mime.texts is not recorded"
    assert Difference({"default": made.replay({"mime", "rules"})}, nobody).add(told).kind is Kind.SAME
    other = load("default", ["mime", {"rules": [{**rule, "when": "mime.size > 5"}]}], services(), known=known)
    assert isinstance(other.replay().judge(Past(told, nobody), Stage.MESSAGE), Fate), "the rest of it is known"


def test_a_record_that_was_cut_is_not_judged_again() -> None:
    told = next(t for t in RECORDS.values() if t["outcome"] == "accepted")
    for name in ("findings", "verdicts"):
        compared = replay(BASE, then=BASE).add({**told, name: [*told[name], {"truncated": True}]})
        assert (compared.kind, compared.why) == (Kind.UNKNOWN, CUT)


def test_what_another_pipeline_would_say_of_the_session_now_is_not_known() -> None:
    told = {**next(t for t in RECORDS.values() if t["outcome"] == "accepted"), "pipeline": "other"}
    pipelines = {"default": pipeline(BASE), "other": pipeline(BASE)}

    def compare(door: Options) -> Compared:
        now = pipeline(door)
        same = unchanged(pipelines["default"].entries, now.entries)
        replays = {"default": now.replay(same), "other": pipelines["other"].replay()}
        return Difference(replays, nobody, entrances={told["listener"]: "default"}).add(told)

    assert compare(BASE).kind is Kind.SAME
    assert compare({**BASE, "content": {"reject_at": 1}}).kind is Kind.SAME
    other = compare({**BASE, "client": {"reject_at": 50}})
    assert other.kind is Kind.UNKNOWN and other.why.startswith("client of pipeline default is not as it was")


def test_a_record_that_is_none_is_not_told() -> None:
    with pytest.raises(NotTold, match="cannot be read"):
        Past({"id": "x"}, nobody)


def test_traffic_is_the_same_for_the_same_seed() -> None:
    assert mailings(50, 7) == mailings(50, 7) != mailings(50, 8)
    assert isinstance(TRAFFIC[0], Mailing) and set(CATALOG.names) == set(BASE)
