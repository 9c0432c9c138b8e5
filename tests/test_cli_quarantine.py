"""``gatepost quarantine``: what it lists, shows, releases and drops, and its exit status."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path

import pytest

from tests.spool.places import ON_FILES, Place
from tests.test_cli import CONTENT, HELD, JAILED, QUEUED, Bench, fill


@pytest.fixture
def bench(tmp_path: Path, place: Place) -> Bench:
    made = Bench(tmp_path, place.options)
    asyncio.run(fill(made.options))
    return made


def test_only_what_is_in_quarantine_is_listed(bench: Bench) -> None:
    assert [m["id"] for m in bench.json("quarantine", "list")] == [JAILED]
    result = bench.run("quarantine", "list")
    row = result.stdout.splitlines()[1].split()
    assert (row[0], row[4], row[5]) == (JAILED, "anna@sender.example", "ben@example.org")
    assert "2023-12-14 22:13:20Z" in result.stdout, "when it will be dropped: 30 days after it came"
    bench.write("quarantine: {keep: 0}\n")
    assert "never" in bench.run("quarantine", "list").stdout


@ON_FILES
def test_a_list_goes_on_after_an_id_in_any_case(bench: Bench) -> None:
    before = f"{JAILED[:-1].lower()}"
    assert [m["id"] for m in bench.json("quarantine", "list", "--after", before)] == [JAILED]
    assert bench.json("quarantine", "list", "--after", JAILED.lower()) == []


@ON_FILES
@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (("--sender", "ANNA"), True),
        (("--sender", "eve"), False),
        (("--recipient", "ben@"), True),
        (("--recipient", "anna"), False),
        (("--reason", "x"), False),
        (("--older", "1h"), True),
        (("--newer", "1h"), False),
        (("--older", "1h", "--sender", "eve"), False),
    ],
)
def test_messages_are_chosen_by_what_stands_in_them_and_by_their_age(
    bench: Bench, choice: tuple[str, ...], found: bool
) -> None:
    assert [m["id"] for m in bench.json("quarantine", "list", *choice)] == [JAILED] * found
    assert bench.json("quarantine", "release", *choice) == {"messages": int(found)}
    assert (bench.states()[JAILED] == "queued") is found


def test_a_message_is_shown_and_others_are_not(bench: Bench) -> None:
    shown = bench.json("quarantine", "show", JAILED)
    assert (shown["state"], shown["header"]) == ("quarantine", "Subject: \x1b[2J hello\nX-Long: one\n two\n")
    assert "\x1b" not in bench.run("quarantine", "show", JAILED).stdout
    assert bench.run("quarantine", "show", JAILED.lower(), "--content").stdout_bytes == CONTENT
    result = bench.run("quarantine", "show", QUEUED)
    assert (result.exit_code, result.stderr) == (1, f"{QUEUED} is not in quarantine\n")


def test_a_released_message_is_queued_and_explain_says_who_it_was(bench: Bench) -> None:
    assert bench.json("quarantine", "release", JAILED) == {"messages": 1}
    stored = bench.stored(JAILED)
    assert (stored.state, stored.due, str(stored.slots[0].recipient.address)) == ("queued", 0.0, "ben@example.org")
    (note,) = bench.json("explain", JAILED)[0]["attempts"]
    assert (note["outcome"], note["recipient"]) == ("released", "ben@example.org")
    assert note["host"].startswith(f"{getpass.getuser()} on ")
    said = " ".join(bench.run("explain", JAILED).stdout.split())
    assert f"ben@example.org released by {note['host']} quarantine:" in said and " 0 s" not in said


def test_a_message_is_released_to_others_instead(bench: Bench) -> None:
    assert (
        bench.run("quarantine", "release", JAILED, "--to", "eve@example.net", "--to", "max@example.net").exit_code == 0
    )
    recipients = [str(slot.recipient.address) for slot in bench.stored(JAILED).slots]
    assert recipients == ["eve@example.net", "max@example.net"]


def test_a_dropped_message_is_gone_and_explain_says_who_it_was(bench: Bench) -> None:
    assert bench.run("quarantine", "drop", JAILED).stdout == "1 message dropped\n"
    assert JAILED not in bench.states()
    (note,) = bench.json("explain", JAILED)[0]["attempts"]
    assert note["outcome"] == "dropped"


def test_the_queues_own_release_and_drop_are_written_down_too(bench: Bench) -> None:
    assert bench.run("queue", "release", HELD).exit_code == bench.run("queue", "drop", JAILED).exit_code == 0
    notes = {id: bench.json("explain", id)[0]["attempts"][-1] for id in (HELD, JAILED)}
    assert [(n["outcome"], n["reply"]) for n in notes.values()] == [("released", "hold: "), ("dropped", "quarantine: ")]


@ON_FILES
@pytest.mark.parametrize("command", ["release", "drop"])
def test_what_is_elsewhere_is_not_touched_and_the_status_says_so(bench: Bench, command: str) -> None:
    before = bench.states()
    result = bench.run("quarantine", command, HELD, QUEUED, "0NOTHING")
    assert result.exit_code == 1
    assert result.stderr.startswith("3 of 3 not ")
    assert bench.states() == before


@ON_FILES
@pytest.mark.parametrize(
    "arguments",
    [
        ("release",),
        ("drop",),
        ("drop", JAILED, "--sender", "x"),
        ("list", "--older", "soon"),
        ("release", JAILED, "--to", "x"),
    ],
)
def test_wrong_usage_changes_nothing(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.run("quarantine", *arguments).exit_code == 2
    assert bench.states()[JAILED] == "quarantine"
