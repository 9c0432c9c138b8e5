"""A message through a whole pipeline of installed plugins and policies, with fakes of DNS and state behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.pipeline.catalog import Catalog
from gateway.pipeline.decision import Decision
from gateway.pipeline.loader import load
from gateway.sdk import Edit, Session
from gateway.sdk.testing import Bench, FakeDns, make_message, make_recipient, make_session, make_transaction

KNOWN = Catalog.installed()
SPF = {"sender.example": ["v=spf1 ip4:192.0.2.1 -all"], "partner.test": ["v=spf1 ip4:192.0.2.1 -all"]}


def send(
    entries: Sequence[Any],
    content: bytes,
    *,
    sender: str = "ben@sender.example",
    recipients: Sequence[str] = ("anna@example.org",),
    session: Session | None = None,
    dns: FakeDns | None = None,
) -> tuple[Decision, tuple[Edit, ...]]:
    """What the first stage came to that refused or ended it, else stage `message`; and all edits."""
    bench = Bench(dns=dns or FakeDns(txt=SPF))
    return asyncio.run(_send(bench, entries, content, sender, recipients, session or make_session("192.0.2.1")))


async def _send(
    bench: Bench, entries: Sequence[Any], content: bytes, sender: str, recipients: Sequence[str], session: Session
) -> tuple[Decision, tuple[Edit, ...]]:
    pipeline = load("default", entries, bench.services, known=KNOWN)
    await pipeline.start()
    try:
        opened = pipeline.open()
        decisions = [await opened.connect(session), await opened.helo(session)]
        transaction = make_transaction(session, sender=sender)
        begun = opened.begin(transaction)
        decisions.append(await begun.mail(transaction))
        for address in recipients:
            recipient = make_recipient(address)
            decisions.append(await begun.rcpt(transaction, recipient))
            if not decisions[-1].verdict.decisive:
                transaction = replace(transaction, recipients=(*transaction.recipients, recipient))
        if transaction.recipients:
            decisions.append(await begun.data(transaction))
            decisions.append(await begun.message(transaction, make_message(content)))
        await begun.close()
        await opened.close()
    finally:
        await pipeline.close()
    decided = next((d for d in decisions if d.verdict.decisive), decisions[-1])
    return decided, decided.edits or decided.verdict.edits
