"""Which addresses are our own."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.transport import own
from gateway.transport.own import NOWHERE, OwnAddresses, is_of_this_machine


def test_what_is_listened_on_or_named_is_ours_however_it_is_written():
    it = OwnAddresses(frozenset({"192.0.2.1", "2001:db8::1"}))
    assert it.has("192.0.2.1") and it.has("::ffff:192.0.2.1") and it.has("2001:0DB8:0:0::1")
    assert not it.has("192.0.2.2") and not it.has("127.0.0.1")


@pytest.mark.parametrize("nobodys", ["0.0.0.0", "::"])
def test_an_address_that_leads_to_whoever_asks_is_ours(nobodys: str):
    assert NOWHERE.has(nobodys)


def test_who_listens_everywhere_owns_what_the_machine_has():
    assert OwnAddresses(everywhere=frozenset({4})).has("127.8.9.10")
    assert not OwnAddresses(everywhere=frozenset({6})).has("127.8.9.10")
    assert not OwnAddresses(everywhere=frozenset({4, 6})).has("198.51.100.7")


def test_where_anything_can_be_bound_to_nothing_is_taken_for_ours(monkeypatch: pytest.MonkeyPatch):
    # As with the sysctl ip_nonlocal_bind.
    monkeypatch.setattr(own, "_binds", lambda ip: True)
    assert not is_of_this_machine(ipaddress.ip_address("198.51.100.7"))
