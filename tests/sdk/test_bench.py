"""The bench that authors of plugins and policies get, used as they would use it."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import Field, ValidationError

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Action,
    Duration,
    Finding,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Rate,
    Recipient,
    Session,
    Spf,
    SpfResult,
    Stage,
    Transaction,
    Verdict,
    acts,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.testing import (
    Bench,
    BytesContent,
    FakeDns,
    ManualClock,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
)


class Words(Finding):
    """A finding without fields of its own."""


class WordPlugin(Plugin):
    """Counts how often each life's step is called."""

    name = "word"
    steps: list[str] = []

    class Options(PluginOptions):
        word: str
        patience: Duration = Field(5.0)

    async def start(self) -> None:
        self.steps.append("start")

    async def close(self) -> None:
        self.steps.append("close")

    @finds(Stage.MESSAGE)
    async def search(self, session: Session, transaction: Transaction, message: Message, spf: Spf) -> Words:
        text = b"".join([block async for block in message.content.blocks()])
        if self.options.word.encode() not in text:
            raise RuntimeError(f"{session.id} {transaction.id} {spf.result}")
        return Words()

    @acts(Stage.RCPT)
    async def count(self, recipient: Recipient) -> Rate:
        return Rate(True, recipient.address.key, self.options.patience, 0.0)


class WordPolicy(Policy):
    """Two hooks, one of them with a finding that may be missing."""

    name = "word-policy"

    class Options(PolicyOptions):
        strict: bool = False

    def on_rcpt(self, session: Session, recipient: Recipient) -> Verdict:
        return PROCEED

    def on_message(self, words: Words, spf: Spf | None) -> Verdict:
        if spf is None:
            return PROCEED
        return reject("7.1", "no") if self.options.strict else quarantine("words")


SPF = Spf(SpfResult.PASS, "d.test", SpfResult.NONE, "h.test")


def test_a_plugin_is_started_asked_and_closed():
    WordPlugin.steps.clear()
    message = make_message(b"Subject: x\n\nhello\n")
    found = Bench().find(WordPlugin, {"word": "hello"}, Stage.MESSAGE, message=message, findings=[SPF])
    assert found == Words()
    assert WordPlugin.steps == ["start", "close"]


def test_what_a_finder_raises_comes_through_and_the_plugin_is_closed():
    WordPlugin.steps.clear()
    with pytest.raises(RuntimeError, match="pass"):
        Bench().find(WordPlugin, {"word": "absent"}, Stage.MESSAGE, findings=[SPF])
    assert WordPlugin.steps == ["start", "close"]


def test_options_are_parsed_like_the_configuration_files():
    bench = Bench()
    options = "{word: hello, patience: 2m}"
    assert bench.find(WordPlugin, options, Stage.RCPT).remaining == 120
    for wrong in ({"word": "x", "wrod": 1}, {}, {"word": "x", "patience": 5}, {"word": ["x"]}):
        with pytest.raises(ValidationError):
            bench.find(WordPlugin, wrong, Stage.RCPT)
    with pytest.raises(ValueError, match="mapping"):
        bench.find(WordPlugin, "[word]", Stage.RCPT)


def test_a_plugin_with_several_finders_needs_the_stage():
    with pytest.raises(ValueError, match="2 finders; say which stage"):
        Bench().find(WordPlugin, {"word": "x"})
    with pytest.raises(ValueError, match="0 finders at connect"):
        Bench().find(WordPlugin, {"word": "x"}, Stage.CONNECT)


def test_a_finding_is_never_made_up():
    with pytest.raises(LookupError, match="no Spf was given"):
        Bench().find(WordPlugin, {"word": "x"}, Stage.MESSAGE)
    with pytest.raises(LookupError, match="no Words was given"):
        Bench().judge(WordPolicy, {}, Stage.MESSAGE)


def test_a_finding_that_may_be_missing_is_none():
    bench = Bench()
    assert bench.judge(WordPolicy, {}, Stage.MESSAGE, findings=[Words()]) == PROCEED
    assert bench.judge(WordPolicy, {}, Stage.MESSAGE, findings=[Words(), SPF]).action is Action.QUARANTINE
    assert bench.judge(WordPolicy, {"strict": True}, Stage.MESSAGE, findings=[SPF, Words()]).action is Action.REJECT


def test_a_policy_with_several_hooks_needs_the_stage():
    with pytest.raises(ValueError, match="2 hooks; say which stage"):
        Bench().judge(WordPolicy)


def test_garbage_from_finder_or_hook_is_told():
    class Broken(Plugin):
        name = "broken"

        @finds(Stage.CONNECT)
        async def find(self, session: Session) -> Words:
            return SPF  # type: ignore[return-value]

    class BrokenPolicy(Policy):
        name = "broken"

        def on_connect(self, session: Session) -> Verdict:
            return None  # type: ignore[return-value]

    with pytest.raises(TypeError, match="no Words"):
        Bench().find(Broken)
    with pytest.raises(TypeError, match="no verdict"):
        Bench().judge(BrokenPolicy)


def test_an_unknown_name_is_told():
    with pytest.raises(LookupError, match="no plugin is named nothing"):
        Bench().find("nothing")
    with pytest.raises(LookupError, match="no policy is named nothing"):
        Bench().judge("nothing")


@pytest.mark.parametrize("name", ["dnsbl", "ratelimit", "recipient", "spf"])
def test_first_party_plugins_bring_a_policy_with_their_own_options(name):
    from gateway.sdk.testing import plugin_class, policy_class

    plugin = plugin_class(name)
    assert plugin.name == name
    assert policy_class(name).Options is plugin.Options


@pytest.mark.parametrize("name", ["helo-identity", "own-domain-sender"])
def test_first_party_policies_bear_their_entry_points_name(name):
    from gateway.sdk.testing import policy_class

    assert policy_class(name).name == name


def test_sessions_messages_and_transactions_are_made_to_order():
    session = make_session("2001:db8::1", helo="h.test", trusted=True)
    transaction = make_transaction(session, sender="", recipients=["a@x.test", "postmaster"])
    assert (transaction.session, transaction.sender) == (session, NULL_SENDER)
    assert [str(r.address) for r in transaction.recipients] == ["a@x.test", "postmaster"]
    assert make_session().id != make_session().id
    message = make_message(b"Subject: a\n b\nX: 1\nX: 2\n\nbody \xff\n")
    assert message.first("subject") == "a b"
    assert message.all("x") == ("1", "2")
    assert message.content.eight_bit
    assert make_recipient('"a b"@x.test').address.local == "a b"


def test_content_has_crlf_only_and_comes_in_blocks_more_than_once():
    content = BytesContent(b"a\nb\r\nc\rd" * 300_000)

    async def blocks() -> list[bytes]:
        return [block async for block in content.blocks()]

    first, second = asyncio.run(blocks()), asyncio.run(blocks())
    assert first == second
    assert max(map(len, first)) == 1 << 20
    assert b"".join(first) == b"a\r\nb\r\nc\r\nd" * 300_000
    assert content.size == len(b"".join(first))


def test_the_clock_stands_until_it_is_told_to_go_on():
    clock = ManualClock(5.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (7.5, 7.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_the_fake_dns_remembers_what_was_asked():
    dns = FakeDns(a={"a.test": ["192.0.2.1"]})
    asyncio.run(dns.lookup("A.test.", "A"))
    assert dns.asked == [("a.test", "A")]
