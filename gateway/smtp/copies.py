"""How what was decided of recipients becomes copies of the message, or its refusal.

A client hears one reply for all its recipients. Where some are to be refused and others taken after DATA, the refused
ones are not told by a bounce, which would go to whoever the sender is said to be: their copy is set aside or thrown
away (`split_refused`). A deferral of some defers all, since nothing of the message is lost by that.

*RFCs*: 5321 section 6.1 (no bounce to a sender that may be forged).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.edit import Edit, edit_envelope, is_header_edit, render_field, replaced_body
from gateway.mail.envelope import Envelope, Origin, Recipient
from gateway.mail.message import Content, split_header
from gateway.mail.reply import Reply
from gateway.pipeline.decision import Decision, Part
from gateway.sdk.authentication import AuthResult, Dmarc, Spf, SpfResult, authentication_results
from gateway.sdk.ending import Outcome
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Transaction
from gateway.sdk.verdict import Action
from gateway.smtp import trace
from gateway.smtp.data import ChunkDecoder
from gateway.smtp.group import Group
from gateway.smtp.judges import REFUSALS
from gateway.smtp.options import SmtpOptions, SplitRefused
from gateway.spool.spool import Draft, Inlet, NewMessage, SpoolError, State
from gateway.transport.routing import parse_own_next_hop

_STATES: Final = {Outcome.ACCEPTED: State.QUEUED, Outcome.QUARANTINED: State.QUARANTINE}


@dataclass(frozen=True, slots=True)
class Copy:
    """A message as some recipients get it: queued, set aside or thrown away. `entry` is whose verdict that was."""

    group: Group
    recipients: tuple[Recipient, ...]
    outcome: Outcome
    reason: str = ""
    entry: str = ""
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The message is not taken."""

    reply: Reply
    decision: Decision


def sort(groups: Sequence[Group], refused: SplitRefused) -> list[Copy] | Refusal:
    """Copies, at least one of them not refused, or the refusal of the whole message."""
    copies: list[Copy] = []
    refusals: list[tuple[Refusal, Copy]] = []
    for group in groups:
        for part in _parts(group):
            reply = part.verdict.reply
            if part.verdict.action not in REFUSALS or reply is None:
                copies.append(_copy(group, part))
                continue
            refusal = Refusal(reply, Decision(part.verdict, part.entry))
            if part.verdict.action is not Action.REJECT:
                return refusal
            outcome = Outcome.QUARANTINED if refused is SplitRefused.QUARANTINE else Outcome.DISCARDED
            reason = f"refused ({reply}), while others were taken"
            refusals.append((refusal, Copy(group, part.recipients, outcome, reason, part.entry, part.edits)))
    if not copies:
        return refusals[0][0]
    return copies + [copy for _, copy in refusals]


def _parts(group: Group) -> Iterator[Part]:
    """What was decided, by recipients. Those of whom nothing special was said come first."""
    decision, recipients = group.decision, group.txn.recipients
    if decision is None:
        raise RuntimeError("recipients that nobody judged")
    named = {recipient for part in decision.parts for recipient in part.recipients}
    if others := tuple(r for r in recipients if r not in named) if named else recipients:
        yield Part(others, decision.verdict, decision.entry, decision.edits)
    yield from decision.parts


def _copy(group: Group, part: Part) -> Copy:
    """The copy of recipients who were not refused. What earlier stages wanted for the whole group counts too."""
    judges, verdict = group.judges, part.verdict
    if judges.discard or verdict.action is Action.DISCARD:
        outcome, reason = Outcome.DISCARDED, judges.discard or verdict.reason or "discarded"
    elif judges.quarantine or verdict.action is Action.QUARANTINE:
        outcome, reason = Outcome.QUARANTINED, judges.quarantine or verdict.reason or "quarantined"
    else:
        outcome, reason = Outcome.ACCEPTED, ""
    if part.edits and not edit_envelope(Envelope(NULL_SENDER, part.recipients), part.edits).recipients:
        outcome, reason = Outcome.DISCARDED, "its edits left no recipient"
    return Copy(group, part.recipients, outcome, reason, part.entry, part.edits)


def make(
    copy: Copy, txn: Transaction, section: bytes, now: float, options: SmtpOptions, record: dict[str, Any]
) -> NewMessage:
    """A copy as the spool takes it, with trace fields and edits; `txn` has its id and its recipients.

    `section` is the header section as it was received. Where edits replace the body, `head` is the whole header
    section, and `with_bodies` follows. Raises `SpoolError` for edits that cannot be made.
    """
    try:
        header_edits = tuple(filter(is_header_edit, copy.edits))
        if replaced_body(copy.edits) is None:
            head, skip = trace.rewrite(section, options.authserv_id, header_edits)
        else:
            # Lines after the fields, where no empty line ends them, are of the body that is replaced.
            fields = section[: split_header(section)[1]]
            head, skip = trace.rewrite(fields, options.authserv_id, header_edits)
            if not skip:
                head, skip = fields if fields.endswith(b"\r\n") or not fields else fields + b"\r\n", len(fields)
        client = txn.session
        origin = Origin(client.client, client.client_port, client.name, client.helo, client.esmtp)
        came = Envelope(txn.sender, txn.recipients, txn.parameters, origin=origin)
        envelope = edit_envelope(came, copy.edits)
        if envelope.next_hop:
            parse_own_next_hop(envelope.next_hop)
    except ValueError as error:
        raise SpoolError(f"an edit cannot be made: {error}") from error
    utf8 = txn.parameters.smtputf8
    top = trace.received(txn.session, options.hostname, txn.id, txn.recipients, now, smtputf8=utf8)
    found = copy.group.applied
    if found and (results := authentication_results(options.authserv_id, found)):
        top = render_field("Authentication-Results", results) + top
    return NewMessage(
        txn.id,
        envelope,
        now,
        top + head,
        skip,
        _STATES[copy.outcome],
        owed=options.bounces and _owed(envelope.sender, trusted=txn.session.trusted, found=found),
        trusted=txn.session.trusted,
        reason=copy.reason,
        record=record,
    )


async def with_bodies(copies: Sequence[tuple[Copy, NewMessage]], spool: Inlet) -> list[NewMessage]:
    """The messages, with drafts of their own where edits replaced the body.

    Raises `SpoolError`; nothing is left behind then.
    """
    drafts: list[Draft] = []
    messages: list[NewMessage] = []
    try:
        for copy, message in copies:
            if (body := replaced_body(copy.edits)) is not None:
                draft = spool.draft(message.id, edited=True)
                drafts.append(draft)
                await _write(draft, message.head, body)
                message = replace(message, head=b"", skip=0, content=draft)
            messages.append(message)
    except BaseException as error:
        for draft in drafts:
            await draft.abandon()
        if isinstance(error, Exception) and not isinstance(error, SpoolError):
            raise SpoolError(f"an edited body cannot be read: {type(error).__name__}: {error}") from error
        raise
    return messages


async def _write(draft: Draft, head: bytes, body: Content) -> None:
    # No filter is trusted with line ends: what leaves us never holds a stray one.
    mender = ChunkDecoder()
    await draft.write(head + b"\r\n")
    async for block in body.blocks():
        await draft.write(mender.feed(block))
    await draft.write(mender.end())


def _owed(sender: Sender, *, trusted: bool, found: Iterable[Finding]) -> bool:
    """Whether the sender is owed a DSN: it is one of our clients, or SPF or DMARC proved its domain.

    DMARC speaks of From. It counts where From and the sender are of the same domain: then a report about a message
    that somebody signed and another one replays goes, at worst, to the domain that signed it.
    """
    if sender is NULL_SENDER or trusted:
        return sender is not NULL_SENDER
    return isinstance(sender, Address) and any(_proves(f, sender.ascii_domain) for f in found)


def _proves(finding: Finding, domain: str) -> bool:
    match finding:
        case Spf():
            return finding.result is SpfResult.PASS and finding.domain == domain
        case Dmarc():
            return finding.result is AuthResult.PASS and finding.domain == domain
    return False
