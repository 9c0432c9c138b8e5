"""Messages as HTTP requests, to a server on loopback that does what a test tells it."""

from __future__ import annotations

import asyncio
import errno
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.testing import BytesContent, FakeDns, ManualClock
from gateway.transport.options import SmtpOptions, WebhookFormat, WebhookOptions
from gateway.transport.transport import Delivery, Fault, Outcome, Result
from gateway.transport.webhook import WebhookTransport
from tests.support.process import free_port
from tests.transport.peer import delivery, run, statuses

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


class Request:
    def __init__(self, head: bytes, body: bytes) -> None:
        self.line, *fields = head.decode("ascii").rstrip("\r\n").split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.body = body


class Server:
    """Keeps the requests it got; `answer` is written after each, or a coroutine that does what it wants."""

    def __init__(self, answer: bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.port = free_port()
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if not isinstance(self.answer, bytes):
                await self.answer(reader, writer)
                return
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head[:-2], b"")
                request.body = await reader.readexactly(int(request.headers["content-length"]))
                self.requests.append(request)
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.closed += 1
            writer.transport.abort()


@asynccontextmanager
async def serving(answer: Any = OK, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", server.port, ssl=context, limit=32 << 20)
    try:
        yield server
    finally:
        listener.close()


def transport(url: str, dns: FakeDns | None = None, **options: Any) -> WebhookTransport:
    return WebhookTransport(WebhookOptions(url, **options), SmtpOptions("gate.test"), dns or FakeDns(), ManualClock())


def posted(answer: Any, what: Delivery | None = None, **options: Any) -> tuple[Server, list[Outcome]]:
    async def main() -> tuple[Server, list[Outcome]]:
        async with serving(answer) as server:
            it = transport(f"http://127.0.0.1:{server.port}/hook?key=hush", **options)
            outcomes = await it.deliver(what or delivery())
            await it.close()
            return server, outcomes

    return run(main())


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA and a certificate of it for hook.test."""
    folder = tmp_path_factory.mktemp("ca")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    (folder / "ext").write_text("subjectAltName=DNS:hook.test\n")
    for command in (
        f"openssl req -x509 {curve} -subj /CN=test-ca -keyout ca.key -out ca.pem",
        f"openssl req -new {curve} -subj /CN=hook.test -keyout key.pem -out request",
        "openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


def served_by(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    return context


def test_the_message_is_posted_with_its_envelope(tmp_path: Path):
    (tmp_path / "token").write_text("s3cret-token\n")
    what = delivery("anna@x.test", "ben@x.test", content=b"Subject: x\r\n\r\nHi\r\n")
    server, outcomes = posted(OK, what, token_file=str(tmp_path / "token"))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2
    assert [str(outcome.reply) for outcome in outcomes] == ["250 2.0.0 HTTP 200: ok"] * 2
    (request,) = server.requests
    assert request.line == "POST /hook?key=hush HTTP/1.1" and request.body == b"Subject: x\r\n\r\nHi\r\n"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["gatepost-recipients"] == "<anna@x.test>, <ben@x.test>"
    assert request.headers["authorization"] == "Bearer s3cret-token"
    assert request.headers["idempotency-key"].startswith("ID-") and "cookie" not in request.headers


def test_a_form_is_posted_and_large_content_streams():
    content = b"0123456789abcdef\r\n" * 200_000
    server, outcomes = posted(OK, delivery(content=content), format=WebhookFormat.MULTIPART)
    assert statuses(outcomes) == ["delivered 2.0.0"]
    (request,) = server.requests
    assert content in request.body and b'"sender": "ben@example.org"' in request.body
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=gatepost-")


def test_more_recipients_than_a_request_takes_make_more_requests():
    what = delivery(*[f"a{n}@x.test" for n in range(5)])
    server, outcomes = posted(OK, what, recipients_per_request=2)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 5
    assert [request.headers["gatepost-recipients"].count("@") for request in server.requests] == [2, 2, 1]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 3
    assert server.connections == 1


def test_an_attempt_made_again_has_the_same_key():
    async def main() -> None:
        async with serving(b"HTTP/1.1 503 later\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n") as server:
            it = transport(f"http://127.0.0.1:{server.port}/")
            for _ in range(2):
                (outcome,) = await it.deliver(delivery())
                assert statuses([outcome]) == ["deferred 4.4.5"] and outcome.retry_after == 120.0
            await it.close()
            assert len({request.headers["idempotency-key"] for request in server.requests}) == 1

    run(main())


def test_the_host_is_found_in_our_dns_and_its_certificate_is_for_its_name(authority: Path):
    async def main() -> None:
        async with serving(OK, served_by(authority)) as server:
            dns = FakeDns(a={"hook.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
            ca = str(authority / "ca.pem")
            it = transport(f"https://hook.test:{server.port}/x", dns, tls_ca=ca)
            assert statuses(await it.deliver(delivery())) == ["delivered 2.0.0"]
            assert ("hook.test", "A") in dns.asked
            assert server.requests[0].headers["host"] == f"hook.test:{server.port}"
            await it.close()

            for url, options in (
                (f"https://other.test:{server.port}/x", {"tls_ca": ca}),
                (f"https://127.0.0.1:{server.port}/x", {"tls_ca": ca}),
                (f"https://hook.test:{server.port}/x", {}),
            ):
                it = transport(url, dns, **options)
                (outcome,) = await it.deliver(delivery())
                assert statuses([outcome]) == ["deferred 4.7.5"], outcome
                assert "certificate verify failed" in outcome.reply.text
                await it.close()
            assert len(server.requests) == 1, "the message went to nobody else"

    run(main())


def test_a_server_without_tls_gets_nothing_where_tls_was_wanted():
    heard: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(10_000))
        writer.write(b"HTTP/1.1 400 no TLS here\r\n\r\n")
        await writer.drain()

    async def main() -> None:
        async with serving(plain) as server:
            it = transport(f"https://127.0.0.1:{server.port}/x")
            (outcome,) = await it.deliver(delivery())
            assert statuses([outcome]) == ["deferred 4.7.5"] and outcome.fault is Fault.CONNECT
            assert not any(b"POST" in octets or b"Hello\r" in octets for octets in heard)
            await it.close()

    run(main())


def test_the_next_address_is_tried_when_one_does_not_answer():
    async def main() -> None:
        async with serving(OK) as server:
            dns = FakeDns(a={"hook.test": ["127.0.0.2", "127.0.0.1"]})
            it = transport(f"http://hook.test:{server.port}/", dns)
            assert statuses(await it.deliver(delivery())) == ["delivered 2.0.0"]
            await it.close()

    run(main())


def test_a_server_that_cannot_be_reached_is_a_matter_of_connecting():
    async def main() -> None:
        dns = FakeDns(a={"hook.test": ["127.0.0.1"]}, fails=["broken.test"])
        for host in ("hook.test", "broken.test", "none.test"):
            it = transport(f"http://{host}:{free_port()}/", dns)
            (outcome,) = await it.deliver(delivery())
            assert outcome.result is Result.DEFERRED and outcome.fault is Fault.CONNECT and outcome.host == host
            await it.close()

    run(main())


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert statuses(posted(OK)[1]) == ["delivered 2.0.0"]


def test_a_redirect_is_not_followed():
    answer = b"HTTP/1.1 307 there\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    server, (outcome,) = posted(answer)
    assert statuses([outcome]) == ["deferred 4.3.5"] and outcome.fault is Fault.OURS and len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"220 smtp.test ESMTP\r\n",
    ],
    ids=["nothing", "nonsense", "half a line", "bad length", "endless header", "SMTP"],
)
def test_garbage_and_silence_are_no_delivery(answer: bytes):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"Hello\r\n")
        writer.write(answer)
        await writer.drain()

    _, (outcome,) = posted(talk)
    assert outcome.result is Result.DEFERRED and outcome.fault is Fault.PEER


def test_a_success_before_the_whole_message_was_sent_is_none():
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.transport.abort() if writer.transport.is_closing() else writer.close()

    _, (outcome,) = posted(hasty, delivery(content=b"x" * 50_000_000))
    assert outcome.result is Result.DEFERRED, outcome


def test_a_success_whose_text_is_cut_off_is_one():
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"Hello\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nqueued")
        await writer.drain()

    assert str(posted(talk)[1][0].reply) == "250 2.0.0 HTTP 200: queued"


def test_an_endless_response_is_read_to_a_bound():
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"Hello\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"y" * 4096 + b"\r\n")
            await writer.drain()

    _, (outcome,) = posted(flood)
    assert outcome.result is Result.DELIVERED and len(outcome.reply.text) <= 400


@pytest.mark.parametrize("reads", [True, False])
def test_a_server_that_hangs_has_its_time(reads: bool):
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads:
            await reader.readuntil(b"Hello\r\n")
        await asyncio.sleep(60)

    _, (outcome,) = posted(hang, None if reads else delivery(content=b"x" * 50_000_000), timeout=0.3)
    assert statuses([outcome]) == ["deferred 4.4.2"] and outcome.fault is Fault.PEER


def test_content_that_cannot_be_read_ends_the_request(tmp_path: Path):
    class Unreadable(BytesContent):
        async def blocks(self) -> AsyncIterator[bytes]:
            yield self.data[:1000]
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        posted(OK, delivery(content=Unreadable(b"x" * 5000)))


@pytest.mark.parametrize("token", [None, "", "two words\n", "b\u00fc\n"])
def test_a_token_that_cannot_be_had_defers_without_showing_it(tmp_path: Path, token: str | None):
    if token is not None:
        (tmp_path / "token").write_text(token)
    server, (outcome,) = posted(OK, token_file=str(tmp_path / "token"))
    assert statuses([outcome]) == ["deferred 4.3.5"] and outcome.fault is Fault.OURS and not server.requests
    assert "two" not in outcome.reply.text


def test_close_closes_idle_connections_and_a_delivery_under_way_ends_first():
    async def main() -> None:
        async with serving(OK) as server:
            it = transport(f"http://127.0.0.1:{server.port}/")
            await it.deliver(delivery())
            assert server.connections == 1 and server.closed == 0
            await it.close()
            while not server.closed:
                await asyncio.sleep(0.01)
            assert statuses(await it.deliver(delivery())) == ["delivered 2.0.0"], "it stays usable"
            while server.closed < 2:
                await asyncio.sleep(0.01)

    run(main())
