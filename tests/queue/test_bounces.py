"""Bounces through scheduler, settler and spool: double bounces, VERP, SRS, signatures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.app.outbox import SpoolOutbox
from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import MailParameters, Notify, Ret
from gateway.mail.srs import Srs
from gateway.mail.verp import Verp
from gateway.ops import metrics
from gateway.queue.options import SchedulerOptions
from gateway.queue.retry import RetryOptions
from gateway.queue.returnpath import Rewriting
from gateway.queue.scheduler import Scheduler
from gateway.queue.settler import BounceOptions, Double
from gateway.spool.spool import SpoolOptions, State
from gateway.spool.sqlite import SqliteSpool
from tests.queue.rig import CONTENT, DEFERRED, DELIVERED, FAILED, HOST, START, World, address, recipient

POSTMASTER = address("postmaster@example.com")
TOLD = BounceOptions(double=Double.POSTMASTER, postmaster=POSTMASTER)
SRS = Srs("srs.example.org", (b"a secret of some length",))
PATHS = Rewriting(
    lambda found: found.ascii_domain == "example.org", lambda: START, Verp(frozenset({"news@example.org"})), SRS
)


class Stamp:
    """Signs with a field that says so."""

    async def sign(self, content: bytes) -> bytes:
        return b"X-Signed: yes\r\n" + content


def play(tmp_path: Path, scenario: Callable[[World], Any], **options: Any) -> None:
    async def main() -> None:
        spool = await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=0))
        world = World(spool, options=SchedulerOptions(), retry=RetryOptions(jitter=0.0))
        world.keeps_contents = True
        world.scheduler = Scheduler(
            spool, world, world, retry=RetryOptions(jitter=0.0), clock=world.clock, hostname=HOST, **options
        )
        world.start()
        try:
            await scenario(world)
        finally:
            await world.stop()

    asyncio.run(main())


def doubles(outcome: str) -> float:
    return metrics.DOUBLE_BOUNCES.labels(outcome)._value.get()


def senders(world: World, domain: str) -> list[tuple[str, list[str]]]:
    return [(str(d.sender), [str(r.address) for r in d.recipients]) for d in world.script(domain).deliveries]


def test_a_bounce_that_cannot_be_delivered_goes_to_the_postmaster_with_all_of_it(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        before = doubles("postmaster")
        world.on("example.org", FAILED)
        world.on("example.net", FAILED)
        id = await world.send("anna@example.org", sender="ben@example.net")
        await world.settled()
        (report,) = world.script("example.com").deliveries
        assert report.sender is NULL_SENDER and [r.address for r in report.recipients] == [POSTMASTER]
        text = world.script("example.com").contents[0]
        for part in (
            b"Subject: Bounce could not be delivered\r\n",
            b"To: <postmaster@example.com>\r\n",
            b"Auto-Submitted: auto-replied\r\n",
            b"Final-Recipient: rfc822; ben@example.net\r\n",
            b"Content-Type: message/rfc822\r\n",
            b"Final-Recipient: rfc822; anna@example.org\r\n",
            b"X-Gatepost-Queue-ID: " + id.encode(),
        ):
            assert part in text
        assert await world.spool.list() == []
        assert doubles("postmaster") == before + 1

    play(tmp_path, scenario, bounces=lambda: TOLD)


def test_a_report_that_the_postmaster_cannot_get_is_held_and_makes_no_other(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        world.on("example.net", FAILED)
        world.on("example.com", FAILED)
        await world.send("anna@example.org", sender="ben@example.net")
        await world.settled()
        (held,) = await world.spool.list()
        assert held.state is State.HOLD and held.slots[0].recipient.address == POSTMASTER
        assert [len(world.script(d).deliveries) for d in ("example.org", "example.net", "example.com")] == [1, 1, 1]

    play(tmp_path, scenario, bounces=lambda: TOLD)


def test_nobody_can_make_us_write_to_the_postmaster_about_his_own_mail(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.com", FAILED)
        await world.send("Postmaster@EXAMPLE.com", sender=NULL_SENDER, owed=False)
        await world.settled()
        (held,) = await world.spool.list()
        assert held.state is State.HOLD

    play(tmp_path, scenario, bounces=lambda: TOLD)


@pytest.mark.parametrize(
    ("bounces", "outcome", "left"),
    [
        (BounceOptions(double=Double.DROP, postmaster=POSTMASTER), "drop", []),
        (BounceOptions(double=Double.HOLD, postmaster=POSTMASTER), "hold", [State.HOLD]),
        (BounceOptions(double=Double.POSTMASTER), "hold", [State.HOLD]),
    ],
)
def test_a_bounce_that_cannot_be_delivered_is_dropped_or_held_where_that_is_wanted(
    tmp_path: Path, bounces: BounceOptions, outcome: str, left: list[State]
) -> None:
    async def scenario(world: World) -> None:
        before = doubles(outcome)
        world.on("example.net", FAILED)
        id = await world.send("ben@example.net", sender=NULL_SENDER, owed=False)
        await world.settled()
        assert [m.state for m in await world.spool.list()] == left
        assert doubles(outcome) == before + 1 and not world.script("example.com").deliveries
        (explained,) = await world.spool.explain(id)
        assert [a["outcome"] for a in explained.attempts] == ["failed"]

    play(tmp_path, scenario, bounces=lambda: bounces)


def test_options_that_change_hold_for_the_next_bounce(tmp_path: Path) -> None:
    current = TOLD

    async def scenario(world: World) -> None:
        nonlocal current
        world.on("example.net", FAILED)
        for now in (TOLD, BounceOptions(double=Double.DROP)):
            current = now
            await world.send("ben@example.net", sender=NULL_SENDER, owed=False)
            await world.settled()
        assert len(world.script("example.com").deliveries) == 1
        assert await world.spool.list() == []

    play(tmp_path, scenario, bounces=lambda: current)


def test_a_double_bounce_names_the_recipients_that_failed_before_too(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.net", FAILED)
        later = world.on("example.edu", DEFERRED, FAILED)
        await world.send("ben@example.net", "eve@example.edu", sender=NULL_SENDER, owed=False)
        await world.settled()
        world.clock.advance(400)
        await world.settled()
        assert len(later.deliveries) == 2
        text = world.script("example.com").contents[0]
        assert text.count(b"\r\nFinal-Recipient: ") == 2 and text.count(b"\r\nLast-Attempt-Date: ") == 1

    play(tmp_path, scenario, bounces=lambda: TOLD)


def test_verp_makes_a_transaction_for_each_recipient_and_keeps_what_they_asked_for(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        wish = recipient("ben@example.net", Notify.SUCCESS, orcpt="rfc822;ben@example.net")
        await world.send(wish, "eve@example.net", sender="news@example.org")
        await world.settled()
        assert sorted(senders(world, "example.net")) == [
            ("news+ben=example.net@example.org", ["ben@example.net"]),
            ("news+eve=example.net@example.org", ["eve@example.net"]),
        ]
        kept = [r for d in world.script("example.net").deliveries for r in d.recipients if r.address == wish.address]
        assert kept == [wish]

    play(tmp_path, scenario, paths=PATHS)


def test_what_we_report_of_mail_with_verp_goes_to_an_address_for_each_recipient(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.net", FAILED)
        await world.send("ben@example.net", "eve@example.net", sender="news@example.org")
        await world.settled()
        reports = world.script("example.org").deliveries
        assert sorted(str(r.address) for d in reports for r in d.recipients) == [
            "news+ben=example.net@example.org",
            "news+eve=example.net@example.org",
        ]
        assert all(d.sender is NULL_SENDER for d in reports)
        for number, report in enumerate(reports):
            text = world.script("example.org").contents[number]
            (who,) = [name for name in (b"ben", b"eve") if b"Final-Recipient: rfc822; " + name in text]
            assert who in str(report.recipients[0].address).encode()

    play(tmp_path, scenario, paths=PATHS)


def test_mail_of_others_to_others_leaves_rewritten_and_the_copy_for_us_does_not(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        # One destination for both, so that only the senders keep them apart.
        world.resolve = lambda address, next_hop="", sender=None: World.resolve(world, Address("x", "smarthost.test"))  # type: ignore[method-assign]
        await world.send("eve@example.com", "ida@example.com", "anna@example.org", sender="ben@example.net")
        await world.settled()
        (home,) = [s for s in senders(world, "smarthost.test") if "anna@example.org" in s[1]]
        (abroad,) = [s for s in senders(world, "smarthost.test") if "anna@example.org" not in s[1]]
        assert home == ("ben@example.net", ["anna@example.org"])
        assert abroad[1] == ["eve@example.com", "ida@example.com"]
        assert str(SRS.restore(address(abroad[0]), START)) == "ben@example.net"

    play(tmp_path, scenario, paths=PATHS)


def test_our_own_report_of_rewritten_mail_goes_to_the_true_sender(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.com", FAILED)
        await world.send("eve@example.com", sender="ben@example.net")
        await world.settled()
        assert senders(world, "example.net") == [("", ["ben@example.net"])]

    play(tmp_path, scenario, paths=PATHS)


def test_a_dsn_is_stored_with_its_signature_on_top(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        await world.send("anna@example.org", sender="ben@example.net")
        await world.settled()
        text = world.script("example.net").contents[0]
        assert text.startswith(b"X-Signed: yes\r\nFrom: Mail Delivery System <bounces@example.org>\r\n")
        (explained,) = await world.spool.explain(world.script("example.net").deliveries[0].id)
        assert explained.record["size"] == len(text)

    own = BounceOptions(address=address("bounces@example.org"))
    play(tmp_path, scenario, bounces=lambda: own, signer=Stamp())


@pytest.mark.parametrize(
    ("without_ret", "ret", "full"),
    [
        (Ret.HEADERS, None, False),
        (Ret.HEADERS, Ret.FULL, True),
        (Ret.FULL, None, True),
        (Ret.FULL, Ret.HEADERS, False),
        (Ret.HEADERS, Ret.HEADERS, False),
        (Ret.FULL, Ret.FULL, True),
    ],
)
def test_ret_decides_what_is_returned_and_the_option_where_it_is_absent(
    tmp_path: Path, without_ret: Ret, ret: Ret | None, full: bool
) -> None:
    async def scenario(world: World) -> None:
        world.on("example.org", FAILED)
        await world.send("anna@example.org", sender="ben@example.net", parameters=MailParameters(ret=ret))
        await world.settled()
        text = world.script("example.net").contents[0]
        assert (b"\r\n\r\nBody\r\n" in text) is full
        assert CONTENT[: CONTENT.index(b"\r\n\r\n")] in text

    play(tmp_path, scenario, bounces=lambda: BounceOptions(without_ret=without_ret))


def test_a_return_path_is_made_anew_for_each_attempt(tmp_path: Path) -> None:
    class Counting:
        """A sender that says how often it was made."""

        made = 0

        def sender(self, id: str, sender: Sender, recipient: Address) -> Sender:
            self.made += 1
            return Address(f"try{self.made}", "example.org")

        def reports_to(self, sender: Sender, recipient: Address) -> Sender:
            return sender

    async def scenario(world: World) -> None:
        world.on("example.net", DEFERRED, DELIVERED)
        await world.send("ben@example.net", sender="anna@example.org")
        await world.settled()
        world.clock.advance(400)
        await world.settled()
        assert [s for s, _ in senders(world, "example.net")] == ["try1@example.org", "try2@example.org"]

    play(tmp_path, scenario, paths=Counting())


def test_a_report_of_ours_that_nobody_takes_is_over_and_waits_for_nobody(tmp_path: Path) -> None:
    """Where a domain wants its reports its owner says, and not every one of them can be written to."""

    async def scenario(world: World) -> None:
        world.on("example.net", FAILED)
        outbox = SpoolOutbox(world.spool, world.clock, world.scheduler.ring, Stamp().sign)
        id = await outbox.send(address("reports@example.org"), [address("rua@example.net")], CONTENT)
        await world.settled()
        assert await world.find(id) is None
        assert await world.dsns() == []
        assert world.script("example.net").deliveries[0].recipients == (recipient("rua@example.net", Notify.NEVER),)

    play(tmp_path, scenario)
