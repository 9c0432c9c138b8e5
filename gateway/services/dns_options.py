"""Where DNS questions go, and whose word on DNSSEC is taken. Values only: the configuration is made of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

Server = tuple[str, int]
"""Address and port."""


class Dnssec(StrEnum):
    """Which nameservers are believed when they say that they have validated an answer (the AD bit)."""

    LOOPBACK = "loopback"
    """All, when all are on this machine: nobody can write into what they say on its way to us. Otherwise none."""
    TRUST = "trust"
    """All: the operator knows that they validate, and that the way to them is safe."""
    OFF = "off"
    """None."""


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """Where questions go. No nameservers means the system's; `timeout` in seconds is for all tries of a question."""

    nameservers: tuple[Server, ...] = ()
    timeout: float = 5.0
    dnssec: Dnssec = Dnssec.LOOPBACK

    def believes(self, servers: Iterable[Server]) -> bool:
        """Whether the AD bits of these nameservers count.

        One that does not validate would answer what the others refuse as bogus, so it is all of them or none.
        """
        if self.dnssec is Dnssec.LOOPBACK:
            return all(ipaddress.ip_address(host).is_loopback for host, _ in servers)
        return self.dnssec is Dnssec.TRUST


def system_servers(path: Path = Path("/etc/resolv.conf")) -> list[Server]:
    """The first three nameservers of resolv.conf, as the C library takes them; 127.0.0.1 when there are none."""
    servers: list[Server] = []
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                servers.append((str(ipaddress.ip_address(words[1])), 53))
            except ValueError:
                continue  # The C library skips lines that it cannot read, too.
    return servers[:3] or [("127.0.0.1", 53)]
