"""Asks DNS lists for the client's address, and refuses by the score."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client import Counter

from gateway.sdk import PROCEED, Dnsbl, Plugin, Policy, Recipient, Session, Stage, Verdict, defer, finds, reject
from gateway.sdk.lint import Check, Remark, Setting, Severity, refuses_public_resolvers
from plugins.dnsbl.options import DnsblOptions, shown
from plugins.dnsbl.probe import Prober
from plugins.dnsbl.tables import VERSION
from plugins.dnsbl.zone import IPAddress, Zone, query_key

HITS = Counter("gatepost_dnsbl_hits", "Clients that a DNS list lists.", ["list"])
FAILURES = Counter("gatepost_dnsbl_failures", "Questions to a DNS list without a usable answer.", ["list"])

_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
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


REFUSED = Check("dnsbl/public-resolver", Severity.WARNING, "a list refuses the public resolver that asks it")


class DnsblPolicy(Policy):
    """Refuse listed clients by their score, recipient by recipient, so that the postmaster stays reachable."""

    name = "dnsbl"
    version = "2"
    Options = DnsblOptions
    options: DnsblOptions

    def on_rcpt(self, recipient: Recipient, dnsbl: Dnsbl) -> Verdict:
        options = self.options
        if recipient.address.has_local(options.exempt):
            return PROCEED
        allowed = sum(hit.weight for hit in dnsbl.hits if hit.weight < 0)
        if options.allow_at is not None and allowed <= options.allow_at:
            return PROCEED
        reason = f"score {dnsbl.score:g} from {', '.join(hit.zone for hit in dnsbl.hits) or 'no list'}"
        if options.reject_at is not None and dnsbl.score >= options.reject_at:
            return reject("7.1", "client is listed", reason=reason)
        if options.defer_at is not None and dnsbl.score >= options.defer_at:
            return defer("7.1", "client is listed, try again later", code=450, reason=reason)
        return PROCEED


class DnsblPlugin(Plugin):
    """Asks DNS lists for the client's address."""

    name = "dnsbl"
    Options = DnsblOptions
    policy = DnsblPolicy
    checks = (REFUSED,)
    options: DnsblOptions

    async def start(self) -> None:
        files = [options.key_file for options in self.options.zones.values()]
        keys = [await asyncio.to_thread(_read_key, file) if file else "" for file in files]
        named = zip(self.options.zones.items(), keys, strict=True)
        self._zones = [Zone(zone, options, key) for (zone, options), key in named]
        self._tables = VERSION if any(zone.table for zone in self._zones) else ""
        self.prober = Prober(self._zones, self.services, self.options.probe, self.options.wait)
        await self.prober.start()

    async def close(self) -> None:
        await self.prober.close()

    def lint(self, setting: Setting) -> Iterable[Remark]:
        asked = [shown(zone) for zone, options in self.options.zones.items() if not options.key_file]
        refusing = [zone for zone in asked if refuses_public_resolvers(zone)]
        for resolver in setting.public_resolvers[:1] if refusing else ():
            yield Remark(
                REFUSED,
                ("zones",),
                f"no answer for {resolver}, which many share, from {', '.join(refusing)}",
                "a listed client sends spam, the list says that it does not serve us, and the spam comes in",
                "write dns: {nameservers: [...]} with a resolver of your own, or get a key of the list",
            )

    def patience(self) -> float:
        return self.options.wait

    @finds(Stage.CONNECT)
    async def listed(self, session: Session) -> Dnsbl:
        """The client's score. Trusted clients are ours and not asked for."""
        client = session.client
        if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
            client = client.ipv4_mapped
        private = any(client.version == network.version and client in network for network in _PRIVATE)
        if session.trusted or (private and not self.options.private):
            return Dnsbl(0.0)
        zones = [zone for zone in self._zones if zone.asks_for(client.version)]
        answers = await asyncio.gather(*(self._ask(zone, client) for zone in zones))
        failed = tuple(zone.shown for zone, codes in zip(zones, answers, strict=True) if codes is None)
        listings = [zone.read(codes) for zone, codes in zip(zones, answers, strict=True) if codes]
        found = [listing for listing in listings if listing]
        for listing in found:
            HITS.labels(listing.hit.zone).inc()
        return Dnsbl(
            score=round(sum(listing.hit.weight for listing in found), 6),
            hits=tuple(listing.hit for listing in found),
            failed=failed,
            meanings=tuple(meaning for listing in found for meaning in listing.meanings),
            tables=self._tables,
        )

    async def _ask(self, zone: Zone, client: IPAddress) -> tuple[ipaddress.IPv4Address, ...] | None:
        """The list's codes, empty when it does not list the client; None when it gave no usable answer."""
        if self.prober.bypasses(zone, client.version):
            return None
        codes: tuple[ipaddress.IPv4Address, ...] | None = None
        try:
            async with asyncio.timeout(self.options.wait):
                codes = zone.usable(await self.services.dns.lookup(f"{query_key(client)}.{zone.zone}", "A"))
        except TimeoutError:
            pass
        if codes is None:
            FAILURES.labels(zone.shown).inc()
        return codes


def _read_key(path: str) -> str:
    """A paid list's key. Raises ValueError, which never holds what the file does."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(256).decode("ascii", "replace").strip()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not _KEY.match(text):
        raise ValueError(f"{path} holds no key: expected letters and digits, at most 63")
    return text.lower()
