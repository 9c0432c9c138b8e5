"""``make durability``: all scenes of the proof, several times each, and the report on them.

Ends with status 1 when an acknowledged message is missing, or a planted fault was not found.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.crash import scenes, shared
from tests.crash.count import Result
from tests.crash.planted import FAULTS, Fault
from tests.crash.report import Found, Report, machine
from tests.support import warm
from tests.support.gatepost import ROOT

_PARTS: dict[str, Sequence[Callable[[], Result]]] = {
    "killed": scenes.KILLS,
    "cut": scenes.CUTS,
    "troubled": scenes.TROUBLE,
    "shared": shared.SCENES,
    "clocks": scenes.CLOCKS,
}


def _play(part: str, scene: Callable[[], Result], rounds: int) -> Result:
    results = [scene() for _ in range(rounds)]
    total = sum(results[1:], results[0])
    print(f"{part:<10}{total.name:<50}{total.acknowledged:>8} acknowledged{total.lost:>6} lost", flush=True)
    return total


def _find(fault: Fault, rounds: int) -> Found:
    found = []
    for _ in range(rounds):
        planted, sound = (scenes.play(fault, planted=planted) for planted in (True, False))
        found.append(Found(fault.name, fault.text, fault.scene.value, planted, int(planted.lost > 0), sound))
    total = sum(found[1:], found[0])
    with_it, without = total.planted.lost, total.sound.lost
    print(f"{'planted':<10}{fault.name:<50}{with_it:>8} missing with it,{without:>6} without", flush=True)
    return total


def prove(rounds: int, parts: Sequence[str]) -> Report:
    """Play these parts. What Gatepost says goes to standard error."""
    played = {
        name: tuple(_play(name, scene, rounds) for scene in scenes) if name in parts else ()
        for name, scenes in _PARTS.items()
    }
    planted = tuple(_find(fault, rounds) for fault in FAULTS.values()) if "planted" in parts else ()
    return Report(
        rounds,
        machine(),
        played["killed"],
        played["cut"],
        played["troubled"],
        played["shared"],
        played["clocks"],
        planted,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make durability", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each scene is played")
    parser.add_argument("--only", choices=[*_PARTS, "planted"], help="this part only; the report is not written then")
    parser.add_argument("--directory", type=Path, default=ROOT / "docs", help="where the report is written")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    log = ROOT / "var/durability.log"
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("w") as file, contextlib.redirect_stderr(file):
            report = prove(options.rounds, [options.only] if options.only else [*_PARTS, "planted"])
    finally:
        warm.close()
    if options.only is None:
        report.write(options.directory)
    for problem in report.problems:
        print(problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
