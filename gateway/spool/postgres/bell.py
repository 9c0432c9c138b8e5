"""The bell of a spool that several gateways share: LISTEN and NOTIFY, on a channel named as the schema.

It carries one word and no data: who misses a ring, since its connection was lost, looks anyway once it is back.
"""

from __future__ import annotations

from enum import StrEnum

from gateway.spool.writer import Database


class Ring(StrEnum):
    """What others are told."""

    CHANGED = "changed"
    """An operator changed something, so what waits in memory may not hold any more."""
    DUE = "due"
    """There is due mail that nobody has in hand."""


def ring(db: Database, ring: Ring) -> None:
    """Have the others hear it once the transaction is committed. Raises psycopg.Error."""
    db.execute("SELECT pg_notify(current_schema()::text, ?)", (ring.value,))
