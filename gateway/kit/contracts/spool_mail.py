"""What a spool must do with mail: commits and copies, claims and settlements. See `gateway.kit.contracts.spool`."""

from __future__ import annotations

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
from gateway.mail.address import NULL_SENDER
from gateway.spool.spool import RecipientStatus, Settlement, SpoolError, State


class SpoolMail:
    """The part of the contract about the mail's way through."""

    @pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
    @pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
    @with_place
    async def test_what_was_committed_is_claimed_as_it_was(
        self, place: SpoolPlace, content: bytes, restarted: bool
    ) -> None:
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

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
    @with_place
    async def test_the_head_stands_in_for_the_octets_that_are_skipped(
        self, place: SpoolPlace, content: bytes, restarted: bool
    ) -> None:
        spool = await place.open()
        await put(spool, content, head=b"X: 1\r\n", skip=16)
        if restarted:
            spool = await place.open()
        (claimed,) = (await take(spool)).values()
        assert await octets(claimed) == b"X: 1\r\n" + content[16:]
        assert claimed.message.size == len(content) - 10

    @with_place
    async def test_a_claimed_message_is_not_handed_out_again_before_a_restart(self, place: SpoolPlace) -> None:
        spool = await place.open()
        ids = {await put(spool), await put(spool, LARGE)}
        assert set(await take(spool)) == ids
        assert await take(spool) == {}
        assert await spool.next_due(NOW) is None
        spool = await place.open()
        assert set(await take(spool)) == ids

    @with_place
    async def test_no_more_than_the_limit_is_handed_out(self, place: SpoolPlace) -> None:
        spool = await place.open()
        ids = [await put(spool, content) for content in (SMALL, LARGE) * 4]
        spool = await place.open()
        ids += [await put(spool) for _ in range(4)]
        seen: list[str] = []
        while found := await spool.claim(NOW, 5):
            assert len(found) <= 5
            seen += [claimed.message.id for claimed in found]
        assert sorted(seen) == sorted(ids)

    @with_place
    async def test_new_mail_does_not_starve_what_was_put_off(self, place: SpoolPlace) -> None:
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

    @with_place
    async def test_next_due_follows_claims_settlements_and_flushes(self, place: SpoolPlace) -> None:
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
        assert await hasten(spool, [first]) == 1
        due = await spool.next_due(NOW + 200)
        assert due is not None and due <= NOW + 200
        assert set(await take(spool, NOW + 201)) == {first}
        assert await spool.next_due(NOW + 201) is None

    @with_place
    async def test_a_message_that_was_put_off_keeps_its_recipients_as_they_were_settled(
        self, place: SpoolPlace
    ) -> None:
        spool = await place.open()
        id = await put(spool, recipients=("ben", "col"))
        stored = (await take(spool))[id].message
        done, waiting = after(stored, RecipientStatus.DELIVERED)[0], after(stored, RecipientStatus.DEFERRED, NOW + 9)[1]
        await spool.settle(Settlement(id, (done, waiting), (attempt(),), warned=True))
        spool = await place.open()
        again = (await take(spool, NOW + 9))[id].message
        assert again.slots == (done, waiting)
        assert again.warned and again.due == NOW + 9

    @with_place
    async def test_warned_stays_true_once_it_is(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        slots = after((await take(spool))[id].message, RecipientStatus.DEFERRED, NOW)
        await spool.settle(Settlement(id, slots, warned=True))
        await defer(spool, (await take(spool))[id].message, NOW)
        assert (await take(spool))[id].message.warned

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @with_place
    async def test_a_message_with_nothing_left_to_do_is_gone_and_its_record_stays(
        self, place: SpoolPlace, content: bytes
    ) -> None:
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

    @with_place
    async def test_a_dsn_is_queued_in_the_step_that_retires_its_message(self, place: SpoolPlace) -> None:
        spool = await place.open()
        id = await put(spool)
        stored = (await take(spool))[id].message
        dsn = new_dsn(b"Subject: sorry\r\n\r\n\xff")
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), (dsn,)))
        assert [m.id for m in await spool.list()] == [dsn.message.id]
        assert await spool.next_due(NOW + 1) is not None
        (claimed,) = (await take(spool, NOW + 1)).values()
        assert claimed.message.envelope.sender is NULL_SENDER and claimed.content.eight_bit
        assert await octets(claimed) == dsn.content
        (explained,) = await spool.explain(dsn.message.id)
        assert explained.record == dsn.message.record

    @with_place
    async def test_several_dsns_of_one_settlement_are_queued_together(self, place: SpoolPlace) -> None:
        spool = await place.open()
        dsns = (new_dsn(b"Subject: one\r\n\r\n"), new_dsn(b"Subject: two\r\n\r\n"))
        for dropped in (True, False):
            id = await put(spool)
            stored = (await take(spool))[id].message
            if dropped:
                await spool.drop([id])
            await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), (attempt("failed"),), dsns))
            queued = [] if dropped else sorted(dsn.message.id for dsn in dsns)
            assert sorted(m.id for m in await spool.list()) == queued
        assert len(await take(spool, NOW + 1)) == len(dsns)

    @pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
    @with_place
    async def test_an_abandoned_draft_leaves_nothing(self, place: SpoolPlace, content: bytes) -> None:
        spool = await place.open()
        draft = spool.draft(new_id())
        await draft.write(content)
        await draft.abandon()
        await draft.abandon()
        assert await spool.list() == [] and await take(spool) == {}

    @with_place
    async def test_a_draft_can_be_read_by_filters_before_it_is_committed(self, place: SpoolPlace) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            new = message()
            draft = spool.draft(new.id)
            await draft.write(content)
            for _ in range(2):
                assert b"".join([block async for block in draft.blocks()]) == content
            assert draft.size == len(content) and content.startswith(draft.head)
            await spool.commit(draft, new)
        assert [len(await octets(c)) for c in (await take(spool)).values()]

    @with_place
    async def test_abandoning_after_the_commit_does_nothing(self, place: SpoolPlace) -> None:
        spool = await place.open()
        for content in (SMALL, LARGE):
            new = message()
            draft = spool.draft(new.id)
            await draft.write(content)
            await spool.commit(draft, new)
            await draft.abandon()
            assert await octets((await take(spool))[new.id]) == HEAD + content

    @pytest.mark.parametrize("content", [SMALL, LARGE])
    @with_place
    async def test_copies_of_one_content_are_messages_of_their_own(self, place: SpoolPlace, content: bytes) -> None:
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

    @with_place
    async def test_of_copies_all_are_stored_or_none(self, place: SpoolPlace) -> None:
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

    @pytest.mark.parametrize("original", [SMALL, LARGE])
    @pytest.mark.parametrize("edited", [b"other\r\n", b"other" * 100_000 + b"\r\n"])
    @pytest.mark.parametrize("whose", ["first", "second", "both"])
    @with_place
    async def test_copies_whose_body_was_edited_have_content_of_their_own(
        self, place: SpoolPlace, original: bytes, edited: bytes, whose: str
    ) -> None:
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

    @with_place
    async def test_an_edited_draft_whose_commit_fails_is_gone_with_the_original(self, place: SpoolPlace) -> None:
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
