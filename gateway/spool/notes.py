"""What is written beside a message, and outlives it: its decision record and its attempts, as text for the database.

With redaction they are written without the local parts of addresses: see `gateway.ops.redaction`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.ops.redaction import KeyFileError, Redactor, make_key, read_key
from gateway.spool import schema
from gateway.spool.spool import AttemptRecord, SpoolError, SpoolOptions
from gateway.spool.writer import Database

# An upsert, and no replacement: that would not fire the triggers by which it is known how much there is.
RECORD: Final = "INSERT INTO record (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body"
ATTEMPT: Final = (
    "INSERT INTO attempt (id, n, body) VALUES (?, ?, ?) ON CONFLICT (id, n) DO UPDATE SET body = excluded.body"
)


class Notes:
    """How records and attempts are written; `kept` says whether at all."""

    def __init__(self, *, kept: bool = True, redactor: Redactor | None = None) -> None:
        self.kept = kept
        self.redactor = redactor

    def record(self, record: dict[str, Any]) -> str:
        """A record's text."""
        text = schema.dumps(record)
        return text if self.redactor is None else schema.dumps(self.redactor.record(_plain(text)))

    def add_attempts(self, db: Database, id: str, attempts: Sequence[AttemptRecord]) -> None:
        """Insert the attempts of one settlement, or what somebody did by hand. Raises the error of its library."""
        if attempts and self.kept:
            db.execute(ATTEMPT, self._row(id, attempts))

    def add_all(self, db: Database, attempts: Sequence[tuple[str, Sequence[AttemptRecord]]]) -> None:
        """Insert those of many messages, sent together. Raises the error of its library."""
        if self.kept:
            db.executemany(ATTEMPT, [self._row(id, some) for id, some in attempts if some])

    def _row(self, id: str, attempts: Sequence[AttemptRecord]) -> tuple[str, int, str]:
        text = schema.attempts_json(tuple(attempts))
        if self.redactor is not None:
            text = schema.dumps(self.redactor.attempts(_plain(text)))
        return id, int(attempts[0].time * 1e6), text


def _plain(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # Numbers of more than 64 bits.
        return json.loads(text)


def open_notes(options: SpoolOptions, *, make: bool) -> Notes:
    """The notes that these options ask for; with `make`, a redaction key is made where there is none.

    Raises `SpoolError` when there is no key to be had.
    """
    if not options.redact:
        return Notes(kept=options.record)
    try:
        key = (make_key if make else read_key)(options.key_file)
    except KeyFileError as error:
        raise SpoolError(str(error)) from error
    return Notes(kept=options.record, redactor=Redactor(key))
