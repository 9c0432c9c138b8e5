"""Which plugins ask the DNS, at which stage, and how to provoke it: one row for each question of each plugin.

A plugin that asks the DNS joins with a row in `ASKING`; a test holds the table whole. In a row's texts ``{n}`` is a
number that is another one for each transaction, so that no answer is in a cache, and ``{client}`` and ``{reverse}`` are
the client's address and that address as lists have it in their names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.clients import MESSAGE


@dataclass(frozen=True)
class Outcome:
    """The reply that the client gets, and what the finding says; `reply` is code and enhanced status."""

    reply: str
    finding: Mapping[str, Any]


@dataclass(frozen=True)
class Asking:
    """A plugin, the stage at which it asks, the question, and what comes of a good answer and of none.

    `records` are what the nameserver has; `asked` is the name whose answer suffers.
    """

    id: str
    plugin: str
    stage: str
    finding: str
    options: Mapping[str, Any]
    asked: str
    records: tuple[str, ...]
    well: Outcome
    ill: Outcome
    client: str = ""
    helo: str = "[{client}]"
    sender: str = "ann@s{n}.test"
    content: bytes = field(default=MESSAGE, repr=False)

    def number(self, n: int) -> Asking:
        """The row for one transaction."""
        client = ipaddress.IPv4Address("198.18.0.0") + n
        reverse = client.reverse_pointer.removesuffix(".in-addr.arpa")

        def fill(text: str) -> str:
            return text.format(n=n, client=client, reverse=reverse)

        return replace(
            self,
            asked=fill(self.asked),
            records=tuple(map(fill, self.records)),
            helo=fill(self.helo),
            sender=fill(self.sender),
            client=str(client),
        )


_REVERSE = "{reverse}.in-addr.arpa"
_REJECT_FAIL = {"reject_fail": True}
_DEFER_ERROR = {"reject_fail": True, "reject_permerror": True, "defer_temperror": True}


def _spf(id: str, asked: str, record: str, *records: str, ill: Outcome, options: Mapping[str, Any]) -> Asking:
    """SPF for a sender whose record lets nobody through, so that a good answer is a refusal."""
    own = 's{n}.test. 0 IN TXT "' + record + '"'
    well = Outcome("550 5.7.23", {"result": "fail", "problem": ""})
    return Asking(id, "spf", "mail", "Spf", options, asked, (own, *records), well, ill)


_TEMPERROR = Outcome("451 4.7.24", {"result": "temperror"})

ASKING: tuple[Asking, ...] = (
    Asking(
        id="dnsbl",
        plugin="dnsbl",
        stage="connect",
        finding="Dnsbl",
        options={"zones": {"bl.test": 3}, "reject_at": 2},
        asked="{reverse}.bl.test",
        records=("{reverse}.bl.test. 0 IN A 127.0.0.2",),
        well=Outcome("550 5.7.1", {"score": 3.0, "failed": []}),
        ill=Outcome("250 2.0.0", {"score": 0.0, "failed": ["bl.test"]}),
    ),
    _spf(
        "spf",
        "s{n}.test",
        "v=spf1 -all",
        ill=Outcome("250 2.0.0", {"result": "temperror"}),
        options=_REJECT_FAIL,
    ),
    _spf("spf-record", "s{n}.test", "v=spf1 -all", ill=_TEMPERROR, options=_DEFER_ERROR),
    _spf(
        "spf-include",
        "more{n}.test",
        "v=spf1 include:more{n}.test -all",
        'more{n}.test. 0 IN TXT "v=spf1 -all"',
        ill=_TEMPERROR,
        options=_DEFER_ERROR,
    ),
    _spf(
        "spf-mx",
        "mx{n}.test",
        "v=spf1 mx -all",
        "s{n}.test. 0 IN MX 10 mx{n}.test.",
        "mx{n}.test. 0 IN A 198.51.100.1",
        ill=_TEMPERROR,
        options=_DEFER_ERROR,
    ),
    _spf(
        "spf-ptr",
        _REVERSE,
        "v=spf1 ptr -all",
        _REVERSE + ". 0 IN PTR other{n}.test.",
        ill=Outcome("451 4.7.24", {"result": "fail"}),
        options=_REJECT_FAIL,
    ),
)
