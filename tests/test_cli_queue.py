"""``gatepost queue`` and ``gatepost fsck``: what they find, change, refuse and print, on a gateway that is stopped."""

from __future__ import annotations

import asyncio
import getpass
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from gateway.app.destinations import FromFile
from gateway.cli import main, queue_live
from gateway.config import load
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Recipient
from gateway.spool.opening import open_worker
from gateway.spool.spool import NewMessage, SpoolOptions
from gateway.spool.sqlite import SqliteSpool
from tests.spool.places import ON_FILES, Place
from tests.test_cli import CONTENT, HELD, JAILED, QUEUED, SESSION, Bench, fill

PROVED = f"{SESSION}7"
DOMAINS = "domains: {example.org: {next_hop: 'smtp:store.example.org', recipients: any}}\n"
STORE = "smtp:store.example.org:25"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The check sets up its log, for its own process as a rule."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool to be copied."""
    directory = tmp_path_factory.mktemp("stock")
    asyncio.run(fill(SpoolOptions(str(directory), min_free=1)))
    return directory


@pytest.fixture
def bench(tmp_path: Path, stock: Path) -> Bench:
    """With the spool in files."""
    made = Bench(tmp_path)
    made.write(DOMAINS)
    shutil.copytree(stock, made.spool)
    return made


@pytest.fixture
def either(tmp_path: Path, place: Place) -> Bench:
    """With the spool in files, and then in PostgreSQL."""
    made = Bench(tmp_path, place.options)
    made.write(DOMAINS)
    asyncio.run(fill(made.options))
    return made


def add_proved(bench: Bench) -> None:
    """A message that a bounce is owed for."""

    async def work() -> None:
        spool = await open_worker(bench.options)
        draft = spool.draft(PROVED)
        await draft.write(CONTENT)
        envelope = Envelope(parse_mailbox("eve@sender.example"), (Recipient(parse_mailbox("cem@example.com")),))
        await spool.commit(draft, NewMessage(PROVED, envelope, 1.7e9 + 50, b"", owed=True))
        await spool.close()

    asyncio.run(work())


def ids(listed: list[dict[str, Any]]) -> list[str]:
    return [message["id"] for message in listed]


@ON_FILES
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (("--domain", "EXAMPLE.org"), [QUEUED, HELD, JAILED]),
        (("--domain", "example.com"), [PROVED]),
        (("--sender", "<>"), [HELD]),
        (("--sender", "sender.example", "--state", "queued"), [QUEUED, PROVED]),
        (("--recipient", "ben@example.org", "--why", "LATER"), [QUEUED]),
        (("--next-hop", "smtp:store.example.org"), [QUEUED, HELD, JAILED]),
        (("--next-hop", "mx:example.com"), [PROVED]),
        (("--older", "1h", "--larger", "1MiB"), []),
        (("--newer", "1h"), []),
        (("--smaller", "1kB"), [QUEUED, HELD, JAILED, PROVED]),
    ],
)
def test_messages_are_listed_by_what_stands_in_them(
    either: Bench, choice: tuple[str, ...], expected: list[str]
) -> None:
    add_proved(either)
    listed = either.json("queue", "list", *choice)
    assert ids(listed) == expected and not any(message["claimed"] for message in listed)


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--sender", "a b"),
        ("list", "--domain", "a\x1b[2J"),
        ("list", "--older", "soon"),
        ("list", "--larger", "big"),
        ("list", "--next-hop", "nonsense"),
        ("drop", QUEUED, "--state", "hold"),
        ("hold",),
        ("redirect", QUEUED),
        ("redirect", QUEUED, "--to", "no address"),
        ("recipients", QUEUED),
        ("reroute", QUEUED, "--to", "nonsense"),
        ("reroute", QUEUED, "--to", "transport:nosuch"),
        ("reroute", QUEUED, "--to", "mbox:/etc/passwd"),
        ("suspend", "nonsense"),
        ("suspend", "mx"),
        ("retry", QUEUED, "--wait", "long"),
        ("hold", QUEUED, "--reason", "a\nb"),
    ],
)
def test_what_makes_no_sense_ends_with_status_2_and_changes_nothing(bench: Bench, arguments: tuple[str, ...]) -> None:
    before = bench.json("queue", "list")
    result = bench.run("queue", *arguments)
    assert result.exit_code == 2 and result.stderr and "\x1b" not in result.stderr
    assert bench.json("queue", "list") == before


def test_show_tells_attempts_and_why_it_is_here_and_when_it_goes(either: Bench) -> None:
    shown = either.json("queue", "show", QUEUED)
    assert [attempt["reply"] for attempt in shown["attempts"]] == ["451 later"]
    assert [(why["code"], why["recipient"], why["until"]) for why in shown["why"]] == [
        ("unattended", "", None),
        ("deferred", "ben@example.org", 4e9),
    ]
    assert f"to {STORE}, 1 attempt: 451 later; tried again; then it is given up" in shown["why"][1]["text"]
    text = either.run("queue", "show", QUEUED).stdout
    assert "why:       no Gatepost is running" in text and "ben@example.org deferred store.example 451 later" in text
    (held,) = either.json("queue", "why", HELD)
    assert held["code"] == "hold"
    assert "in quarantine" in either.run("queue", "why", JAILED).stdout
    missing = either.run("queue", "why", "0NOSUCH")
    assert missing.exit_code == 1 and "gatepost explain" in missing.stderr


def test_what_was_chosen_and_is_more_than_one_has_to_be_meant(either: Bench) -> None:
    before = either.states()
    choice = ("--domain", "example.org")
    for command in (("drop",), ("redirect", "--to", "eve@example.net"), ("reroute", "--to", "routes")):
        refused = either.run("queue", command[0], *choice, *command[1:])
        assert refused.exit_code == 2 and "3 messages" in refused.stderr and "--yes" in refused.stderr
        rehearsed = either.json("queue", command[0], *choice, *command[1:], "--dry-run")
        assert rehearsed == {"dry_run": True, "messages": 3, "ids": [QUEUED, HELD, JAILED]}
    assert either.run("queue", "hold", "--dry-run", *choice).stdout == f"{QUEUED}\n1 message would be held\n"
    assert either.states() == before
    assert either.json("queue", "drop", "--yes", *choice) == {"messages": 3}
    assert either.states() == {}


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 3)])
def test_on_a_terminal_it_is_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: str, left: int) -> None:
    monkeypatch.setattr("gateway.cli.office._somebody_there", lambda: True)
    arguments = ["queue", "drop", "--domain", "example.org", "-c", str(bench.file)]
    result = CliRunner().invoke(main, arguments, input=f"{answer}\n")
    assert "3 messages will be dropped" in result.stderr and result.exit_code == (1 if left else 0)
    assert len(bench.states()) == left


def test_a_message_is_rerouted_redirected_edited_and_each_is_noted(either: Bench) -> None:
    assert either.json("queue", "reroute", QUEUED, "--to", "lmtp:backup.example:24") == {"messages": 1}
    assert either.stored(QUEUED).envelope.next_hop == "lmtp:backup.example:24"
    assert ids(either.json("queue", "list", "--next-hop", "lmtp:backup.example:24")) == [QUEUED]
    assert either.run("queue", "reroute", QUEUED, "--to", "routes").exit_code == 0
    assert either.stored(QUEUED).envelope.next_hop == ""
    assert either.run("queue", "redirect", QUEUED, "--to", "eve@example.net").stdout == "1 message redirected\n"
    assert either.run("queue", "recipients", QUEUED, "--add", "max@example.net").exit_code == 0
    left = either.run("queue", "recipients", QUEUED, "--remove", "max@example.net", "--remove", "eve@example.net")
    assert left.exit_code == 1 and "nobody would be left" in left.stderr
    assert [str(slot.recipient.address) for slot in either.stored(QUEUED).slots] == [
        "eve@example.net",
        "max@example.net",
    ]
    (explained,) = either.json("explain", QUEUED)
    done = [(note["outcome"], note["reply"]) for note in explained["attempts"] if "on" in note["host"].split()]
    assert ("rerouted", "to lmtp:backup.example:24") in done
    assert ("redirected", "to eve@example.net") in done and ("edited", "+max@example.net") in done
    assert f"redirected by {getpass.getuser()} on" in " ".join(either.run("explain", QUEUED).stdout.split())


def test_a_bounce_is_sent_only_to_who_is_owed_one(either: Bench) -> None:
    add_proved(either)
    result = either.run("queue", "drop", "--bounce", QUEUED, PROVED, "--reason", "closed")
    assert result.exit_code == 1 and f"{QUEUED}: no bounce is sent for it" in result.stderr
    assert result.stdout == "1 message returned\n"
    assert either.stored(PROVED).reason == "returned: closed"
    (_, first, *_) = either.json("queue", "why", PROVED)
    assert (first["code"], first["text"]) == ("returned", "returned: closed; its sender gets a bounce at the next look")


def test_messages_are_exported_and_imported_as_they_were(either: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert either.run("queue", "export", str(folder), "--domain", "example.org").stdout == "3 messages exported\n"
    assert (folder / f"{QUEUED}.eml").read_bytes() == CONTENT
    assert sorted(path.suffix for path in folder.iterdir()) == [".eml"] * 3 + [".json"] * 3
    again = either.run("queue", "export", str(folder), QUEUED)
    assert again.exit_code == 1 and "is there already" in again.stderr
    assert either.run("queue", "import", str(folder)).exit_code == 1, "they are all there"
    before = either.json("queue", "list")
    either.run("queue", "drop", "--yes", "--domain", "example.org")
    assert either.json("queue", "import", str(folder)) == {
        "messages": 3,
        "imported": [QUEUED, HELD, JAILED],
        "failed": {},
    }
    assert either.json("queue", "list") == before
    either.run("queue", "drop", QUEUED)
    assert either.run("queue", "import", "--hold", str(folder / f"{QUEUED}.json")).exit_code == 0
    assert either.states()[QUEUED] == "hold"


@pytest.mark.parametrize("what", ["{", "[]", '{"gatepost_message": 1}', "[" * 100_000])
def test_a_description_that_is_none_is_refused(bench: Bench, tmp_path: Path, what: str) -> None:
    (tmp_path / "x.json").write_text(what)
    result = bench.run("queue", "import", str(tmp_path / "x.json"))
    assert result.exit_code == 1 and "x.json" in result.stderr and len(bench.states()) == 3


def test_a_destination_is_suspended_until_it_is_resumed(either: Bench) -> None:
    made = either.json("queue", "suspend", "smtp:store.example.org", "--reason", "moving")
    assert (made["destination"], made["reason"]) == (STORE, "moving")
    assert either.run("queue", "suspend", STORE).exit_code == 1
    (listed,) = either.json("queue", "suspended")
    assert listed == made and "moving" in either.run("queue", "suspended").stdout
    why = either.json("queue", "why", QUEUED)[1]
    assert why["code"] == "suspended" and "(moving)" in why["text"]
    assert either.json("queue", "top")["destinations"][0]["suspended"] is True
    assert either.run("queue", "resume", STORE).stdout == f"{STORE} is resumed\n"
    assert either.run("queue", "resume", STORE).exit_code == 1
    assert either.json("queue", "suspended") == []


def test_top_shows_what_waits_for_each_destination(either: Bench) -> None:
    add_proved(either)
    picture = either.json("queue", "top")
    assert picture["states"] == {"queued": 2, "hold": 1, "quarantine": 1, "corrupt": 0, "leaving": 0}
    waiting = {one["destination"]: one for one in picture["destinations"]}
    assert set(waiting) == {STORE, "mx:example.com"}
    assert (waiting[STORE]["recipients"], waiting[STORE]["due"], waiting[STORE]["last"]) == (1, 0, "451 later")
    text = either.run("queue", "top", "--once", "--rows", "1").stdout
    assert "2 queued" in text and "and 1 more destinations" in text


def test_top_looks_again_and_again_until_it_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def rest(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(queue_live.time, "sleep", rest)
    assert bench.run("queue", "top", "--every", "0.5").exit_code == 0
    assert looks == [0.5] * 3


def test_fsck_says_what_is_wrong_and_repairs_only_when_told_to(bench: Bench) -> None:
    bench.run("queue", "retry", QUEUED)
    clean = bench.run("fsck")
    assert (clean.exit_code, clean.stdout) == (0, "3 messages, 0 of them corrupt before; 0 problems found\n")
    (bench.spool / "shard-00/content/STRAY").write_bytes(b"x")
    found = bench.run("fsck", "--json")
    told = json.loads(found.stdout)
    assert found.exit_code == 1 and told["repaired"] is False
    assert [(one["kind"], one["name"]) for one in told["findings"]] == [("orphan", "content/STRAY")]
    repaired = bench.run("fsck", "--repair")
    assert repaired.exit_code == 1 and "shard-00 content/STRAY: belongs to no message: moved to" in repaired.stdout
    assert bench.run("fsck").exit_code == 0
    assert bench.run("queue", "show", QUEUED).exit_code == 0


def test_a_shared_spool_that_does_not_answer_is_named(bench: Bench) -> None:
    bench.write("spool: {postgres: {url: 'postgresql://a@127.0.0.1:1/mail', password_env: GATEPOST_TEST_PASSWORD}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GATEPOST_TEST_PASSWORD", "hush")
        for command in (("fsck",), ("queue", "list")):
            result = bench.run(*command)
            assert result.exit_code == 2 and "postgresql://127.0.0.1:1/mail" in result.output
            assert "hush" not in result.output


def test_fsck_beside_a_running_gateway_does_not_repair(bench: Bench) -> None:
    started, ended = threading.Event(), threading.Event()

    async def gateway() -> None:
        spool = await SqliteSpool.open(SpoolOptions(str(bench.spool), min_free=1))
        started.set()
        await asyncio.to_thread(ended.wait)
        await spool.close()

    thread = threading.Thread(target=asyncio.run, args=(gateway(),))
    thread.start()
    started.wait()
    try:
        assert "a gateway is running" in bench.run("fsck").stdout
        refused = bench.run("fsck", "--repair")
        assert refused.exit_code == 2 and "in use by another Gatepost" in refused.stderr
    finally:
        ended.set()
        thread.join()


def test_destinations_follow_the_file_and_its_last_good_words(bench: Bench) -> None:
    places = FromFile(load(str(bench.file)))
    assert places().hop("ben", "example.org", "", "", "") == STORE
    bench.write("domains: {example.org: {next_hop: 'lmtp:other.example', recipients: any}}\n")
    assert places().hop("ben", "example.org", "", "", "") == "lmtp:other.example:24"
    bench.write("domains: [")
    assert places().hop("ben", "example.org", "", "", "") == "lmtp:other.example:24"
    assert places().hop("ben", "example.org", "nonsense", "", "") == "?"
    bench.write("routes: {senders: {'news@sender.example': {next_hop: 'smtp:bulk.example:25'}}}\n")
    assert places().hop("ben", "example.com", "", "news", "sender.example") == "smtp:bulk.example:25"
    assert places().hop("ben", "example.com", "", "", "") == "mx:example.com"
    assert places().label("smtp:a.example,lmtp:b.example") == "smtp:a.example:25,lmtp:b.example:24"
