"""The plugin and its policy; see the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Histogram

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Dkim,
    Dnsbl,
    Ending,
    Greylist,
    GreylistState,
    HeloName,
    Outcome,
    Plugin,
    Policy,
    Recipient,
    ReverseName,
    Spf,
    Stage,
    Transaction,
    Verdict,
    acts,
    defer,
    get_logger,
)
from gateway.sdk.lint import Check, Remark, Setting, Severity
from plugins.greylist.identity import Evidence, Identity, identify, stable_sender, suspicions
from plugins.greylist.memory import Memory
from plugins.greylist.options import GreylistOptions

LEARNING_RECIPIENTS: Final = 10
"""Recipients of an accepted message that are looked up to see whether its client had to pass."""

ATTEMPTS = Counter("gatepost_greylist_attempts", "Greylisted or exempt attempts, by state.", ["state", "by"])
DELAY = Histogram(
    "gatepost_greylist_delay_seconds",
    "How long clients that passed had to wait.",
    buckets=(60, 300, 600, 900, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600, 24 * 3600),
)

_log = get_logger()


BLIND: Final = Check("greylist/blind", Severity.WARNING, "only suspicious clients are greylisted, and nothing suspects")
NO_POOLS: Final = Check("greylist/no-pools", Severity.WARNING, "senders with many addresses are taken for many clients")
_SUSPECTS: Final = (Dnsbl, ReverseName, HeloName, Spf)


class GreylistPolicy(Policy):
    """Defer first attempts, and retries that come too early."""

    name = "greylist"
    Options = GreylistOptions
    options: GreylistOptions

    def on_rcpt(self, greylist: Greylist) -> Verdict:
        return self._judge(greylist)

    def on_message(self, greylist: Greylist) -> Verdict:
        return self._judge(greylist)

    def _judge(self, greylist: Greylist) -> Verdict:
        if greylist.state not in (GreylistState.NEW, GreylistState.EARLY):
            return PROCEED
        when = f"in {max(1, math.ceil(greylist.wait))} seconds" if self.options.tell_wait else "later"
        reason = f"{greylist.state} as {greylist.key}, {greylist.wait:.0f} s to wait ({greylist.reason})"
        return defer("7.1", f"try again {when}", reason=reason)


class GreylistPlugin(Plugin):
    """Remembers attempts, and learns from messages that were accepted."""

    name = "greylist"
    Options = GreylistOptions
    policy = GreylistPolicy
    checks = (BLIND, NO_POOLS)
    options: GreylistOptions

    def lint(self, setting: Setting) -> Iterable[Remark]:
        if self.options.when == "suspicious" and not any(kind in setting.findings for kind in _SUSPECTS):
            yield Remark(
                BLIND,
                (),
                "greylist is for suspicious clients only, and no entry here finds what would make one so",
                "client 192.0.2.1, a botnet's, passes at its first attempt, as everybody does",
                "list dnsbl, rdns, helo or spf, or write when: always",
            )
        if not self.options.pools:
            yield Remark(
                NO_POOLS,
                ("pools",),
                "no sender is known to have many addresses",
                "a large provider tries again from another network each time, and its mail waits for hours",
                "leave pools out, which has the largest ones, or name your own",
            )

    async def start(self) -> None:
        self._memory = Memory(self.options, self.services)

    @acts(Stage.RCPT)
    async def at_rcpt(
        self,
        transaction: Transaction,
        recipient: Recipient,
        dnsbl: Dnsbl | None,
        reverse: ReverseName | None,
        helo: HeloName | None,
        spf: Spf | None,
    ) -> Greylist:
        """One recipient. The null sender waits for `at_message`: callouts that check a sender never come so far."""
        if self._stage(transaction) is not Stage.RCPT:
            return Greylist(GreylistState.EXEMPT, "", reason="judged after DATA")
        return await self._judge(transaction, (recipient,), Evidence(dnsbl, reverse, helo, spf))

    @acts(Stage.MESSAGE)
    async def at_message(
        self,
        transaction: Transaction,
        dnsbl: Dnsbl | None,
        reverse: ReverseName | None,
        helo: HeloName | None,
        spf: Spf | None,
        dkim: Dkim | None,
    ) -> Greylist:
        """The message, by its first recipient: clients don't reorder them between retries (RFC 6647 section 5)."""
        if self._stage(transaction) is not Stage.MESSAGE:
            return Greylist(GreylistState.EXEMPT, "", reason="judged at RCPT")
        return await self._judge(transaction, transaction.recipients, Evidence(dnsbl, reverse, helo, spf, dkim))

    async def ended(self, ending: Ending) -> None:
        """Count an accepted message for its client, if that client had to pass for one of its recipients."""
        transaction = ending.transaction
        accepted = ending.outcome is Outcome.ACCEPTED and ending.stage is Stage.MESSAGE
        if not accepted or transaction is None or ending.session.trusted or not self.options.learn_after:
            return
        evidence = Evidence.of(ending, dkim=self._stage(transaction) is Stage.MESSAGE)
        client = identify(self.options, transaction, evidence)
        if await self._memory.knows(client):
            return
        sender = stable_sender(transaction.sender)
        for recipient in transaction.recipients[:LEARNING_RECIPIENTS]:
            if await self._memory.has_passed(client, sender, recipient.address.key):
                if await self._memory.learn(client):
                    _log.info("greylist.learned", key=str(client), session=ending.session.id, id=transaction.id)
                return

    def _stage(self, transaction: Transaction) -> Stage:
        """Where this transaction is judged."""
        late = self.options.at == "message" or transaction.sender is NULL_SENDER
        return Stage.MESSAGE if late else Stage.RCPT

    async def _judge(self, transaction: Transaction, recipients: tuple[Recipient, ...], evidence: Evidence) -> Greylist:
        client = identify(self.options, transaction, evidence)
        judged = [r for r in recipients if r.address.local.lower() not in self.options.exempt]
        speaks_against = suspicions(self.options, transaction.sender, evidence)
        if reason := self._exemption(transaction, client, evidence, speaks_against, judged):
            ATTEMPTS.labels(GreylistState.EXEMPT.value, client.kind).inc()
            return Greylist(GreylistState.EXEMPT, str(client), reason=reason)
        found = await self._look(transaction, client, judged[0], ", ".join(speaks_against) or "everybody is greylisted")
        ATTEMPTS.labels(found.state.value, client.kind).inc()
        self._report(found, transaction, judged[0])
        return found

    def _exemption(
        self,
        transaction: Transaction,
        client: Identity,
        evidence: Evidence,
        speaks_against: tuple[str, ...],
        judged: list[Recipient],
    ) -> str:
        """Why this attempt is not greylisted at all; empty when it is."""
        options, dnsbl = self.options, evidence.dnsbl
        if transaction.session.trusted:
            return "client is trusted"
        if transaction.sender is NULL_SENDER and options.null_sender == "exempt":
            return "null sender"
        if not judged:
            return "recipient is exempt"
        if client.kind == "pool" and options.pooled == "exempt":
            return "pool"
        if dnsbl is not None and options.exempt_score is not None and dnsbl.score <= options.exempt_score:
            return f"allow list, score {dnsbl.score:g}"
        if options.when == "suspicious" and not speaks_against:
            return "not suspicious"
        return ""

    async def _look(self, transaction: Transaction, client: Identity, recipient: Recipient, why: str) -> Greylist:
        if await self._memory.knows(client):
            return Greylist(GreylistState.KNOWN, str(client), reason="the client is known")
        standing = await self._memory.attempt(client, stable_sender(transaction.sender), recipient.address.key)
        return Greylist(standing.state, str(client), round(standing.wait, 3), round(standing.delay, 3), why)

    def _report(self, found: Greylist, transaction: Transaction, recipient: Recipient) -> None:
        session = transaction.session
        about = {"key": found.key, "client": str(session.client), "session": session.id, "id": transaction.id}
        if found.state is GreylistState.PASSED:
            DELAY.observe(found.delay)
            _log.info("greylist.passed", seconds=found.delay, recipient=str(recipient.address), **about)
        elif found.state in (GreylistState.NEW, GreylistState.EARLY):
            _log.debug("greylist.deferred", seconds=found.wait, recipient=str(recipient.address), **about)
