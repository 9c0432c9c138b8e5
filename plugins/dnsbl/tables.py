"""What the return codes of the well-known lists mean, and which lists are gone.

A code's `factor` says how much of the zone's weight it stands for: with ``list.dnswl.org: -5`` an address of high trust
weighs -5, one of medium trust -3. Codes that a table does not name do not count: lists use them for samples, for
categories that are not about mail, and to say that they do not serve us.

Each table names the page that it was read from. Raise `VERSION` (a date) with each change; records keep it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

VERSION: Final = "2026-11-26"


class Kind(StrEnum):
    """What a list is for, which says the sign of its weight."""

    BLOCK = "block"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class Code:
    """What a return code means, and how much of the zone's weight it stands for."""

    meaning: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Table:
    """One list's return codes. `errors` are codes of its own by which it says that it does not serve us."""

    kind: Kind
    source: str
    codes: dict[str, Code]
    errors: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Gone:
    """A list that was shut down; `since` is when it was known to be. Its zone and all below it are meant."""

    since: str
    advice: str = "take it out of zones"


_LISTS_ALL: Final = "take it out of zones: it has listed everybody since"

_SPAMHAUS: Final = "docs.spamhaus.com, Datasets, Available Zones"
_SBL: Final = {
    "127.0.0.2": Code("spam source (SBL)"),
    "127.0.0.3": Code("spam source found automatically (CSS)"),
    "127.0.0.9": Code("network not to be routed or peered (DROP)"),
    "127.0.0.30": Code("botnet controller (BCL)"),
}
_XBL: Final = {"127.0.0.4-7": Code("exploited host (XBL)")}
_PBL: Final = {
    "127.0.0.10": Code("sends no mail, says its provider (PBL)"),
    "127.0.0.11": Code("sends no mail, says Spamhaus (PBL)"),
}
_SPAMHAUS_ZONES: Final = {
    "zen": _SBL | _XBL | _PBL,
    "sbl-xbl": _SBL | _XBL,
    "sbl": _SBL,
    "xbl": _XBL,
    "pbl": _PBL,
}
_AUTHBL: Final = {"127.0.0.20": Code("sends with stolen passwords (AuthBL)")}

_MAILSPIKE: Final = "mailspike.org, Usage; levels L5 to H5"
_WAVE: Final = {"127.0.0.2": Code("takes part in a wave of spam")}
_LEVELS: Final = (
    "worst reputation",
    "very bad reputation",
    "bad reputation",
    "suspicious",
    "neutral, probably spam",
    "neutral",
    "neutral, probably legitimate",
    "possibly legitimate",
    "good reputation",
    "very good reputation",
    "excellent reputation",
)


def _mailspike(first: int, last: int, kind: Kind) -> dict[str, Code]:
    """127.0.0.10 (L5, the worst) to 127.0.0.20 (H5, the best); the outermost level stands for the whole weight."""
    sign = 1 if kind is Kind.BLOCK else -1
    return {f"127.0.0.{n}": Code(_LEVELS[n - 10], sign * (15 - n) / 5) for n in range(first, last + 1)}


TABLES: Final[dict[str, Table]] = {
    **{f"{name}.spamhaus.org": Table(Kind.BLOCK, _SPAMHAUS, codes) for name, codes in _SPAMHAUS_ZONES.items()},
    **{
        f"{name}.dq.spamhaus.net": Table(Kind.BLOCK, _SPAMHAUS, codes)
        for name, codes in (_SPAMHAUS_ZONES | {"authbl": _AUTHBL}).items()
    },
    "bl.spamcop.net": Table(Kind.BLOCK, "spamcop.net, SCBL", {"127.0.0.2": Code("spam reported by recipients")}),
    "b.barracudacentral.org": Table(
        Kind.BLOCK, "barracudacentral.org, BRBL (register first)", {"127.0.0.2": Code("spam source")}
    ),
    "psbl.surriel.com": Table(Kind.BLOCK, "psbl.org, How to use", {"127.0.0.2": Code("wrote to a spam trap")}),
    "bl.mailspike.net": Table(
        Kind.BLOCK,
        _MAILSPIKE,
        {f"127.0.0.{n}": Code(_LEVELS[n - 10]) for n in (10, 11, 12)} | _WAVE,
    ),
    "z.mailspike.net": Table(Kind.BLOCK, _MAILSPIKE, _WAVE),
    "rep.mailspike.net": Table(Kind.BLOCK, _MAILSPIKE, _mailspike(10, 20, Kind.BLOCK)),
    "wl.mailspike.net": Table(Kind.ALLOW, _MAILSPIKE, _mailspike(17, 20, Kind.ALLOW)),
    "list.dnswl.org": Table(
        Kind.ALLOW,
        "dnswl.org, How to use; categories 127.0.x, trust in the last octet",
        {
            "127.0.2-255.0": Code("known, no trust", 0.0),
            "127.0.2-255.1": Code("low trust", 0.2),
            "127.0.2-255.2": Code("medium trust", 0.6),
            "127.0.2-255.3": Code("high trust"),
        },
        errors=("127.0.0.255",),
    ),
    "hostkarma.junkemailfilter.com": Table(
        Kind.BLOCK,
        "wiki.junkemailfilter.com, Spam DNS Lists",
        {
            "127.0.0.1": Code("sends no spam (white)", -1.0),
            "127.0.0.2": Code("spam source (black)"),
            "127.0.0.3": Code("sends both (yellow)", 0.0),
            "127.0.0.4": Code("nearly a spam source (brown)", 0.5),
            "127.0.0.5": Code("not to be listed (NOBL)", 0.0),
        },
    ),
    "dnsbl.dronebl.org": Table(
        Kind.BLOCK,
        "dronebl.org, classes; 1 and 2 are tests and samples",
        {
            "127.0.0.3": Code("drone"),
            "127.0.0.5-11": Code("drone or open proxy"),
            "127.0.0.13-17": Code("attacker or exploited host"),
            "127.0.0.19": Code("abused VPN"),
        },
    ),
}
"""By zone, without a key. Not here means: any code in 127.0.0.0/8 but the error codes is a listing."""

GONE: Final[dict[str, Gone]] = {
    "sorbs.net": Gone("2024-06-05"),
    "ix.dnsbl.manitu.net": Gone("2025-01-16"),
    "njabl.org": Gone("2013"),
    "ahbl.org": Gone("2015-01-01", _LISTS_ALL),
    "spamcannibal.org": Gone("2019-05-30", _LISTS_ALL),
    "dsbl.org": Gone("2008-05", _LISTS_ALL),
    "relays.ordb.org": Gone("2008", _LISTS_ALL),
    "dnsbl.inps.de": Gone("2020-05-25"),
    "cbl.abuseat.org": Gone("2021", "write xbl.spamhaus.org or zen.spamhaus.org in its place"),
    "db.wpbl.info": Gone("2025"),
    "virbl.bit.nl": Gone("2017"),
    "virbl.dnsbl.bit.nl": Gone("2017"),
}

KEYED: Final = ("dq.spamhaus.net", "mail.abusix.zone")
"""Zones below these have the list's name in front, and the customer's key in front of that."""


def gone(zone: str) -> tuple[str, Gone] | None:
    """The list that was shut down and that this zone belongs to."""
    return next(((name, what) for name, what in GONE.items() if zone == name or zone.endswith("." + name)), None)
