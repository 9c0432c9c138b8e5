"""Pipelines on the bench: real loader and runner, fakes behind, whole messages judged at once."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.config import ConfigError
from gateway.kit.messages import MessageFactory
from gateway.kit.pipeline import PipelineBench
from gateway.kit.pytest_plugin import MakePipeline
from gateway.pipeline.plan import PipelineError
from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    BodyContent,
    Ending,
    Finding,
    Message,
    MilterAction,
    MilterReply,
    Outcome,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Recipient,
    ReplaceBody,
    Reply,
    Session,
    Spf,
    SpfResult,
    Stage,
    Verdict,
    accept,
    annotate,
    discard,
    disconnect,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.testing import FakeDns, FakeMilter, MilterFault
from gateway.spool.spool import State

FAILED = Spf(SpfResult.FAIL, "sender.example", SpfResult.NONE, "client.example")


class Words(Policy):
    """Does what the subject says."""

    name = "words"

    class Options(PolicyOptions):
        strict: bool = False

    options: Options

    def on_connect(self, session: Session) -> Verdict:
        return disconnect("7.1", "not you") if session.client == ipaddress.ip_address("192.0.2.66") else PROCEED

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("1.1", "not here", reason="listed") if recipient.address.local == "nobody" else PROCEED

    def on_message(self, session: Session, message: Message) -> Verdict:
        match message.first("Subject"):
            case "reject":
                return reject("7.1", "no", reason="the subject says so")
            case "discard":
                return discard("the subject says so")
            case "quarantine":
                return quarantine("the subject says so", AddHeader("X-Odd", "yes"))
            case "accept":
                return accept("the subject says so")
            case "body":
                return annotate(ReplaceBody(BodyContent(b"other\r\n")))
        return annotate(AddHeader("X-Client", str(session.client)))


class SpfWord(Policy):
    """Refuses what SPF fails."""

    name = "spf-word"

    def on_message(self, spf: Spf | None) -> Verdict:
        return reject("7.23", "spf", reason=spf.domain) if spf and spf.result is SpfResult.FAIL else PROCEED


class MilterWord(Policy):
    """Quarantines what a milter would reject."""

    name = "milter-word"

    def on_message(self, reply: MilterReply) -> Verdict:
        return quarantine(f"{reply.milter} says {reply.code}") if reply.action is MilterAction.REJECT else PROCEED


class SpfNeeded(Policy):
    """Cannot do without SPF."""

    name = "spf-needed"

    def on_message(self, spf: Spf) -> Verdict:
        return PROCEED


class Heard(Finding):
    """Nothing but that it was found."""


class Learner(Plugin):
    """Hears what became of things."""

    name = "learner"
    Options = PluginOptions
    heard: list[Outcome] = []

    @finds(Stage.CONNECT)
    async def find(self, session: Session) -> Heard:
        return Heard()

    async def ended(self, ending: Ending) -> None:
        self.heard.append(ending.outcome)


def subject(word: str) -> bytes:
    return MessageFactory()(subject=word)


def test_a_message_that_is_taken_shows_what_would_be_queued(gatepost_pipeline: MakePipeline) -> None:
    judged = gatepost_pipeline("- words", Words).judge(client="192.0.2.9")
    assert judged.taken and judged.outcome is Outcome.ACCEPTED
    assert judged.reply is not None and judged.reply.text == f"queued as {judged.record.id}"
    assert judged.decided is None and judged.verdict is PROCEED
    assert judged.edits == (AddHeader("X-Client", "192.0.2.9"),)
    (queued,) = judged.queued
    assert (queued.state, queued.recipients) == (State.QUEUED, ("anna@example.org",))
    assert queued.message.first("X-Client") == "192.0.2.9"
    assert queued.content.startswith(b"Received: from client.example ([192.0.2.9])")
    assert [line.command.split(":")[0] for line in judged.dialogue] == [
        "",
        "EHLO client.example",
        "MAIL FROM",
        "RCPT TO",
        "DATA",
        ".",
    ]


@pytest.mark.parametrize(
    ("word", "outcome", "action"),
    [
        ("reject", Outcome.REJECTED, Action.REJECT),
        ("discard", Outcome.DISCARDED, Action.DISCARD),
        ("quarantine", Outcome.QUARANTINED, Action.QUARANTINE),
        ("accept", Outcome.ACCEPTED, Action.ACCEPT),
    ],
)
def test_who_decided_and_why_is_told(
    gatepost_pipeline: MakePipeline, word: str, outcome: Outcome, action: Action
) -> None:
    judged = gatepost_pipeline("- words: {strict: true}", Words).judge(subject(word))
    assert judged.outcome is outcome
    assert judged.decided is not None
    assert (judged.decided.entry, judged.decided.stage, judged.decided.policy) == ("words", Stage.MESSAGE, "words")
    assert (judged.verdict.action, judged.verdict.reason) == (action, "the subject says so")
    assert [q.state for q in judged.queued] == {
        Action.ACCEPT: [State.QUEUED],
        Action.QUARANTINE: [State.QUARANTINE],
    }.get(action, [])
    if action is Action.QUARANTINE:
        assert judged.edits == judged.verdict.edits == (AddHeader("X-Odd", "yes"),)


def test_a_refusal_at_connect_and_one_of_each_recipient_are_outcomes_too(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline("- words", Words)
    judged = pipeline.judge(client="192.0.2.66")
    assert (judged.outcome, judged.reply) == (Outcome.DEFERRED, Reply(421, "7.1", "not you"))
    assert judged.decided is not None and judged.decided.stage is Stage.CONNECT
    judged = pipeline.judge(recipients=["nobody@example.org"])
    assert (judged.outcome, judged.reply) == (Outcome.REJECTED, Reply(550, "1.1", "not here"))
    assert judged.decided is not None and judged.decided.recipient == "nobody@example.org"
    judged = pipeline.judge(recipients=["nobody@example.org", "anna@example.org"])
    assert judged.outcome is Outcome.ACCEPTED and judged.decided is None
    assert {to: reply.code for to, reply in judged.record.recipients.items()} == {
        "nobody@example.org": 550,
        "anna@example.org": 250,
    }


def test_relay_control_is_nobodys_verdict(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline("[]", relay_from=["198.51.100.0/24"])
    judged = pipeline.judge(recipients=["a@elsewhere.example"])
    assert judged.outcome is Outcome.REJECTED and judged.decided is None and judged.verdict is PROCEED
    assert pipeline.judge(recipients=["a@elsewhere.example"], client="198.51.100.1").taken


def test_a_new_body_stands_in_what_would_be_queued(gatepost_pipeline: MakePipeline) -> None:
    judged = gatepost_pipeline("- words", Words).judge(subject("body"))
    assert judged.edits == ()
    assert judged.queued[0].content.endswith(b"\r\n\r\nother\r\n")


def test_findings_that_are_given_are_not_looked_up(gatepost_pipeline: MakePipeline) -> None:
    dns = FakeDns()
    pipeline = gatepost_pipeline("- spf: {}\n  policy: none\n- spf-word", SpfWord, dns=dns)
    judged = pipeline.judge(findings=[FAILED])
    assert judged.outcome is Outcome.REJECTED and judged.found(Spf) == FAILED
    assert dns.asked == []
    assert pipeline.judge().outcome is Outcome.ACCEPTED
    assert dns.asked != []
    with pytest.raises(ValueError, match=r"finds MilterReply; they find Spf"):
        pipeline.judge(findings=[MilterReply(MilterAction.ACCEPT, "m")])


def test_state_and_time_last_from_one_message_to_the_next(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline([{"greylist": {"when": "always", "delay": "5m"}}])
    assert pipeline.judge().outcome is Outcome.DEFERRED
    pipeline.bench.clock.advance(299)
    assert pipeline.judge().outcome is Outcome.DEFERRED
    pipeline.bench.clock.advance(2)
    assert pipeline.judge().outcome is Outcome.ACCEPTED


def test_a_milter_can_stand_behind_it_and_fail(gatepost_pipeline: MakePipeline) -> None:
    refusal = MilterReply(MilterAction.REJECT, "fake", 550, "7.1", "bad")
    with FakeMilter({Stage.MESSAGE: refusal}) as milter:
        entry = {"milter": {"connect": milter.address, "name": "scan"}, "policy": "none"}
        judged = gatepost_pipeline([entry, "milter-word"], MilterWord).judge()
        assert judged.outcome is Outcome.QUARANTINED and judged.verdict.reason == "scan says 550"
        assert milter.messages[0].sender == "<ben@sender.example>"
    with FakeMilter({Stage.MAIL: MilterFault.DIES}) as milter:
        for on_error, outcome in (("defer", Outcome.DEFERRED), ("proceed", Outcome.ACCEPTED)):
            entry = {"milter": {"connect": milter.address}, "on_error": on_error}
            judged = gatepost_pipeline([entry]).judge()
            assert judged.outcome is outcome
            assert judged.record.faults()["milter"].startswith("error: ")


def test_a_shadow_entry_is_said_and_does_not_decide(gatepost_pipeline: MakePipeline) -> None:
    judged = gatepost_pipeline("- words: {}\n  shadow: true", Words).judge(subject("reject"))
    assert judged.outcome is Outcome.ACCEPTED and judged.decided is None
    assert [(s.shadow, s.verdict.action) for s in judged.said if s.stage is Stage.MESSAGE] == [(True, Action.REJECT)]


def test_plugins_have_heard_of_the_end_when_it_is_told(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline("pipeline: [learner, words]", Words, Learner)
    Learner.heard.clear()
    pipeline.judge()
    pipeline.judge(subject("reject"))
    assert Learner.heard == [Outcome.ACCEPTED, Outcome.REJECTED]


def test_domains_with_pipelines_of_their_own_are_judged_apart(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline(
        [], Words, pipelines={"strict": "- words"}, domains={"example.org": "", "strict.example": "strict"}
    )
    to = ["anna@example.org", "anna@strict.example"]
    judged = pipeline.judge(subject("reject"), recipients=to)
    assert [record.outcome for record in judged.records] == [Outcome.ACCEPTED, Outcome.REJECTED]
    judged = gatepost_pipeline(
        [],
        Words,
        pipelines={"strict": "- words"},
        domains={"example.org": "", "strict.example": "strict"},
        split="copies",
    ).judge(subject("reject"), recipients=to)
    assert sorted(record.outcome for record in judged.records) == [Outcome.ACCEPTED, Outcome.QUARANTINED]
    assert [record.decided.entry for record in judged.records if record.decided] == ["words"]


@pytest.mark.parametrize(
    ("pipeline", "error", "problem"),
    [
        ("- words: {strickt: true}", PipelineError, "unknown option"),
        ("- wordz", PipelineError, "wordz"),
        ("- words: {}\n  words: {}", ConfigError, "words"),
        ("words: {}", ConfigError, "list"),
        ("- [", ConfigError, "pipeline"),
        ("- spf-needed", PipelineError, "Spf"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_said_as_for_the_configuration(
    pipeline: str, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        PipelineBench(pipeline, Words, SpfNeeded)


def test_what_is_no_session_is_refused(gatepost_pipeline: MakePipeline) -> None:
    pipeline = gatepost_pipeline([])
    with pytest.raises(ValueError, match="recipient"):
        pipeline.judge(recipients=[])
    with pytest.raises(ValueError, match=r"."):
        pipeline.judge(client="somewhere")
    with pytest.raises(KeyError):
        gatepost_pipeline([], domains={"example.org": "nowhere"})
