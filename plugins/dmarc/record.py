"""DMARC policy records: tags, defaults, and what is done about wrong ones; and the reporting addresses in `rua`.

Records come from strangers' DNS. One that is too long or not a DMARC record is no record; a tag with a wrong value has
its default, except that a wrong `p`, `sp` or `np` makes the whole record mean "none" where reports are asked for, and
nothing at all where they are not.

*RFCs*: 9989 sections 4.7, 4.8, 4.10.1; 7489 sections 6.3, 6.4, 6.6.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from gateway.sdk import DmarcPolicy
from plugins.dmarc.author import is_domain
from plugins.dmarc.options import Rules

RECORD_OCTETS: Final = 4_000
TAGS: Final = 100
URIS: Final = 20
_VERSION: Final = re.compile(rb"[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_VALUE: Final = re.compile(r"[ -~]*\Z")
_LOCAL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_SIZE: Final = re.compile(r"([0-9]{1,12})([kmgt]?)\Z", re.IGNORECASE)
_FO: Final = re.compile(r"[01ds](?::[01ds]){0,3}\Z", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_POLICIES: Final = {policy.value: policy for policy in DmarcPolicy}


@dataclass(frozen=True, slots=True)
class Destination:
    """One mailto: of `rua`: `address` as local@domain, and the size limit in octets that RFC 7489 knew (0: none)."""

    address: str
    limit: int = 0

    @property
    def host(self) -> str:
        return self.address.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Record:
    """A DMARC record as it applies. `usable` False: no DMARC processing is done by it (`problems` say why)."""

    text: str
    p: DmarcPolicy
    sp: DmarcPolicy
    np: DmarcPolicy
    psd: str = "u"
    testing: bool = False
    pct: int = 100
    strict_dkim: bool = False
    strict_spf: bool = False
    fo: str = "0"
    rua: tuple[Destination, ...] = ()
    usable: bool = True
    problems: tuple[str, ...] = ()


def is_record(octets: bytes) -> bool:
    """Whether a TXT record begins as a DMARC record does and is no longer than one may be."""
    return len(octets) <= RECORD_OCTETS and _VERSION.match(octets) is not None


def parse_record(octets: bytes, rules: Rules = Rules.RFC9989) -> Record | None:
    """The record, or None when this is no DMARC record."""
    if not is_record(octets):
        return None
    text = octets.decode("ascii", "replace").rstrip()
    tags = _tags(text)
    problems: list[str] = []
    old = rules is Rules.RFC7489

    def choice(name: str, default: str, choices: str) -> str:
        value = tags.get(name, default).lower()
        if value in choices.split():
            return value
        problems.append(f"{name} is wrong")
        return default

    wanted = [name for name in (("p", "sp") if old else ("p", "sp", "np")) if name in tags]
    wrong = [name for name in wanted if tags[name].lower() not in _POLICIES]
    if old and "p" not in tags:
        wrong.append("p")
    rua, bad = parse_rua(tags.get("rua", ""))
    problems += [f"{name} is wrong" for name in wrong] + (["rua is wrong"] if bad else [])
    values: dict[str, DmarcPolicy] = {} if wrong else {name: _POLICIES[tags[name].lower()] for name in wanted}
    p = values.get("p", DmarcPolicy.NONE)
    sp = values.get("sp", p)
    return Record(
        text=text,
        p=p,
        sp=sp,
        np=values.get("np", sp),
        psd="u" if old else choice("psd", "u", "y n u"),
        testing=not old and choice("t", "n", "y n") == "y",
        pct=_percentage(tags.get("pct", "100")) if old else 100,
        strict_dkim=choice("adkim", "r", "r s") == "s",
        strict_spf=choice("aspf", "r", "r s") == "s",
        fo=tags["fo"].lower() if _FO.match(tags.get("fo", "")) else "0",
        rua=rua,
        usable=not wrong or bool(rua),
        problems=tuple(problems),
    )


def _tags(text: str) -> dict[str, str]:
    """Tags by lower-case name. Of a tag that comes twice, the first counts; what is no tag is left out."""
    tags: dict[str, str] = {}
    for part in text.split(";", TAGS)[:TAGS]:
        name, sign, value = part.partition("=")
        name = name.strip(" \t").lower()
        if sign and name.isascii() and name.isalpha() and _VALUE.match(value):
            tags.setdefault(name, value.strip())
    return tags


def _percentage(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100 else 100


def parse_rua(value: str) -> tuple[tuple[Destination, ...], bool]:
    """The mailto addresses in order, each once, and whether anything there was wrong. Other schemes are passed over."""
    found: dict[str, Destination] = {}
    wrong = False
    for text in value.split(",", URIS)[:URIS]:
        uri = text.strip()
        if not uri:
            continue
        scheme, colon, rest = uri.partition(":")
        if not colon or not scheme.isalnum():
            wrong = True
        elif scheme.lower() == "mailto":
            if destination := _mailto(rest):
                found.setdefault(destination.address.lower(), destination)
            else:
                wrong = True
    return tuple(found.values()), wrong


def _mailto(rest: str) -> Destination | None:
    path, mark, size = rest.partition("!")
    limit = _SIZE.match(size) if mark else None
    if mark and not limit:
        return None
    # Header fields behind "?" are the publisher's wish for somebody else's mail; nobody needs them here.
    local, sign, domain = unquote(path.partition("?")[0], errors="replace").rpartition("@")
    domain = domain.lower()
    if not sign or len(local) > 64 or not _LOCAL.match(local) or not is_domain(domain) or "." not in domain:
        return None
    return Destination(f"{local}@{domain}", int(limit[1]) * _UNITS[limit[2].lower()] if limit else 0)
