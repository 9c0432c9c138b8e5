"""DNS block and allow lists: is the client's address listed, and how much does that weigh?

Lists are asked all at once. Only answers in 127.0.0.0/8 count; 127.0.0.1 and 127.255.255.x are a list's way of
saying that it did not understand or does not serve us, and anything outside 127.0.0.0/8 is a parked domain. None of
these is ever a listing. A list that does not answer does not count, and the others do.

*RFCs*: 5782 (section 2.1 IPv4, 2.4 IPv6, 2.3 answers, 5 test entries).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import Field, FiniteFloat, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    Dnsbl,
    DnsStatus,
    Duration,
    ListHit,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Session,
    Stage,
    Verdict,
    defer,
    finds,
    reject,
)

_ZONE = re.compile(r"(?=.{1,180}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)+[A-Za-z0-9-]{1,63}\Z")
_OCTET = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?\Z")
# A paid list's key is the first label: long, and a mix of letters and digits.
_KEY_LABEL = re.compile(r"(?=[a-z0-9]*[0-9])(?=[a-z0-9]*[a-z])[a-z0-9]{16,63}\.(?=.*\.)", re.IGNORECASE)

_LOOPBACK_CODES: Final = ipaddress.IPv4Network("127.0.0.0/8")
_ERROR_CODES: Final = ipaddress.IPv4Network("127.255.255.0/24")
_NO_LISTING: Final = ipaddress.IPv4Address("127.0.0.1")
# Where no public list has anything to say. Not `is_private`: that holds documentation and benchmark networks, too.
_PRIVATE: Final = tuple(
    ipaddress.ip_network(n)
    for n in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::/127",
        "fc00::/7",
        "fe80::/10",
    )
)

Octets = tuple[tuple[int, int], ...]


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


class ZoneOptions(OptionsModel):
    """One list. Written as a bare number, it is the weight."""

    weight: FiniteFloat | None = Field(
        None, description="Weight of any code that `codes` does not name. Default 1 without `codes`; with them, none."
    )
    codes: dict[str, FiniteFloat] = Field(
        {}, description="Return code or range -> weight; the narrowest range decides."
    )
    name: str = Field("", max_length=100, description="Name in records and logs. Default: the zone, without its key.")

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @field_validator("codes")
    @classmethod
    def _readable(cls, value: dict[str, float]) -> dict[str, float]:
        for text in value:
            parse_code(text)
        return value


class DnsblOptions(PluginOptions):
    """Options of `dnsbl`."""

    zones: dict[str, ZoneOptions] = Field(
        min_length=1, max_length=50, description="Lists to ask: zone -> weight. Allow lists weigh less than 0."
    )
    reject_at: FiniteFloat | None = Field(1.0, description="Refuse for good from this score on; null never does.")
    defer_at: FiniteFloat | None = Field(None, description="Refuse for now from this score on; null never does.")
    wait: Duration = Field(3.0, gt=0, description="Time for one list; after it the list counts as failed.")
    private: bool = Field(True, description="Ask for private and loopback client addresses, too.")
    exempt: frozenset[str] = Field(
        frozenset({"postmaster"}), description="Local parts that listed clients may write to (RFC 5321 section 4.5.1)."
    )

    @field_validator("zones")
    @classmethod
    def _names(cls, value: dict[str, ZoneOptions]) -> dict[str, ZoneOptions]:
        for zone in value:
            if not _ZONE.match(zone):
                raise ValueError("a zone is a domain name of at most 180 characters")
        return value

    @field_validator("exempt")
    @classmethod
    def _lower(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(part.lower() for part in value)


class DnsblPolicy(Policy):
    """Refuse listed clients by their score, recipient by recipient, so that the postmaster stays reachable."""

    name = "dnsbl"
    Options = DnsblOptions
    options: DnsblOptions

    def on_rcpt(self, recipient: Recipient, dnsbl: Dnsbl) -> Verdict:
        if recipient.address.local.lower() in self.options.exempt:
            return PROCEED
        reason = f"score {dnsbl.score:g} from {', '.join(hit.zone for hit in dnsbl.hits) or 'no list'}"
        if self.options.reject_at is not None and dnsbl.score >= self.options.reject_at:
            return reject("7.1", "client is listed", reason=reason)
        if self.options.defer_at is not None and dnsbl.score >= self.options.defer_at:
            return defer("7.1", "client is listed, try again later", code=450, reason=reason)
        return PROCEED


class _Zone:
    """A list made ready: how it is shown, and what its codes weigh."""

    def __init__(self, zone: str, options: ZoneOptions) -> None:
        self.zone = zone.lower()
        self.shown = options.name or _KEY_LABEL.sub("", self.zone, count=1)
        default = 1.0 if options.weight is None and not options.codes else options.weight
        ranges = [(parse_code(text), weight) for text, weight in options.codes.items()]
        self._ranges = sorted(ranges, key=lambda item: _width(item[0]))
        self._default = default

    def weigh(self, codes: Iterable[str]) -> tuple[tuple[str, ...], float]:
        """The codes that count and the weight of the heaviest: a list counts once, however much it says."""
        counted: list[str] = []
        heaviest = 0.0
        for code in codes:
            weight = self._weight(code)
            if weight is not None:
                counted.append(code)
                heaviest = max(heaviest, weight, key=abs)
        return tuple(counted), heaviest

    def _weight(self, code: str) -> float | None:
        octets = ipaddress.IPv4Address(code).packed
        for ranges, weight in self._ranges:
            if all(low <= octet <= high for octet, (low, high) in zip(octets, ranges, strict=True)):
                return weight
        return self._default


class DnsblPlugin(Plugin):
    """Asks DNS lists for the client's address."""

    name = "dnsbl"
    Options = DnsblOptions
    policy = DnsblPolicy
    options: DnsblOptions

    async def start(self) -> None:
        self._zones = [_Zone(zone, options) for zone, options in self.options.zones.items()]

    @finds(Stage.CONNECT)
    async def listed(self, session: Session) -> Dnsbl:
        """The client's score. Trusted clients are ours and not asked for."""
        client = session.client
        if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
            client = client.ipv4_mapped
        private = any(client.version == network.version and client in network for network in _PRIVATE)
        if session.trusted or (private and not self.options.private):
            return Dnsbl(0.0)
        key = _query_key(client)
        answers = await asyncio.gather(*(self._ask(zone, key) for zone in self._zones))
        hits: list[ListHit] = []
        failed: list[str] = []
        for zone, codes in zip(self._zones, answers, strict=True):
            if codes is None:
                failed.append(zone.shown)
                continue
            counted, weight = zone.weigh(codes)
            if counted:
                hits.append(ListHit(zone.shown, counted, weight))
        return Dnsbl(round(sum(hit.weight for hit in hits), 6), tuple(hits), tuple(failed))

    async def _ask(self, zone: _Zone, key: str) -> list[str] | None:
        """The list's codes, empty when it does not list the client; None when it gave no usable answer."""
        try:
            async with asyncio.timeout(self.options.wait):
                answer = await self.services.dns.lookup(f"{key}.{zone.zone}", "A")
        except TimeoutError:
            return None
        if answer.status is DnsStatus.FAILED:
            return None
        codes = sorted(ipaddress.IPv4Address(record) for record in answer.records if isinstance(record, str))
        usable = [code for code in codes if code in _LOOPBACK_CODES and code not in _ERROR_CODES]
        if codes and not usable:
            return None
        return [str(code) for code in usable if code != _NO_LISTING]


def _query_key(client: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Octets or nibbles in reverse (RFC 5782 sections 2.1 and 2.4)."""
    return client.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
