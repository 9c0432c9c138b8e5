"""The same tables in Postfix and here: cidr and regexp tables are looked up by postmap and by the plugin."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest

from plugins.access import ListOptions
from plugins.access.tables import Table, client_subject, name_subject
from tests.support.postmap import postmap

pytestmark = pytest.mark.slow


def ours(match: str, kind: str, table: Path) -> Table:
    return ListOptions.model_validate({"match": match, "kind": kind, "file": str(table)}).from_file(table.read_bytes())


def network(chance: random.Random, lengths: tuple[range, range]) -> str:
    """Networks that lie in each other often: most differ in a few bits only."""
    version = chance.choice((4, 4, 6))
    bits, base = (32, 0xC0000200) if version == 4 else (128, 0x20010DB8 << 96)
    prefix = chance.choice(lengths[version == 6])
    number = base ^ (chance.getrandbits(bits) & chance.getrandbits(bits) & chance.getrandbits(bits))
    address = ipaddress.ip_address((number >> (bits - prefix)) << (bits - prefix))
    if version == 6 and address.version == 4:
        address = ipaddress.IPv6Address(int(address))
    return f"{address}/{prefix}" if prefix < bits or chance.random() < 0.5 else str(address)


def clients(chance: random.Random, count: int) -> list[str]:
    found = [network(chance, (range(32, 33), range(128, 129))).partition("/")[0] for _ in range(count)]
    return sorted(set(found))


def compare_networks(table: Path, lines: list[str], keys: list[str]) -> int:
    table.write_text("".join(lines))
    expected = postmap("cidr", table, keys)
    made = ours("client", "cidr", table)
    found = {}
    for key in keys:
        if rule := made.find(client_subject(ipaddress.ip_address(key))):
            found[key] = f"REJECT {rule.result.text}"
    assert found == expected
    return len(found)


@pytest.mark.parametrize("seed", range(5))
def test_networks_are_found_as_postfix_finds_them(directory, seed):
    chance = random.Random(seed)
    lengths = (range(8, 33), range(16, 129))
    lines = []
    for number in range(400):
        # A line that matches nearly everybody comes last.
        negated = "!" if number > 380 and chance.random() < 0.3 else ""
        lines.append(f"{negated}{network(chance, lengths)}\tREJECT line{number}\n")
    keys = clients(chance, 3000)
    assert compare_networks(directory / "clients", lines, keys) > len(keys) / 4


def test_a_table_of_a_hundred_thousand_networks_is_as_postfix_has_it(directory):
    chance = random.Random(17)
    lines = [f"{network(chance, (range(16, 33), range(24, 129)))} REJECT line{number}\n" for number in range(100_000)]
    assert compare_networks(directory / "clients", lines, clients(chance, 300)) > 50


def test_a_table_with_comments_and_continued_lines_is_as_postfix_has_it(directory):
    lines = [
        "# friends\n",
        "\n",
        "192.0.2.1 REJECT\n",
        " one\n",
        "# in between\n",
        "198.51.100.0/24\n",
        "\tREJECT two\n",
        "2001:DB8::/32    REJECT three\n",
        "0.0.0.0/0 REJECT four",
    ]
    keys = ["192.0.2.1", "198.51.100.9", "2001:db8::1", "2001:db9::1", "203.0.113.1"]
    assert compare_networks(directory / "clients", lines, keys) == 4


def test_regular_expressions_are_found_as_postfix_finds_them(directory):
    patterns = [
        r"/^mx[0-9]+\.sender\.example$/",
        r"!/\.example$/",
        r"/^(dyn|dial|ppp)[-.]?[0-9]{1,3}/",
        r"|/x|",
        r"/^[[:alpha:]]+\.b/",
        r"/^.{12,}$/",
        r"/a.c/",
        r"! /e/",
        r"/^[^.]+\.sender/",
        r"/\.(com|net)\.example/",
    ]
    table = directory / "helo"
    table.write_text("".join(f"{pattern} REJECT line{n}\n" for n, pattern in enumerate(patterns)))
    chance = random.Random(3)
    labels = ["mx1", "MX22", "dyn-7", "ppp44", "a", "abc", "sender", "b", "com", "x-y", "long-label-here", "other"]
    keys = sorted(
        {
            ".".join(chance.choices(labels, k=chance.randint(1, 4)))
            + chance.choice([".example", ".example", ".org", ""])
            for _ in range(3000)
        }
    )
    expected = postmap("regexp", table, keys)
    made = ours("helo", "regexp", table)
    found = {key: f"REJECT {rule.result.text}" for key in keys if (rule := made.find(name_subject(key)))}
    assert found == expected
    assert len(set(found.values())) >= 6, "most patterns decide somewhere"
