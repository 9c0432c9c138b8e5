"""What a spool must do for the postmaster: states and records. See `gateway.kit.contracts.spool`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from gateway.kit.contracts.spool_place import SpoolPlace, with_place
from gateway.kit.contracts.stock import (
    ENVELOPE,
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
from gateway.mail.address import Address
from gateway.mail.envelope import Recipient
from gateway.spool.spool import RecipientStatus, Settlement, State


class SpoolDesk:
    """The part of the contract about what the postmaster sees and changes."""

    @with_place
    async def test_a_settlement_can_hold_a_message_that_nobody_can_be_told_of(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), hold="undeliverable bounce"))
        assert await take(spool, NOW + 1e9) == {}
        (held,) = await spool.list(state=State.HOLD)
        assert (held.id, held.reason) == (id, "undeliverable bounce")
        assert await spool.release([id]) == 1
        again = (await take(spool))[id].message
        assert (again.slots[0].status, again.slots[0].attempts) == (RecipientStatus.PENDING, 0)
        assert (again.state, again.reason) == (State.QUEUED, "")

    @with_place
    async def test_dropping_a_message_while_it_is_worked_on_wins_and_owes_no_dsn(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        assert await spool.drop([id, id, "nothing"]) == 1
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), (new_dsn(),)))
        assert await spool.list() == []

    @with_place
    async def test_holding_a_message_while_it_is_worked_on_keeps_it_from_the_next_attempt(
        self, place: SpoolPlace
    ) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        assert await spool.hold([id], "let me look") == 1
        await defer(spool, stored, NOW + 1)
        assert await take(spool, NOW + 2) == {}
        (held,) = await spool.list()
        assert (held.state, held.reason, held.slots[0].attempts) == (State.HOLD, "let me look", 1)

    @with_place
    async def test_what_is_held_or_dropped_before_it_is_handed_out_is_not_handed_out(self, place: SpoolPlace) -> None:
        spool = await place.open()
        held, dropped, left = [await put(spool) for _ in range(3)]
        assert await spool.hold([held], "wait") == await spool.drop([dropped]) == 1
        assert set(await take(spool)) == {left}
        assert await spool.release([held]) == 1
        claimed = await take(spool)
        assert set(claimed) == {held} and await octets(claimed[held]) == HEAD + SMALL

    @with_place
    async def test_hold_release_flush_and_drop_change_what_they_name_and_count_it(self, place: SpoolPlace) -> None:
        spool = await place.open()
        a, b, c = [await put(spool, content) for content in (SMALL, LARGE, SMALL)]
        assert await spool.hold([a, b, "nothing"], "why") == 2
        assert await spool.hold([a], "again") == 0
        assert await hasten(spool, [a, b]) == 0
        counts = await spool.counts()
        assert (counts[State.HOLD], counts[State.QUEUED]) == (2, 1)
        assert await spool.release([a, c, a]) == 1
        assert await spool.drop([b, "nothing"]) == 1
        assert {m.id: m.state for m in await spool.list()} == {a: State.QUEUED, c: State.QUEUED}
        for claimed in (await take(spool)).values():
            await defer(spool, claimed.message, NOW + 500)
        assert await hasten(spool) == 2
        assert set(await take(spool)) == {a, c}

    @with_place
    async def test_a_thousand_put_off_messages_are_flushed_at_once(self, place: SpoolPlace) -> None:
        spool = await place.open()
        await asyncio.gather(*(put(spool, b"x") for _ in range(1100)))
        claimed = await take(spool, limit=2000)
        await asyncio.gather(*(defer(spool, c.message, NOW + 500) for c in claimed.values()))
        assert await hasten(spool, sorted(claimed)[:700]) == 700
        assert await hasten(spool) == 1100
        assert len(await take(spool, limit=2000)) == 1100

    @with_place
    async def test_the_oldest_of_each_state_is_known_whoever_has_it_in_hand(self, place: SpoolPlace) -> None:
        spool = await place.open()
        assert await spool.oldest() == {}
        ages = {State.QUEUED: (-500, -100, -300), State.QUARANTINE: (-50, -900)}
        ids = {
            (state, age): await put(spool, new=message(state=state, received=NOW + age))
            for state, some in ages.items()
            for age in some
        }
        first, second = ids[State.QUEUED, -500], ids[State.QUEUED, -300]
        assert await spool.oldest() == {State.QUEUED: NOW - 500, State.QUARANTINE: NOW - 900}
        claimed = await take(spool)
        assert (await spool.oldest())[State.QUEUED] == NOW - 500
        await defer(spool, claimed[first].message, NOW + 500)
        assert (await spool.oldest())[State.QUEUED] == NOW - 500
        assert await spool.hold([first], "wait") == 1
        oldest = {State.QUEUED: NOW - 300, State.HOLD: NOW - 500, State.QUARANTINE: NOW - 900}
        assert await spool.oldest() == oldest
        await deliver(spool, claimed[second].message)
        assert (await spool.oldest())[State.QUEUED] == NOW - 100
        spool = await place.open()
        assert (await spool.oldest())[State.QUEUED] == NOW - 100, "whatever was in hand before"
        assert await spool.drop([*ids.values()]) == 4
        assert await spool.oldest() == {}

    @with_place
    async def test_quarantined_mail_waits_until_it_is_released(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool, state=State.QUARANTINE, reason="forged own domain")
        assert await take(spool, NOW + 1e9) == {}
        assert await spool.next_due(NOW) is None
        (stored,) = await spool.list(state=State.QUARANTINE)
        assert (stored.id, stored.reason) == (id, "forged own domain")
        assert await spool.release([id]) == 1
        assert await octets((await take(spool))[id]) == HEAD + SMALL

    @with_place
    async def test_a_reason_may_hold_octets_that_are_no_text(self, place: SpoolPlace) -> None:
        """A filter says why, and may name what the sender wrote."""
        spool = await place.open()
        id = await put(spool, state=State.QUARANTINE, reason="forged caf\udce9.example")
        (stored,) = await spool.list(state=State.QUARANTINE)
        assert (stored.id, stored.reason.startswith("forged caf")) == (id, True)

    @with_place
    async def test_the_list_comes_in_pages_and_by_state(self, place: SpoolPlace) -> None:
        spool = await place.open()
        ids = [await put(spool) for _ in range(5)]
        await spool.hold(ids[1:3], "why")
        assert [m.id for m in await spool.list(limit=2)] == ids[:2]
        assert [m.id for m in await spool.list(limit=2, after=ids[1])] == ids[2:4]
        assert [m.id for m in await spool.list(state=State.HOLD)] == ids[1:3]
        assert [m.id for m in await spool.list(state=State.HOLD, after=ids[1])] == [ids[2]]

    @with_place
    async def test_show_reads_a_message_without_claiming_it(self, place: SpoolPlace) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            id = await put(spool, content)
            for _ in range(2):
                shown = await spool.show(id)
                assert shown is not None and await octets(shown) == HEAD + content
            assert id in await take(spool)
            assert await spool.show(id) is not None

    @with_place
    async def test_records_are_found_by_queue_id_and_by_session_id(self, place: SpoolPlace) -> None:
        spool = await place.open()
        session = new_id()[:-1]
        spool.note({"id": session + "0", "time": NOW, "outcome": "rejected"})
        await put(spool, new=message(session + "1", record={"id": session + "1", "n": 1}))
        spool.note({"id": session + "2", "time": NOW, "outcome": "deferred"})
        spool.note({"id": session + "2", "time": NOW, "outcome": "accepted"})
        found = await spool.explain(session)
        assert [e.record["id"][-1] for e in found] == ["0", "1", "2"]
        assert found[2].record["outcome"] == "accepted", "the same id replaces"
        assert found[1].stored is not None and found[1].stored.id == session + "1"
        (one,) = await spool.explain(session + "2")
        assert one == found[2]
        assert await spool.explain(new_id()) == []

    @with_place
    async def test_a_record_is_kept_whatever_a_finding_holds(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = new_id()
        await put(spool, new=message(id, record={"id": id, "odd": {1, 2}, "text": "\ud800\x00", "far": float("inf")}))
        (explained,) = await spool.explain(id)
        assert explained.record["id"] == id and explained.record["text"] == "?\x00"

    @with_place
    async def test_without_records_mail_goes_its_way_and_leaves_none(self, place: SpoolPlace) -> None:
        spool = await place.open(record=False)
        id = await put(spool)
        spool.note({"id": new_id(), "time": NOW})
        stored = (await take(spool))[id].message
        (explained,) = await spool.explain(id)
        assert explained.stored is not None and explained.record == {"id": id}
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), (new_dsn(),)))
        (dsn,) = (await take(spool, NOW + 1)).values()
        await deliver(spool, dsn.message)
        assert await spool.explain("") == []

    @with_place
    async def test_attempts_of_several_settlements_are_kept_in_order(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        for n in range(3):
            stored = (await take(spool, NOW + n))[id].message
            tried = (attempt("deferred", NOW + n), attempt("deferred", NOW + n + 0.5))
            await spool.settle(Settlement(id, after(stored, RecipientStatus.DEFERRED, NOW + n + 1), tried))
        (explained,) = await spool.explain(id)
        assert [a["time"] for a in explained.attempts] == [NOW, NOW + 0.5, NOW + 1, NOW + 1.5, NOW + 2, NOW + 2.5]

    @with_place
    async def test_what_the_operator_changes_beside_a_worker_is_noticed(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        await defer(spool, (await take(spool))[id].message, NOW + 500)
        view = await place.view()
        assert [m.id for m in await view.list()] == [id]
        assert await hasten(view, [id]) == 1
        async with asyncio.timeout(20):
            while (due := await spool.next_due(NOW)) is None or due > NOW:  # noqa: ASYNC110 (a spool tells nobody)
                await asyncio.sleep(0.01)
        assert set(await take(spool)) == {id}
        assert await view.drop([id]) == 1
        assert await spool.list() == []
        new = await put(spool)
        assert await view.hold([new], "wait") == 1
        await place.noticed()
        assert await take(spool) == {}

    @with_place
    async def test_who_released_or_dropped_a_message_stands_among_its_attempts(self, place: SpoolPlace) -> None:
        spool = await place.open()
        freed, gone, quiet = [await put(spool, state=State.QUARANTINE, reason="odd") for _ in range(3)]
        assert await spool.release([freed, "nothing"], by="anna on mx1") == 1
        assert await spool.drop([gone, "nothing"], by="ben on mx1") == 1
        assert await spool.release([quiet]) == 1
        for id, outcome, who in ((freed, "released", "anna on mx1"), (gone, "dropped", "ben on mx1")):
            (explained,) = await spool.explain(id)
            ((note),) = explained.attempts
            assert (note["outcome"], note["host"], note["recipient"]) == (outcome, who, "ben@example.test")
            assert note["reply"] == "quarantine: odd"
        assert (await spool.explain(quiet))[0].attempts == ()
        await deliver(spool, (await take(spool))[freed].message)
        assert {a["outcome"] for a in (await spool.explain(freed))[0].attempts} == {"released", "delivered"}

    @with_place
    async def test_without_records_nothing_is_noted_and_all_is_done(self, place: SpoolPlace) -> None:
        spool = await place.open(record=False)
        freed, gone = [await put(spool, state=State.QUARANTINE) for _ in range(2)]
        assert await spool.release([freed], by="anna") == await spool.drop([gone], by="anna") == 1
        assert set(await take(spool)) == {freed}
        assert [explained.attempts for explained in await spool.explain(freed)] == [()]
        assert await spool.explain(gone) == []

    @with_place
    async def test_who_attends_hears_of_what_an_operator_changed(self, place: SpoolPlace) -> None:
        spool = await place.open()
        rung = asyncio.Event()
        spool.attend(rung.set)
        id = await put(spool)
        view = await place.view()
        assert await view.hold([id], "wait") == 1
        async with asyncio.timeout(20):
            await rung.wait()
        assert await take(spool) == {}

    @with_place
    async def test_release_and_drop_touch_only_the_states_that_they_are_told(self, place: SpoolPlace) -> None:
        spool = await place.open()
        aside, held, queued = await put(spool, state=State.QUARANTINE), await put(spool), await put(spool)
        await spool.hold([held], "wait")
        for step in (spool.drop, spool.release):
            assert await step([held, queued, "nothing"], states=(State.QUARANTINE,), by="anna") == 0
        assert (await spool.explain(held))[0].attempts == (await spool.explain(queued))[0].attempts == ()
        assert await spool.release([aside, held, queued], states=(State.HOLD,)) == 1
        assert await spool.drop([aside, held, queued], states=(State.QUARANTINE,)) == 1
        assert {m.id: m.state for m in await spool.list()} == {held: State.QUEUED, queued: State.QUEUED}

    @with_place
    async def test_a_message_can_be_released_to_others_along_the_routes(self, place: SpoolPlace) -> None:
        spool = await place.open()
        envelope = replace(ENVELOPE, next_hop="smtp:odd.test:25")
        kept, changed = [await put(spool, new=message(state=State.QUARANTINE, envelope=envelope)) for _ in range(2)]
        other = Recipient(Address("postmaster", "example.test"))
        assert await spool.release([kept]) == 1
        assert await spool.release([changed], to=(other,), by="anna") == 1
        claimed = await take(spool)
        assert claimed[kept].message.envelope == envelope
        assert claimed[changed].message.envelope == replace(ENVELOPE, recipients=(other,))
        (note,) = (await spool.explain(changed))[0].attempts
        assert note["recipient"] == "postmaster@example.test"

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @with_place
    async def test_what_came_before_a_time_and_is_still_in_a_state_expires(
        self, place: SpoolPlace, content: bytes
    ) -> None:
        spool = await place.open()
        old, older, new = [
            await put(spool, content, message(state=State.QUARANTINE, received=NOW + at, reason="odd"))
            for at in (-10, -20, 0)
        ]
        held = await put(spool, content, message(received=NOW - 30))
        await spool.hold([held], "wait")
        assert [m.id for m in await spool.expire(State.QUARANTINE, NOW, 1, by="the rule")] == [older]
        gone = await spool.expire(State.QUARANTINE, NOW, 10, by="the rule")
        assert [(m.id, m.reason) for m in gone] == [(old, "odd")]
        assert await spool.expire(State.QUARANTINE, NOW, 10) == []
        assert {m.id for m in await spool.list()} == {new, held}
        (note,) = (await spool.explain(old))[0].attempts
        assert (note["outcome"], note["host"], note["reply"]) == ("expired", "the rule", "quarantine: odd")
        spool = await place.open()
        assert {m.id for m in await spool.list()} == {new, held}

    @with_place
    async def test_records_come_in_pages_in_either_order(self, place: SpoolPlace) -> None:
        spool = await place.open()
        ids = [await put(spool) for _ in range(5)]
        spool = await place.open()
        assert [r["id"] for r in await spool.records()] == ids
        assert [r["id"] for r in await spool.records(limit=2)] == ids[:2]
        assert [r["id"] for r in await spool.records(after=ids[1], before=ids[4])] == ids[2:4]
        assert [r["id"] for r in await spool.records(limit=2, newest=True)] == [ids[4], ids[3]]
        assert [r["id"] for r in await spool.records(before=ids[3], limit=2, newest=True)] == [ids[2], ids[1]]
        texts = await spool.record_texts(after=ids[0], before=ids[4], limit=2)
        assert [(id, json.loads(text)["id"]) for id, text in texts] == [(id, id) for id in ids[1:3]]
