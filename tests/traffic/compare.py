"""What replay says of a recorded day, compared with what is true: by what is expected, and by what really happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway import app
from gateway.config import load
from gateway.pipeline.difference import Compared, Kind, difference
from tests.traffic import day as days
from tests.traffic.day import Day
from tests.traffic.expected import Expected, Place, Who, expect
from tests.traffic.gateway import Key, Played
from tests.traffic.settings import BASE, Setting

REFUSED: Final = frozenset({"rejected", "deferred"})
_COUNTED: Final = (Kind.SAME, Kind.NEWLY_REFUSED, Kind.NEWLY_ACCEPTED, Kind.CHANGED, Kind.UNKNOWN)


def expectations_missed(day: Day, setting: Setting, played: Played) -> Iterator[str]:
    """Where records or clients tell something else than what is expected."""
    if played.heard.keys() != played.records.keys():
        yield f"heard and recorded differ: {sorted(played.heard.keys() ^ played.records.keys())[:5]}"
    expected = expect(day, setting)
    found: dict[Place, Key] = {(h.number, h.place): key for key, h in played.heard.items()}
    for place, wanted in expected.items():
        key = found.get(place)
        if key is None:
            yield f"{place} did not happen: {wanted}"
            continue
        heard = played.heard[key]
        told = word(played, key)
        refused = frozenset(recipient for recipient, _ in wanted.refused)
        if (told, heard.refused) != (wanted.word, refused) or (heard.count == 0) is not wanted.session:
            yield f"{place}: expected {wanted}, and it was {told}: {heard}"
    bulk = greedy(day)
    if more := [place for place in found if place not in expected and place[0] not in bulk]:
        yield f"not expected at all: {sorted(more)[:5]}"
    taken = sum(h.word == "taken" for key, h in played.heard.items() if key[0] in bulk)
    if taken != min(setting.allowance, sum(len(v.mailings) for v in day.visits if v.number in bulk)):
        yield f"{taken} messages of the greedy client were taken"


def greedy(day: Day) -> frozenset[int]:
    """Numbers of the greedy client's visits: which of its messages find room is a matter of moments."""
    return frozenset(v.number for v in day.visits if v.mailings[0].kind is days.Kind.GREEDY)


def word(played: Played, key: Key) -> str:
    """How it ended: as the client heard it, and where it heard that the message is taken, what became of it then."""
    heard = played.heard[key].word
    if heard == "given-up":
        return "aborted"
    outcome = str(played.records[key]["outcome"])
    assert heard != "taken" or outcome in ("accepted", "quarantined", "discarded"), (key, outcome)
    return outcome if heard == "taken" else heard


def kind(then: str, now: str, more: bool, fewer: bool) -> Kind:
    """How two ends differ: their words, and whether of the recipients now more are refused, or fewer."""
    if now in REFUSED:
        return Kind.NEWLY_REFUSED if then not in REFUSED else Kind.SAME if now == then else Kind.CHANGED
    if then in REFUSED:
        return Kind.NEWLY_ACCEPTED
    if more or fewer:
        return Kind.NEWLY_REFUSED if more else Kind.NEWLY_ACCEPTED
    return Kind.SAME if now == then else Kind.CHANGED


@dataclass(frozen=True)
class Foretold:
    """What replay should say of a transaction.

    `open` says that entries come to it which had no turn then, or that its session is judged by entries of which its
    record does not tell: it may also say that it does not know, or how far it knows.
    """

    kind: Kind
    open: bool = False


def foretell(day: Day, setting: Setting, played: Played) -> dict[Key, Foretold]:
    """What a replay of the day by another setting should say, from what is expected of both."""
    then, now = expect(day, BASE), expect(day, setting)
    gone = {Who.DROP_LIST} if not setting.drop_list else set()
    gone |= {Who.SENDER_LIST} if not setting.sender_list else set()
    other_doorkeeper = setting.generic_share != BASE.generic_share or setting.allowance != BASE.allowance
    found: dict[Key, Foretold] = {}
    for key, heard in played.heard.items():
        before = then.get((heard.number, heard.place))
        if before is None:
            # The greedy client's, whose bucket stays the same.
            found[key] = Foretold(Kind.SAME)
            continue
        after = now.get((heard.number, heard.place)) or now[heard.number, 0]
        released = bool(gone & {before.who, *(who for _, who in before.refused)})
        elsewhere = played.records[key]["pipeline"] != "default"
        found[key] = Foretold(_expected_kind(before, after), released or (elsewhere and other_doorkeeper))
    return found


def _expected_kind(before: Expected, after: Expected) -> Kind:
    old, new = (frozenset(recipient for recipient, _ in e.refused) for e in (before, after))
    return kind(before.word, after.word, bool(new - old), bool(old - new))


def really(then: Played, now: Played, day: Day) -> dict[Key, Kind]:
    """How what the clients of a second gateway heard differs from what those of the first did."""
    bulk = greedy(day)
    found: dict[Key, Kind] = {}
    for key, before in then.heard.items():
        other = key if key in now.heard else (key[0], 0)
        if key[0] in bulk or other not in now.heard:
            continue
        after = now.heard[other]
        more, fewer = bool(after.refused - before.refused), bool(before.refused - after.refused)
        found[key] = kind(word(then, key), word(now, other), more, fewer)
    return found


def replayed(played: Played, other: Path) -> dict[Key, Compared]:
    """What replay says, transaction by transaction."""
    config = load(str(played.config))
    then, now = (app.load_pipelines(one) for one in (config, load(str(other))))
    entrances = {str(listener.address): listener.pipeline for listener in config.listeners}
    compared = difference(then, now, config.digest, lambda client: False, entrances=entrances)
    return {key: compared.add(told) for key, told in played.records.items()}


def contradictions(found: Mapping[Key, Compared], foretold: Mapping[Key, Foretold]) -> Iterator[str]:
    """Where replay says something else than is foretold."""
    for key, compared in found.items():
        wanted = foretold[key]
        unknown = compared.kind is Kind.UNKNOWN or compared.further
        if compared.kind is not wanted.kind and not (wanted.open and unknown):
            yield f"{key}: {compared}, and {wanted} is true"
        elif compared.kind is Kind.UNKNOWN and not wanted.open:
            yield f"{key}: {compared.why}, though all is known"


def lies(found: Mapping[Key, Compared], real: Mapping[Key, Kind]) -> Iterator[str]:
    """Where replay says something else than what happens. Where it says that it does not know, it says nothing."""
    for key, kind_ in real.items():
        compared = found[key]
        if compared.kind is not Kind.UNKNOWN and not compared.further and compared.kind is not kind_:
            yield f"{key}: {compared}, and really {kind_}"


def counts_missed(said: Mapping[str, Any], text: str, foretold: Mapping[Key, Foretold]) -> Iterator[str]:
    """Where the printed counts are not the foretold ones. What is open may be counted as unknown, or as accepted."""
    sure = Counter(f.kind for f in foretold.values() if not f.open)
    open_ = Counter(f.kind for f in foretold.values() if f.open)
    if said["transactions"] != len(foretold) or sum(said[k] for k in _COUNTED) != len(foretold):
        yield f"{said['transactions']} transactions, and there were {len(foretold)}"
    for kind_ in _COUNTED:
        most = sure[kind_] + (open_.total() if kind_ in (Kind.UNKNOWN, Kind.NEWLY_ACCEPTED) else open_[kind_])
        if not sure[kind_] <= said[kind_] <= most:
            yield f"{said[kind_]} {kind_}, and there were {sure[kind_]} to {most}"
        if not any(line.split()[:1] == [str(said[kind_])] for line in text.splitlines()):
            yield f"{kind_}: {said[kind_]} is not in the text"
    if sum(said["unknown_because"].values()) != said["unknown"]:
        yield f"reasons do not add up: {said['unknown_because']}"


def samples_missed(said: Mapping[str, Any], played: Played, found: Mapping[Key, Compared]) -> Iterator[str]:
    """Samples that are none of their kind."""
    by_id = {told["id"]: key for key, told in played.records.items()}
    for kind_, samples in said["samples"].items():
        if not samples or any(found[by_id[sample["id"]]].kind != kind_ for sample in samples):
            yield f"samples of {kind_} are not all of that kind: {samples}"
