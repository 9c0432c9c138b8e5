"""A foreign session on its way through a pipeline: rulings, records, endings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from gateway.guest.visit import RECIPIENTS, Visit
from gateway.mail.address import Address
from gateway.mail.edit import AddHeader
from gateway.mail.envelope import MailParameters
from gateway.sdk import PROCEED, Stage
from gateway.sdk.ending import Outcome
from gateway.sdk.testing import make_message, make_recipient
from gateway.sdk.verdict import Action, annotate, defer, discard, quarantine, reject
from tests.guest.setting import Setting

ANN = Address("ann", "sender.test")
BEN, EVA = make_recipient("ben@example.test"), make_recipient("eva@example.test")
MESSAGE = make_message()


def run(setting: Setting, walk: Callable[[Visit], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        visit = setting.visit()
        try:
            return await walk(visit)
        finally:
            await visit.close()
            await setting.pipeline.close()

    return asyncio.run(main())


async def begin(visit: Visit, *, tell: bool = True) -> Any:
    await visit.connect(tell=tell)
    await visit.helo(replace(visit.session, helo="client.test"), tell=tell)
    return await visit.mail(ANN, MailParameters(), tell=tell)


def test_a_message_that_nobody_minds_is_accepted_and_recorded_with_the_mtas_queue_id() -> None:
    setting = Setting()

    async def walk(visit: Visit) -> None:
        await begin(visit)
        assert (await visit.rcpt(BEN)).action is Action.PROCEED
        visit.name("QUEUED1")
        await visit.data()
        ruling = await visit.message(MESSAGE)
        await visit.end(ruling, size=MESSAGE.content.size)
        assert not visit.in_transaction

    run(setting, walk)
    ((id, record),) = setting.records.by_id.items()
    assert record["mta"] == {"through": "milter", "queue_id": "QUEUED1"}
    assert (record["outcome"], record["helo"], record["size"]) == ("accepted", "client.test", MESSAGE.content.size)
    assert record["recipients"] == [{"address": "ben@example.test", "reply": "let through"}]
    (ending,) = setting.learner.told
    assert (ending.outcome, ending.stage, ending.transaction.id) == (Outcome.ACCEPTED, Stage.MESSAGE, id)
    assert len(setting.learner.gone) == 1, "and the session's end is told"


def test_a_refused_connection_is_recorded_under_the_reference_in_the_reply() -> None:
    setting = Setting(connect=lambda session: reject("7.1", "no", code=554))

    async def walk(visit: Visit) -> Any:
        return await visit.connect()

    ruling = run(setting, walk)
    ((id, record),) = setting.records.by_id.items()
    assert str(ruling.reply) == f"554 5.7.1 no (ref {id})"
    assert record["outcome"] == "rejected"
    assert [(e.stage, e.transaction) for e in setting.learner.told] == [(Stage.CONNECT, None)]


def test_a_refusal_that_was_not_told_stands_for_every_recipient() -> None:
    setting = Setting(helo=lambda session: defer("7.1", "later"))

    async def walk(visit: Visit) -> list[Any]:
        await begin(visit, tell=False)
        said = [await visit.rcpt(BEN), await visit.rcpt(EVA)]
        await visit.end()
        return said

    said = run(setting, walk)
    ((id, record),) = setting.records.by_id.items()
    assert {str(r.reply) for r in said} == {f"451 4.7.1 later (ref {id})"}
    assert [r["reply"] for r in record["recipients"]] == ["451 4.7.1 later"] * 2
    assert record["outcome"] == "deferred"
    outcomes = [(e.outcome, e.stage) for e in setting.learner.told]
    assert outcomes == [(Outcome.DEFERRED, Stage.RCPT)] * 2 + [(Outcome.DEFERRED, Stage.MAIL)]


def test_what_mail_refuses_ends_the_transaction_and_the_next_one_is_new() -> None:
    verdicts = iter([reject("7.1", "no"), PROCEED])
    setting = Setting(mail=lambda txn: next(verdicts))

    async def walk(visit: Visit) -> None:
        assert (await begin(visit)).refused
        assert not visit.in_transaction
        assert not (await visit.mail(ANN, MailParameters())).refused

    run(setting, walk)
    assert [(r["id"][-1], r["outcome"]) for r in setting.records.by_id.values()] == [
        ("1", "rejected"),
        ("2", "disconnected"),
    ]


def test_early_discard_and_quarantine_are_carried_to_the_end() -> None:
    for judge, action in (
        (lambda txn: discard("gone"), Action.DISCARD),
        (lambda txn: quarantine("odd"), Action.QUARANTINE),
    ):
        setting = Setting(mail=judge)

        async def walk(visit: Visit) -> Any:
            await begin(visit)
            await visit.rcpt(BEN)
            ruling = await visit.message(MESSAGE)
            await visit.end(ruling, size=1)
            return ruling

        ruling = run(setting, walk)
        assert ruling.action is action
        (record,) = setting.records.by_id.values()
        assert record["outcome"] == {Action.DISCARD: "discarded", Action.QUARANTINE: "quarantined"}[action]


def test_edits_of_all_stages_come_at_the_message_and_those_of_the_session_with_every_message() -> None:
    def adding(name: str) -> Callable[..., Any]:
        return lambda *given: annotate(AddHeader(name, "1"))

    setting = Setting(connect=adding("X-C"), mail=adding("X-M"), rcpt=adding("X-R"))

    async def walk(visit: Visit) -> list[list[str]]:
        seen = []
        await begin(visit)
        for _ in range(2):
            told = await visit.mail(ANN, MailParameters())
            await visit.rcpt(BEN)
            await visit.rcpt(EVA)
            ruling = await visit.message(MESSAGE)
            await visit.end(ruling, size=1)
            seen.append([[e.name for e in told.edits], [e.name for e in ruling.edits]])
        return seen

    assert run(setting, walk) == [[["X-C", "X-M"], ["X-C", "X-M", "X-R"]]] * 2


def test_abort_close_and_a_new_helo_end_what_was_begun() -> None:
    setting = Setting()

    async def walk(visit: Visit) -> None:
        await begin(visit)
        await visit.abort()
        await visit.abort()
        await visit.mail(ANN, MailParameters())
        await visit.helo(visit.session)
        await visit.mail(ANN, MailParameters())
        await visit.rcpt(BEN)

    run(setting, walk)
    assert [r["outcome"] for r in setting.records.by_id.values()] == ["aborted", "aborted", "disconnected"]


def test_a_transaction_that_came_to_nothing_was_not_accepted() -> None:
    setting = Setting()

    async def walk(visit: Visit) -> None:
        await begin(visit)
        await visit.end()

    run(setting, walk)
    assert [r["outcome"] for r in setting.records.by_id.values()] == ["aborted"]


def test_recipients_without_number_are_deferred_and_neither_judged_nor_kept() -> None:
    judged: list[Any] = []
    setting = Setting(rcpt=lambda txn, recipient: judged.append(recipient) or PROCEED)

    async def walk(visit: Visit) -> Any:
        await begin(visit)
        for n in range(RECIPIENTS):
            await visit.rcpt(make_recipient(f"r{n}@example.test"))
        return [await visit.rcpt(make_recipient(f"more{n}@example.test")) for n in range(3)]

    assert {ruling.reply.code for ruling in run(setting, walk)} == {452}
    assert len(judged) == RECIPIENTS
    (record,) = setting.records.by_id.values()
    assert len(record["recipients"]) == RECIPIENTS


def test_a_policy_that_fails_defers_and_the_record_says_why() -> None:
    setting = Setting(data=lambda txn: 1 / 0)

    async def walk(visit: Visit) -> Any:
        await begin(visit)
        await visit.rcpt(BEN)
        return await visit.data()

    assert run(setting, walk).reply.code == 451
    (record,) = setting.records.by_id.values()
    assert (record["outcome"], "ZeroDivisionError" in record["verdicts"][-1]["reason"]) == ("deferred", True)
