"""Where a destination's hosts are: MX records, addresses, the machine's hosts file.

*Fails by*: `Unreachable` values. A domain that says it takes no mail fails for good; trouble with DNS is temporary,
and so is every trouble with a next hop that the configuration names, since then the mistake is ours.

*RFCs*: 5321 section 5.1 (MX, implicit MX, loops), 7505 (null MX).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from dataclasses import dataclass
from itertools import groupby

from gateway.mail.reply import Reply
from gateway.sdk.hosts import from_hosts_file
from gateway.sdk.services import Dns, DnsStatus, Mx
from gateway.transport.transport import Fault, Result


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why no transaction could begin; the outcome of every recipient."""

    result: Result
    reply: Reply
    fault: Fault = Fault.CONNECT
    host: str = ""
    replied: bool = False


def deferred(detail: str, text: str, host: str = "", *, fault: Fault = Fault.CONNECT) -> Unreachable:
    """Temporary; `detail` is the enhanced status without its class."""
    return Unreachable(Result.DEFERRED, Reply(451, detail, text), fault, host)


def failed(code: int, detail: str, text: str) -> Unreachable:
    """For good, by what the domain itself publishes."""
    return Unreachable(Result.FAILED, Reply(code, detail, text), Fault.PEER)


async def exchangers(domain: str, dns: Dns, own_name: str, rng: random.Random) -> list[str] | Unreachable:
    """Names of the domain's mail hosts, best first; equal preferences in random order (RFC 5321 section 5.1)."""
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
            return failed(550, "4.6", f"mail for {domain} loops back to us")
    names: list[str] = []
    for _, group in groupby(sorted(records, key=lambda r: r.preference), key=lambda r: r.preference):
        hosts = [r.host for r in group if r.host]
        rng.shuffle(hosts)
        names.extend(hosts)
    return list(dict.fromkeys(names))


async def addresses(host: str, dns: Dns, *, configured: bool) -> list[str] | Unreachable:
    """Addresses of a host name or literal; IPv4 first, since that is where senders have their reputation.

    `configured` says that our own configuration names the host. Then the machine's hosts file is asked first, as the
    system's resolver would, and a missing name is temporary.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    if configured and (found := await asyncio.to_thread(from_hosts_file, host)):
        return found
    answers = await asyncio.gather(dns.lookup(host, "A"), dns.lookup(host, "AAAA"))
    found = [r for answer in answers for r in answer.records if isinstance(r, str)]
    if found:
        return found
    problem = next((a.problem for a in answers if a.status is DnsStatus.FAILED), None)
    if problem is not None:
        return deferred("4.3", f"DNS: no address answer for {host}: {problem}", host)
    if configured:
        return deferred("4.3", f"DNS: the next hop {host} has no address", host)
    return failed(550, "1.2", f"the mail host {host} has no address")
