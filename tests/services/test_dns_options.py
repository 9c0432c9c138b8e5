"""Whose word on DNSSEC is taken."""

from __future__ import annotations

import pytest

from gateway.services.dns_options import DnsOptions, Dnssec, Server

HERE: Server = ("127.0.0.1", 53)
HERE_TOO: Server = ("::1", 5353)
AWAY: Server = ("192.0.2.53", 53)


@pytest.mark.parametrize(
    ("dnssec", "servers", "believed"),
    [
        (Dnssec.LOOPBACK, [HERE], True),
        (Dnssec.LOOPBACK, [HERE, HERE_TOO], True),
        (Dnssec.LOOPBACK, [AWAY], False),
        (Dnssec.LOOPBACK, [HERE, AWAY], False),
        (Dnssec.TRUST, [HERE, AWAY], True),
        (Dnssec.OFF, [HERE], False),
    ],
)
def test_the_ad_bit_counts_from_all_nameservers_or_from_none(dnssec: Dnssec, servers: list[Server], believed: bool):
    assert DnsOptions(tuple(servers), dnssec=dnssec).believes(servers) is believed
