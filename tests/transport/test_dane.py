"""TLSA records: which ones apply to a host, which can be used, and which certificates they vouch for."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest

from gateway.sdk.services import Tlsa
from gateway.sdk.testing import FakeDns
from gateway.transport import dane, hosts
from gateway.transport.dane import Found, authenticate, find, usable
from gateway.transport.hosts import Unreachable
from gateway.transport.rule import Failure, TlsFailed
from tests.support.certificates import Issued, make_ca
from tests.transport.peer import run

CA = make_ca()
HOST = "mx.example.net"
LEAF = CA.issue(HOST)
NAMES = (HOST, "example.net")
RECORD = LEAF.tlsa()


def failed(found: Tlsa | TlsFailed) -> TlsFailed:
    assert isinstance(found, TlsFailed)
    return found


# Certificates.


@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_an_end_entity_record_vouches_for_its_certificate_by_each_selector_and_matching_type(
    selector: int, matching: int
):
    record = LEAF.tlsa(3, selector, matching)
    assert authenticate(LEAF.chain_der, usable([record]), NAMES) == record
    other = CA.issue(HOST)
    assert failed(authenticate(other.chain_der, [record], NAMES)).failure is Failure.UNTRUSTED


def test_an_end_entity_record_asks_for_no_name_no_date_and_no_issuer():
    old = CA.issue("elsewhere.test", days=(-20, -10))
    assert authenticate([old.der], [old.tlsa()], NAMES) == old.tlsa()


@pytest.mark.parametrize("matching", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
def test_a_trust_anchor_record_vouches_for_what_its_ca_signed(selector: int, matching: int):
    record = CA.tlsa(2, selector, matching)
    assert authenticate(LEAF.chain_der, usable([record]), NAMES) == record


def test_a_trust_anchor_may_stand_in_the_middle_of_a_chain():
    middle = CA.issue(ca=True, subject="Middle")
    leaf = middle.issue(HOST)
    assert authenticate(leaf.chain_der, [middle.tlsa(2)], NAMES) == middle.tlsa(2)
    assert authenticate(leaf.chain_der, [CA.tlsa(2)], NAMES) == CA.tlsa(2)


def test_a_trust_anchor_that_the_peer_does_not_send_may_stand_in_the_record():
    assert authenticate([LEAF.der], [CA.tlsa(2, 0, 0)], NAMES) == CA.tlsa(2, 0, 0)
    assert failed(authenticate([LEAF.der], [CA.tlsa(2, 0, 1)], NAMES)).failure is Failure.UNTRUSTED


@pytest.mark.parametrize(
    "leaf",
    [
        CA.issue("elsewhere.test"),
        CA.issue(HOST, days=(-20, -10)),
        CA.issue(HOST, days=(10, 20)),
        CA.issue(HOST, san=False),
        CA.issue("sub.mx.example.net"),
    ],
    ids=["another name", "expired", "not yet", "no name", "a name below"],
)
def test_under_a_trust_anchor_names_and_dates_count(leaf: Issued):
    found = failed(authenticate(leaf.chain_der, [CA.tlsa(2)], NAMES))
    assert "trust anchor" in found.problem


def test_under_a_trust_anchor_the_domain_or_a_wildcard_will_do_as_a_name():
    for name in ("example.net", "*.example.net"):
        assert authenticate(CA.issue(name).chain_der, [CA.tlsa(2)], NAMES) == CA.tlsa(2)


def test_a_chain_that_only_looks_as_if_it_led_to_the_trust_anchor_is_refused():
    forged = make_ca().issue(HOST)
    sent = [forged.der, CA.der]
    assert "trust anchor" in failed(authenticate(sent, [CA.tlsa(2)], NAMES)).problem


def test_who_is_no_ca_cannot_sign_under_a_trust_anchor():
    no_ca = CA.issue("customer.test")
    stolen = no_ca.issue(HOST)
    assert "trust anchor" in failed(authenticate(stolen.chain_der, [CA.tlsa(2)], NAMES)).problem


def test_the_peers_own_certificate_is_no_trust_anchor():
    assert isinstance(authenticate(LEAF.chain_der, [LEAF.tlsa(2)], NAMES), TlsFailed)


def test_in_a_rollover_either_record_will_do():
    following = CA.issue(HOST)
    records = [LEAF.tlsa(), following.tlsa()]
    for certificate in (LEAF, following):
        assert authenticate(certificate.chain_der, records, NAMES) == certificate.tlsa()


@pytest.mark.parametrize("chain", [[], [b""], [b"\x30\x03abc"], [LEAF.der, b"junk"]])
def test_what_is_no_certificate_is_refused(chain: list[bytes]):
    assert isinstance(authenticate(chain, [RECORD], NAMES), TlsFailed)


# Records.


@pytest.mark.parametrize(
    "record",
    [
        LEAF.tlsa(0),
        LEAF.tlsa(1),
        Tlsa(4, 1, 1, bytes(32)),
        Tlsa(3, 2, 1, bytes(32)),
        Tlsa(3, 1, 3, bytes(32)),
        Tlsa(3, 1, 1, bytes(31)),
        Tlsa(3, 1, 2, bytes(32)),
        Tlsa(3, 1, 0, b""),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_unusable(record: Tlsa):
    assert usable([record]) == ()
    assert usable([record, RECORD]) == (RECORD,)


def test_of_two_digests_only_the_stronger_counts():
    weak = Tlsa(3, 1, 1, hashlib.sha256(b"of another").digest())
    strong = LEAF.tlsa(3, 1, 2)
    assert usable([weak, strong]) == (strong,)
    assert usable([RECORD, LEAF.tlsa(3, 0, 2)]) == (RECORD, LEAF.tlsa(3, 0, 2)), "another selector is another matter"


# Look-ups.


def look(dns: FakeDns, host: str = HOST, port: int = 25) -> Found | Unreachable | None:
    async def main() -> Any:
        located = await hosts.locate(host, dns, configured=False)
        assert not isinstance(located, Unreachable)
        return await find(host, port, located, dns)

    return run(main())


def zone(**more: Any) -> dict[str, Any]:
    return {"a": {HOST: ["192.0.2.1"]}, "tlsa": {f"_25._tcp.{HOST}": [RECORD]}, "authentic": [HOST], **more}


def test_validated_records_of_a_validated_host_apply():
    assert look(FakeDns(**zone())) == Found(HOST, (RECORD,))


def test_records_stand_under_the_port():
    assert look(FakeDns(**zone()), port=2525) is None


def test_records_that_nobody_validated_do_not_apply():
    assert look(FakeDns(**zone(authentic=[]))) is None
    apart = FakeDns(
        **zone(authentic=["mx2.example.net"], cname={HOST: "mx2.example.net"}, a={"mx2.example.net": ["1.2.3.4"]})
    )
    assert look(apart) is None


def test_a_host_without_records_has_none():
    assert look(FakeDns(**zone(tlsa={}))) is None


def test_trouble_with_the_records_is_never_taken_for_their_absence():
    found = look(FakeDns(**zone(fails=[f"_25._tcp.{HOST}"])))
    assert isinstance(found, Unreachable) and found.reply.status == "4.7.5"
    assert "no TLSA answer" in found.reply.text


def test_an_address_has_no_records():
    dns = FakeDns(authentic=["."])
    assert look(dns, "192.0.2.1") is None and not dns.asked


ALIAS = {"cname": {HOST: "real.example.org"}, "a": {"real.example.org": ["192.0.2.1"]}}
BOTH = {f"_25._tcp.{HOST}": [LEAF.tlsa(3, 0)], "_25._tcp.real.example.org": [RECORD]}


def test_records_stand_first_where_an_alias_leads_and_then_under_the_alias():
    names = [HOST, "real.example.org"]
    assert look(FakeDns(**ALIAS, tlsa=BOTH, authentic=names)) == Found("real.example.org", (RECORD,))
    only = {f"_25._tcp.{HOST}": [RECORD]}
    assert look(FakeDns(**ALIAS, tlsa=only, authentic=names)) == Found(HOST, (RECORD,))


def test_an_alias_that_leads_out_of_the_validated_part_has_only_its_own_records():
    # The alias itself is validated, and the host it leads to is not.
    class Dns(FakeDns):
        async def lookup(self, name: str, rdtype: str) -> Any:
            found = await super().lookup(name, rdtype)
            return dataclasses.replace(found, authentic=True) if (name, rdtype) == (HOST, "CNAME") else found

    assert look(Dns(**ALIAS, tlsa=BOTH, authentic=[f"_25._tcp.{HOST}"])) == Found(HOST, (LEAF.tlsa(3, 0),))


def test_a_peer_cannot_make_us_look_at_any_number_of_certificates():
    far = [LEAF.der] * dane.CHAIN + [CA.der]
    assert isinstance(authenticate(far, [CA.tlsa(2)], NAMES), TlsFailed)
