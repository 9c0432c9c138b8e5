"""The pregreet plugin on the bench; tests/smtp/test_pregreet.py has it at the front door."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, EarlyTalk, Services, Session, StateError
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeLines, FakeState, ManualClock, make_session
from plugins.pregreet import CLIENTS, PregreetOptions, PregreetPlugin

DAY = 86_400.0
PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""


def found(at: Bench, client: str = "192.0.2.1", options: object = None, trusted: bool = False) -> EarlyTalk:
    finding = at.find(PregreetPlugin, options, session=make_session(client, trusted=trusted))
    assert isinstance(finding, EarlyTalk)
    return finding


def talker(client: str, after: float) -> Bench:
    clock = ManualClock()
    return Bench(clock=clock, lines=FakeLines(clock, {client: after}))


def counted(result: str) -> float:
    return CLIENTS.labels(result)._value.get()


def test_an_unknown_client_waits_and_is_not_early_when_it_says_nothing():
    at = Bench()
    assert found(at) == EarlyTalk(False, 6.0)
    assert at.clock.now() == 1_000_000_006


def test_who_talks_is_early_at_once():
    at = talker("192.0.2.1", 0.25)
    assert found(at) == EarlyTalk(True, 0.25)
    assert at.clock.now() == 1_000_000_000.25


def test_who_talks_after_the_wait_is_not_early():
    assert found(talker("192.0.2.1", 6.5)) == EarlyTalk(False, 6.0)


def test_who_has_waited_is_greeted_at_once_from_then_on():
    at = Bench()
    found(at)
    now = at.clock.now()
    assert found(at) == EarlyTalk(False, 0.0, remembered=True)
    assert at.clock.now() == now


def test_a_client_is_forgotten_after_a_while():
    at = Bench()
    found(at, options={"remember": "2d"})
    at.clock.advance(2 * DAY - 10)
    assert found(at, options={"remember": "2d"}).remembered
    at.clock.advance(20)
    assert found(at, options={"remember": "2d"}) == EarlyTalk(False, 6.0)


def test_without_a_memory_every_connection_waits():
    at = Bench()
    for _ in range(2):
        assert found(at, options={"remember": 0}) == EarlyTalk(False, 6.0)


def test_an_early_talker_is_not_remembered():
    at = talker("192.0.2.1", 1)
    found(at)
    at.lines.talkers.clear()
    assert found(at) == EarlyTalk(False, 6.0)


def test_a_remembered_client_that_talks_early_is_early_and_forgotten():
    at = talker("192.0.2.9", 0)
    found(at)
    at.lines.talkers["192.0.2.1"] = 0
    assert found(at) == EarlyTalk(True, 0.0, remembered=True)
    at.lines.talkers.clear()
    assert found(at) == EarlyTalk(False, 6.0)


def test_ipv6_clients_are_remembered_by_network_and_ipv4_clients_one_by_one():
    at = Bench()
    found(at, "2001:db8:0:1::1")
    assert found(at, "2001:db8:0:1:ffff::9").remembered
    assert not found(at, "2001:db8:0:2::1").remembered
    found(at, "192.0.2.1")
    assert found(at, "::ffff:192.0.2.1").remembered
    assert not found(at, "192.0.2.2").remembered


def test_who_hangs_up_before_the_wait_is_over_is_not_remembered():
    class HungUp(FakeLines):
        async def early(self, session: Session, seconds: float) -> bool:
            await super().early(session, seconds / 2)
            return False

    clock = ManualClock()
    at = Bench(clock=clock, lines=HungUp(clock))
    before = counted("left")
    assert found(at) == EarlyTalk(False, 3.0)
    assert counted("left") == before + 1
    assert not found(Bench(clock=clock, state=at.state, lines=FakeLines(clock))).remembered


@pytest.mark.parametrize("client", ["10.1.2.3", "2001:db8:5::9", "::ffff:10.1.2.3"])
def test_exempt_and_trusted_clients_do_not_wait_and_are_not_refused(client):
    options = {"exempt": ["10.0.0.0/8", "2001:db8:5::/48"]}
    for trusted, session_options in ((False, options), (True, {})):
        at = talker(str(ipaddress.ip_address(client)), 0)
        talk = found(at, client, session_options, trusted)
        assert talk == EarlyTalk(True, 0.0)
        assert at.clock.now() == 1_000_000_000
        session = make_session(client, trusted=trusted)
        assert at.judge(PregreetPlugin, session_options, session=session, findings=[talk]) == PROCEED


def test_an_early_talker_is_refused_and_cut_off():
    verdict = Bench().judge("pregreet", findings=[EarlyTalk(True, 0.25)])
    assert (verdict.action, str(verdict.reply)) == (Action.DISCONNECT, "554 5.5.1 data before it was asked for")
    assert verdict.reason == "the client talked 0.2s after it connected, before its greeting"


def test_an_early_talker_can_be_deferred_or_only_recorded():
    talk = EarlyTalk(True, 0.25)
    verdict = Bench().judge("pregreet", {"action": "defer"}, findings=[talk])
    assert str(verdict.reply) == "421 4.5.1 data before it was asked for"
    assert Bench().judge("pregreet", {"action": "none"}, findings=[talk]) == PROCEED


def test_who_waited_is_not_refused():
    for talk in (EarlyTalk(False, 6.0), EarlyTalk(False, 0.0, remembered=True)):
        assert Bench().judge("pregreet", findings=[talk]) == PROCEED


def test_a_state_store_that_does_not_answer_is_a_fault_for_on_error_to_decide():
    at = Bench()
    at.state.broken = True
    with pytest.raises(StateError):
        found(at)


def test_only_so_many_clients_wait_at_once_and_a_client_beyond_is_not_remembered():
    class Silent:
        def __init__(self) -> None:
            self.waits = 0
            self.go_on = asyncio.Event()

        async def early(self, session: Session, seconds: float) -> bool:
            if seconds:
                self.waits += 1
                await self.go_on.wait()
                clock.advance(seconds)
            return False

    clock = ManualClock()

    async def check() -> None:
        lines, state = Silent(), FakeState(clock)
        services = Services(FakeDns(), state, clock, FakeDirectory(), "mx.test", "mx.test", lines)
        plugin = PregreetPlugin(PregreetOptions(at_once=2), services)
        await plugin.start()
        waiting = [
            asyncio.get_running_loop().create_task(plugin.listen(make_session(f"192.0.2.{n}"))) for n in range(2)
        ]
        while lines.waits < 2:
            await asyncio.sleep(0)
        assert await plugin.listen(make_session("192.0.2.9")) == EarlyTalk(False, 0.0)
        assert await state.get("pregreet 192.0.2.9") is None
        waiting[0].cancel()
        await asyncio.sleep(0)
        freed = asyncio.get_running_loop().create_task(plugin.listen(make_session("192.0.2.9")))
        while lines.waits < 3:
            await asyncio.sleep(0)
        lines.go_on.set()
        assert (await freed).waited >= 6
        assert await state.get("pregreet 192.0.2.9") == b"1"
        assert await state.get("pregreet 192.0.2.0") is None

    asyncio.run(asyncio.wait_for(check(), PATIENCE))


@pytest.mark.parametrize(
    "options",
    [
        {"wait": 0},
        {"wait": "10s"},
        {"wait": 6},
        {"action": "drop"},
        {"exempt": ["10.0.0.1/8"]},
        {"exempt": ["mail.example"]},
        {"at_once": 0},
        {"remeber": "7d"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        PregreetOptions.model_validate(options)
