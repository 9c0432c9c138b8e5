"""Return codes of DNS lists and ranges of them, and which answers can be one at all (RFC 5782 section 2.3)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Octets = tuple[tuple[int, int], ...]

NO_LISTING: Final = ipaddress.IPv4Address("127.0.0.1")
_LOOPBACK_CODES: Final = ipaddress.IPv4Network("127.0.0.0/8")
_ERROR_CODES: Final = ipaddress.IPv4Network("127.255.255.0/24")
_OCTET: Final = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?\Z")

_T = TypeVar("_T")


def parse_code(text: str) -> Octets:
    """A return code or a range of them: ``127.0.0.2``, ``127.0.0.4-7``, ``127.0.*.3``, ``127.0.1.0/24``.

    Raises ValueError for what is not in 127.0.0.0/8.
    """
    if "/" in text:
        network = ipaddress.IPv4Network(text)
        first, last = network[0].packed, network[-1].packed
        octets = tuple(zip(first, last, strict=True))
    else:
        octets = tuple(_parse_octet(part) for part in text.split("."))
    if len(octets) != 4 or octets[0] != (127, 127):
        raise ValueError("expected a return code such as 127.0.0.2, 127.0.0.4-7, 127.0.*.3 or 127.0.1.0/24")
    return octets


def _parse_octet(text: str) -> tuple[int, int]:
    if text == "*":
        return 0, 255
    match = _OCTET.match(text)
    low = int(match[1]) if match else 256
    high = int(match[2] or match[1]) if match else 256
    if not low <= high <= 255:
        raise ValueError(f"{text!r} is no octet of a return code")
    return low, high


def _width(octets: Octets) -> int:
    """How many codes a range holds."""
    width = 1
    for low, high in octets:
        width *= high - low + 1
    return width


@dataclass(frozen=True, slots=True)
class _Range(Generic[_T]):
    octets: Octets
    value: _T
    single: bool


class Ranges(Generic[_T]):
    """Values by return code; where ranges overlap, the narrowest decides."""

    __slots__ = ("_ranges",)

    def __init__(self, values: Mapping[str, _T]) -> None:
        read = [(parse_code(text), value) for text, value in values.items()]
        read.sort(key=lambda item: _width(item[0]))
        self._ranges = tuple(_Range(octets, value, _width(octets) == 1) for octets, value in read)

    def get(self, code: ipaddress.IPv4Address) -> _T | None:
        """The value of the narrowest range with this code. 127.0.0.1 is in no range: only its own entry has it."""
        packed = code.packed
        for known in self._ranges:
            if code == NO_LISTING and not known.single:
                continue
            if all(low <= octet <= high for octet, (low, high) in zip(packed, known.octets, strict=True)):
                return known.value
        return None


def answered(records: Iterable[object]) -> tuple[ipaddress.IPv4Address, ...]:
    """The addresses of an A answer, each once, in order."""
    return tuple(sorted({ipaddress.IPv4Address(record) for record in records if isinstance(record, str)}))


def can_be_listing(code: ipaddress.IPv4Address) -> bool:
    """Whether a list may mean something by it: neither an error code of the list nor the address of something else."""
    return code in _LOOPBACK_CODES and code not in _ERROR_CODES


def is_error(code: ipaddress.IPv4Address) -> bool:
    """Whether it is one of the codes by which lists say that they do not serve us."""
    return code in _ERROR_CODES
