"""The TLS report of one domain for one day: who wants it, its JSON, its mail. Values only.

*RFCs*: 8460 sections 3 (record), 4 (report), 5.3 (mail), 1952 (gzip), 8689 section 5 (it goes out whatever
becomes of TLS).
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote

from gateway.mail.address import Address, AddressError, parse_mailbox
from gateway.transport.tlsresults import DAY

TARGETS: Final = 5
_HTTPS: Final = re.compile(r"https://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[!-~]{0,1000})?\Z")


@dataclass(frozen=True, slots=True)
class Targets:
    """Where a domain wants its reports."""

    mail: tuple[Address, ...] = ()
    https: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.mail or self.https)


def read_record(records: Iterable[object]) -> Targets:
    """The ``rua`` of the TXT records under ``_smtp._tls``: of the one record; of several, none counts."""
    texts = [r.decode("ascii", "replace") for r in records if isinstance(r, bytes) and _is_record(r)]
    if len(texts) != 1:
        return Targets()
    for part in texts[0].split(";")[1:]:
        key, equals, value = part.strip().partition("=")
        if equals and key.strip() == "rua":
            return _targets(value.split(",")[: 2 * TARGETS])
    return Targets()


def _is_record(text: bytes) -> bool:
    version, semicolon, _ = text.partition(b";")
    return bool(semicolon) and version.strip() == b"v=TLSRPTv1"


def _targets(uris: Iterable[str]) -> Targets:
    mail: dict[Address, None] = {}
    https: dict[str, None] = {}
    for uri in (text.strip() for text in uris):
        if uri.lower().startswith("mailto:"):
            try:
                mail.setdefault(parse_mailbox(unquote(uri[7:].partition("?")[0])))
            except AddressError:
                continue
        elif _HTTPS.match(uri):
            https.setdefault(uri)
    return Targets(tuple(mail)[:TARGETS], tuple(https)[:TARGETS])


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports: `organization` for people, `contact` and `submitter` (a domain) for machines, too."""

    organization: str
    contact: str
    submitter: str


@dataclass(frozen=True, slots=True)
class Report:
    """A domain's day. `rows` are counts by what `gateway.transport.tlsresults.store` wrote; `policies` by name."""

    reporter: Reporter
    domain: str
    day: int
    rows: Mapping[str, int]
    policies: Mapping[str, Mapping[str, Any]]

    @property
    def id(self) -> str:
        """The same for each attempt to send it."""
        return f"{self._begin.date()}.{self.domain}"

    @property
    def _begin(self) -> datetime:
        return datetime.fromtimestamp(self.day * DAY, UTC)

    @property
    def filename(self) -> str:
        """RFC 8460 section 5.1."""
        begin = self.day * DAY
        return f"{self.reporter.submitter}!{self.domain}!{begin}!{begin + DAY - 1}!{self.day}.json.gz"

    def to_json(self) -> dict[str, Any]:
        """RFC 8460 section 4.4."""
        by_policy: dict[str, list[tuple[dict[str, str], int]]] = {}
        for member, times in self.rows.items():
            row = read_row(member)
            if row is not None and row["policy"] in self.policies:
                by_policy.setdefault(row["policy"], []).append((row, times))
        day = f"{self._begin.date()}T"
        return {
            "organization-name": self.reporter.organization,
            "date-range": {"start-datetime": f"{day}00:00:00Z", "end-datetime": f"{day}23:59:59Z"},
            "contact-info": self.reporter.contact,
            "report-id": self.id,
            "policies": [self._policy(self.policies[name], rows) for name, rows in sorted(by_policy.items())],
        }

    def _policy(self, policy: Mapping[str, Any], rows: list[tuple[dict[str, str], int]]) -> dict[str, Any]:
        described: dict[str, Any] = {"policy-type": policy["kind"], "policy-domain": self.domain}
        if policy["strings"]:
            described["policy-string"] = policy["strings"]
        if policy["mx"]:
            described["mx-host"] = policy["mx"]
        failures = [(row, times) for row, times in rows if row["failure"]]
        bad = sum(times for _, times in failures)
        out: dict[str, Any] = {
            "policy": described,
            "summary": {
                "total-successful-session-count": sum(times for _, times in rows) - bad,
                "total-failure-session-count": bad,
            },
        }
        if failures:
            out["failure-details"] = [_detail(row, times) for row, times in failures]
        return out

    def compressed(self) -> bytes:
        """Its JSON in gzip, the same octets each time."""
        return gzip.compress(json.dumps(self.to_json()).encode(), mtime=0)


def read_row(member: str) -> dict[str, str] | None:
    """A row as it was stored; None for what is none."""
    try:
        data = json.loads(member)
        return {key: str(data[key]) for key in ("policy", "failure", "reason", "host", "address", "local")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _detail(row: Mapping[str, str], times: int) -> dict[str, Any]:
    named = {
        "result-type": row["failure"],
        "sending-mta-ip": row["local"],
        "receiving-mx-hostname": row["host"],
        "receiving-ip": row["address"],
        "failure-reason-code": row["reason"],
    }
    return {**{key: value for key, value in named.items() if value}, "failed-session-count": times}


def render_mail(report: Report, sender: str, recipients: Iterable[Address], packed: bytes, now: float) -> bytes:
    """The whole message with CRLF line ends, not signed yet (RFC 8460 section 5.3)."""
    boundary = f"report-{report.day}-{len(packed)}"
    submitter, domain = report.reporter.submitter, report.domain
    head = [
        f"From: {sender}",
        "To: " + ",\r\n ".join(map(str, recipients)),
        f"Subject: Report Domain: {domain}\r\n Submitter: {submitter}\r\n Report-ID: <{report.id}@{submitter}>",
        f"Date: {formatdate(now)}",
        f"Message-ID: <tls-{report.id}@{submitter}>",
        f"TLS-Report-Domain: {domain}",
        f"TLS-Report-Submitter: {submitter}",
        # What it reports must not keep it from arriving, and is not to be counted again.
        "TLS-Required: No",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type="tlsrpt";\r\n boundary="{boundary}"',
    ]
    note = [
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        f"This is an aggregate TLS report for {domain}",
        f"from {submitter}.",
        "",
    ]
    attachment = [
        f"--{boundary}",
        "Content-Type: application/tlsrpt+gzip",
        "Content-Transfer-Encoding: base64",
        f'Content-Disposition: attachment;\r\n filename="{report.filename}"',
        "",
        base64.encodebytes(packed).decode().rstrip().replace("\n", "\r\n"),
        f"--{boundary}--",
        "",
    ]
    return "\r\n".join([*head, "", *note, *attachment]).encode("ascii")
