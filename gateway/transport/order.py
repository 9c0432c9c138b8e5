"""In which order addresses are tried: families in turn, the preferred one first.

*RFCs*: 8305 section 4 (interleaved families), 5321 section 5.1 (a host's addresses in the order in which they came).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import chain, zip_longest
from typing import Final

SHARE: Final = 4
"""Addresses of one host that are tried while other hosts may still be reached: one with very many does not use up the
attempt."""


class Families(StrEnum):
    """Which addresses are used, and which first (`routes.addresses`)."""

    IPV4_FIRST = "ipv4-first"
    IPV6_FIRST = "ipv6-first"
    IPV4 = "ipv4"
    IPV6 = "ipv6"


def order(addresses: Sequence[str], families: Families = Families.IPV4_FIRST) -> list[str]:
    """A host's addresses as they are tried, each once. Of one family they stay in their order."""
    known = dict.fromkeys(addresses)
    four, six = [a for a in known if ":" not in a], [a for a in known if ":" in a]
    match families:
        case Families.IPV4:
            return four
        case Families.IPV6:
            return six
        case Families.IPV6_FIRST:
            four, six = six, four
    return [a for a in chain.from_iterable(zip_longest(four, six)) if a is not None]
