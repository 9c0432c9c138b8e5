"""Relay control: rewritten addresses (SRS), the way back for bounces and for nothing else; routes in local parts."""

from __future__ import annotations

import pytest

from gateway.mail.address import Address
from gateway.mail.srs import Srs
from gateway.ops import metrics
from gateway.sdk import Recipient, Stage, reject
from gateway.services.clock import SystemClock
from gateway.smtp.domains import Domain
from tests.pipeline.setting import hook, policy
from tests.smtp.door import MESSAGE, door, networks, pipeline, run

SRS = Srs("srs.example.org", (b"a secret of some length",))
BEN = Address("Ben", "example.net")
UNKNOWN = "550 5.1.1 no such recipient here (ref "
DAY = 86400.0


def rewritten(age: float = 0.0, srs: Srs = SRS) -> str:
    return str(srs.rewrite(BEN, SystemClock().now() - age))


def counted(outcome: str) -> float:
    return metrics.SRS_RECIPIENTS.labels(outcome)._value.get()


def test_a_bounce_to_a_rewritten_address_is_taken_for_whose_it_is():
    async def test() -> None:
        before = counted("restored")
        async with door(srs=SRS) as opened:
            client = await opened.session()
            reply = await client.message(MESSAGE, rewritten(), sender="")
            assert reply.startswith("250 2.0.0 queued as ")
            (stored,) = await opened.stored()
            assert [r.address for r in stored.message.envelope.recipients] == [BEN]
            assert not stored.message.owed
            record = await opened.record(reply.split()[-1])
            assert record["recipients"] == [{"address": "Ben@example.net", "reply": "250 2.1.5 recipient ok"}]
        assert counted("restored") == before + 1

    run(test)


@pytest.mark.parametrize(
    ("recipient", "sender"),
    [
        (rewritten(), "eve@elsewhere.test"),
        (rewritten(30 * DAY), ""),
        (rewritten().replace("=Ben", "=eve"), ""),
        (rewritten(srs=Srs(SRS.domain, (b"a secret that is another",))), ""),
        ("SRS0=AAAAAAAA=AA=victim.test=x@srs.example.org", ""),
        ("SRS1=AAAAAAAA=victim.test==x@srs.example.org", ""),
        ("SRS0=@srs.example.org", ""),
    ],
    ids=["not a bounce", "expired", "another recipient", "another secret", "forged", "forged srs1", "empty"],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_all_else_is_refused_alike_and_nobody_relays_by_it(recipient, sender, trusted):
    async def test() -> None:
        before = counted("refused")
        relay = networks("127.0.0.0/8") if trusted else networks()
        async with door(srs=SRS, relay_from=relay) as opened:
            client = await opened.session()
            await client.expect(f"MAIL FROM:<{sender}>", "250")
            await client.expect(f"RCPT TO:<{recipient}>", UNKNOWN)
            await client.expect("DATA", "503")
        assert counted("refused") == before + 1

    run(test)


def test_other_recipients_at_that_domain_and_addresses_of_other_domains_are_relayed_for_nobody():
    async def test() -> None:
        async with door(srs=SRS) as opened:
            client = await opened.session()
            await client.expect("MAIL FROM:<>", "250")
            elsewhere = rewritten().replace("srs.example.org", "example.com")
            for recipient in ("ben@srs.example.org", "SRS0@srs.example.org", elsewhere, "ben@example.net"):
                await client.expect(f"RCPT TO:<{recipient}>", "550 5.7.1 relaying denied")

    run(test)


def test_without_srs_such_an_address_is_like_any_other():
    async def test() -> None:
        domains = {"srs.example.org": Domain("srs.example.org")}
        async with door(domains=domains) as opened:
            client = await opened.session()
            await client.envelope(rewritten(), sender="")

    run(test)


def test_who_wants_it_lets_others_than_the_null_sender_write_there():
    async def test() -> None:
        open_to_all = Srs(SRS.domain, SRS.secrets, bounces_only=False)
        async with door(srs=open_to_all) as opened:
            client = await opened.session()
            await client.envelope(rewritten(), sender="robot@elsewhere.test")
            await client.expect("RCPT TO:<SRS0=AAAAAAAA=AA=victim.test=x@srs.example.org>", UNKNOWN)

    run(test)


def test_policies_judge_the_address_inside():
    async def test() -> None:
        def refuse(recipient: Recipient):
            return reject("7.1", "not him") if recipient.address == BEN else reject("7.1", "whom do I see?")

        judged = pipeline(["no-ben"], policy("no-ben", hook(Stage.RCPT, [Recipient], refuse)))
        async with door(srs=SRS, pipelines={"default": judged}) as opened:
            client = await opened.session()
            await client.expect("MAIL FROM:<>", "250")
            await client.expect(f"RCPT TO:<{rewritten()}>", "550 5.7.1 not him")

    run(test)


def test_an_address_over_64_octets_of_another_forwarder_is_taken_as_a_sender():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope(sender="SRS0=abcd=JP=example.net=" + "b" * 60 + "@forwarder.test")
            await client.expect("RSET", "250")
            await client.expect("MAIL FROM:<" + "b" * 65 + "@forwarder.test>", "501")

    run(test)


ROUTES = ["ben%example.net@example.org", '"ben@example.net"@example.org', "example.net!ben@example.org"]


@pytest.mark.parametrize("recipient", ROUTES)
def test_strangers_do_not_relay_by_a_server_behind_us_that_reads_a_route_in_a_local_part(recipient):
    async def test() -> None:
        async with door(domains={"example.org": Domain("example.org", forwards=True)}) as opened:
            client = await opened.session()
            await client.envelope("ben@example.org")
            await client.expect(f"RCPT TO:<{recipient}>", "550 5.7.1 relaying denied")

    run(test)


@pytest.mark.parametrize(("forwards", "trusted"), [(True, True), (False, False)])
def test_such_a_local_part_is_taken_of_clients_of_ours_and_where_nobody_forwards(forwards, trusted):
    async def test() -> None:
        relay = networks("127.0.0.0/8") if trusted else networks()
        domains = {"example.org": Domain("example.org", forwards=forwards)}
        async with door(domains=domains, relay_from=relay) as opened:
            client = await opened.session()
            await client.envelope(*ROUTES)

    run(test)
