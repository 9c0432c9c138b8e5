"""The policy protocol: octets, attributes, and how a service holds its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from gateway.sdk import (
    AuthResult,
    MailParameters,
    ReverseName,
    Stage,
    Tls,
)
from gateway.sdk.testing import (
    ManualClock,
    make_client_certificate,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
)
from gateway.services.tasks import Tasks
from plugins.delegation.attributes import PostfixVersion, Question, attributes
from plugins.delegation.codec import VALUE_OCTETS, CodecError, ReplyReader, State, encode
from plugins.delegation.service import Bounds, Service
from tests.support.policy_server import PolicyServer, Request, Trouble

STAGES = [stage.value for stage in (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.MESSAGE)]


# Octets


def test_a_request_is_lines_and_an_empty_line():
    assert encode([("request", "smtpd_access_policy"), ("size", "0")]) == b"request=smtpd_access_policy\nsize=0\n\n"


@pytest.mark.parametrize("evil", ["\n", "\r", "\0", "\x85", "\u2028", "\x1b", "\udcff"])
def test_no_value_breaks_out_of_its_line(evil):
    assert encode([("helo_name", f"a{evil}action=OK")]) == b"helo_name=a?action=OK\n\n"


def test_values_keep_what_is_no_danger_and_are_cut_between_characters():
    assert encode([("sender", "jörg\u00a0=x")]) == "sender=jörg\u00a0=x\n\n".encode()
    (line, *_) = encode([("sender", "x" + "ö" * VALUE_OCTETS)]).split(b"\n")
    assert len(line) == len("sender=") + VALUE_OCTETS - 1
    assert line.decode().endswith("ö")


def read(octets: bytes, *, limit: int = 1000, step: int = 1) -> str:
    reader = ReplyReader(limit)
    for at in range(0, len(octets), step):
        if reader.feed(octets[at : at + step]):
            assert at + step >= len(octets)
            return reader.action
    raise reader.end()


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("octets", "action"),
    [
        (b"action=DUNNO\n\n", "DUNNO"),
        (b"action=reject a=b\n\n", "reject a=b"),
        (b"action=OK\naction=REJECT\n\n", "OK"),
        (b"x=y\naction= OK \nz=\n\n", "OK"),
        (b"action=\n\n", ""),
        ("action=REJECT geschützt\n\n".encode(), "REJECT geschützt"),
        (b"action=WARN a\tb\n\n", "WARN a b"),
    ],
)
def test_the_first_action_of_a_reply_counts(octets, action, step):
    assert read(octets, step=step) == action


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "octets",
    [
        b"\n",
        b"status=fine\n\n",
        b"DUNNO\n\n",
        b"action=OK\nwhat\n\n",
        b"=OK\n\n",
        b"action=\xff\n\n",
        b"action=OK\r\n\r\n",
        b"action=a\0b\n\n",
        b"action=OK\n\naction=OK\n\n",
        b"action=OK",
        b"action=OK\n",
        b"",
        b"x=" + b"y" * 1000,
    ],
)
def test_a_reply_that_is_none_is_an_error(octets, step):
    with pytest.raises(CodecError):
        # What comes after a reply is seen when it comes with it.
        read(octets, step=step if b"\n\na" not in octets else 1000)


def test_an_end_before_the_first_octet_is_told_apart():
    reader = ReplyReader(100)
    assert not reader.feed(b"")
    assert reader.state is State.EMPTY
    assert str(reader.end()) == "the connection was closed without a reply"
    reader.feed(b"a")
    assert str(reader.end()) == "the reply was cut off"


# Attributes


def asked(question: Question, version: PostfixVersion = PostfixVersion.V3_12) -> dict[str, str]:
    pairs = list(attributes(question, version))
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_at_connect_most_is_empty():
    session = make_session("2001:db8::7", helo="")
    found = asked(Question(Stage.CONNECT, session))
    given = {name: value for name, value in found.items() if value}
    assert given == {
        "request": "smtpd_access_policy",
        "protocol_state": "CONNECT",
        "protocol_name": "ESMTP",
        "client_address": "2001:db8::7",
        "client_name": "unknown",
        "client_port": "40000",
        "reverse_client_name": "unknown",
        "server_address": "127.0.0.1",
        "server_port": "25",
        "recipient_count": "0",
        "size": "0",
        "encryption_keysize": "0",
    }


def test_states_have_postfixs_names():
    session = make_session()
    states = [asked(Question(Stage(stage), session))["protocol_state"] for stage in STAGES]
    assert states == ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE"]


def test_recipients_are_named_and_counted_as_postfix_does():
    one = make_transaction(recipients=["anna@example.org"])
    two = make_transaction(recipients=["anna@example.org", "ben@example.org"])
    recipient = make_recipient("Carl@example.org")

    def said(stage, transaction, recipient=None):
        found = asked(Question(stage, transaction.session, transaction=transaction, recipient=recipient, message=None))
        return found["recipient"], found["recipient_count"]

    assert said(Stage.MAIL, one) == ("", "0")
    assert said(Stage.RCPT, two, recipient) == ("Carl@example.org", "0")
    assert said(Stage.DATA, one) == ("anna@example.org", "1")
    assert said(Stage.DATA, two) == ("", "2")
    assert said(Stage.MESSAGE, two) == ("", "2")


def test_the_size_is_the_clients_word_until_the_message_is_there():
    transaction = make_transaction(parameters=MailParameters(size=1234))
    message = make_message(b"Subject: x\r\n\r\nHello\r\n")
    assert asked(Question(Stage.MAIL, transaction.session, transaction=transaction))["size"] == "1234"
    found = asked(Question(Stage.MESSAGE, transaction.session, transaction=transaction, message=message))
    assert found["size"] == "21"


def test_the_instance_is_one_for_each_message_and_none_before():
    session = make_session()
    transaction = make_transaction(session)
    assert asked(Question(Stage.HELO, session))["instance"] == ""
    found = [asked(Question(Stage(stage), session, transaction=transaction)) for stage in STAGES[2:]]
    assert {one["instance"] for one in found} == {one["queue_id"] for one in found} == {transaction.id}


def test_addresses_stand_without_quoting_and_the_null_sender_is_empty():
    quoted = make_transaction(sender='"a b"@sender.example')
    null = make_transaction(sender="")
    assert asked(Question(Stage.MAIL, quoted.session, transaction=quoted))["sender"] == "a b@sender.example"
    assert asked(Question(Stage.MAIL, null.session, transaction=null))["sender"] == ""


@pytest.mark.parametrize(
    ("name", "client", "reverse"),
    [
        (None, "unknown", "unknown"),
        (
            ReverseName(AuthResult.PASS, "192.0.2.1", "mx.sender.example", ("mx.sender.example",)),
            "mx.sender.example",
            "mx.sender.example",
        ),
        (ReverseName(AuthResult.FAIL, "192.0.2.1", "", ("forged.example",)), "unknown", "forged.example"),
        (ReverseName(AuthResult.PERMERROR, "192.0.2.1"), "unknown", "unknown"),
    ],
)
def test_a_clients_name_is_the_confirmed_one(name, client, reverse):
    found = asked(Question(Stage.CONNECT, make_session(), name))
    assert (found["client_name"], found["reverse_client_name"]) == (client, reverse)


def test_the_name_that_a_trusted_xclient_gave_goes_before():
    name = ReverseName(AuthResult.PASS, "192.0.2.1", "mx.sender.example", ("mx.sender.example",))
    found = asked(Question(Stage.CONNECT, make_session(name="given.example"), name))
    assert (found["client_name"], found["reverse_client_name"]) == ("given.example", "given.example")


@pytest.mark.parametrize(
    ("cipher", "bits"),
    [
        ("TLS_AES_256_GCM_SHA384", "256"),
        ("TLS_CHACHA20_POLY1305_SHA256", "256"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "128"),
        ("TLS_AES_128_GCM_SHA256", "128"),
        ("NEW-CIPHER", "0"),
    ],
)
def test_of_tls_version_cipher_key_size_and_name_are_sent(cipher, bits):
    found = asked(Question(Stage.HELO, make_session(tls=Tls("TLSv1.3", cipher, "mx.example.org"))))
    names = ("encryption_protocol", "encryption_cipher", "encryption_keysize", "tls_sni")
    assert [found[name] for name in names] == ["TLSv1.3", cipher, bits, "mx.example.org"]


def test_of_a_clients_certificate_the_names_are_sent_when_they_are_verified_and_the_fingerprint_always():
    tls = Tls("TLSv1.3", "any")
    names = ("ccert_subject", "ccert_issuer", "ccert_fingerprint")

    def sent(client):
        found = asked(Question(Stage.HELO, make_session(tls=replace(tls, client=client))))
        return [found[name] for name in names]

    assert sent(None) == ["", "", ""]
    shown = make_client_certificate("A+B Grüße=1", issuer="Partners CA")
    assert sent(shown) == ["A+2BB+20Gr+C3+BC+C3+9Fe=1", "Partners+20CA", shown.fingerprint]
    shown = make_client_certificate(problem="cert has expired")
    assert sent(shown) == ["", "", shown.fingerprint]


def test_each_version_sends_what_the_one_before_sent_and_more():
    question = Question(Stage.CONNECT, make_session())
    sent = [[name for name, _ in attributes(question, version)] for version in PostfixVersion]
    assert [len(names) for names in sent] == [29, 31, 32]
    assert sent[0] == sent[1][:29]
    assert sent[1] == sent[2][:31]


@pytest.mark.parametrize(
    ("listener", "address"), [("0.0.0.0:25", ""), ("[::]:25", ""), ("[2001:db8::1]:25", "2001:db8::1")]
)
def test_a_listener_on_all_addresses_has_none(listener, address):
    session = make_session()

    found = asked(Question(Stage.CONNECT, replace(session, listener=listener)))
    assert (found["server_address"], found["server_port"]) == (address, "25")


# Connections


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    made = PolicyServer()
    yield made
    made.stop()


class Rig:
    """A `Service` for the scripted server, with a clock that stands."""

    def __init__(self, server: PolicyServer, **bounds: float) -> None:
        self.clock = ManualClock()
        self.dialled = 0
        self._server = server
        limits = {"connections": 4, "idle": 60.0, "requests": 0, "reply": 1000, "pause": 0.0, **bounds}
        self.service = Service("it", self._dial, self.clock, Bounds(**limits))  # type: ignore[arg-type]

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.dialled += 1
        return await asyncio.open_connection("127.0.0.1", self._server.port)

    async def ask(self, owner: str = "session") -> str:
        return await self.service.ask(owner, encode([("instance", owner)]))


def run(server: PolicyServer, work: Callable[[Rig], Awaitable[None]], **bounds: float) -> list[Request]:
    """Run `work` and give the requests that the server saw."""

    async def whole() -> None:
        rig = Rig(server, **bounds)
        try:
            async with asyncio.timeout(30):
                await work(rig)
        finally:
            rig.service.close()

    asyncio.run(whole())
    return server.take()


def test_a_connection_is_used_again_until_it_is_too_old(server):
    async def work(rig: Rig) -> None:
        await rig.ask()
        rig.clock.advance(59)
        await rig.ask()
        rig.clock.advance(61)
        await rig.ask()
        assert rig.dialled == 2

    assert [request.connection for request in run(server, work)] == [1, 1, 2]


def test_a_session_keeps_its_connection_and_leaves_it_to_others_when_it_is_over(server):
    async def work(rig: Rig) -> None:
        for owner in ("a", "b", "a", "b"):
            await rig.ask(owner)
        rig.service.part("a")
        await rig.ask("c")
        await rig.ask("b")

    assert [r.connection for r in run(server, work)] == [1, 2, 1, 2, 1, 2]


def test_no_more_connections_are_open_than_may_be(server):
    async def work(rig: Rig) -> None:
        for owner in ("a", "b", "c", "b"):
            await rig.ask(owner)
        await asyncio.gather(*(rig.ask(str(number)) for number in range(20)))
        assert rig.dialled == 2

    seen = run(server, work, connections=2)
    assert [r.connection for r in seen[:4]] == [1, 2, 1, 2]
    assert len(seen) == 24
    assert server.connections == 2


def test_a_connection_serves_no_more_requests_than_it_may(server):
    async def work(rig: Rig) -> None:
        for _ in range(5):
            await rig.ask()

    assert [r.connection for r in run(server, work, requests=2)] == [1, 1, 2, 2, 3]


def test_a_kept_connection_that_has_died_is_replaced_without_a_word(server):
    async def work(rig: Rig) -> None:
        await rig.ask()
        server.hang_up()
        assert await rig.ask() == "DUNNO"

    assert [r.connection for r in run(server, work)] == [1, 2]


def test_a_request_that_a_dying_connection_swallowed_is_sent_once_more(server):
    answers = iter(["DUNNO", Trouble.CLOSES, "OK"])
    server.answer = lambda request: next(answers)

    async def work(rig: Rig) -> None:
        await rig.ask()
        assert await rig.ask() == "OK"

    assert [r.connection for r in run(server, work)] == [1, 1, 2]


def test_a_server_that_closes_twice_without_a_reply_has_failed(server):
    server.always(Trouble.CLOSES)

    async def work(rig: Rig) -> None:
        with pytest.raises(CodecError, match="without a reply"):
            await rig.ask()

    assert len(run(server, work)) == 2


@pytest.mark.parametrize(
    "trouble", [Trouble.CUTS, Trouble.GARBAGE, Trouble.BINARY, Trouble.NO_ACTION, Trouble.TWICE, Trouble.ENDLESS]
)
def test_a_reply_that_is_none_is_not_asked_for_again_and_ends_its_connection(server, trouble):
    answers = iter([trouble, "OK"])
    server.answer = lambda request: next(answers)

    async def work(rig: Rig) -> None:
        with pytest.raises(CodecError):
            await rig.ask()
        assert await rig.ask() == "OK"

    assert [r.connection for r in run(server, work)] == [1, 2]


def test_what_a_server_says_unasked_is_never_the_answer_to_the_next_request(server):
    late: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n")
        writer.write(b"action=DUNNO\n\n")
        late.append(writer)

    async def whole() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        service = Service(
            "it", lambda: asyncio.open_connection("127.0.0.1", port), ManualClock(), Bounds(4, 60.0, 0, 1000, 0.0)
        )
        async with listener, asyncio.timeout(30):
            assert await service.ask("a", b"x=y\n\n") == "DUNNO"
            late[0].write(b"action=REJECT\n\n")
            await late[0].drain()
            # One turn of the loop for the octets to come over.
            while not service._idle[0].dead:
                await asyncio.sleep(0)
            assert await service.ask("a", b"x=y\n\n") == "DUNNO"
            assert len(late) == 2
            service.close()

    asyncio.run(whole())


def test_who_is_called_off_leaves_no_half_read_reply_behind(server):
    answers: Iterator[str | Trouble] = iter([Trouble.HANGS, "OK"])
    server.answer = lambda request: next(answers)

    async def work(rig: Rig) -> None:
        asked = Tasks().start(rig.ask(), name="asked")
        while not server.requests:
            await asyncio.sleep(0.001)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await rig.ask() == "OK"

    assert [r.connection for r in run(server, work)] == [1, 2]


def test_a_server_that_is_not_there_is_an_error_at_once(server):
    server.stop()

    async def work(rig: Rig) -> None:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await rig.ask()
        assert rig.dialled == 1

    run(server, work)
    server.start()
