"""The shared spool on a real server: several workers, leases, the bell, rows that hold something else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.kit.contracts.stock import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    after,
    attempt,
    defer,
    deliver,
    hasten,
    message,
    new_dsn,
    new_id,
    octets,
    put,
    take,
)
from gateway.ops import metrics
from gateway.spool import schema
from gateway.spool.postgres import database as databases
from gateway.spool.postgres import lease as leases
from gateway.spool.postgres import mail, opening
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.lease import GRACE_SECONDS
from gateway.spool.postgres.options import parse_url
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.spool import RecipientStatus, Room, Settlement, SpoolError, SpoolFull, SpoolOptions, State
from tests.spool.postgres.rig import Schemas, opened, until


@pytest.fixture(scope="module")
def schemas() -> Iterator[Schemas]:
    # Whether the server syncs is not seen from here.
    with Schemas.served("fsync=off", "full_page_writes=off") as schemas:
        yield schemas


Work = Callable[..., Awaitable[None]]


def with_spools(schemas: Schemas, directory: Path, work: Work, count: int = 1, **values: Any) -> None:
    """Run `work` with the options and so many workers' spools, each of a machine of its own."""

    async def run() -> None:
        first = schemas.new(directory / "0", **values)
        machines = [replace(first, path=str(directory / str(n) / "spool")) for n in range(count)]
        spools = [await opened(options) for options in machines]
        try:
            await work(machines, *spools)
        finally:
            for spool in spools:
                await spool.close()

    asyncio.run(run())


def age(spool: PostgresSpool, seconds: float) -> None:
    """As if it had been connected for so much longer; and it is to look at the others now."""
    assert spool._lease is not None
    spool._lease._since -= seconds
    spool._lease._next_beat = 0.0


def numbers(schemas: Schemas, options: SpoolOptions) -> list[int]:
    return [n for (n,) in schemas.query(options, "SELECT n FROM worker ORDER BY n")]


def claims(schemas: Schemas, options: SpoolOptions) -> dict[str, int]:
    return dict(schemas.query(options, "SELECT id, claimed FROM message"))


async def die(spool: PostgresSpool) -> None:
    """As a process that is killed: its sessions end, and nothing else is done."""
    assert spool._lease is not None
    spool._lease.end = lambda db: None  # type: ignore[method-assign]
    await spool.close()


# Several workers


def test_two_gateways_hand_out_each_message_once(schemas: Schemas, tmp_path: Path) -> None:
    async def work(_: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        ids = [await put(one, LARGE[:300_000]) for _ in range(4)] + [await put(two, LARGE[:300_000]) for _ in range(4)]
        found = [id for taken in await asyncio.gather(take(one), take(two)) for id in taken]
        found += [id for spool in (one, two) for id in await take(spool)]
        assert sorted(found) == sorted(ids)

    with_spools(schemas, tmp_path, work, 2)


def test_any_gateway_delivers_what_any_accepted_and_an_end_leaves_the_rest_to_the_others(
    schemas: Schemas, tmp_path: Path
) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        kept, waiting = await put(one), await put(one, LARGE)
        assert set(await take(one)) == {kept, waiting}
        three = await opened(replace(machines[0], path=machines[0].path + "3"))
        later = await put(three)
        assert await take(two) == {}
        await three.close()
        assert claims(schemas, machines[0])[later] == 0
        await until(lambda: two._next_due == 0.0)
        claimed = await take(two)
        assert set(claimed) == {later} and await octets(claimed[later]) == HEAD + SMALL
        await deliver(two, claimed[later].message)

    with_spools(schemas, tmp_path, work, 2)


def test_of_the_oldest_each_worker_tells_what_it_has_in_hand_and_one_what_nobody_has(
    schemas: Schemas, tmp_path: Path
) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        held = await put(two, new=message(received=NOW - 900))
        await put(one, new=message(received=NOW - 50, state=State.QUARANTINE))
        await put(one, LARGE[:300_000], message(received=NOW - 500))
        assert one._lease is not None and one._lease.keeper
        assert await one.oldest() == {State.QUEUED: NOW - 500, State.QUARANTINE: NOW - 50}
        assert await two.oldest() == {State.QUEUED: NOW - 900}
        await defer(two, (await take(two))[held].message, NOW + 500)
        assert await one.oldest() == {State.QUEUED: NOW - 900, State.QUARANTINE: NOW - 50}
        assert await two.oldest() == {State.QUEUED: NOW - 500}, "which it took from where all have it"

    with_spools(schemas, tmp_path, work, 2)


def test_the_oldest_is_looked_up_however_much_there_is(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        schemas.query(
            machines[0],
            "INSERT INTO message (id, state, claimed, due, received, size, envelope, slots, owed, trusted, reason,"
            " skip, eight_bit, file) SELECT lpad(n::text, 14, '0'), CASE n % 3 WHEN 1 THEN 'hold' ELSE 'queued' END,"
            " CASE n % 3 WHEN 2 THEN 99 ELSE 0 END, 0, 10000 - n, 1, '{}', '[]', false, false, '', 0, false, false"
            " FROM generate_series(1, 9000) n",
        )
        schemas.query(machines[0], "ANALYZE message")
        plan = await one.lines.reader.read(lambda db: [row[0] for row in db.execute(f"EXPLAIN {schema.OLDEST}")])
        looks = [line.strip() for line in plan if "Scan" in line]
        assert len(looks) == len(State) and all("Index" in line for line in looks), "\n".join(plan)
        assert sum("Limit" in line for line in plan) == len(State), "each has the first entry of an index, and no more"
        assert await one.oldest() == {State.QUEUED: 1000.0, State.HOLD: 1002.0}

    with_spools(schemas, tmp_path, work)


def test_there_is_one_counter_and_keeper_of_records_among_all(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        ids = [await put(one), await put(two)]
        counts = [sum((await spool.counts()).values()) for spool in (one, two)]
        assert sorted(counts) == [0, 2]
        view = await opening.open_view(machines[0])
        assert sum((await view.counts()).values()) == 2
        assert [m.id for m in await view.list()] == ids
        await view.close()

    with_spools(schemas, tmp_path, work, 2)


def test_gateways_that_start_at_once_on_an_empty_database_make_one_spool(schemas: Schemas, tmp_path: Path) -> None:
    async def run() -> None:
        first = schemas.new(tmp_path)
        spools = await asyncio.gather(*(opened(replace(first, path=str(tmp_path / str(n)))) for n in range(4)))
        assert len({spool._number() for spool in spools}) == 4
        for spool in spools:
            await spool.close()
        assert numbers(schemas, first) == []

    asyncio.run(run())


def test_two_workers_of_one_directory_are_not_possible(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, _: PostgresSpool) -> None:
        with pytest.raises(SpoolError, match="in use by another Gatepost"):
            await opened(machines[0])
        await (await opened(machines[0], worker=1)).close()

    with_spools(schemas, tmp_path, work)


def test_lanes_share_what_room_there_is_and_what_is_over_its_time_comes_anyway(
    schemas: Schemas, tmp_path: Path
) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        ids = [await put(one) for _ in range(7)]
        claimed = await take(one)
        for number, id in enumerate(ids):
            slots = after(claimed[id].message, RecipientStatus.DEFERRED, NOW + 1 + number)
            lane, deadline = ("late", NOW + 50) if number == 6 else ("ab"[number % 2], NOW + 1000)
            await one.settle(Settlement(id, slots, lane=lane, deadline=deadline))
        assert await one.next_due(NOW) == NOW + 1

        async def lanes(spool: PostgresSpool, now: float, room: Room) -> list[str | None]:
            spool._next_due = 0.0
            return sorted(found.lane or "" for found in await spool.claim(now, 10, room))

        proven = frozenset("ab")
        shares = Room(10, 10, 10, 1, proven=proven, lanes={"late": (0, 0, 0)})
        assert await lanes(one, NOW + 20, shares) == ["a", "b"]
        assert await lanes(two, NOW + 20, shares) == ["a", "b"]
        closed = Room(10, 10, 10, 1, lanes={lane: (0, 0, 0) for lane in ("a", "b", "late")})
        assert await lanes(one, NOW + 49, closed) == []
        assert await lanes(one, NOW + 50, closed) == ["late"]
        # Given another way, a message is filed under nothing.
        schemas.query(machines[0], "UPDATE message SET envelope = envelope || ' ' WHERE claimed = 0")
        assert await lanes(two, NOW + 50, closed) == ["", ""]

    with_spools(schemas, tmp_path, work, 2)


# Leases


def test_a_worker_that_starts_again_has_at_once_what_it_had_in_hand(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        other = replace(machines[0], path=machines[0].path + "2")
        two = await opened(other)
        mine, dsn = await put(two), new_dsn()
        await die(two)
        assert await take(one) == {}
        two = await opened(other)
        claimed = await take(two)
        assert set(claimed) == {mine}
        await two.settle(Settlement(mine, after(claimed[mine].message, RecipientStatus.FAILED), (), (dsn,)))
        await two.close()

    with_spools(schemas, tmp_path, work)


def test_what_a_dead_machine_had_in_hand_goes_to_the_others_after_a_grace(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        two = await opened(replace(machines[0], path=machines[0].path + "2"))
        ids = {await put(two), await put(two)}
        assert len(await take(two)) == 2
        await die(two)
        before = metrics.SPOOL_TAKEN_OVER._value.get()
        age(one, GRACE_SECONDS)
        await until(lambda: one._lease is not None and one._lease._next_beat > 0)
        assert await take(one) == {}, "it was heard of a moment ago"
        schemas.query(machines[0], "UPDATE worker SET seen = seen - interval '9 s' WHERE n <> %s", one._number())
        age(one, 0)
        await until(lambda: set(claims(schemas, machines[0]).values()) == {0})
        await until(lambda: one._next_due == 0.0)
        claimed = await take(one)
        assert set(claimed) == ids and numbers(schemas, machines[0]) == [one._number()]
        assert metrics.SPOOL_TAKEN_OVER._value.get() == before + 2

    with_spools(schemas, tmp_path, work)


def test_a_worker_whose_session_lives_has_its_whole_lease(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        id = await put(two)
        await take(two)
        # It hangs: its session is there, and says nothing.
        assert two._lease is not None
        two._lease._next_beat = 1e18
        silent = "UPDATE worker SET seen = clock_timestamp() - make_interval(secs => %s) WHERE n = %s"
        for seconds, dead in ((25, False), (31, True)):
            schemas.query(machines[0], silent, seconds, two._number())
            one._next_due = 1e18
            age(one, 40)
            if dead:
                await until(lambda: claims(schemas, machines[0]) == {id: 0})
                await until(lambda: one._next_due == 0.0)
            else:
                await until(lambda: one._lease is not None and one._lease._next_beat > 0)
                # What runs in the thread after that has run, too.
                await one._look(lambda db: None)
            assert set(await take(one)) == ({id} if dead else set())

    with_spools(schemas, tmp_path, work, 2)


def test_nobody_is_dead_after_an_outage_that_all_have_come_through(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        two = await opened(replace(machines[0], path=machines[0].path + "2"))
        await put(two)
        await die(two)
        schemas.query(machines[0], "UPDATE worker SET seen = seen - interval '1 h' WHERE n <> %s", one._number())
        assert one._lease is not None
        one._lease._since += GRACE_SECONDS
        one._lease._next_beat = 0.0
        await until(lambda: one._lease is not None and one._lease._next_beat > 0)
        assert len(numbers(schemas, machines[0])) == 2

    with_spools(schemas, tmp_path, work)


def test_the_result_of_who_has_lost_his_lease_is_never_stored_over_anothers(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        ids = [await put(one) for _ in range(3)]
        old = await take(one)
        schemas.query(machines[0], "DELETE FROM worker WHERE n = %s", one._number())
        schemas.query(machines[0], "UPDATE message SET claimed = 0")
        two._next_due = 0.0
        new = await take(two)
        assert set(new) == set(ids)
        before = metrics.SPOOL_LEASES_LOST._value.get()
        await deliver(one, old[ids[0]].message)
        await defer(one, old[ids[1]].message, NOW + 500)
        failed = after(old[ids[2]].message, RecipientStatus.FAILED)
        await one.settle(Settlement(ids[2], failed, (attempt("failed"),), (new_dsn(),)))
        assert metrics.SPOOL_LEASES_LOST._value.get() == before + 3
        assert [m.id for m in await two.list()] == ids
        assert claims(schemas, machines[0]) == dict.fromkeys(ids, two._number())
        # What was tried was tried, and stands there.
        assert (await two.explain(ids[0]))[0].attempts == (attempt().to_json(),)
        for claimed in new.values():
            await deliver(two, claimed.message)
        assert await two.list() == []

    with_spools(schemas, tmp_path, work, 2)


def test_who_was_taken_for_dead_is_another_worker_and_forgets_what_waits(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        id, number = await put(one), one._number()
        schemas.query(machines[0], "UPDATE message SET claimed = 0")
        schemas.query(machines[0], "DELETE FROM worker WHERE n = %s", number)
        two._next_due = 0.0
        assert set(await take(two)) == {id}
        age(one, 0)
        await until(lambda: one._stale)
        assert one._number() not in (0, number)
        assert await take(one) == {}
        new = await put(one)
        assert claims(schemas, machines[0])[new] == one._number()

    with_spools(schemas, tmp_path, work, 2)


def test_what_nobody_can_have_in_hand_is_freed(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        id = await put(one, LARGE)
        schemas.query(machines[0], "UPDATE message SET claimed = 4711")
        assert one._lease is not None
        one._lease._next_sweep = 0.0
        age(one, 0)
        await until(lambda: one._lease is not None and one._lease._next_sweep > 0)
        await until(lambda: claims(schemas, machines[0]) == {id: 0})

    with_spools(schemas, tmp_path, work)


# The bell


def test_others_hear_what_an_operator_changes_and_that_there_is_more_than_one_gateway_has_room_for(
    schemas: Schemas, tmp_path: Path
) -> None:
    async def work(_: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        ids = [await put(one, LARGE[:300_000]) for _ in range(3)]
        two._next_due = 1e18
        assert len(await take(one, limit=1)) == 1
        await until(lambda: two._next_due == 0.0)
        (claimed,) = (await take(two, limit=1)).values()
        await defer(two, claimed.message, NOW + 500)
        two._next_due, two._stale, one._stale = 1e18, False, False
        assert await hasten(one) == 2
        await until(lambda: two._stale and two._next_due == 0.0)
        assert not (set(await take(two)) - set(ids))

    with_spools(schemas, tmp_path, work, 2)


# Groups that fail


def test_a_step_that_fails_costs_its_neighbours_nothing_and_a_full_disk_is_told_apart(
    schemas: Schemas, tmp_path: Path
) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        schemas.query(
            machines[0],
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = TG_ARGV[0]; END $$;"
            " CREATE TRIGGER full_disk BEFORE INSERT ON content FOR EACH ROW WHEN (octet_length(NEW.body) = 1031)"
            "  EXECUTE FUNCTION refuse('53100');"
            " CREATE TRIGGER broken_disk BEFORE INSERT ON content FOR EACH ROW WHEN (octet_length(NEW.body) = 1032)"
            "  EXECUTE FUNCTION refuse('58030')",
        )
        sizes = [1030, 1031, 1033, 1032, 1034]
        done = await asyncio.gather(*(put(one, b"x" * size, head=b"") for size in sizes), return_exceptions=True)
        assert isinstance(done[1], SpoolFull)
        assert isinstance(done[3], SpoolError) and not isinstance(done[3], SpoolFull)
        assert [m.id for m in await one.list()] == [done[0], done[2], done[4]]
        assert sorted(await take(one)) == [done[0], done[2], done[4]]

    with_spools(schemas, tmp_path, work)


def _hold_rows(schemas: Schemas, options: SpoolOptions, *ids: str) -> None:
    """Another session locks these rows, one after the other, and keeps them for a while."""
    assert options.postgres is not None
    with psycopg.connect(schemas.server.url) as other:
        other.execute("SELECT set_config('search_path', %s, false)", (options.postgres.schema,))
        for id in ids:
            other.execute("SELECT 1 FROM message WHERE id = %s FOR UPDATE", (id,))
            time.sleep(0.6)  # noqa: TID251 - in a thread


def test_who_waits_for_each_other_gets_through_all_the_same(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        first, second = await put(one), await put(one)
        claimed = await take(one)
        other = asyncio.create_task(asyncio.to_thread(_hold_rows, schemas, machines[0], first, second))  # noqa: TID251
        await asyncio.sleep(0.2)
        # The group has the second one, and waits for the first; the other session has the first, and wants the second.
        await asyncio.gather(*(defer(one, claimed[id].message, NOW + 9) for id in (second, first)))
        await other
        assert set(claims(schemas, machines[0]).values()) == {0}
        view = await opening.open_view(machines[0])
        other = asyncio.create_task(asyncio.to_thread(_hold_rows, schemas, machines[0], second))  # noqa: TID251
        await asyncio.sleep(0.2)
        assert await hasten(view) == 2
        await other
        await view.close()

    with_spools(schemas, tmp_path, work)


@pytest.mark.parametrize("happened", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_commit_whose_end_nobody_heard_is_refused_and_undone(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: bool, content: bytes
) -> None:
    lost: list[bool] = []
    execute = Database.execute

    def losing(self: Database, sql: str, parameters: Any = (), /) -> Any:
        if sql == "COMMIT" and lost:
            lost.pop()
            if happened:
                execute(self, sql)
            self.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return execute(self, sql, parameters)

    monkeypatch.setattr(Database, "execute", losing)

    async def work(machines: Any, one: PostgresSpool) -> None:
        lost.append(True)
        with pytest.raises(SpoolError, match="during a commit"):
            await put(one, content)
        await until(lambda: not one.lines.writer.silent(60))
        kept = await put(one, content)
        await until(lambda: set(claims(schemas, machines[0])) == {kept})
        assert schemas.query(machines[0], "SELECT count(*) FROM content") == [(1,)]
        assert schemas.query(machines[0], "SELECT id FROM record") == [(kept,)]
        assert set(await take(one)) == {kept}

    with_spools(schemas, tmp_path, work)


def test_a_large_message_is_undone_also_where_no_connection_is_left_and_its_commit_comes_late(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, left = Database.execute, list[Any]()

    async def work(machines: Any, one: PostgresSpool) -> None:
        writer, bulk = one.lines.writer, one.lines.bulk

        def losing(self: Database, sql: str, parameters: Any = (), /) -> Any:
            if sql == "COMMIT" and self is bulk._database and not left:
                # The network is gone, for both, and the server goes on.
                left.append(self._connection)
                writer._database.close()
                writer._lost, writer._why, writer._retry_at = True, "gone", time.monotonic() + 0.5
                self._connection = writer._database._connection
                raise psycopg.OperationalError("no answer within 1 s")
            return execute(self, sql, parameters)

        monkeypatch.setattr(Database, "execute", losing)
        with pytest.raises(SpoolError, match="during a commit"):
            await put(one, LARGE)
        await until(lambda: not writer.silent(60))
        await one.list()
        with suppress(psycopg.OperationalError):
            await asyncio.to_thread(left[0].execute, "COMMIT")
        left[0].close()
        assert claims(schemas, machines[0]) == {}
        kept = await put(one, LARGE)
        assert set(claims(schemas, machines[0])) == {kept}

    with_spools(schemas, tmp_path, work)


def test_a_large_message_is_undone_also_where_the_session_that_commits_it_takes_long_to_end(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, end, left, asked = Database.execute, mail.end_sessions, list[Any](), list[int]()

    def ending(db: Database, name: str, session: int = 0) -> bool:
        # At first it does not hear it.
        asked.append(session)
        return len(asked) > 1 and end(db, name, session)

    async def work(machines: Any, one: PostgresSpool) -> None:
        def losing(self: Database, sql: str, parameters: Any = (), /) -> Any:
            if sql == "COMMIT" and self is one.lines.bulk._database and not left:
                left.append(self._connection)
                self._connection = psycopg.connect(self._connection.info.dsn)
                self.close()
                raise psycopg.OperationalError("no answer within 1 s")
            return execute(self, sql, parameters)

        monkeypatch.setattr(Database, "execute", losing)
        monkeypatch.setattr(mail, "end_sessions", ending)
        with pytest.raises(SpoolError, match="during a commit"):
            await put(one, LARGE)
        await until(lambda: len(asked) > 1, 5)
        await one.list()
        with suppress(psycopg.OperationalError):
            await asyncio.to_thread(left[0].execute, "COMMIT")
        left[0].close()
        assert claims(schemas, machines[0]) == {}

    with_spools(schemas, tmp_path, work)


def test_a_worker_is_connected_again_only_when_its_earlier_session_has_ended(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    def ending(db: Database, name: str) -> bool:
        ended.append(bool(ended))
        return ended[-1]

    async def work(machines: Any, one: PostgresSpool) -> None:
        monkeypatch.setattr(leases, "end_sessions", ending)
        one.lines.writer._database.close()
        await until(lambda: ended and not one.lines.writer.silent(60))
        await one.list()
        assert ended == [False, True]

    with_spools(schemas, tmp_path, work)


def test_claims_whose_answer_was_lost_are_found_again(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        waiting = await put(one, LARGE)
        schemas.query(machines[0], "UPDATE message SET claimed = %s", one._number())
        held = await put(one)
        assert set(await take(one)) == {held}
        one._go_on()
        for _ in range(2):
            age(one, 0)
            await until(lambda: one._lease is not None and one._lease._next_beat > 0)
            await one._look(lambda db: None)
        await until(lambda: claims(schemas, machines[0])[waiting] == 0)
        assert claims(schemas, machines[0])[held] == one._number()
        await until(lambda: one._next_due == 0.0)
        assert set(await take(one)) == {waiting}

    with_spools(schemas, tmp_path, work)


# Rows and texts that hold something else


@pytest.mark.parametrize(
    "spoil",
    ["slots = 'garbage'", "slots = '[]'", "envelope = '{'", "slots = repeat('[', 100000)", "envelope = '[{}]'"],
)
def test_a_row_that_cannot_be_read_becomes_corrupt_and_the_others_go_on(
    schemas: Schemas, tmp_path: Path, spoil: str
) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        bad, good = await put(one, LARGE[:300_000]), await put(one, LARGE[:300_000])
        schemas.query(machines[0], f"UPDATE message SET {spoil} WHERE id = %s", bad)
        assert set(await take(one)) == {good}
        assert (await one.counts())[State.CORRUPT] == 1
        assert await take(one, NOW + 1e9) == {}
        assert [m.state for m in await one.list() if m.id == bad] == [State.CORRUPT]
        with pytest.raises(SpoolError, match="cannot be read"):
            await one.show(bad)
        assert await one.drop([bad]) == 1
        assert schemas.query(machines[0], "SELECT count(*) FROM content") == [(1,)]

    with_spools(schemas, tmp_path, work)


@pytest.mark.parametrize(
    "spoil",
    [
        "DELETE FROM chunk WHERE at = 1",
        "DELETE FROM content",
        "UPDATE chunk SET data = data || 'x'::bytea WHERE at = 0",
        "INSERT INTO chunk SELECT n, at + 100, data FROM chunk; UPDATE chunk SET at = 5 WHERE at = 100",
    ],
)
def test_content_that_is_not_all_there_is_never_delivered_whole(schemas: Schemas, tmp_path: Path, spoil: str) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        id = await put(one, LARGE)
        schemas.query(machines[0], spoil)
        (claimed,) = (await take(one)).values()
        read = 0
        with pytest.raises(SpoolError, match="than the"):
            async for block in claimed.content.blocks():
                read += len(block)
        assert read < claimed.message.size or "100" in spoil or "x" in spoil
        (stored,) = await one.list()
        assert (stored.id, stored.state) == (id, State.CORRUPT)

    with_spools(schemas, tmp_path, work)


def test_texts_that_the_database_has_no_room_for_are_stored_all_the_same(schemas: Schemas, tmp_path: Path) -> None:
    async def work(_: Any, one: PostgresSpool) -> None:
        id = await put(one, new=message(state=State.QUARANTINE, reason="a\0b\ud800"))
        (stored,) = await one.list()
        assert stored.reason == "a\ufffdb?"
        assert await one.release([id], by="an\0na\ud800") == 1
        assert await one.hold([id, "\0", "\ud800"], "wait\0") == 1
        assert await one.show("\0") is None and await one.explain("\ud800") == []
        (explained,) = await one.explain(id)
        assert explained.attempts[0]["host"] == "an\0na?"

    with_spools(schemas, tmp_path, work)


# Records


def test_how_much_is_kept_is_known_whoever_wrote_or_removed_it(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool, two: PostgresSpool) -> None:
        def right() -> bool:
            bodies = "SELECT body FROM record UNION ALL SELECT body FROM attempt"
            counted = f"SELECT (SELECT count(*) FROM record), (SELECT sum(octet_length(body)) FROM ({bodies}) AS b)"
            return bool(
                schemas.query(machines[0], "SELECT records, octets FROM kept") == schemas.query(machines[0], counted)
            )

        for spool in (one, two):
            id = await put(spool)
            await deliver(spool, (await take(spool))[id].message)
            spool.note({"id": new_id(), "time": NOW, "text": "\xe4" * 100})
            spool.note({"id": id, "time": NOW, "text": "anew"})
            await spool.records()
        assert right()
        await two.close()
        schemas.query(machines[0], "DELETE FROM record WHERE id = (SELECT min(id) FROM record)")
        assert right()
        kept = schemas.query(machines[0], "SELECT count(*) FROM kept_by")
        assert kept == [(2,)], "what is left of workers that have ended is one row"

    with_spools(schemas, tmp_path, work, 2)


def test_the_keeper_lets_old_records_go_and_not_those_of_mail_that_is_here(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        here, gone = await put(one), await put(one)
        await deliver(one, (await take(one))[gone].message)
        assert len(await one.records()) == 2
        one._retention.sweep_now()
        await until(lambda: schemas.query(machines[0], "SELECT id FROM record") == [(here,)])
        assert schemas.query(machines[0], "SELECT count(*) FROM attempt") == [(0,)]

    with_spools(schemas, tmp_path, work)


# Starts that are refused


def test_a_database_that_cannot_be_used_is_named_with_its_option_and_without_the_password(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEPOST_TEST_PASSWORD", "hush")
    first = schemas.new(tmp_path)
    assert first.postgres is not None
    server = schemas.server
    server.query("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    for url, said in (
        ("postgresql://test@127.0.0.1:1/postgres", "127.0.0.1:1/postgres"),
        (f"postgresql://test@127.0.0.1:{server.port}/nothing", "does not exist"),
        (f"postgresql://nobody@127.0.0.1:{server.port}/postgres", "nobody"),
        (f"postgresql://test@127.0.0.1:{server.port}/latin", "UTF8"),
    ):
        changed = replace(first.postgres, server=parse_url(url), password_env="GATEPOST_TEST_PASSWORD")
        for open in (opened, opening.open_guest, opening.open_view):
            with pytest.raises(SpoolError) as refused:
                asyncio.run(open(replace(first, postgres=changed)))
            assert str(refused.value).startswith("spool.postgres: cannot use postgresql://127.0.0.1:")
            assert said in str(refused.value) and "hush" not in str(refused.value)


def test_a_spool_of_another_version_is_left_alone(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, _: PostgresSpool) -> None:
        schemas.query(machines[0], "UPDATE version SET schema = 99")
        for open in (partial_opened(tmp_path), opening.open_guest, opening.open_view):
            with pytest.raises(SpoolError, match="another version of Gatepost"):
                await open(machines[0])
        schemas.query(machines[0], "UPDATE version SET schema = 1")

    def partial_opened(directory: Path) -> Any:
        return lambda options: opened(replace(options, path=str(directory / "other")))

    with_spools(schemas, tmp_path, work)


def test_a_view_of_nothing_says_so_and_makes_nothing(schemas: Schemas, tmp_path: Path) -> None:
    options = schemas.new(tmp_path)
    with pytest.raises(SpoolError, match="no spool in postgresql://"):
        asyncio.run(opening.open_view(options))
    assert schemas.query(options, "SELECT to_regclass('message')") == [(None,)]


def test_a_guest_keeps_records_and_takes_no_mail_from_others(schemas: Schemas, tmp_path: Path) -> None:
    async def work(machines: Any, one: PostgresSpool) -> None:
        guest = await opening.open_guest(replace(machines[0], path=str(tmp_path / "guest")))
        id = new_id()
        guest.note({"id": id, "time": NOW})
        assert [r["id"] for r in await guest.records()] == [id]
        await guest.close()
        assert len(numbers(schemas, machines[0])) == 1
        assert [explained.record["id"] for explained in await one.explain(id)] == [id]

    with_spools(schemas, tmp_path, work)


def test_what_a_crash_left_of_large_drafts_is_removed(schemas: Schemas, tmp_path: Path) -> None:
    async def run() -> None:
        options = schemas.new(tmp_path)
        spool = await opened(options)
        draft = spool.draft(new_id())
        await draft.write(LARGE)
        assert Path(draft.path).exists()
        await die(spool)
        spool = await opened(options)
        assert not Path(draft.path).exists()
        id = await put(spool, LARGE)
        await until(lambda: not list(Path(draft.path).parent.iterdir()))
        assert set(await take(spool)) == {id}
        await spool.close()

    asyncio.run(run())


def test_marks_are_numbered_for_the_server() -> None:
    assert databases.marked("a = ? AND b = ?") == b"a = $1 AND b = $2"
    assert databases.marked("a > ?1 AND a < ?2 OR b > ?1") == b"a > $1 AND a < $2 OR b > $1"
