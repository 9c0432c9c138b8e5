"""Ask of bulk mail what the large mailbox providers ask of it: to be authenticated, and easy to be rid of.

A message counts as bulk when it says so itself: by the fields of mailing lists, by ``Precedence``, or by the ids that
bulk senders put in for feedback. What it lacks is counted; what could not be found out is never missing. From how many
on something is done about it, the operator says.

*RFCs*: 2369 (List-Unsubscribe; section 3.4, List-Post), 2919 (List-Id), 8058 (section 3, one-click), 9989 (DMARC),
8601 (iprev).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, PlainSerializer, model_validator

from gateway.sdk import (
    PROCEED,
    Action,
    AuthResult,
    Dkim,
    Dmarc,
    Message,
    Policy,
    PolicyOptions,
    Response,
    ReverseName,
    Session,
    Spf,
    SpfResult,
    Verdict,
    respond,
)
from gateway.sdk.actions import set_header

_LISTS: Final = ("list-unsubscribe", "list-id", "list-unsubscribe-post")
_CAMPAIGNS: Final = ("feedback-id", "x-csa-complaints", "x-campaign-id", "x-campaignid", "x-mailgun-sid", "x-sg-eid")
_PRECEDENCE: Final = re.compile(r"(?:bulk|list|junk)\Z", re.IGNORECASE)
_HTTPS: Final = re.compile(r"<\s{0,10}https://[^\s<>]", re.IGNORECASE)
_NO: Final = re.compile(r"NO(?![^\s(])", re.IGNORECASE)
_ONE_CLICK: Final = re.compile(r"List-Unsubscribe\s{0,10}=\s{0,10}One-Click\Z", re.IGNORECASE)
_VALUE: Final = 8_000


class Requirement(StrEnum):
    """What bulk mail should have."""

    SPF = "spf"
    DKIM = "dkim"
    DMARC_RECORD = "dmarc-record"
    ALIGNED = "aligned"
    ONE_CLICK = "one-click"
    REVERSE_NAME = "reverse-name"
    TLS = "tls"


_Count = Annotated[int, Field(ge=1, le=len(Requirement))]


class BulkSenderOptions(PolicyOptions):
    """Options of `bulk-sender`."""

    require: Annotated[
        frozenset[Requirement], PlainSerializer(lambda some: sorted(some), return_type=list[str], when_used="json")
    ] = Field(
        frozenset(Requirement),
        min_length=1,
        description="What is asked for: `spf`, `dkim`, `dmarc-record`, `aligned`, `one-click`, `reverse-name`, `tls`.",
    )
    tag_at: _Count | None = Field(1, description="How many must be missing for a mark; null for never.")
    quarantine_at: _Count | None = Field(None, description="How many for setting the message aside; null for never.")
    reject_at: _Count | None = Field(None, description="How many for `550 5.7.1`; null for never.")
    header: str = Field(
        "X-Bulk-Missing", pattern=r"^[A-Za-z][A-Za-z0-9-]{0,60}$", description="Field that names what is missing."
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        for name in ("tag_at", "quarantine_at", "reject_at"):
            limit = getattr(self, name)
            if limit is not None and limit > len(self.require):
                raise ValueError(f"{name} is never reached: only {len(self.require)} things are required")
        return self


class BulkSender(Policy):
    """Asks bulk mail to be authenticated and easy to be rid of; judged at message. Trusted clients pass."""

    name = "bulk-sender"
    version = "2"
    Options = BulkSenderOptions
    options: BulkSenderOptions

    def on_message(
        self,
        session: Session,
        message: Message,
        spf: Spf | None,
        dkim: Dkim | None,
        dmarc: Dmarc | None,
        reverse: ReverseName | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        names = {field.name.lower() for field in message.fields}
        from_list = any(name in names for name in _LISTS) or _says_bulk(message)
        if not from_list and not any(name in names for name in _CAMPAIGNS):
            return PROCEED
        lacking = {*_unproved(spf, dkim, dmarc)}
        if reverse is not None and reverse.result in (AuthResult.FAIL, AuthResult.PERMERROR):
            lacking.add(Requirement.REVERSE_NAME)
        if session.tls is None:
            lacking.add(Requirement.TLS)
        # Receipts have ids for feedback as well, and where people write to each other nobody is subscribed by a shop.
        if from_list and not _discusses(message) and not _one_click(message):
            lacking.add(Requirement.ONE_CLICK)
        missing = [one for one in Requirement if one in lacking & self.options.require]
        return self._judge(missing) if missing else Verdict(Action.PROCEED, reason="bulk mail, nothing is missing")

    def _judge(self, missing: list[Requirement]) -> Verdict:
        limits = (
            (Response.REJECT, self.options.reject_at),
            (Response.QUARANTINE, self.options.quarantine_at),
            (Response.TAG, self.options.tag_at),
        )
        reached = (response for response, limit in limits if limit is not None and len(missing) >= limit)
        named = ", ".join(missing)
        return respond(
            next(reached, Response.RECORD),
            f"bulk mail without {named}",
            *set_header(self.options.header, named),
            text="bulk mail does not meet the requirements here",
        )


def _says_bulk(message: Message) -> bool:
    return any(_PRECEDENCE.match(value[:100].strip()) for value in message.all("Precedence"))


def _discusses(message: Message) -> bool:
    """Whether subscribers may write to the list; ``NO`` says that they may not (RFC 2369 section 3.4)."""
    return any(not _NO.match(value[:100].strip()) for value in message.all("List-Post"))


def _unproved(spf: Spf | None, dkim: Dkim | None, dmarc: Dmarc | None) -> Iterator[Requirement]:
    if spf is not None and spf.result not in (SpfResult.PASS, SpfResult.TEMPERROR):
        yield Requirement.SPF
    if dkim is not None and not any(s.result in (AuthResult.PASS, AuthResult.TEMPERROR) for s in dkim.signatures):
        yield Requirement.DKIM
    if dmarc is None or dmarc.result is AuthResult.TEMPERROR:
        return
    if dmarc.policy is None:
        yield Requirement.DMARC_RECORD
    if dmarc.result is not AuthResult.PASS:
        yield Requirement.ALIGNED


def _one_click(message: Message) -> bool:
    """An https address to unsubscribe at, and the word that one click is enough (RFC 8058 section 3.1)."""
    https = any(_HTTPS.search(value[:_VALUE]) for value in message.all("List-Unsubscribe"))
    return https and any(_ONE_CLICK.match(value[:100].strip()) for value in message.all("List-Unsubscribe-Post"))
