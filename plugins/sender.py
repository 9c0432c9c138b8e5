"""Can the sender's domain get mail? If not, neither an answer nor a bounce would ever arrive there.

The domain's mail hosts are its MX records, else its own addresses (RFC 5321 section 5.1). A domain whose only MX is
the root says that it takes no mail (RFC 7505). One whose mail hosts all point to loopback, private or reserved
addresses cannot be reached by anybody; it is somebody's way to get past this very check.

*Promises*: at most `HOSTS` mail hosts are looked up, all at once, and everything within `timeout`. What the DNS did not
answer is *unknown*, which is trouble and never evidence: it is never refused for good.

*RFCs*: 5321 (section 5.1 locating the host, 4.5.1 postmaster), 7505 (null MX; section 4.2 its reply), 3463 (X.1.8,
X.4.3), 6890 (special addresses).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import Counter
from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    Address,
    Answer,
    DnsStatus,
    DomainState,
    Duration,
    Mx,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    SenderDomain,
    Stage,
    Transaction,
    Verdict,
    defer,
    finds,
    reject,
)

HOSTS: Final = 10
"""Mail hosts of one domain that are looked up, the most preferred ones."""

DOMAINS = Counter("gatepost_sender_domains", "Sender domains that were looked at.", ["state"])

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Choice = Literal["reject", "defer", "proceed"]

# No mail comes from these, and none gets there from outside. The networks for documentation and benchmarks are not
# here: nobody can be reached there either, and whoever tries Gatepost out uses them.
_BOGUS: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(n)
    for n in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/127",
        "100::/64",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)


class SenderOptions(PluginOptions):
    """Options of `sender`."""

    null_mx: Choice = Field("reject", description="What to do with senders whose domain says that it takes no mail.")
    missing: Choice = Field(
        "reject", description="What to do with senders whose domain does not exist, or has neither MX nor addresses."
    )
    bogus: Choice = Field(
        "reject",
        description="What to do with senders whose mail hosts have loopback, private or reserved addresses only.",
    )
    unknown: Literal["defer", "proceed"] = Field(
        "defer", description="What to do with senders whose domain the DNS says nothing about for now."
    )
    own_networks: tuple[Network, ...] = Field(
        (), description="Networks whose addresses are never bogus, such as private ones that you get mail from."
    )
    skip: frozenset[str] = Field(
        frozenset(), description="Domains that are not asked for, with all below them, in A-labels."
    )
    skip_trusted: bool = Field(True, description="Do not ask for senders of clients in `relay_from`.")
    exempt: frozenset[str] = Field(
        frozenset({"postmaster"}), description="Local parts that any sender may write to (RFC 5321 section 4.5.1)."
    )
    timeout: Duration = Field(8.0, gt=0, le=60, description="Time for all look-ups of a domain; then it is unknown.")

    @field_validator("skip", "exempt")
    @classmethod
    def _lower(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(part.lower().removesuffix(".") for part in value)


_TEXTS: Final = {
    DomainState.MISSING: "sender's domain does not exist",
    DomainState.NONE: "sender's domain has no mail host",
    DomainState.BOGUS: "sender's domain has no mail host that can be reached",
}


class SenderPolicy(Policy):
    """Refuse senders that can get no mail, recipient by recipient, so that the postmaster stays reachable."""

    name = "sender"
    Options = SenderOptions
    options: SenderOptions

    def on_rcpt(self, recipient: Recipient, sender: SenderDomain) -> Verdict:
        options = self.options
        if recipient.address.has_local(options.exempt):
            return PROCEED
        reason = f"{sender.domain}: {sender.problem}" if sender.problem else sender.domain
        match sender.state:
            case DomainState.NULL_MX:
                return _refuse(options.null_mx, "7.27", "sender's domain takes no mail", reason)
            case DomainState.MISSING | DomainState.NONE:
                return _refuse(options.missing, "1.8", _TEXTS[sender.state], reason)
            case DomainState.BOGUS:
                return _refuse(options.bogus, "1.8", _TEXTS[sender.state], reason)
            case DomainState.UNKNOWN if options.unknown == "defer":
                return defer("4.3", "sender's domain cannot be checked now, try again later", code=450, reason=reason)
        return PROCEED


def _refuse(choice: Choice, detail: str, text: str, reason: str) -> Verdict:
    match choice:
        case "reject":
            return reject(detail, text, reason=reason)
        case "defer":
            return defer(detail, text, code=450, reason=reason)
    return PROCEED


@dataclass(frozen=True, slots=True)
class _Host:
    """One mail host's addresses; `failed` says that the DNS did not answer all of it."""

    addresses: tuple[IPAddress, ...]
    failed: bool


class SenderPlugin(Plugin):
    """Looks for the mail hosts of the MAIL FROM domain."""

    name = "sender"
    Options = SenderOptions
    policy = SenderPolicy
    options: SenderOptions

    def patience(self) -> float:
        return self.options.timeout

    @finds(Stage.MAIL)
    async def domain(self, transaction: Transaction) -> SenderDomain:
        """What is known of the domain. The null sender has none, and trusted clients are ours."""
        sender = transaction.sender
        domain = sender.ascii_domain.removesuffix(".") if isinstance(sender, Address) else ""
        if not domain or self._skipped(transaction, domain):
            found = SenderDomain(domain, DomainState.NOT_ASKED)
        elif domain.startswith("["):
            found = self._literal(domain)
        else:
            try:
                async with asyncio.timeout(self.options.timeout):
                    found = await self._look_up(domain)
            except TimeoutError:
                found = SenderDomain(domain, DomainState.UNKNOWN, problem="no answer in time")
        DOMAINS.labels(found.state).inc()
        return found

    def _skipped(self, transaction: Transaction, domain: str) -> bool:
        if transaction.session.trusted and self.options.skip_trusted:
            return True
        labels = domain.split(".")
        return any(".".join(labels[i:]) in self.options.skip for i in range(len(labels)))

    async def _look_up(self, domain: str) -> SenderDomain:
        answer = await self.services.dns.lookup(domain, "MX")
        match answer.status:
            case DnsStatus.FAILED:
                return SenderDomain(domain, DomainState.UNKNOWN, problem=f"MX: {answer.problem or 'no answer'}")
            case DnsStatus.NXDOMAIN:
                return SenderDomain(domain, DomainState.MISSING, problem="no such domain")
            case DnsStatus.NODATA:
                return await self._judge(domain, (domain,), mx=False)
        hosts = tuple(dict.fromkeys(record.host for record in answer.records if isinstance(record, Mx) and record.host))
        if not hosts:
            return SenderDomain(domain, DomainState.NULL_MX, problem="it publishes a null MX")
        return await self._judge(domain, hosts, mx=True)

    async def _judge(self, domain: str, names: Sequence[str], *, mx: bool) -> SenderDomain:
        """What the addresses of its mail hosts say; one host that can be reached is enough."""
        asked = tuple(names[:HOSTS])
        hosts = await asyncio.gather(*(self._addresses(name) for name in asked))
        addresses = [address for host in hosts for address in host.addresses]
        listed = asked if mx else ()
        if any(not self._is_bogus(address) for address in addresses):
            return SenderDomain(domain, DomainState.RESOLVES, listed)
        if any(host.failed for host in hosts):
            return SenderDomain(domain, DomainState.UNKNOWN, listed, "the addresses of its mail hosts: no answer")
        if addresses:
            return SenderDomain(domain, DomainState.BOGUS, listed, f"its mail hosts are at {_some(addresses)}")
        problem = "its mail hosts have no addresses" if mx else "it has neither MX nor addresses"
        return SenderDomain(domain, DomainState.NONE, listed, problem)

    async def _addresses(self, host: str) -> _Host:
        answers = await asyncio.gather(self.services.dns.lookup(host, "A"), self.services.dns.lookup(host, "AAAA"))
        return _Host(tuple(_read(answers)), any(answer.status is DnsStatus.FAILED for answer in answers))

    def _literal(self, literal: str) -> SenderDomain:
        """An address in brackets: there is nothing to look up, but it can be bogus (RFC 5321 section 4.1.3)."""
        address = ipaddress.ip_address(literal[1:-1].removeprefix("ipv6:"))
        if self._is_bogus(address):
            return SenderDomain(literal, DomainState.BOGUS, problem="nobody can be reached at this address")
        return SenderDomain(literal, DomainState.RESOLVES)

    def _is_bogus(self, address: IPAddress) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return _within(address, _BOGUS) and not _within(address, self.options.own_networks)


def _within(address: IPAddress, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _read(answers: Iterable[Answer]) -> Iterable[IPAddress]:
    return (ipaddress.ip_address(record) for answer in answers for record in answer.records if isinstance(record, str))


def _some(addresses: Sequence[IPAddress]) -> str:
    distinct = list(dict.fromkeys(str(address) for address in addresses))
    return ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
