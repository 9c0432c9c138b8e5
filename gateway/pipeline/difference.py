"""What another configuration would have done with recorded transactions, beside what was done.

The unit is the transaction. Limits and relay control are not judged again: what they refused stays refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from gateway.ops.redaction import Redactor
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.past import NotTold, Past
from gateway.pipeline.plan import Entry
from gateway.pipeline.replay import Fate, Replay, Unknown
from gateway.pipeline.told import Told, UnreadableRecord, read_told
from gateway.sdk.stage import Stage

CUT: Final = "it had more findings or verdicts than a record holds"
SAMPLES: Final = 5
_REASONS: Final = 200
_REFUSED: Final = frozenset({"rejected", "deferred"})


class Kind(StrEnum):
    """How a transaction comes out, compared with how it came out."""

    SAME = "same"
    NEWLY_REFUSED = "newly_refused"
    """It was taken, and now it is refused, or more of its recipients are."""
    NEWLY_ACCEPTED = "newly_accepted"
    """It was refused, or more of its recipients were, and now it is taken."""
    CHANGED = "changed"
    """Taken or refused as it was, but otherwise: set aside, thrown away, deferred and not rejected."""
    UNKNOWN = "unknown"
    """It cannot be judged again."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One transaction. `why` says who decides now, or why that is not known; `further` is set where a transaction would
    now go on behind the stage at which its record ends."""

    kind: Kind
    then: str
    now: str
    why: str
    further: bool = False


class Difference:
    """Adds up transactions; keeps a few samples of each kind.

    `entrances` are the pipelines of listeners, by the listeners' names: they judge session and sender whichever
    pipeline the recipients have, and their findings are in the records of their own recipients only. `moved` says why
    another pipeline judges a transaction now, and nothing where none does.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Replay],
        trusted: Callable[[Any], bool],
        redactor: Redactor | None = None,
        entrances: Mapping[str, str] | None = None,
        moved: Callable[[Told], str] = lambda told: "",
    ) -> None:
        self.counts: Counter[Kind] = Counter(dict.fromkeys(Kind, 0))
        self.further = 0
        self.reasons: Counter[str] = Counter()
        self.samples: dict[Kind, list[dict[str, str]]] = {}
        self._pipelines = pipelines
        self._trusted = trusted
        self._redactor = redactor
        doors = {listener: pipelines.get(name) for listener, name in (entrances or {}).items()}
        self._doorkeepers = {listener: door.other_doorkeeper for listener, door in doors.items() if door}
        self._entrances = entrances or {}
        self._moved = moved

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, record: Mapping[str, Any] | bytes) -> Compared:
        """Judge one record again, which may be its JSON, and count it."""
        try:
            told = read_told(record)
        except UnreadableRecord as error:
            id, found = "", Compared(Kind.UNKNOWN, "", "", str(error))
        else:
            id, found = told.id, self._compare(told)
        self.counts[found.kind] += 1
        self.further += found.further
        if found.kind is Kind.UNKNOWN:
            reason = found.why if found.why in self.reasons or len(self.reasons) < _REASONS else "other reasons"
            self.reasons[reason] += 1
        samples = self.samples.setdefault(found.kind, [])
        if found.kind is not Kind.SAME and len(samples) < SAMPLES:
            samples.append({"id": id, "then": found.then, "now": found.now, "why": found.why})
        return found

    def _compare(self, told: Told) -> Compared:
        then, name = told.outcome, told.pipeline
        if "," in name or told.copies:
            return Compared(Kind.UNKNOWN, then, "", "it was queued in several copies")
        replay = self._pipelines.get(name)
        if replay is None:
            return Compared(Kind.UNKNOWN, then, "", f"there is no pipeline {name}")
        if why := self._moved(told):
            return Compared(Kind.UNKNOWN, then, "", why)
        entrance = self._entrances.get(told.listener, name)
        if entrance != name and (entry := self._doorkeepers.get(told.listener)):
            why = f"{entry} of pipeline {entrance} is not as it was, and what it would say of the session is not known"
            return Compared(Kind.UNKNOWN, then, "", why)
        try:
            past = Past(told, self._trusted, self._redactor)
        except NotTold as error:
            return Compared(Kind.UNKNOWN, then, "", str(error))
        if past.cut:
            return Compared(Kind.UNKNOWN, then, "", CUT)
        fate = replay.again(past, own_door=entrance == name)
        if fate is None:
            return Compared(Kind.SAME, past.outcome, past.outcome, "")
        return _compared(past, fate)

    def to_json(self) -> dict[str, Any]:
        return {
            "transactions": self.total,
            **{kind.value: self.counts[kind] for kind in Kind},
            "not_judged_to_the_end": self.further,
            "unknown_because": dict(self.reasons.most_common()),
            "samples": {kind.value: samples for kind, samples in self.samples.items() if samples},
        }


def difference(
    then: Mapping[str, Pipeline],
    now: Mapping[str, Pipeline],
    config: str,
    trusted: Callable[[Any], bool],
    redactor: Redactor | None = None,
    entrances: Mapping[str, str] | None = None,
    moved: Callable[[Told], str] = lambda told: "",
) -> Difference:
    """For records of the pipelines of `then`, of the configuration whose digest is `config`, beside those of `now`."""
    replays = {}
    for name, pipeline in now.items():
        before = then.get(name)
        pair = before.entries if before else (), pipeline.entries
        basis = (before.plan, config) if before else None
        replays[name] = pipeline.replay(unchanged(*pair), counterparts(*pair), basis)
    return Difference(replays, trusted, redactor, entrances, moved)


def compare(replay: Replay, past: Past) -> Compared:
    """How one transaction comes out now, beside how it came out."""
    return _compared(past, replay.judge(past, past.reached))


def _compared(past: Past, fate: Fate | Unknown) -> Compared:
    if isinstance(fate, Unknown):
        return Compared(Kind.UNKNOWN, past.told.outcome, "", f"{fate.entry}: {fate.why}")
    return _classify(past, past.outcome, fate, past.reached)


def _classify(past: Past, then: str, fate: Fate, reached: Stage) -> Compared:
    why = ": ".join(filter(None, (fate.entry, fate.reply)))
    unfinished = then in ("aborted", "disconnected")
    was_refused = then in _REFUSED
    if was_refused and _by_limit(past, reached):
        # The pipeline had let it pass, and a limit refused it: that stands, unless the pipeline refuses it now.
        return Compared(Kind.CHANGED if fate.word in _REFUSED - {then} else Kind.SAME, then, fate.word, why)
    refused = fate.word in _REFUSED
    before = {to.address for to in past.told.recipients if not to.taken}
    more, fewer = set(fate.refused) - before, before - set(fate.refused)
    if refused and not was_refused:
        return Compared(Kind.NEWLY_REFUSED, then, fate.word, why)
    if was_refused and not refused:
        return Compared(Kind.NEWLY_ACCEPTED, then, fate.word, why, further=reached is not Stage.MESSAGE)
    if (more or fewer) and not refused:
        # What is refused as a whole now was so then: which recipients it was refused for makes no difference.
        kind = Kind.NEWLY_REFUSED if more else Kind.NEWLY_ACCEPTED
        return Compared(kind, then, fate.word, ", ".join(sorted(more or fewer)), further=not more)
    if fate.word == then or (unfinished and not refused):
        return Compared(Kind.SAME, then, fate.word, why)
    return Compared(Kind.CHANGED, then, fate.word, why)


def _by_limit(past: Past, reached: Stage) -> bool:
    """Whether no verdict refused it, but a limit of the protocol, the spool or the configuration."""
    if reached is Stage.RCPT:
        return not any(past.verdict_on(to.address) for to in past.told.recipients)
    return not past.verdict_on()


def counterparts(then: tuple[Entry, ...], now: tuple[Entry, ...]) -> dict[str, str]:
    """Which entry of then each entry of now is, by their names; one that is new is left out.

    The second of three `access` is ``access#2``, until the first is taken out. So those that are the same in all their
    options belong together, and what is left in the order of the list.
    """
    pairs: dict[str, str] = {}
    left = {entry.name: entry for entry in then}
    for alike in (_signature, _kind):
        for entry in now:
            if entry.name in pairs:
                continue
            same = next((name for name, before in left.items() if alike(before) == alike(entry)), None)
            if same is not None:
                pairs[entry.name] = same
                del left[same]
    return pairs


def unchanged(then: tuple[Entry, ...], now: tuple[Entry, ...]) -> set[str]:
    """Names of entries that are the same in both pipelines: plugin, policy, version and all options."""
    before = {entry.name: entry for entry in then}
    pairs = counterparts(then, now)
    return {e.name for e in now if e.name in pairs and _signature(before[pairs[e.name]]) == _signature(e)}


def other_options(then: tuple[Entry, ...], now: tuple[Entry, ...]) -> set[str]:
    """Names of entries whose plugin is the same with other options: what it found was found by those of then."""
    before = {entry.name: entry.plugin for entry in then}
    pairs = counterparts(then, now)
    return {
        entry.name
        for entry in now
        if entry.plugin and (plugin := before.get(pairs.get(entry.name, ""))) and plugin.options != entry.plugin.options
    }


def _kind(entry: Entry) -> tuple[Any, ...]:
    return type(entry.plugin), None if entry.plugin else type(entry.policy)


def _signature(entry: Entry) -> tuple[Any, ...]:
    plugin, policy = entry.plugin, entry.policy
    return (
        type(plugin),
        plugin.options.model_dump(mode="json") if plugin else None,
        type(policy),
        policy.version if policy else "",
        policy.options.model_dump(mode="json") if policy else None,
        entry.on_error,
        entry.shadow,
        entry.rollout,
    )
