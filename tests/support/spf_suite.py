"""The public test suite of RFC 7208: its cases, and its zone data as answers to questions.

The suite comes as a stream of YAML documents, one per scenario (`tests/data/rfc7208-tests.yml`). In its zone data the
records of a name stand in order, ``TIMEOUT`` means that questions for types which have not stood before it are never
answered, a record of type SPF is one of type TXT as well unless the name has a TXT entry, and ``TXT: NONE`` is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import yaml

from gateway.sdk import Answer, DnsStatus, Mx, SpfResult
from gateway.sdk.services import Record

PATH = Path(__file__).parents[1] / "data" / "rfc7208-tests.yml"
PAGE = Path(__file__).parents[2] / "docs" / "spf-suite.md"

DEFAULT = "DEFAULT"
"""As an explanation: the receiver's own words, so nothing of the sender's."""

_CHAIN = 10


@dataclass(frozen=True, eq=False)
class Zone:
    """Zone data: records by name and type as the suite writes them, and names that time out for all other types."""

    records: dict[tuple[str, str], list[Any]]
    silent: frozenset[str]

    def names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.records) | self.silent

    def times_out(self, name: str, rdtype: str) -> bool:
        return name in self.silent and (name, rdtype) not in self.records

    def rrsets(self) -> Iterator[dns.rrset.RRset]:
        """The records for a nameserver, with a TTL of 0, so that the next scenario's may differ."""
        for (name, rdtype), values in self.records.items():
            owner = dns.name.from_text(name)
            rrset = dns.rrset.RRset(owner, dns.rdataclass.IN, dns.rdatatype.from_text(rdtype))
            for value in values:
                rrset.add(_rdata(rdtype, value), ttl=0)
            yield rrset


def _rdata(rdtype: str, value: Any) -> dns.rdata.Rdata:
    match rdtype:
        case "TXT":
            text = " ".join('"' + "".join(f"\\{octet:03d}" for octet in part) + '"' for part in value)
        case "MX":
            text = f"{value[0]} {value[1].removesuffix('.')}."
        case "PTR" | "CNAME":
            text = value.removesuffix(".") + "."
        case _:
            text = value
    return dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(rdtype), text)


@dataclass(frozen=True)
class Case:
    """One test of the suite. `results` are those that it allows; `explanation` is None where it has nothing to say."""

    id: str
    scenario: str
    spec: str
    client: str
    helo: str
    sender: str
    results: frozenset[SpfResult]
    explanation: str | None
    zone: Zone


@cache
def cases() -> tuple[Case, ...]:
    """All cases, in the order of the file."""
    found: list[Case] = []
    with PATH.open("rb") as file:
        for scenario in yaml.safe_load_all(file):
            zone = _zone(scenario["zonedata"])
            found += [_case(id, test, scenario["description"], zone) for id, test in scenario["tests"].items()]
    return tuple(found)


def _case(id: str, test: dict[str, Any], scenario: str, zone: Zone) -> Case:
    allowed = [test["result"]] if isinstance(test["result"], str) else test["result"]
    return Case(
        id,
        scenario,
        str(test["spec"]),
        test["host"],
        test["helo"],
        test["mailfrom"],
        frozenset(map(SpfResult, allowed)),
        test.get("explanation"),
        zone,
    )


def _zone(data: dict[str, list[Any]]) -> Zone:
    records: dict[tuple[str, str], list[Any]] = {}
    silent = set()
    for owner, entries in data.items():
        name = owner.lower().removesuffix(".")
        explicit = any(isinstance(entry, dict) and "TXT" in entry for entry in entries)
        for entry in entries:
            if entry == "TIMEOUT":
                silent.add(name)
                continue
            ((rdtype, value),) = entry.items()
            if value in ("NONE", ["NONE"]) or (rdtype == "SPF" and explicit):
                continue
            if rdtype in ("SPF", "TXT"):
                # A record without any string can be written in the suite, but not in a message: it has an empty one.
                value = [part.encode() for part in ([value] if isinstance(value, str) else value)] or [b""]
                rdtype = "TXT"
            assert name not in silent, f"{name}: records that stand after TIMEOUT are not in the suite"
            records.setdefault((name, rdtype), []).append(value)
    return Zone(records, frozenset(silent))


def listed(section: str) -> dict[str, tuple[str, ...]]:
    """The table in a section of docs/spf-suite.md: what stands beside each case, without the reason at the end."""
    text = PAGE.read_text()
    assert text.count(f"\n## {section}\n") == 1, section
    body = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found: dict[str, tuple[str, ...]] = {}
    for row in re.findall(r"(?m)^\| `(.+) \|$", body):
        id, *cells, reason = [cell.strip().strip("`") for cell in row.split(" | ")]
        assert id not in found, f"{id} is listed twice"
        assert reason, f"{id} is listed without a reason"
        found[id] = tuple(cells)
    return found


class ZoneDns:
    """`gateway.sdk.Dns` over a zone; `asked` lists the questions."""

    def __init__(self, zone: Zone) -> None:
        self.asked: list[tuple[str, str]] = []
        self._zone = zone

    async def lookup(self, name: str, rdtype: str) -> Answer:
        wanted = name.lower().removesuffix(".")
        self.asked.append((wanted, rdtype))
        for _ in range(_CHAIN):
            if self._zone.times_out(wanted, rdtype):
                return Answer(DnsStatus.FAILED, problem="timeout")
            if values := self._zone.records.get((wanted, rdtype)):
                return Answer(DnsStatus.OK, tuple(_record(rdtype, value) for value in values))
            alias = self._zone.records.get((wanted, "CNAME"))
            if not alias:
                return Answer(DnsStatus.NODATA if wanted in self._zone.names() else DnsStatus.NXDOMAIN)
            wanted = alias[0].lower().removesuffix(".")
        return Answer(DnsStatus.FAILED, problem="CNAME chain is too long")


def _record(rdtype: str, value: Any) -> Record:
    match rdtype:
        case "TXT":
            return b"".join(value)
        case "MX":
            return Mx(value[0], value[1].lower().removesuffix("."))
        case "PTR" | "NS":
            return str(value).lower().removesuffix(".")
        case _:
            return str(value)
