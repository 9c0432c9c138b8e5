"""DNS through the configured nameservers: a stub resolver on asyncio, with dnspython for the wire format.

*Promises*: every question goes to the configured nameservers and nowhere else. An answer counts only when it comes
from the server that was asked, with our id and our question. TTLs are honoured, 0 included. The cache (its entries and
octets), questions in flight, time per question and length of a CNAME chain are bounded. The same question asked twice
at once goes out once.

*Fails by*: an `Answer` with status FAILED, never by an exception, whatever the network does.

*RFCs*: 1035 (wire), 2181 section 8 (TTL), 2308 (negative caching), 5452 (forged answers), 6698 section
2.1 (TLSA), 6840 section 5.7 (AD in questions), 6891 (EDNS), 7766 (TCP).
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from prometheus_client import Counter

from gateway.mail.address import AddressError, ascii_domain
from gateway.ops import metrics
from gateway.sdk.services import Answer, Clock, DnsStatus, Mx, Record, Tlsa
from gateway.services.dns_options import DnsOptions, Server, system_servers
from gateway.services.tasks import Tasks

__all__ = ["DnsOptions", "Resolver", "Server", "parse_name", "read_answer", "system_servers"]

CACHE_ENTRIES: Final = 10_000
CACHE_OCTETS: Final = 32 << 20
"""Whoever owns a domain makes answers as large as TCP lets him, and as many as he has names for."""
IN_FLIGHT: Final = 1_000
CHAIN: Final = 16
EDNS_PAYLOAD: Final = 1232
MAX_TTL: Final = 86_400.0
MAX_NEGATIVE_TTL: Final = 300.0
FAILURE_TTL: Final = 1.0
ROUNDS: Final = 2
_NO_EDNS: Final = ("FORMERR", "NOTIMP", "BADVERS")
_NAME_CHARACTERS: Final = 1_016  # 254 octets, each written as \DDD

TYPES: Final = {t: dns.rdatatype.from_text(t) for t in ("A", "AAAA", "MX", "TXT", "PTR", "CNAME", "NS", "TLSA")}


@lru_cache(maxsize=256)
def _count(rdtype: str, result: str) -> Counter:
    """The counter of look-ups of this kind; asking the metric for it each time costs more than counting."""
    return metrics.DNS_LOOKUPS.labels(rdtype, result)


@lru_cache(maxsize=4096)
def parse_name(text: str) -> tuple[dns.name.Name, str] | None:
    """The absolute name in A-labels, and its text; None when the text is no name that could be asked for."""
    if not text or len(text) > _NAME_CHARACTERS or text == "@":
        return None
    try:
        name = dns.name.from_text(ascii_domain(text)).canonicalize()
        return name, name.to_text()
    except (AddressError, dns.exception.DNSException, ValueError):
        return None


def read_answer(message: dns.message.Message, name: dns.name.Name, rdtype: str) -> Answer:
    """What a nameserver's message says to the question. Follows CNAMEs inside the message, at most 16."""
    rcode = message.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer(DnsStatus.FAILED, problem=dns.rcode.to_text(rcode))
    authentic = bool(message.flags & dns.flags.AD)
    kind = TYPES[rdtype]
    ttl = MAX_TTL
    chain = ""
    for _ in range(CHAIN + 1):
        found = message.get_rrset(message.answer, name, dns.rdataclass.IN, kind)
        if found:
            records = _records(found)
            return Answer(DnsStatus.OK, records, min(ttl, found.ttl), authentic=authentic, alias=chain)
        alias = message.get_rrset(message.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if not alias:
            status = DnsStatus.NXDOMAIN if rcode == dns.rcode.NXDOMAIN else DnsStatus.NODATA
            return Answer(status, ttl=min(ttl, _negative_ttl(message)), authentic=authentic, alias=chain)
        ttl = min(ttl, alias.ttl)
        name = cast(Any, alias[0]).target.canonicalize()
        chain = _text(name)
    return Answer(DnsStatus.FAILED, problem="CNAME chain is too long")


def _negative_ttl(message: dns.message.Message) -> float:
    """RFC 2308 section 5: the lesser of the SOA's TTL and its minimum; without an SOA it is not kept."""
    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return min(MAX_NEGATIVE_TTL, float(rrset.ttl), float(cast(Any, rrset[0]).minimum))
    return 0.0


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _records(rrset: dns.rrset.RRset) -> tuple[Record, ...]:
    rdatas: list[Any] = list(rrset)
    match rrset.rdtype:
        case dns.rdatatype.A | dns.rdatatype.AAAA:
            return tuple(str(r.address) for r in rdatas)
        case dns.rdatatype.TXT:
            return tuple(b"".join(r.strings) for r in rdatas)
        case dns.rdatatype.MX:
            hosts = [Mx(r.preference, _text(r.exchange)) for r in rdatas]
            return tuple(sorted(hosts, key=lambda mx: (mx.preference, mx.host)))
        case dns.rdatatype.TLSA:
            return tuple(Tlsa(int(r.usage), int(r.selector), int(r.mtype), bytes(r.cert)) for r in rdatas)
        case _:
            return tuple(_text(r.target) for r in rdatas)


def _size(answer: Answer) -> int:
    """Octets that an answer costs in the cache, or so."""
    return 500 + sum(100 + (len(r) if isinstance(r, str | bytes) else 200) for r in answer.records)


class _Datagrams(asyncio.DatagramProtocol):
    """One question on one connected socket: takes the first datagram that is an answer to it."""

    def __init__(self, query: dns.message.Message) -> None:
        self._query = query
        self._id = struct.pack("!H", query.id)
        # The answer; None when the server says that it did not fit (TC).
        self.result: asyncio.Future[dns.message.Message | None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.result.done() or len(data) < 12 or data[:2] != self._id or not data[2] & 0x80:
            return
        if data[2] & 0x02:
            self.result.set_result(None)
            return
        message = _parse(data, self._query)
        # What is no answer to the question may be forged: the true one may still come (RFC 5452 section 9).
        if message is not None:
            self.result.set_result(message)

    def error_received(self, exc: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(OSError("nameserver is not reachable"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.result.done():
            self.result.set_exception(OSError("socket was closed"))


def _parse(data: bytes, query: dns.message.Message) -> dns.message.Message | None:
    try:
        message = dns.message.from_wire(data)
        return message if query.is_response(message) else None
    except (dns.exception.DNSException, ValueError, IndexError, struct.error):
        return None


class Resolver:
    """`gateway.sdk.Dns` over UDP with TCP where an answer does not fit. One per worker; `close` it at the end."""

    def __init__(self, options: DnsOptions, clock: Clock) -> None:
        self._servers = list(options.nameservers) or system_servers()
        self._timeout = options.timeout
        self._believed = options.believes(self._servers)
        self._clock = clock
        self._cache: dict[tuple[str, str], tuple[float, Answer]] = {}
        self._octets = 0
        self._flying: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self._tasks = Tasks()

    async def lookup(self, name: str, rdtype: str) -> Answer:
        """Ask for one of A, AAAA, MX, TXT, PTR, CNAME, NS, TLSA. Raises ValueError for another type, and nothing else.

        What cannot be a name (an empty or overlong label, no A-label form) is answered with NXDOMAIN: it does
        not exist, and asking again will not help.
        """
        if rdtype not in TYPES:
            raise ValueError(f"{rdtype} is no record type that can be asked for")
        parsed = parse_name(name)
        if parsed is None:
            return Answer(DnsStatus.NXDOMAIN)
        absolute, text = parsed
        key = (text, rdtype)
        cached = self._cached(key)
        if cached is not None:
            _count(rdtype, "cached").inc()
            return cached
        task = self._flying.get(key)
        if task is None:
            if len(self._flying) >= IN_FLIGHT:
                _count(rdtype, "overloaded").inc()
                return Answer(DnsStatus.FAILED, problem="overloaded")
            task = self._tasks.start(self._resolve(key, absolute), name=f"dns {rdtype}")
            self._flying[key] = task
        else:
            _count(rdtype, "joined").inc()
        try:
            # Whoever gives up waiting does not take the answer away from the others, nor from the cache.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or (current is not None and current.cancelling()):
                raise
            return Answer(DnsStatus.FAILED, problem="closing")

    async def close(self) -> None:
        """Give up all questions in flight."""
        await self._tasks.cancel()

    def _cached(self, key: tuple[str, str]) -> Answer | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        left = entry[0] - self._clock.monotonic()
        if left <= 0:
            self._drop(key)
            return None
        answer = entry[1]
        return Answer(answer.status, answer.records, left, answer.problem, answer.authentic, answer.alias)

    def _keep(self, key: tuple[str, str], answer: Answer) -> None:
        ttl = FAILURE_TTL if answer.status is DnsStatus.FAILED else answer.ttl
        if ttl <= 0:
            return
        if key in self._cache:
            self._drop(key)
        size = _size(answer)
        while self._cache and (len(self._cache) >= CACHE_ENTRIES or self._octets + size > CACHE_OCTETS):
            self._drop(next(iter(self._cache)))
        self._cache[key] = (self._clock.monotonic() + ttl, answer)
        self._octets += size

    def _drop(self, key: tuple[str, str]) -> None:
        self._octets -= _size(self._cache.pop(key)[1])

    async def _resolve(self, key: tuple[str, str], name: dns.name.Name) -> Answer:
        started = self._clock.monotonic()
        try:
            answer = await self._ask_all(name, key[1])
        finally:
            del self._flying[key]
        self._keep(key, answer)
        metrics.DNS_SECONDS.observe(self._clock.monotonic() - started)
        _count(key[1], answer.status.value).inc()
        return answer

    async def _ask_all(self, name: dns.name.Name, rdtype: str) -> Answer:
        """Ask the servers in order, twice round, until one gives a usable answer or the time is over.

        A server that is slow keeps its chance while the next is asked; after one that fails the next is asked at
        once.
        """
        servers = self._servers * ROUNDS
        started = asyncio.get_running_loop().time()
        pending: set[asyncio.Task[Answer]] = set()
        edns, problem = True, "timeout"
        try:
            for number, server in enumerate(servers, 1):
                attempt = self._attempt(server, name, rdtype, edns)
                pending.add(self._tasks.start(attempt, name=f"dns {rdtype} try"))
                until = started + self._timeout * number / len(servers)
                while (answer := await _next_answer(pending, until)) is not None:
                    if answer.status is not DnsStatus.FAILED:
                        return answer
                    problem = answer.problem
                    edns = edns and problem not in _NO_EDNS
                    if number < len(servers):
                        break
            return Answer(DnsStatus.FAILED, problem="timeout" if pending else problem)
        finally:
            for task in pending:
                task.cancel()

    async def _attempt(self, server: Server, name: dns.name.Name, rdtype: str, edns: bool) -> Answer:
        query = dns.message.make_query(
            name,
            rdtype,
            use_edns=0 if edns else False,
            payload=EDNS_PAYLOAD,
            flags=dns.flags.RD | dns.flags.AD,
        )
        try:
            wire = query.to_wire()
            message = await _over_udp(server, query, wire) or await _over_tcp(server, query, wire)
        except (OSError, EOFError) as error:
            return Answer(DnsStatus.FAILED, problem=str(error) or type(error).__name__)
        if message is None:
            return Answer(DnsStatus.FAILED, problem="garbage over TCP")
        answer = read_answer(message, name, rdtype)
        return answer if self._believed or not answer.authentic else replace(answer, authentic=False)


async def _next_answer(pending: set[asyncio.Task[Answer]], until: float) -> Answer | None:
    """Wait for the next attempt that ends and take it out of `pending`; None when the time is over or none is left."""
    left = until - asyncio.get_running_loop().time()
    if not pending or left <= 0:
        return None
    done, _ = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    pending -= done
    answers = [task.result() for task in done]
    return next((a for a in answers if a.status is not DnsStatus.FAILED), answers[0] if answers else None)


async def _over_udp(server: Server, query: dns.message.Message, wire: bytes) -> dns.message.Message | None:
    """Ask over a new connected socket, so that id and source port are both fresh; None when truncated."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagrams(query), remote_addr=server)
    try:
        transport.sendto(wire)
        return await protocol.result
    finally:
        transport.close()


async def _over_tcp(server: Server, query: dns.message.Message, wire: bytes) -> dns.message.Message | None:
    """Ask over TCP (RFC 7766); None when what came is no answer to the question."""
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(wire)) + wire)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return _parse(await reader.readexactly(size), query)
    finally:
        writer.close()
