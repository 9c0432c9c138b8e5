"""An ARC chain: its sets put together from the header section, and what their seals sign.

*RFCs*: 8617 sections 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from plugins.dkim.canonical import relaxed_field
from plugins.dkim.fields import Fields
from plugins.dkim.keys import sha256
from plugins.dkim.signature import Kind, Signature, SignatureError, read_signature, read_tags

RESULTS: Final = "arc-authentication-results"
MESSAGE: Final = "arc-message-signature"
SEAL: Final = "arc-seal"
NAMES: Final = (RESULTS, MESSAGE, SEAL)
MAX_INSTANCE: Final = 50
FIELD_OCTETS: Final = 65_536

_RESULTS_INSTANCE: Final = re.compile(rb"[ \t\r\n]*i[ \t\r\n]*=[ \t\r\n]*([0-9]{1,3})[ \t\r\n]*;")
_INSTANCE: Final = re.compile(r"[0-9]{1,3}\Z")


class ChainError(ValueError):
    """The fields make no chain; ``str(error)`` says why."""


@dataclass(frozen=True, slots=True)
class ArcSet:
    """One instance: the places of its three fields in the header section."""

    results: int
    message: int
    seal: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One instance, read: its ARC-Message-Signature and its ARC-Seal."""

    places: ArcSet
    message: Signature
    seal: Signature


def present(fields: Fields) -> bool:
    """Whether there is any ARC field."""
    return any(fields.named(name) for name in NAMES)


def highest(fields: Fields) -> int:
    """The highest instance that any ARC field names, 0 when none does. For a chain that is none."""
    found = [0]
    for name in NAMES:
        for place in fields.named(name)[: MAX_INSTANCE + 1]:
            try:
                found.append(_instance(fields, name, place))
            except ChainError:
                continue
    return max(found)


def arc_sets(fields: Fields) -> list[ArcSet]:
    """The sets from instance 1 on, wherever their fields stand. Raises `ChainError` unless each is there once."""
    places: dict[str, dict[int, int]] = {}
    for name in NAMES:
        found = places[name] = {}
        if len(fields.named(name)) > MAX_INSTANCE:
            raise ChainError(f"more than {MAX_INSTANCE} sets")
        for place in fields.named(name):
            instance = _instance(fields, name, place)
            if instance in found:
                raise ChainError(f"instance {instance} has two {name} fields")
            found[instance] = place
    count = len(places[SEAL])
    for name in NAMES:
        if set(places[name]) != set(range(1, count + 1)):
            raise ChainError("sets are missing or incomplete")
    return [ArcSet(*(places[name][instance] for name in NAMES)) for instance in range(1, count + 1)]


def _instance(fields: Fields, name: str, place: int) -> int:
    raw = fields.raw(place)
    if len(raw) > FIELD_OCTETS:
        raise ChainError(f"{name} is longer than {FIELD_OCTETS} octets")
    if name == RESULTS:
        match = _RESULTS_INSTANCE.match(raw, raw.index(b":") + 1)
        text = match[1].decode("ascii") if match else ""
    else:
        try:
            text = read_tags(raw)[0].get("i") or ""
        except SignatureError as error:
            raise ChainError(f"{name} is {error}") from None
    if not _INSTANCE.match(text) or not 1 <= int(text) <= MAX_INSTANCE:
        raise ChainError(f"{name} has no instance from 1 to {MAX_INSTANCE}")
    return int(text)


def read_hop(fields: Fields, places: ArcSet) -> Hop:
    """Both signatures of a set. Raises `SignatureError`."""
    return Hop(
        places,
        _read(fields, places.message, Kind.MESSAGE),
        _read(fields, places.seal, Kind.SEAL),
    )


def seal_status(fields: Fields, places: ArcSet) -> str:
    """cv= of a set's seal as it stands, empty when it cannot be read."""
    try:
        return (read_tags(fields.raw(places.seal))[0].get("cv") or "").lower()
    except SignatureError:
        return ""


def _read(fields: Fields, place: int, kind: Kind) -> Signature:
    tags, start = read_tags(fields.raw(place))
    return read_signature(fields.raw(place), place, kind, tags, start)


def seal_hashes(fields: Fields, hops: list[Hop]) -> Iterator[Any]:
    """For each instance, in order, the hash object that its seal signs (section 5.1.1): all sets up to its own.

    The order is by instance, and not by where the fields stand.
    """
    before = sha256()
    for hop in hops:
        own = before.copy()
        own.update(fields.form(hop.places.results, relaxed=True))
        own.update(fields.form(hop.places.message, relaxed=True))
        before = own.copy()
        own.update(relaxed_field(hop.seal.bare).removesuffix(b"\r\n"))
        before.update(fields.form(hop.places.seal, relaxed=True))
        yield own
