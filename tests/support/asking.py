"""Which plugins ask the DNS, at which stage, and how to provoke it: one row for each question of each plugin.

A plugin that asks the DNS joins with a row in `ASKING`; a test holds the table whole. In a row's texts ``{n}`` is a
number that is another one for each transaction, so that no answer is in a cache, and ``{client}`` and ``{reverse}`` are
the client's address and that address as lists have it in their names.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.clients import MESSAGE
from tests.support.dkimkeys import rsa


@dataclass(frozen=True)
class Outcome:
    """The reply that the client gets, and what the finding says; `reply` is code and enhanced status.

    Values of the finding are by path: ``signatures.0.result``.
    """

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
    before: tuple[Mapping[str, Any], ...] = ()
    """Entries that are listed before it."""
    lookups: int = 1
    """Look-ups of the plugin that a message costs; the later ones need what the first one asks for."""

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
            content=self.content.replace(b"{n}", str(n).encode()),
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

_FROM = MESSAGE.replace(b"ann@sender.test>\r\nTo", b"ann@s{n}.test>\r\nTo")
_KEY = (f'k._domainkey.s{{n}}.test. 0 IN TXT "{rsa().record}"',)
# A signature that is well-formed and does not hold.
_NOTHING = base64.b64encode(bytes(128))
_SIGNATURE = b"a=rsa-sha256; c=relaxed/relaxed; d=s{n}.test; s=k; h=from; bh=%s; b=%s\r\n" % (
    base64.b64encode(bytes(32)),
    _NOTHING,
)

ASKING: tuple[Asking, ...] = (
    Asking(
        id="dnsbl",
        plugin="dnsbl",
        stage="connect",
        finding="Dnsbl",
        # Probes would bypass the list in the midst of it; they have tests of their own.
        options={"zones": {"bl.test": 3}, "reject_at": 2, "probe": 0},
        asked="{reverse}.bl.test",
        records=("{reverse}.bl.test. 0 IN A 127.0.0.2",),
        well=Outcome("550 5.7.1", {"score": 3.0, "failed": []}),
        ill=Outcome("250 2.0.0", {"score": 0.0, "failed": ["bl.test"]}),
    ),
    Asking(
        id="uribl",
        plugin="uribl",
        stage="message",
        finding="UriHits",
        options={"lists": {"uri.test": 3}, "reject_at": 2},
        asked="s{n}.test.uri.test",
        records=("s{n}.test.uri.test. 0 IN A 127.0.0.2",),
        well=Outcome("550 5.7.1", {"score": 3.0, "failed": []}),
        ill=Outcome("250 2.0.0", {"score": 0.0, "failed": ["uri.test"]}),
        content=MESSAGE + b"http://www.s{n}.test/\r\n",
    ),
    Asking(
        id="sender-mx",
        plugin="sender",
        stage="mail",
        finding="SenderDomain",
        options={},
        asked="s{n}.test",
        records=("s{n}.test. 0 IN MX 0 .",),
        well=Outcome("550 5.7.27", {"state": "null-mx"}),
        ill=Outcome("450 4.4.3", {"state": "unknown"}),
    ),
    Asking(
        id="sender-host",
        plugin="sender",
        stage="mail",
        finding="SenderDomain",
        options={"unknown": "proceed"},
        asked="mx{n}.test",
        records=("s{n}.test. 0 IN MX 10 mx{n}.test.", "mx{n}.test. 0 IN A 127.0.0.1"),
        well=Outcome("550 5.1.8", {"state": "bogus"}),
        ill=Outcome("250 2.0.0", {"state": "unknown"}),
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
    Asking(
        id="dmarc",
        plugin="dmarc",
        stage="message",
        finding="Dmarc",
        options={"temperror": "defer"},
        # A top-level domain of its own, since parents are asked for too.
        asked="_dmarc.s{n}.t{n}",
        records=('s{n}.t{n}. 0 IN TXT "v=spf1 -all"', '_dmarc.s{n}.t{n}. 0 IN TXT "v=DMARC1; p=reject"'),
        well=Outcome("550 5.7.26", {"result": "fail"}),
        ill=Outcome("451 4.7.0", {"result": "temperror"}),
        sender="ann@s{n}.t{n}",
        content=_FROM.replace(b"s{n}.test", b"s{n}.t{n}"),
        before=({"spf": {}},),
        lookups=2,
    ),
    Asking(
        id="dkim",
        plugin="dkim",
        stage="message",
        finding="Dkim",
        options={"reject_fail": True, "defer_temperror": True},
        asked="k._domainkey.s{n}.test",
        records=_KEY,
        well=Outcome("550 5.7.20", {"signatures.0.result": "fail"}),
        ill=Outcome("451 4.7.20", {"signatures.0.result": "temperror"}),
        content=b"DKIM-Signature: v=1; " + _SIGNATURE + _FROM,
    ),
    Asking(
        id="arc",
        plugin="arc",
        stage="message",
        finding="Arc",
        options={"reject_fail": True},
        asked="k._domainkey.s{n}.test",
        records=_KEY,
        well=Outcome("550 5.7.29", {"result": "fail"}),
        ill=Outcome("250 2.0.0", {"result": "temperror"}),
        content=b"ARC-Seal: i=1; a=rsa-sha256; t=1700000000; cv=none; d=s{n}.test; s=k; b=" + _NOTHING + b"\r\n"
        b"ARC-Message-Signature: i=1; " + _SIGNATURE + b"ARC-Authentication-Results: i=1; s{n}.test; none\r\n" + _FROM,
    ),
    Asking(
        id="rdns",
        plugin="rdns",
        stage="connect",
        finding="ReverseName",
        options={"nameless": "reject", "mismatch": "reject", "defer_temperror": True},
        asked=_REVERSE,
        records=(_REVERSE + ". 0 IN PTR other{n}.test.", "other{n}.test. 0 IN A 192.0.2.99"),
        well=Outcome("550 5.7.25", {"result": "fail"}),
        ill=Outcome("450 4.7.25", {"result": "temperror"}),
    ),
    Asking(
        id="rdns-host",
        plugin="rdns",
        stage="connect",
        finding="ReverseName",
        options={"mismatch": "reject"},
        asked="other{n}.test",
        records=(_REVERSE + ". 0 IN PTR other{n}.test.", "other{n}.test. 0 IN A 192.0.2.99"),
        well=Outcome("550 5.7.25", {"result": "fail"}),
        ill=Outcome("250 2.0.0", {"result": "temperror"}),
    ),
    Asking(
        id="helo",
        plugin="helo",
        stage="helo",
        finding="HeloName",
        options={"reject": ["no-such-name"]},
        asked="host{n}.test",
        records=(),
        well=Outcome("550 5.7.1", {"problems": ["no-such-name"]}),
        ill=Outcome("250 2.0.0", {"problems": [], "resolves": None}),
        helo="host{n}.test",
    ),
)
