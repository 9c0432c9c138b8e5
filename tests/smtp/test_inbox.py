"""What a client has sent and nobody has read yet."""

from __future__ import annotations

import asyncio

import pytest

from gateway.smtp.inbox import ENOUGH, HIGH, LOW, Gone, Inbox, LineTooLong


class Pipe:
    """A transport's reading side that remembers whether it was told to pause."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


def with_inbox(test) -> None:
    async def main() -> None:
        inbox, pipe = Inbox(asyncio.get_running_loop()), Pipe()
        inbox.attach(pipe)
        await test(inbox, pipe)

    asyncio.run(main())


def test_lines_come_one_by_one_with_their_line_feed():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"one\r\ntwo\nthr")
        assert inbox.has_line
        assert await inbox.line(100) == b"one\r\n"
        assert await inbox.line(100) == b"two\n"
        assert not inbox.has_line
        asyncio.get_running_loop().call_soon(inbox.feed, b"ee\r\n")
        assert await inbox.line(100) == b"three\r\n"

    with_inbox(test)


def test_a_line_that_is_too_long_is_thrown_away_up_to_its_end():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        for i in range(20):
            loop.call_later(i * 0.001, inbox.feed, b"x" * 50)
        loop.call_later(0.03, inbox.feed, b"x\r\nNOOP\r\n")
        with pytest.raises(LineTooLong):
            await inbox.line(100)
        assert len(inbox.buffer) <= 150
        assert await inbox.line(100) == b"NOOP\r\n"

    with_inbox(test)


def test_the_limit_counts_a_line_that_is_there_at_once_too():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"x" * 99 + b"\n" + b"x" * 100 + b"\n" + b"y\n")
        assert await inbox.line(100) == b"x" * 99 + b"\n"
        with pytest.raises(LineTooLong):
            await inbox.line(100)
        assert await inbox.line(100) == b"y\n"

    with_inbox(test)


def test_reading_pauses_when_much_waits_and_resumes_when_little_does():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"x" * HIGH)
        assert not pipe.paused
        inbox.feed(b"x")
        assert pipe.paused
        await inbox.some(HIGH - LOW)
        assert pipe.paused
        await inbox.some(1)
        assert not pipe.paused

    with_inbox(test)


def test_clearing_resumes():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"x" * (HIGH + 1))
        inbox.clear()
        assert not pipe.paused
        assert not inbox.buffer

    with_inbox(test)


def test_a_new_transport_leaves_the_old_one_running():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"x" * (HIGH + 1))
        other = Pipe()
        inbox.attach(other)
        assert not pipe.paused
        inbox.feed(b"x")
        assert other.paused

    with_inbox(test)


def test_what_came_before_the_end_can_still_be_read():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"QUIT\r\nrest")
        inbox.end()
        assert await inbox.line(100) == b"QUIT\r\n"
        with pytest.raises(Gone):
            await inbox.line(100)
        assert await inbox.some() == b"rest"
        with pytest.raises(Gone):
            await inbox.some()

    with_inbox(test)


def test_the_end_wakes_who_waits():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        asyncio.get_running_loop().call_soon(inbox.end)
        with pytest.raises(Gone):
            await inbox.line(100)

    with_inbox(test)


def test_what_is_given_back_comes_first():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        inbox.feed(b"b")
        inbox.give_back(b"a")
        assert await inbox.some() == b"ab"

    with_inbox(test)


def test_a_reader_of_content_is_woken_by_a_line_end_or_by_enough_and_not_by_every_packet():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        for packets in ([b"half a l", b"ine", b" more\r\n"], [b"x" * (ENOUGH // 2)] * 2):
            reading = loop.create_task(inbox.some())
            for packet in packets:
                await asyncio.sleep(0)
                assert not reading.done()
                inbox.feed(packet)
            assert await reading == b"".join(packets)

    with_inbox(test)


def test_a_reader_who_wants_less_is_woken_by_less_and_one_may_be_nudged():
    async def test(inbox: Inbox, pipe: Pipe) -> None:
        loop = asyncio.get_running_loop()
        reading = loop.create_task(inbox.some(5))
        await asyncio.sleep(0)
        inbox.feed(b"12345")
        assert await reading == b"12345"
        reading = loop.create_task(inbox.some())
        await asyncio.sleep(0)
        assert not inbox.nudge()
        inbox.feed(b"a")
        await asyncio.sleep(0)
        assert not reading.done()
        assert inbox.nudge()
        assert await reading == b"a"

    with_inbox(test)
