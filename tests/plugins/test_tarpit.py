"""The tarpit plugin on the bench. Delays are milliseconds."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from gateway.sdk import Dnsbl, EarlyTalk, HeloName, Services
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeState, ManualClock, make_session
from plugins.tarpit import ANSWERS, HELD, Tarpit, TarpitOptions, TarpitPlugin

QUICK = {"delay": "1ms"}
PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""


def found(*findings, options=None, trusted=False) -> Tarpit:
    session = make_session(trusted=trusted)
    finding = Bench().find(TarpitPlugin, QUICK | (options or {}), session=session, findings=findings)
    assert isinstance(finding, Tarpit)
    return finding


def test_a_client_of_whom_nothing_bad_is_known_is_not_held():
    assert found() == Tarpit()
    assert found(Dnsbl(0.5), HeloName("a.example", (), True), EarlyTalk(False, 6.0)) == Tarpit()


def test_a_listed_client_is_held_from_the_score_on():
    assert found(Dnsbl(1.0)) == Tarpit(0.001, "score 1")
    assert found(Dnsbl(2.5), options={"dnsbl_score": 3}) == Tarpit()
    assert found(Dnsbl(99.0), options={"dnsbl_score": None}) == Tarpit()


def test_a_client_with_a_problem_in_its_helo_name_is_held():
    helo = HeloName("localhost", ("single-label",))
    assert found(helo) == Tarpit(0.001, "HELO: single-label")
    assert found(helo, options={"helo_problems": False}) == Tarpit()


def test_an_early_talker_that_got_away_with_it_is_held():
    assert found(EarlyTalk(True, 0.1)) == Tarpit(0.001, "talked early")
    assert found(EarlyTalk(True, 0.1), options={"early_talk": False}) == Tarpit()


def test_everybody_can_be_held_but_trusted_clients():
    assert found(options={"everybody": True}) == Tarpit(0.001, "everybody")
    assert found(Dnsbl(9.0), options={"everybody": True}, trusted=True) == Tarpit()


def test_without_a_delay_the_record_says_whom_it_would_hold():
    assert found(Dnsbl(1.0), options={"delay": 0}) == Tarpit(0.0, "score 1")


def test_it_holds_for_as_long_as_it_says():
    async def check() -> None:
        plugin = await started(delay=0.05)
        began = asyncio.get_running_loop().time()
        assert await plugin.hold(make_session(), Dnsbl(1.0), None, None) == Tarpit(0.05, "score 1")
        assert asyncio.get_running_loop().time() - began >= 0.05

    asyncio.run(asyncio.wait_for(check(), PATIENCE))


async def started(**options) -> TarpitPlugin:
    clock = ManualClock()
    services = Services(FakeDns(), FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
    plugin = TarpitPlugin(TarpitOptions(**options), services)
    await plugin.start()
    return plugin


def test_only_so_many_are_held_at_once_and_who_is_cancelled_makes_room():
    async def check() -> None:
        plugin = await started(delay=15.0, at_once=2)
        beyond = ANSWERS.labels("not-held")._value.get()

        def hold():
            return asyncio.get_running_loop().create_task(plugin.hold(make_session(), Dnsbl(1.0), None, None))

        held = [hold(), hold()]
        await asyncio.sleep(0)
        assert HELD._value.get() == 2
        assert await hold() == Tarpit(0.0, "score 1")
        assert ANSWERS.labels("not-held")._value.get() == beyond + 1
        held[0].cancel()
        await asyncio.wait(held[:1])
        assert HELD._value.get() == 1
        third = hold()
        await asyncio.sleep(0)
        assert not third.done()
        for task in (held[1], third):
            task.cancel()
        await asyncio.wait([held[1], third])
        assert HELD._value.get() == 0

    asyncio.run(asyncio.wait_for(check(), PATIENCE))


def test_it_has_no_policy_and_its_timeout_is_longer_than_any_delay():
    assert TarpitPlugin.policy is None
    assert TarpitPlugin.timeout > TarpitOptions(delay=15.0).delay


@pytest.mark.parametrize(
    "options",
    [
        {"delay": "16s"},
        {"delay": 5},
        {"at_once": 0},
        {"dnsbl_score": "high"},
        {"dnsbl_score": None, "helo_problems": False, "early_talk": False},
        {"dealy": "5s"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        TarpitOptions.model_validate(options)
