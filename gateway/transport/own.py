"""Which addresses are our own: mail that an MX record sends there would come back to us.

*RFCs*: 5321 section 5.1 (the host's own entry in the list), 6890 section 2.2 (addresses that nobody has).
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from gateway.mail.session import IPAddress, plain_address

_NOBODYS: Final = {4: "240.0.0.1", 6: "100::1"}
"""Nobody has these. Where they can be bound to, the system lets processes bind to anything, and that tells nothing."""


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """`addresses` are in their shortest form. `everywhere` holds 4 and 6 where we listen on all addresses we have."""

    addresses: frozenset[str] = frozenset()
    everywhere: frozenset[int] = frozenset()

    def has(self, address: str) -> bool:
        """Whether a connection to this IP address would reach us."""
        ip = plain_address(ipaddress.ip_address(address))
        if ip.is_unspecified or str(ip) in self.addresses:
            # The system takes 0.0.0.0 and :: for itself.
            return True
        return ip.version in self.everywhere and is_of_this_machine(ip)


NOWHERE: Final = OwnAddresses()


def is_of_this_machine(ip: IPAddress) -> bool:
    """Whether an interface of this machine has the address."""
    return _binds(ip) and not _binds(ipaddress.ip_address(_NOBODYS[ip.version]))


def _binds(ip: IPAddress) -> bool:
    try:
        # Nothing is sent, and no port is held.
        with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True
