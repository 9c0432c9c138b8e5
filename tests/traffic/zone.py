"""The DNS of a made-up day: names, addresses, SPF, DKIM keys, DMARC policies and block lists, as zone lines.

    python -m tests.traffic.zone FILE --port 5353

answers from such a file on loopback, over UDP. Any name server can load it, too.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.zone import Server, wire_name, wire_text
from tests.traffic.corpus import SELECTOR
from tests.traffic.day import Day
from tests.traffic.people import LISTS, Client, Domain, Reverse

_TTL: Final = 3600
_ELSEWHERE: Final = "192.0.2.99"


def zone_lines(day: Day) -> list[str]:
    """All records that go with the day, each as ``NAME TTL IN TYPE DATA``."""
    lines: list[str] = []
    for client in dict.fromkeys(day.people.clients):
        lines += _client(client)
    for domain in dict.fromkeys(day.people.domains):
        lines += _domain(domain, day.key.record)
    # What every list has for those who want to know whether it works (RFC 5782 section 5).
    lines += [_line(f"2.0.0.127.{zone}", "A", "127.0.0.2") for zone in LISTS]
    return lines


def _client(client: Client) -> Iterator[str]:
    address, reverse = client.address, client.address.reverse_pointer
    forward = "A" if address.version == 4 else "AAAA"
    if client.reverse is not Reverse.NONE:
        yield _line(reverse, "PTR", f"{client.name}.")
    yield _line(client.name, *(("A", _ELSEWHERE) if client.reverse is Reverse.FORGED else (forward, str(address))))
    if client.sure:
        yield _line(client.name, "TXT", '"v=spf1 a -all"')
    bare = reverse.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
    for zone in sorted(client.listed):
        yield _line(f"{bare}.{zone}", "A", "127.0.0.2")


def _domain(domain: Domain, key: str) -> Iterator[str]:
    if domain.networks is not None:
        terms = " ".join(f"ip{network.version}:{network}" for network in domain.networks)
        yield _line(domain.name, "TXT", f'"v=spf1 {terms} {domain.otherwise}"')
    if domain.signs:
        yield _line(f"{SELECTOR}._domainkey.{domain.name}", "TXT", f'"{key[:200]}" "{key[200:]}"')
    if domain.dmarc:
        yield _line(f"_dmarc.{domain.name}", "TXT", f'"v=DMARC1; p={domain.dmarc}"')


def _line(name: str, kind: str, data: str) -> str:
    return f"{name}. {_TTL} IN {kind} {data}"


class Records:
    """Zone lines as a server answers from them: one record of a name and type."""

    def __init__(self, lines: list[str]) -> None:
        self._data: dict[tuple[str, str], bytes] = {}
        self._names: set[str] = set()
        for line in lines:
            owner, _, _, kind, data = line.split(maxsplit=4)
            name = owner.removesuffix(".").lower()
            self._data[name, kind] = _wire(kind, data)
            labels = name.split(".")
            self._names.update(".".join(labels[at:]) for at in range(len(labels)))

    def answer(self, name: str, kind: str) -> tuple[bytes | None, bool]:
        """The record's data, None for none, and whether the name exists."""
        return self._data.get((name, kind)), name in self._names


def _wire(kind: str, data: str) -> bytes:
    match kind:
        case "A" | "AAAA":
            return ipaddress.ip_address(data).packed
        case "PTR":
            return wire_name(data.removesuffix("."))
        case "TXT":
            return wire_text("".join(data.split('"')[1::2]))
    raise ValueError(f"no such record here: {kind}")


async def _serve(lines: list[str], port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Server(Records(lines), 0.0, _TTL), local_addr=("127.0.0.1", port))
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("file", type=Path, help="zone lines")
    parser.add_argument("--port", type=int, default=5353)
    options = parser.parse_args()
    asyncio.run(_serve(options.file.read_text().splitlines(), options.port))


if __name__ == "__main__":
    main()
