"""Relay control: whom we take mail for, before any policy is asked.

That is our own domains, for everybody; everything, for clients in `relay_from`; and senders that we rewrote (SRS) when
we sent somebody's message on, for bounces. The last need no other right: where the way back leads stands in the
address, and only who knows our secret can have written it.

A route may also hide in a local part: to many a mail server ``ben%example.net@example.org``, ``example.net!ben`` and
``"ben@example.net"`` are ben@example.net, once the mail is at example.org. Such a server trusts us and would relay. So
strangers may say such things only of recipients that are known here by name.

*RFCs*: 5321 section 4.5.1 (postmaster without a domain) and 4.1.3 (address literals).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.mail.srs import Srs, SrsError
from gateway.ops import log, metrics
from gateway.sdk.stage import Transaction
from gateway.smtp import replies
from gateway.smtp.domains import Domains
from gateway.smtp.options import SmtpOptions

_ROUTING: Final = frozenset("@%!")

_log = log.get()


def admit(
    domains: Domains, options: SmtpOptions, txn: Transaction, recipient: Recipient, now: float
) -> Recipient | Reply:
    """The recipient as policies judge it and mail is delivered to it, or the refusal. `now` is epoch seconds."""
    if not recipient.address.domain:
        postmaster = domains.postmaster(options.hostname)
        if postmaster is None:
            return replies.NO_SUCH_RECIPIENT
        recipient = replace(recipient, address=postmaster)
    if (restored := _restore(options.srs, txn, recipient, now)) is not None:
        return restored
    domain = domains.find(recipient.address)
    if not txn.session.trusted:
        if domain is None or (domain.forwards and not _ROUTING.isdisjoint(recipient.address.local)):
            return replies.NO_RELAY
    elif domain is None:
        if recipient.address.domain.startswith("[") and not options.address_literals:
            return replies.NO_LITERALS
    return recipient


def _restore(srs: Srs | None, txn: Transaction, recipient: Recipient, now: float) -> Recipient | Reply | None:
    """The recipient inside a rewritten address of ours, a refusal of a forged or old one, None for any other address.

    The refusal is the same for all causes: whoever tries hashes learns nothing from it.
    """
    if srs is None or not srs.reads(recipient.address):
        return None
    address = str(recipient.address)
    try:
        if srs.bounces_only and txn.sender is not NULL_SENDER:
            raise SrsError("only bounces may be sent to a rewritten address")
        found = srs.restore(recipient.address, now)
    except SrsError as error:
        metrics.SRS_RECIPIENTS.labels("refused").inc()
        _log.info("srs.refused", session=txn.session.id, id=txn.id, recipient=address, reason=str(error))
        return replies.NO_SUCH_RECIPIENT
    metrics.SRS_RECIPIENTS.labels("restored").inc()
    _log.info("srs.restored", session=txn.session.id, id=txn.id, recipient=address, to=str(found))
    return replace(recipient, address=found)
