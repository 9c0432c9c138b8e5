"""In which order a host's addresses are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transport.order import Families, order

FOUR, SIX = ["192.0.2.1", "192.0.2.2", "192.0.2.3"], ["2001:db8::1"]
ADDRESSES = st.lists(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str), max_size=12)


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (Families.IPV4_FIRST, ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]),
        (Families.IPV6_FIRST, ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]),
        (Families.IPV4, FOUR),
        (Families.IPV6, SIX),
    ],
)
def test_families_take_turns_and_the_wanted_one_begins(families: Families, expected: list[str]):
    assert order([*FOUR, *SIX], families) == expected


@given(ADDRESSES, st.sampled_from(Families))
def test_nothing_is_lost_or_tried_twice_and_a_family_keeps_its_order(addresses: list[str], families: Families):
    tried = order(addresses, families)
    for six, wanted in ((False, families is not Families.IPV6), (True, families is not Families.IPV4)):
        given_ones = list(dict.fromkeys(a for a in addresses if (":" in a) is six))
        assert [a for a in tried if (":" in a) is six] == (given_ones if wanted else [])


@given(ADDRESSES, st.sampled_from([Families.IPV4_FIRST, Families.IPV6_FIRST]))
def test_while_both_families_last_neither_is_tried_twice_in_a_row(addresses: list[str], families: Families):
    tried = order(addresses, families)
    counts = [sum(":" in a for a in tried), sum(":" not in a for a in tried)]
    both = tried[: 2 * min(counts)]
    first_is_six = families is Families.IPV6_FIRST
    assert [":" in a for a in both] == [first_is_six, not first_is_six] * min(counts)
