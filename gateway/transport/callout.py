"""Recipient verification: would the next hop take this recipient? Asked without sending anything.

*Fails by*: `CalloutState.UNAVAILABLE` for whatever is not a plain yes or no to RCPT.

*RFCs*: 5321 section 3.5.3 and 7.3 (asking with RCPT, where VRFY is no longer answered).
"""

from __future__ import annotations

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import MailParameters, Recipient
from gateway.sdk.services import Callout, CalloutState
from gateway.transport import commands
from gateway.transport.connection import Connection


async def ask(connection: Connection, address: Address, sender: Sender = NULL_SENDER) -> Callout | None:
    """MAIL, RCPT and RSET on a ready connection; None when it was a kept one and dead before MAIL's reply."""
    offered = connection.offered
    utf8 = address.needs_smtputf8
    parameters = MailParameters(smtputf8=utf8)
    mail = commands.mail(sender, parameters, size=0, eight_bit=False, offered=offered)
    rcpt = commands.rcpt(Recipient(address), smtputf8=utf8, offered=offered)
    if mail is None or rcpt is None:
        return Callout(CalloutState.UNAVAILABLE, "the address needs SMTPUTF8, which the next hop does not offer")
    kept = connection.messages > 0
    finished = await connection.transact(mail, [rcpt])
    if kept and not finished.open and not finished.mail_answered:
        return None
    reply = finished.replies[0]
    if reply is None and finished.open:
        return Callout(CalloutState.EXISTS, "the next hop takes the recipient")
    if reply is None:
        return Callout(CalloutState.UNAVAILABLE, str(connection.silence(finished)), down=True)
    if reply.permanent and not finished.mail_refused:
        return Callout(CalloutState.UNKNOWN, str(reply))
    # MAIL refused, or 421: it would say the same for every other address.
    return Callout(CalloutState.UNAVAILABLE, str(reply), down=finished.mail_refused or reply.code == 421)
