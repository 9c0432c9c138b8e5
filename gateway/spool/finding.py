"""Finding messages in a shard by what stands in them, as SQL over the rows.

A question reads the rows of `message` once, from an id on, in the order of the ids; that is a scan, but one of the
rows alone and not of any content: 100,000 messages take some tenths of a second. Recipients cannot be indexed
without a row more for each of them at every commit (docs/decisions/0002-spool.md).

*Promises*: a row that cannot be read spoils no question. It is found where nothing is asked of what stands in it.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from typing import Any, Final

from gateway.mail.address import parse_mailbox
from gateway.ops.operations import Selection, Waiting, domain_forms
from gateway.spool import schema
from gateway.spool.hands import Hop
from gateway.spool.spool import State

GROUPS: Final = 10_000
_SLOTS: Final = "json_each(CASE WHEN json_valid(m.slots) THEN m.slots ELSE '[]' END) s"
_ENVELOPE: Final = "CASE WHEN json_valid(m.envelope) THEN m.envelope END"
_OPEN: Final = "s.value ->> 'status' IN ('pending', 'deferred')"
# As octets: a function in Python must not fail for text that is no UTF-8.
_HOP: Final = (
    "hop(CAST(s.value ->> 'local' AS BLOB), CAST(s.value ->> 'domain' AS BLOB),"
    f" CAST({_ENVELOPE} ->> 'next_hop' AS BLOB), CAST({_ENVELOPE} ->> '$.sender.local' AS BLOB),"
    f" CAST({_ENVELOPE} ->> '$.sender.domain' AS BLOB))"
)


def find(db: sqlite3.Connection, wanted: Selection, after: str, limit: int, hop: Hop) -> list[tuple[Any, ...]]:
    """Rows of `schema.COLUMNS` and then `claimed`, by id. Raises sqlite3.Error."""
    _know(db, hop)
    text, values = query(wanted, after, limit)
    return db.execute(text, values).fetchall()


def find_to_hasten(db: sqlite3.Connection, wanted: Selection, after: str, limit: int, hop: Hop) -> list[Any]:
    """Id, whether it is claimed, reason and slots of what is queued and meant, by id. Raises sqlite3.Error."""
    _know(db, hop)
    text, values = query(wanted, after, limit, "id, claimed, reason, slots")
    return db.execute(text, values).fetchall()


def query(
    wanted: Selection, after: str, limit: int, columns: str = f"{schema.COLUMNS}, claimed"
) -> tuple[str, tuple[Any, ...]]:
    """The statement and its values."""
    conditions, values = ["m.id > ?"], [after]
    for condition, given in (*of_columns(wanted), *_of_message(wanted), *_of_recipient(wanted)):
        conditions.append(condition)
        values += given
    named = ", ".join(f"m.{name.strip()}" for name in columns.split(","))
    where = " AND ".join(conditions)
    return f"SELECT {named} FROM message m WHERE {where} ORDER BY m.id LIMIT ?", (*values, limit)


_Condition = tuple[str, list[Any]]


def of_columns(wanted: Selection) -> list[_Condition]:
    """Conditions, and their values, on what columns of a message ``m`` say."""
    out: list[_Condition] = []
    if wanted.states:
        marks = ", ".join("?" * len(wanted.states))
        known = ", ".join(f"'{state}'" for state in State)
        corrupt = f" OR m.state NOT IN ({known})" if State.CORRUPT.value in wanted.states else ""
        out.append((f"(m.state IN ({marks}){corrupt})", list(wanted.states)))
    for condition, value in (
        ("m.received < ?", wanted.before),
        ("m.received >= ?", wanted.since),
        ("m.size > ?", wanted.larger),
        ("m.size < ?", wanted.smaller),
    ):
        if value is not None:
            out.append((condition, [value]))
    return out


def _of_message(wanted: Selection) -> list[_Condition]:
    out: list[_Condition] = []
    if wanted.sender == "<>":
        out.append((f"json_type({_ENVELOPE}) = 'object' AND {_ENVELOPE} -> 'sender' IS NULL", []))
    elif wanted.sender:
        out.append(_address(f"{_ENVELOPE} ->> '$.sender.local'", f"{_ENVELOPE} ->> '$.sender.domain'", wanted.sender))
    if wanted.reason:
        said = f"EXISTS (SELECT 1 FROM {_SLOTS} WHERE instr(lower(s.value ->> 'last'), lower(?)))"
        out.append((f"(instr(lower(m.reason), lower(?)) OR {said})", [wanted.reason, wanted.reason]))
    return out


def _of_recipient(wanted: Selection) -> list[_Condition]:
    """One condition: there is a recipient that fits all that is said of recipients."""
    parts: list[_Condition] = []
    local, domain = "s.value ->> 'local'", "s.value ->> 'domain'"
    out: list[_Condition] = []
    for text in filter(None, (wanted.recipient, wanted.domain)):
        parts.append(_address(local, domain, text))
        out += _named("m.slots", text)
    if wanted.next_hop:
        parts.append((f"{_HOP} = ?", [wanted.next_hop]))
    if not parts:
        return []
    conditions = " AND ".join(["s.value ->> 'status' <> 'delivered'", *(condition for condition, _ in parts)])
    values = [value for _, given in parts for value in given]
    return [*out, (f"EXISTS (SELECT 1 FROM {_SLOTS} WHERE {conditions})", values)]


def _address(local: str, domain: str, text: str) -> _Condition:
    """An address, or any at a domain."""
    _, at, after = text.rpartition("@")
    forms = domain_forms(after)
    condition = f"lower({domain}) IN ({', '.join('?' * len(forms))})"
    if not at:
        return condition, [*forms]
    return f"{condition} AND lower({local}) = lower(?)", [*forms, parse_mailbox(text, utf8=True).local]


def _named(column: str, text: str) -> list[_Condition]:
    """The domain stands somewhere in the JSON: that is seen much faster than where."""
    forms = domain_forms(text.rpartition("@")[2])
    if any('"' in form or "\\" in form or not form.isprintable() for form in forms):
        # JSON writes these otherwise.
        return []
    return [(f"({' OR '.join([f'instr(lower({column}), ?)'] * len(forms))})", [*forms])]


def waiting(db: sqlite3.Connection, now: float, hop: Hop) -> list[tuple[Any, ...]]:
    """What waits for each destination: the fields of `Waiting`. Raises sqlite3.Error."""
    _know(db, hop)
    text = (
        f"SELECT {_HOP}, count(*), total(s.value ->> 'due' <= ?), total(m.claimed), total(m.size), min(m.received),"
        " max(CASE WHEN s.value ->> 'status' = 'deferred' THEN s.value ->> 'last' ELSE '' END)"
        f" FROM message m, {_SLOTS} WHERE m.state = 'queued' AND {_OPEN} GROUP BY 1 ORDER BY 2 DESC LIMIT {GROUPS}"
    )
    return db.execute(text, (now,)).fetchall()


def merged(rows: list[tuple[Any, ...]]) -> list[Waiting]:
    """The groups of all shards as one list, the longest first."""
    out: dict[str, Waiting] = {}
    for label, recipients, due, claimed, octets, oldest, last in rows:
        one = Waiting(str(label), int(recipients), int(due), int(claimed), int(octets), float(oldest), str(last or ""))
        old = out.get(one.destination)
        if old is not None:
            one = Waiting(
                one.destination,
                old.recipients + one.recipients,
                old.due + one.due,
                old.claimed + one.claimed,
                old.octets + one.octets,
                min(old.oldest, one.oldest),
                old.last or one.last,
            )
        out[one.destination] = one
    return sorted(out.values(), key=lambda one: (-one.recipients, one.destination))


def _know(db: sqlite3.Connection, hop: Hop) -> None:
    """Teach SQL where mail goes."""

    @lru_cache(maxsize=10_000)
    def label(*octets: bytes | None) -> str:
        return hop(*((one or b"").decode("utf-8", "replace") for one in octets))

    db.create_function("hop", 5, label, deterministic=True)
