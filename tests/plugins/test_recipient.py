"""The recipient plugin on the bench."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from gateway.sdk import (
    PROCEED,
    Address,
    Callout,
    CalloutState,
    RecipientRule,
    RecipientState,
    RecipientStatus,
    Services,
    StateError,
    Store,
    WhenDown,
)
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeState, ManualClock, make_recipient
from gateway.services.tasks import Tasks
from plugins.recipient import RecipientOptions, RecipientPlugin

EXISTS = Callout(CalloutState.EXISTS, "250 2.1.5 fine")
UNKNOWN = Callout(CalloutState.UNKNOWN, "550 5.1.1 no such user at inner-host.example")
DOWN = Callout(CalloutState.UNAVAILABLE, "connection refused", down=True)
FULL = Callout(CalloutState.UNAVAILABLE, "452 4.2.2 mailbox full at inner-host.example")


class House:
    """A bench with one domain that is asked for by callout."""

    def __init__(self, rule: RecipientRule = RecipientRule.CALLOUT, callout: Callout = EXISTS) -> None:
        self.directory = FakeDirectory({"example.org": rule}, {"example.org": callout})
        self.bench = Bench(directory=self.directory)

    def answers(self, callout: Callout) -> None:
        self.directory.callouts["example.org"] = callout

    def status(self, address: str = "anna@example.org", **options) -> RecipientStatus:
        finding = self.bench.find(RecipientPlugin, options, recipient=make_recipient(address))
        assert isinstance(finding, RecipientStatus)
        return finding


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        (RecipientRule.LISTED, RecipientState.EXISTS),
        (RecipientRule.NOT_LISTED, RecipientState.UNKNOWN),
        (RecipientRule.ANY, RecipientState.ASSUMED),
        (RecipientRule.NOT_OURS, RecipientState.NOT_OURS),
    ],
)
def test_what_the_configuration_knows_needs_no_callout(rule, state):
    house = House(rule)
    assert house.status() == RecipientStatus(state, "list")
    assert house.directory.called == []


@pytest.mark.parametrize("rule", [RecipientRule.NOT_LISTED, RecipientRule.CALLOUT])
@pytest.mark.parametrize("address", ["postmaster@example.org", "PostMaster@EXAMPLE.org", "postmaster"])
def test_postmaster_always_exists(rule, address):
    house = House(rule, UNKNOWN)
    assert house.status(address) == RecipientStatus(RecipientState.EXISTS, "list")


def test_postmaster_of_somebody_else_is_not_ours():
    assert House().status("postmaster@elsewhere.example").state is RecipientState.NOT_OURS


def test_a_recipient_that_exists_is_asked_for_once():
    house = House()
    assert house.status() == RecipientStatus(RecipientState.EXISTS, "callout", EXISTS.reply)
    assert house.status("Anna@Example.org") == RecipientStatus(RecipientState.EXISTS, "cache", EXISTS.reply)
    assert house.directory.called == ["anna@example.org"]


def test_after_refresh_it_is_asked_for_again():
    house = House()
    house.status()
    house.answers(UNKNOWN)
    house.bench.clock.advance(86399)
    assert house.status().state is RecipientState.EXISTS
    house.bench.clock.advance(1)
    assert house.status() == RecipientStatus(RecipientState.UNKNOWN, "callout", UNKNOWN.reply)


def test_while_the_store_is_down_whom_it_knew_still_gets_mail_and_the_store_is_left_alone():
    house = House()
    house.status()
    house.answers(DOWN)
    house.bench.clock.advance(86400)
    assert [house.status().state for _ in range(3)] == [RecipientState.EXISTS] * 3
    assert len(house.directory.called) == 2
    house.bench.clock.advance(30)
    house.status()
    assert len(house.directory.called) == 3
    house.bench.clock.advance(6 * 86400)
    assert house.status().state is RecipientState.UNAVAILABLE, "positive_ttl is the end, however long it is down"


def test_an_unknown_recipient_is_remembered_for_a_short_time():
    house = House(callout=UNKNOWN)
    assert house.status().source == "callout"
    house.answers(EXISTS)
    house.bench.clock.advance(3599)
    assert (house.status().state, house.status().source) == (RecipientState.UNKNOWN, "cache")
    house.bench.clock.advance(1)
    assert house.status().state is RecipientState.EXISTS


def test_a_store_that_is_down_is_left_alone_for_half_a_minute():
    house = House(callout=DOWN)
    assert [house.status().state for _ in range(3)] == [RecipientState.UNAVAILABLE] * 3
    assert len(house.directory.called) == 1
    house.answers(EXISTS)
    house.bench.clock.advance(30)
    assert house.status().state is RecipientState.EXISTS


def test_what_another_version_left_in_the_store_is_asked_for_anew():
    house = House()
    house.status()
    for key, (_, expires) in list(house.bench.state._entries.items()):
        house.bench.state._entries[key] = (b'{"old": 1}', expires)
    assert house.status().source == "callout"


def test_trouble_with_the_state_store_is_the_entrys_on_error_to_decide():
    house = House()
    house.bench.state.broken = True
    with pytest.raises(StateError):
        house.status()


class Gated(FakeDirectory):
    """Callouts that wait until the gate opens."""

    def __init__(self) -> None:
        super().__init__({"example.org": RecipientRule.CALLOUT})
        self.gate = asyncio.Event()
        self.most = self.now = 0

    async def callout(self, address: Address) -> Callout:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            return await super().callout(address)
        finally:
            self.now -= 1


async def gated(**options) -> tuple[RecipientPlugin, Gated]:
    clock, directory = ManualClock(), Gated()
    services = Services(FakeDns(), FakeState(clock), clock, directory, "mx.test", "mx.test")
    plugin = RecipientPlugin(RecipientOptions.model_validate(options), services)
    await plugin.start()
    return plugin, directory


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_many_who_ask_for_one_address_at_once_cost_one_callout():
    async def check() -> None:
        plugin, directory = await gated()
        asking = asyncio.gather(*(plugin.status(make_recipient()) for _ in range(20)))
        await turns()
        directory.gate.set()
        statuses = await asking
        assert {s.state for s in statuses} == {RecipientState.EXISTS}
        assert directory.called == ["anna@example.org"]
        assert len(plugin._turns) == 0

    asyncio.run(check())


def test_when_the_one_who_asks_is_cancelled_the_next_asks_in_its_place():
    async def check() -> None:
        plugin, directory = await gated()
        tasks = Tasks()
        first, second = (tasks.start(plugin.status(make_recipient()), name="ask") for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        directory.gate.set()
        assert (await second).source == "callout"
        assert len(plugin._turns) == 0

    asyncio.run(check())


def test_no_more_callouts_at_once_than_allowed():
    async def check() -> None:
        plugin, directory = await gated(callouts=3)
        asking = asyncio.gather(*(plugin.status(make_recipient(f"r{i}@example.org")) for i in range(10)))
        await turns()
        directory.gate.set()
        await asking
        assert directory.most == 3

    asyncio.run(check())


def test_while_one_store_hangs_recipients_of_another_do_not_wait_for_it():
    class OneHangs(Gated):
        async def callout(self, address: Address) -> Callout:
            return await super().callout(address) if address.domain == "example.org" else EXISTS

    async def check() -> None:
        clock, directory = ManualClock(), OneHangs()
        directory.rules["other.test"] = RecipientRule.CALLOUT
        directory.stores["other.test"] = Store("other")
        services = Services(FakeDns(), FakeState(clock), clock, directory, "mx.test", "mx.test")
        plugin = RecipientPlugin(RecipientOptions.model_validate({"callouts": 2}), services)
        await plugin.start()
        hanging = asyncio.gather(*(plugin.status(make_recipient(f"r{i}@example.org")) for i in range(5)))
        await turns()
        async with asyncio.timeout(5):
            assert (await plugin.status(make_recipient("ben@other.test"))).state is RecipientState.EXISTS
        directory.gate.set()
        await hanging

    asyncio.run(check())


def test_a_directory_is_asked_as_a_next_hop_is_and_its_answers_are_remembered():
    house = House(RecipientRule.LDAP)
    assert [house.status().source for _ in range(2)] == ["ldap", "cache"]
    assert house.directory.called == ["anna@example.org"]


def test_what_one_store_said_is_not_believed_of_another_in_its_place():
    house = House(callout=UNKNOWN)
    house.status()
    house.answers(EXISTS)
    house.directory.stores["example.org"] = Store("lmtp:new.example.org:24")
    assert house.status().state is RecipientState.EXISTS


async def asked(plugin: RecipientPlugin, *addresses: str) -> list[str]:
    return [(await plugin.status(make_recipient(a))).source for a in addresses]


def test_a_store_that_is_down_is_left_alone_whoever_the_recipients_are():
    async def check() -> None:
        plugin, directory = await gated()
        directory.gate.set()
        clock = plugin.services.clock
        directory.callouts["example.org"] = DOWN
        names = [f"r{i}@example.org" for i in range(9)]
        assert await asked(plugin, *names[:5]) == ["callout"] * 3 + ["left-alone"] * 2
        clock.advance(30)
        assert await asked(plugin, *names[5:7]) == ["callout", "left-alone"], "one finds out, and it is still down"
        clock.advance(30)
        directory.callouts["example.org"] = EXISTS
        assert await asked(plugin, *names[6:9]) == ["callout"] * 3
        assert await asked(plugin, "r0@example.org") == ["callout"]

    asyncio.run(check())


def test_a_store_that_was_down_when_a_reload_took_the_plugin_away_does_not_stay_down_in_the_metric():
    def down() -> float | None:
        return REGISTRY.get_sample_value("gatepost_recipient_store_down", {"store": "reloaded"})

    async def check() -> None:
        old, directory = await gated()
        directory.stores["example.org"] = Store("reloaded")
        directory.gate.set()
        directory.callouts["example.org"] = DOWN
        await asked(old, *(f"r{i}@example.org" for i in range(3)))
        assert down() == 1
        new = RecipientPlugin(RecipientOptions(), old.services)
        await new.start()
        await old.close()
        directory.callouts["example.org"] = EXISTS
        await asked(new, "r9@example.org")
        assert down() == 0

    asyncio.run(check())


def test_while_one_question_finds_out_whether_it_is_back_no_other_is_asked():
    async def check() -> None:
        plugin, directory = await gated()
        directory.gate.set()
        directory.callouts["example.org"] = DOWN
        await asked(plugin, "a@example.org", "b@example.org", "c@example.org")
        plugin.services.clock.advance(30)
        directory.gate.clear()
        tasks = Tasks()
        probe = tasks.start(plugin.status(make_recipient("d@example.org")), name="probe")
        await turns()
        assert await asked(plugin, "e@example.org") == ["left-alone"]
        probe.cancel()
        await turns()
        directory.gate.set()
        directory.callouts["example.org"] = EXISTS
        assert await asked(plugin, "f@example.org") == ["callout"], "a probe that was called off leaves its place"

    asyncio.run(check())


def test_another_store_is_not_touched_by_that():
    async def check() -> None:
        plugin, directory = await gated()
        directory.gate.set()
        directory.rules["example.net"] = RecipientRule.CALLOUT
        directory.callouts["example.org"] = DOWN
        await asked(plugin, "a@example.org", "b@example.org", "c@example.org")
        assert await asked(plugin, "d@example.org", "d@example.net") == ["left-alone", "callout"]

    asyncio.run(check())


def test_a_recipient_that_is_refused_for_now_does_not_make_the_store_one_that_is_down():
    async def check() -> None:
        plugin, directory = await gated()
        directory.gate.set()
        directory.callouts["example.org"] = FULL
        assert await asked(plugin, *(f"r{i}@example.org" for i in range(6))) == ["callout"] * 6

    asyncio.run(check())


def test_whom_a_store_knew_still_gets_mail_while_it_is_left_alone():
    async def check() -> None:
        plugin, directory = await gated()
        directory.gate.set()
        await asked(plugin, "anna@example.org")
        plugin.services.clock.advance(86400)
        directory.callouts["example.org"] = DOWN
        await asked(plugin, "a@example.org", "b@example.org", "c@example.org")
        status = await plugin.status(make_recipient("anna@example.org"))
        assert (status.state, status.source) == (RecipientState.EXISTS, "cache")

    asyncio.run(check())


def test_a_store_that_hangs_costs_wait_and_counts_as_down():
    async def check() -> None:
        plugin, _ = await gated(wait="10ms")
        statuses = [await plugin.status(make_recipient(f"r{i}@example.org")) for i in range(4)]
        assert {s.state for s in statuses} == {RecipientState.UNAVAILABLE}
        assert statuses[0].reply == "no answer within 0.01 s"
        assert [s.source for s in statuses] == ["callout"] * 3 + ["left-alone"]

    asyncio.run(check())


def judge(state: RecipientState, reply: str = "", domain: WhenDown | None = None, **options):
    return Bench().judge("recipient", options, findings=[RecipientStatus(state, "callout", reply, domain)])


@pytest.mark.parametrize("when_down", list(WhenDown))
def test_what_a_domain_says_about_a_store_that_is_down_comes_before_the_option(when_down):
    house = House(callout=DOWN)
    house.directory.stores["example.org"] = Store("lmtp:store.example.org:24", when_down)
    assert house.status().when_down is when_down
    for option in WhenDown:
        verdict = judge(RecipientState.UNAVAILABLE, domain=when_down, when_down=option)
        assert verdict.decisive is (when_down is WhenDown.DEFER)


def test_a_domains_choice_says_nothing_about_unknown_recipients():
    assert judge(RecipientState.UNKNOWN, domain=WhenDown.ACCEPT).decisive


def test_an_unknown_recipient_is_refused_with_5_1_1_and_the_stores_words_stay_inside():
    verdict = judge(RecipientState.UNKNOWN, UNKNOWN.reply)
    assert str(verdict.reply) == "550 5.1.1 recipient unknown"
    assert "inner-host" not in str(verdict.to_json())


def test_a_store_that_is_down_defers_with_4_4_1_or_is_passed_over():
    assert str(judge(RecipientState.UNAVAILABLE).reply) == "451 4.4.1 recipient cannot be checked now, try again later"
    assert judge(RecipientState.UNAVAILABLE, when_down="accept") == PROCEED


@pytest.mark.parametrize("state", [RecipientState.EXISTS, RecipientState.ASSUMED, RecipientState.NOT_OURS])
def test_the_others_proceed(state):
    assert judge(state) == PROCEED
