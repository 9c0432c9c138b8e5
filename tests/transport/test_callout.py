"""Recipient verification by callout."""

from __future__ import annotations

import pytest

from gateway.mail.address import parse_mailbox
from gateway.sdk.services import Callout, CalloutState
from tests.support.process import free_port
from tests.transport.peer import Link, delivery, peer, run, statuses, transport

ANNA = parse_mailbox("anna@example.net")


async def ask(*replies: str) -> tuple[Callout, list[str]]:
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT")
        await link.say(*replies)
        await link.hear("RSET")
        await link.say("250 ok")
        await link.end()

    async with peer(script) as it:
        t = transport(it.port)
        answer = await t.verify(ANNA)
        await t.close()
    return answer, it.heard


@pytest.mark.parametrize(
    ("replies", "state"),
    [
        (("250 ok", "250 2.1.5 ok"), CalloutState.EXISTS),
        (("250 ok", "251 will forward"), CalloutState.EXISTS),
        (("250 ok", "550 5.1.1 who?"), CalloutState.UNKNOWN),
        (("250 ok", "450 4.2.1 greylisted"), CalloutState.UNAVAILABLE),
        (("550 5.7.1 no null sender here", "503 no"), CalloutState.UNAVAILABLE),
        (("250 ok", "552 too many"), CalloutState.UNAVAILABLE),
        (("250 ok", "421 closing"), CalloutState.UNAVAILABLE),
        (("250 ok", "garbage"), CalloutState.UNAVAILABLE),
    ],
)
def test_only_a_refused_rcpt_means_unknown(replies: tuple[str, ...], state: CalloutState):
    answer, heard = run(ask(*replies))
    assert answer.state is state
    assert heard[1:3] == ["MAIL FROM:<>", "RCPT TO:<anna@example.net>"]
    assert "DATA" not in heard


@pytest.mark.parametrize(
    ("replies", "down"),
    [
        (("250 ok", "250 2.1.5 ok"), False),
        (("250 ok", "550 5.1.1 who?"), False),
        (("250 ok", "450 4.2.1 greylisted"), False),
        (("550 5.7.1 no null sender here", "503 no"), True),
        (("450 4.7.1 not now", "503 no"), True),
        (("250 ok", "421 closing"), True),
        (("250 ok", "garbage"), True),
    ],
)
def test_a_next_hop_is_down_when_it_would_say_the_same_of_everybody(replies: tuple[str, ...], down: bool):
    answer, _ = run(ask(*replies))
    assert answer.down is down


def test_a_foreign_host_may_be_asked_as_somebody():
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT")
        await link.say("250 ok", "250 ok")
        await link.hear("RSET")
        await link.say("250 ok")
        await link.end()

    async def main() -> list[str]:
        async with peer(script) as it:
            t = transport(it.port)
            await t.verify(ANNA, parse_mailbox("probe@mx.example.org"))
            await t.close()
        return it.heard

    assert run(main())[1] == "MAIL FROM:<probe@mx.example.org>"


def test_the_reply_is_kept_for_the_record():
    answer, _ = run(ask("250 ok", "550 5.1.1 who?"))
    assert answer.reply == "550 5.1.1 who?"


def test_a_next_hop_that_is_down_is_unavailable():
    async def main() -> None:
        answer = await transport(free_port()).verify(ANNA)
        assert (answer.state, answer.down) == (CalloutState.UNAVAILABLE, True)

    run(main())


def test_an_address_that_the_next_hop_could_not_be_told_is_unavailable():
    async def script(link: Link) -> None:
        await link.greet()
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            answer = await t.verify(parse_mailbox("ann\u00e9@example.net", utf8=True))
            assert answer.state is CalloutState.UNAVAILABLE
            await t.close()

    run(main())


def test_callouts_and_deliveries_share_connections():
    async def script(link: Link) -> None:
        await link.greet()
        for _ in range(2):
            await link.hear("MAIL", "RCPT")
            await link.say("250 ok", "250 ok")
            await link.hear("RSET")
            await link.say("250 ok")
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(script) as it:
            t = transport(it.port)
            for _ in range(2):
                assert (await t.verify(ANNA)).state is CalloutState.EXISTS
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            await t.close()
            assert it.connections == 1

    run(main())


def test_a_kept_connection_that_is_dead_is_replaced():
    async def dies(link: Link) -> None:
        await link.greet()
        await link.take()
        await link.hear("MAIL")
        link.drop()

    async def says_no(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT")
        await link.say("250 ok", "550 5.1.1 who?")
        await link.end()

    async def main() -> None:
        async with peer(dies, says_no) as it:
            t = transport(it.port)
            await t.deliver(delivery())
            assert (await t.verify(ANNA)).state is CalloutState.UNKNOWN
            assert it.connections == 2
            await t.close()

    run(main())
