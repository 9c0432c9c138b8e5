"""The report on durability: the page is what the numbers say, all scenes stand in it, and it can say no."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import asdict, replace

from tests.crash import scenes, shared
from tests.crash.count import Load, Result, count
from tests.crash.planted import FAULTS
from tests.crash.report import Found, Report, machine, of_counts, render
from tests.support.gatepost import ROOT

GOOD = Result("step", 3, 100, 101, 2, 0, 1)
BAD = replace(GOOD, lost=1, delivered=100)
FAULT = Found("name", "left out", "scene", replace(BAD, lost=40), 2, GOOD)
REPORT = Report(2, {"SQLite": "3"}, (GOOD,), (GOOD,), (GOOD,), (GOOD,), (GOOD,), (FAULT,))


def checked_in() -> Report:
    return Report.from_json(json.loads((ROOT / "docs/durability.json").read_text()))


def test_the_page_is_what_the_numbers_beside_it_say() -> None:
    assert (ROOT / "docs/durability.md").read_text() == render(checked_in())


def test_the_report_in_the_tree_is_of_all_scenes_and_found_nothing_missing() -> None:
    report = checked_in()
    assert report.problems == []
    assert [len(part) for part in (report.killed, report.cut, report.troubled, report.shared, report.clocks)] == [
        len(part) for part in (scenes.KILLS, scenes.CUTS, scenes.TROUBLE, shared.SCENES, scenes.CLOCKS)
    ]
    assert [row.name for row in report.shared[: len(shared.STEPS)]] == list(shared.STEPS)
    assert [row.name for row in report.killed[: len(scenes.STEPS)]] == list(scenes.STEPS)
    assert [(row.name, row.text, row.scene) for row in report.planted] == [
        (fault.name, fault.text, fault.scene) for fault in FAULTS.values()
    ]


def test_a_report_names_the_machine_by_its_kind_only() -> None:
    assert set(machine()) == set(checked_in().machine)
    assert socket.gethostname() not in machine().values()
    assert not re.search(r"(?:^|[\s\"])/\w", json.dumps(machine()))


def test_a_report_comes_back_from_its_json() -> None:
    assert Report.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_a_run_of_the_tests_makes_a_report_of_its_own_when_it_played_something_of_each_part() -> None:
    counts = [(part, asdict(GOOD)) for part in ("killed", "cut", "shared", "clocks")]
    assert of_counts(counts) is None
    made = of_counts([*counts, ("planted", asdict(replace(FAULT, rounds=1)))])
    assert made is not None and not made.problems
    assert (made.killed, made.troubled, made.clocks) == ((GOOD,), (), (GOOD,)) and "**40**" in render(made)


def test_what_is_missing_or_torn_is_no_proof() -> None:
    assert REPORT.problems == [] and REPORT.to_json()["proved"] and "Not proved" not in render(REPORT)
    for part in ("killed", "cut", "troubled", "shared", "clocks"):
        for bad in (BAD, replace(GOOD, torn=1), replace(GOOD, acknowledged=0)):
            report = replace(REPORT, **{part: (GOOD, bad)})
            assert len(report.problems) == 1 and not report.to_json()["proved"]
            assert f"**Not proved.**\n\n- {report.problems[0]}\n" in render(report)


def test_a_fault_that_was_not_found_each_time_is_no_proof_and_neither_is_a_loss_without_it() -> None:
    for fault in (replace(FAULT, rounds=1), replace(FAULT, sound=BAD)):
        assert len(replace(REPORT, planted=(fault,)).problems) == 1


def test_rounds_are_added_up() -> None:
    assert GOOD + BAD == Result("step", 6, 200, 201, 4, 1, 2)
    assert (FAULT + FAULT).rounds == 4 and (FAULT + FAULT).planted.lost == 80


def test_what_arrived_is_counted_against_what_got_250_in_each_mailbox() -> None:
    load = Load(0)
    load.acknowledged = {1, 2, 3}
    result = count("x", 1, load, [[1, 1, 2, 3, 7], [1, None, 2]])
    assert result == Result("x", 1, acknowledged=6, delivered=6, duplicated=1, lost=1, unanswered=1, torn=1)
    assert not result.whole
