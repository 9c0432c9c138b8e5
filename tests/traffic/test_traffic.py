"""The traffic generator: the same for the same seed, of all kinds, and true to what it says of itself."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter

import dkim
import pytest

from tests.traffic.day import Day, Kind, Mailing, make_day
from tests.traffic.people import LISTS, Reverse
from tests.traffic.zone import Records, zone_lines

DAY = make_day(seed=3, transactions=600)


def _plan(day: Day) -> list[object]:
    return [
        (v.number, v.at, v.client, v.again, [(m.kind, m.sender, m.recipients, m.ending, m.author) for m in v.mailings])
        for v in day.visits
    ]


def _mailings() -> list[Mailing]:
    return [mailing for visit in DAY.visits for mailing in visit.mailings]


def test_a_seed_gives_the_same_day_and_another_one_another() -> None:
    one, same, other = (make_day(seed, transactions=80) for seed in (3, 3, 4))
    assert _plan(one) == _plan(same) != _plan(other)


def test_a_day_has_as_many_transactions_as_it_was_asked_for_and_every_kind() -> None:
    assert DAY.transactions == 600
    assert set(Kind) - {m.kind for m in _mailings()} <= {Kind.BIG, Kind.INTERNATIONAL}


@pytest.mark.parametrize("transactions", [0, 49, 60_001])
def test_a_day_that_is_too_short_or_too_long_is_refused(transactions: int) -> None:
    with pytest.raises(ValueError, match="50 to 60000"):
        make_day(1, transactions)


def test_most_mail_comes_by_day() -> None:
    hours = Counter(int(visit.at // 3600) for visit in DAY.visits if not visit.again)
    assert sum(hours[h] for h in range(8, 18)) > 3 * sum(hours[h] for h in range(0, 6))


def test_who_comes_again_brings_the_same_as_before_and_comes_last() -> None:
    first = {(v.client, v.mailings) for v in DAY.visits if not v.again}
    again = [v for v in DAY.visits if v.again]
    assert again and all((v.client, v.mailings) in first for v in again)
    assert [v.again for v in DAY.visits] == sorted(v.again for v in DAY.visits)


def test_no_sender_writes_to_anybody_twice_but_who_comes_again() -> None:
    greedy = (Kind.GREEDY, Kind.BULK, Kind.LIST)
    pairs = Counter(
        (m.sender or str(v.client.address), to)
        for v in DAY.visits
        for m in v.mailings
        for to in m.recipients
        if not v.again and m.kind not in greedy and "@example.org" in to and not to.startswith("closed@")
    )
    assert pairs.most_common(1)[0][1] == 1


def test_signatures_hold_where_the_day_says_so_and_only_there() -> None:
    records = Records(zone_lines(DAY))

    def key(name: bytes, timeout: int = 5) -> bytes | None:
        data, _ = records.answer(name.decode().removesuffix("."), "TXT")
        return None if data is None else b"".join(_strings(data))

    looked_at = Counter[Kind]()
    for mailing in _mailings():
        if looked_at[mailing.kind] == 3:
            continue
        looked_at[mailing.kind] += 1
        holds = set()
        signatures = mailing.content.octets.partition(b"\r\n\r\n")[0].count(b"DKIM-Signature:")
        for index in range(signatures):
            verifier = dkim.DKIM(mailing.content.octets)
            with contextlib.suppress(dkim.ValidationError):
                if verifier.verify(index, dnsfunc=key):
                    holds.add(verifier.domain.decode())
        assert holds == set(mailing.content.passes), mailing
        if mailing.kind is Kind.LIST:
            assert signatures == 2
            assert dkim.ARC(mailing.content.octets).verify(dnsfunc=key)[0] == dkim.CV_Pass


def _strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        found.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return found


def test_the_zone_says_of_clients_what_the_day_says() -> None:
    records = Records(zone_lines(DAY))
    for client in DAY.people.clients:
        name, _ = records.answer(client.address.reverse_pointer, "PTR")
        assert (name is None) is (client.reverse is Reverse.NONE)
        data, _ = records.answer(client.name, "A" if client.address.version == 4 else "AAAA")
        leads_back = data is not None and ipaddress.ip_address(data) == client.address
        assert leads_back is (client.reverse is not Reverse.FORGED)
        bare = client.address.reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
        assert {zone for zone in LISTS if records.answer(f"{bare}.{zone}", "A")[0]} == set(client.listed)


def test_a_name_that_is_not_in_the_zone_does_not_exist() -> None:
    records = Records(["a.b.test. 60 IN A 192.0.2.1"])
    assert records.answer("a.b.test", "A") == (b"\xc0\x00\x02\x01", True)
    assert records.answer("b.test", "A") == (None, True)
    assert records.answer("c.b.test", "A") == (None, False)
