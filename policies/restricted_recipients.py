"""Distribution lists that not everybody may write to.

An address such as all@ reaches many people at once, and whoever learns it can. Here each has a list of who may write to
it: our own machines always, others by address or domain, if SPF says that the client may send for that domain.

*RFCs*: 3463 (section 3.8, X.7.2 mailing list expansion prohibited), 7208 (SPF), 5233 (subaddresses).
"""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.sdk import (
    PROCEED,
    Address,
    Given,
    OptionError,
    Policy,
    PolicyOptions,
    Recipient,
    Sender,
    Session,
    Spf,
    SpfResult,
    Transaction,
    Verdict,
    defer,
    find_domain,
    reject,
)
from gateway.sdk.actions import mailbox
from gateway.sdk.domains import read_domain

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _lists(lists: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    keys: dict[str, tuple[str, ...]] = {}
    for address, allowed in lists.items():
        key = mailbox(address).key
        if key in keys:
            raise ValueError(f"{address[:100]!r} stands there twice")
        keys[key] = tuple(_allowed(one) for one in allowed)
    return keys


def _allowed(text: str) -> str:
    """An address's key, or a domain."""
    if "@" in text:
        return mailbox(text).key
    if not (domain := read_domain(text)):
        raise ValueError(f"{text[:100]!r} is neither an address nor a domain")
    return domain


class RestrictedRecipientsOptions(PolicyOptions):
    """Options of `restricted-recipients`."""

    lists: Annotated[dict[str, tuple[str, ...]], AfterValidator(_lists)] = Field(
        min_length=1,
        max_length=10_000,
        description="Address -> who may write to it besides our own machines: addresses, and domains with all below.",
    )
    networks: tuple[_Network, ...] = Field(
        (), max_length=1_000, description="Clients that may write to all of them, beside those in `relay_from`."
    )
    delimiter: str = Field(
        "+", max_length=1, description="Begins a subaddress, which leads to the same list; empty for none."
    )


class RestrictedRecipients(Policy):
    """Keeps distribution lists for some; judged at RCPT, so that each is refused by itself and nothing bounces."""

    name = "restricted-recipients"
    version = "2"
    Options = RestrictedRecipientsOptions
    options: RestrictedRecipientsOptions

    def wire(self, given: Given) -> None:
        """Senders that are allowed by name can be believed only if somebody checks them."""
        problems = OptionError()
        if Spf not in given.stages:
            if any(self.options.lists.values()):
                problems.add(("lists",), "nobody checks the senders that are named: list spf in this pipeline")
        problems.raise_if_any()

    def on_rcpt(self, session: Session, transaction: Transaction, recipient: Recipient, spf: Spf | None) -> Verdict:
        if session.trusted:
            return PROCEED
        if any(session.client.version == net.version and session.client in net for net in self.options.networks):
            return PROCEED
        verdicts = (self._judge(key, transaction.sender, spf) for key in self._keys(recipient.address))
        return next((verdict for verdict in verdicts if verdict.decisive), PROCEED)

    def _judge(self, key: str, sender: Sender, spf: Spf | None) -> Verdict:
        """Whether the sender may write to this list."""
        if isinstance(sender, Address) and self._may(sender, self.options.lists[key]):
            if spf is not None and spf.result is SpfResult.PASS:
                return PROCEED
            # That we could not check is no proof of forgery.
            if spf is None or spf.result is SpfResult.TEMPERROR:
                text = "the sender cannot be checked now, try again later"
                return defer("7.24", text, reason=f"{sender.key} may write to {key}, and is unchecked")
            reason = f"{sender.key} may write to {key}, and SPF says {spf.result}"
        else:
            reason = f"{getattr(sender, 'key', '<>')} may not write to {key}"
        return reject("7.2", "not authorised to write to this recipient", reason=reason)

    def _keys(self, address: Address) -> list[str]:
        """The lists that the address may lead to. Where a subaddress begins, each mail store has its own view of."""
        lists, delimiter, local = self.options.lists, self.options.delimiter, address.local
        if address.key in lists or not delimiter:
            return [address.key] if address.key in lists else []
        ends = [at for at, character in enumerate(local) if character == delimiter and at]
        return [key for at in ends if (key := Address(local[:at], address.domain).key) in lists]

    @staticmethod
    def _may(sender: Address, allowed: tuple[str, ...]) -> bool:
        return sender.key in allowed or bool(find_domain(sender.ascii_domain, allowed))
