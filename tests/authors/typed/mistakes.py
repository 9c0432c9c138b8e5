"""Mistakes that authors make: a checker must object to every line with a mark, and to no other.

``# wrong`` is for both, ``# wrong: mypy`` or ``# wrong: pyright`` where only one of them can see it.
"""

from __future__ import annotations

import gateway.sdk
from gateway.sdk import (
    PROCEED,
    AddHeader,
    Ending,
    Finding,
    Outcome,
    Plugin,
    PluginOptions,
    Policy,
    Session,
    Spf,
    SpfResult,
    Stage,
    Transaction,
    Verdict,
    acts,
    annotate,
    defer,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.testing import Bench, make_session


class Limits(PluginOptions):
    limit: int = 3


class Found(Finding):
    """Finds nothing."""


class Mistaken(Policy):
    name = 7  # wrong
    Options = Limits
    options: Limits

    def on_rcpt(self, session: Session, spf: Spf) -> Verdict:
        if spf.result == SpfResult.PASSED:  # wrong
            return reject("no")  # wrong
        if spf.domain == "sender.example":
            return gateway.sdk.refuse("7.1", "no")  # wrong
        if self.options.limits:  # wrong
            return defer(7.1, "later")  # wrong
        if session.hello:  # wrong
            return True  # wrong
        return PROCEED

    def on_message(self, transaction: Transaction, spf: Spf | None) -> Verdict:
        if spf.result is SpfResult.FAIL:  # wrong
            return quarantine()  # wrong
        if transaction.sender.domain:  # wrong
            return annotate([AddHeader("X", "y")])  # wrong
        return reject("7.1", "no", codes=550)  # wrong


class Wrong(Plugin):
    name = "wrong"
    Options = Limits
    options: Limits
    timeout = "3s"  # wrong

    @finds("mail")  # wrong
    async def look(self, session: Session) -> Found:
        answer = self.services.dns.lookup("a.example", "A")
        if answer.status:  # wrong
            return Found()
        await self.services.state.put("key", "text", 60.0)  # wrong
        return Found()

    @finds(Stage.MAIL)  # wrong
    def waits_for_nothing(self, session: Session) -> Found:
        return Found()

    @acts(Stage.RCPT)  # wrong
    async def finds_no_finding(self) -> str:
        return ""

    def ended(self, ending: Ending) -> None:  # wrong
        ending.outcome = Outcome.ACCEPTED  # wrong


def test_it() -> None:
    bench = Bench(dns={"a.example": "192.0.2.1"})  # wrong
    bench.judge(Mistaken, session=make_session(client=1))  # wrong
    bench.judge(Found)  # wrong
    bench.find(Wrong, stage="mail")  # wrong
