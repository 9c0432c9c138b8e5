"""Blind copies of all messages for an archive.

Copies of some messages only, or to several places by what is found, are for `rules` to say.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.sdk import PROCEED, Message, Policy, PolicyOptions, Transaction, Verdict, annotate
from gateway.sdk.actions import archive, mailbox


def _mailboxes(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        mailbox(address)
    return addresses


class ArchiveOptions(PolicyOptions):
    """Options of `archive`."""

    to: Annotated[tuple[str, ...], AfterValidator(_mailboxes)] = Field(
        min_length=1, max_length=10, description="Addresses that get a copy of every message."
    )
    header: str = Field(
        "",
        pattern=r"^([A-Za-z][A-Za-z0-9-]{0,60})?$",
        description="Header field with the envelope's recipients, such as `X-Envelope-To`; empty for none.",
    )


class Archive(Policy):
    """Sends a copy of each message to the archive."""

    name = "archive"
    Options = ArchiveOptions
    options: ArchiveOptions

    def on_message(self, transaction: Transaction, message: Message) -> Verdict:
        if not transaction.recipients:
            return PROCEED
        return annotate(*archive(transaction, message, *self.options.to, header=self.options.header))
