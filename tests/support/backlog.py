"""A spool that is full already: deferred mail by the thousand, written with the spool's own statements."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway.mail.address import Address
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.session import new_session_id, transaction_id
from gateway.spool import schema
from gateway.spool.recovery import lock_shard, make_root, open_database
from gateway.spool.shard import no_step
from gateway.spool.spool import NewMessage, RecipientStatus, Slot

_BATCH = 5000
_TRIED = "451 4.4.1 connect to 127.0.0.1: Connection refused"


def fill(
    root: Path,
    messages: int,
    *,
    received: float,
    domain: Callable[[int], str],
    lane: Callable[[str], str],
    due: Callable[[int], float] = lambda _: 0.0,
    size: int = 4096,
    shard: int = 0,
) -> None:
    """Put `messages` deferred messages into a shard that no Gatepost has open.

    Message n goes to the `domain` of n, is filed under its `lane`, empty for none, and is due at `due` of n.
    """
    make_root(root)
    directory = root / f"shard-{shard:02}"
    lock = lock_shard(directory)
    database = open_database(directory, no_step)
    body = b"Subject: backlog\r\n\r\n" + b"0123456789" * (size // 10) + b"\r\n"
    sender = Address("sender", "example.test")
    try:
        database.execute("PRAGMA synchronous=OFF")
        for start in range(0, messages, _BATCH):
            database.execute("BEGIN IMMEDIATE")
            for number in range(start, min(start + _BATCH, messages)):
                name = domain(number)
                recipient = Recipient(Address(f"user{number}", name))
                id = transaction_id(new_session_id(), 0)
                new = NewMessage(id, Envelope(sender, (recipient,)), received, b"", owed=True)
                when = due(number)
                slots = (replace(Slot(recipient), status=RecipientStatus.DEFERRED, due=when, attempts=1, last=_TRIED),)
                n = database.execute("INSERT INTO content (head, body) VALUES (?, ?)", (b"", body)).lastrowid
                database.execute(schema.INSERT, (n, *schema.new_row(new, slots, len(body), False, claimed=1)))
                filed = (lane(name), when, received + 4 * 3600.0, id)
                database.execute("UPDATE message SET claimed = 0, lane = ?, due = ?, deadline = ? WHERE id = ?", filed)
            database.execute("COMMIT")
    finally:
        database.close()
        os.close(lock)
