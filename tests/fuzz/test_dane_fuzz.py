"""A peer's certificates and a zone's TLSA records are whatever their owners like."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sdk.services import Tlsa
from gateway.transport.dane import authenticate, usable
from gateway.transport.rule import TlsFailed
from gateway.transport.tls import is_for
from tests.support.certificates import make_ca

CA = make_ca()
LEAF = CA.issue("mx.example.net")
DOTTED = st.lists(st.sampled_from(["mx", "Mx", "net", "*", ""]), min_size=1, max_size=4).map(".".join)
NAMES = ("mx.example.net", "", "a" * 300, "*.", ".")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A certificate with some octets changed, cut off or put in."""
    der = bytearray(draw(st.sampled_from(LEAF.chain_der)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(der) - 1))
        der[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not der:
            break
    return bytes(der)


records = st.builds(Tlsa, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=70))


@settings(max_examples=80)
@given(st.lists(damaged() | st.sampled_from(LEAF.chain_der) | st.binary(max_size=50), max_size=4))
def test_damaged_certificates_are_refused_and_nothing_is_raised(chain: list[bytes]):
    pinned = [CA.tlsa(2), LEAF.tlsa(3, 0), LEAF.tlsa(2, 0, 0)]
    found = authenticate(chain, pinned, NAMES)
    if not isinstance(found, TlsFailed):
        assert chain[0] == LEAF.der, "only the true certificate can be vouched for"


@settings(max_examples=80)
@given(st.lists(records, max_size=6), st.binary(max_size=40))
def test_records_that_mean_nothing_are_left_out(found: list[Tlsa], junk: bytes):
    kept = usable([*found, Tlsa(2, 0, 0, junk or b"x")])
    assert all(r.usage in (2, 3) and r.selector in (0, 1) and r.matching in (0, 1, 2) for r in kept)
    assert isinstance(authenticate(LEAF.chain_der, kept, NAMES), TlsFailed)


@settings(max_examples=80)
@given(DOTTED | st.text(max_size=40), DOTTED | DOTTED.map(".{}".format) | st.text(max_size=40))
def test_a_name_is_never_matched_by_less_than_itself(pattern: str, wanted: str):
    if is_for(pattern, wanted):
        first, *rest = pattern.lower().removesuffix(".").split(".")
        label, *domain = wanted.lower().split(".")
        if label == "" and domain:
            assert [first, *rest][-len(domain) :] == domain and len(rest) >= len(domain)
        else:
            assert rest == domain
            assert first == label or (first == "*" and label and len(domain) > 1)
