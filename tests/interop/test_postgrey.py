"""The greylist plugin beside postgrey: the same attempts at the same times, and where the two differ."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sdk import Action, Finding, Greylist, Outcome, Spf, SpfResult, Stage
from gateway.sdk.testing import Bench, make_recipient, make_session, make_transaction
from plugins.greylist import GreylistPlugin
from tests.support.postgrey import Postgrey

pytestmark = pytest.mark.slow

DAY = 86_400
OPTIONS = {"when": "always", "delay": "5m", "window": "2d", "remember": "35d"}
POSTGREY = ("--delay=300", "--retry-window=2", "--max-age=35", "--auto-whitelist-clients=5")

BEN, EVA = "ben@sender.test", "eva@sender.test"
ANNA, CARL = "anna@example.test", "carl@example.test"

Attempt = tuple[float, str, str, str]

AGREED: list[Attempt] = [
    (0, "192.0.2.1", BEN, ANNA),
    (100, "192.0.2.1", BEN, ANNA),
    (299, "192.0.2.1", BEN, ANNA),
    (300, "192.0.2.1", BEN, ANNA),
    (301, "192.0.2.1", BEN, ANNA),
    # Another host of the same network, other case, another sender, another recipient.
    (302, "192.0.2.200", BEN, ANNA),
    (303, "192.0.2.1", "Ben@Sender.Test", "ANNA@example.test"),
    (304, "192.0.2.1", EVA, ANNA),
    (305, "192.0.2.1", BEN, CARL),
    (306, "198.51.100.1", BEN, ANNA),
    (400, "192.0.2.1", BEN, CARL),
    (700, "192.0.2.1", BEN, CARL),
    # A retry after the window begins anew.
    (1000, "203.0.113.1", BEN, ANNA),
    (1000 + 2 * DAY + 1, "203.0.113.1", BEN, ANNA),
    (1000 + 2 * DAY + 301, "203.0.113.1", BEN, ANNA),
    # Numbers and extensions in senders.
    (3 * DAY, "203.0.113.1", "list-return-1-anna=example.test@l.test", ANNA),
    (3 * DAY + 300, "203.0.113.1", "list-return-2-anna=example.test@l.test", ANNA),
    (3 * DAY + 400, "203.0.113.1", "bounce+4711@l.test", ANNA),
    (3 * DAY + 700, "203.0.113.1", "bounce+4712@l.test", ANNA),
    (3 * DAY + 701, "203.0.113.1", "prvs=1234abcdef=ann@l.test", ANNA),
    (3 * DAY + 1001, "203.0.113.1", "prvs=5678fedcba=ann@l.test", ANNA),
    # The /64 of IPv6.
    (4 * DAY, "2001:db8:0:1::1", BEN, ANNA),
    (4 * DAY + 300, "2001:db8:0:1:ffff::2", BEN, ANNA),
    (4 * DAY + 301, "2001:db8:0:2::1", BEN, ANNA),
    # Who must stay reachable.
    (4 * DAY + 302, "198.51.100.9", BEN, "postmaster@example.test"),
    (4 * DAY + 303, "198.51.100.9", BEN, "abuse@example.test"),
    # Known as long as it comes again.
    (34 * DAY, "192.0.2.1", BEN, ANNA),
    (68 * DAY, "192.0.2.1", BEN, ANNA),
]


class Ours:
    """The plugin and its policy on the bench."""

    def __init__(self, **options: Any) -> None:
        self.bench = Bench()
        self.options = {**OPTIONS, **options}
        self._began = self.bench.clock.now()

    def waits(self, attempt: Attempt, *findings: Finding, stage: Stage = Stage.RCPT, accepted: bool = False) -> bool:
        """Whether the attempt is deferred; with `accepted`, one that isn't becomes an accepted message."""
        when, client, sender, recipient = attempt
        self.bench.clock.advance(self._began + when - self.bench.clock.now())
        transaction = make_transaction(make_session(client), sender=sender, recipients=[recipient])
        found = self.bench.find(
            GreylistPlugin,
            self.options,
            stage,
            transaction=transaction,
            recipient=make_recipient(recipient),
            findings=findings,
        )
        assert isinstance(found, Greylist)
        verdict = self.bench.judge(GreylistPlugin, self.options, stage, findings=[found])
        if accepted and not verdict.decisive:
            self.bench.end(
                GreylistPlugin, self.options, outcome=Outcome.ACCEPTED, transaction=transaction, findings=findings
            )
        return verdict.action is Action.DEFER


@pytest.fixture
def postgrey(running):
    return running(Postgrey(*POSTGREY))


def waits(postgrey: Postgrey, attempt: Attempt) -> bool:
    when, client, sender, recipient = attempt
    # Its database must not begin at 0, where "never" is.
    return postgrey.ask(1_000_000_000 + when, client, sender, recipient).startswith("DEFER_IF_PERMIT")


def both(postgrey: Postgrey, ours: Ours, attempts: list[Attempt], **kwargs: Any) -> list[tuple[bool, bool]]:
    """For each attempt whether postgrey lets it wait, and whether we do."""
    return [(waits(postgrey, attempt), ours.waits(attempt, **kwargs)) for attempt in attempts]


def test_where_nothing_is_proved_the_same_attempts_wait(postgrey):
    ours = Ours(learn_after=0)
    compared = both(postgrey, ours, AGREED)
    for attempt, (theirs, own) in zip(AGREED, compared, strict=True):
        assert theirs == own, attempt
    assert [theirs for theirs, _ in compared].count(True) == 14


def test_a_pool_waits_at_each_network_there_and_once_here_when_spf_proves_the_domain(postgrey):
    ours = Ours()
    proved = Spf(SpfResult.PASS, "sender.test", SpfResult.NONE, "client.test")
    attempts = [(n * 600.0, f"198.51.{n}.1", BEN, ANNA) for n in range(5)]
    assert [waits(postgrey, attempt) for attempt in attempts] == [True] * 5
    assert [ours.waits(attempt, proved) for attempt in attempts] == [True, False, False, False, False]


def test_a_callout_waits_there_and_not_here(postgrey):
    ours = Ours()
    callout = (0.0, "192.0.2.1", "", ANNA)
    assert both(postgrey, ours, [callout]) == [(True, False)]
    assert ours.waits(callout, stage=Stage.MESSAGE), "what goes on to DATA does"


def test_senders_that_change_in_letters_too_wait_at_each_message_there_and_once_here(postgrey):
    ours = Ours(learn_after=0)
    attempts = [
        (0.0, "192.0.2.1", "01000174979b0a52-3880fe53-829e-4de0-a316-e9507dd3b907-000000@ses.test", ANNA),
        (600.0, "192.0.2.1", "010001712c18ec1e-e945dc7c-104a-4edf-9a69-dfce6e33ee17-000000@ses.test", ANNA),
        (1200.0, "192.0.2.1", "SRS0=abCD=7T=origin.test=ben@f.test", ANNA),
        (1800.0, "192.0.2.1", "SRS0=xyZW=8A=origin.test=ben@f.test", ANNA),
    ]
    assert both(postgrey, ours, attempts) == [(True, True), (True, False), (True, True), (True, False)]


def test_what_becomes_known_is_one_address_there_and_the_network_here(postgrey):
    """postgrey counts first passes of an address, one per hour; we count accepted messages of a network."""
    ours = Ours()
    for number in range(5):
        sender = f"{'abcde'[number]}x@sender.test"
        for when in (number * 7200.0, number * 7200.0 + 300):
            attempt = (when, "192.0.2.1", sender, ANNA)
            assert waits(postgrey, attempt) == ours.waits(attempt, accepted=True)
    new = (5 * 7200.0, "192.0.2.1", "new@other.test", CARL)
    neighbour = (5 * 7200.0 + 1, "192.0.2.2", "new@third.test", CARL)
    assert both(postgrey, ours, [new, neighbour]) == [(False, False), (True, False)]
