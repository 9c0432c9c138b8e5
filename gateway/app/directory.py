"""Who knows an address: the real sides of `Directory` and `Callouts` in `gateway.sdk.services`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.session import plain_address
from gateway.sdk.services import Answer, Callout, CalloutState, Clock, Dns, DnsStatus, Mx, RecipientRule, Store
from gateway.services.ldap import LdapStore
from gateway.smtp.domains import Domains
from gateway.transport.factory import Transports
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.routing import Router, parse_next_hop

_MX: Final = parse_next_hop("mx")
_CALLOUT_TIMEOUTS: Final = Timeouts(connect=5.0, hello=10.0, command=10.0)
_CALLOUT_ADDRESSES: Final = 3
_CALLOUT_HOSTS: Final = 100
"""Foreign domains with which connections are kept, at most, per worker."""


class Directory:
    """Implements `gateway.sdk.services.Directory`. `ldap` and `stores` are keyed by the name of a domain's entry."""

    def __init__(
        self,
        domains: Domains,
        router: Router,
        transports: Transports,
        stores: Mapping[str, Store],
        ldap: Mapping[str, LdapStore],
    ) -> None:
        self._domains = domains
        self._router = router
        self._transports = transports
        self._stores = stores
        self._ldap = ldap

    async def rule(self, address: Address) -> RecipientRule:
        return await self._domains.rule(address)

    def store(self, address: Address) -> Store | None:
        domain = self._domains.find(address)
        return self._stores[domain.name] if domain else None

    async def callout(self, address: Address) -> Callout:
        domain = self._domains.find(address)
        if domain is not None and domain.name in self._ldap:
            return await self._ldap[domain.name].ask(domain.spellings(address))
        return await self._transports.verify(self._router.resolve(address), address)


class MailHosts:
    """Implements `gateway.sdk.services.Callouts`, with transports of its own: few, impatient, and soon closed."""

    def __init__(self, hostname: str, dns: Dns, clock: Clock) -> None:
        options = SmtpOptions(
            hostname,
            _CALLOUT_TIMEOUTS,
            max_idle=5.0,
            messages_per_connection=10,
            max_addresses=_CALLOUT_ADDRESSES,
        )
        self._public = Transports(options, PublicDns(dns), clock, limit=_CALLOUT_HOSTS)
        self._any = Transports(options, dns, clock, limit=_CALLOUT_HOSTS)

    async def ask(self, address: Address, *, sender: Sender = NULL_SENDER, private: bool = False) -> Callout:
        domain = address.ascii_domain
        if not domain or domain.startswith("["):
            return Callout(CalloutState.UNAVAILABLE, "an address literal has no mail hosts to be asked")
        transports = self._any if private else self._public
        return await transports.verify(replace(_MX, host=domain), address, sender)

    async def close(self) -> None:
        """Close what is open."""
        await self._public.close()
        await self._any.close()


class PublicDns:
    """DNS without addresses that are not public: a stranger's MX leads to none of the machines behind us."""

    def __init__(self, dns: Dns) -> None:
        self._dns = dns

    async def lookup(self, name: str, rdtype: str) -> Answer:
        answer = await self._dns.lookup(name, rdtype)
        if answer.status is not DnsStatus.OK or rdtype not in ("A", "AAAA", "MX"):
            return answer
        kept = tuple(record for record in answer.records if _public(record))
        if kept:
            return replace(answer, records=kept)
        if rdtype == "MX":
            # Not NODATA: then the domain's own address would be its mail host (RFC 5321 section 5.1).
            return Answer(DnsStatus.FAILED, problem="no mail host with a public name")
        return replace(answer, status=DnsStatus.NODATA, records=())


def _public(record: object) -> bool:
    """Whether a record leads to a public address, or to a name."""
    if isinstance(record, Mx):
        try:
            return _is_global(record.host)
        except ValueError:
            return True
    return isinstance(record, str) and _is_global(record)


def _is_global(text: str) -> bool:
    ip = plain_address(ipaddress.ip_address(text))
    return ip.is_global and not ip.is_multicast
