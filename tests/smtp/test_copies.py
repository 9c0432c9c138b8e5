"""Recipients of one message who are treated differently: several pipelines, and verdicts that name recipients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Finding,
    Message,
    MethodResult,
    Recipient,
    Session,
    Stage,
    Transaction,
    Verdict,
    accept,
    annotate,
    defer,
    discard,
    disconnect,
    quarantine,
    reject,
)
from gateway.smtp.domains import Domain
from gateway.smtp.options import Split, SplitRefused
from gateway.spool.draft import SPILL
from gateway.spool.spool import SpoolError, State
from tests.pipeline.setting import finder, hook, plugin, policy
from tests.smtp.door import MESSAGE, Client, Door, door, pipeline, run
from tests.smtp.faults import failing

STRICT, RELAXED = "b@example.org", "b@relaxed.test"
DOMAINS = {"example.org": Domain("example.org"), "relaxed.test": Domain("relaxed.test", "relaxed")}


def saying(stage: Stage, verdict: Verdict | Callable[[Any], Verdict], name: str = "default") -> Any:
    say = verdict if callable(verdict) else lambda given: verdict
    return pipeline(["judge"], policy("judge", hook(stage, [Transaction], say)), name=name)


def by_name(**verdicts: Verdict) -> Any:
    """A pipeline that says this of recipients with these local parts, at `message`."""

    def hooks(local: str, verdict: Verdict) -> Any:
        def say(txn: Transaction) -> Verdict:
            named = [r for r in txn.recipients if r.address.local == local]
            return verdict.only(named) if named else PROCEED

        return policy(f"for-{local}", hook(Stage.MESSAGE, [Transaction], say))

    made = [hooks(local, verdict) for local, verdict in verdicts.items()]
    return pipeline([m.name for m in made], *made)


async def send(opened: Door, *recipients: str, content: bytes = MESSAGE) -> str:
    client: Client = await opened.session()
    return await client.message(content, *recipients)


async def states(opened: Door) -> dict[tuple[str, ...], State]:
    return {
        tuple(str(s.recipient.address) for s in stored.message.slots): stored.message.state
        for stored in await opened.stored()
    }


@pytest.mark.parametrize("content", [MESSAGE, MESSAGE + (b"y" * 996 + b"\r\n") * (SPILL // 990)])
def test_a_client_that_sends_to_two_pipelines_is_served_with_two_copies(content):
    async def test() -> None:
        marked = saying(Stage.MESSAGE, annotate(AddHeader("X-Pipeline", "relaxed")), "relaxed")
        async with door(domains=DOMAINS, pipelines={"relaxed": marked}, split=Split.COPIES) as opened:
            reply = await send(opened, STRICT, RELAXED, "c@example.org", content=content)
            assert reply.startswith("250 2.0.0 queued as ")
            first, second = await opened.stored()
            assert reply.endswith(first.message.id)
            assert [str(s.recipient.address) for s in first.message.slots] == [STRICT, "c@example.org"]
            assert [str(s.recipient.address) for s in second.message.slots] == [RELAXED]
            one, two = await opened.bodies()
            assert one == content
            assert two == b"X-Pipeline: relaxed\r\n" + content
            ids = [first.message.id, second.message.id]
            records = [await opened.record(id) for id in ids]
            assert [r["copies"] for r in records] == [ids, ids]
            assert [r["pipeline"] for r in records] == ["default, relaxed", "relaxed"]
            assert [r["address"] for r in records[1]["recipients"]] == [RELAXED]
            assert records[1]["edits"][0]["name"] == "X-Pipeline"
            assert records[0]["edits"] == []

    run(test)


@pytest.mark.parametrize("verdict", [reject("7.1", "no"), quarantine("odd"), discard("odd")])
@pytest.mark.parametrize("stage", [Stage.DATA, Stage.MESSAGE])
@pytest.mark.parametrize("refused", list(SplitRefused))
def test_what_one_pipeline_refuses_after_rcpt_does_not_touch_the_others_copy(stage, verdict, refused):
    async def test() -> None:
        pipelines = {"relaxed": saying(stage, verdict, "relaxed")}
        async with door(domains=DOMAINS, pipelines=pipelines, split=Split.COPIES, split_refused=refused) as opened:
            assert (await send(opened, RELAXED, STRICT)).startswith("250 2.0.0 queued as ")
            gone = verdict.action == "discard" or (verdict.action == "reject" and refused is SplitRefused.DISCARD)
            expected = {(STRICT,): State.QUEUED}
            if not gone:
                expected[(RELAXED,)] = State.QUARANTINE
            assert await states(opened) == expected
            stored = [m.message.id for m in await opened.stored()]
            record = await opened.record(stored[0])
            (other,) = [id for id in record["copies"] if id not in stored] or [stored[-1]]
            assert (await opened.record(other))["outcome"] == ("discarded" if gone else "quarantined")

    run(test)


@pytest.mark.parametrize("stage", [Stage.DATA, Stage.MESSAGE])
@pytest.mark.parametrize("verdict", [defer("7.1", "later"), disconnect("7.1", "bye")])
def test_what_one_pipeline_defers_is_deferred_for_all(stage, verdict):
    async def test() -> None:
        pipelines = {"relaxed": saying(stage, verdict, "relaxed")}
        async with door(domains=DOMAINS, pipelines=pipelines, split=Split.COPIES) as opened:
            client = await opened.session()
            await client.envelope(STRICT, RELAXED)
            reply = await client.say("DATA")
            if stage is Stage.MESSAGE:
                client.send(MESSAGE + b".\r\n")
                reply = await client.reply()
            assert reply.startswith(f"{verdict.reply.code} 4.7.1 ")
            assert await states(opened) == {}

    run(test)


@pytest.mark.parametrize("stage", [Stage.DATA, Stage.MESSAGE])
def test_a_message_that_all_pipelines_refuse_is_refused(stage):
    async def test() -> None:
        pipelines = {
            "default": saying(stage, reject("7.1", "first")),
            "relaxed": saying(stage, reject("7.1", "second"), "relaxed"),
        }
        async with door(domains=DOMAINS, pipelines=pipelines, split=Split.COPIES) as opened:
            client = await opened.session()
            await client.envelope(RELAXED, STRICT)
            reply = await client.say("DATA")
            if stage is Stage.MESSAGE:
                client.send(MESSAGE + b".\r\n")
                reply = await client.reply()
            assert reply.startswith("550 5.7.1 first (ref ")
            assert await states(opened) == {}
            assert (await opened.record(reply.rpartition("(ref ")[2].rstrip(")")))["outcome"] == "rejected"

    run(test)


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT])
def test_before_data_a_refusal_is_said_to_the_recipient_it_is_for(stage):
    async def test() -> None:
        judge = policy("judge", hook(stage, [Session], lambda session: reject("7.1", "no")))
        pipelines = {"relaxed": pipeline(["judge"], judge, name="relaxed")}
        async with door(domains=DOMAINS, pipelines=pipelines, split=Split.COPIES) as opened:
            client = await opened.session()
            await client.envelope(STRICT)
            await client.expect(f"RCPT TO:<{RELAXED}>", "550 5.7.1 no")
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            assert (await client.reply()).startswith("250")
            assert await states(opened) == {(STRICT,): State.QUEUED}

    run(test)


def test_copies_that_cannot_all_be_stored_are_not_stored_at_all():
    async def test() -> None:
        pipelines = {"relaxed": pipeline(name="relaxed")}
        broken = failing(commit=SpoolError("no"))
        async with door(domains=DOMAINS, pipelines=pipelines, split=Split.COPIES, spool=broken) as opened:
            assert (await send(opened, STRICT, RELAXED)).startswith("451 4.3.0 ")
            assert await states(opened) == {}

    run(test)


# Verdicts that name recipients


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (quarantine("odd"), State.QUARANTINE),
        (discard("odd"), None),
        (reject("7.1", "no"), State.QUARANTINE),
        (accept(), State.QUEUED),
    ],
)
def test_a_verdict_for_one_recipient_leaves_the_others_alone(verdict, state):
    async def test() -> None:
        async with door(pipelines={"default": by_name(ben=verdict)}) as opened:
            reply = await send(opened, "ann@example.org", "ben@example.org", "cem@example.org")
            assert reply.startswith("250 2.0.0 queued as ")
            expected = {("ann@example.org", "cem@example.org"): State.QUEUED}
            if state:
                expected[("ben@example.org",)] = state
            assert await states(opened) == expected

    run(test)


def test_a_verdict_for_one_recipient_of_one_is_a_verdict_for_the_message():
    async def test() -> None:
        async with door(pipelines={"default": by_name(ben=reject("7.1", "no"))}) as opened:
            assert (await send(opened, "ben@example.org")).startswith("550 5.7.1 no (ref ")
            assert await states(opened) == {}

    run(test)


def test_edits_for_one_recipient_are_in_that_recipients_copy_only():
    def say(txn: Transaction) -> Verdict:
        named = [r for r in txn.recipients if r.address.local == "ben"]
        return annotate(AddHeader("X-For", "ben")).only(named)

    first = policy("first", hook(Stage.MESSAGE, [Transaction], lambda txn: annotate(AddHeader("X-All", "1"))))
    second = policy("second", hook(Stage.MESSAGE, [Transaction], say))
    third = policy("third", hook(Stage.MESSAGE, [Transaction], lambda txn: annotate(AddHeader("X-Last", "2"))))

    async def test() -> None:
        async with door(pipelines={"default": pipeline(["first", "second", "third"], first, second, third)}) as opened:
            assert (await send(opened, "ann@example.org", "ben@example.org")).startswith("250")
            both = {
                tuple(s.recipient.address.local for s in m.message.slots): body
                for m, body in zip(await opened.stored(), await opened.bodies(), strict=True)
            }
            assert both == {
                ("ann",): b"X-Last: 2\r\nX-All: 1\r\n" + MESSAGE,
                ("ben",): b"X-Last: 2\r\nX-For: ben\r\nX-All: 1\r\n" + MESSAGE,
            }

    run(test)


def test_who_is_decided_stays_decided():
    async def test() -> None:
        judged = by_name(ben=quarantine("odd"))
        late = policy("late", hook(Stage.MESSAGE, [Transaction], lambda txn: reject("7.1", "nobody")))
        names = [entry.name for entry in judged.entries]
        policies = [type(entry.policy) for entry in judged.entries]
        async with door(pipelines={"default": pipeline([*names, "late"], *policies, late)}) as opened:
            reply = await send(opened, "ann@example.org", "ben@example.org")
            assert reply.startswith("250 2.0.0 queued as "), "ben's copy was taken before"
            assert await states(opened) == {
                ("ann@example.org",): State.QUARANTINE,
                ("ben@example.org",): State.QUARANTINE,
            }
            ann, ben = await opened.stored()
            assert ben.message.reason == "odd" or ann.message.reason == "odd"

    run(test)


def test_naming_recipients_before_the_message_is_there_is_a_bug_and_defers():
    ben = Recipient.from_json({"local": "ben", "domain": "example.org"})

    async def test() -> None:
        async with door(pipelines={"default": saying(Stage.DATA, quarantine("x").only([ben]))}) as opened:
            client = await opened.session()
            await client.envelope("ben@example.org")
            await client.expect("DATA", "451 4.3.0")

    run(test)


def test_a_verdict_for_nobody_cannot_be_written():
    with pytest.raises(ValueError, match="nobody"):
        quarantine("x").only([])


def test_a_later_entry_sees_the_message_as_earlier_edits_left_it():
    seen: list[tuple[str | None, int]] = []

    def look(message: Message) -> Verdict:
        seen.append((message.first("X-Mark"), message.content.size))
        return PROCEED

    mark = policy("mark", hook(Stage.MESSAGE, [Message], lambda m: annotate(AddHeader("X-Mark", "yes"))))
    after = policy("after", hook(Stage.MESSAGE, [Message], look))

    async def test() -> None:
        async with door(pipelines={"default": pipeline(["after", "mark", "after"], mark, after)}) as opened:
            assert (await send(opened, STRICT)).startswith("250")
        size = len(MESSAGE)
        assert seen == [(None, size), ("yes", size + len("X-Mark: yes\r\n"))]

    run(test)


def test_what_a_shadow_entry_found_leaves_no_mark_on_the_message():
    @dataclass(frozen=True, slots=True)
    class Checked(Finding):
        result: str

        def authentication(self) -> tuple[MethodResult, ...]:
            return (MethodResult("test", self.result),)

    async def found(message: Message) -> Checked:
        return Checked("pass")

    asks = policy("asks", hook(Stage.MESSAGE, [Checked], lambda checked: PROCEED))
    checks = plugin("checks", finder(Stage.MESSAGE, Checked, [Message], found), policy=asks)

    async def test() -> None:
        for shadow in (True, False):
            async with door(pipelines={"default": pipeline([{"checks": None, "shadow": shadow}], checks)}) as opened:
                reply = await send(opened, STRICT)
                (content,) = await opened.contents()
                assert (b"test=pass" in content) is not shadow
                (finding,) = (await opened.record(reply.split()[-1]))["findings"]
                assert finding["value"] == {"result": "pass"}

    run(test)
