"""One transport per destination, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.mail.address import parse_mailbox
from gateway.sdk.services import CalloutState
from gateway.sdk.testing import FakeDns, ManualClock
from gateway.transport.discard import DiscardTransport
from gateway.transport.factory import Transports
from gateway.transport.maildir import MaildirTransport
from gateway.transport.mbox import MboxTransport
from gateway.transport.options import PipeOptions, SmtpOptions
from gateway.transport.pipe import PipeTransport
from gateway.transport.routing import parse_next_hop
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Security
from gateway.transport.webhook import WebhookTransport
from tests.transport.peer import Link, delivery, peer, run, statuses

ANNA = parse_mailbox("anna@example.net")


def transports(limit: int = 1000) -> Transports:
    return Transports(SmtpOptions("gate.test"), FakeDns(), ManualClock(), limit=limit)


def test_each_kind_has_its_transport_and_keeps_it():
    it = transports()
    for hop, kind in (
        ("smtp:a.test", SmtpTransport),
        ("lmtp:a.test", SmtpTransport),
        ("maildir:/m", MaildirTransport),
        ("mbox:/m", MboxTransport),
        ("https://hook.test/x", WebhookTransport),
        ("discard", DiscardTransport),
    ):
        destination = parse_next_hop(hop)
        assert type(it.for_destination(destination)) is kind
        assert it.for_destination(parse_next_hop(hop)) is it.for_destination(destination)


def test_named_transports_are_told_apart_by_their_options():
    it = transports()
    one, two = (Destination(Kind.PIPE, name="p", options=PipeOptions(("/bin/true",), timeout=t)) for t in (1.0, 2.0))
    assert type(it.for_destination(one)) is PipeTransport
    assert it.for_destination(one) is not it.for_destination(two)


@pytest.mark.parametrize("destination", [Destination(Kind.NAMED, name="x"), Destination(Kind.PIPE)])
def test_a_destination_that_says_too_little_has_no_transport(destination: Destination):
    with pytest.raises(ValueError, match="has no transport"):
        transports().for_destination(destination)


def test_the_transport_that_was_unused_for_longest_is_closed_when_there_are_too_many():
    async def script(link: Link) -> None:
        await link.greet()
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(script) as served:
            it = transports(limit=2)
            first = it.for_destination(Destination(Kind.SMTP, "127.0.0.1", served.port, security=Security.NONE))
            assert statuses(await first.deliver(delivery())) == ["delivered 2.0.0"]
            it.for_destination(parse_next_hop("smtp:b.test"))
            it.for_destination(parse_next_hop("smtp:c.test"))
            await served.until("QUIT")
            # Whoever still holds it can still deliver; the connection is just not kept.
            assert statuses(await first.deliver(delivery())) == ["delivered 2.0.0"]
            await it.close()
            assert served.connections == 2

    run(main())


def test_close_says_quit_everywhere():
    async def script(link: Link) -> None:
        await link.greet()
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(script) as served:
            it = transports()
            destination = Destination(Kind.SMTP, "127.0.0.1", served.port, security=Security.NONE)
            await it.for_destination(destination).deliver(delivery())
            await it.close()
            assert served.count("QUIT") == 1

    run(main())


def test_what_is_no_server_takes_every_recipient(tmp_path: Path):
    async def main() -> None:
        it = transports()
        for hop in ("discard", f"maildir:{tmp_path}/m"):
            assert (await it.verify(parse_next_hop(hop), ANNA)).state is CalloutState.EXISTS

    run(main())


def test_a_server_is_asked_for_its_recipients():
    async def script(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT")
        await link.say("250 ok", "550 5.1.1 who?")
        await link.end()

    async def main() -> None:
        async with peer(script) as served:
            it = transports()
            destination = Destination(Kind.SMTP, "127.0.0.1", served.port, security=Security.NONE)
            assert (await it.verify(destination, ANNA)).state is CalloutState.UNKNOWN
            await it.close()

    run(main())


def test_discard_delivers_to_everybody():
    async def main() -> None:
        outcomes = (
            await transports().for_destination(parse_next_hop("discard")).deliver(delivery("a@x.test", "b@x.test"))
        )
        assert statuses(outcomes) == ["delivered 2.0.0"] * 2

    run(main())
