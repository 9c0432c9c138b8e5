"""The transport against Postfix's smtp-sink, which behaves or misbehaves as its flags say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.transport.transport import Kind, Outcome, Result
from tests.support.postfix import SmtpSink
from tests.transport.peer import delivery, run, statuses, transport

CONTENT = b"Subject: dots\r\n\r\n.\r\n..\r\n.three\r\nend\r\n"


@contextmanager
def sink(*flags: str, dump: bool = False) -> Iterator[SmtpSink]:
    it = SmtpSink(*flags, dump=dump)
    try:
        yield it
    finally:
        it.stop()


def deliver(port: int, *, kind: Kind = Kind.SMTP, count: int = 1, content: bytes = CONTENT) -> list[list[Outcome]]:
    """The outcomes of `count` deliveries for two recipients, one after the other on kept connections."""

    async def main() -> list[list[Outcome]]:
        t = transport(port, kind=kind)
        outcomes = [await t.deliver(delivery("anna@x.test", "ben@x.test", content=content)) for _ in range(count)]
        await t.close()
        return outcomes

    return run(main())


@pytest.mark.parametrize("flags", [(), ("-p",), ("-8",), ("-e",), ("-p", "-e"), ("-L",)])
def test_mail_is_taken_with_whatever_the_server_offers(flags: tuple[str, ...]):
    with sink(*flags, dump=True) as it:
        kind = Kind.LMTP if "-L" in flags else Kind.SMTP
        for outcomes in deliver(it.port, kind=kind, count=3):
            assert [o.result for o in outcomes] == [Result.DELIVERED] * 2
        it.wait_count(3)
        dumped = it.messages()
    assert len(dumped) == 3
    for mail in dumped:
        assert "X-Mail-Args: <ben@example.org>" in mail
        assert mail.count("X-Rcpt-Args: ") == 2
        assert mail.replace("\r\n", "\n").rstrip("\n").endswith("\n\n.\n..\n.three\nend")


def test_8_bit_content_comes_in_7_bits_to_a_server_without_8bitmime():
    content = "Subject: x\r\n\r\nGr\u00fc\u00dfe\r\n".encode()
    with sink("-8", dump=True) as it:
        ((outcome, _),) = deliver(it.port, content=content)
        assert outcome.result is Result.DELIVERED
        (mail,) = it.messages()
    assert mail.isascii() and "Content-Transfer-Encoding: quoted-printable" in mail and "Gr=C3=BC=C3=9Fe" in mail


def test_a_megabyte_arrives_whole():
    content = b"Subject: long\r\n\r\n" + b"".join(b".%d\r\n" % i for i in range(150_000))
    with sink(dump=True) as it:
        ((outcome, _),) = deliver(it.port, content=content)
        assert outcome.result is Result.DELIVERED
        (mail,) = it.messages()
    assert mail.replace("\r\n", "\n").partition("\n\n.0\n")[2].rstrip("\n") == (
        content.decode().replace("\r\n", "\n").partition("\n\n.0\n")[2].rstrip("\n")
    )


def test_refused_recipients_fail():
    with sink("-f", "RCPT", "-B", "550 5.1.1 no such user") as it:
        for outcomes in deliver(it.port, count=2):
            assert statuses(outcomes) == ["failed 5.1.1"] * 2
        assert it.count == 0


def test_a_refusal_for_now_after_the_dot_is_deferred():
    with sink("-r", ".", "-b", "452 4.3.1 full") as it:
        for outcomes in deliver(it.port, count=2):
            assert statuses(outcomes) == ["deferred 4.3.1"] * 2


def test_a_close_without_a_word_after_the_dot_is_deferred_and_not_sent_twice():
    with sink("-q", ".", dump=True) as it:
        (outcomes,) = deliver(it.port)
        assert statuses(outcomes) == ["deferred 4.4.2"] * 2
        assert "waiting for the reply to the content" in outcomes[0].reply.text


@pytest.mark.parametrize("command", ["EHLO", "MAIL", "RCPT", "DATA"])
def test_a_close_without_a_word_is_deferred(command: str):
    with sink("-q", command) as it:
        (outcomes,) = deliver(it.port)
        assert statuses(outcomes) == ["deferred 4.4.2"] * 2


@pytest.mark.parametrize("command", ["EHLO", "MAIL", "RCPT", "DATA", "."])
def test_421_is_deferred_wherever_it_comes(command: str):
    with sink("-Q", command) as it:
        (outcomes,) = deliver(it.port)
        assert all(o.result is Result.DEFERRED and o.replied and o.reply.code == 421 for o in outcomes)


@pytest.mark.parametrize("command", ["MAIL", "DATA"])
def test_a_command_refused_for_good_fails_all(command: str):
    with sink("-f", command) as it:
        (outcomes,) = deliver(it.port)
        assert all(o.result is Result.FAILED and o.replied for o in outcomes)


def test_a_server_that_breaks_off_in_mid_content_is_no_delivery():
    with sink("-A", "1") as it:
        (outcomes,) = deliver(it.port, content=b"x" * 70 + b"\r\n" * 100_000)
        assert all(o.result in (Result.DEFERRED, Result.FAILED) for o in outcomes)
        assert it.count == 0


def test_every_message_of_many_at_once_is_counted_once():
    async def main(port: int) -> int:
        t = transport(port, messages_per_connection=7)
        left = list(range(300))
        good: list[Outcome] = []

        async def worker() -> None:
            while left:
                left.pop()
                good.extend(await t.deliver(delivery()))

        await asyncio.gather(*[worker() for _ in range(20)])
        await t.close()
        return sum(outcome.result is Result.DELIVERED for outcome in good)

    with sink() as it:
        good = run(main(it.port))
        it.wait_count(300)
        assert it.count == 300
    assert good == 300
