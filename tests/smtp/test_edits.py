"""Edits on their way into the spool: bodies, envelopes, next hops, for the whole message and for single copies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.sdk import (
    PROCEED,
    AddHeader,
    AddRecipient,
    AuthResult,
    BodyContent,
    ChangeSender,
    DeleteRecipient,
    Dmarc,
    Edit,
    Message,
    Recipient,
    ReplaceBody,
    Reroute,
    Spf,
    SpfResult,
    Stage,
    Transaction,
    accept,
    annotate,
    quarantine,
)
from gateway.smtp.domains import Domain
from gateway.smtp.options import Split
from gateway.spool.draft import SPILL
from gateway.spool.spool import SpoolFull, State
from tests.pipeline.setting import finder, hook, plugin, policy
from tests.smtp.door import MESSAGE, Door, door, networks, pipeline, run
from tests.smtp.faults import failing

HEAD, BODY = MESSAGE.split(b"\r\n\r\n")
LARGE = MESSAGE + (b"y" * 998 + b"\r\n") * (SPILL // 990)
ARCHIVE = Recipient(Address("archive", "example.net"))
BOX = Address("b", "example.org")


def editing(*edits: Edit, stage: Stage = Stage.MESSAGE, name: str = "default") -> Any:
    return pipeline(["edit"], policy("edit", hook(stage, [Transaction], lambda txn: annotate(*edits))), name=name)


async def send(opened: Door, *recipients: str, content: bytes = MESSAGE) -> str:
    client = await opened.session()
    return await client.message(content, *recipients)


def files(opened: Door) -> list[str]:
    return [name for *_, names in os.walk(opened.directory) for name in names if "edited" in name]


@pytest.mark.parametrize("content", [MESSAGE, LARGE])
@pytest.mark.parametrize("body", [b"", b"new\r\n", b"z" * 998 + b"\r\n", b"\xff" * (SPILL + 1) + b"\r\n"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_replaced_body_is_stored_under_the_id_that_the_client_was_told(content, body, marked):
    async def test() -> None:
        edits: list[Edit] = [ReplaceBody(BodyContent(body))]
        head = HEAD + b"\r\n"
        if marked:
            edits.append(AddHeader("X-Edited", "yes"))
            head = b"X-Edited: yes\r\n" + head
        async with door(pipelines={"default": editing(*edits)}) as opened:
            reply = await send(opened, content=content)
            (stored,) = await opened.stored()
            assert reply.endswith(stored.message.id)
            (whole,) = await opened.bodies()
            assert whole == head + b"\r\n" + body
            assert stored.content.eight_bit == (not body.isascii())
            assert files(opened) == []
            record = await opened.record(stored.message.id)
            old = len(content.partition(b"\r\n\r\n")[2])
            assert record["edits"][0] == {"edit": "ReplaceBody", "size": len(body), "old_size": old}

    run(test)


@pytest.mark.parametrize(("given", "mended"), [(b"a\nb\rc\r\nd\r", b"a\r\nb c\r\nd "), (b"\n.\n", b"\r\n.\r\n")])
def test_no_filter_can_put_a_stray_line_end_into_a_body(given, mended):
    async def test() -> None:
        async with door(pipelines={"default": editing(ReplaceBody(BodyContent(given)))}) as opened:
            await send(opened)
            (whole,) = await opened.bodies()
            assert whole == HEAD + b"\r\n\r\n" + mended

    run(test)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "after", [b"no field\r\nmore\r\n", b"no field\r\nAuthentication-Results: mx.example.org; x=pass\r\n"]
)
def test_lines_that_no_empty_line_parts_from_the_fields_are_of_the_body_that_is_replaced(after, marked):
    async def test() -> None:
        edits: list[Edit] = [ReplaceBody(BodyContent(b"new\r\n"))]
        if marked:
            edits.append(AddHeader("X-Edited", "yes"))
        async with door(pipelines={"default": editing(*edits)}) as opened:
            await send(opened, content=b"Subject: x\r\n" + after)
            (whole,) = await opened.bodies()
            assert whole == (b"X-Edited: yes\r\n" if marked else b"") + b"Subject: x\r\n\r\nnew\r\n"

    run(test)


class Broken:
    """A body whose reading fails."""

    size = 10
    eight_bit = False

    async def blocks(self) -> AsyncIterator[bytes]:
        yield b"x" * (SPILL + 1)
        raise RuntimeError("the filter's file is gone")


@pytest.mark.parametrize("content", [MESSAGE, LARGE])
def test_a_body_that_cannot_be_read_defers_and_leaves_nothing(content):
    async def test() -> None:
        async with door(pipelines={"default": editing(ReplaceBody(Broken()))}) as opened:
            assert (await send(opened, content=content)).startswith("451 4.3.0 ")
            assert await opened.stored() == [] and files(opened) == []

    run(test)


def test_without_room_for_the_edited_body_the_client_hears_452():
    async def test() -> None:
        replaced = {"default": editing(ReplaceBody(BodyContent(b"x" * (SPILL + 1))))}
        async with door(pipelines=replaced, spool=failing(write_edited=SpoolFull("no room"))) as opened:
            assert (await send(opened)).startswith("452 4.3.1 ")
            assert await opened.stored() == [] and files(opened) == []

    run(test)


@pytest.mark.parametrize("content", [MESSAGE, LARGE])
def test_only_the_copy_that_was_edited_has_another_body(content):
    async def test() -> None:
        domains = {"example.org": Domain("example.org"), "relaxed.test": Domain("relaxed.test", "relaxed")}
        relaxed = editing(ReplaceBody(BodyContent(b"relaxed\r\n")), name="relaxed")
        for first, second in (("b@example.org", "b@relaxed.test"), ("b@relaxed.test", "b@example.org")):
            async with door(domains=domains, pipelines={"relaxed": relaxed}, split=Split.COPIES) as opened:
                assert (await send(opened, first, second, content=content)).startswith("250 ")
                found = dict(
                    zip(
                        [str(m.message.slots[0].recipient.address) for m in await opened.stored()],
                        await opened.bodies(),
                        strict=True,
                    )
                )
                assert found == {"b@example.org": content, "b@relaxed.test": HEAD + b"\r\n\r\nrelaxed\r\n"}

    run(test)


@pytest.mark.parametrize("stage", [s for s in Stage if s not in (Stage.CONNECT, Stage.HELO, Stage.AUTH)])
def test_the_envelope_is_changed_by_edits_of_any_stage(stage):
    async def test() -> None:
        edits = (
            ChangeSender(Address("srs", "example.org")),
            AddRecipient(ARCHIVE),
            DeleteRecipient(BOX),
            Reroute("lmtp:127.0.0.1:2424"),
        )
        async with door(pipelines={"default": editing(*edits, stage=stage)}) as opened:
            assert (await send(opened, "b@example.org", "c@example.org")).startswith("250 ")
            (stored,) = await opened.stored()
            envelope = stored.message.envelope
            assert str(envelope.sender) == "srs@example.org"
            assert [str(r.address) for r in envelope.recipients] == ["c@example.org", "archive@example.net"]
            assert envelope.next_hop == "lmtp:127.0.0.1:2424"
            record = await opened.record(stored.message.id)
            assert record["sender"] == "a@sender.test"
            assert [e["edit"] for e in record["edits"]] == [type(edit).__name__ for edit in edits]

    run(test)


def test_an_added_recipient_is_not_told_to_the_others():
    async def test() -> None:
        async with door(pipelines={"default": editing(AddRecipient(ARCHIVE))}) as opened:
            await send(opened)
            (stored,) = await opened.stored()
            whole = b"".join([block async for block in stored.content.blocks()])
            assert b"archive" not in whole and b"for <b@example.org>" in whole

    run(test)


def test_a_message_whose_edits_leave_no_recipient_is_thrown_away():
    async def test() -> None:
        async with door(pipelines={"default": editing(DeleteRecipient(BOX))}) as opened:
            reply = await send(opened)
            assert reply.startswith("250 2.0.0 queued as ")
            assert await opened.stored() == []
            record = await opened.record(reply.split()[-1])
            assert record["outcome"] == "discarded"

    run(test)


@pytest.mark.parametrize("verdict", [quarantine("odd", AddRecipient(ARCHIVE)), accept("", AddRecipient(ARCHIVE))])
def test_edits_count_with_every_verdict_that_keeps_the_message(verdict):
    async def test() -> None:
        judged = pipeline(["p"], policy("p", hook(Stage.MESSAGE, [Transaction], lambda txn: verdict)))
        async with door(pipelines={"default": judged}) as opened:
            await send(opened)
            (stored,) = await opened.stored()
            assert [str(r.address) for r in stored.message.envelope.recipients] == [
                "b@example.org",
                "archive@example.net",
            ]
            assert stored.message.state is (State.QUARANTINE if verdict.reason else State.QUEUED)

    run(test)


def test_a_next_hop_that_is_none_defers():
    async def test() -> None:
        async with door(pipelines={"default": editing(Reroute("carrier-pigeon"))}) as opened:
            assert (await send(opened)).startswith("451 4.3.0 ")
            assert await opened.stored() == []

    run(test)


@pytest.mark.parametrize(
    ("result", "domain", "owed"),
    [
        (AuthResult.PASS, "sender.test", True),
        (AuthResult.PASS, "other.test", False),
        (AuthResult.FAIL, "sender.test", False),
        (AuthResult.NONE, "sender.test", False),
    ],
)
@pytest.mark.parametrize("shadow", [False, True])
def test_dmarc_proves_a_sender_of_the_domain_in_from_unless_it_is_in_shadow(result, domain, owed, shadow):
    async def find(message: Message) -> Dmarc:
        return Dmarc(result, domain)

    async def test() -> None:
        entry = {"dmarc": {}, "shadow": True} if shadow else "dmarc"
        asks = policy("asks", hook(Stage.MESSAGE, [Dmarc], lambda dmarc: PROCEED))
        judged = pipeline([entry, "asks"], plugin("dmarc", finder(Stage.MESSAGE, Dmarc, [Message], find)), asks)
        async with door(pipelines={"default": judged}) as opened:
            await send(opened)
            (stored,) = await opened.stored()
            assert stored.message.owed is (owed and not shadow)

    run(test)


@pytest.mark.parametrize(
    ("sender", "ours", "owed"),
    [
        (Address("x", "other.test"), True, True),
        (Address("x", "other.test"), False, False),
        (Address("a", "sender.test"), False, True),
        (NULL_SENDER, True, False),
    ],
)
def test_a_bounce_is_owed_to_the_changed_sender_as_to_any_other(sender, ours, owed):
    proof = Spf(SpfResult.PASS, "sender.test", SpfResult.NONE, "client.test")

    async def find(txn: Transaction) -> Spf:
        return proof

    async def test() -> None:
        plugins = [
            plugin("spf", finder(Stage.MAIL, Spf, [Transaction], find)),
            policy("edit", hook(Stage.MESSAGE, [Spf], lambda spf: annotate(ChangeSender(sender)))),
        ]
        judged = pipeline(["spf", "edit"], *plugins)
        relay = networks("127.0.0.0/8") if ours else networks()
        async with door(pipelines={"default": judged}, relay_from=relay) as opened:
            await send(opened)
            (stored,) = await opened.stored()
            assert stored.message.owed is owed

    run(test)
