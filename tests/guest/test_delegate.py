"""The policy server: which requests belong together, what it holds, and how it fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.guest import delegate
from gateway.guest.delegate import Delegate, Options
from gateway.mail.edit import AddHeader
from gateway.sdk import PROCEED
from gateway.sdk.verdict import accept, annotate, defer, disconnect, quarantine, reject
from tests.guest.setting import Setting, attributes

Ask = Callable[..., Awaitable[str]]


class Client:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, **more: str) -> str:
        given = attributes(**more)
        self.writer.write("".join(f"{k}={v}\n" for k, v in given.items()).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> str:
        try:
            got = await self.reader.readuntil(b"\n\n")
        except asyncio.IncompleteReadError:
            return ""
        return got.decode().removeprefix("action=").rstrip("\n")


def serve(
    setting: Setting, walk: Callable[[Delegate, Callable[[], Awaitable[Client]]], Awaitable[Any]], **options: Any
) -> Any:
    async def main() -> Any:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        server = Delegate(setting.host, Options("inet:1", "mx.test", **options))
        await server.listen(sock)
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_connection(*sock.getsockname())))
            return clients[-1]

        try:
            return await walk(server, connect)
        finally:
            for client in clients:
                client.writer.close()
            await server.drain(5.0)
            await setting.pipeline.close()

    return asyncio.run(main())


def outcomes(setting: Setting) -> list[str]:
    return [record["outcome"] for record in setting.records.by_id.values()]


def test_requests_of_one_instance_are_one_transaction_and_the_next_one_ends_it() -> None:
    setting = Setting()

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        assert [await client.ask(recipient=f"r{n}@x.test") for n in range(3)] == ["DUNNO"] * 3
        assert setting.records.by_id == {}
        assert await client.ask(instance="2.2.2") == "DUNNO"
        (record,) = setting.records.by_id.values()
        assert [r["address"] for r in record["recipients"]] == ["r0@x.test", "r1@x.test", "r2@x.test"]
        assert record["outcome"] == "accepted"

    serve(setting, walk)
    assert outcomes(setting) == ["accepted", "accepted"]
    assert len({r["session"] for r in setting.records.by_id.values()}) == 1, "it is the same session"


def test_another_client_on_the_same_connection_is_another_session() -> None:
    seen: list[str] = []
    setting = Setting(connect=lambda session: seen.append(str(session.client)) or PROCEED)

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        await client.ask()
        await client.ask(instance="2.2.2", client_port="40002")
        await client.ask(instance="2.2.2", client_port="40003", client_address="192.0.2.10")

    serve(setting, walk)
    assert seen == ["192.0.2.9", "192.0.2.9", "192.0.2.10"]
    assert len(setting.learner.gone) == 3


def test_a_message_can_be_asked_about_on_another_connection() -> None:
    asked: list[str] = []
    setting = Setting(
        mail=lambda txn: asked.append("mail") or PROCEED, rcpt=lambda txn, r: asked.append("rcpt") or PROCEED
    )

    async def walk(server: Delegate, connect: Any) -> None:
        first = await connect()
        await first.ask()
        first.writer.close()
        second = await connect()
        await second.ask()
        await second.ask(recipient="eva@x.test")

    serve(setting, walk)
    assert asked == ["mail", "rcpt", "rcpt"], "and what was answered before is answered again"
    assert outcomes(setting) == ["accepted"]


def test_requests_before_the_name_is_known_belong_to_the_first_name_that_follows() -> None:
    asked: list[str] = []
    setting = Setting(
        connect=lambda session: asked.append("connect") or PROCEED,
        helo=lambda session: asked.append(f"helo {session.helo}") or PROCEED,
        mail=lambda txn: asked.append(f"mail {txn.sender}") or PROCEED,
    )

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        await client.ask(protocol_state="CONNECT", instance="", helo_name="", sender="", recipient="")
        await client.ask(protocol_state="EHLO", instance="", sender="", recipient="")
        await client.ask(protocol_state="MAIL", instance="", recipient="")
        await client.ask()
        await client.ask(protocol_state="DATA", recipient="")
        await client.ask(protocol_state="END-OF-MESSAGE", recipient="", size="5")
        await client.ask(protocol_state="MAIL", instance="", recipient="", sender="eva@sender.test")
        await client.ask(instance="2.2.2", sender="eva@sender.test")

    serve(setting, walk)
    assert asked == ["connect", "helo client.test", "mail ann@sender.test", "mail eva@sender.test"]
    assert outcomes(setting) == ["accepted", "accepted"]


def test_a_new_name_after_starttls_is_judged_and_one_message_later_is_not_the_earlier_one() -> None:
    asked: list[str] = []
    setting = Setting(
        helo=lambda session: asked.append(str(session.tls and session.tls.version)) or PROCEED,
        mail=lambda txn: asked.append("mail") or PROCEED,
    )

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        await client.ask(protocol_state="MAIL", instance="", recipient="")
        await client.ask(protocol_state="EHLO", instance="", recipient="", encryption_protocol="TLSv1.3")
        await client.ask(encryption_protocol="TLSv1.3")

    serve(setting, walk)
    assert asked == ["None", "mail", "TLSv1.3", "mail"]
    assert outcomes(setting) == ["aborted", "accepted"]


def test_who_gives_no_names_is_asked_about_each_recipient_by_itself() -> None:
    setting = Setting()

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        for _ in range(2):
            await client.ask(instance="")
        assert outcomes(setting) == ["accepted", "accepted"]
        assert server._instances == {}

    serve(setting, walk)


def test_every_request_can_be_the_first_one() -> None:
    setting = Setting(data=lambda txn: reject("7.0", f"{len(txn.recipients)} recipients"))

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        return [
            await client.ask(protocol_state="END-OF-MESSAGE", recipient_count="1"),
            await client.ask(protocol_state="DATA", instance="2.2.2", recipient="", recipient_count="2"),
            await client.ask(protocol_state="VRFY", instance="3.3.3"),
            await client.ask(protocol_state="HELO", instance="4.4.4"),
        ]

    said = serve(setting, walk)
    assert [s.partition(" (ref ")[0] for s in said] == [
        "550 5.7.0 1 recipients",
        "550 5.7.0 0 recipients",
        "DUNNO",
        "DUNNO",
    ]


def test_an_only_recipient_that_is_refused_after_data_refuses_the_message_once() -> None:
    setting = Setting(rcpt=lambda txn, recipient: reject("1.1", "unknown"))

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        return [await client.ask(protocol_state="END-OF-MESSAGE", recipient_count="1") for _ in range(2)]

    said = serve(setting, walk)
    assert said[0] == said[1]
    assert said[0].startswith("550 5.1.1 unknown (ref ")
    assert outcomes(setting) == ["rejected"]


def test_refusals_disconnects_and_malformed_addresses_are_answered_alike_each_time() -> None:
    def judge(txn: Any) -> Any:
        return {"bot": disconnect("7.0", "go"), "late": defer("7.1", "later")}.get(txn.sender.local, PROCEED)

    setting = Setting(mail=judge)

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        said = []
        for instance, sender in enumerate(["bot@x.test", "late@x.test", "a@-b-", "fine@x.test"]):
            for _ in range(2):
                said.append(await client.ask(instance=str(instance), sender=sender, recipient="x@-"))
        return said

    said = [s.partition(" (ref")[0] for s in serve(setting, walk)]
    assert said == [
        *["421 4.7.0 go"] * 0,
        *["501 5.1.3 malformed recipient address"] * 4,
        *["501 5.1.7 malformed sender address"] * 2,
        *["501 5.1.3 malformed recipient address"] * 2,
    ]


def test_ok_is_said_only_where_the_operator_asked_for_it_and_only_at_the_stage_that_accepts() -> None:
    for options, said in (({}, "DUNNO"), ({"ok": "OK"}, "OK")):
        setting = Setting(rcpt=lambda txn, recipient: accept("known"))

        async def walk(server: Delegate, connect: Any) -> list[str]:
            client = await connect()
            return [await client.ask(), await client.ask(protocol_state="DATA", recipient="")]

        assert serve(setting, walk, **options) == [said, "DUNNO"]


def test_what_waits_to_be_told_is_told_with_the_next_request() -> None:
    setting = Setting(mail=lambda txn: annotate(AddHeader("X-A", "1"), AddHeader("X-B", "2"), AddHeader("X-C", "3")))

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        return [
            await client.ask(),
            await client.ask(recipient="eva@x.test"),
            await client.ask(protocol_state="END-OF-MESSAGE", recipient="", size="9"),
        ]

    assert serve(setting, walk) == ["PREPEND X-A: 1", "PREPEND X-B: 2", "DUNNO"]
    (record,) = setting.records.by_id.values()
    assert [edit["name"] for edit in record["edits"]] == ["X-A", "X-B"]
    assert record["mta"]["left_out"] == ["AddHeader X-C 0"]


def test_rset_after_mail_does_not_free_a_message_from_being_held() -> None:
    setting = Setting(mail=lambda txn: quarantine("odd"))

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        said = [await client.ask(protocol_state="MAIL", instance="", recipient="") for _ in range(2)]
        return [*said, await client.ask(protocol_state="RCPT", instance="N1")]

    assert serve(setting, walk) == ["HOLD odd", "HOLD odd", "DUNNO"]


def test_our_bug_is_answered_with_trouble_and_the_message_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()
    real = delegate.Instance.answer
    broken = iter([True, False])

    async def answer(self: Any, request: Any) -> str:
        if next(broken):
            raise RuntimeError("a bug")
        return await real(self, request)

    monkeypatch.setattr(delegate.Instance, "answer", answer)

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        return [await client.ask(), await client.ask()]

    assert serve(setting, walk, trouble="450 4.3.0 not now") == ["450 4.3.0 not now", "DUNNO"]


def test_an_answer_that_takes_too_long_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting()

    async def answer(self: Any, request: Any) -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(delegate.Instance, "answer", answer)

    async def walk(server: Delegate, connect: Any) -> str:
        return await (await connect()).ask()

    assert serve(setting, walk, answer=0.01).startswith("DEFER_IF_PERMIT 4.3.0")


def test_what_is_no_request_closes_the_connection_and_what_came_before_was_answered() -> None:
    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        assert await client.ask() == "DUNNO"
        client.writer.write(b"nonsense\n")
        assert await client.answer() == ""
        client = await connect()
        assert await client.ask(protocol_state="WHAT") == ""

    setting = Setting()
    serve(setting, walk)
    assert outcomes(setting) == ["accepted"]


def test_a_client_is_judged_whatever_length_its_helo_name_has() -> None:
    """Without an answer Postfix would do what it does when nobody judges, which may be to let it through."""
    setting = Setting(helo=lambda session: reject("7.1", f"{len(session.helo)}"))

    async def walk(server: Delegate, connect: Any) -> list[str]:
        client = await connect()
        return [await client.ask(protocol_state="RCPT", helo_name="h" * size) for size in (512, 1900)]

    answers = serve(setting, walk)
    assert [answer.split(" (")[0] for answer in answers] == ["550 5.7.1 512"] * 2


def test_connections_and_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegate, "INSTANCES", 2)

    async def walk(server: Delegate, connect: Any) -> None:
        clients = [await connect() for _ in range(3)]
        for n, client in enumerate(clients):
            assert await client.ask(instance=str(n)) == "DUNNO"
            assert len(server._instances) <= 2
        assert await (await connect()).answer() == "", "one connection too many"
        assert await clients[0].ask(instance="0") == "DUNNO", "who was ended for want of room begins anew"

    setting = Setting()
    serve(setting, walk, connections=3)
    assert outcomes(setting) == ["accepted"] * 4


def test_messages_that_nobody_will_ask_about_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegate, "_ORPHAN_SECONDS", 0.0)
    monkeypatch.setattr(delegate, "_SWEEP_SECONDS", 0.001)

    async def walk(server: Delegate, connect: Any) -> None:
        client = await connect()
        await client.ask()
        client.writer.close()
        async with asyncio.timeout(20):
            while server._instances:
                await asyncio.sleep(0)

    setting = Setting()
    serve(setting, walk)
    assert outcomes(setting) == ["accepted"]


def test_draining_answers_what_was_asked_and_closes_the_rest() -> None:
    async def main() -> None:
        going = asyncio.Event()
        go = asyncio.Event()

        async def slow(*given: Any) -> Any:
            going.set()
            await go.wait()

        setting = Setting()
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        server = Delegate(setting.host, Options("inet:1", "mx.test"))
        real = server._ask

        async def ask(request: Any, line: Any) -> str:
            await slow()
            return await real(request, line)

        server._ask = ask  # type: ignore[method-assign]
        await server.listen(sock)
        busy = Client(*await asyncio.open_connection(*sock.getsockname()))
        idle = Client(*await asyncio.open_connection(*sock.getsockname()))
        answer = asyncio.create_task(busy.ask())  # noqa: TID251
        await going.wait()
        drained = asyncio.create_task(server.drain(20.0))  # noqa: TID251
        assert await idle.answer() == ""
        go.set()
        assert await answer == "DUNNO"
        await drained
        assert outcomes(setting) == ["accepted"]
        busy.writer.close()
        idle.writer.close()
        await setting.pipeline.close()

    asyncio.run(main())
