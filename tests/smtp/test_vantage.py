"""Whether a listener sees its clients, or only a machine before them."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.mail.session import IPAddress, Session, new_session_id
from gateway.ops import metrics
from gateway.smtp.vantage import ADDRESSES, NAMES, NAMES_PER_ADDRESS, TRANSACTIONS, Vantage
from tests.smtp.door import Door, door, networks, run

NODE, OTHER_NODE, GLOBAL = "10.1.2.3", "10.1.2.4", "8.8.8.8"
_listeners = itertools.count()


@pytest.fixture
def vantage() -> Vantage:
    return Vantage(f"listener-{next(_listeners)}")


def session(client: str | IPAddress, helo: str, *, trusted: bool = False) -> Session:
    address = ipaddress.ip_address(client)
    return Session(new_session_id(), address, 999, address, "l", 0.0, helo=helo, trusted=trusted)


def told(vantage: Vantage) -> float:
    return metrics.CLIENTS_HIDDEN.labels(vantage._listener)._value.get()


def test_many_names_behind_one_address_of_no_global_scope_are_hidden_clients(vantage: Vantage) -> None:
    with capture_logs() as logs:
        for i in range(TRANSACTIONS - 1):
            vantage.note(session(NODE, f"mx{i % NAMES}.example.com"))
        assert not vantage.hidden and told(vantage) == 0
        vantage.note(session(NODE, "mx.example.net", trusted=True))
        vantage.note(session(NODE, "mx.example.net", trusted=True))
    assert vantage.hidden and told(vantage) == 1
    (said,) = logs
    assert (said["event"], said["log_level"]) == ("clients.hidden", "warning")
    assert (said["client"], said["addresses"], said["names"], said["trusted"]) == (NODE, 1, NAMES, True)


@pytest.mark.parametrize("client", ["127.0.0.1", "::1", "fd00::5", "100.64.0.9", "169.254.3.4", "192.168.0.1"])
def test_which_addresses_are_of_no_global_scope(vantage: Vantage, client: str) -> None:
    for i in range(TRANSACTIONS):
        vantage.note(session(client, f"mx{i}.example.com"))
    assert vantage.hidden


def test_clients_with_global_addresses_are_seen(vantage: Vantage) -> None:
    for i in range(3 * TRANSACTIONS):
        vantage.note(session(GLOBAL if i % TRANSACTIONS == 0 else NODE, f"mx{i}.example.com"))
        assert not vantage.hidden


def test_a_client_with_a_global_address_ends_it(vantage: Vantage) -> None:
    for i in range(TRANSACTIONS):
        vantage.note(session(NODE, f"mx{i}.example.com"))
    with capture_logs() as logs:
        vantage.note(session("2001:4860:4860::8888", "mx.example.com"))
    assert not vantage.hidden and told(vantage) == 0
    assert [(line["event"], line["log_level"]) for line in logs] == [("clients.seen", "info")]


def test_one_machine_of_ours_that_sends_much_is_no_disguise(vantage: Vantage) -> None:
    for i in range(10 * TRANSACTIONS):
        vantage.note(session(NODE, "APP.example.org" if i % 2 else "app.example.org"))
    assert not vantage.hidden


def test_machines_of_ours_with_names_of_their_own_are_no_disguise(vantage: Vantage) -> None:
    for i in range(10 * TRANSACTIONS):
        vantage.note(session(f"10.0.0.{i % 50}", f"host{i % 50}.example.org"))
    assert not vantage.hidden


def test_nodes_of_a_cluster_hide_clients_as_well(vantage: Vantage) -> None:
    for i in range(TRANSACTIONS):
        vantage.note(session((NODE, OTHER_NODE)[i % 2], f"mx{i}.example.com"))
    assert vantage.hidden


@given(st.lists(st.tuples(st.integers(0, 2**16), st.text(max_size=5)), max_size=600))
def test_what_it_keeps_is_bounded_whatever_comes(clients: list[tuple[int, str]]) -> None:
    vantage = Vantage("listener-any")
    for number, name in clients:
        vantage.note(session(ipaddress.IPv4Address((10 << 24) + number), name))
    assert len(vantage._addresses) <= ADDRESSES + 1
    assert len(vantage._names) <= max(NAMES, NAMES_PER_ADDRESS * (ADDRESSES + 1))


async def greet(opened: Door, name: str, *, client: str) -> None:
    said = await opened.connect(first=f"PROXY TCP4 {client} 127.0.0.1 999 25\r\n".encode())
    await said.greeting()
    await said.expect(f"EHLO {name}", "250")
    await said.expect("MAIL FROM:<a@sender.test>", "250")
    said.send(b"QUIT\r\n")
    await said.last_words()
    said.close()


def test_the_front_door_goes_by_the_clients_that_a_proxy_names() -> None:
    async def test() -> None:
        async with door(proxy=networks("127.0.0.0/8")) as opened:
            (listener,) = opened.front._listeners
            for i in range(TRANSACTIONS):
                await greet(opened, f"mx{i}.example.com", client=NODE)
            assert opened.front.vantage(listener.address).hidden
            await greet(opened, "mx.example.com", client=GLOBAL)
            assert not opened.front.vantage(listener.address).hidden

    run(test)
