"""The sender-callback plugin on the bench."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Action,
    Address,
    Callout,
    CalloutState,
    RecipientRule,
    Sender,
    Services,
    Spf,
    SpfResult,
    StateError,
)
from gateway.sdk.testing import (
    Bench,
    FakeCallouts,
    FakeDirectory,
    FakeDns,
    FakeState,
    ManualClock,
    make_session,
    make_transaction,
)
from plugins.sender_callback import (
    CallbackState,
    SenderCallback,
    SenderCallbackOptions,
    SenderCallbackPlugin,
)

NO_SUCH = Callout(CalloutState.UNKNOWN, "550 5.1.1 no such user at inner-host.example")
DOWN = Callout(CalloutState.UNAVAILABLE, "connection refused", down=True)
GREYLISTED = Callout(CalloutState.UNAVAILABLE, "450 4.7.1 greylisted")
EXISTS = Callout(CalloutState.EXISTS, "250 2.1.5 ok")
BEN = "ben@sender.example"
POSTMASTER = "postmaster@sender.example"


class House:
    def __init__(self, **answers: Callout) -> None:
        self.callouts = FakeCallouts()
        self.bench = Bench(callouts=self.callouts, directory=FakeDirectory({"example.org": RecipientRule.LISTED}))

    def says(self, address: str, callout: Callout) -> House:
        self.callouts.answers[address] = callout
        return self

    def find(self, sender: str = BEN, *, trusted: bool = False, spf: SpfResult | None = None, **options):
        session = make_session(trusted=trusted)
        findings = [Spf(spf, "sender.example", SpfResult.NONE, "client.example")] if spf else []
        transaction = make_transaction(session, sender=sender, recipients=["anna@example.org"])
        found = self.bench.find(SenderCallbackPlugin, options, transaction=transaction, findings=findings)
        assert isinstance(found, SenderCallback)
        return found

    @property
    def asked(self) -> list[str]:
        return [address for address, _, _ in self.callouts.asked]


def test_a_sender_that_its_mail_hosts_know_is_asked_for_once():
    house = House()
    assert house.find() == SenderCallback(CallbackState.EXISTS, "callout", "250 2.1.5 ok")
    assert house.find("Ben@Sender.EXAMPLE").source == "cache"
    assert house.callouts.asked == [(BEN, "", False)]


def test_the_answers_are_believed_for_their_time():
    house = House().says(BEN, NO_SUCH).says(POSTMASTER, EXISTS)
    assert house.find().state is CallbackState.UNKNOWN
    house.says(BEN, EXISTS)
    house.bench.clock.advance(6 * 3600 - 1)
    assert (house.find().state, house.find().source) == (CallbackState.UNKNOWN, "cache")
    house.bench.clock.advance(1)
    assert house.find().state is CallbackState.EXISTS
    house.says(BEN, NO_SUCH)
    house.bench.clock.advance(7 * 86400 - 1)
    assert house.find().state is CallbackState.EXISTS
    house.bench.clock.advance(1)
    assert house.find().state is CallbackState.UNKNOWN


@pytest.mark.parametrize(
    ("sender", "given"),
    [
        ("", {}),
        (BEN, {"trusted": True}),
        (BEN, {"spf": SpfResult.FAIL}),
        ("ben@[192.0.2.1]", {}),
        ("anna@example.org", {}),
    ],
)
def test_nobody_is_asked_for_these(sender, given):
    house = House()
    found = house.find(sender, **given)
    assert found.state is CallbackState.NOT_ASKED
    assert found.reason
    assert house.asked == []


@pytest.mark.parametrize("spf", [SpfResult.PASS, SpfResult.SOFTFAIL, SpfResult.NONE, SpfResult.TEMPERROR])
def test_other_results_of_spf_do_not_stop_it(spf):
    house = House()
    assert house.find(spf=spf).state is CallbackState.EXISTS


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ("550 5.1.1 no such user", CallbackState.UNKNOWN),
        ("550 5.1.10 null mx", CallbackState.UNKNOWN),
        ("550 No such user here", CallbackState.UNKNOWN),
        ("551 try elsewhere", CallbackState.UNKNOWN),
        ("553 not allowed", CallbackState.UNKNOWN),
        ("550", CallbackState.UNKNOWN),
        ("550 5.7.1 listed at bl.example", CallbackState.UNAVAILABLE),
        ("550 5.1.7 we take nothing from <>", CallbackState.UNAVAILABLE),
        ("550 5.1.8 your domain does not exist", CallbackState.UNAVAILABLE),
        ("550 5.2.1 mailbox disabled", CallbackState.UNAVAILABLE),
        ("554 no SMTP service here", CallbackState.UNAVAILABLE),
        ("521 this host takes no mail", CallbackState.UNAVAILABLE),
        ("552 mailbox full", CallbackState.UNAVAILABLE),
        ("550-5.1.1 nonsense", CallbackState.UNAVAILABLE),
        ("", CallbackState.UNAVAILABLE),
        ("no such user", CallbackState.UNAVAILABLE),
    ],
)
def test_only_a_refusal_of_the_address_itself_counts(reply, state):
    house = House().says(BEN, Callout(CalloutState.UNKNOWN, reply)).says(POSTMASTER, EXISTS)
    assert house.find().state is state


@pytest.mark.parametrize("callout", [DOWN, GREYLISTED])
def test_no_answer_and_4xx_are_never_evidence(callout):
    house = House().says("sender.example", callout)
    found = house.find()
    assert (found.state, found.reply) == (CallbackState.UNAVAILABLE, callout.reply)
    assert not house.bench.judge(SenderCallbackPlugin, findings=[found]).decisive


def test_hosts_that_refuse_postmaster_too_refuse_us_and_not_the_sender():
    house = House().says("sender.example", NO_SUCH)
    assert house.find().state is CallbackState.UNAVAILABLE
    assert house.asked == [BEN, POSTMASTER]
    house.find("carl@sender.example")
    assert len(house.asked) == 2, "and that holds for the domain"


def test_without_confirm_a_refusal_is_believed_at_once():
    house = House().says("sender.example", NO_SUCH)
    assert house.find(confirm=False).state is CallbackState.UNKNOWN
    assert house.asked == [BEN]


def test_a_domain_whose_hosts_do_not_answer_is_left_alone_whoever_is_asked_for():
    house = House().says("sender.example", DOWN)
    states = [house.find(f"made-up-{n}@sender.example").state for n in range(5)]
    assert states == [CallbackState.UNAVAILABLE] * 5
    assert len(house.asked) == 1
    house.bench.clock.advance(3600)
    house.find()
    assert len(house.asked) == 2


def test_one_greylisted_sender_says_nothing_about_the_others_of_its_domain():
    house = House().says(BEN, GREYLISTED)
    assert house.find().state is CallbackState.UNAVAILABLE
    assert house.find("carl@sender.example").state is CallbackState.EXISTS


def test_whoever_makes_senders_up_cannot_turn_us_against_a_domain():
    house = House()
    found = [house.find(f"made-up-{n}@sender.example", per_domain=3) for n in range(6)]
    assert [f.state for f in found] == [CallbackState.EXISTS] * 3 + [CallbackState.NOT_ASKED] * 3
    assert house.find("ben@other.example", per_domain=3).state is CallbackState.EXISTS
    house.bench.clock.advance(1200)
    assert house.find("carl@sender.example", per_domain=3).state is CallbackState.EXISTS


def test_the_probe_sender_and_private_networks_are_as_configured():
    house = House()
    house.find(sender="ben@sender.example")
    found = house.bench.find(
        SenderCallbackPlugin,
        {"sender": "probe@mx.example.org", "private": True},
        transaction=make_transaction(sender="carl@sender.example"),
    )
    assert found.state is CallbackState.EXISTS
    assert house.callouts.asked[-1] == ("carl@sender.example", "probe@mx.example.org", True)


@pytest.mark.parametrize("sender", ["<>", "probe", "@example.org", "a b@example.org", "probe@-", "probe@host\n"])
def test_a_probe_sender_that_is_no_address_is_refused(sender):
    with pytest.raises(ValidationError, match=r"expected an address such as probe@mx\.example\.org"):
        SenderCallbackOptions(sender=sender)


def test_what_another_version_left_in_the_store_is_asked_for_anew():
    house = House()
    house.find()
    for key, (_, expires) in list(house.bench.state._entries.items()):
        house.bench.state._entries[key] = (b'{"old": 1}', expires)
    assert house.find().source == "callout"


def test_trouble_with_the_state_store_is_the_entrys_on_error_to_decide():
    house = House()
    house.bench.state.broken = True
    with pytest.raises(StateError):
        house.find()


class Gated(FakeCallouts):
    """Callouts that wait until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.most = self.now = 0

    async def ask(self, address: Address, *, sender: Sender = NULL_SENDER, private: bool = False) -> Callout:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            return await super().ask(address, sender=sender, private=private)
        finally:
            self.now -= 1


async def gated(**options) -> tuple[SenderCallbackPlugin, Gated]:
    clock, callouts = ManualClock(), Gated()
    services = Services(FakeDns(), FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test", callouts=callouts)
    plugin = SenderCallbackPlugin(SenderCallbackOptions.model_validate(options), services)
    await plugin.start()
    return plugin, callouts


def test_many_messages_of_one_sender_at_once_cost_one_question():
    async def check() -> None:
        plugin, callouts = await gated()
        asking = asyncio.gather(*(plugin.callback(make_transaction(sender=BEN), None) for _ in range(20)))
        for _ in range(10):
            await asyncio.sleep(0)
        callouts.gate.set()
        assert {found.state for found in await asking} == {CallbackState.EXISTS}
        assert len(callouts.asked) == 1

    asyncio.run(check())


def test_no_more_questions_at_once_than_allowed():
    async def check() -> None:
        plugin, callouts = await gated(callouts=2)
        senders = [make_transaction(sender=f"ben@sender{n}.example") for n in range(8)]
        asking = asyncio.gather(*(plugin.callback(t, None) for t in senders))
        for _ in range(20):
            await asyncio.sleep(0)
        callouts.gate.set()
        await asking
        assert callouts.most == 2

    asyncio.run(check())


def test_a_host_that_hangs_costs_wait_and_then_its_domain_is_left_alone():
    async def check() -> None:
        plugin, callouts = await gated(wait="10ms")
        found = await plugin.callback(make_transaction(sender=BEN), None)
        assert (found.state, found.reason) == (CallbackState.UNAVAILABLE, "no answer in time")
        callouts.gate.set()
        assert (await plugin.callback(make_transaction(sender="carl@sender.example"), None)).source == "cache"
        assert callouts.asked == []

    asyncio.run(check())


def judge(state: CallbackState, **options):
    return Bench().judge(
        "sender-callback", options, findings=[SenderCallback(state, "callout", "550 at inner-host.example")]
    )


def test_an_unknown_sender_is_refused_and_its_hosts_words_stay_inside():
    verdict = judge(CallbackState.UNKNOWN)
    assert str(verdict.reply) == "550 5.1.7 sender address cannot be verified"
    assert "inner-host" not in str(verdict.to_json())


def test_the_action_is_the_operators():
    assert judge(CallbackState.UNKNOWN, action="defer").action is Action.DEFER
    assert judge(CallbackState.UNKNOWN, action="proceed") == PROCEED


@pytest.mark.parametrize("state", [s for s in CallbackState if s is not CallbackState.UNKNOWN])
def test_nothing_else_is_a_reason_to_refuse(state):
    assert judge(state) == PROCEED
