"""The machine's hosts file, for names that the configuration gives."""

from __future__ import annotations

import ipaddress
import os
from functools import lru_cache
from typing import Final

HOSTS_FILE: Final = "/etc/hosts"
_HOSTS_OCTETS: Final = 1 << 20


def from_hosts_file(host: str) -> list[str]:
    """Addresses of a name in the hosts file, IPv4 first; none when it is not there. Reads the file when it changed."""
    try:
        status = os.stat(HOSTS_FILE)
        table = _hosts_table(HOSTS_FILE, status.st_mtime_ns, status.st_size)
    except OSError:
        table = {}
    name = host.rstrip(".").lower()
    # RFC 6761 section 6.3: localhost needs no look-up.
    return list(table.get(name, ("127.0.0.1", "::1") if name == "localhost" else ()))


@lru_cache(maxsize=1)
def _hosts_table(path: str, mtime: int, size: int) -> dict[str, tuple[str, ...]]:
    """The hosts file as name -> addresses, IPv4 first; read again when its time or size changes."""
    table: dict[str, list[str]] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file.read(_HOSTS_OCTETS).splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            try:
                ipaddress.ip_address(address)
            except ValueError:
                continue
            for name in names:
                table.setdefault(name.lower(), []).append(address)
    return {name: tuple(sorted(set(found), key=lambda a: (":" in a, a))) for name, found in table.items()}
