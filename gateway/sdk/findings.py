"""Findings: what plugins found out, as frozen typed values. Policies take them by type.

Those of mail authentication are in `gateway.sdk.authentication`, of other people's filters in `gateway.sdk.handing`, of
what looks into a message in `gateway.sdk.contents`.

An author's plugin defines its own by subclassing `Finding`; fields must be JSON-friendly (numbers, text, enums,
booleans, None, edits, tuples and dataclasses of those), since every finding goes into the decision record.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.mail.edit import EDITS, edit_json

if TYPE_CHECKING:
    from gateway.sdk.authentication import MethodResult

_TEXT_LENGTH: Final = 4000
_VALUES: Final = 1000
_DEPTH: Final = 8
_CUT: Final = "…"


@dataclass(frozen=True, slots=True)
class Finding:
    """Base of all findings."""

    def to_json(self) -> dict[str, Any]:
        """The finding as the decision record keeps it: long texts and lists cut, so that records stay small."""
        room = _Room(_VALUES)
        return {name: room.plain(getattr(self, name), _DEPTH) for name in _fields(type(self))}

    def to_short_json(self) -> dict[str, Any]:
        """As `to_json`, without the fields that are empty, zero or false. For findings that mostly say little."""
        room = _Room(_VALUES)
        values = ((name, getattr(self, name)) for name in _fields(type(self)))
        return {name: room.plain(value, _DEPTH) for name, value in values if value}

    def authentication(self) -> tuple[MethodResult, ...]:
        """What it says in the Authentication-Results field (RFC 8601); by default nothing."""
        return ()

    def idle(self) -> bool:
        """Whether nothing was asked or done for it, so that it says nothing of its plugin's health; by default not.

        A breaker counts such a finding neither as a success nor as a fault.
        """
        return False


_names: dict[type[Any], tuple[str, ...]] = {}


def _fields(kind: type[Any]) -> tuple[str, ...]:
    """Names of the fields of a dataclass, remembered: every finding of every message is asked for them."""
    if (names := _names.get(kind)) is None:
        names = _names[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return names


class _Room:
    """Makes values plain as long as there is room; what comes after is left out, and a mark stands for it."""

    __slots__ = ("_left",)

    def __init__(self, left: int) -> None:
        self._left = left

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, int)) or (type(value) is str and len(value) <= _TEXT_LENGTH):
            return value
        if isinstance(value, Enum):
            return self.plain(value.value, depth)
        if isinstance(value, str):
            return value if len(value) <= _TEXT_LENGTH else value[:_TEXT_LENGTH] + _CUT
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, bytes):
            return self.plain(value[: _TEXT_LENGTH + 1].decode("latin-1"), depth)
        if isinstance(value, EDITS):
            value = edit_json(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {name: getattr(value, name) for name in _fields(type(value))}
        elif isinstance(value, (frozenset, set)):
            value = sorted(value, key=str)
        elif not isinstance(value, (tuple, list, dict)):
            return self.plain(str(value), depth)
        if not depth or self._left <= 0:
            return _CUT
        return self._mapping(value, depth - 1) if isinstance(value, dict) else self._list(value, depth - 1)

    def _mapping(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, inner in value.items():
            if self._left <= 0:
                return {**out, _CUT: _CUT}
            out[str(key)] = self.plain(inner, depth)
        return out

    def _list(self, value: Iterable[Any], depth: int) -> list[Any]:
        out: list[Any] = []
        for inner in value:
            if self._left <= 0:
                return [*out, _CUT]
            out.append(self.plain(inner, depth))
        return out


def is_cut(value: Any) -> bool:
    """Whether something was left out of this, which `Finding.to_json` gave."""
    if isinstance(value, str):
        return value.endswith(_CUT) and len(value) in (len(_CUT), _TEXT_LENGTH + len(_CUT))
    if isinstance(value, dict):
        return _CUT in value or any(map(is_cut, value.values()))
    return isinstance(value, list) and any(map(is_cut, value))


@dataclass(frozen=True, slots=True)
class ListHit:
    """One DNS list that lists the client: the configured name of the list, its return codes, its weight."""

    zone: str
    codes: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Dnsbl(Finding):
    """Client address against DNS block lists (RFC 5782). `score` is the sum of the hits' weights.

    `failed` names lists that gave no usable answer (timeout, SERVFAIL, error codes 127.255.255.x) or are bypassed since
    their probe failed; they never count. `meanings` says in words what the hits' codes mean, where that is known from
    the tables that Gatepost brings, and `tables` is those tables' version (a date; empty when none was used).
    """

    score: float
    hits: tuple[ListHit, ...] = ()
    failed: tuple[str, ...] = ()
    meanings: tuple[str, ...] = ()
    tables: str = ""

    def to_json(self) -> dict[str, Any]:
        """As every finding, without the words where there are none: most clients are on no list."""
        words = ("meanings", "tables")
        return {name: value for name, value in Finding.to_json(self).items() if value or name not in words}


class AccessAction(StrEnum):
    """What a line of an access list says."""

    NONE = "none"
    """No line matched."""
    OK = "ok"
    """Nothing against it; the entry's other lists are not asked."""
    ACCEPT = "accept"
    """Nor are the entries after it, at this stage."""
    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    QUARANTINE = "quarantine"
    DUNNO = "dunno"
    """As if the list had no such line: the next one is asked."""


@dataclass(frozen=True, slots=True)
class Access(Finding):
    """The line of an access list that decided: `where` it stands (``file:line``), what it is about, its pattern.

    `code`, `detail` and `text` are of the reply that it wants, 0 and empty where it leaves that open; of an action that
    is no refusal, `text` is a note for the record.
    """

    action: AccessAction
    where: str = ""
    match: str = ""
    pattern: str = ""
    code: int = 0
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rate(Finding):
    """A token bucket was asked. `wait` is how many seconds until there are enough tokens, 0 when `allowed`.

    `key` says whose bucket it is, `counted` what takes tokens (messages, connections, ...), `limit` how many there are
    in how much time. Without a `key` none was asked.
    """

    allowed: bool
    key: str
    remaining: float
    wait: float
    counted: str = ""
    limit: str = ""

    def idle(self) -> bool:
        return not self.key


class RecipientState(StrEnum):
    """What is known of a recipient."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    ASSUMED = "assumed"
    """The domain is configured to take any recipient."""
    UNAVAILABLE = "unavailable"
    """The store that would know did not answer, or answered 4xx."""
    NOT_OURS = "not-ours"
    """The domain is not one we take mail for (a relay client may still send there)."""


class WhenDown(StrEnum):
    """What to do with a recipient while the store that would know does not answer."""

    DEFER = "defer"
    ACCEPT = "accept"


@dataclass(frozen=True, slots=True)
class RecipientStatus(Finding):
    """Whether the mail store behind us takes this recipient.

    `source` is ``list``, ``callout``, ``ldap``, ``cache``, or ``left-alone`` for a store that was not asked because it
    did not answer just before. `reply` is the store's own reply text: for the record only, never for the wire (it may
    name inner hosts). `when_down` is the choice of the recipient's domain, None when it made none.
    """

    state: RecipientState
    source: str
    reply: str = ""
    when_down: WhenDown | None = None


@dataclass(frozen=True, slots=True)
class EarlyTalk(Finding):
    """Whether the client talked before it was greeted. `waited` in seconds; `remembered` says that a client which
    had passed before was not made to wait."""

    early: bool
    waited: float
    remembered: bool = False


@dataclass(frozen=True, slots=True)
class HeloName(Finding):
    """The name that the client gave at HELO or EHLO, and what speaks against it: a closed list of words in
    `problems` (see the card of `helo`); `resolves` is None when it was not asked for or DNS did not answer."""

    name: str
    problems: tuple[str, ...] = ()
    resolves: bool | None = None


class DomainState(StrEnum):
    """Whether a domain can get mail."""

    RESOLVES = "resolves"
    """It has MX or address records."""
    NULL_MX = "null-mx"
    """It says that it takes no mail (RFC 7505)."""
    NONE = "none"
    """It has neither MX nor address records."""
    MISSING = "missing"
    """There is no such domain."""
    BOGUS = "bogus"
    """Its mail hosts have only addresses that no mail can come from (loopback, private, reserved)."""
    UNKNOWN = "unknown"
    """DNS did not answer: trouble, never evidence."""
    NOT_ASKED = "not-asked"


@dataclass(frozen=True, slots=True)
class SenderDomain(Finding):
    """Whether the MAIL FROM domain can get mail. `domain` in A-labels, empty for the null sender."""

    domain: str
    state: DomainState
    hosts: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Geo(Finding):
    """Where the client's address is, as a database file says: ISO 3166 country, AS number (0 for none), its name."""

    country: str = ""
    asn: int = 0
    organization: str = ""


class GreylistState(StrEnum):
    """Where a client stands with the greylist (RFC 6647)."""

    NEW = "new"
    EARLY = "early"
    """It came again before the delay was over."""
    PASSED = "passed"
    """It came again in time, now for the first time."""
    KNOWN = "known"
    """It had passed before."""
    EXEMPT = "exempt"


@dataclass(frozen=True, slots=True)
class Greylist(Finding):
    """Greylisting of one recipient. `key` says what was counted (a proved domain or a network); `wait` in seconds
    until a retry passes, 0 when it does; `delay` how long a client that passes now had to wait."""

    state: GreylistState
    key: str
    wait: float = 0.0
    delay: float = 0.0
    reason: str = ""

    def idle(self) -> bool:
        return self.state is GreylistState.EXEMPT
