"""Which rules for TLS hold for a host of a destination: what the configuration says, and what the host's domain says.

*Fails by*: `Unreachable` where the mail must wait.

*RFCs*: 7672 section 2.2 (DANE), 8461 sections 2 (DANE goes first) and 5 (MTA-STS), 7435 (opportunistic security),
8689 section 4.2.1 (REQUIRETLS).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gateway.ops import log
from gateway.sdk.services import Dns, Tlsa
from gateway.transport.hosts import Exchangers, Located, Unreachable, deferred, failed
from gateway.transport.mtasts import Mode
from gateway.transport.policies import Policies
from gateway.transport.rule import (
    CLEAR,
    FALLBACK,
    OPPORTUNISTIC,
    REQUIRE,
    STRICT_POLICY,
    Applied,
    Failure,
    Level,
    Rule,
)
from gateway.transport.tlsresults import Results, Session
from gateway.transport.transport import Destination, Kind, Security

_log = log.get()

Rules = tuple[Rule, ...]
"""In the order in which they are tried: the next when TLS by one fails."""

_AT_BEST: Final[Rules] = (OPPORTUNISTIC, FALLBACK)
_UNUSABLE: Final = Rule(Level.ANY, "dane-unusable")
"""There are TLSA records, and none that can be checked: TLS without authentication (RFC 7672 section 2.2)."""


@dataclass(frozen=True, slots=True)
class Protection:
    """The rules for one destination."""

    destination: Destination
    dns: Dns
    policies: Policies | None = None
    """Without them there is no MTA-STS."""
    results: Results | None = None
    """Counts what goes wrong before there is a connection."""

    async def rules(
        self, host: str, located: Located, exchangers: Exchangers, *, port: int = 0, quiet: bool = False
    ) -> Rules | Unreachable:
        """The rules for one of its hosts, at `port` if that is another one. With `quiet`, nothing is counted."""
        if quiet and self.results is not None:
            return await replace(self, results=None).rules(host, located, exchangers, port=port)
        found = await self._rules(host, located, exchangers, port or self.destination.port)
        if isinstance(found, Unreachable) and found.failure is not None:
            self._count(Applied("sts" if found.policy == "mta-sts" else "tlsa"), found.failure, found.reply.text, host)
        return found

    def _count(self, applied: Applied, failure: Failure, reason: str, host: str = "") -> None:
        if self.results is not None and self.destination.mx:
            self.results.count(Session(self.destination.host, applied, failure, reason, host))

    async def _rules(self, host: str, located: Located, exchangers: Exchangers, port: int) -> Rules | Unreachable:
        match self.destination.security:
            case Security.NONE:
                return (CLEAR,)
            case Security.VERIFY:
                destination = self.destination
                return (Rule(Level.CA, "verify", names=destination.tls_names, ca_file=destination.tls_ca),)
            case Security.REQUIRE:
                return await self._mta_sts(host, (REQUIRE,))
            case Security.OPPORTUNISTIC:
                return await self._mta_sts(host, _AT_BEST)
        found = await self._dane(host, located, exchangers, port)
        return await self._mta_sts(host, _AT_BEST) if found is None else found

    async def strict(
        self, host: str, located: Located, exchangers: Exchangers, *, port: int = 0
    ) -> Rules | Unreachable:
        """The rules for mail with REQUIRETLS: only a host that is known to be the right one (RFC 8689 section 4.2.1).

        A mail store on this machine is no next hop in that sense.
        """
        destination = self.destination
        if destination.kind is Kind.LMTP and all(map(_is_loopback, located.addresses)):
            return await self.rules(host, located, exchangers, port=port, quiet=True)
        checked = replace(self, results=None)
        found = await checked._verified(host, located, exchangers, port or destination.port)
        if isinstance(found, Unreachable):
            return found
        if not found:
            text = f"REQUIRETLS: neither DNSSEC nor MTA-STS vouches for the mail hosts of {destination.host}"
            return replace(failed(550, "7.30", text), host=host, policy=STRICT_POLICY)
        return (replace(found[0], policy=STRICT_POLICY),)

    async def _verified(self, host: str, located: Located, exchangers: Exchangers, port: int) -> Rules | Unreachable:
        """A rule by which the host must prove itself; none when nobody vouches for its name."""
        destination = self.destination
        by_name = Rule(Level.CA, STRICT_POLICY, names=destination.tls_names, ca_file=destination.tls_ca)
        if destination.security is Security.VERIFY and (destination.tls_names or not destination.mx):
            return (by_name,)
        if located.authentic or destination.security is Security.DANE_ONLY:
            found = await self._dane(host, located, exchangers, port)
            if isinstance(found, Unreachable) or (found and found[0].level is Level.DANE):
                return found
        by_policy = await self._mta_sts(host, ())
        if by_policy:
            return by_policy
        return (by_name,) if not destination.mx or exchangers.authentic else ()

    async def _mta_sts(self, host: str, otherwise: Rules) -> Rules | Unreachable:
        """What the policy of the domain wants for this mail host; `otherwise` where it wants nothing."""
        domain = self.destination.host
        if self.policies is None or not self.destination.mx:
            return otherwise
        sts = await self.policies.of(domain)
        policy = sts.policy
        if sts.failure is not None:
            self._count(Applied("sts"), sts.failure, sts.problem)
        if policy is None or policy.mode is Mode.NONE:
            return otherwise
        testing = policy.mode is Mode.TESTING
        name = "mta-sts-testing" if testing else "mta-sts"
        applied = Applied("sts", policy.lines, policy.mx)
        rule = Rule(Level.CA, name, ca_file=self.policies.ca_file, applied=applied)
        if policy.names(host):
            return (rule, *otherwise) if testing else (rule,)
        _log.info("mta_sts.stranger", domain=domain, host=host, mode=policy.mode.value)
        if testing:
            self._count(applied, Failure.WRONG_NAME, "the policy does not name it", host)
            return otherwise
        return deferred(
            "7.5",
            f"MTA-STS: the policy of {domain} does not name {host}",
            host,
            policy=name,
            failure=Failure.WRONG_NAME,
        )

    async def _dane(self, host: str, located: Located, exchangers: Exchangers, port: int) -> Rules | Unreachable | None:
        """None when DANE does not apply, and need not."""
        # Its X.509 library takes a while to import, and most gateways never need it.
        from gateway.transport import dane

        destination = self.destination
        policy = destination.security.value
        found: dane.Found | Unreachable | None = None
        # Who could forge the MX records could name a host with TLSA records of his own.
        if exchangers.authentic or not destination.mx:
            found = await dane.find(host, port, located, self.dns)
        if isinstance(found, Unreachable):
            return found
        records = dane.usable(found.records) if found else ()
        if found and records:
            names = tuple(dict.fromkeys((found.base, *exchangers.domains)))
            return (Rule(Level.DANE, policy, found.base, names, records, applied=_published(found.records)),)
        if destination.security is Security.DANE_ONLY:
            what = "no usable TLSA record" if found else "no TLSA record that DNSSEC validates"
            failure = Failure.TLSA_INVALID if found else Failure.DANE_REQUIRED
            return deferred("7.5", f"DANE: {host} has {what}", host, policy=policy, failure=failure)
        return (replace(_UNUSABLE, applied=_published(found.records)),) if found else None


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _published(records: Iterable[Tlsa]) -> Applied:
    return Applied("tlsa", tuple(f"{record} {record.data.hex()}" for record in records))
