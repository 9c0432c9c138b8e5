"""Operators and gateways at work on one PostgreSQL spool at the same time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.address import Address
from gateway.mail.envelope import Envelope, Recipient
from gateway.ops.operations import Amended, Amendment, Hold, Redirect, Release, Reroute, Retry, Selection
from gateway.spool.hands import Hands
from gateway.spool.opening import open_all, open_worker
from gateway.spool.parcel import to_json
from gateway.spool.postgres import finding, lease
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.spool import RecipientStatus, Settlement, Slot, State, Stored
from tests.spool.places import PostgresPlace
from tests.spool.postgres.rig import Schemas
from tests.spool.rig import LARGE, NOW, SMALL, after, defer, message, new_id, put, take

BEN = Recipient(Address("ben", "other.test"))


@pytest.fixture
def place(schemas: Schemas, tmp_path: Path) -> PostgresPlace:
    return PostgresPlace(schemas, tmp_path, schemas.emptied(tmp_path))


def hop(local: str, domain: str, own: str, *_: str) -> str:
    return own or f"mx:{domain}"


def test_gateways_and_operators_that_cross_each_other_lose_nothing(place: PostgresPlace) -> None:
    """Two gateways try all mail again and again, while two operators change all of it."""
    orders: list[Amendment] = [Hold(), Release(), Reroute("smtp:x.test:25"), Retry(), Redirect((BEN,))]
    count = 40
    moved: set[str] = set()

    async def deliver(worker: PostgresSpool, ended: asyncio.Event) -> int:
        tried = 0
        while not ended.is_set():
            for claimed in (await take(worker, 8e9)).values():
                slots = after(claimed.message, RecipientStatus.DEFERRED, NOW)
                await worker.settle(Settlement(claimed.message.id, slots))
                tried += 1
            place.heed(worker)
            await asyncio.sleep(0)
        return tried

    async def operate(ids: list[str], orders: list[Amendment], worker: int) -> set[Amended]:
        view = await open_all(place.options)
        seen: set[Amended] = set()
        for order in orders * 2:
            results = await view.postmaster.amend(ids, order, by=f"operator {worker}", wait=0.1)
            seen |= set(results.values())
            if isinstance(order, Redirect):
                moved.update(id for id, result in results.items() if result is Amended.DONE)
        await view.close()
        return seen

    async def run() -> None:
        workers = [await open_worker(place.options, worker=n) for n in range(2)]
        ids = [await put(workers[0], SMALL) for _ in range(count)]
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        gateways = [loop.create_task(deliver(worker, ended)) for worker in workers]  # type: ignore[arg-type]
        seen = await asyncio.gather(operate(ids, orders, 0), operate(ids[::-1], orders[::-1], 1))
        ended.set()
        tried = await asyncio.gather(*gateways)
        assert all(tried) and Amended.DONE in seen[0] & seen[1]
        assert not (seen[0] | seen[1]) & {Amended.MISSING, Amended.UNREADABLE}
        left = {one.message.id: one for one in await workers[0].postmaster.find(Selection(), hop, limit=count + 1)}
        assert sorted(left) == sorted(ids)
        # Who was told that it is done finds it done, whatever a gateway had to say meanwhile.
        to = {id: [str(slot.recipient.address) for slot in one.message.slots] for id, one in left.items()}
        assert moved and all(to[id] == ["ben@other.test"] for id in moved)
        for worker in workers:
            await worker.close()
        assert place.query("SELECT count(*) FROM message WHERE claimed <> 0") == [(0,)]

    asyncio.run(run())


Order = Callable[[Hands, list[str]], Coroutine[Any, Any, dict[str, Amended]]]
ORDERS: dict[str, Order] = {
    "redirected": lambda hands, ids: hands.amend(ids, Redirect((BEN,)), by="anna"),
    "retried": lambda hands, ids: hands.amend(ids, Retry(), by="anna"),
    "hastened": lambda hands, ids: hands.hasten(Selection(), hop, by="anna"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_claim_that_is_just_being_made_is_respected(place: PostgresPlace, order: Order) -> None:
    """An amendment that waits for a row sees what the other one has made of it."""

    async def run() -> None:
        worker = await open_worker(place.options)
        id = await put(worker, SMALL)
        await defer(worker, (await take(worker))[id].message, 9e9)
        view = await open_all(place.options)
        assert isinstance(worker, PostgresSpool)
        locked, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def claim(db: lease.Database) -> None:
            db.execute("UPDATE message SET claimed = ? WHERE id = ?", (worker._number(), id))
            loop.call_soon_threadsafe(locked.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)

        claiming = worker.lines.writer.submit(claim)
        await locked.wait()
        amending = loop.create_task(order(view.postmaster, [id]))
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'"
        async with asyncio.timeout(20):
            while not place.query(waits):
                await asyncio.sleep(0.01)
        go_on.set()
        await claiming
        assert await amending == {id: Amended.CLAIMED}
        await view.close()
        await worker.close()

    asyncio.run(run())


def test_a_claim_of_nobody_does_not_keep_mail_from_being_hastened(place: PostgresPlace) -> None:
    async def run() -> None:
        worker, view = await open_worker(place.options), await open_all(place.options)
        ids = [await put(worker, SMALL) for _ in range(2)]
        assert (await view.postmaster.hasten(Selection(), hop, by="anna")) == dict.fromkeys(ids, Amended.CLAIMED)
        place.query("DELETE FROM worker")
        assert (await view.postmaster.hasten(Selection(), hop, by="anna")) == dict.fromkeys(ids, Amended.DONE)
        assert place.query("SELECT DISTINCT claimed, due FROM message") == [(0, 0.0)]
        await view.close()
        await worker.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["retried", "hastened"])
def test_many_messages_are_made_due_in_no_more_statements_than_few(
    place: PostgresPlace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def counting(kind: str) -> None:
        send = getattr(Database, kind)

        def counted(db: Database, sql: str, parameters: Any = (), /) -> Any:
            if "message" in sql or "attempt" in sql:
                sent.append(sql)
            return send(db, sql, parameters)

        monkeypatch.setattr(Database, kind, counted)

    async def statements(count: int) -> list[str]:
        place.query("DELETE FROM message")
        worker = await open_worker(place.options)
        ids = [await put(worker, SMALL) for _ in range(count)]
        for claimed in (await take(worker)).values():
            await defer(worker, claimed.message, 9e9)
        await worker.close()
        view = await open_all(place.options)
        sent.clear()
        assert await ORDERS[name](view.postmaster, ids) == dict.fromkeys(ids, Amended.DONE)
        await view.close()
        return list(sent)

    counting("execute")
    counting("executemany")
    few, many = asyncio.run(statements(3)), asyncio.run(statements(60))
    assert few == many and len(few) < 8


def test_what_is_meant_is_hastened_page_by_page(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "PAGE", 3)

    async def run() -> None:
        worker = await open_worker(place.options)
        ids = []
        for n in range(10):
            to = Recipient(Address("ben", "odd.test" if n in (0, 1, 2, 7) else "even.test"))
            ids.append(await put(worker, SMALL, message(envelope=Envelope(Address("ann", "sender.test"), (to,)))))
        for claimed in (await take(worker)).values():
            await defer(worker, claimed.message, 9e9)
        meant = [*ids[3:7], *ids[8:]]
        desk = worker.postmaster
        for wanted in (Selection(next_hop="mx:even.test"), Selection(domain="even.test")):
            assert await desk.hasten(wanted, hop, by="anna") == dict.fromkeys(meant, Amended.DONE)
        due = {one.message.id for one in await desk.find(Selection(), hop, limit=20) if one.message.due == 0.0}
        assert due == set(meant)
        assert await desk.hasten(Selection(), hop, by="anna") == dict.fromkeys(ids, Amended.DONE)
        await worker.close()

    asyncio.run(run())


def test_a_claim_of_nobody_is_no_claim_and_cannot_be_settled_over_an_amendment(place: PostgresPlace) -> None:
    async def run() -> None:
        worker = await open_worker(place.options)
        id = await put(worker, SMALL)
        (claimed,) = (await take(worker)).values()
        # The others have taken it for dead, and it does not know.
        place.query("DELETE FROM worker")
        view = await open_all(place.options)
        found = await view.postmaster.one(id)
        assert found is not None and not found.claimed
        assert await view.postmaster.amend([id], Redirect((BEN,)), by="anna") == {id: Amended.DONE}
        await worker.settle(Settlement(id, after(claimed.message, RecipientStatus.DELIVERED)))
        found = await view.postmaster.one(id)
        assert found is not None and str(found.message.slots[0].recipient.address) == "ben@other.test"
        await view.close()
        await worker.close()

    asyncio.run(run())


def test_after_an_outage_of_the_database_nobody_is_dead(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests has just started: gateways may not have come back yet."""
    monkeypatch.setattr(lease, "GRACE_SECONDS", 1e6)

    async def run() -> None:
        worker = await open_worker(place.options)
        id = await put(worker, SMALL)
        assert id in await take(worker)
        await place.kill(worker)
        place.query("UPDATE worker SET lease = 1e6")
        view = await open_all(place.options)
        assert await view.postmaster.amend([id], Reroute("smtp:x.test"), by="anna") == {id: Amended.CLAIMED}
        assert not await view.postmaster.unattended()
        # Another start in its directory knows better.
        worker = await open_worker(place.options)
        assert await view.postmaster.amend([id], Reroute("smtp:x.test"), by="anna") == {id: Amended.DONE}
        await view.close()
        await worker.close()

    asyncio.run(run())


async def blocks(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize("content", [SMALL, LARGE.replace(b"\n", b"x").replace(b"\r", b"x")], ids=["small", "large"])
def test_of_two_that_enter_the_same_message_one_does(place: PostgresPlace, content: bytes) -> None:
    stored = Stored(new_id(), State.QUEUED, message().envelope, (Slot(BEN),), NOW, len(content), False, False)
    data = to_json(stored, hashlib.sha256(content).hexdigest())

    async def run() -> None:
        worker = await open_worker(place.options)
        views = [await open_all(place.options) for _ in range(2)]
        entered = await asyncio.gather(
            *(view.postmaster.enter_described(data, str, blocks(content), by="anna") for view in views)
        )
        assert sorted(entered, key=bool) == [None, stored.id]
        assert list(await take(worker)) == [stored.id]
        assert not list(Path(place.options.path).glob("import-*")), "no draft is left"
        assert place.query("SELECT count(*) FROM content") == [(1,)]
        for view in views:
            await view.close()
        await worker.close()

    asyncio.run(run())


def test_what_json_escapes_is_found_all_the_same(place: PostgresPlace) -> None:
    """PostgreSQL is asked for text, and JSON may spell it in other ways."""

    async def run() -> None:
        worker = await open_worker(place.options)
        id = await put(worker, SMALL, message(envelope=Envelope(Address("ann", "sender.test"), (BEN,))))
        await put(worker, SMALL)
        spelled = (
            r"slots = replace(slots, 'other', '\u006fther')",
            r"envelope = replace(envelope, 'ann', '\u0061nn')",
        )
        for change in spelled:
            place.query(f"UPDATE message SET {change} WHERE id = ?", id)
        for wanted in (Selection(domain="other.test"), Selection(sender="ANN@sender.test", recipient="Ben@Other.Test")):
            found = await worker.postmaster.find(wanted, hop, limit=10)
            assert [one.message.id for one in found] == [id]
        await worker.close()

    asyncio.run(run())


def test_many_messages_are_found_page_by_page(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "PAGE", 3)

    async def run() -> None:
        worker = await open_worker(place.options)
        ids = []
        for n in range(10):
            to = Recipient(Address("ben", "even.test" if n % 2 == 0 else "odd.test"))
            ids.append(await put(worker, SMALL, message(envelope=Envelope(Address("ann", "sender.test"), (to,)))))
        desk = worker.postmaster
        for wanted, expected in (
            (Selection(), ids),
            (Selection(domain="even.test"), ids[::2]),
            (Selection(next_hop="mx:odd.test"), ids[1::2]),
        ):
            for limit in (1, 3, 4, 100):
                found = await desk.find(wanted, hop, limit=limit)
                assert [one.message.id for one in found] == expected[:limit]
            found = await desk.find(wanted, hop, limit=2, after=expected[1])
            assert [one.message.id for one in found] == expected[2:4]
        await worker.close()

    asyncio.run(run())


def test_a_question_about_a_domain_reads_the_rows_in_their_order_and_no_content(place: PostgresPlace) -> None:
    question = finding.Question(Selection(domain="d500.test", states=("queued",)), hop)
    values = ("", *question._values, finding.PAGE)
    text = "EXPLAIN " + question._text

    async def run() -> list[str]:
        worker = await open_worker(place.options)
        place.query(
            "INSERT INTO message (id, state, claimed, due, received, size, envelope, slots, owed, trusted, reason,"
            " skip, eight_bit, file) SELECT lpad(n::text, 14, '0'), 'queued', 0, 0, 0, 1, '{}',"
            """ '[{"domain": "d' || n % 997 || '.test"}]', false, false, '', 0, false, false"""
            " FROM generate_series(1, 5000) n"
        )
        place.query("ANALYZE message")
        assert isinstance(worker, PostgresSpool)
        plan = await worker.lines.reader.read(lambda db: [row[0] for row in db.execute(text, values).fetchall()])
        await worker.close()
        return [line.strip() for line in plan]

    plan = asyncio.run(run())
    assert any("message_pkey" in line for line in plan), plan
    assert not any("content" in line or "Sort" in line for line in plan), plan
