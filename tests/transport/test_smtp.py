"""The SMTP and LMTP transport against peers that do what they should not."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import tests.transport.peer
from gateway.mail.envelope import MailParameters
from gateway.sdk.testing import BytesContent, FakeDns
from gateway.transport.options import EightBit, HopOptions, SmtpOptions, Timeouts
from gateway.transport.parcel import SMALL
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Fault, Kind, Result, Security
from tests.support.process import free_port
from tests.transport.peer import Link, delivery, peer, run, statuses, transport


@pytest.fixture(autouse=True, params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds on both event loops."""
    monkeypatch.setattr(tests.transport.peer, "LOOP", request.param)


async def takes_one(link: Link) -> None:
    await link.greet()
    await link.take()
    await link.end()


async def takes_all(link: Link) -> None:
    await link.greet()
    while True:
        await link.take()


def test_a_message_is_delivered_with_its_reply_and_the_connection_says_quit():
    async def main() -> None:
        async with peer(takes_one) as it:
            t = transport(it.port)
            (outcome,) = await t.deliver(delivery(content=b"Subject: x\r\n\r\n.dot\r\n"))
            await t.close()
        assert outcome.result is Result.DELIVERED and outcome.replied and outcome.fault is Fault.NONE
        assert str(outcome.reply) == "250 2.0.0 taken"
        assert outcome.host == "127.0.0.1" and outcome.dsn_passed and outcome.tls == ""
        assert it.contents == [b"Subject: x\r\n\r\n..dot\r\n"]
        assert it.heard == [
            "EHLO gate.test",
            "MAIL FROM:<ben@example.org> SIZE=20",
            "RCPT TO:<anna@example.net>",
            "DATA",
            "QUIT",
        ]

    run(main())


def test_a_connection_is_used_again_and_no_more_often_than_allowed():
    async def main() -> None:
        async with peer(takes_all) as it:
            t = transport(it.port, messages_per_connection=3)
            for _ in range(7):
                assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            await t.close()
        assert it.connections == 3
        assert len(it.contents) == 7

    run(main())


def test_an_idle_connection_is_ended_with_quit_when_its_time_is_over():
    async def main() -> None:
        async with peer(takes_one) as it:
            t = transport(it.port, max_idle=0.05)
            await t.deliver(delivery())
            await it.until("QUIT")
            assert it.count("QUIT") == 1
            await t.close()

    run(main())


def test_deliveries_at_the_same_time_have_connections_of_their_own():
    async def main() -> None:
        async with peer(takes_all) as it:
            t = transport(it.port)
            outcomes = await asyncio.gather(*[t.deliver(delivery()) for _ in range(5)])
            assert [statuses(o) for o in outcomes] == [["delivered 2.0.0"]] * 5
            assert it.connections == 5
            await t.close()

    run(main())


# A kept connection that turns out dead.


async def closes_when_reused(link: Link) -> None:
    await link.greet()
    await link.take()
    await link.hear("MAIL")
    link.drop()


async def says_421_when_reused(link: Link) -> None:
    await link.greet()
    await link.take()
    await link.hear("MAIL")
    await link.say("421 4.4.2 you were away for too long")
    link.drop()


@pytest.mark.parametrize("first", [closes_when_reused, says_421_when_reused])
def test_a_kept_connection_that_is_dead_before_mail_is_replaced_once(first: Any):
    async def main() -> None:
        async with peer(first, takes_one) as it:
            t = transport(it.port)
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            assert it.connections == 2
            await t.close()

    run(main())


def test_the_replacement_of_a_kept_connection_is_not_replaced_again():
    async def drops_at_mail(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL")
        link.drop()

    async def main() -> None:
        async with peer(closes_when_reused, drops_at_mail) as it:
            t = transport(it.port)
            await t.deliver(delivery())
            assert statuses(await t.deliver(delivery())) == ["deferred 4.4.2"]
            assert it.connections == 2

    run(main())


def test_a_connection_that_the_peer_closed_while_idle_is_not_used():
    async def closes_after_one(link: Link) -> None:
        await link.greet()
        await link.take()
        await idle.wait()
        await link.say("421 4.4.2 bye")
        link.writer.close()

    idle = asyncio.Event()

    async def main() -> None:
        async with peer(closes_after_one, takes_one) as it:
            t = transport(it.port)
            await t.deliver(delivery())
            (kept,) = t._idle
            idle.set()
            await kept.ended()
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            assert it.count("MAIL") == 2
            await t.close()

    run(main())


def test_a_connection_lost_after_the_dot_is_deferred_and_never_sent_again():
    async def drops_after_the_second_dot(link: Link) -> None:
        await link.greet()
        await link.take()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "354 go")
        await link.content()
        link.drop()

    async def main() -> None:
        async with peer(drops_after_the_second_dot) as it:
            t = transport(it.port)
            await t.deliver(delivery())
            (outcome,) = await t.deliver(delivery())
            assert statuses([outcome]) == ["deferred 4.4.2"]
            assert "waiting for the reply to the content" in outcome.reply.text
            assert not outcome.replied and outcome.fault is Fault.PEER
            assert it.connections == 1 and len(it.contents) == 2

    run(main())


# A fresh connection that is lost, at every step.

STEPS = ["accept", "greeting", "ehlo", "mail", "rcpt", "data", "content", "dot"]


def dropper(step: str, action: str) -> Any:
    async def script(link: Link) -> None:
        async def here(name: str) -> None:
            if name == step:
                if action == "421":
                    await link.say("421 4.3.2 shutting down")
                elif action == "garbage":
                    await link.say("what?")
                elif action == "silence":
                    await link.reader.read()
                link.drop()
                raise ConnectionResetError

        await here("accept")
        await link.say("220 peer.test")
        await here("greeting")
        await link.hear("EHLO")
        await here("ehlo")
        await link.say("250-peer.test", "250 PIPELINING")
        await link.hear("MAIL")
        await here("mail")
        await link.say("250 ok")
        await link.hear("RCPT")
        await here("rcpt")
        await link.say("250 ok")
        await link.hear("DATA")
        await here("data")
        await link.say("354 go")
        await here("content")
        await link.content()
        await here("dot")

    return script


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", ["drop", "421", "garbage"])
def test_whatever_breaks_at_any_step_is_a_deferral(step: str, action: str):
    async def main() -> None:
        async with peer(dropper(step, action)) as it:
            t = transport(it.port)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DEFERRED and outcome.reply.temporary
        assert it.connections == 1
        before_mail = step in ("accept", "greeting", "ehlo")
        assert outcome.fault is (Fault.CONNECT if before_mail else Fault.PEER)

    run(main())


@pytest.mark.parametrize("step", [s for s in STEPS if s != "content"])
def test_a_silent_peer_is_given_up_at_every_step(step: str):
    quick = Timeouts(hello=0.1, command=0.1, data=0.1, dot=0.1, block=0.1, quit=0.1)

    async def main() -> None:
        async with peer(dropper(step, "silence")) as it:
            t = transport(it.port, timeouts=quick)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert statuses([outcome]) == ["deferred 4.4.2"]
        assert "no answer in time" in outcome.reply.text

    run(main())


def test_a_peer_that_takes_no_content_is_given_up():
    async def main() -> None:
        async def stops(link: Link) -> None:
            await link.greet()
            await link.hear("MAIL", "RCPT", "DATA")
            link.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await link.say("250 ok", "250 ok", "354 go")
            await done.wait()

        done = asyncio.Event()
        async with peer(stops) as it:
            t = transport(it.port, timeouts=Timeouts(block=0.1, quit=0.1))
            (outcome,) = await t.deliver(delivery(content=b"x\r\n" * (10 << 20)))
            done.set()
            assert statuses([outcome]) == ["deferred 4.4.2"]
            assert "sending the content" in outcome.reply.text

    run(main())


# Refusals.


def test_each_recipient_has_its_own_outcome():
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "RCPT", "RCPT", "DATA")
        await link.say("250 ok", "550 5.1.1 who?", "250 ok", "452 4.2.2 full", "354 go")
        await link.content()
        await link.say("250 2.0.0 ok")
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            outcomes = await t.deliver(delivery("a@x.test", "b@x.test", "c@x.test"))
            await t.close()
        assert statuses(outcomes) == ["failed 5.1.1", "delivered 2.0.0", "deferred 4.2.2"]
        assert [o.fault for o in outcomes] == [Fault.PEER, Fault.NONE, Fault.PEER]

    run(main())


def test_a_refused_transaction_is_reset_and_the_connection_used_again():
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("550 5.7.1 no", "503 no", "503 no")
        await link.hear("RSET")
        await link.say("250 ok")
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            assert statuses(await t.deliver(delivery())) == ["failed 5.7.1"]
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            assert it.connections == 1
            await t.close()

    run(main())


def test_lmtp_outcomes_after_the_dot_are_by_recipient():
    async def script(link: Link) -> None:
        await link.say("220 peer.test LMTP")
        await link.hear("LHLO")
        await link.say("250-peer.test", "250 PIPELINING")
        await link.hear("MAIL", "RCPT", "RCPT", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "250 ok", "550 5.1.1 who?", "354 go")
        await link.content()
        await link.say("250 2.1.5 stored", "552 5.2.2 quota")
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port, kind=Kind.LMTP)
            outcomes = await t.deliver(delivery("a@x.test", "b@x.test", "c@x.test"))
            assert statuses(outcomes) == ["delivered 2.1.5", "failed 5.2.2", "failed 5.1.1"]
            await t.close()

    run(main())


def test_an_lmtp_connection_lost_between_the_answers_defers_the_rest():
    async def script(link: Link) -> None:
        await link.say("220 peer.test LMTP")
        await link.hear("LHLO")
        await link.say("250-peer.test", "250 PIPELINING")
        await link.hear("MAIL", "RCPT", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "250 ok", "354 go")
        await link.content()
        await link.say("250 2.1.5 stored")
        link.writer.close()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port, kind=Kind.LMTP)
            assert statuses(await t.deliver(delivery("a@x.test", "b@x.test"))) == ["delivered 2.1.5", "deferred 4.4.2"]

    run(main())


def test_a_refusal_in_mid_content_is_the_outcome():
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "354 go")
        await link.reader.readexactly(1000)
        await link.say("552 5.3.4 too big")
        await link.reader.read()

    async def main() -> None:
        class Endless(BytesContent):
            """Goes on until the refusal has come; without it, the test runs into its time limit."""

            async def blocks(self) -> AsyncIterator[bytes]:
                while True:
                    yield b"x\r\n"
                    await asyncio.sleep(0)

        async with peer(script) as it:
            t = transport(it.port)
            (outcome,) = await t.deliver(delivery(content=Endless(b"x\r\n" * SMALL)))
            assert str(outcome.reply) == "552 5.3.4 too big"
            assert outcome.result is Result.FAILED
            await t.close()

    run(main())


@pytest.mark.parametrize("size", [10, SMALL + 10])
@pytest.mark.parametrize("verdict", ["250 2.0.0 taken", "552 5.3.4 no"])
def test_no_content_is_sent_to_a_peer_that_judged_it_before_it_came(verdict: str, size: int):
    rest: list[bytes] = []

    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "354 go", verdict)
        rest.append(await link.reader.read())

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            (outcome,) = await t.deliver(delivery(content=b"x" * size))
            await it.until("DATA")
        assert outcome.result is (Result.DEFERRED if verdict.startswith("250") else Result.FAILED)
        assert rest == [b""]

    run(main())


def test_a_configured_next_hop_that_refuses_us_in_the_greeting_defers():
    async def script(link: Link) -> None:
        await link.say("554 5.7.1 not you")
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DEFERRED and outcome.fault is Fault.CONNECT
        assert str(outcome.reply) == "554 5.7.1 not you" and outcome.replied

    run(main())


def test_a_refused_connect_is_4_4_1_and_the_destinations_fault():
    async def main() -> None:
        t = transport(free_port())
        outcomes = await t.deliver(delivery("a@x.test", "b@x.test"))
        assert statuses(outcomes) == ["deferred 4.4.1"] * 2
        assert all(o.fault is Fault.CONNECT and not o.replied for o in outcomes)

    run(main())


# Content.


def test_large_content_is_streamed_and_arrives_whole():
    async def main() -> None:
        data = b"".join(b".line %d\r\n" % i for i in range(300_000))
        async with peer(takes_all) as it:
            t = transport(it.port)
            assert statuses(await t.deliver(delivery(content=data))) == ["delivered 2.0.0"]
            await t.close()
        assert it.contents[0].replace(b"\r\n..", b"\r\n.")[1:] == data

    run(main())


def test_the_dot_is_never_sent_when_the_content_cannot_be_read():
    class Unreadable(BytesContent):
        async def blocks(self) -> AsyncIterator[bytes]:
            yield self.data[:100_000]
            raise OSError(5, "Input/output error")

    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("250 ok", "250 ok", "354 go")
        it_rest.append(await link.reader.read())

    it_rest: list[bytes] = []

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            with pytest.raises(OSError, match="Input/output"):
                await t.deliver(delivery(content=Unreadable(b"x\r\n" * SMALL)))
            await it.until("DATA")
        assert not any(b"\r\n.\r\n" in rest for rest in it_rest)
        assert not t._idle

    run(main())


def test_a_cancelled_delivery_leaves_no_half_used_connection():
    async def silent(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL")
        cancel.set()
        await link.reader.read()

    cancel = asyncio.Event()

    async def main() -> None:
        async with peer(silent) as it:
            t = transport(it.port)
            task = asyncio.get_running_loop().create_task(t.deliver(delivery()))
            await cancel.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not t._idle
            await t.close()

    run(main())


def test_more_recipients_than_fit_are_sent_in_several_transactions():
    async def script(link: Link) -> None:
        await link.greet()
        await link.take(rcpts=2)
        await link.take(rcpts=1)
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port, recipients_per_message=2)
            outcomes = await t.deliver(delivery("a@x.test", "b@x.test", "c@x.test"))
            assert statuses(outcomes) == ["delivered 2.0.0"] * 3
            await t.close()

    run(main())


@pytest.mark.parametrize(
    ("eight_bit", "content", "status", "sent"),
    [
        (EightBit.CONVERT, "S: x\r\n\r\n\u00e9\r\n", "delivered 2.0.0", b"\r\n\r\n=C3=A9\r\n"),
        (EightBit.CONVERT, "S: \u00e9\r\n\r\n\u00e9\r\n", "failed 5.6.3", None),
        (EightBit.BOUNCE, "S: x\r\n\r\n\u00e9\r\n", "failed 5.6.3", None),
        (EightBit.SEND, "S: x\r\n\r\n\u00e9\r\n", "delivered 2.0.0", b"S: x\r\n\r\n\xc3\xa9\r\n"),
    ],
)
def test_8_bit_content_for_a_next_hop_without_8bitmime_is_converted_bounced_or_sent(eight_bit, content, status, sent):
    async def main() -> None:
        async with peer(plain) as it:
            t = transport(it.port, hop=HopOptions(eight_bit))
            assert statuses(await t.deliver(delivery(content=content.encode()))) == [status]
            await t.close()
        if sent is None:
            assert it.contents == [] and it.count("MAIL") == 0
        else:
            assert it.contents[0].endswith(sent)
            assert f"MAIL FROM:<ben@example.org> SIZE={len(it.contents[0])}" in it.heard

    async def plain(link: Link) -> None:
        await link.greet("PIPELINING", "SIZE")
        await link.take()
        await link.end()

    run(main())


def test_8_bit_content_goes_as_it_is_where_8bitmime_is_offered():
    async def main() -> None:
        content = "S: x\r\n\r\n\u00e9\r\n".encode()
        async with peer(takes_one) as it:
            t = transport(it.port)
            assert statuses(await t.deliver(delivery(content=content))) == ["delivered 2.0.0"]
            await t.close()
        assert it.contents == [content] and "MAIL FROM:<ben@example.org> SIZE=12 BODY=8BITMIME" in it.heard

    run(main())


def test_large_8_bit_content_is_converted_too():
    async def main() -> None:
        line = "\u00e9" * 30
        content = f"Subject: x\r\n\r\n{(line + chr(13) + chr(10)) * 9000}".encode()
        assert len(content) > SMALL

        async def plain(link: Link) -> None:
            await link.greet("PIPELINING")
            await link.take()
            await link.end()

        async with peer(plain) as it:
            t = transport(it.port)
            assert statuses(await t.deliver(delivery(content=content))) == ["delivered 2.0.0"]
            await t.close()
        assert it.contents[0].isascii()
        assert binascii.a2b_qp(it.contents[0].partition(b"\r\n\r\n")[2]) == content.partition(b"\r\n\r\n")[2]

    run(main())


def test_a_header_in_utf8_needs_smtputf8_only_where_the_message_asked_for_it():
    async def main() -> None:
        content = "Subject: \u00e9\r\n\r\nx\r\n".encode()
        async with peer(takes_one) as it:
            t = transport(it.port)
            d = delivery(content=content, parameters=MailParameters(smtputf8=True))
            assert statuses(await t.deliver(d)) == ["failed 5.6.9"]
            assert statuses(await t.deliver(delivery(content=content))) == ["delivered 2.0.0"]
            await t.close()

    run(main())


def test_only_recipients_that_need_smtputf8_fail_where_it_is_not_offered():
    async def main() -> None:
        async with peer(takes_one) as it:
            t = transport(it.port)
            d = delivery("ann\u00e9@x.test", "ben@b\u00fccher.example", parameters=MailParameters(smtputf8=True))
            assert statuses(await t.deliver(d)) == ["failed 5.6.7", "delivered 2.0.0"]
            await t.close()
            assert "RCPT TO:<ben@xn--bcher-kva.example>" in it.heard

    run(main())


def test_an_address_that_came_by_later_asks_for_smtputf8_by_itself_and_no_other_does():
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", "SMTPUTF8")
        while True:
            await link.take()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            for who in ("ann\u00e9@x.test", "ben@b\u00fccher.example"):
                assert statuses(await t.deliver(delivery(who))) == ["delivered 2.0.0"]
            await t.close()
        assert [line for line in it.heard if line[:4] in ("MAIL", "RCPT")] == [
            "MAIL FROM:<ben@example.org> SMTPUTF8",
            "RCPT TO:<ann\u00e9@x.test>",
            "MAIL FROM:<ben@example.org>",
            "RCPT TO:<ben@xn--bcher-kva.example>",
        ]

    run(main())


def test_a_sender_that_needs_smtputf8_fails_where_it_is_not_offered():
    async def main() -> None:
        async with peer(takes_one) as it:
            t = transport(it.port)
            d = delivery(sender="b\u00e9n@x.test", parameters=MailParameters(smtputf8=True))
            assert statuses(await t.deliver(d)) == ["failed 5.6.7"]
            await t.close()

    run(main())


def test_a_unix_socket_is_a_next_hop(tmp_path: Path):
    async def main() -> None:
        async with peer(takes_one) as it:
            path = str(tmp_path / "lmtp")
            server = await asyncio.start_unix_server(it.serve, path)
            t = SmtpTransport(Destination(Kind.SMTP, path=path), SmtpOptions("gate.test"), FakeDns())
            (outcome,) = await t.deliver(delivery())
            assert outcome.result is Result.DELIVERED and outcome.host == "localhost"
            await t.close()
            server.close()

    run(main())


def test_a_host_name_is_looked_up_and_the_next_address_tried():
    async def main() -> None:
        async with peer(takes_one) as it:
            dns = FakeDns(a={"store.example.net": ["127.0.0.9", "127.0.0.1"]})
            t = transport(it.port, host="store.example.net", dns=dns)
            (outcome,) = await t.deliver(delivery())
            assert outcome.result is Result.DELIVERED and outcome.host == "store.example.net"
            await t.close()

    run(main())


def test_closing_during_a_delivery_lets_it_end_and_keeps_nothing():
    async def main() -> None:
        go = asyncio.Event()

        async def slow(link: Link) -> None:
            await link.greet()
            await link.hear("MAIL", "RCPT", "DATA")
            await link.say("250 ok", "250 ok", "354 go")
            await link.content()
            await go.wait()
            await link.say("250 2.0.0 ok")
            await link.end()

        async with peer(slow) as it:
            t = transport(it.port)
            task = asyncio.get_running_loop().create_task(t.deliver(delivery()))
            await it.until_heard("DATA")
            await t.close()
            go.set()
            assert statuses(await task) == ["delivered 2.0.0"]
            assert not t._idle
            await it.until("QUIT")

    run(main())


def test_opportunistic_without_an_offer_stays_in_the_clear():
    async def main() -> None:
        async with peer(takes_one) as it:
            t = transport(it.port, security=Security.OPPORTUNISTIC)
            (outcome,) = await t.deliver(delivery())
            assert outcome.result is Result.DELIVERED and outcome.tls == ""
            await t.close()

    run(main())
