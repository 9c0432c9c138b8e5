"""The front door as its clients meet it: commands, content, limits, patience and our own errors."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Notify, Ret
from gateway.sdk import PROCEED, Stage
from gateway.smtp import connection
from gateway.smtp.data import Newlines
from gateway.smtp.listener import tls_context
from gateway.smtp.options import Limits, Timeouts
from gateway.spool.spool import SpoolError, SpoolFull
from tests.pipeline.setting import A, finder, hook, plugin, policy
from tests.smtp.door import MESSAGE, PATIENCE, Client, door, networks, pipeline, run, trusting_context
from tests.smtp.faults import failing
from tests.support.servers import Certificate

QUEUED = re.compile(r"250 2\.0\.0 queued as \w{14,}")
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


@pytest.fixture
def context(certificate: Certificate):
    return tls_context(str(certificate.certificate), str(certificate.key))


def test_a_message_is_in_the_spool_when_250_is_said():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            assert QUEUED.fullmatch(reply := await client.message())
            (stored,) = await opened.stored()
            assert stored.message.id == reply.split()[-1]
            assert await opened.bodies() == [MESSAGE]
            assert opened.rung == 1

    run(test)


def test_the_null_sender_and_dsn_parameters_reach_the_spool_unchanged():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.expect("MAIL FROM:<> RET=HDRS ENVID=QqAb+2B", "250")
            await client.expect("RCPT TO:<b@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;B+40Example.ORG", "250")
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            assert QUEUED.fullmatch(await client.reply())
            (stored,) = await opened.stored()
            envelope = stored.message.envelope
            assert envelope.sender is NULL_SENDER
            assert (envelope.parameters.ret, envelope.parameters.envid) == (Ret.HEADERS, "QqAb+2B")
            (recipient,) = envelope.recipients
            assert envelope.origin is not None and envelope.origin.client == ipaddress.ip_address("127.0.0.1")
            assert envelope.origin.port and envelope.origin.helo and envelope.origin.esmtp
            assert recipient.notify == {Notify.FAILURE, Notify.DELAY}
            assert recipient.orcpt == "rfc822;B+40Example.ORG"

    run(test)


@pytest.mark.parametrize("length", [999, 1001, 2049, 70_000, 3_000_000])
def test_a_line_of_any_length_arrives_as_it_was(length):
    content = b"Subject: x\r\n\r\n" + b"x" * length + b"\r\nlast\r\n"

    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            assert QUEUED.fullmatch(await client.message(content))
            assert await opened.bodies() == [content]

    run(test)


def test_large_content_goes_to_disk_while_it_arrives():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(b"Subject: x\r\n\r\n" + b"x" * 3_000_000)

            def on_disk() -> int:
                return sum(p.stat().st_size for p in Path(opened.directory).rglob("content/*"))

            await until(lambda: on_disk() > 2_000_000)
            client.send(b"\r\n.\r\n")
            assert QUEUED.fullmatch(await client.reply())
            (content,) = await opened.bodies()
            assert len(content) == 3_000_000 + 16

    run(test)


async def until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)


ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\r\n.\r\r\n", b"\n.\r", b"\r.\n"]
EVIL = b"MAIL FROM:<evil@sender.test>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"


@pytest.mark.parametrize("newlines", list(Newlines))
@pytest.mark.parametrize("fake", ENDS)
@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_no_other_sequence_ends_a_message_and_no_bare_line_end_is_kept(newlines, fake, how):
    content = b"Subject: x\r\n\r\nbody" + fake + EVIL + b"\r\n"

    async def test() -> None:
        async with door(newlines=newlines) as opened:
            client = await opened.session()
            if how == "DATA":
                reply = await client.message(content)
            else:
                await client.envelope()
                client.send(b"BDAT %d LAST\r\n" % len(content) + content)
                reply = await client.reply()
            assert reply.startswith("250 2.0.0 queued" if newlines is Newlines.NORMALIZE else "550 5.5.2")
            await client.expect("NOOP", "250")
            contents = await opened.contents()
            assert len(contents) == (newlines is Newlines.NORMALIZE)
            assert not any(BARE.search(content) for content in contents)
            await client.expect("QUIT", "221")

    run(test)


def test_replies_to_a_pipelined_group_leave_in_order_and_in_one_write():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            (server,) = opened.servers()
            writes: list[bytes] = []
            real = server.transport

            class Tap:
                def __getattr__(self, name: str) -> Any:
                    return getattr(real, name)

                def write(self, data: bytes) -> None:
                    writes.append(data)
                    real.write(data)

            server.transport = Tap()
            client.send(b"NOOP\r\n" * 20 + b"VRFY x\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<b@example.org>\r\n" * 20)
            for code in ["250"] * 20 + ["252"] + ["250"] * 21:
                assert (await client.reply()).startswith(code)
            assert len(writes) == 1
            await client.expect("RSET", "250")

    run(test)


# Limits


def test_too_many_sessions_are_turned_away():
    async def test() -> None:
        async with door(limits=Limits(sessions=2)) as opened:
            kept = [await opened.session(), await opened.session("127.0.0.2")]
            late = await opened.connect("127.0.0.3")
            assert await late.reply() == "421 4.3.2 too many connections, try again later"
            assert await late.ended()
            await kept[0].expect("QUIT", "221")
            await until(lambda: len(opened.servers()) == 1)
            await opened.session("127.0.0.3")

    run(test)


def test_too_many_sessions_of_one_client_are_turned_away():
    async def test() -> None:
        async with door(limits=Limits(sessions_per_client=2)) as opened:
            await opened.session()
            await opened.session()
            late = await opened.connect()
            assert (await late.reply()).startswith("421 4.7.0 too many connections from you")
            assert await late.ended()
            await opened.session("127.0.0.2")

    run(test)


def test_behind_a_proxy_its_clients_are_counted_and_not_the_proxy():
    async def test() -> None:
        async with door(limits=Limits(sessions_per_client=1), proxy=networks("127.0.0.0/8")) as opened:
            for n in range(3):
                client = await opened.connect(first=b"PROXY TCP4 192.0.2.%d 127.0.0.1 999 25\r\n" % n)
                await client.greeting()
            again = await opened.connect(first=b"PROXY TCP4 192.0.2.1 127.0.0.1 999 25\r\n")
            await again.greeting("421")

    run(test)


def test_a_flood_of_connections_before_implicit_tls_is_turned_away_without_a_handshake(context):
    async def test() -> None:
        async with door(limits=Limits(sessions_per_client=1), tls=context, implicit=True) as opened:
            client = await opened.connect_tls()
            await client.hello()
            silent = await opened.connect()
            assert await silent.ended()

    run(test)


def test_commands_that_lead_nowhere_end_the_session_when_there_are_too_many():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            client.send(b"NOOP\r\n" * 300)
            replies = (await client.last_words()).splitlines()
            assert replies[-1] == "421 4.7.0 too many errors"
            assert 100 <= len(replies) <= 125

    run(test)


def test_content_over_the_limit_is_refused_at_its_end_and_not_stored():
    async def test() -> None:
        async with door(limits=Limits(message_size=100_000)) as opened:
            client = await opened.session()
            reply = await client.message(b"Subject: x\r\n\r\n" + b"x" * 100_000 + b"\r\n")
            assert reply.startswith("552 5.3.4 message is too big (ref ")
            assert QUEUED.fullmatch(await client.message())
            assert await opened.bodies() == [MESSAGE]

    run(test)


def test_content_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr("gateway.smtp.receive.WASTE", 100_000)

    async def test() -> None:
        async with door(limits=Limits(message_size=100_000)) as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(b"x" * 1_000_000)
            assert (await client.reply()).startswith("552 5.3.4")
            assert await client.ended()
            assert await opened.stored() == []

    run(test)


def test_a_header_section_over_the_limit_is_refused():
    async def test() -> None:
        async with door(limits=Limits(header_size=2000)) as opened:
            client = await opened.session()
            assert (await client.message(b"X: " + b"x" * 2000 + b"\r\n\r\n")).startswith("552 5.3.4 header")
            assert (await client.message(b"X: " + b"x" * 2000 + b"\r\n")).startswith("552 5.3.4 header")
            assert QUEUED.fullmatch(await client.message(b"X: x\r\n\r\n" + b"x" * 3000 + b"\r\n"))

    run(test)


def test_a_header_section_without_end_is_refused():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            assert (await client.message(b"X: 1\r\n" * 60_000)).startswith("552 5.3.4 header")
            assert await opened.stored() == []

    run(test)


def test_the_mail_length_limit_does_not_grow_with_repeated_ehlo():
    line = "MAIL FROM:<a@sender.test> ENVID=" + "x" * 90 + " " * 420

    async def test() -> None:
        async with door(limits=Limits(command_line=512)) as opened:
            client = await opened.session()
            for _ in range(10):
                await client.expect(line, "500 5.5.2 line is too long")
                await client.expect("EHLO client.test", "250")

    run(test)


# Patience


TIMED_OUT = "421 4.4.2 timed out waiting for you"


async def timed_out(client: Client) -> None:
    assert (await client.last_words()).splitlines()[-1] == TIMED_OUT


async def cut_off(client: Client, drip: bytes, least: float, most: float) -> None:
    """A client that goes on dripping is told that its time is up, not before `least` seconds and not after `most`."""
    began = time.monotonic()
    assert (await client.drip(drip)).splitlines()[-1] == TIMED_OUT
    assert least <= time.monotonic() - began < most


def test_a_client_that_says_nothing_is_let_go():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=0.1)) as opened:
            await timed_out(await opened.connect())
            client = await opened.session()
            await client.envelope()
            await timed_out(client)
            assert await opened.stored() == []

    run(test)


def test_a_command_that_drips_gets_no_more_time_than_one_that_does_not():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=0.2)) as opened:
            client = await opened.session()
            await cut_off(client, b"N", 0.19, 5.0)

    run(test)


def test_a_pause_in_the_content_is_shorter_than_one_between_commands():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=60, data_block=0.1)) as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(b"Subject: x\r\n")
            await timed_out(client)
            assert await opened.stored() == []

    run(test)


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_content_that_drips_has_to_come_to_an_end(how):
    async def test() -> None:
        async with door(timeouts=Timeouts(command=60, data_block=0.1, data_total=0.3)) as opened:
            client = await opened.session()
            await client.envelope()
            if how == "DATA":
                await client.expect("DATA", "354")
            else:
                client.send(b"BDAT 10000 LAST\r\n")
            await cut_off(client, b"x", 0.29, 5.0)

    run(test)


def test_chunks_have_the_time_of_one_message_all_together():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=60, session=5, data_total=0.3)) as opened:
            client = await opened.session()
            await client.envelope()
            await cut_off(client, b"BDAT 1\r\nx", 0.29, 4.0)

    run(test)


def test_a_session_has_to_come_to_an_end():
    async def test() -> None:
        async with door(timeouts=Timeouts(session=0.3)) as opened:
            client = await opened.session()
            await cut_off(client, b"MAIL FROM:<>\r\nRSET\r\n", 0.1, 5.0)

    run(test)


def test_a_proxy_header_that_does_not_come_is_not_waited_for():
    async def test() -> None:
        async with door(timeouts=Timeouts(greeting=0.1), proxy=networks("127.0.0.0/8")) as opened:
            await timed_out(await opened.connect(first=b"PROXY TC"))

    run(test)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_handshake_that_does_not_come_is_not_waited_for(context, implicit):
    async def test() -> None:
        async with door(timeouts=Timeouts(tls_handshake=0.1), tls=context, implicit=implicit) as opened:
            client = await opened.connect()
            if not implicit:
                await client.hello()
                await client.expect("STARTTLS", "220")
            assert await client.ended()
            await until(lambda: not opened.servers())

    run(test)


def test_a_client_that_does_not_read_is_let_go_and_its_replies_are_bounded():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=0.2), limits=Limits(errors=10_000_000)) as opened:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", opened.port))
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            most = 0
            assert (await loop.sock_recv(sock, 1000)).startswith(b"220")

            async def flood() -> None:
                while True:
                    await loop.sock_sendall(sock, b"EHLO client.test\r\n" * 500)

            task = loop.create_task(flood())
            while opened.servers():
                for server in opened.servers():
                    most = max(most, sum(map(len, server._out)))
                    assert server.transport is None or server.transport.get_write_buffer_size() < 1 << 20
                await asyncio.sleep(0.001)
            assert most < 1 << 18
            task.cancel()
            await asyncio.wait({task})
            sock.close()

    run(test)


def test_our_own_slowness_is_not_the_clients():
    async def slow(*given: Any) -> A:
        await asyncio.sleep(0.3)
        return A()

    judge = policy("slow", hook(Stage.RCPT, [A], lambda a: PROCEED))
    things = plugin("slow", finder(Stage.RCPT, A, [], slow), policy=judge)

    async def test() -> None:
        used = {"default": pipeline(["slow"], things)}
        async with door(timeouts=Timeouts(command=0.2), pipelines=used) as opened:
            client = await opened.session()
            assert QUEUED.fullmatch(await client.message())

    run(test)


# What is not SMTP


def test_who_talks_before_the_greeting_is_turned_away():
    async def slow(*given: Any) -> A:
        await asyncio.sleep(0.1)
        return A()

    judge = policy("slow", hook(Stage.CONNECT, [A], lambda a: PROCEED))
    things = plugin("slow", finder(Stage.CONNECT, A, [], slow), policy=judge)

    async def test() -> None:
        async with door(pipelines={"default": pipeline(["slow"], things)}) as opened:
            client = await opened.connect(first=b"EHLO client.test\r\n")
            assert await client.reply() == "554 5.5.1 data before it was asked for"
            assert await client.ended()
            await opened.session()

    run(test)


@pytest.mark.parametrize(
    "verb", ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI"]
)
def test_an_http_verb_ends_the_session(verb):
    async def test() -> None:
        async with door() as opened:
            client = await opened.connect()
            await client.greeting()
            client.send(f"{verb} / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\n".encode())
            assert (await client.last_words()).splitlines() == ["554 5.5.1 this is SMTP"]

    run(test)


# TLS


def test_ids_go_on_after_starttls(context):
    async def test() -> None:
        async with door(tls=context) as opened:
            client = await opened.session()
            first = await client.message()
            await client.starttls()
            await client.expect("EHLO client.test", "250")
            second = await client.message()
            assert QUEUED.fullmatch(first) and QUEUED.fullmatch(second) and first != second
            assert len(await opened.stored()) == 2

    run(test)


async def decrypted(client: Client, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> bytes:
    """What the server says next, over TLS that the test drives itself."""
    while True:
        try:
            return tls.read(1000)
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
            incoming.write(await asyncio.wait_for(client.reader.read(65536), PATIENCE))


def test_a_proxy_header_and_the_handshake_may_come_in_one_packet(context):
    async def test() -> None:
        async with door(tls=context, implicit=True, proxy=networks("127.0.0.0/8")) as opened:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting_context().wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            client = await opened.connect(first=b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n" + outgoing.read())

            assert (await decrypted(client, tls, incoming, outgoing)).startswith(b"220 ")
            (server,) = opened.servers()
            assert str(server.session.client) == "192.0.2.7"
            assert server.session.tls
            tls.write(b"NOOP\r\n")
            client.send(outgoing.read())
            assert await decrypted(client, tls, incoming, outgoing) == b"250 2.0.0 ok\r\n"

    run(test)


def test_a_client_that_does_not_say_goodbye_in_tls_is_let_go_as_soon_as_others(context, monkeypatch):
    monkeypatch.setattr(connection, "_LINGER", 0.1)

    async def test() -> None:
        async with door(tls=context, implicit=True) as opened:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting_context().wrap_bio(incoming, outgoing)
            client = await opened.connect()

            assert (await decrypted(client, tls, incoming, outgoing)).startswith(b"220 ")
            tls.write(b"QUIT\r\n")
            assert (await decrypted(client, tls, incoming, outgoing)).startswith(b"221 ")
            await client.last_words()

    run(test)


def test_plain_commands_behind_a_proxy_header_are_never_taken_for_the_clients_words_in_tls(context):
    async def test() -> None:
        async with door(tls=context, implicit=True, proxy=networks("127.0.0.0/8")) as opened:
            first = b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\nEHLO evil.test\r\nMAIL FROM:<evil@sender.test>\r\n"
            with pytest.raises((ConnectionError, OSError)):
                await opened.connect_tls(first)
            await until(lambda: not opened.servers())
            assert await opened.stored() == []

    run(test)


def test_a_large_message_arrives_over_tls(context):
    content = b"Subject: x\r\n\r\n" + b"0123456789abcdef\r\n" * 100_000

    async def test() -> None:
        async with door(tls=context) as opened:
            client = await opened.session()
            await client.starttls()
            await client.expect("EHLO client.test", "250")
            assert QUEUED.fullmatch(await client.message(content))
            assert await opened.bodies() == [content]

    run(test)


# Our own errors


@pytest.mark.parametrize("step", ["check_room", "draft", "commit"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [(SpoolFull("no room"), "452 4.3.1"), (SpoolError("broken"), "451 4.3.0"), (RuntimeError("secret"), "451 4.3.0")],
)
def test_trouble_of_ours_is_temporary_and_tells_no_cause(step, fault, status):
    async def test() -> None:
        async with door(spool=failing(**{step: fault})) as opened:
            client = await opened.session()
            reply = await client.say("MAIL FROM:<a@sender.test>")
            if step != "check_room":
                await client.expect("RCPT TO:<b@example.org>", "250")
                reply = await client.say("DATA")
            if step == "commit":
                assert reply.startswith("354")
                client.send(MESSAGE + b".\r\n")
                reply = await client.reply()
            assert reply.startswith("451 4.3.0" if step == "draft" else status)
            for word in ("Error", "secret", "broken", "Traceback", "Spool"):
                assert word not in reply
            await client.expect("RSET", "250")
            await client.expect("QUIT", "221")
            assert await opened.stored() == []

    run(test)


@pytest.mark.parametrize("fault", [SpoolFull("full"), SpoolError("broken"), RuntimeError("secret")])
@pytest.mark.parametrize("how", ["DATA", "BDAT"])
def test_content_that_cannot_be_kept_is_read_to_its_end_and_never_taken_for_commands(fault, how):
    content = b"x" * 5000 + b"\r\n" + EVIL + b"\r\n"

    async def test() -> None:
        async with door(spool=failing(write=fault)) as opened:
            client = await opened.session()
            await client.envelope()
            if how == "DATA":
                await client.expect("DATA", "354")
                client.send(content)
                await asyncio.sleep(0.05)
                client.send(content + b".\r\n")
            else:
                client.send(b"BDAT %d LAST\r\n" % (2 * len(content)) + content)
                await asyncio.sleep(0.05)
                client.send(content)
            assert (await client.reply())[:9] == ("452 4.3.1" if isinstance(fault, SpoolFull) else "451 4.3.0")
            await client.expect("NOOP", "250 2.0.0 ok")
            assert await opened.stored() == []

    run(test)


def test_a_bug_before_a_chunk_was_read_ends_the_session():
    async def test() -> None:
        async with door(spool=failing(draft=RuntimeError("secret"))) as opened:
            client = await opened.session()
            await client.envelope()
            client.send(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
            assert (await client.last_words()).splitlines() == ["421 4.3.0 local trouble, try again later"]

    run(test)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(b"Subject: x\r\n\r\n" + b"x" * 1_000_000 + b"\r\n.\r")
            await until(lambda: any(Path(opened.directory).rglob("content/*")))
            client.close()
            await until(lambda: not opened.servers())
            assert await opened.stored() == []
            assert not list(Path(opened.directory).rglob("content/*"))

    run(test)


def test_a_client_that_closes_its_side_after_the_dot_still_gets_its_reply():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\nQUIT\r\n")
            client.writer.write_eof()
            assert QUEUED.fullmatch(await client.reply())
            assert (await client.reply()).startswith("221")
            assert len(await opened.stored()) == 1

    run(test)
