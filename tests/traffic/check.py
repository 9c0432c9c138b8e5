"""``make day``: record a day of mixed traffic, judge it again, and check what Gatepost says of it.

    python -m tests.traffic.check --transactions 20000 --seed 1

What ``gatepost replay``, ``gatepost shadow report`` and ``gatepost explain`` print is compared with counts that come
from elsewhere: from what is true of the traffic (`tests.traffic.expected`), from what the clients heard, and from
gateways that run with the other configurations and are sent the same day.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from click.testing import CliRunner

from gateway.cli import main as main_command
from tests.support.gatepost import PROGRAM
from tests.support.process import new_directory
from tests.traffic.compare import (
    REFUSED,
    contradictions,
    counts_missed,
    expectations_missed,
    foretell,
    greedy,
    lies,
    really,
    replayed,
    samples_missed,
    word,
)
from tests.traffic.day import Day, make_day
from tests.traffic.expected import expect
from tests.traffic.gateway import Key, Played, candidate, name_server, record
from tests.traffic.people import Reverse
from tests.traffic.settings import BASE, FORGETFUL, LAXER, STRICTER_DMARC, STRICTER_LISTS, Setting

CANDIDATES: Final = {"stricter-lists": STRICTER_LISTS, "stricter-dmarc": STRICTER_DMARC, "laxer": LAXER}


@dataclass(frozen=True)
class Command:
    """A command as it was run, and how long that took, in seconds."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    def json(self) -> Any:
        assert self.status in (0, 1), self.stderr
        return json.loads(self.stdout)


def inside(played: Played, *arguments: str) -> Command:
    """The same within this process, without the start of Python."""
    result = CliRunner().invoke(main_command, [*arguments, "-c", str(played.config)])
    return Command(result.exit_code, result.stdout, result.stderr, 0.0)


def gatepost(played: Played, *arguments: str) -> Command:
    """Run a command with the configuration of the gateway that took the day, as an operator does."""
    argv = [str(PROGRAM), *arguments, "-c", str(played.config)]
    began = time.monotonic()
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    return Command(result.returncode, result.stdout, result.stderr, time.monotonic() - began)


@dataclass
class Findings:
    """What was found wrong, and what is to be printed."""

    wrong: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def note(self, about: str, wrong: Iterator[str]) -> None:
        found = list(wrong)
        self.wrong += [f"{about}: {one}" for one in found]
        self.lines.append(f"  {about}: {f'{len(found)} WRONG' if found else 'agrees'}")


def check(day: Day, directory: Path, second: Sequence[str]) -> Findings:
    """Record the day and check all that is said of it; `second` names candidates that a second gateway tries out."""
    found = Findings()
    with name_server(day, directory) as nameserver:
        played = record(BASE, day, nameserver, directory / "base")
        rate = len(played.records) / played.seconds
        found.lines.append(f"{len(played.records)} transactions recorded in {played.seconds:.0f} s, {rate:.0f}/s")
        found.note("records and clients, with what is expected", expectations_missed(day, BASE, played))
        found.note("gatepost shadow report", shadow_missed(day, played))
        found.note("gatepost explain", searches_missed(day, played))
        for name, setting in CANDIDATES.items():
            other = candidate(setting, day, played, directory / f"{name}.yaml")
            found.lines.append(f"{name}:")
            _check_candidate(found, day, played, setting, other)
            if name in second:
                again = record(setting, day, nameserver, directory / name)
                found.note("a gateway with it, with what is expected", expectations_missed(day, setting, again))
                found.note(
                    "replay, with what that gateway did", lies(replayed(played, other), really(played, again, day))
                )
        found.note("entries with a memory", memories_missed(day, played, directory))
        stricter = directory / "stricter-lists.yaml"
        found.note("--fail-if", bounds_missed(played, stricter, directory))
    return found


def _check_candidate(found: Findings, day: Day, played: Played, setting: Setting, other: Path) -> None:
    """What replay says of one candidate, by what is expected of it."""
    command = gatepost(played, "replay", "--with", str(other), "--json")
    said = command.json()
    text = inside(played, "replay", "--with", str(other)).stdout
    each, foretold = replayed(played, other), foretell(day, setting, played)
    counts = ", ".join(
        f"{said[name]} {name}" for name in ("same", "newly_refused", "newly_accepted", "changed", "unknown")
    )
    found.lines.append(f"  {counts}, {said['not_judged_to_the_end']} of them not judged to the end")
    found.lines.append(f"  {said['transactions'] / command.seconds:.0f} records a second, the start of Python included")
    found.note("replay's counts, with what is expected", counts_missed(said, text, foretold))
    found.note("each transaction, with what is expected", contradictions(each, foretold))
    found.note("replay's samples", samples_missed(said, played, each))
    if Counter(c.kind.value for c in each.values()) != Counter({k: said[k] for k in said if k in _KINDS and said[k]}):
        found.wrong.append(f"what is printed is not the sum of all transactions: {said}")


_KINDS: Final = ("same", "newly_refused", "newly_accepted", "changed", "unknown")


def shadow_missed(day: Day, played: Played) -> Iterator[str]:
    """Where ``gatepost shadow report`` differs from what entries in shadow must have said, and what was done."""
    expected = expect(day, BASE)
    clients = {visit.number: visit.client for visit in day.visits}
    said = gatepost(played, "shadow", "report", "--json").json()
    if said["records"] != len(played.records):
        yield f"{said['records']} records, and there are {len(played.records)}"
    taken = sum(h.word == "taken" for key, h in played.heard.items() if key[0] in greedy(day))
    judged = sum(e.shadow is not None for e in expected.values()) + taken
    if said["entries"]["rules#2"]["judged"] != judged:
        yield f"the entry in shadow judged {said['entries']['rules#2']['judged']}, and {judged} is true"
    # Out of its share of the traffic an entry is in shadow, too.
    generic = [e for place, e in expected.items() if clients[place[0]].reverse is Reverse.GENERIC and not e.session]
    for name, would in (("rules#2", [e for e in expected.values() if e.shadow]), ("rules", generic)):
        refused = sum(e.word in REFUSED for e in would)
        wanted = _if_any(len(would) - refused), _if_any(refused)
        told = said["entries"][name]
        if (told["differences"], told["agreements"]) != wanted:
            yield f"{name} would have refused {told['differences']} and {told['agreements']}, and {wanted} is true"


def _if_any(count: int) -> dict[str, int]:
    return {"reject": count} if count else {}


def searches_missed(day: Day, played: Played) -> Iterator[str]:
    """Where ``gatepost explain`` does not find what was sent."""
    sender = next(m.sender for v in day.visits for m in v.mailings if v.again and m.sender)
    harvester = next(v.client for v in day.visits if len(v.mailings) > 1 and v.client in day.people.bots)
    keys: dict[str, set[Key]] = {sender: set(), "<>": set(), str(harvester.address): set(), "quarantined": set()}
    visits = {visit.number: visit for visit in day.visits}
    for key, heard in played.heard.items():
        visit = visits[key[0]]
        if heard.count:
            mailing = visit.mailings[heard.place % 100]
            keys.setdefault(mailing.sender or "<>", set()).add(key)
        keys.setdefault(str(visit.client.address), set()).add(key)
        if word(played, key) == "quarantined":
            keys["quarantined"].add(key)
    searches = (
        ("--sender", sender),
        ("--sender", "<>"),
        ("--client", str(harvester.address)),
        ("--outcome", "quarantined"),
    )
    numbers = {told["id"]: key for key, told in played.records.items()}
    for option, value in searches:
        told = inside(played, "explain", option, value, "--limit", "10000", "--json").json()
        if {numbers[record["id"]] for record in told} != keys[value] or not told:
            yield f"{option} {value} finds {len(told)}, and there are {len(keys[value])}"
    # The reference that a refused client was told leads to its transaction.
    key, heard = next((k, h) for k, h in sorted(played.heard.items()) if h.last.endswith(")") and h.count)
    (told,) = inside(played, "explain", heard.last.rpartition("(ref ")[2].rstrip(")"), "--json").json()
    if numbers[told["record"]["id"]] != key:
        yield f"the reference in {heard.last} leads to {told['record']['id']}"


def memories_missed(day: Day, played: Played, directory: Path) -> Iterator[str]:
    """Entries whose findings hang on what they remember are judged by those of then, and that must be said."""
    laxer = inside(played, "replay", "--with", str(directory / "laxer.yaml"), "--json").json()
    other = candidate(FORGETFUL, day, played, directory / "forgetful.yaml")
    said = inside(played, "replay", "--with", str(other), "--json").json()
    wanted = ["default: greylist", "default: ratelimit"]
    if [name for name in said["other_options"] if name not in laxer["other_options"]] != wanted:
        yield f"other options of {said['other_options']}, and {wanted} are true"
    # The limit is asked at MAIL, and records of the other pipeline's recipients do not tell what it said.
    elsewhere = sum(told["pipeline"] != "default" for told in played.records.values())
    counts = {**laxer, "same": laxer["same"] - elsewhere, "unknown": laxer["unknown"] + elsewhere}
    if any(said[k] != counts[k] for k in _KINDS):
        yield f"{said}, and without other memories {laxer}"
    text = inside(played, "replay", "--with", str(other)).stdout
    if not all(name in text for name in ("findings are those of then", *wanted)):
        yield f"it is not said: {text}"


def bounds_missed(played: Played, stricter: Path, directory: Path) -> Iterator[str]:
    """Where ``--fail-if`` does not do as it is told."""
    count = inside(played, "replay", "--with", str(stricter), "--json").json()["newly_refused"]
    share = 100 * count / len(played.records)
    same = directory / "same.yaml"
    shutil.copy(played.config, same)
    tries = (
        (stricter, "newly_refused > 0.1%", 1),
        (same, "newly_refused > 0.1%", 0),
        (stricter, f"newly_refused > {count}", 0),
        (stricter, f"newly_refused >= {count}", 1),
        (stricter, f"newly_refused > {share + 0.01:.2f}%", 0),
    )
    for other, bound, status in tries:
        command = inside(played, "replay", "--with", str(other), "--fail-if", bound)
        if command.status != status:
            yield f"{other.name} with {bound} ends with {command.status}: {command.stderr}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make day", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave configurations, records and logs, and say where")
    options = parser.parse_args()
    day = make_day(options.seed, options.transactions)
    print(f"{day.transactions} transactions in {len(day.visits)} sessions, seed {day.seed}", flush=True)
    directory = new_directory("day")
    found = check(day, directory, tuple(CANDIDATES))
    print("\n".join(found.lines))
    if options.keep:
        print(f"all of it is in {directory}")
    else:
        shutil.rmtree(directory)
    if found.wrong:
        print("\n".join(found.wrong[:50]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
