"""What a stage came to: for everybody, and, at `message`, for recipients of whom verdicts said something special."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from gateway.mail.edit import Edit
from gateway.mail.envelope import Recipient
from gateway.pipeline.plan import Entry
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Transaction
from gateway.sdk.verdict import PROCEED, Action, Verdict, When


@dataclass(frozen=True, slots=True)
class Part:
    """What stage `message` came to for some of the recipients only."""

    recipients: tuple[Recipient, ...]
    verdict: Verdict
    entry: str = ""
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a stage came to. `entry` and `policy` say whose verdict it is, and are empty when nobody was decisive.

    `edits` are those of all applied verdicts at stage `message`, in order. `parts` are recipients of whom verdicts said
    something of their own; the decision is about the others. `found` is what was found of one recipient, where
    somebody learns from endings.
    """

    verdict: Verdict
    entry: str = ""
    policy: str = ""
    edits: tuple[Edit, ...] = ()
    parts: tuple[Part, ...] = ()
    found: tuple[Finding, ...] = ()


PROCEEDED: Final = Decision(PROCEED)


@dataclass(frozen=True, slots=True)
class Said:
    """An entry's answer at a stage. `of` is the entry that the record names, which may be another's that failed."""

    verdict: Verdict
    of: Entry
    policy: str
    version: str
    shadow: bool


class Named:
    """Recipients of whom verdicts at `message` said something of their own."""

    def __init__(self, txn: Transaction | None) -> None:
        self._left = list(txn.recipients) if txn else []
        self._edits: dict[Recipient, tuple[Edit, ...]] = {}
        self._parts: list[Part] = []

    @property
    def nobody_left(self) -> bool:
        return not self._left

    def take(self, said: Said, edits: tuple[Edit, ...]) -> None:
        """A verdict that names recipients; `edits` are those of the others so far. Who is decided stays decided."""
        verdict = said.verdict
        whom = [r for r in verdict.recipients if r in self._left]
        for recipient in whom:
            self._edits[recipient] = self._edits.get(recipient, edits) + verdict.edits
        if not verdict.decisive:
            return
        self._left = [r for r in self._left if r not in whom]
        self._add(whom, edits, verdict, said.of.name)

    def edit(self, edits: tuple[Edit, ...]) -> None:
        """Edits that are for everybody who is left."""
        for recipient in self._edits:
            if recipient in self._left:
                self._edits[recipient] += edits

    def split(self, decision: Decision) -> Decision:
        """The decision about the others, and beside it what was said of single ones."""
        own = [r for r in self._left if r in self._edits]
        self._add(own, decision.edits, decision.verdict, decision.entry)
        return replace(decision, parts=tuple(self._parts))

    def _add(self, whom: list[Recipient], edits: tuple[Edit, ...], verdict: Verdict, entry: str) -> None:
        """Recipients whose edits are the same share a part, and so a copy."""
        groups: dict[tuple[Edit, ...], list[Recipient]] = {}
        for recipient in whom:
            groups.setdefault(self._edits.get(recipient, edits), []).append(recipient)
        self._parts += [Part(tuple(group), verdict, entry, edits) for edits, group in groups.items()]


class Deliberation:
    """What a stage comes to, answer by answer, in list order.

    `edits` are those asked for so far; `txn` is None before there is a transaction.
    """

    def __init__(self, txn: Transaction | None, edits: tuple[Edit, ...] = ()) -> None:
        self.edits = edits
        self._txn = txn
        self._named: Named | None = None
        self._decision: Decision | None = None
        self._waiting: dict[When, Said] = {}

    def take(self, said: Said) -> bool:
        """Take one answer; says whether nobody else has to be asked."""
        verdict = said.verdict
        if said.shadow or verdict is PROCEED:
            return False
        if verdict.recipients:
            self._named = self._named or Named(self._txn)
            self._named.take(said, self.edits)
            return self._named.nobody_left
        if verdict.edits:
            self.edits += verdict.edits
            if self._named:
                self._named.edit(verdict.edits)
        if verdict.decisive:
            self._decision = Decision(verdict, said.of.name, said.policy, self.edits)
        elif verdict.when is not When.ALWAYS:
            self._waiting.setdefault(verdict.when, said)
        return verdict.decisive

    def decide(self) -> Decision:
        """What it came to."""
        decision = self._decision
        if decision is None:
            decision = Decision(PROCEED, edits=self.edits) if self.edits else PROCEEDED
        if self._waiting:
            decision = self._heeding(decision)
        return self._named.split(decision) if self._named else decision

    def _heeding(self, decision: Decision) -> Decision:
        """With defers that hold unless, or if, another refuses (access(5) of Postfix)."""
        said = None
        if decision.verdict.action is Action.REJECT:
            said = self._waiting.get(When.IF_REJECT)
        elif decision.verdict.action in (Action.PROCEED, Action.ACCEPT):
            said = self._waiting.get(When.IF_PERMIT)
        return Decision(said.verdict, said.of.name, said.policy) if said else decision
