"""Look-ups in an LDAP directory: filters that no address can break out of, and servers that are none."""

from __future__ import annotations

import asyncio
import re
import time
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldap3.operation.search import compile_filter, parse_filter

from gateway.mail.address import Address, AddressError, parse_mailbox
from gateway.sdk.services import Callout, CalloutState
from gateway.services.ldap import LdapStore
from gateway.services.ldap_options import LdapOptions, LdapServer, check_dn, check_filter, escape, fill, parse_uri
from tests.support.process import free_port
from tests.support.slapd import Babbler

ANNA = parse_mailbox("anna@example.org")


def value_of(filter: str) -> bytes:
    """The value that a filter of one equality match carries on the wire, as ldap3 encodes it."""
    root = parse_filter(filter, None, False, False, None, False)
    compiled = compile_filter(root.elements[0])
    assert compiled.getName() == "equalityMatch", filter
    return bytes(compiled.getComponent()["assertionValue"])


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_whatever_stands_in_a_value_it_stays_that_value(text):
    assert value_of(f"(mail={escape(text)})") == text.encode()


@given(
    st.one_of(
        st.from_regex(r"\A\"[ -~]{1,20}\"\Z"),
        st.text(st.sampled_from('ab*()\\&|!=~<>:;,.+#"\0 \x7fäß€'), min_size=1, max_size=20).map(lambda t: f'"{t}"'),
        st.from_regex(r"\A[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}\Z"),
    ),
    st.sampled_from(["example.org", "bücher.example", "[192.0.2.1]", "x" * 60 + ".example"]),
)
def test_no_address_breaks_out_of_the_filter(local, domain):
    try:
        address = parse_mailbox(f"{local}@{domain}", utf8=True)
    except AddressError:
        return
    assert value_of(fill("(mail=%s)", address)) == address.key.encode()
    both = fill("(&(objectClass=person)(|(uid=%u)(mail=%s))(!(o=%d)))", address)
    root = parse_filter(both, None, False, False, None, False).elements[0]
    assert [len(root.elements), len(root.elements[1].elements), len(root.elements[2].elements)] == [3, 2, 1]
    assert root.elements[1].elements[0].assertion["attr"] == "uid"


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("(mail=%s)", "(mail=anna+x@xn--bcher-kva.example)"),
        ("(uid=%u)", "(uid=anna+x)"),
        ("(&(uid=%u)(o=%d)(cn=100%%))", "(&(uid=anna+x)(o=xn--bcher-kva.example)(cn=100%))"),
    ],
)
def test_placeholders(template, filled):
    assert fill(template, Address("Anna+x", "Bücher.example")) == filled


def test_a_star_in_an_address_is_a_star():
    assert fill("(mail=%s)", parse_mailbox("*@example.org")) == r"(mail=\2a@example.org)"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("mail=%s", "no LDAP filter"),
        ("(mail=%s", "no LDAP filter"),
        ("(mail=%s))", "no LDAP filter"),
        ("()", "names no recipient"),
        ("(%s)", "no LDAP filter"),
        ("(&(mail=%s)(uid=x)", "no LDAP filter"),
        ("(mail=anna@example.org)", "names no recipient"),
        ("(o=%d)", "names no recipient"),
        ("(mail=%x)", "'%x' is no placeholder"),
        ("(mail=%s)(cn=100%)", "'%)' is no placeholder"),
    ],
)
def test_a_filter_that_is_none_is_refused(template, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        check_filter(template)


@pytest.mark.parametrize("text", ["people", "=", "ou=people,dc", "ou=a,,dc=b"])
def test_a_name_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is no distinguished name"):
        check_dn(text)
    check_dn("ou=people,dc=example,dc=org")


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("ldap://127.0.0.1", LdapServer("127.0.0.1", 389)),
        ("ldap://LDAP.example.org:1389/", LdapServer("ldap.example.org", 1389)),
        ("ldaps://ldap.example.org", LdapServer("ldap.example.org", 636, True)),
        ("ldaps://[2001:DB8::1]:637", LdapServer("2001:db8::1", 637, True)),
    ],
)
def test_a_uri_says_which_server(text, server):
    assert parse_uri(text) == server
    assert parse_uri(str(server)) == server


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:389",
        "ldapi:///run/slapd",
        "http://ldap.example.org",
        "ldap://",
        "ldap://ldap.example.org:0",
        "ldap://ldap.example.org:65536",
        "ldap://[127.0.0.1]",
        "ldap://-x-",
        "ldap://ldap.example.org/dc=example?mail?sub",
        "ldap://reader:secret@ldap.example.org",
    ],
)
def test_a_uri_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"LDAP server|no IPv6|host name|port"):
        parse_uri(text)


async def loopback(host: str) -> Sequence[str]:
    return ["127.0.0.1"]


def ask(port: int, *more: int, timeout: float = 1.0) -> tuple[Callout, float]:
    """One question to a server on this port, or those; gives the answer and the seconds it took."""

    async def main() -> tuple[Callout, float]:
        servers = tuple(LdapServer("127.0.0.1", p) for p in (port, *more))
        store = LdapStore(LdapOptions(servers, "dc=example", timeout=timeout, connect_timeout=timeout), loopback)
        begun = time.monotonic()
        answer = await store.ask([ANNA])
        took = time.monotonic() - begun
        await store.close()
        return answer, took

    return asyncio.run(main())


@pytest.fixture
def babbler(request):
    """A server that speaks nonsense."""
    answer, *every = request.param
    server = Babbler(answer, every=every[0] if every else 0.0)
    yield server
    server.stop()


DONE = b"\x30\x0c\x02\x01\x01\x65\x07\x0a\x01\x00\x04\x00\x04\x00"
NONSENSE = {
    "smtp": (b"220 mx.example.org ESMTP\r\n",),
    "endless": (b"\x30\x84\x7f\xff\xff\xff" + b"x" * 4096,),
    "an absurd length": (b"\x30\xff" + b"\xff" * 4096,),
    "indefinite": (b"\x30\x80" * 2000,),
    "the wrong question": (DONE.replace(b"\x02\x01\x01", b"\x02\x01\x7f", 1),),
    "no message in it": (b"\x30\x05\x02\x01\x01\x7f\x7f",),
    "nested": (b"\x30\x82\x20\x00" + b"\x30\x82\x10\x00" * 2048,),
    "zeros": (b"\0" * 4096,),
    "one octet": (b"\x30",),
}


@pytest.mark.parametrize("babbler", NONSENSE.values(), ids=NONSENSE.keys(), indirect=True)
def test_a_server_that_speaks_nonsense_is_down(babbler):
    answer, took = ask(babbler.port)
    assert (answer.state, answer.down) == (CalloutState.UNAVAILABLE, True)
    assert str(babbler.port) in answer.reply
    assert took < 5


@given(st.binary(min_size=1, max_size=60).map(lambda tail: b"\x30" + bytes([len(tail)]) + tail))
def test_whatever_an_answer_holds_reading_it_ends_in_an_answer_or_in_one_kind_of_trouble(message):
    import ldap3

    from gateway.services.ldap_link import Link, LinkError, _Bounded

    class Wire:
        """A socket with one message in it."""

        data = [message]

        def settimeout(self, seconds: float) -> None: ...
        def sendall(self, data: bytes) -> None: ...
        def shutdown(self, how: int) -> None: ...
        def close(self) -> None: ...
        def recv(self, octets: int) -> bytes:
            return self.data.pop() if self.data else b""

    connection = ldap3.Connection(ldap3.Server("127.0.0.1", get_info=ldap3.NONE), check_names=False)
    strategy = _Bounded(connection)
    strategy.attach(Wire())  # type: ignore[arg-type]
    link = Link(LdapServer("127.0.0.1", 389), connection, strategy)
    try:
        link.search(LdapOptions((), "dc=example"), "(mail=x)", time.monotonic() + 5)
    except LinkError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("babbler", [(DONE, 0.05)], indirect=True)
def test_a_server_that_drips_has_no_longer_than_the_deadline(babbler):
    answer, took = ask(babbler.port, timeout=0.3)
    assert answer.state is CalloutState.UNAVAILABLE
    assert took < 3


@pytest.mark.parametrize("babbler", [(b"\x30\x84\x00\x00\xff\x00" + b"x" * 0xFF00 * 40,)], indirect=True)
def test_an_answer_has_a_bound(babbler):
    tracemalloc.start()
    answer, _ = ask(babbler.port)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.state is CalloutState.UNAVAILABLE
    assert peak < 4 << 20


def test_where_nobody_listens_the_directory_is_down_and_every_server_was_tried():
    ports = free_port(), free_port()
    answer, _ = ask(*ports)
    assert answer == Callout(
        CalloutState.UNAVAILABLE, f"ldap://127.0.0.1:{ports[1]}: connect to 127.0.0.1: Connection refused", down=True
    )


def test_a_name_that_does_not_resolve_is_trouble_and_no_answer():
    async def nowhere(host: str) -> Sequence[str]:
        raise OSError(f"no address for {host}")

    async def main() -> Callout:
        store = LdapStore(LdapOptions((LdapServer("ldap.example.org", 389),), "dc=example"), nowhere)
        answer = await store.ask([ANNA])
        await store.close()
        return answer

    assert asyncio.run(main()) == Callout(CalloutState.UNAVAILABLE, "no address for ldap.example.org", down=True)


@pytest.mark.parametrize("babbler", [(b"", 0.0)], indirect=True)
def test_a_hung_server_holds_up_the_askers_and_not_the_event_loop(babbler):
    async def main() -> tuple[list[Callout], int]:
        options = LdapOptions((LdapServer("127.0.0.1", babbler.port),), "dc=example", timeout=0.5, connections=2)
        store = LdapStore(options, loopback)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.get_running_loop().create_task(tick())
        answers = await asyncio.gather(*(store.ask([ANNA]) for _ in range(10)))
        ticking.cancel()
        assert babbler.connections <= 2, "no more at once than allowed, and those that had to wait were told so"
        await store.close()
        return answers, ticks

    answers, ticks = asyncio.run(main())
    assert {a.state for a in answers} == {CalloutState.UNAVAILABLE}
    assert {a.reply for a in answers} >= {"all connections to the directory are busy"}
    assert ticks >= 5


def test_who_is_cancelled_leaves_at_once_and_the_connection_is_not_lost():
    babbler = Babbler(b"")

    async def main() -> None:
        options = LdapOptions((LdapServer("127.0.0.1", babbler.port),), "dc=example", timeout=0.5, connections=1)
        store = LdapStore(options, loopback)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.ask([ANNA])
        assert len(store._tasks) == 1, "what it had begun still goes on"
        await store.close()
        assert len(store._tasks) == 0

    try:
        asyncio.run(main())
    finally:
        babbler.stop()
