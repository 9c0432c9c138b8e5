"""Entries that are enforced for a part of the traffic."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.reply import Reply
from gateway.pipeline.loader import PipelineError
from gateway.pipeline.rollout import By, Rollout, parse_rollout
from gateway.sdk import Session, Stage, reject
from tests.pipeline.quick import run
from tests.pipeline.setting import (
    SESSION,
    TRANSACTION,
    A,
    Counter,
    Flow,
    finder,
    hook,
    make,
    plugin,
    policy,
    rejecting,
)


def client(number: int) -> Session:
    return replace(SESSION, client=ipaddress.ip_address(f"198.{number // 200}.{number % 200}.{number % 250}"))


CLIENTS = [client(number) for number in range(4000)]


async def at_mail(flow: Flow, session: Session) -> tuple[Reply | None, list[dict[str, Any]]]:
    """What a client is told at MAIL, None for nothing, and all verdicts."""
    opened = flow.pipeline.open()
    await opened.connect(session)
    txn = opened.begin(replace(TRANSACTION, session=session))
    decision = await txn.mail(replace(TRANSACTION, session=session))
    verdicts = txn.trace.verdicts
    await txn.close()
    await opened.close()
    return decision.verdict.reply, verdicts


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_part_is_as_large_as_the_share(share: float) -> None:
    covered = sum(Rollout(share).covers("p", session, None) for session in CLIENTS)
    assert abs(covered / len(CLIENTS) - share) < 0.03


def test_who_is_in_stays_in_when_the_share_grows() -> None:
    small, large = ({s.client for s in CLIENTS if Rollout(share).covers("p", s, None)} for share in (0.1, 0.2))
    assert small < large


def test_entries_do_not_all_choose_the_same_part() -> None:
    first, second = ({s.client for s in CLIENTS if Rollout(0.1).covers(name, s, None)} for name in ("p", "q"))
    assert len(first & second) < len(first) / 2


def test_a_network_is_in_or_out_as_a_whole() -> None:
    for number in range(50):
        hosts = [replace(SESSION, client=ipaddress.ip_address(f"203.0.{number}.{host}")) for host in (1, 77, 254)]
        assert len({Rollout(0.5).covers("p", host, None) for host in hosts}) == 1
        hosts = [replace(SESSION, client=ipaddress.ip_address(f"2001:db8:0:{number}::{host}")) for host in (1, 77)]
        assert len({Rollout(0.5).covers("p", host, None) for host in hosts}) == 1


def test_a_senders_domain_is_in_or_out_from_wherever_it_comes() -> None:
    rollout = Rollout(0.5, By.SENDER)
    seen = set()
    for number in range(50):
        txn = replace(TRANSACTION, sender=Address("x", f"d{number}.example"))
        (covered,) = {rollout.covers("p", session, txn) for session in CLIENTS[:20]}
        seen.add(covered)
    assert seen == {True, False}
    bounce = replace(TRANSACTION, sender=NULL_SENDER)
    for session in CLIENTS[:20]:
        assert rollout.covers("p", session, bounce) == rollout.covers("p", session, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10%", Rollout(0.1)),
        ("0.5 %", Rollout(0.005)),
        ("100%", Rollout(1.0)),
        ({"share": "10%"}, Rollout(0.1)),
        ({"share": "10%", "by": "sender"}, Rollout(0.1, By.SENDER)),
    ],
)
def test_a_share_is_written_in_per_cent(value: Any, expected: Rollout) -> None:
    assert parse_rollout(value) == expected


@pytest.mark.parametrize(
    "value", ["10", 10, 0.1, "101%", "-1%", "x%", None, True, {}, {"by": "client"}, {"share": "1%", "x": 1}]
)
def test_what_is_no_share_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"%"):
        parse_rollout(value)


def test_outside_of_its_part_an_entry_is_in_shadow() -> None:
    refusing = policy("p", hook(Stage.MAIL, [Session], lambda session: reject("7.1", "no")))

    async def scenario() -> list[bool]:
        flow = Flow([{"p": None, "enforce": "50%"}], refusing)
        refused = []
        for session in CLIENTS[:40]:
            reply, verdicts = await at_mail(flow, session)
            (verdict,) = verdicts
            assert verdict["action"] == "reject" and verdict["shadow"] is (reply is None)
            refused.append(reply is not None)
        await flow.close()
        return refused

    refused = run(scenario())
    assert refused == [Rollout(0.5).covers("p", session, None) for session in CLIENTS[:40]]
    assert True in refused and False in refused


def test_the_table_says_for_how_much_of_the_traffic() -> None:
    refusing = policy("p", hook(Stage.MAIL, [Session], lambda session: reject("7.1", "no")))
    for keys, enforced in (({}, "100%"), ({"enforce": "2.5%"}, "2.5%"), ({"shadow": True}, "0%")):
        (row,) = make([{"p": None, **keys}], refusing).table()
        assert row.enforced == enforced == row.to_json()["enforced"]


@pytest.mark.parametrize("keys", [{"enforce": "much"}, {"enforce": "10%", "shadow": True}])
def test_what_makes_no_sense_is_refused_at_its_place(keys: dict[str, Any]) -> None:
    refusing = policy("p", hook(Stage.MAIL, [Session], lambda session: reject("7.1", "no")))
    with pytest.raises(PipelineError) as caught:
        make([{"p": None, **keys}], refusing)
    assert caught.value.path == (0, "enforce")


def test_outside_of_its_part_an_entry_that_fails_makes_nobody_refuse() -> None:
    failing = plugin("p", finder(Stage.MAIL, A, [Session], Counter(OSError("gone"))))
    needing = rejecting("q", Stage.MAIL, A)

    async def scenario() -> list[bool]:
        flow = Flow([{"p": None, "enforce": "50%", "on_error": "reject"}, "q"], failing, needing)
        replies = [(await at_mail(flow, session))[0] for session in CLIENTS[:4]]
        await flow.close()
        return [reply is not None for reply in replies]

    refused = run(scenario())
    assert refused == [Rollout(0.5).covers("p", session, None) for session in CLIENTS[:4]]
    assert True in refused and False in refused
