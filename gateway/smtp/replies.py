"""Replies of the transaction that are always the same."""

from __future__ import annotations

from typing import Final

from gateway.mail.reply import Reply

NO_ROOM: Final = Reply(452, "3.1", "insufficient storage, try again later")
SPOOL_TROUBLE: Final = Reply(451, "3.0", "cannot store the message now, try again later")
TOO_BIG: Final = Reply(552, "3.4", "message is too big")
SENDER_OK: Final = Reply(250, "1.0", "sender ok")
RECIPIENT_OK: Final = Reply(250, "1.5", "recipient ok")
NO_SUCH_RECIPIENT: Final = Reply(550, "1.1", "no such recipient here")
NO_RELAY: Final = Reply(550, "7.1", "relaying denied")
NO_LITERALS: Final = Reply(550, "1.2", "no mail is taken for address literals")
NO_RECIPIENTS: Final = Reply(503, "5.1", "no valid recipients")
OF_ITS_OWN: Final = Reply(452, "5.3", "recipient needs a transaction of its own, send it again")
TOO_MANY: Final = Reply(452, "5.3", "too many recipients, send the rest in another transaction")
RECIPIENT_OK_TEXT: Final = str(RECIPIENT_OK)
