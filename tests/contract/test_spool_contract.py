"""What every `Spool` must do. A new kind of spool joins by one more entry in `KINDS`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient, Ret
from gateway.spool.spool import RecipientStatus, Settlement, Spool, SpoolError, State
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    after,
    attempt,
    defer,
    deliver,
    message,
    new_dsn,
    new_id,
    noticed,
    octets,
    options,
    put,
    take,
)


class Place(Protocol):
    """Where a spool lives: `open` is a worker's start after the last one's end, `view` the operator beside it."""

    async def open(self, **values: Any) -> Spool: ...

    async def view(self) -> Spool: ...

    async def close(self) -> None: ...


class SqlitePlace:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: list[Spool] = []

    async def open(self, **values: Any) -> Spool:
        await self.close()
        self._open.append(await SqliteSpool.open(options(self._directory, **values)))
        return self._open[-1]

    async def view(self) -> Spool:
        self._open.append(await open_all(options(self._directory)))
        return self._open[-1]

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


KINDS: dict[str, Callable[[Path], Place]] = {"sqlite": SqlitePlace}
Check = Callable[[Place], Awaitable[None]]


@pytest.fixture(params=sorted(KINDS))
def on_spool(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Check], None]:
    """Runs a coroutine function with the place of a spool of each kind."""

    def run(check: Check) -> None:
        async def with_place() -> None:
            place = KINDS[request.param](tmp_path)
            try:
                await check(place)
            finally:
                await place.close()

        asyncio.run(with_place())

    return run


ENVELOPE = Envelope(
    Address("änne", "sender.test"),
    (
        Recipient(Address("ben", "example.test"), frozenset({Notify.FAILURE, Notify.DELAY}), "rfc822;Ben+40x"),
        Recipient(Address("odd local", "b\u00fccher.test")),
    ),
    MailParameters(0, Body.EIGHT_BIT, True, Ret.HEADERS, "env+2Bid"),
)


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
def test_what_was_committed_is_claimed_as_it_was(on_spool, content, restarted):
    async def check(place: Place) -> None:
        spool = await place.open()
        new = message(envelope=ENVELOPE, owed=True, trusted=True)
        await put(spool, content, new)
        if restarted:
            spool = await place.open()
        (claimed,) = (await take(spool)).values()
        stored = claimed.message
        assert (stored.id, stored.state, stored.envelope) == (new.id, State.QUEUED, ENVELOPE)
        assert (stored.received, stored.owed, stored.trusted, stored.warned) == (NOW, True, True, False)
        assert [slot.recipient for slot in stored.slots] == list(ENVELOPE.recipients)
        assert {slot.status for slot in stored.slots} == {RecipientStatus.PENDING}
        assert claimed.content.size == stored.size == len(HEAD + content)
        assert claimed.content.eight_bit is (content is LARGE)
        assert await octets(claimed) == HEAD + content
        assert await octets(claimed) == HEAD + content, "content can be read again, for another attempt"

    on_spool(check)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
def test_the_head_stands_in_for_the_octets_that_are_skipped(on_spool, content, restarted):
    async def check(place: Place) -> None:
        spool = await place.open()
        await put(spool, content, head=b"X: 1\r\n", skip=16)
        if restarted:
            spool = await place.open()
        (claimed,) = (await take(spool)).values()
        assert await octets(claimed) == b"X: 1\r\n" + content[16:]
        assert claimed.message.size == len(content) - 10

    on_spool(check)


def test_a_claimed_message_is_not_handed_out_again_before_a_restart(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        ids = {await put(spool), await put(spool, LARGE)}
        assert set(await take(spool)) == ids
        assert await take(spool) == {}
        assert await spool.next_due(NOW) is None
        spool = await place.open()
        assert set(await take(spool)) == ids

    on_spool(check)


def test_no_more_than_the_limit_is_handed_out(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        ids = [await put(spool, content) for content in (SMALL, LARGE) * 4]
        spool = await place.open()
        ids += [await put(spool) for _ in range(4)]
        seen: list[str] = []
        while found := await spool.claim(NOW, 5):
            assert len(found) <= 5
            seen += [claimed.message.id for claimed in found]
        assert sorted(seen) == sorted(ids)

    on_spool(check)


def test_new_mail_does_not_starve_what_was_put_off(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        old = {await put(spool) for _ in range(6)}
        for claimed in (await take(spool)).values():
            await defer(spool, claimed.message, NOW + 60)
        for _ in range(6):
            for _ in range(8):
                await put(spool)
            for claimed in (await take(spool, NOW + 60, limit=4)).values():
                old.discard(claimed.message.id)
                await deliver(spool, claimed.message)
        assert not old

    on_spool(check)


def test_next_due_follows_claims_settlements_and_flushes(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        await take(spool)
        assert await spool.next_due(NOW) is None
        first, second = await put(spool), await put(spool)
        assert await spool.next_due(NOW) == NOW
        claimed = await take(spool)
        assert await spool.next_due(NOW) is None
        await defer(spool, claimed[first].message, NOW + 300)
        assert await spool.next_due(NOW) == NOW + 300
        await defer(spool, claimed[second].message, NOW + 200)
        assert await spool.next_due(NOW) == NOW + 200
        assert await take(spool, NOW + 199) == {}
        assert set(await take(spool, NOW + 200)) == {second}
        assert await spool.next_due(NOW + 200) == NOW + 300
        assert await spool.flush([first]) == 1
        due = await spool.next_due(NOW + 200)
        assert due is not None and due <= NOW + 200
        assert set(await take(spool, NOW + 201)) == {first}
        assert await spool.next_due(NOW + 201) is None

    on_spool(check)


def test_a_message_that_was_put_off_keeps_its_recipients_as_they_were_settled(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool, recipients=("ben", "col"))
        stored = (await take(spool))[id].message
        done, waiting = after(stored, RecipientStatus.DELIVERED)[0], after(stored, RecipientStatus.DEFERRED, NOW + 9)[1]
        await spool.settle(Settlement(id, (done, waiting), (attempt(),), warned=True))
        spool = await place.open()
        again = (await take(spool, NOW + 9))[id].message
        assert again.slots == (done, waiting)
        assert again.warned and again.due == NOW + 9

    on_spool(check)


def test_warned_stays_true_once_it_is(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        slots = after((await take(spool))[id].message, RecipientStatus.DEFERRED, NOW)
        await spool.settle(Settlement(id, slots, warned=True))
        await defer(spool, (await take(spool))[id].message, NOW)
        assert (await take(spool))[id].message.warned

    on_spool(check)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_message_with_nothing_left_to_do_is_gone_and_its_record_stays(on_spool, content):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool, content)
        await deliver(spool, (await take(spool))[id].message)
        for _ in range(2):
            assert await spool.list() == [] and await spool.show(id) is None
            assert sum((await spool.counts()).values()) == 0
            (explained,) = await spool.explain(id)
            assert explained.record == {"id": id} and explained.stored is None
            assert explained.attempts == (attempt().to_json(),)
            spool = await place.open()

    on_spool(check)


def test_a_settlement_can_hold_a_message_that_nobody_can_be_told_of(on_spool):
    async def check(place: Place) -> None:
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

    on_spool(check)


def test_a_dsn_is_queued_in_the_step_that_retires_its_message(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        dsn = new_dsn(b"Subject: sorry\r\n\r\n\xff")
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), dsn))
        assert [m.id for m in await spool.list()] == [dsn.message.id]
        assert await spool.next_due(NOW + 1) is not None
        (claimed,) = (await take(spool, NOW + 1)).values()
        assert claimed.message.envelope.sender is NULL_SENDER and claimed.content.eight_bit
        assert await octets(claimed) == dsn.content
        (explained,) = await spool.explain(dsn.message.id)
        assert explained.record == dsn.message.record

    on_spool(check)


def test_dropping_a_message_while_it_is_worked_on_wins_and_owes_no_dsn(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        assert await spool.drop([id, id, "nothing"]) == 1
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), new_dsn()))
        assert await spool.list() == []

    on_spool(check)


def test_holding_a_message_while_it_is_worked_on_keeps_it_from_the_next_attempt(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        assert await spool.hold([id], "let me look") == 1
        await defer(spool, stored, NOW + 1)
        assert await take(spool, NOW + 2) == {}
        (held,) = await spool.list()
        assert (held.state, held.reason, held.slots[0].attempts) == (State.HOLD, "let me look", 1)

    on_spool(check)


def test_what_is_held_or_dropped_before_it_is_handed_out_is_not_handed_out(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        held, dropped, left = [await put(spool) for _ in range(3)]
        assert await spool.hold([held], "wait") == await spool.drop([dropped]) == 1
        assert set(await take(spool)) == {left}
        assert await spool.release([held]) == 1
        claimed = await take(spool)
        assert set(claimed) == {held} and await octets(claimed[held]) == HEAD + SMALL

    on_spool(check)


def test_hold_release_flush_and_drop_change_what_they_name_and_count_it(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        a, b, c = [await put(spool, content) for content in (SMALL, LARGE, SMALL)]
        assert await spool.hold([a, b, "nothing"], "why") == 2
        assert await spool.hold([a], "again") == 0
        assert await spool.flush([a, b]) == 0
        counts = await spool.counts()
        assert (counts[State.HOLD], counts[State.QUEUED]) == (2, 1)
        assert await spool.release([a, c, a]) == 1
        assert await spool.drop([b, "nothing"]) == 1
        assert {m.id: m.state for m in await spool.list()} == {a: State.QUEUED, c: State.QUEUED}
        for claimed in (await take(spool)).values():
            await defer(spool, claimed.message, NOW + 500)
        assert await spool.flush() == 2
        assert set(await take(spool)) == {a, c}

    on_spool(check)


def test_a_thousand_put_off_messages_are_flushed_at_once(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        await asyncio.gather(*(put(spool, b"x") for _ in range(1100)))
        claimed = await take(spool, limit=2000)
        await asyncio.gather(*(defer(spool, c.message, NOW + 500) for c in claimed.values()))
        assert await spool.flush(sorted(claimed)[:700]) == 700
        assert await spool.flush() == 1100
        assert len(await take(spool, limit=2000)) == 1100

    on_spool(check)


def test_quarantined_mail_waits_until_it_is_released(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool, state=State.QUARANTINE, reason="forged own domain")
        assert await take(spool, NOW + 1e9) == {}
        assert await spool.next_due(NOW) is None
        (stored,) = await spool.list(state=State.QUARANTINE)
        assert (stored.id, stored.reason) == (id, "forged own domain")
        assert await spool.release([id]) == 1
        assert await octets((await take(spool))[id]) == HEAD + SMALL

    on_spool(check)


def test_the_list_comes_in_pages_and_by_state(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        ids = [await put(spool) for _ in range(5)]
        await spool.hold(ids[1:3], "why")
        assert [m.id for m in await spool.list(limit=2)] == ids[:2]
        assert [m.id for m in await spool.list(limit=2, after=ids[1])] == ids[2:4]
        assert [m.id for m in await spool.list(state=State.HOLD)] == ids[1:3]
        assert [m.id for m in await spool.list(state=State.HOLD, after=ids[1])] == [ids[2]]

    on_spool(check)


def test_show_reads_a_message_without_claiming_it(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            id = await put(spool, content)
            for _ in range(2):
                shown = await spool.show(id)
                assert shown is not None and await octets(shown) == HEAD + content
            assert id in await take(spool)
            assert await spool.show(id) is not None

    on_spool(check)


def test_records_are_found_by_queue_id_and_by_session_id(on_spool):
    async def check(place: Place) -> None:
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

    on_spool(check)


def test_a_record_is_kept_whatever_a_finding_holds(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = new_id()
        await put(spool, new=message(id, record={"id": id, "odd": {1, 2}, "text": "\ud800\x00", "far": float("inf")}))
        (explained,) = await spool.explain(id)
        assert explained.record["id"] == id and explained.record["text"] == "?\x00"

    on_spool(check)


def test_without_records_mail_goes_its_way_and_leaves_none(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open(record=False)
        id = await put(spool)
        spool.note({"id": new_id(), "time": NOW})
        stored = (await take(spool))[id].message
        (explained,) = await spool.explain(id)
        assert explained.stored is not None and explained.record == {"id": id}
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), new_dsn()))
        (dsn,) = (await take(spool, NOW + 1)).values()
        await deliver(spool, dsn.message)
        assert await spool.explain("") == []

    on_spool(check)


def test_attempts_of_several_settlements_are_kept_in_order(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        for n in range(3):
            stored = (await take(spool, NOW + n))[id].message
            tried = (attempt("deferred", NOW + n), attempt("deferred", NOW + n + 0.5))
            await spool.settle(Settlement(id, after(stored, RecipientStatus.DEFERRED, NOW + n + 1), tried))
        (explained,) = await spool.explain(id)
        assert [a["time"] for a in explained.attempts] == [NOW, NOW + 0.5, NOW + 1, NOW + 1.5, NOW + 2, NOW + 2.5]

    on_spool(check)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_an_abandoned_draft_leaves_nothing(on_spool, content):
    async def check(place: Place) -> None:
        spool = await place.open()
        draft = spool.draft(new_id())
        await draft.write(content)
        await draft.abandon()
        await draft.abandon()
        assert await spool.list() == [] and await take(spool) == {}

    on_spool(check)


def test_a_draft_can_be_read_by_filters_before_it_is_committed(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            draft = spool.draft(new_id())
            await draft.write(content)
            for _ in range(2):
                assert b"".join([block async for block in draft.blocks()]) == content
            assert draft.size == len(content) and content.startswith(draft.head)
            await spool.commit(draft, message(draft.id))
        assert [len(await octets(c)) for c in (await take(spool)).values()]

    on_spool(check)


def test_abandoning_after_the_commit_does_nothing(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            draft = spool.draft(new_id())
            await draft.write(content)
            await spool.commit(draft, message(draft.id))
            await draft.abandon()
            assert await octets((await take(spool))[draft.id]) == HEAD + content

    on_spool(check)


def test_what_the_operator_changes_beside_a_worker_is_noticed(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        id = await put(spool)
        await defer(spool, (await take(spool))[id].message, NOW + 500)
        view = await place.view()
        assert [m.id for m in await view.list()] == [id]
        assert await view.flush([id]) == 1
        async with asyncio.timeout(20):
            while (due := await spool.next_due(NOW)) is None or due > NOW:
                await asyncio.sleep(0.01)
        assert set(await take(spool)) == {id}
        assert await view.drop([id]) == 1
        assert await spool.list() == []
        new = await put(spool)
        assert await view.hold([new], "wait") == 1
        await noticed(spool)
        assert await take(spool) == {}

    on_spool(check)


@pytest.mark.parametrize("content", [SMALL, LARGE])
def test_copies_of_one_content_are_messages_of_their_own(on_spool, content):
    async def check(place: Place) -> None:
        spool = await place.open()
        first, second, third = message(recipients=["ann"]), message(recipients=["ben"]), message(recipients=["cem"])
        second = replace(second, head=b"X-Copy: second\r\n")
        third = replace(third, state=State.QUARANTINE, reason="odd")
        draft = spool.draft(first.id)
        await draft.write(content)
        await spool.commit(draft, first, second, third)
        assert await spool.counts() == {**dict.fromkeys(State, 0), State.QUEUED: 2, State.QUARANTINE: 1}
        claimed = await take(spool)
        assert set(claimed) == {first.id, second.id}
        assert await octets(claimed[first.id]) == HEAD + content
        await deliver(spool, claimed[first.id].message)
        # The first copy has gone; the others still have what they need, after a restart too.
        spool = await place.open()
        claimed = await take(spool)
        assert set(claimed) == {second.id}
        assert await octets(claimed[second.id]) == b"X-Copy: second\r\n" + content
        assert await spool.release([third.id]) == 1
        assert await octets((await take(spool))[third.id]) == HEAD + content

    on_spool(check)


def test_of_copies_all_are_stored_or_none(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        taken = await put(spool)
        first, second = message(), message(id=taken)
        for content in (SMALL, LARGE):
            draft = spool.draft(first.id)
            await draft.write(content)
            with pytest.raises(SpoolError):
                await spool.commit(draft, first, second)
            await draft.abandon()
            assert [m.id for m in await spool.list()] == [taken]

    on_spool(check)


@pytest.mark.parametrize("original", [SMALL, LARGE])
@pytest.mark.parametrize("edited", [b"other\r\n", b"other" * 100_000 + b"\r\n"])
@pytest.mark.parametrize("whose", ["first", "second", "both"])
def test_copies_whose_body_was_edited_have_content_of_their_own(on_spool, original, edited, whose):
    async def check(place: Place) -> None:
        spool = await place.open()
        expected: dict[str, bytes] = {}
        draft = spool.draft((messages := [message(recipients=["ann"]), message(recipients=["ben"])])[0].id)
        await draft.write(original)
        for number, name in enumerate(("first", "second")):
            new = messages[number]
            expected[new.id] = HEAD + original
            if whose in (name, "both"):
                own = spool.draft(new.id, edited=True)
                # Edited content is read from the draft while it is written.
                await own.write(edited)
                async for block in draft.blocks():
                    await own.write(block)
                messages[number] = replace(new, head=b"", content=own)
                expected[new.id] = edited + original
        await spool.commit(draft, *messages)
        for id, content in expected.items():
            found = await spool.show(id)
            assert found is not None and await octets(found) == content
        spool = await place.open()
        claimed = await take(spool)
        assert set(claimed) == set(expected)
        for one in claimed.values():
            assert await octets(one) == expected[one.message.id]
            await deliver(spool, one.message)
        assert await spool.list() == []

    on_spool(check)


def test_an_edited_draft_whose_commit_fails_is_gone_with_the_original(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        taken = await put(spool)
        for content in (SMALL, LARGE):
            first = message()
            draft, own = spool.draft(first.id), spool.draft(taken, edited=True)
            await draft.write(content)
            await own.write(content)
            with pytest.raises(SpoolError):
                await spool.commit(draft, first, replace(message(id=taken), content=own))
            assert [m.id for m in await spool.list()] == [taken]

    on_spool(check)


def test_who_released_or_dropped_a_message_stands_among_its_attempts(on_spool):
    async def check(place: Place) -> None:
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

    on_spool(check)


def test_without_records_nothing_is_noted_and_all_is_done(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open(record=False)
        freed, gone = [await put(spool, state=State.QUARANTINE) for _ in range(2)]
        assert await spool.release([freed], by="anna") == await spool.drop([gone], by="anna") == 1
        assert set(await take(spool)) == {freed}
        assert [explained.attempts for explained in await spool.explain(freed)] == [()]
        assert await spool.explain(gone) == []

    on_spool(check)


def test_release_and_drop_touch_only_the_states_that_they_are_told(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        aside, held, queued = await put(spool, state=State.QUARANTINE), await put(spool), await put(spool)
        await spool.hold([held], "wait")
        for step in (spool.drop, spool.release):
            assert await step([held, queued, "nothing"], states=(State.QUARANTINE,), by="anna") == 0
        assert (await spool.explain(held))[0].attempts == (await spool.explain(queued))[0].attempts == ()
        assert await spool.release([aside, held, queued], states=(State.HOLD,)) == 1
        assert await spool.drop([aside, held, queued], states=(State.QUARANTINE,)) == 1
        assert {m.id: m.state for m in await spool.list()} == {held: State.QUEUED, queued: State.QUEUED}

    on_spool(check)


def test_a_message_can_be_released_to_others_along_the_routes(on_spool):
    async def check(place: Place) -> None:
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

    on_spool(check)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_came_before_a_time_and_is_still_in_a_state_expires(on_spool, content):
    async def check(place: Place) -> None:
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

    on_spool(check)


def test_records_come_in_pages_in_either_order(on_spool):
    async def check(place: Place) -> None:
        spool = await place.open()
        ids = [await put(spool) for _ in range(5)]
        spool = await place.open()
        assert [r["id"] for r in await spool.records()] == ids
        assert [r["id"] for r in await spool.records(limit=2)] == ids[:2]
        assert [r["id"] for r in await spool.records(after=ids[1], before=ids[4])] == ids[2:4]
        assert [r["id"] for r in await spool.records(limit=2, newest=True)] == [ids[4], ids[3]]
        assert [r["id"] for r in await spool.records(before=ids[3], limit=2, newest=True)] == [ids[2], ids[1]]

    on_spool(check)
