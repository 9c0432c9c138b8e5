"""The check of a spool: what it finds, that it changes nothing unless it is told to, that a repair loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.spool.diagnosis import Kind, Report
from gateway.spool.fsck import check, read_only
from gateway.spool.recovery import InUse
from gateway.spool.spool import SpoolError, State
from gateway.spool.sqlite import SqliteSpool
from tests.spool.rig import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    content_files,
    database,
    defer,
    octets,
    options,
    put,
    query,
    take,
)

LATE = NOW + 1e7
"""When all of it is due."""


async def fill(directory: Path, small: int = 3, large: int = 2) -> dict[str, bytes]:
    """A spool with mail that was put off; gives what is in it."""
    spool = await SqliteSpool.open(options(directory))
    contents: dict[str, bytes] = {}
    for n in range(small + large):
        content = (b"Subject: %d\r\n\r\n" % n) + (SMALL if n < small else LARGE)
        contents[await put(spool, content)] = HEAD + content
    for claimed in (await take(spool)).values():
        await defer(spool, claimed.message, NOW + 5)
    await spool.close()
    return contents


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A spool to be copied, and what is in it."""
    directory = tmp_path_factory.mktemp("stock")
    return directory, asyncio.run(fill(directory))


@pytest.fixture
def spool(stock: tuple[Path, dict[str, bytes]], tmp_path: Path) -> dict[str, bytes]:
    """A copy of it at `tmp_path`."""
    shutil.copytree(stock[0], tmp_path, dirs_exist_ok=True)
    return dict(stock[1])


def run(directory: Path, *, repair: bool = False) -> Report:
    return check(Path(options(directory).path), repair=repair)


def kinds(report: Report) -> list[Kind]:
    return [finding.kind for finding in report.findings]


def deliverable(directory: Path) -> dict[str, bytes]:
    """What a gateway that starts now delivers."""

    async def work() -> dict[str, bytes]:
        spool = await SqliteSpool.open(options(directory))
        found = {}
        for id, claimed in (await take(spool, LATE)).items():
            with contextlib.suppress(SpoolError):
                found[id] = await octets(claimed)
        await spool.close()
        return found

    return asyncio.run(work())


def states(directory: Path) -> dict[str, str]:
    return dict(query(options(directory), "SELECT hex(id), state FROM message"))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_a_spool_in_order_is_clean_and_left_as_it_is(spool, tmp_path):
    before = tree(tmp_path)
    report = run(tmp_path)
    assert (report.findings, report.messages, report.running, report.aside) == ([], 5, False, [])
    assert {
        path: octets for path, octets in tree(tmp_path).items() if "-shm" not in path and "-wal" not in path
    } == before
    assert run(tmp_path, repair=True).findings == []
    assert deliverable(tmp_path) == spool


def test_a_spool_that_is_not_there_is_an_error(tmp_path):
    for repair in (False, True):
        with pytest.raises(SpoolError):
            run(tmp_path / "nowhere", repair=repair)


FILE = "SELECT id FROM message WHERE file ORDER BY id"
ROW = "UPDATE message SET {} WHERE id = (SELECT min(id) FROM message)"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def make_directory(directory: Path) -> None:
    (path, *_) = files(directory)
    path.unlink()
    path.mkdir()


def files(directory: Path) -> list[Path]:
    return sorted((database(options(directory)).parent / "content").iterdir())


DAMAGE: dict[str, tuple[Any, list[Kind], int]] = {
    "a content file is gone": (lambda d: files(d)[0].unlink(), [Kind.CONTENT], 1),
    "a content file is torn": (lambda d: cut(files(d)[0]), [Kind.CONTENT], 1),
    "a content file is a directory": (make_directory, [Kind.ORPHAN, Kind.CONTENT], 1),
    "a file without a message": (lambda d: (files(d)[0].parent / "1HF7YAT0000009").write_bytes(b"x"), [Kind.ORPHAN], 0),
    "a draft": (lambda d: (files(d)[0].parent / "1HF7YAT0000009.edited").write_bytes(b"x"), [Kind.ORPHAN], 0),
    "recipients that are none": (lambda d: query(options(d), ROW.format("slots = '[]'")), [Kind.ROW], 1),
    "octets that are no text": (lambda d: query(options(d), ROW.format("envelope = x'7bff'")), [Kind.ROW], 1),
    "a state that nobody knows": (lambda d: query(options(d), ROW.format("state = 'lost'")), [Kind.ROW], 1),
    "a time that is none": (lambda d: query(options(d), ROW.format("received = -5")), [Kind.ROW], 1),
    "an id that is none": (lambda d: query(options(d), ROW.format("id = CAST(x'ff2f' AS TEXT)")), [Kind.ROW], 1),
    "a size that is wrong": (lambda d: query(options(d), ROW.format("size = size + 1")), [Kind.CONTENT], 1),
    "content is gone": (
        lambda d: query(options(d), "DELETE FROM content WHERE n = (SELECT content FROM message ORDER BY id LIMIT 1)"),
        [Kind.CONTENT],
        1,
    ),
    "content that is none": (lambda d: query(options(d), "UPDATE content SET body = 5 WHERE n = 1"), [Kind.CONTENT], 1),
    "content without a message": (
        lambda d: query(options(d), "INSERT INTO content (n, head, body) VALUES (900, x'61', x'62')"),
        [Kind.ORPHAN],
        0,
    ),
    "never due": (lambda d: query(options(d), ROW.format("due = 1e18")), [Kind.SCHEDULE], 0),
    "claimed by nobody": (lambda d: query(options(d), ROW.format("claimed = 7")), [Kind.SCHEDULE], 0),
    "recipients due in a thousand years": (
        lambda d: query(options(d), ROW.format("due = 3e10, slots = json_set(slots, '$[0].due', 3e10)")),
        [Kind.SCHEDULE],
        0,
    ),
    "all done, and here": (
        lambda d: query(options(d), ROW.format("due = 1e18, slots = json_set(slots, '$[0].status', 'delivered')")),
        [Kind.SCHEDULE],
        1,
    ),
    "counted wrong": (lambda d: query(options(d), "UPDATE kept SET records = 99"), [Kind.COUNT], 0),
    "suspensions that are none": (
        lambda d: (Path(options(d).path) / "suspended.json").write_text("{"),
        [Kind.SUSPENSIONS],
        0,
    ),
    "a repair was stopped": (
        lambda d: (Path(options(d).path) / "shard-00.rebuild/content").mkdir(parents=True),
        [Kind.LEFTOVER],
        0,
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_repaired_and_nothing_is_deleted(spool, tmp_path, damage):
    break_it, expected, lost = DAMAGE[damage]
    break_it(tmp_path)
    before, rows = states(tmp_path), query(options(tmp_path), "SELECT count(*) FROM message")
    report = run(tmp_path)
    assert kinds(report) == expected
    assert states(tmp_path) == before, "nothing is changed unless it is wanted"
    assert kinds(run(tmp_path, repair=True)) == expected
    assert run(tmp_path).findings == []
    assert query(options(tmp_path), "SELECT count(*) FROM message") == rows
    left = deliverable(tmp_path)
    assert len(left) == len(spool) - lost and left.items() <= spool.items()


def test_what_belongs_to_no_message_is_moved_aside_with_its_octets(spool, tmp_path):
    shard = database(options(tmp_path)).parent
    (shard / "content/STRAY").write_bytes(b"somebody's")
    query(options(tmp_path), "INSERT INTO content (n, head, body) VALUES (900, x'61', x'62')")
    for _ in range(2):
        run(tmp_path, repair=True)
        (shard / "content/STRAY").write_bytes(b"somebody's")
    aside = {path.name: path.read_bytes() for path in (shard / "set-aside").iterdir()}
    assert aside == {"STRAY": b"somebody's", "STRAY.1": b"somebody's", "content-900": b"ab"}


def test_content_of_several_messages_is_divided(spool, tmp_path):
    first, second = sorted(spool)[:2]
    query(
        options(tmp_path),
        "UPDATE message SET content = (SELECT content FROM message WHERE id = ?) WHERE id = ?",
        first,
        second,
    )
    assert set(kinds(run(tmp_path, repair=True))) == {Kind.CONTENT, Kind.ORPHAN}
    assert run(tmp_path).findings == []
    assert query(options(tmp_path), "SELECT count(DISTINCT content) FROM message") == [(5,)]
    assert deliverable(tmp_path)[first] == spool[first]


def test_a_spool_of_another_version_is_left_alone(spool, tmp_path):
    query(options(tmp_path), "PRAGMA user_version = 99")
    for _ in range(2):
        assert kinds(run(tmp_path, repair=True)) == [Kind.VERSION]


def test_beside_a_running_gateway_it_looks_and_does_not_repair(tmp_path):
    async def work() -> None:
        gateway = await SqliteSpool.open(options(tmp_path))
        id = await put(gateway, LARGE)
        draft = gateway.draft("1HF7YAT0000009")
        await draft.write(LARGE)
        report = run(tmp_path)
        assert (report.running, report.findings, report.messages) == (True, [], 1)
        with pytest.raises(InUse):
            run(tmp_path, repair=True)
        (Path(options(tmp_path).path) / "shard-00/content" / id).unlink()
        assert kinds(run(tmp_path)) == [Kind.CONTENT]
        await draft.abandon()
        await gateway.close()

    asyncio.run(work())


def test_a_gateway_cannot_start_while_a_repair_is_under_way(spool, tmp_path, monkeypatch):
    def meanwhile(*_: Any) -> None:
        with pytest.raises(InUse):
            asyncio.run(SqliteSpool.open(options(tmp_path)))
        tried.append(True)

    tried: list[bool] = []
    monkeypatch.setattr("gateway.spool.fsck._check_suspensions", meanwhile)
    run(tmp_path, repair=True)
    assert tried


@pytest.mark.parametrize("octets", [b"", b"no database at all" * 1000])
def test_a_database_that_is_none_is_set_aside_with_all_that_it_has(spool, tmp_path, octets):
    database(options(tmp_path)).write_bytes(octets)
    large = content_files(options(tmp_path))
    assert kinds(run(tmp_path)) == [Kind.DATABASE]
    report = run(tmp_path, repair=True)
    assert kinds(report) == [Kind.DATABASE]
    again = run(tmp_path)
    assert again.findings == [] and len(again.aside) == 1
    kept = Path(options(tmp_path).path) / again.aside[0]
    assert {path.name for path in (kept / "content").iterdir()} == large
    assert deliverable(tmp_path) == {}


@pytest.mark.parametrize(
    "words", [b"state TEXT NOT NULL", b"envelope TEXT", b"lane TEXT", b"INDEX message_oldest ON message (received"]
)
def test_words_of_the_tables_that_were_hit_cost_no_message(spool, tmp_path, words):
    checkpoint(tmp_path)
    path = database(options(tmp_path))
    path.write_bytes(path.read_bytes().replace(words, b"x" + words[1:], 1))
    assert kinds(run(tmp_path, repair=True)) == [Kind.DATABASE]
    assert run(tmp_path).findings == []
    assert deliverable(tmp_path) == spool


def test_messages_between_two_pages_that_were_hit_are_found_by_an_index(tmp_path):
    there = asyncio.run(fill(tmp_path, small=100, large=0))
    # Nothing else names them.
    query(options(tmp_path), "DELETE FROM record")
    query(options(tmp_path), "DELETE FROM attempt")
    ((number,),) = query(options(tmp_path), "SELECT rootpage FROM sqlite_master WHERE name = 'message'")
    ((size,),) = query(options(tmp_path), "PRAGMA page_size")
    checkpoint(tmp_path)
    path = database(options(tmp_path))
    octets = bytearray(path.read_bytes())
    # Of an interior page: how many cells there are at 3, its last child at 8, where its cells are from 12 on.
    root = octets[(number - 1) * size : number * size]
    cells = [int.from_bytes(root[12 + 2 * n : 14 + 2 * n]) for n in range(int.from_bytes(root[3:5]))]
    leaves = [int.from_bytes(root[at : at + 4]) for at in (*cells, 8)]
    assert len(leaves) > 4
    for leaf in (leaves[1], leaves[-2]):
        octets[(leaf - 1) * size : leaf * size] = b"\xff" * size
    path.write_bytes(octets)
    assert kinds(run(tmp_path, repair=True)) == [Kind.DATABASE]
    # All but those on the two pages.
    assert len(deliverable(tmp_path)) > len(there) * (len(leaves) - 3) // len(leaves)


def checkpoint(directory: Path) -> None:
    """Have all of it in the database's own file."""
    query(options(directory), "PRAGMA wal_checkpoint(TRUNCATE)")


ALL: dict[str, bytes] = {}
"""What is in the larger spool."""


def readable(directory: Path) -> dict[str, bytes]:
    """What a damaged database still gives out of its messages, asked for one by one."""
    found = {}
    ask = "SELECT c.head, c.body, m.file FROM message m JOIN content c ON c.n = m.content WHERE m.id = ?"
    for id in ALL:
        with contextlib.suppress(sqlite3.Error, UnicodeError, OSError, TypeError):
            with contextlib.closing(read_only(database(options(directory)))) as db:
                row = db.execute(ask, (id,)).fetchone()
                if row is not None:
                    file = directory / "spool/shard-00/content" / id
                    found[id] = row[0] + (file.read_bytes() if row[1] is None and row[2] else row[1] or b"")
    return found


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with so much in it that its database has many pages."""
    directory = tmp_path_factory.mktemp("larger")
    ALL.update(asyncio.run(fill(directory, small=40, large=2)))
    return directory


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), blows=st.integers(1, 6))
def test_whatever_is_damaged_the_rest_is_delivered_octet_for_octet(larger, tmp_path_factory, seed, blows):
    """Octets of the database overwritten at random; files cut, filled, removed, added; rows spoiled."""
    directory = tmp_path_factory.mktemp("damaged")
    shutil.copytree(larger, directory, dirs_exist_ok=True)
    chance = random.Random(seed)
    untouched = dict(ALL)
    for _ in range(blows):
        strike(chance, directory, untouched)
    try:
        intact = {id: octets for id, octets in readable(directory).items() if untouched.get(id) == octets}
        run(directory)
        run(directory, repair=True)
        assert run(directory).findings == []
        left = deliverable(directory)
        missing = {id for id in intact if left.get(id) != intact[id]}
        assert not missing - not_due(directory), f"lost: {missing}"
    finally:
        shutil.rmtree(directory)


def not_due(directory: Path) -> set[str]:
    """What random octets have made to be held, or never to be tried; it is there, for the postmaster to look at."""
    return {bytes.fromhex(id).decode("latin-1") for id, state in states(directory).items() if state != State.QUEUED}


COLUMNS = ("state", "due", "received", "size", "envelope", "slots", "claimed", "file", "skip", "reason", "owed")
VALUES = ("NULL", "''", "-1", "1e300", "9e999", "x'ff00'", "CAST(x'fe' AS TEXT)", "'[{}]'", "7", "'[1]'")


def strike(chance: random.Random, directory: Path, untouched: dict[str, bytes]) -> None:
    """One blow; takes from `untouched` whom it was meant for."""
    path = database(options(directory))
    content = path.parent / "content"
    match chance.randrange(6):
        case 0:
            # Neither the version (which is to be respected) nor what says that it is a database.
            octets = bytearray(path.read_bytes())
            at = chance.randrange(100, len(octets))
            blow = chance.randbytes(min(chance.choice((1, 16, 4096)), len(octets) - at))
            octets[at : at + len(blow)] = blow
            path.write_bytes(octets)
        case 1:
            for file in chance.sample(sorted(content.iterdir()), 1) if any(content.iterdir()) else []:
                untouched.pop(file.name, None)
                os.truncate(file, chance.randrange(file.stat().st_size or 1))
        case 2:
            for file in chance.sample(sorted(content.iterdir()), 1) if any(content.iterdir()) else []:
                untouched.pop(file.name, None)
                file.unlink()
        case 3:
            (content / f"{chance.getrandbits(60):X}").write_bytes(chance.randbytes(100))
        case _:
            id = chance.choice(sorted(ALL))
            untouched.pop(id, None)
            column, value = chance.choice(COLUMNS), chance.choice(VALUES)
            # Python cannot read the error where that quotes a damaged octet.
            with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                query(options(directory), f"UPDATE message SET {column} = {value} WHERE id = ?", id)


@pytest.mark.parametrize("stopped", ["gateway.spool.salvage.set_aside", "gateway.spool.salvage._put"])
@pytest.mark.parametrize("started", [False, True], ids=["", "a gateway started meanwhile"])
def test_a_stopped_repair_can_be_begun_again(larger, tmp_path, monkeypatch, stopped, started):
    shutil.copytree(larger, tmp_path, dirs_exist_ok=True)
    path = database(options(tmp_path))
    held = bytearray(path.read_bytes())
    held[4096 * 3 : 4096 * 3 + 64] = bytes(64)
    path.write_bytes(held)
    assert kinds(run(tmp_path)) == [Kind.DATABASE]
    intact = readable(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stopped, stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, repair=True)
    if started and stopped.endswith("_put"):
        # It made a new shard in the place of the one that was set aside.
        deliverable(tmp_path)
    assert Kind.LEFTOVER in kinds(run(tmp_path, repair=True))
    assert run(tmp_path).findings == []
    left = deliverable(tmp_path)
    assert intact and all(left[id] == ALL[id] for id in intact)


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_message_that_was_made_corrupt_says_why(spool, tmp_path):
    (id, *_) = sorted(content_files(options(tmp_path)))
    (database(options(tmp_path)).parent / "content" / id).unlink()
    run(tmp_path, repair=True)
    ((state, reason),) = query(options(tmp_path), "SELECT state, reason FROM message WHERE id = ?", id)
    assert (state, reason) == ("corrupt", "content file is missing")
    assert run(tmp_path).corrupt == 1
