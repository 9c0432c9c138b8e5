"""The postmaster: who is found, what amendments do, and that a claim in flight is never crossed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.address import NULL_SENDER, Address, parse_mailbox
from gateway.mail.envelope import Envelope, Notify, Recipient
from gateway.ops.operations import (
    Amended,
    Amendment,
    Drop,
    EditRecipients,
    Hold,
    Redirect,
    Release,
    Reroute,
    Retry,
    Return,
    Selection,
    SelectionError,
    Suspension,
)
from gateway.spool import parcel, schema, suspensions
from gateway.spool.finding import query as question
from gateway.spool.hands import Hands, OperatedSpool
from gateway.spool.opening import open_all, open_worker
from gateway.spool.postgres import suspensions as shared_suspensions
from gateway.spool.spool import RecipientStatus, Settlement, Slot, SpoolError, State, Stored
from gateway.spool.sqlite import SqliteSpool
from gateway.spool.suspensions import Watch
from gateway.spool.writer import connect
from tests.spool.places import Place
from tests.spool.rig import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    after,
    content_files,
    defer,
    deliver,
    message,
    new_id,
    octets,
    options,
    put,
    take,
)

BEN, CEM = (Recipient(parse_mailbox(f"{name}@other.test")) for name in ("ben", "cem"))
AMENDMENTS: list[Amendment] = [
    *(Hold(), Release(), Retry(), Reroute("smtp:x.test:25"), Redirect((BEN,)), EditRecipients((BEN,), ())),
    *(Return(), Drop()),
]


def hop(local: str, domain: str, own: str, sender_local: str, sender_domain: str) -> str:
    if sender_domain == "special.test":
        return f"smtp:{sender_local}.test:25"
    return own or f"mx:{domain.lower()}"


def on_spool(place: Place, work: Callable[[OperatedSpool, Hands], Awaitable[None]]) -> None:
    """`work` on a worker's spool, and beside it on the operator's view of the same one."""

    async def run() -> None:
        worker = await open_worker(place.options)
        view = await open_all(place.options)
        try:
            await work(worker, view.postmaster)
        finally:
            await view.close()
            await worker.close()

    asyncio.run(run())


async def deferred(worker: OperatedSpool, id: str = "", due: float = 9e9, **values: Any) -> str:
    """A message that was tried once."""
    id = await put(worker, SMALL, message(id, **values))
    await defer(worker, (await take(worker))[id].message, due)
    return id


async def look(postmaster: Hands, id: str) -> Stored:
    found = await postmaster.one(id)
    assert found is not None
    return found.message


async def deeds(worker: OperatedSpool, id: str) -> list[tuple[str, str]]:
    """What was noted besides attempts: what, and by whom."""
    (explained,) = await worker.explain(id)
    return [(note["outcome"], note["host"]) for note in explained.attempts if note["host"] == "anna"]


# Finding


def envelope(sender: str, *to: str, next_hop: str = "") -> Envelope:
    who = parse_mailbox(sender, utf8=True) if sender else NULL_SENDER
    return Envelope(who, tuple(Recipient(parse_mailbox(a, utf8=True)) for a in to), next_hop=next_hop)


FOUND = [
    (Selection(), "ABCD"),
    (Selection(states=("hold",)), "C"),
    (Selection(states=("queued", "quarantine")), "ABD"),
    (Selection(sender="<>"), "B"),
    (Selection(sender="Ann@Sender.TEST"), "AD"),
    (Selection(sender="sender.test"), "ACD"),
    (Selection(sender="sender"), ""),
    (Selection(recipient="BEN@example.test"), "AC"),
    (Selection(recipient='"O Brien"@example.test'), "D"),
    (Selection(domain="EXAMPLE.test"), "ACD"),
    (Selection(domain="xn--bcher-kva.test"), "B"),
    (Selection(domain="b\u00fccher.test"), "B"),
    (Selection(domain="sender.test"), ""),
    (Selection(next_hop="lmtp:store.test:24"), "D"),
    (Selection(next_hop="mx:example.test"), "AC"),
    (Selection(next_hop="mx:example.test", recipient="cem@example.test"), "A"),
    (Selection(domain="other.test", recipient="ben@example.test"), ""),
    (Selection(reason="LEGAL"), "C"),
    (Selection(reason="a reply"), "A"),
    (Selection(before=NOW + 10), "AB"),
    (Selection(since=NOW + 10), "CD"),
    (Selection(larger=len(HEAD + SMALL)), "B"),
    (Selection(smaller=len(HEAD + SMALL) + 1), "ACD"),
    (Selection(sender="sender.test", states=("hold",), larger=1, reason="asked"), "C"),
]
"""What is looked for, and which of the messages A to D are found."""


def test_messages_are_found_by_what_stands_in_them(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        names = {}
        for name, one, values in (
            ("A", envelope("ann@sender.test", "ben@example.test", "cem@example.test", "ben@other.test"), {}),
            ("B", envelope("", "x@b\u00fccher.test"), {}),
            ("C", envelope("bob@Sender.Test", "Ben@Example.TEST"), {"state": State.HOLD, "reason": "asked by Legal"}),
            ("D", envelope("ann@sender.test", '"o brien"@example.test', next_hop="lmtp:store.test:24"), {}),
        ):
            received = NOW + (20 if name in "CD" else 0)
            content = LARGE if name == "B" else SMALL
            names[await put(worker, content, message(envelope=one, received=received, **values))] = name
            if name == "A":
                (claimed,) = (await take(worker)).values()
                # The third has got it: nothing is found by him any more.
                slots = (*after(claimed.message, RecipientStatus.DEFERRED, 9e9)[:2], claimed.message.slots[2])
                slots = (*slots[:2], Slot(slots[2].recipient, RecipientStatus.DELIVERED))
                await worker.settle(Settlement(claimed.message.id, slots))
        for wanted, expected in FOUND:
            found = await postmaster.find(wanted, hop, limit=10)
            assert "".join(names[one.message.id] for one in found) == expected, wanted

    on_spool(place, check)


def test_where_mail_goes_may_depend_on_who_sent_it(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        eve = await put(worker, SMALL, message(envelope=envelope("eve@special.test", "ben@example.test")))
        null = await put(worker, SMALL, message(envelope=envelope("", "ben@example.test")))
        for next_hop, id in (("smtp:eve.test:25", eve), ("mx:example.test", null)):
            found = await postmaster.find(Selection(next_hop=next_hop), hop, limit=10)
            assert [one.message.id for one in found] == [id]

    on_spool(place, check)


def test_what_is_found_comes_in_pages_and_says_what_is_in_hand(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        ids = [await put(worker, SMALL) for _ in range(5)]
        first = await postmaster.find(Selection(), hop, limit=3)
        assert [one.message.id for one in first] == ids[:3]
        rest = await postmaster.find(Selection(domain="example.test"), hop, limit=3, after=ids[2])
        assert [one.message.id for one in rest] == ids[3:]
        # New mail waits in the worker's memory, which counts as being in its hands.
        assert all(one.claimed for one in first)

    on_spool(place, check)


@pytest.mark.parametrize(
    "damage",
    [
        "slots = 'x{'",
        "slots = '5'",
        "slots = '[5]'",
        "slots = replace(slots, 'example', '\\ud800')",
        "envelope = '['",
        "envelope = '[]'",
        "envelope = replace(envelope, 'sender.test', '\\ud800')",
        "state = 'x'",
    ],
)
def test_a_row_that_cannot_be_read_spoils_no_question(place: Place, damage: str):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        good, bad = await deferred(worker), await deferred(worker)
        place.query(f"UPDATE message SET {damage} WHERE id = ?", bad)
        for wanted in (
            Selection(domain="example.test", sender="sender.test", states=("queued",)),
            Selection(next_hop="mx:example.test", states=("queued",), sender="ann@sender.test"),
            Selection(reason="a reply", recipient="ben@example.test", sender="sender.test", states=("queued",)),
        ):
            assert [one.message.id for one in await postmaster.find(wanted, hop, limit=10)] == [good]
        everything = await postmaster.find(Selection(), hop, limit=10)
        assert [one.message.id for one in everything] == [good, bad]
        assert "mx:example.test" in [one.destination for one in await postmaster.waiting(NOW, hop)]
        assert (await postmaster.amend([bad], Hold(), by="anna"))[bad] is Amended.UNREADABLE
        assert (await postmaster.amend([bad], Drop(), by="anna"))[bad] is Amended.DONE

    on_spool(place, check)


@pytest.mark.parametrize(
    "values",
    [
        *({"sender": "a b"}, {"sender": "a@b c"}, {"recipient": "<>"}, {"domain": "a..b"}, {"reason": "x" * 321}),
        *({"reason": "a\nb"}, {"domain": "\x1b[2J"}),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(values):
    with pytest.raises(SelectionError):
        Selection(**values)


def bulk(path: Path, count: int) -> sqlite3.Connection:
    """A shard's database with so many messages, to 997 domains."""
    db = connect(str(path))
    db.executescript(f"BEGIN; {schema.SCHEMA} {schema.COUNT} COMMIT")
    sent = schema.dumps(Envelope(Address("ann", "sender.test"), ()).to_json())

    def row(n: int) -> tuple[Any, ...]:
        slot = Slot(Recipient(Address(f"user{n}", f"d{n % 997}.test")), RecipientStatus.DEFERRED, NOW + n, 3, "451 no")
        return n, f"{n:014d}", "queued", 0, NOW + n, NOW, 4000, sent, schema.slots_json((slot,)), 0, 0, "", 0, 0, 0, 1

    db.execute("BEGIN")
    db.executemany(schema.INSERT, map(row, range(count)))
    db.executemany("INSERT INTO content (n, head, body) VALUES (?, x'', x'00')", ((n,) for n in range(count)))
    db.execute("COMMIT")
    return db


def test_a_question_about_a_domain_reads_the_rows_once_in_their_order_and_no_content(tmp_path):
    db = bulk(tmp_path / "spool.db", 5000)
    text, values = question(Selection(domain="d500.test", states=("queued",)), "", 1000)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    assert plan[0] == "SEARCH m USING PRIMARY KEY (id>?)"
    assert not any("TEMP B-TREE" in line or "content" in line for line in plan)
    assert [line for line in plan[1:] if "SCAN" in line and "VIRTUAL TABLE" not in line] == []
    assert len(db.execute(text, values).fetchall()) == 5
    # Steps of SQLite's machine, in thousands: they rise with the number of messages and not faster.
    steps = []
    for upto in (1000, 2000, 4000):
        counted = 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return 0

        db.set_progress_handler(count, 1000)
        wanted = text.replace("ORDER BY", f"AND m.id < '{upto:014d}' ORDER BY")
        db.execute(wanted, values).fetchall()
        db.set_progress_handler(None, 0)
        steps.append(counted)
    assert steps[2] <= 4.5 * steps[0] and steps[0] > 0
    db.close()


def test_what_waits_is_told_by_destination(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        await deferred(worker, due=NOW + 5)
        await deferred(worker, due=NOW + 50)
        await deferred(worker, envelope=envelope("", "a@other.test", "b@other.test"), received=NOW - 10)
        await put(worker, SMALL, message(state=State.HOLD))
        first, second = await postmaster.waiting(NOW + 10, hop)
        assert (first.destination, first.recipients, first.due, first.last) == ("mx:example.test", 2, 1, "a reply")
        assert (second.destination, second.recipients, second.oldest) == ("mx:other.test", 2, NOW - 10)
        assert first.octets == 2 * len(HEAD + SMALL)

    on_spool(place, check)


# Amending


def test_what_is_held_can_be_released_and_both_are_noted(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await deferred(worker)
        assert await postmaster.amend([id], Hold("asked by legal"), by="anna") == {id: Amended.DONE}
        held = await look(postmaster, id)
        assert (held.state, held.reason) == (State.HOLD, "asked by legal")
        assert await postmaster.amend([id], Hold(), by="anna") == {id: Amended.WRONG_STATE}
        assert await postmaster.amend([id], Release(), by="anna") == {id: Amended.DONE}
        released = await look(postmaster, id)
        assert (released.state, released.due, released.slots[0].attempts) == (State.QUEUED, 0.0, 0)
        assert await deeds(worker, id) == [("held", "anna"), ("released", "anna")]
        place.heed(worker)
        assert id in await take(worker)

    on_spool(place, check)


def test_what_is_retried_or_rerouted_is_due_now(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        one, other = await deferred(worker), await deferred(worker)
        assert await postmaster.amend([one], Retry(), by="anna") == {one: Amended.DONE}
        assert (await look(postmaster, one)).due == 0.0
        assert await postmaster.amend([other], Reroute("smtp:x.test:25"), by="anna") == {other: Amended.DONE}
        moved = await look(postmaster, other)
        assert (moved.envelope.next_hop, moved.due, moved.slots[0].attempts) == ("smtp:x.test:25", 0.0, 1)
        await postmaster.amend([other], Reroute(""), by="anna")
        assert (await look(postmaster, other)).envelope.next_hop == ""

    on_spool(place, check)


def test_all_that_is_meant_is_hastened_and_nothing_else(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        meant = [await deferred(worker) for _ in range(3)]
        other = await deferred(worker, envelope=envelope("ann@sender.test", "cem@other.test"))
        held, broken = await deferred(worker), await deferred(worker)
        await postmaster.amend([held], Hold(), by="anna")
        place.query("UPDATE message SET slots = replace(slots, 'ben', '\\ud800') WHERE id = ?", broken)
        in_hand = await put(worker, SMALL, message())
        assert in_hand in await take(worker)
        results = await postmaster.hasten(Selection(recipient="ben@example.test"), hop, by="anna")
        # The broken one is not found, since nobody can say to whom it goes.
        assert results == {**dict.fromkeys(meant, Amended.DONE), in_hand: Amended.CLAIMED}
        for id in meant:
            one = await look(postmaster, id)
            assert (one.due, [slot.status for slot in one.slots]) == (0.0, [RecipientStatus.DEFERRED])
            assert (await deeds(worker, id)) == [("retried", "anna")]
        assert (await look(postmaster, other)).due == 9e9
        place.heed(worker)
        assert sorted(await take(worker)) == sorted(meant)
        results = await postmaster.hasten(Selection(), hop, by="anna")
        assert results == {
            **dict.fromkeys((*meant, in_hand), Amended.CLAIMED),
            broken: Amended.UNREADABLE,
            other: Amended.DONE,
        }
        assert await deeds(worker, held) == [("held", "anna")]

    on_spool(place, check)


def test_who_has_got_it_is_not_hastened(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await put(worker, SMALL, message(envelope=envelope("ann@sender.test", "a@example.test", "b@example.test")))
        (claimed,) = (await take(worker)).values()
        done = after(claimed.message, RecipientStatus.DELIVERED)[0]
        waits = after(claimed.message, RecipientStatus.DEFERRED, due=9e9)[1]
        await worker.settle(Settlement(id, (done, waits)))
        assert await postmaster.hasten(Selection(), hop, by="anna") == {id: Amended.DONE}
        assert (await look(postmaster, id)).slots == (done, replace(waits, due=0.0))
        (explained,) = await worker.explain(id)
        assert [note["recipient"] for note in explained.attempts if note["outcome"] == "retried"] == ["b@example.test"]

    on_spool(place, check)


def test_what_waits_for_nobody_any_more_is_not_made_due(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await deferred(worker)
        place.query("UPDATE message SET slots = replace(slots, '\"deferred\"', '\"delivered\"') WHERE id = ?", id)
        await postmaster.hasten(Selection(), hop, by="anna")
        place.heed(worker)
        assert not await take(worker)

    on_spool(place, check)


def test_hastening_goes_through_all_pages(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        ids = [await put(worker, SMALL, message()) for _ in range(401)]
        taken: list[str] = []
        while found := await take(worker):
            taken += found
            for claimed in found.values():
                await defer(worker, claimed.message, 9e9)
        assert sorted(taken) == sorted(ids)
        assert await postmaster.hasten(Selection(), hop, by="anna") == dict.fromkeys(ids, Amended.DONE)
        assert {one.message.due for one in await postmaster.find(Selection(), hop, limit=1000)} == {0.0}

    on_spool(place, check)


def test_a_redirected_message_goes_to_others_and_who_has_got_it_stays_done(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        to = (
            Recipient(Address("a", "example.test")),
            Recipient(Address("b", "example.test"), frozenset({Notify.NEVER})),
        )
        id = await put(worker, SMALL, message(envelope=Envelope(Address("ann", "sender.test"), to)))
        (claimed,) = (await take(worker)).values()
        done, waits = after(claimed.message, RecipientStatus.DELIVERED)[0], claimed.message.slots[1]
        await worker.settle(Settlement(id, (done, waits), lane="smtp:closed.test:25"))
        assert await postmaster.amend([id], Redirect((BEN, CEM)), by="anna") == {id: Amended.DONE}
        assert place.query("SELECT lane FROM message") == [("",)], "its way is another one now"
        slots = (await look(postmaster, id)).slots
        assert [(str(s.recipient.address), s.status.value) for s in slots] == [
            ("a@example.test", "delivered"),
            ("ben@other.test", "pending"),
            ("cem@other.test", "pending"),
        ]
        # The sender of b wanted to hear of nothing; that holds for those who stand in for him.
        assert slots[1].recipient.notify == {Notify.NEVER}
        place.heed(worker)
        assert [str(s.recipient.address) for s in (await take(worker))[id].message.slots][1] == "ben@other.test"

    on_spool(place, check)


def test_recipients_are_added_and_removed_and_one_is_always_left(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await deferred(worker, recipients=("ben", "cem"))
        cem, ben = Address("CEM", "Example.Test"), Address("ben", "example.test")
        for amendment, expected in (
            (EditRecipients((), (cem,)), Amended.DONE),
            (EditRecipients((), (cem,)), Amended.UNCHANGED),
            (EditRecipients((), (ben,)), Amended.NOBODY_LEFT),
            (EditRecipients((Recipient(ben),), ()), Amended.UNCHANGED),
            (EditRecipients((CEM,), (ben,)), Amended.DONE),
        ):
            assert await postmaster.amend([id], amendment, by="anna") == {id: expected}, amendment
        left = await look(postmaster, id)
        assert [(str(s.recipient.address), s.status.value) for s in left.slots] == [("cem@other.test", "pending")]
        assert await deeds(worker, id) == [("edited", "anna")] * 4

    on_spool(place, check)


def test_nobody_is_removed_if_that_leaves_only_who_was_refused_until_it_is_set_aside(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await deferred(worker, recipients=("ben", "cem"))
        place.heed(worker)
        (claimed,) = (await take(worker, 9.9e9)).values()
        failed = after(claimed.message, RecipientStatus.FAILED)[0]
        await worker.settle(Settlement(id, (failed, claimed.message.slots[1])))
        remove = EditRecipients((), (Address("cem", "example.test"),))
        assert await postmaster.amend([id], remove, by="anna") == {id: Amended.NOBODY_LEFT}
        assert await postmaster.amend([id], Hold(), by="anna") == {id: Amended.DONE}
        # Released, it is tried again.
        assert await postmaster.amend([id], remove, by="anna") == {id: Amended.DONE}

    on_spool(place, check)


def test_a_message_is_returned_only_to_a_sender_who_is_owed_a_bounce(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        owed, forged = await deferred(worker, owed=True), await deferred(worker)
        null = await deferred(worker, owed=True, envelope=envelope("", "a@b.test"))
        results = await postmaster.amend([owed, forged, null], Return("moved away"), by="anna")
        assert results == {owed: Amended.DONE, forged: Amended.NOT_OWED, null: Amended.NOT_OWED}
        given_up = await look(postmaster, owed)
        assert given_up.returned and given_up.due == 0.0 and given_up.reason == "returned: moved away"
        assert not (await look(postmaster, forged)).returned
        await postmaster.amend([owed], Hold("wait"), by="anna")
        await postmaster.amend([owed], Release(), by="anna")
        assert not (await look(postmaster, owed)).returned
        for other_way in (Redirect((BEN,)), Reroute("smtp:x.test:25")):
            await postmaster.amend([owed], Return(), by="anna")
            await postmaster.amend([owed], other_way, by="anna")
            assert not (await look(postmaster, owed)).returned

    on_spool(place, check)


def test_a_dropped_message_is_gone_with_its_content_and_its_note_stays(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await put(worker, LARGE)
        assert await postmaster.amend([id, "NOSUCH"], Drop(), by="anna") == {
            id: Amended.DONE,
            "NOSUCH": Amended.MISSING,
        }
        assert await postmaster.one(id) is None and place.contents() == 0
        assert await deeds(worker, id) == [("dropped", "anna")]

    on_spool(place, check)


@pytest.mark.parametrize("amendment", AMENDMENTS, ids=lambda one: type(one).__name__)
def test_a_message_that_is_being_delivered_is_left_to_the_worker(place: Place, amendment):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        state = State.QUEUED
        id = await put(worker, SMALL, message(owed=True, recipients=("ben", "cem")))
        (claimed,) = (await take(worker)).values()
        if isinstance(amendment, Release):
            await postmaster.amend([id], Hold("by hand"), by="anna")
            state = State.HOLD
        results = await postmaster.amend([id], amendment, by="bob")
        if isinstance(amendment, Hold | Drop):
            assert results == {id: Amended.UNDERWAY}
        else:
            assert results == {id: Amended.CLAIMED}
            now = await look(postmaster, id)
            assert (now.state, now.slots, now.envelope) == (state, claimed.message.slots, claimed.message.envelope)
        assert not await take(worker), "nobody else gets it meanwhile"
        # What the worker then says is what counts.
        left = (after(claimed.message, RecipientStatus.DELIVERED)[0], claimed.message.slots[1])
        await worker.settle(Settlement(id, left))
        found = await postmaster.one(id)
        if isinstance(amendment, Drop):
            assert found is None
            return
        assert found is not None and not found.claimed and found.message.slots == left
        assert found.message.state is (State.HOLD if isinstance(amendment, Hold | Release) else State.QUEUED)
        # And now it can be done.
        if not isinstance(amendment, Hold):
            assert (await postmaster.amend([id], amendment, by="bob"))[id] is Amended.DONE

    on_spool(place, check)


def test_an_amendment_waits_for_the_worker_if_it_is_asked_to(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await put(worker, SMALL)
        (claimed,) = (await take(worker)).values()
        waiting = asyncio.get_running_loop().create_task(postmaster.amend([id], Redirect((BEN,)), by="anna", wait=60.0))
        await asyncio.sleep(0)
        await defer(worker, claimed.message, 9e9)
        assert await waiting == {id: Amended.DONE}
        assert str((await look(postmaster, id)).slots[0].recipient.address) == "ben@other.test"

    on_spool(place, check)


def test_what_merely_waits_in_the_workers_memory_is_given_back_to_who_waits_for_it(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        ids = [await put(worker, SMALL) for _ in range(3)]
        waiting = asyncio.get_running_loop().create_task(postmaster.amend(ids, Redirect((BEN,)), by="anna", wait=60.0))
        await place.noticed(worker)
        # The scheduler is full, but for one.
        (first,) = await worker.claim(NOW, 1)
        await deliver(worker, first.message)
        results = await waiting
        assert [results[id] for id in ids[1:]] == [Amended.DONE] * 2
        # It may have been given back and changed before the worker took it.
        changed = str(first.message.slots[0].recipient.address) == "ben@other.test"
        lost = first.message.id == ids[0] and not changed
        assert results[ids[0]] is (Amended.MISSING if lost else Amended.DONE)
        to = {str(one.message.slots[0].recipient.address) for one in (await take(worker)).values()}
        assert to == {"ben@other.test"}

    on_spool(place, check)


def test_claims_of_a_gateway_that_died_are_none(place: Place) -> None:
    async def run() -> None:
        worker = await open_worker(place.options)
        id = await put(worker, SMALL)
        assert id in await take(worker)
        await place.kill(worker)
        view = await open_all(place.options)
        found = await view.postmaster.one(id)
        assert found is not None and not found.claimed
        assert place.query("SELECT 1 FROM message WHERE claimed <> 0") == [(1,)]
        assert await view.postmaster.amend([id], Reroute("smtp:x.test"), by="anna") == {id: Amended.DONE}
        assert await view.postmaster.unattended()
        await view.close()
        worker = await open_worker(place.options)
        assert (await take(worker))[id].message.envelope.next_hop == "smtp:x.test"
        await worker.close()

    asyncio.run(run())


def test_a_redacting_spool_keeps_no_local_part_of_what_was_done(place: Place, tmp_path: Path) -> None:
    async def run() -> None:
        worker = await open_worker(replace(place.options, redact=True, key_file=str(tmp_path / "key")))
        id = await put(worker, SMALL, message(recipients=("benjamin",)))
        (claimed,) = (await take(worker)).values()
        await defer(worker, claimed.message, 9e9)
        to = Recipient(parse_mailbox("evelyn@other.test"))
        await worker.postmaster.amend([id], Redirect((to,)), by="anna")
        await worker.postmaster.amend([id], EditRecipients((CEM,), (to.address,)), by="anna")
        (explained,) = await worker.explain(id)
        kept = json.dumps(explained.attempts)
        assert "redirected" in kept and "edited" in kept
        assert "benjamin" not in kept and "evelyn" not in kept and "cem@" not in kept
        await worker.close()

    asyncio.run(run())


def test_a_guests_shard_takes_no_mail_and_is_missed_by_nobody(tmp_path):
    async def run() -> None:
        guest = await SqliteSpool.open_guest(options(tmp_path))
        await guest.close()
        view = await open_all(options(tmp_path))
        stored = Stored(new_id(), State.QUEUED, message().envelope, (Slot(BEN),), NOW, 0, False, False)
        data = parcel.to_json(stored, hashlib.sha256(b"").hexdigest())
        with pytest.raises(parcel.SpoolError, match="start Gatepost once"):
            await view.postmaster.enter_described(data, str, blocks(b""), by="anna")
        await view.close()
        worker = await SqliteSpool.open(options(tmp_path))
        view = await open_all(options(tmp_path))
        assert not await view.postmaster.unattended()
        await view.close()
        await worker.close()

    asyncio.run(run())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(["claim", "defer", "deliver", *range(len(AMENDMENTS))]), max_size=14))
def test_no_order_of_claims_and_amendments_loses_a_message_or_gives_it_to_two(
    places: Callable[[Path], Place], tmp_path_factory: pytest.TempPathFactory, order: list[str | int]
) -> None:
    """Whatever is done in whatever order: a message is gone only when it was delivered, dropped, or never there."""
    place = places(tmp_path_factory.mktemp("spool"))

    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await put(worker, SMALL, message(owed=True))
        held: list[Stored] = []
        gone = False
        for step in order:
            if step == "claim":
                claimed = list((await take(worker, 8e9)).values())
                assert len(claimed) <= 1 and not (claimed and held), "two would have it"
                held += [one.message for one in claimed]
            elif step in ("defer", "deliver"):
                for stored in held:
                    await (deliver(worker, stored) if step == "deliver" else defer(worker, stored, 9e8))
                    gone = gone or step == "deliver"
                held.clear()
            else:
                results = await postmaster.amend([id], AMENDMENTS[int(step)], by="anna")
                gone = gone or (AMENDMENTS[int(step)] == Drop() and results[id].done)
                place.heed(worker)
            assert (await postmaster.one(id) is None) == gone

    on_spool(place, check)


# Suspending

ONE, TWO = (Suspension(f"smtp:{name}.test:25", "anna", NOW, "moving") for name in ("one", "two"))


async def nobody(_: frozenset[str]) -> None:
    """Nobody is told."""


def test_what_is_suspended_is_so_until_it_is_resumed_and_may_be_again(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        assert await postmaster.suspend(ONE) and await postmaster.suspend(TWO)
        again = replace(ONE, by="bob", since=NOW + 9)
        assert not await postmaster.suspend(again), "who was first stays named"
        assert await postmaster.suspensions() == {ONE.destination: ONE, TWO.destination: TWO}
        assert await postmaster.resume(ONE.destination, by="bob") == ONE
        assert await postmaster.resume(ONE.destination, by="bob") is None
        assert await worker.postmaster.suspensions() == {TWO.destination: TWO}
        assert await postmaster.suspend(again)
        assert (await postmaster.suspensions())[ONE.destination] == again

    on_spool(place, check)


def test_workers_know_what_is_suspended_within_a_look_and_say_who_ended_it(place: Place):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        watch = Watch(worker.postmaster.listing, nobody)
        assert await watch.look() == frozenset() and not watch.suspended(ONE.destination)
        await postmaster.suspend(ONE)
        assert await watch.look() == frozenset() and watch.suspended(ONE.destination)
        assert await watch.look() == frozenset() and watch.suspended(ONE.destination)
        await postmaster.resume(ONE.destination, by="bob")
        with structlog.testing.capture_logs() as logs:
            assert await watch.look() == {ONE.destination} and not watch.suspended(ONE.destination)
        assert [(log["event"], log["by"]) for log in logs] == [("destination.resumed", "bob")]

    on_spool(place, check)


def test_so_many_are_suspended_and_no_more_and_old_endings_are_forgotten(place: Place, monkeypatch):
    for module in (suspensions, shared_suspensions):
        monkeypatch.setattr(module, "COUNT_MAX", 1)

    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        for n in range(suspensions.ENDED_MAX + 5):
            assert await postmaster.suspend(Suspension(f"smtp:h{n}.test:25", "anna", NOW))
            with pytest.raises(SpoolError, match="1 destinations"):
                await postmaster.suspend(TWO)
            await postmaster.resume(f"smtp:h{n}.test:25", by="bob")
        listed = await postmaster.listing.look()
        assert listed is not None and not listed.suspended
        assert len(listed.ended) == suspensions.ENDED_MAX and listed.ended[-1].destination == f"smtp:h{n}.test:25"

    on_spool(place, check)


# Moving


async def blocks(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize(
    "content", [SMALL, b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n" * 300_000], ids=["small", "large"]
)
def test_a_message_leaves_one_spool_and_enters_another_as_it_was(place: Place, content):
    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await deferred(worker, recipients=("ben", "cem"), owed=True)
        await put(worker, content, one := message(owed=True, state=State.HOLD, reason="why" * 1000))
        elsewhere = place.other()
        other = await open_worker(elsewhere.options)
        desk = await open_all(elsewhere.options)
        for name in (id, one.id):
            claimed = await worker.show(name)
            assert claimed is not None
            sent = await octets(claimed)
            described = await postmaster.describe(name, hashlib.sha256(sent).hexdigest())
            data = json.loads(json.dumps(described))
            assert await desk.postmaster.enter_described(data, str, blocks(sent), by="anna") == name
            assert await desk.postmaster.enter_described(data, str, blocks(sent), by="anna") is None, "it is there"
            entered = await other.show(name)
            assert entered is not None and entered.message == claimed.message and await octets(entered) == sent
            assert await deeds(other, name) == [("imported", "anna")] * len(claimed.message.slots)
        await desk.close()
        await other.close()
        other = await open_worker(elsewhere.options)
        assert {one.id for one in await other.list()} == {id, one.id}
        assert set(await take(other, 9.5e9)) == {id}
        await other.close()

    on_spool(place, check)


NO_PARCELS: list[tuple[dict[str, Any], bytes | None]] = [
    ({}, b"Subject: x\r\n\r\nother body\r\n"),
    ({}, b"Subject: x\r\n\r\nbody"),
    ({}, b"Subject: x\r\n\r\nbody\r\nmore\r\n"),
    ({"content": b"bare\nline\r\n"}, b"bare\nline\r\n"),
    ({"content": b"bare\rline\r\n"}, b"bare\rline\r\n"),
    # They come in blocks of three octets.
    ({"content": b"ab\r.\r\n"}, b"ab\r.\r\n"),
    ({"content": b"ab\r\r\n"}, b"ab\r\r\n"),
    ({"content": b"bare end\r"}, b"bare end\r"),
    ({"gatepost_message": 2}, None),
    ({"id": "../../x"}, None),
    ({"id": 5}, None),
    ({"state": "corrupt"}, None),
    ({"received": float("nan")}, None),
    ({"received": -1}, None),
    ({"size": True}, None),
    ({"recipients": []}, None),
    ({"recipients": [{"local": "a\r\nb", "domain": "x.test", "status": "pending", "due": 0, "attempts": 0}]}, None),
    ({"envelope": {"sender": {"local": "a b", "domain": "x\n.test"}}}, None),
    ({"envelope": {"next_hop": "nonsense"}}, None),
    ({"more": 1}, None),
]
"""What is changed in a description, and the content that comes with it where that is another one."""


def test_what_is_no_exported_message_does_not_enter(place: Place):
    def check_next_hop(text: str) -> None:
        raise ValueError("no next hop")

    async def check(worker: OperatedSpool, postmaster: Hands) -> None:
        id = await put(worker, b"body\r\n")
        described = await postmaster.describe(id, "")
        assert described is not None
        for changes, content in NO_PARCELS:
            whole = changes.get("content", b"Subject: x\r\n\r\nbody\r\n")
            data = {**described, "id": new_id(), "size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
            data |= {key: value for key, value in changes.items() if key != "content"}
            with pytest.raises(parcel.ParcelError):
                await postmaster.enter_described(data, check_next_hop, blocks(content or whole, 3), by="anna")
        assert [one.id for one in await worker.list()] == [id] and place.contents() == 1

    on_spool(place, check)


def test_a_draft_that_a_starting_gateway_removed_is_a_problem_and_no_corrupt_message(tmp_path, monkeypatch):
    async def run() -> None:
        worker = await SqliteSpool.open(options(tmp_path))
        view = await open_all(options(tmp_path))
        content = LARGE.replace(b"\n", b"x").replace(b"\r", b"x")
        stored = Stored(new_id(), State.QUEUED, message().envelope, (Slot(BEN),), NOW, len(content), False, False)
        data = parcel.to_json(stored, hashlib.sha256(content).hexdigest())
        name = parcel._name

        def raced(draft: str, final: str) -> None:
            Path(draft).unlink()
            name(draft, final)

        monkeypatch.setattr(parcel, "_name", raced)
        with pytest.raises(parcel.SpoolError, match="try again"):
            await view.postmaster.enter_described(data, str, blocks(content, 65536), by="anna")
        assert await view.list() == [] and not content_files(options(tmp_path))
        monkeypatch.undo()
        assert await view.postmaster.enter_described(data, str, blocks(content, 65536), by="anna") == stored.id
        assert content_files(options(tmp_path)) == {stored.id}
        await view.close()
        await worker.close()

    asyncio.run(run())
