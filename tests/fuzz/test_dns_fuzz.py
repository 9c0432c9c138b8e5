"""Nothing that a nameserver, or whoever forges one, can send raises or gives a record that was not checked."""

from __future__ import annotations

import asyncio
import ipaddress

import dns.message
import dns.name
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk import Answer, DnsStatus, Mx
from gateway.sdk.testing import ManualClock
from gateway.services.dns import TYPES, DnsOptions, Resolver, parse_name, read_answer
from tests.contract.dnsserver import DnsServer

NAMES = [dns.name.from_text(n) for n in ("host.test.", "a.test.", "b.test.", "."[:1])]

label = st.binary(min_size=1, max_size=63)
names = st.one_of(
    st.sampled_from(NAMES),
    st.lists(label, min_size=1, max_size=3).map(lambda labels: dns.name.Name([*labels, b""])),
)
data = {
    "A": st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n))),
    "AAAA": st.integers(0, 2**128 - 1).map(lambda n: str(ipaddress.IPv6Address(n))),
    "MX": st.tuples(st.integers(0, 65535), names).map(lambda mx: f"{mx[0]} {mx[1]}"),
    "TXT": st.lists(st.binary(max_size=200), min_size=1, max_size=4).map(
        lambda strings: " ".join('"' + "".join(f"\\{b:03}" for b in s) + '"' for s in strings)
    ),
    "CNAME": names.map(str),
    "PTR": names.map(str),
    "NS": names.map(str),
}


@st.composite
def rrsets(draw):
    kind = draw(st.sampled_from(list(data)))
    rdatas = draw(st.lists(data[kind], min_size=1, max_size=1 if kind == "CNAME" else 3))
    return dns.rrset.from_text(draw(names), draw(st.integers(0, 2**31 - 1)), "IN", kind, *rdatas)


def sound(answer: Answer, rdtype: str) -> None:
    assert (answer.status is DnsStatus.OK) == bool(answer.records)
    assert (answer.status is DnsStatus.FAILED) == bool(answer.problem)
    assert 0 <= answer.ttl <= 86400
    for record in answer.records:
        match rdtype:
            case "A":
                ipaddress.IPv4Address(record)
            case "AAAA":
                ipaddress.IPv6Address(record)
            case "TXT":
                assert isinstance(record, bytes)
            case "MX":
                assert isinstance(record, Mx)
                assert record.host == record.host.lower()
                assert record.host.isascii()
            case _:
                assert isinstance(record, str)
                assert record.isascii()
                assert record.isprintable()


@given(st.lists(rrsets(), max_size=6), st.sampled_from(list(TYPES)), st.sampled_from([0, 3, 2, 5]))
def test_any_message_reads_as_a_sound_answer(answers, rdtype, rcode):
    query = dns.message.make_query("host.test", rdtype)
    message = dns.message.make_response(query)
    message.set_rcode(rcode)
    for rrset in answers:
        message.answer.append(rrset)
    parsed = dns.message.from_wire(message.to_wire(max_size=65535))
    sound(read_answer(parsed, NAMES[0], rdtype), rdtype)


@given(st.text(max_size=300))
def test_any_text_is_a_name_or_none(text):
    parsed = parse_name(text)
    name = parsed[0] if parsed else None
    if name is not None:
        assert name.is_absolute()
        assert len(name.to_wire()) <= 255


def test_a_nameserver_gone_mad_gives_failures_and_never_an_exception():
    """Hypothesis chooses what comes back, with the right id put in front; UDP first, then the same over TCP."""

    @given(st.binary(max_size=600), st.booleans())
    def examine(junk: bytes, truncated: bool) -> None:
        async def check() -> Answer:
            server = _Mad(junk, truncated)
            async with server:
                dns_ = Resolver(DnsOptions((server.address,), 0.01), ManualClock())
                return await dns_.lookup("host.test", "A")

        sound(asyncio.run(check()), "A")

    examine()


class _Mad(DnsServer):
    def __init__(self, junk: bytes, truncated: bool) -> None:
        super().__init__()
        self._junk = junk
        self._flags = b"\x82" if truncated else b"\x80"

    def datagrams(self, query: dns.message.Message) -> list[bytes]:
        return [query.id.to_bytes(2, "big") + self._flags + self._junk, self._junk]
