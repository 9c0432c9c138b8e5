"""One list made ready: what its answers weigh, and what they mean."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.sdk import Answer, DnsStatus, ListHit
from plugins.dnsbl.codes import NO_LISTING, Ranges, answered, can_be_listing
from plugins.dnsbl.options import ZoneOptions, shown
from plugins.dnsbl.tables import Kind

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

FAMILIES: Final = {4: "ipv4", 6: "ipv6"}


def query_key(client: IPAddress) -> str:
    """Octets or nibbles in reverse (RFC 5782 sections 2.1 and 2.4)."""
    return client.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list said of a client: the hit, and what its codes mean as far as that is known."""

    hit: ListHit
    meanings: tuple[str, ...]


class Zone:
    """A list as it is asked: `zone` with its key, which is for the DNS only, and `shown` for everybody else."""

    def __init__(self, zone: str, options: ZoneOptions, key: str = "") -> None:
        bare = zone.lower().removesuffix(".")
        self.zone = f"{key}.{bare}" if key else bare
        self.shown = shown(zone, options.name)
        self.options = options
        table = options.known(zone)
        self.table = table
        default = -1.0 if table and table.kind is Kind.ALLOW else 1.0
        weight = default if options.weight is None and not options.codes else options.weight
        self._codes = Ranges(options.codes)
        self._known = Ranges(table.codes) if table else None
        self._errors = Ranges(dict.fromkeys(table.errors, True)) if table else Ranges[bool]({})
        self._weight = weight

    def asks_for(self, version: int) -> bool:
        """Whether clients of this IP version are asked for."""
        return version == 4 or self.options.ipv6 is not False

    def usable(self, answer: Answer) -> tuple[ipaddress.IPv4Address, ...] | None:
        """The codes of an answer, empty when it lists nobody; None when it is no usable answer at all.

        127.0.0.1 is left in: a few lists mean something by it.
        """
        if answer.status is DnsStatus.FAILED:
            return None
        codes = answered(answer.records)
        usable = tuple(code for code in codes if can_be_listing(code) and not self._errors.get(code))
        return None if codes and not usable else usable

    def read(self, codes: Iterable[ipaddress.IPv4Address]) -> Listing | None:
        """The codes that count and the weight of the heaviest: a list counts once, however much it says."""
        counted: list[str] = []
        meanings: list[str] = []
        heaviest = 0.0
        for code in codes:
            weight, meaning = self._read(code)
            if weight is None:
                continue
            counted.append(str(code))
            heaviest = max(heaviest, weight, key=abs)
            if meaning:
                meanings.append(f"{self.shown} {code}: {meaning}")
        if not counted:
            return None
        return Listing(ListHit(self.shown, tuple(counted), heaviest), tuple(meanings))

    def _read(self, code: ipaddress.IPv4Address) -> tuple[float | None, str]:
        known = self._known.get(code) if self._known else None
        meaning = known.meaning if known else ""
        weight = self._codes.get(code)
        if weight is not None:
            return weight, meaning
        if self._weight is None:
            return None, meaning
        if self._known is not None:
            return (round(self._weight * known.factor, 6) if known else None), meaning
        return (None if code == NO_LISTING else self._weight), meaning
