"""A fast name server for the benchmark: the same few answers for any number of sender domains, as late as wished.

    python -m tests.bench.zone --key KEYRECORD [--delay 0.05] [--ttl 300]

It answers on 127.0.0.1:53, over UDP only, in a network namespace of the benchmark's own.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import struct
from typing import Protocol, cast

CLIENT = "192.0.2.1"
NAME = "client.bench"
SENDERS = "senders.bench"
"""Below it every name is a domain that sends mail from `CLIENT`, signs with selector ``s`` and asks for reject."""

_TYPES = {1: "A", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA"}


def wire_name(text: str) -> bytes:
    """A name as it stands in a message (RFC 1035 section 3.1), not compressed."""
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


def wire_text(text: str) -> bytes:
    """The data of a TXT record, in strings of 255 octets at most."""
    octets = text.encode()
    parts = [octets[at : at + 255] for at in range(0, len(octets), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts)


class Answers(Protocol):
    """What a `Server` asks."""

    def answer(self, name: str, kind: str) -> tuple[bytes | None, bool]:
        """The record's data, None for none, and whether the name exists."""


class Zone:
    """What is said to each question."""

    def __init__(self, key: str) -> None:
        address = ipaddress.ip_address(CLIENT).packed
        self._client = {
            (ipaddress.ip_address(CLIENT).reverse_pointer, "PTR"): wire_name(NAME),
            (NAME, "A"): address,
        }
        self._sender = {
            ("", "A"): address,
            ("", "MX"): struct.pack("!H", 10) + wire_name(f"mx.{SENDERS}"),
            ("", "TXT"): wire_text(f"v=spf1 ip4:{CLIENT} -all"),
            ("s._domainkey", "TXT"): wire_text(key),
            ("_dmarc", "TXT"): wire_text("v=DMARC1; p=reject; adkim=s; aspf=s"),
        }
        self._known = {NAME, ""} | {name for name, _ in self._sender}

    def answer(self, name: str, kind: str) -> tuple[bytes | None, bool]:
        """The record's data, None for none, and whether the name exists."""
        if (name, kind) in self._client:
            return self._client[name, kind], True
        below = name.removesuffix(f".{SENDERS}") if name.endswith(f".{SENDERS}") else None
        if below is None:
            return None, name in self._known
        inner = below.rpartition(".")[0]
        return self._sender.get((inner, kind)), inner in self._known


class Server(asyncio.DatagramProtocol):
    """Answers each question after `delay` seconds."""

    def __init__(self, zone: Answers, delay: float, ttl: int) -> None:
        self._zone = zone
        self._delay = delay
        self._ttl = ttl
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        reply = self.reply(data)
        if self._delay:
            self._loop.call_later(self._delay, self._transport.sendto, reply, peer)
        else:
            self._transport.sendto(reply, peer)

    def reply(self, query: bytes) -> bytes:
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
            at += 1 + query[at]
        question = query[12 : at + 5]
        kind = struct.unpack_from("!H", query, at + 1)[0]
        found, exists = self._zone.answer(".".join(labels), _TYPES.get(kind, ""))
        flags = 0x8580 if found or exists else 0x8583
        counts = (1, 1, 0, 0) if found else (1, 0, 1, 0)
        head = query[:2] + struct.pack("!HHHHH", flags, *counts) + question
        if found:
            return head + b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self._ttl, len(found)) + found
        soa = (
            wire_name("ns.bench")
            + wire_name("hostmaster.bench")
            + struct.pack("!IIIII", 1, 3600, 600, 86400, self._ttl)
        )
        return head + wire_name("bench") + struct.pack("!HHIH", 6, 1, self._ttl, len(soa)) + soa


async def serve(key: str, delay: float, ttl: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Server(Zone(key), delay, ttl), local_addr=("127.0.0.1", 53))
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--ttl", type=int, default=300)
    options = parser.parse_args()
    asyncio.run(serve(options.key, options.delay, options.ttl))


if __name__ == "__main__":
    main()
