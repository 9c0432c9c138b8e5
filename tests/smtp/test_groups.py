"""Two pipelines in one transaction: every combination of what they can say of a message, in both modes of `split`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.mail.address import Address
from gateway.sdk import (
    AddHeader,
    AddRecipient,
    BodyContent,
    Recipient,
    ReplaceBody,
    Stage,
    Transaction,
    Verdict,
    accept,
    annotate,
    defer,
    discard,
    quarantine,
    reject,
)
from gateway.smtp.domains import Domain
from gateway.smtp.options import Split, SplitRefused
from gateway.spool.spool import State
from tests.pipeline.setting import hook, policy
from tests.smtp.door import MESSAGE, Client, Door, door, pipeline, run

HEAD, BODY = MESSAGE.split(b"\r\n\r\n")
DOMAINS = {"one.test": Domain("one.test", "one"), "two.test": Domain("two.test", "two")}
BOX = {name: f"b@{name}.test" for name in ("one", "two")}
NEW_BODY = b"another body\r\n"


def says(kind: str, name: str) -> Verdict:
    """What pipeline `name` says of the message."""
    match kind:
        case "accept":
            return accept()
        case "header":
            return annotate(AddHeader("X-Group", name))
        case "body":
            return accept("", ReplaceBody(BodyContent(NEW_BODY)))
        case "recipient":
            return annotate(AddRecipient(Recipient(Address("archive", f"{name}.test"))))
        case "quarantine":
            return quarantine("odd", AddHeader("X-Group", name))
        case "discard":
            return discard("odd")
        case "reject":
            return reject("7.1", "no")
    return defer("7.1", "later")


TAKEN = ("accept", "header", "body", "recipient", "quarantine")
KINDS = (*TAKEN, "discard", "reject", "defer")


@dataclass(frozen=True)
class Kept:
    """One copy in the spool."""

    recipients: tuple[str, ...]
    state: State
    content: bytes


def kept(kind: str, name: str, refused: SplitRefused) -> Kept | None:
    """The copy of group `name` when the message as a whole is taken."""
    content, state, recipients = MESSAGE, State.QUEUED, (BOX[name],)
    match kind:
        case "discard":
            return None
        case "reject" if refused is SplitRefused.DISCARD:
            return None
        case "reject":
            state = State.QUARANTINE
        case "header":
            content = f"X-Group: {name}\r\n".encode() + MESSAGE
        case "quarantine":
            content, state = f"X-Group: {name}\r\n".encode() + MESSAGE, State.QUARANTINE
        case "body":
            content = HEAD + b"\r\n\r\n" + NEW_BODY
        case "recipient":
            recipients = (BOX[name], f"archive@{name}.test")
    return Kept(recipients, state, content)


def judged(**kinds: str) -> dict[str, Any]:
    def made(name: str, kind: str) -> Any:
        verdict = says(kind, name)
        return pipeline(["say"], policy("say", hook(Stage.MESSAGE, [Transaction], lambda txn: verdict)), name=name)

    return {name: made(name, kind) for name, kind in kinds.items()}


async def stored(opened: Door) -> set[Kept]:
    found = zip(await opened.stored(), await opened.bodies(), strict=True)
    return {
        Kept(tuple(str(s.recipient.address) for s in one.message.slots), one.message.state, content)
        for one, content in found
    }


async def outcomes(opened: Door) -> list[str]:
    """How the copies ended, as their records say, in the order of the copies."""
    (first, *_) = await opened.stored()
    record = await opened.record(first.message.id)
    return [(await opened.record(id))["outcome"] for id in record.get("copies", [first.message.id])]


@pytest.mark.parametrize("refused", list(SplitRefused))
@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_with_copies_each_group_gets_what_its_pipeline_said(first, second, refused):
    async def test() -> None:
        options: dict[str, Any] = {"split": Split.COPIES, "split_refused": refused}
        async with door(domains=DOMAINS, pipelines=judged(one=first, two=second), **options) as opened:
            client: Client = await opened.session()
            reply = await client.message(MESSAGE, BOX["one"], BOX["two"])
            if "defer" in (first, second):
                expected: set[Kept | None] = set()
                assert reply.startswith("451 4.7.1 ")
            elif first == second == "reject":
                expected = set()
                assert reply.startswith("550 5.7.1 ")
            else:
                expected = {kept(first, "one", refused), kept(second, "two", refused)} - {None}
                assert reply.startswith("250 2.0.0 queued as ")
            assert await stored(opened) == expected
            if expected:
                ended = {"reject": "quarantined" if refused is SplitRefused.QUARANTINE else "discarded"}
                names = {"discard": "discarded", "quarantine": "quarantined", **ended}
                assert sorted(await outcomes(opened)) == sorted(names.get(k, "accepted") for k in (first, second))
                assert reply.split()[-1] in {one.message.id for one in await opened.stored()}

    run(test)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_without_copies_each_group_comes_in_a_transaction_of_its_own(first, second):
    async def test() -> None:
        async with door(domains=DOMAINS, pipelines=judged(one=first, two=second)) as opened:
            client: Client = await opened.session()
            await client.expect("MAIL FROM:<a@sender.test>", "250")
            await client.expect(f"RCPT TO:<{BOX['one']}>", "250")
            await client.expect(f"RCPT TO:<{BOX['two']}>", "452 4.5.3")
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            replies = {"one": await client.reply(), "two": await client.message(MESSAGE, BOX["two"])}
            expected = set()
            for name, kind in (("one", first), ("two", second)):
                code = {"reject": "550 5.7.1 ", "defer": "451 4.7.1 "}.get(kind, "250 2.0.0 queued as ")
                assert replies[name].startswith(code)
                if code.startswith("250") and (copy := kept(kind, name, SplitRefused.QUARANTINE)):
                    expected.add(copy)
            assert await stored(opened) == expected

    run(test)
