"""A nameserver on loopback that answers from zone lines, over UDP and TCP, and misbehaves where it is told to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.support.process import free_port


class Fault(Enum):
    """What a name's answer suffers."""

    SILENT = "no answer at all"
    NXDOMAIN = "NXDOMAIN"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    TRUNCATED = "TC over UDP, the answer over TCP"
    TRUNCATED_TCP_GARBAGE = "TC over UDP, nonsense over TCP"
    TRUNCATED_TCP_CLOSED = "TC over UDP, TCP closes at once"
    WRONG_ID = "a forged answer with another id, and then the true one"
    WRONG_QUESTION = "a forged answer to another question, and then the true one"
    GARBAGE = "octets that are no message, with the right id, and then the true answer"
    ONLY_FORGED = "forged answers and never a true one"
    ONLY_WRONG_ID = "a forged answer with another id, and never a true one"
    ONLY_WRONG_QUESTION = "a forged answer to another question, and never a true one"
    CUT = "the first half of the true answer"
    NO_EDNS = "FORMERR to questions with EDNS"
    LOST_ONCE = "the first question of each name and type is lost"


class DnsServer:
    """``async with DnsServer(lines) as server``; `asked` lists the questions as (name, type, transport)."""

    def __init__(
        self,
        records: Iterable[str | dns.rrset.RRset] = (),
        *,
        faults: Mapping[str, Fault] | None = None,
        delays: Mapping[str, float] | None = None,
        zone: str = "test.",
        negative_ttl: int = 60,
        authentic: bool = False,
    ) -> None:
        self.address = ("127.0.0.1", free_port())
        self.asked: list[tuple[str, str, str]] = []
        self.everything: Fault | None = None
        """What the answers to all names suffer that suffer nothing of their own."""
        self.always = 0.0
        """Seconds for which the answers to all names are kept back that have no delay of their own."""
        self._faults: dict[tuple[dns.name.Name, str], Fault] = {}
        self._delays: dict[dns.name.Name, float] = {}
        for name, fault in (faults or {}).items():
            self.misbehave(name, fault)
        for name, seconds in (delays or {}).items():
            self.keep_back(name, seconds)
        self._authentic = authentic
        soa = f"ns.{zone} hostmaster.{zone} 1 3600 600 86400 {negative_ttl}"
        self._soa = dns.rrset.from_text(zone, 3600, "IN", "SOA", soa)
        self.serve(records)

    def serve(self, records: Iterable[str | dns.rrset.RRset]) -> None:
        """Serve these records and no others: zone lines, or record sets."""
        made: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}
        for record in records:
            rrset = _read(record) if isinstance(record, str) else _copied(record)
            key = (rrset.name.canonicalize(), int(rrset.rdtype))
            there = made.setdefault(key, rrset)
            if there is not rrset:
                there.update(rrset)  # type: ignore[no-untyped-call]  # dnspython gives it no types
        self._records = made

    def change(self, line: str) -> None:
        """Replace the records of a name and type."""
        rrset = _read(line)
        self._records[rrset.name.canonicalize(), rrset.rdtype] = rrset

    def misbehave(self, name: str, fault: Fault | None, rdtype: str = "") -> None:
        """What answers to this name suffer from now on, of one type or of all; None ends it."""
        key = (dns.name.from_text(name).canonicalize(), rdtype)
        if fault is None:
            self._faults.pop(key, None)
        else:
            self._faults[key] = fault

    def keep_back(self, name: str, seconds: float) -> None:
        """Keep answers to this name back for so long from now on."""
        self._delays[dns.name.from_text(name).canonicalize()] = seconds

    def count(self, name: str | None = None, rdtype: str | None = None) -> int:
        """How many questions were asked, for this name and of this type; over TCP they count again."""
        return sum(name in (None, asked) and rdtype in (None, kind) for asked, kind, _ in self.asked)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=self.address)
        self._tcp = await asyncio.start_server(self._serve, *self.address)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        query = dns.message.from_wire(await reader.readexactly(size))
        fault = self._note(query, "tcp")
        await asyncio.sleep(self.delay(query))
        if fault is Fault.TRUNCATED_TCP_GARBAGE:
            writer.write(b"\x00\x05hello")
        elif fault is not Fault.TRUNCATED_TCP_CLOSED:
            wire = _wire(self.answer(query))
            writer.write(struct.pack("!H", len(wire)) + wire)
        await writer.drain()
        writer.close()

    def _note(self, query: dns.message.Message, transport: str) -> Fault | None:
        question = query.question[0]
        name = question.name.canonicalize()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name.to_text(omit_final_dot=True), kind, transport))
        return self._faults.get((name, kind)) or self._faults.get((name, "")) or self.everything

    def datagrams(self, query: dns.message.Message) -> list[bytes]:
        """What goes back over UDP, in order."""
        fault = self._note(query, "udp")
        answer = self.answer(query)
        true = _wire(answer)
        match fault:
            case Fault.SILENT:
                return []
            case Fault.LOST_ONCE if self.asked.count(self.asked[-1]) == 1:
                return []
            case Fault.CUT:
                return [true[: len(true) // 2]]
            case Fault.NXDOMAIN | Fault.SERVFAIL | Fault.REFUSED:
                answer = dns.message.make_response(query)
                answer.set_rcode(dns.rcode.from_text(fault.value))
                return [answer.to_wire()]
            case Fault.TRUNCATED | Fault.TRUNCATED_TCP_GARBAGE | Fault.TRUNCATED_TCP_CLOSED:
                answer = dns.message.make_response(query)
                answer.flags |= dns.flags.TC
                return [answer.to_wire()]
            case Fault.WRONG_ID:
                return [self._forged(query, id=query.id ^ 1), true]
            case Fault.WRONG_QUESTION:
                return [self._forged(query, name="other.test."), true]
            case Fault.GARBAGE:
                return [true[:2] + b"\x80" + b"\xff" * 40, true[:2], b"", true]
            case Fault.ONLY_FORGED:
                return [self._forged(query, id=query.id ^ 1), self._forged(query, name="other.test.")]
            case Fault.ONLY_WRONG_ID:
                return [self._forged(query, id=query.id ^ 1)]
            case Fault.ONLY_WRONG_QUESTION:
                return [self._forged(query, name="other.test.")]
            case Fault.NO_EDNS if query.edns >= 0:
                answer = dns.message.make_response(query)
                answer.set_rcode(dns.rcode.FORMERR)
                return [answer.to_wire()]
        return [true]

    def _forged(self, query: dns.message.Message, id: int | None = None, name: str | None = None) -> bytes:
        owner = name or query.question[0].name.to_text()
        question = dns.message.make_query(owner, query.question[0].rdtype, id=query.id if id is None else id)
        forged = dns.message.make_response(question)
        forged.answer.append(dns.rrset.from_text(owner, 3600, "IN", "A", "203.0.113.66"))
        return forged.to_wire()

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """The true answer: records, the CNAME chain in front of them, NODATA or NXDOMAIN with the SOA."""
        message = dns.message.make_response(query, recursion_available=True)
        if self._authentic:
            message.flags |= dns.flags.AD
        question = query.question[0]
        name = question.name.canonicalize()
        for _ in range(40):
            found = self._records.get((name, question.rdtype))
            if found:
                message.answer.append(found)
                return message
            alias: Any = self._records.get((name, dns.rdatatype.CNAME))
            if not alias:
                break
            if alias not in message.answer:
                message.answer.append(alias)
            name = alias[0].target.canonicalize()
        if not any(known.is_subdomain(name) for known, _ in self._records):
            message.set_rcode(dns.rcode.NXDOMAIN)
        message.authority.append(self._soa)
        return message

    def delay(self, query: dns.message.Message) -> float:
        """Seconds for which the answer is kept back."""
        return self._delays.get(query.question[0].name.canonicalize(), self.always)


def _wire(message: dns.message.Message) -> bytes:
    """With the records in the order in which they were given: tests may depend on it. However large it is."""
    return message.to_wire(max_size=65_535, want_shuffle=False)


def _read(line: str) -> dns.rrset.RRset:
    name, ttl, _, rdtype, rdata = line.split(maxsplit=4)
    return dns.rrset.from_text(name, int(ttl), "IN", rdtype, rdata)


def _copied(rrset: dns.rrset.RRset) -> dns.rrset.RRset:
    return rrset.copy()  # type: ignore[no-untyped-call, no-any-return]  # dnspython gives it no types


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        datagrams = self._server.datagrams(query)
        asyncio.get_running_loop().call_later(self._server.delay(query), self._send, datagrams, addr)

    def _send(self, datagrams: list[bytes], addr: Any) -> None:
        for datagram in datagrams:
            self._transport.sendto(datagram, addr)
