"""Where a destination's hosts are: MX records, addresses, the machine's hosts file.

*Fails by*: `Unreachable` values. A domain that says it takes no mail fails for good; trouble with DNS is temporary,
and so is every trouble with a next hop that the configuration names, since then the mistake is ours.

*RFCs*: 5321 section 5.1 (MX, implicit MX, loops), 7505 (null MX), 7672 section 2.2 (what must be validated for DANE).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from gateway.mail.reply import Reply
from gateway.sdk.hosts import from_hosts_file
from gateway.sdk.services import Dns, DnsStatus, Mx
from gateway.transport.rule import Failure
from gateway.transport.transport import Fault, Result, Server

_HOST: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*\Z")
_NUMBER: Final = re.compile(r"(?:.*\.)?[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why no transaction could begin; the outcome of every recipient."""

    result: Result
    reply: Reply
    fault: Fault = Fault.CONNECT
    host: str = ""
    replied: bool = False
    policy: str = ""
    """The TLS rule that applied, where TLS is what failed."""
    failure: Failure | None = None
    """How that policy failed before there was a connection."""
    everywhere: bool = False
    """No other host of the destination need be asked: what is wrong is ours."""


def deferred(
    detail: str,
    text: str,
    host: str = "",
    *,
    fault: Fault = Fault.CONNECT,
    policy: str = "",
    failure: Failure | None = None,
) -> Unreachable:
    """Temporary; `detail` is the enhanced status without its class."""
    reply = Reply(451, detail, text)
    return Unreachable(Result.DEFERRED, reply, fault, host, policy=policy, failure=failure)


def failed(code: int, detail: str, text: str) -> Unreachable:
    """For good, by what the domain itself publishes."""
    return Unreachable(Result.FAILED, Reply(code, detail, text), Fault.PEER)


@dataclass(frozen=True, slots=True)
class Exchangers:
    """The servers of a destination, best first; those of one group are as good as each other.

    `authentic` says that DNSSEC validates that they are. `domains` are the domain, and what it is an alias of.
    """

    groups: tuple[tuple[Server, ...], ...]
    authentic: bool = False
    domains: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [server.host for group in self.groups for server in group]


@dataclass(frozen=True, slots=True)
class Located:
    """A host's addresses. `authentic` says that DNSSEC validates them; `alias` is the name that the host's leads to."""

    addresses: list[str]
    authentic: bool = False
    alias: str = ""


def loops(domain: str) -> Unreachable:
    """We are the domain's best mail host, and know nowhere else to send it."""
    return failed(550, "4.6", f"mail for {domain} loops back to us")


async def exchangers(
    domain: str, dns: Dns, own_name: str, rng: random.Random, port: int = 25
) -> Exchangers | Unreachable:
    """The domain's mail hosts; equal preferences in random order (RFC 5321 section 5.1).

    Our own name, and what is no better, is left out. So is what cannot be the name of a mail host.
    """
    if not domain:
        return deferred("3.5", "the recipient has no domain and no next hop", fault=Fault.OURS)
    answer = await dns.lookup(domain, "MX")
    if answer.status is DnsStatus.FAILED:
        return deferred("4.3", f"DNS: no MX answer for {domain}: {answer.problem}")
    if answer.status is DnsStatus.NXDOMAIN:
        return failed(550, "1.2", f"the domain {domain} does not exist")
    records = [r for r in answer.records if isinstance(r, Mx)]
    if not records:
        records = [Mx(0, domain)]
    elif all(not r.host for r in records):
        return failed(556, "1.10", f"the domain {domain} takes no mail")
    ours = [r.preference for r in records if r.host.lower() == own_name.lower()]
    if ours:
        # Hosts as good as or worse than ourselves would send it back to us.
        records = [r for r in records if r.preference < min(ours)]
        if not records:
            return loops(domain)
    groups: list[tuple[Server, ...]] = []
    seen: set[str] = set()
    for preference, group in groupby(sorted(records, key=lambda r: r.preference), key=lambda r: r.preference):
        names = list(dict.fromkeys(r.host.lower() for r in group))
        rng.shuffle(names)
        hosts = [name for name in names if _is_host(name) and name not in seen]
        seen.update(hosts)
        if hosts:
            groups.append(tuple([Server(name, port, priority=preference) for name in hosts]))
    if not groups:
        return failed(550, "4.4", f"no mail host of {domain} has a name that a host can have")
    domains = (domain, answer.alias) if answer.alias else (domain,)
    return Exchangers(tuple(groups), answer.authentic, domains)


def _is_host(name: str) -> bool:
    """Whether a mail host can have the name: no address (RFC 5321 section 5.1), and not the machine of whoever asks."""
    if name == "localhost" or name.endswith(".localhost"):
        return False
    return bool(_HOST.match(name)) and not _NUMBER.match(name)


async def addresses(host: str, dns: Dns, *, configured: bool) -> list[str] | Unreachable:
    """The addresses that `locate` finds."""
    found = await locate(host, dns, configured=configured)
    return found if isinstance(found, Unreachable) else found.addresses


async def locate(host: str, dns: Dns, *, configured: bool) -> Located | Unreachable:
    """Addresses of a host name or literal, those of IPv4 first.

    `configured` says that our own configuration names the host. Then the machine's hosts file is asked first, as the
    system's resolver would, and a missing name is temporary.
    """
    try:
        return Located([str(ipaddress.ip_address(host))])
    except ValueError:
        pass
    if configured and (found := await asyncio.to_thread(from_hosts_file, host)):
        return Located(found)
    answers = await asyncio.gather(dns.lookup(host, "A"), dns.lookup(host, "AAAA"))
    found = [r for answer in answers for r in answer.records if isinstance(r, str)]
    if found:
        full = [answer for answer in answers if answer.records]
        return Located(found, all(answer.authentic for answer in full), full[0].alias)
    problem = next((a.problem for a in answers if a.status is DnsStatus.FAILED), None)
    if problem is not None:
        return deferred("4.3", f"DNS: no address answer for {host}: {problem}", host)
    if configured:
        return deferred("4.3", f"DNS: the next hop {host} has no address", host)
    return failed(550, "1.2", f"the mail host {host} has no address")
