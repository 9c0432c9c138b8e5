"""What every `Transport` must do.

    class TestOurTransport(TransportContract):
        @pytest.fixture
        def place(self, tmp_path):
            return OurPlace(tmp_path)

What the far end of some transports can do and of others cannot stands in contracts of its own: `RefusalContract` where
it can refuse one recipient and take another, `StallContract` where it can keep the transport waiting.

*RFCs*: 5321 section 4.2.1 (the first digit of a reply).
"""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Final

import pytest

from gateway.kit.contracts.transport_place import (
    Arrived,
    Handing,
    RefusingPlace,
    StallingPlace,
    Stream,
    TransportPlace,
    check,
    delivery,
    holds,
    only,
    with_transport,
)
from gateway.mail.address import NULL_SENDER
from gateway.transport.transport import Result

__all__ = [
    "Arrived",
    "RefusalContract",
    "RefusingPlace",
    "StallContract",
    "StallingPlace",
    "TransportContract",
    "TransportPlace",
]

_LARGE: Final = 600_000
"""Lines of a content that is too large for memory."""
_SLACK: Final = 6 << 20
"""Octets that a transport may have in memory of a message, and a far end in the same process with it."""

CONTENTS: Final = {
    "plain": b"Subject: plain\r\n\r\nHello\r\n",
    "eight bit": b"Subject: eight\r\n\r\nGr\xc3\xbc\xc3\x9fe \xff\x80\r\n",
    "dots": b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\na.\r\n",
    "no last line end": b"Subject: open\r\n\r\nHello",
    "no body": b"Subject: none\r\n\r\n",
    "long lines": b"Subject: long\r\n\r\n" + b"x" * 5000 + b"\r\n",
}


class TransportContract:
    """Derive from it a class whose fixture `place` is a `TransportPlace`. Each test has a place of its own."""

    @pytest.mark.parametrize("count", [1, 2, 7])
    @with_transport
    async def test_each_recipient_has_one_outcome_and_one_message(
        self, place: TransportPlace, transport: Handing, count: int
    ) -> None:
        recipients = [place.recipient(number) for number in range(count)]
        content = CONTENTS["plain"]
        check(await transport().deliver(delivery(*recipients, content=content)), count)
        arrived = await place.received()
        assert sorted(a.recipient for a in arrived) == sorted(str(r.address) for r in recipients)
        assert all(holds(one, content) for one in arrived)

    @pytest.mark.parametrize("kind", sorted(CONTENTS))
    @with_transport
    async def test_content_arrives_as_it_is(self, place: TransportPlace, transport: Handing, kind: str) -> None:
        content = CONTENTS[kind]
        check(await transport().deliver(delivery(place.recipient(0), content=content)), 1)
        arrived = only(await place.received())
        assert holds(arrived, content), arrived.content

    @with_transport
    async def test_a_bounce_is_delivered_as_any_mail_is(self, place: TransportPlace, transport: Handing) -> None:
        bounce = delivery(place.recipient(0), content=CONTENTS["plain"], sender=NULL_SENDER)
        check(await transport().deliver(bounce), 1)
        assert len(await place.received()) == 1

    @with_transport
    async def test_a_delivery_can_be_made_again(self, place: TransportPlace, transport: Handing) -> None:
        content = Stream("again", 1000)
        same = delivery(place.recipient(0), content=content)
        used = transport()
        check(await used.deliver(same), 1)
        check(await used.deliver(same), 1)
        one, other = await place.received()
        whole = b"".join([block async for block in content.blocks()])
        assert holds(one, whole) and holds(other, whole)

    @with_transport
    async def test_large_content_is_streamed(self, place: TransportPlace, transport: Handing) -> None:
        content = Stream("large", _LARGE)
        used = transport()
        check(await used.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)
        tracemalloc.start()
        try:
            check(await used.deliver(delivery(place.recipient(0), content=content)), 1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < _SLACK < content.size, f"{peak} octets in memory for content of {content.size}"
        assert sorted(len(a.content) > content.size - _LARGE for a in await place.received()) == [False, True]

    @with_transport
    async def test_deliveries_at_the_same_time_do_not_mix(self, place: TransportPlace, transport: Handing) -> None:
        contents = [Stream(f"number{number:02}", 20_000) for number in range(8)]
        used = transport()
        deliveries = [
            delivery(place.recipient(number % 3), content=content, id=f"ID{number}")
            for number, content in enumerate(contents)
        ]
        for outcomes in await asyncio.gather(*(used.deliver(each) for each in deliveries)):
            check(outcomes, 1)
        arrived = await place.received()
        assert len(arrived) == len(contents)
        for each in deliveries:
            whole = b"".join([block async for block in each.content.blocks()])
            found = only([a for a in arrived if holds(a, whole)])
            assert found.recipient == str(each.recipients[0].address)

    @with_transport
    async def test_what_is_called_off_leaves_no_half_message(self, place: TransportPlace, transport: Handing) -> None:
        content = Stream("half", 400_000, waits=True)
        used = transport()
        task = asyncio.get_running_loop().create_task(used.deliver(delivery(place.recipient(0), content=content)))
        await asyncio.wait({task, waiter := _waiting(content.begins)}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        assert not task.done(), "content is read while it is delivered"
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.done() and task.cancelled(), "a delivery that is called off ends soon"
        check(await used.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)
        arrived = only(await place.received())
        assert holds(arrived, CONTENTS["plain"])

    @with_transport
    async def test_content_that_cannot_be_read_is_not_delivered(
        self, place: TransportPlace, transport: Handing
    ) -> None:
        content = Stream("broken", 400_000, breaks=True)
        used = transport()
        try:
            outcomes = await used.deliver(delivery(place.recipient(0), place.recipient(1), content=content))
        except OSError as error:
            assert str(error) == "the content cannot be read"
        else:
            check(outcomes, [Result.DEFERRED, Result.DEFERRED])
        check(await used.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)
        assert [holds(arrived, CONTENTS["plain"]) for arrived in await place.received()] == [True]

    @with_transport
    async def test_a_far_end_that_is_down_defers_everybody(self, place: TransportPlace, transport: Handing) -> None:
        before = transport()
        check(await before.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)
        await place.down()
        mail = delivery(place.recipient(0), place.recipient(1), content=CONTENTS["plain"])
        check(await before.deliver(mail), [Result.DEFERRED] * 2)
        check(await transport().deliver(mail), [Result.DEFERRED] * 2)

    @with_transport
    async def test_it_can_be_closed_at_any_time_and_more_than_once(
        self, place: TransportPlace, transport: Handing
    ) -> None:
        never_used, used = transport(), transport()
        await never_used.close()
        content = Stream("open", 400_000, waits=True)
        under_way = asyncio.get_running_loop().create_task(used.deliver(delivery(place.recipient(0), content=content)))
        await content.begins.wait()
        await used.close()
        content.go_on.set()
        check(await under_way, 1)
        await used.close()
        # A destination that has not been used for long is closed, and may be used again all the same.
        check(await used.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)
        assert len(await place.received()) == 2


class RefusalContract:
    """Derive from it too where the fixture `place` is a `RefusingPlace`."""

    @with_transport
    async def test_who_is_refused_keeps_nobody_else_from_the_message(
        self, place: RefusingPlace, transport: Handing
    ) -> None:
        recipients = [place.recipient(0), place.stranger(), place.recipient(1)]
        outcomes = await transport().deliver(delivery(*recipients, content=CONTENTS["plain"]))
        check(outcomes, [Result.DELIVERED, Result.FAILED, Result.DELIVERED])
        arrived = {a.recipient for a in await place.received()}
        assert arrived == {str(recipients[0].address), str(recipients[2].address)}

    @with_transport
    async def test_when_all_are_refused_nothing_arrives(self, place: RefusingPlace, transport: Handing) -> None:
        used = transport()
        check(await used.deliver(delivery(place.stranger(), content=CONTENTS["plain"])), [Result.FAILED])
        assert await place.received() == []
        check(await used.deliver(delivery(place.recipient(0), content=CONTENTS["plain"])), 1)


class StallContract:
    """Derive from it too where the fixture `place` is a `StallingPlace`."""

    @with_transport
    async def test_a_far_end_that_never_comes_to_an_end_defers_everybody(
        self, place: StallingPlace, transport: Handing
    ) -> None:
        await place.stall()
        mail = delivery(place.recipient(0), place.recipient(1), content=CONTENTS["plain"])
        async with asyncio.timeout(30):
            check(await transport().deliver(mail), [Result.DEFERRED] * 2)
        assert await place.received() == []


def _waiting(event: asyncio.Event) -> asyncio.Task[bool]:
    return asyncio.get_running_loop().create_task(event.wait())
