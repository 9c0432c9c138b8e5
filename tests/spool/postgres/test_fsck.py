"""The check of a spool in PostgreSQL: what it finds, that it changes nothing unless told to, what a repair keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.spool.diagnosis import Kind, Report
from gateway.spool.opening import open_worker
from gateway.spool.postgres import lease
from gateway.spool.postgres.fsck import check
from gateway.spool.spool import SpoolError, SpoolOptions
from tests.spool.places import PostgresPlace
from tests.spool.postgres.rig import Schemas
from tests.spool.rig import HEAD, LARGE, NOW, SMALL, defer, octets, put, take

LATE = NOW + 1e7
"""When all of it is due."""
FIRST = "id = (SELECT min(id) FROM message)"
BIG = "(SELECT content FROM message WHERE file)"


@pytest.fixture
def place(schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PostgresPlace:
    monkeypatch.setattr(lease, "GRACE_SECONDS", 0.0)
    return PostgresPlace(schemas, tmp_path, schemas.emptied(tmp_path))


@pytest.fixture
def spool(place: PostgresPlace) -> dict[str, bytes]:
    """Mail that was put off, the first two small, the third large."""

    async def fill() -> dict[str, bytes]:
        worker = await open_worker(place.options)
        contents = {await put(worker, content): HEAD + content for content in (SMALL, SMALL, LARGE)}
        for claimed in (await take(worker)).values():
            await defer(worker, claimed.message, NOW + 5)
        worker.note({"id": "0REFUSED", "outcome": "rejected"})
        await worker.close()
        return contents

    return asyncio.run(fill())


def run(place: PostgresPlace, *, repair: bool = False) -> Report:
    return check(place.options, repair=repair)


def deliverable(options: SpoolOptions) -> dict[str, bytes]:
    """What a gateway that starts now delivers."""

    async def work() -> dict[str, bytes]:
        worker = await open_worker(options)
        found = {id: await octets(claimed) for id, claimed in (await take(worker, LATE)).items()}
        await worker.close()
        return found

    return asyncio.run(work())


TABLES = ("message", "content", "chunk", "record", "attempt", "kept_by", "worker")


def everything(place: PostgresPlace) -> str:
    return repr([place.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES])


def test_a_spool_in_order_is_clean_and_left_as_it_is(place: PostgresPlace, spool: dict[str, bytes]) -> None:
    before = everything(place)
    report = run(place)
    assert (report.findings, report.messages, report.corrupt, report.running) == ([], 3, 0, False)
    assert run(place, repair=True).findings == [] and everything(place) == before
    assert deliverable(place.options) == spool


DAMAGE: list[tuple[str, Kind, str, set[int]]] = [
    (f"UPDATE message SET slots = 'x' WHERE {FIRST}", Kind.ROW, "row cannot be read", {1, 2}),
    (f"UPDATE message SET envelope = '[[' WHERE {FIRST}", Kind.ROW, "row cannot be read", {1, 2}),
    (f"UPDATE message SET state = 'x' WHERE {FIRST}", Kind.ROW, "row cannot be read", {1, 2}),
    (f"UPDATE message SET received = 'NaN' WHERE {FIRST}", Kind.ROW, "time that is none", {1, 2}),
    (f"UPDATE message SET id = E'\\x1b[2J' WHERE {FIRST}", Kind.ROW, "id or time", {1, 2}),
    (f"DELETE FROM content WHERE n = (SELECT content FROM message WHERE {FIRST})", Kind.CONTENT, "missing", {1, 2}),
    (
        f"UPDATE message SET content = NULL WHERE {FIRST}; DELETE FROM content WHERE n NOT IN"
        " (SELECT content FROM message WHERE content IS NOT NULL)",
        Kind.CONTENT,
        "missing",
        {1, 2},
    ),
    (f"UPDATE message SET size = size + 1 WHERE {FIRST}", Kind.CONTENT, "octets instead of", {1, 2}),
    (f"DELETE FROM chunk WHERE n = {BIG} AND at = 1", Kind.CONTENT, "content is missing", {0, 1}),
    (f"DELETE FROM chunk WHERE n = {BIG} AND at = 4", Kind.CONTENT, "octets instead of", {0, 1}),
    (f"DELETE FROM chunk WHERE n = {BIG}", Kind.CONTENT, "content is missing", {0, 1}),
    (f"UPDATE message SET due = 1e18 WHERE {FIRST}", Kind.SCHEDULE, "much too late", {0, 1, 2}),
    (f"UPDATE message SET due = 'NaN' WHERE {FIRST}", Kind.SCHEDULE, "much too late", {0, 1, 2}),
    (f"UPDATE message SET claimed = 999999 WHERE {FIRST}", Kind.SCHEDULE, "claimed by nobody", {0, 1, 2}),
    (
        f"UPDATE message SET slots = replace(slots, 'deferred', 'delivered') WHERE {FIRST}",
        Kind.SCHEDULE,
        "still queued",
        {1, 2},
    ),
    (
        "UPDATE message SET content = (SELECT min(content) FROM message), size = (SELECT min(size) FROM message),"
        " file = false WHERE file; DELETE FROM chunk; DELETE FROM content WHERE n NOT IN (SELECT content FROM message)",
        Kind.CONTENT,
        "belongs to several",
        {0, 1},
    ),
    ("INSERT INTO content (head, body) VALUES ('lost', 'mail')", Kind.ORPHAN, "8 octets", {0, 1, 2}),
    ("INSERT INTO chunk VALUES (-7, 0, 'lost'), (-7, 1, 'mail')", Kind.ORPHAN, "chunks without", {0, 1, 2}),
    ("UPDATE kept_by SET octets = octets + 1", Kind.COUNT, "count of decision records", {0, 1, 2}),
]
"""What is done to it, what is found, and which of the messages are delivered after a repair."""


@pytest.mark.parametrize(("damage", "kind", "text", "left"), DAMAGE)
def test_damage_is_found_and_a_repair_sets_it_aside(
    place: PostgresPlace, spool: dict[str, bytes], damage: str, kind: Kind, text: str, left: set[int]
) -> None:
    for statement in damage.split("; "):
        place.query(statement)
    before = everything(place)
    (found,) = run(place).findings
    assert (found.kind, found.shard) == (kind, "postgres") and text in found.text
    assert everything(place) == before, "nothing is changed"
    assert [finding.kind for finding in run(place, repair=True).findings] == [kind]
    again = run(place)
    assert again.findings == [] and again.messages == 3
    ids = list(spool)
    delivered = deliverable(place.options)
    for n in left:
        assert delivered[ids[n]] == spool[ids[n]]
    assert delivered.keys() - {ids[n] for n in left} <= {ids[2]}
    if kind is Kind.ORPHAN:
        (kept,) = (Path(place.options.path) / "set-aside").iterdir()
        assert kept.read_bytes() == b"lostmail" and kept.stat().st_mode & 0o777 == 0o600


def test_mail_in_the_hand_of_a_dead_worker_is_let_go_of(place: PostgresPlace, spool: dict[str, bytes]) -> None:
    async def die() -> None:
        worker = await open_worker(place.options)
        assert len(await take(worker, LATE)) == 3
        await place.kill(worker)

    asyncio.run(die())
    (found,) = run(place).findings
    assert (found.kind, found.text) == (Kind.LEASE, "it is gone, and has 3 messages in hand")
    run(place, repair=True)
    assert place.query("SELECT count(*) FROM worker") == [(0,)]
    assert place.query("SELECT count(*) FROM message WHERE claimed <> 0") == [(0,)]
    assert run(place).findings == []


def test_beside_a_running_gateway_all_is_checked_and_nothing_repaired(
    place: PostgresPlace, spool: dict[str, bytes]
) -> None:
    async def work() -> None:
        worker = await open_worker(place.options)
        await put(worker, LARGE)
        assert (await asyncio.to_thread(run, place)).running
        assert (await asyncio.to_thread(run, place)).findings == []
        place.query("INSERT INTO content (head) VALUES ('lost')")
        assert [found.kind for found in (await asyncio.to_thread(run, place)).findings] == [Kind.ORPHAN]
        with pytest.raises(SpoolError, match="stop these gateways"):
            await asyncio.to_thread(partial_repair)
        await worker.close()

    def partial_repair() -> Report:
        return run(place, repair=True)

    asyncio.run(work())
    assert place.query("SELECT count(*) FROM content") == [(5,)]


def test_a_gateway_that_starts_meanwhile_waits_for_the_repair(
    place: PostgresPlace, spool: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.query(f"UPDATE message SET size = size + 1 WHERE {FIRST}")
    locks: list[object] = []
    living = lease.living

    def looked(db: lease.Database) -> frozenset[int]:
        locks.extend(place.query("SELECT mode FROM pg_locks WHERE relation = 'worker'::regclass AND granted"))
        return living(db)

    monkeypatch.setattr(lease, "living", looked)
    run(place, repair=True)
    assert ("ShareRowExclusiveLock",) in locks


def test_a_spool_that_is_not_there_is_an_error(schemas: Schemas, tmp_path: Path) -> None:
    for repair in (False, True):
        with pytest.raises(SpoolError, match="no spool"):
            check(schemas.new(tmp_path), repair=repair)
