"""Senders on the way out: VERP for those it is for, SRS for those of others."""

from __future__ import annotations

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.srs import Srs
from gateway.mail.verp import Verp
from gateway.ops import metrics
from gateway.queue.returnpath import AS_THEY_CAME, Rewriting
from tests.queue.rig import START, address

SRS = Srs("srs.example.org", (b"a secret of some length",))
VERP = Verp(frozenset({"news@example.org", "@lists.example.org"}))
ANNA, BEN, EVE = address("anna@example.org"), address("ben@example.net"), address("eve@example.com")


def ours(found: Address) -> bool:
    return found.ascii_domain.endswith("example.org")


PATHS = Rewriting(ours, lambda: START, VERP, SRS)


def counted(kind: str, outcome: str) -> float:
    return metrics.RETURN_PATHS.labels(kind, outcome)._value.get()


@pytest.mark.parametrize(
    ("sender", "recipient", "becomes"),
    [
        ("news@example.org", "ben@example.net", "news+ben=example.net@example.org"),
        ("News@Example.ORG", "ben@example.net", "News+ben=example.net@Example.ORG"),
        ("owner-x@lists.example.org", "ben+a=b@example.net", "owner-x+ben+a=b=example.net@lists.example.org"),
        ("news@example.org", "anna@example.org", "news+anna=example.org@example.org"),
        ("news@example.org", '"b n"@example.net', '"news+b n=example.net"@example.org'),
        ("news@example.org", "ben@bücher.example", "news+ben=xn--bcher-kva.example@example.org"),
        ("else@example.org", "ben@example.net", "else@example.org"),
        ("x@sub.lists.example.org", "ben@example.net", "x@sub.lists.example.org"),
    ],
)
def test_verp_names_the_recipient_for_the_senders_that_it_is_for(sender: str, recipient: str, becomes: str) -> None:
    found = PATHS.sender("Q1", address(sender), address(recipient))
    assert str(found) == becomes
    assert str(PATHS.reports_to(address(sender), address(recipient))) == becomes


def test_verp_takes_other_delimiters() -> None:
    paths = Rewriting(ours, lambda: START, Verp(frozenset({"news@example.org"}), "-="))
    assert str(paths.sender("Q1", address("news@example.org"), BEN)) == "news-ben=example.net@example.org"


def test_a_verp_address_that_would_be_too_long_is_not_made_and_that_is_counted() -> None:
    before = counted("verp", "kept")
    long = Address("b" * 60, "example.net")
    news = address("news@example.org")
    assert PATHS.sender("Q1", news, long) == news == PATHS.reports_to(news, long)
    assert counted("verp", "kept") == before + 1


def test_mail_of_others_to_others_leaves_with_a_sender_of_ours_and_reports_go_to_the_true_one() -> None:
    before = counted("srs", "rewritten")
    found = PATHS.sender("Q1", BEN, EVE)
    assert isinstance(found, Address) and SRS.restore(found, START) == BEN
    assert PATHS.reports_to(BEN, EVE) == BEN
    assert counted("srs", "rewritten") == before + 1


@pytest.mark.parametrize(
    ("sender", "recipient"), [(BEN, ANNA), (ANNA, EVE), (ANNA, ANNA), (address("x@srs.example.org"), EVE)]
)
def test_mail_to_us_and_mail_of_ours_keeps_its_sender(sender: Address, recipient: Address) -> None:
    assert PATHS.sender("Q1", sender, recipient) is sender


def test_the_null_sender_stays() -> None:
    assert PATHS.sender("Q1", NULL_SENDER, EVE) is NULL_SENDER
    assert PATHS.reports_to(NULL_SENDER, EVE) is NULL_SENDER
    assert AS_THEY_CAME.sender("Q1", BEN, EVE) is BEN and AS_THEY_CAME.reports_to(BEN, EVE) is BEN


def test_what_srs_cannot_rewrite_leaves_as_it_came_and_that_is_counted() -> None:
    before = counted("srs", "kept")
    paths = Rewriting(ours, lambda: START, srs=SRS)
    for sender in (Address("b" * 60, "example.net"), Address("b", "no\udc80where")):
        assert paths.sender("Q1", sender, EVE) is sender
        assert PATHS.reports_to(sender, EVE) is sender
    assert counted("srs", "kept") == before + 2


def test_neither_is_done_unless_it_is_configured() -> None:
    paths = Rewriting(ours, lambda: START)
    assert paths.sender("Q1", BEN, EVE) is BEN and paths.reports_to(BEN, EVE) is BEN


def test_verp_needs_two_delimiters() -> None:
    with pytest.raises(ValueError, match="two"):
        Verp(frozenset({"a@b.example"}), "+")
