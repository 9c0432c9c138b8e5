"""Finding messages in PostgreSQL by what stands in them.

SQL asks for what the columns say, and for rows that may fit the rest; what their JSON says is looked at here. Nothing
that PostgreSQL is asked reads JSON: one row that is none would spoil the question, and ``\\u0000`` has no place there.

A question reads the rows of `message` page by page in the order of the ids: a scan, but one of the rows alone and not
of any content.

*Promises*: a row that cannot be read spoils no question. It is found where nothing is asked of what stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from gateway.mail.address import parse_mailbox
from gateway.ops.operations import Selection, domain_forms
from gateway.spool import schema
from gateway.spool.finding import GROUPS, of_columns
from gateway.spool.hands import Hop
from gateway.spool.postgres.database import clean
from gateway.spool.writer import Database

PAGE: Final = 500
"""Rows that are read at a time."""
_OPEN: Final = ("pending", "deferred")
_CAPITALS: Final = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}
_WAITING: Final = (
    "SELECT id, claimed, size, received, envelope, slots FROM message"
    f" WHERE state = 'queued' AND id > ? ORDER BY id LIMIT {PAGE}"
)
Row = tuple[Any, ...]


class Question:
    """Which rows fit a selection."""

    def __init__(self, wanted: Selection, hop: Hop) -> None:
        self._wanted = wanted
        self._hop = known(hop)
        conditions, values = ["m.id > ?"], []
        for condition, given in (*of_columns(wanted), *_may_hold(wanted)):
            conditions.append(condition)
            values += given
        columns = ", ".join(f"m.{name.strip()}" for name in schema.COLUMNS.split(","))
        where = " AND ".join(conditions)
        self._text = f"SELECT {columns}, m.claimed FROM message m WHERE {where} ORDER BY m.id LIMIT ?"
        self._ids = f"SELECT m.id FROM message m WHERE {where} ORDER BY m.id LIMIT ?"
        self._values = values
        self._reads = any((wanted.sender, wanted.recipient, wanted.domain, wanted.next_hop, wanted.reason))
        self._sender = None if wanted.sender in ("", "<>") else _Mailbox.of(wanted.sender)
        self._mailboxes = [_Mailbox.of(text) for text in (wanted.recipient, wanted.domain) if text]

    def page(self, db: Database, after: str, limit: int) -> tuple[list[Row], str | None]:
        """Rows of `schema.COLUMNS` and then `claimed`, by id; and after which id it goes on. Raises psycopg.Error."""
        size = PAGE if self._reads else min(limit, PAGE)
        rows = db.execute(self._text, (after, *self._values, size)).fetchall()
        fit = [row for row in rows if self._fits(row)] if self._reads else rows
        return fit[:limit], rows[-1][0] if len(rows) == size and len(fit) < limit else None

    def ids(self, db: Database, after: str) -> tuple[list[str], str | None]:
        """A page of ids alone, and after which it goes on: where the columns say it all, nothing else is read."""
        rows = db.execute(self._text if self._reads else self._ids, (after, *self._values, PAGE)).fetchall()
        fit = [row[0] for row in rows if not self._reads or self._fits(row)]
        return fit, rows[-1][0] if len(rows) == PAGE else None

    def _fits(self, row: Row) -> bool:
        wanted, envelope, slots = self._wanted, _dict(_loads(row[4])), _slots(row[5])
        if wanted.sender == "<>" and (not isinstance(_loads(row[4]), dict) or "sender" in envelope):
            return False
        if self._sender is not None and not self._sender.is_of(_dict(envelope.get("sender"))):
            return False
        if wanted.reason and not self._said(row[9], slots):
            return False
        if not self._mailboxes and not wanted.next_hop:
            return True
        return any(self._means(slot, envelope) for slot in slots)

    def _said(self, reason: str, slots: list[dict[str, Any]]) -> bool:
        text = _lower(self._wanted.reason)
        return text in _lower(reason) or any(text in _lower(_text(slot, "last")) for slot in slots)

    def _means(self, slot: dict[str, Any], envelope: dict[str, Any]) -> bool:
        """Whether all that is said of recipients is true of this one."""
        if _text(slot, "status") in ("", "delivered"):
            return False
        if not all(mailbox.is_of(slot) for mailbox in self._mailboxes):
            return False
        return not self._wanted.next_hop or self._hop(*_route(slot, envelope)) == self._wanted.next_hop


@dataclass(frozen=True, slots=True)
class _Mailbox:
    """An address, or any at a domain, in lower case."""

    domains: tuple[str, ...]
    local: str | None

    @classmethod
    def of(cls, text: str) -> _Mailbox:
        _, at, domain = text.rpartition("@")
        return cls(domain_forms(domain), _lower(parse_mailbox(text, utf8=True).local) if at else None)

    def is_of(self, data: dict[str, Any]) -> bool:
        """Whether it is this address."""
        if _lower(_text(data, "domain")) not in self.domains:
            return False
        return self.local is None or _lower(_text(data, "local")) == self.local


def _may_hold(wanted: Selection) -> list[tuple[str, list[Any]]]:
    """Conditions that what is looked for is among the words of the JSON, where nothing in there is escaped."""
    out: list[tuple[str, list[Any]]] = []
    if wanted.reason:
        said = _among("slots", [_lower(wanted.reason)])
        out.append((f'(strpos(lower(m.reason COLLATE "C"), ?) > 0 OR {said[0]})', [_lower(wanted.reason), *said[1]]))
    if wanted.sender not in ("", "<>"):
        out.append(_among("envelope", _Mailbox.of(wanted.sender).domains))
    out += [_among("slots", _Mailbox.of(text).domains) for text in (wanted.recipient, wanted.domain) if text]
    return out


def _among(column: str, texts: list[str] | tuple[str, ...]) -> tuple[str, list[Any]]:
    found = " OR ".join(f'strpos(lower(m.{column} COLLATE "C"), ?) > 0' for _ in texts)
    # Behind a backslash may be any letter.
    return f"({found} OR strpos(m.{column}, chr(92)) > 0)", list(texts)


@dataclass(slots=True)
class Group:
    """What waits for one destination; see `gateway.ops.operations.Waiting`."""

    recipients: int = 0
    due: int = 0
    claimed: int = 0
    octets: int = 0
    oldest: float = float("inf")
    last: str = ""


def waiting(
    db: Database, after: str, now: float, hop: Hop, living: frozenset[int], groups: dict[str, Group]
) -> str | None:
    """Add a page of queued messages to the groups; gives after which id it goes on. Raises psycopg.Error."""
    rows = db.execute(_WAITING, (after,)).fetchall()
    for _, claimed, size, received, envelope_text, slots_text in rows:
        envelope = _dict(_loads(envelope_text))
        for slot in _slots(slots_text):
            status = slot.get("status")
            if status not in _OPEN:
                continue
            group = groups.setdefault(hop(*_route(slot, envelope)), Group())
            due = slot.get("due")
            group.recipients += 1
            group.due += isinstance(due, int | float) and due <= now
            group.claimed += claimed in living
            group.octets += size
            group.oldest = min(group.oldest, received)
            if status == "deferred":
                group.last = max(group.last, _text(slot, "last"))
    return rows[-1][0] if len(rows) == PAGE else None


def told(groups: dict[str, Group]) -> list[tuple[Any, ...]]:
    """The longest of them, as rows for `gateway.spool.finding.merged`."""
    longest = sorted(groups.items(), key=lambda item: -item[1].recipients)[:GROUPS]
    return [
        (label, group.recipients, group.due, group.claimed, group.octets, group.oldest, group.last)
        for label, group in longest
    ]


def known(hop: Hop) -> Hop:
    """The same, which does not look up again what it was asked lately, and may be asked about lone surrogates."""
    return lru_cache(maxsize=10_000)(lambda *texts: hop(*map(clean, texts)))


def _route(slot: dict[str, Any], envelope: dict[str, Any]) -> tuple[str, str, str, str, str]:
    sender = _dict(envelope.get("sender"))
    told = (slot, "local"), (slot, "domain"), (envelope, "next_hop"), (sender, "local"), (sender, "domain")
    local, domain, next_hop, sender_local, sender_domain = (_text(data, key) for data, key in told)
    return local, domain, next_hop, sender_local, sender_domain


def _loads(text: str) -> Any:
    """What the JSON says; None for none."""
    try:
        return schema.loads(text)
    except schema.MISFITS:
        return None


def _slots(text: str) -> list[dict[str, Any]]:
    found = _loads(text)
    return [slot for slot in found if isinstance(slot, dict)] if isinstance(found, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    return value if isinstance(value, str) else ""


def _lower(text: str) -> str:
    """With the letters of ASCII in lower case, as SQLite has it."""
    return text.lower() if text.isascii() else text.translate(_CAPITALS)
