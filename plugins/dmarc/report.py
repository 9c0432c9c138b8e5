"""An aggregate report: its XML, and the mail that carries it. Pure.

Nothing of a message is in it but what its domain's owner may know: the client's address, domains, selectors, results.
What strangers chose is cleaned of characters that XML does not have. The same interval and domain give the same
Report-ID, file name and Message-ID, so that a report that comes twice can be told to be the same.

*RFCs*: 9990 sections 3.1 (content), 3.5 (report id, mail); 1952 (gzip), 2045 (MIME), 5322 (dates).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from importlib.metadata import version
from typing import Final
from xml.etree import ElementTree

from plugins.dmarc.options import ReportOptions, Rules
from plugins.dmarc.record import Record
from plugins.dmarc.tally import Period, Row

NAMESPACE: Final = "urn:ietf:params:xml:ns:dmarc-2.0"
_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class Report:
    """All of one report. `domain` is the policy domain, `submitter` who reports; `more` messages are in no row."""

    domain: str
    submitter: str
    period: Period
    record: Record
    rules: Rules
    rows: Sequence[tuple[Row, int]]
    more: int = 0

    @property
    def id(self) -> str:
        """Letters and digits, so that it can be the Report-ID and the unique-id of the file name at once."""
        text = f"{self.submitter}!{self.domain}!{self.period.begin}!{self.period.end}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def filename(self) -> str:
        """RFC 9990 section 3.5.2; the end is the last second that is covered."""
        return f"{self.submitter}!{self.domain}!{self.period.begin}!{self.period.end - 1}!{self.id}.xml.gz"


def render_xml(report: Report, options: ReportOptions) -> bytes:
    """The XML document."""
    ElementTree.register_namespace("", NAMESPACE)
    root = ElementTree.Element(f"{{{NAMESPACE}}}feedback")
    _add(root, "version", "1.0")
    meta = _add(root, "report_metadata")
    _add(meta, "org_name", options.org_name)
    _add(meta, "email", options.email)
    if options.contact:
        _add(meta, "extra_contact_info", options.contact)
    _add(meta, "report_id", report.id)
    dates = _add(meta, "date_range")
    _add(dates, "begin", str(report.period.begin))
    _add(dates, "end", str(report.period.end - 1))
    if errors := _errors(report):
        _add(meta, "error", errors)
    _add(meta, "generator", f"Gatepost {version('gatepost')}")
    _published(root, report)
    for row, count in report.rows:
        _record(root, row, count)
    ElementTree.indent(root)
    xml: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml


def _errors(report: Report) -> str:
    errors = list(report.record.problems)
    if report.more:
        errors.append(f"{report.more} messages more are not shown, there were too many different ones")
    return "; ".join(errors)


def _published(root: ElementTree.Element, report: Report) -> None:
    record = report.record
    published = _add(root, "policy_published")
    _add(published, "domain", report.domain)
    _add(published, "discovery_method", "psl" if report.rules is Rules.RFC7489 else "treewalk")
    _add(published, "p", record.p.value)
    _add(published, "sp", record.sp.value)
    if report.rules is Rules.RFC9989:
        _add(published, "np", record.np.value)
    _add(published, "fo", record.fo)
    _add(published, "adkim", "s" if record.strict_dkim else "r")
    _add(published, "aspf", "s" if record.strict_spf else "r")
    if report.rules is Rules.RFC9989:
        _add(published, "testing", "y" if record.testing else "n")


def _record(root: ElementTree.Element, row: Row, count: int) -> None:
    record = _add(root, "record")
    line = _add(record, "row")
    _add(line, "source_ip", row.client)
    _add(line, "count", str(count))
    evaluated = _add(line, "policy_evaluated")
    _add(evaluated, "disposition", row.disposition)
    _add(evaluated, "dkim", "pass" if row.dkim else "fail")
    _add(evaluated, "spf", "pass" if row.spf else "fail")
    if row.override:
        reason = _add(evaluated, "reason")
        _add(reason, "type", row.override)
        if row.comment:
            _add(reason, "comment", row.comment)
    identifiers = _add(record, "identifiers")
    _add(identifiers, "header_from", row.header_from)
    _add(identifiers, "envelope_from", row.envelope_from)
    results = _add(record, "auth_results")
    for domain, selector, result in row.signatures:
        signature = _add(results, "dkim")
        _add(signature, "domain", domain)
        _add(signature, "selector", selector)
        _add(signature, "result", result)
    if row.spf_result:
        spf = _add(results, "spf")
        _add(spf, "domain", row.spf_domain)
        _add(spf, "scope", "mfrom")
        _add(spf, "result", row.spf_result)


def _add(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, f"{{{NAMESPACE}}}{name}")
    if text is not None:
        element.text = clean(text)
    return element


def clean(text: str) -> str:
    """Text that any XML reader takes: no control characters, no halves of surrogate pairs, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT])


def compress(xml: bytes) -> bytes:
    """Gzip without a time of its own, so that the same report has the same octets."""
    return gzip.compress(xml, mtime=0)


def render_mail(report: Report, options: ReportOptions, recipients: Sequence[str], packed: bytes, now: float) -> bytes:
    """The whole message, with CRLF line ends."""
    boundary = f"report-{report.id}"
    # By hand: the email package would encode a long domain name in the subject, and readers look for it by its text.
    head = [
        f"From: {options.email}",
        "To: " + ",\r\n ".join(recipients),
        f"Subject: Report Domain: {report.domain}\r\n Submitter: {report.submitter}\r\n Report-ID: <{report.id}>",
        f"Date: {formatdate(now)}",
        f"Message-ID: <{report.id}@{report.submitter}>",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/mixed; boundary="{boundary}"',
    ]
    begin, end = formatdate(report.period.begin), formatdate(report.period.end)
    note = [
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        f"This is a DMARC aggregate report for {report.domain}",
        f"from {report.submitter}.",
        f"It covers {begin} to {end}.",
        "",
    ]
    attachment = [
        f"--{boundary}",
        "Content-Type: application/gzip",
        "Content-Transfer-Encoding: base64",
        f'Content-Disposition: attachment;\r\n filename="{report.filename}"',
        "",
        base64.encodebytes(packed).decode().rstrip().replace("\n", "\r\n"),
        f"--{boundary}--",
        "",
    ]
    return "\r\n".join([*head, "", *note, *attachment]).encode("ascii")
