"""The TLS report of a domain: who wants it, what is in it, how it is mailed."""

from __future__ import annotations

import email
import email.policy
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transport.tlsreport import TARGETS, Report, Reporter, Targets, read_record, render_mail

DAY = 20418
"""2025-11-26."""


@pytest.mark.parametrize(
    ("records", "mail", "https"),
    [
        ([b"v=TLSRPTv1; rua=mailto:reports@example.net"], ["reports@example.net"], []),
        ([b"v=TLSRPTv1;rua=mailto:a@example.net,https://r.example/v1?x=1"], ["a@example.net"], ["https://r.example/v1?x=1"]),
        ([b"other", b"v=TLSRPTv1; ext=1; rua=mailto:a%40b@example.net, mailto:b@example.net"], ["b@example.net"], []),
        ([b"v=TLSRPTv1; rua=mailto:a@example.net", b"v=TLSRPTv1; rua=mailto:b@example.net"], [], []),
        ([b"v=TLSRPTv1; rua=http://r.example/"], [], []),
        ([b"v=TLSRPTv1; rua=https://user@r.example/"], [], []),
        ([b"v=TLSRPTv1; rua=mailto:a@example.net%0d%0aBcc:x@y.example"], [], []),
        ([b"v=TLSRPTv1"], [], []),
        ([b"v=TLSRPTv2; rua=mailto:a@example.net"], [], []),
        ([], [], []),
    ],
)  # fmt: skip
def test_targets_are_read_from_exactly_one_good_record(records: list[bytes], mail: list[str], https: list[str]):
    found = read_record(records)
    assert [str(address) for address in found.mail] == mail and list(found.https) == https


def test_nobody_can_ask_for_any_number_of_reports():
    record = b"v=TLSRPTv1; rua=" + b",".join(b"mailto:a%d@example.net" % n for n in range(50))
    assert len(read_record([record]).mail) == TARGETS


@given(st.lists(st.binary(max_size=40).map(lambda b: b"v=TLSRPTv1; rua=" + b) | st.binary(max_size=40), max_size=3))
def test_no_record_is_too_strange_to_be_read(records: list[bytes]):
    found = read_record(records)
    assert isinstance(found, Targets)
    assert all(ord(c) > 32 for address in found.mail for c in address.domain)


def row(policy: str = "p", failure: str = "", **more: str) -> str:
    data = {"policy": policy, "failure": failure, "reason": "", "host": "", "address": "", "local": "", **more}
    return json.dumps(data)


POLICIES: dict[str, dict[str, Any]] = {
    "p": {"kind": "sts", "strings": ["version: STSv1", "mode: testing"], "mx": ["*.example.net"]},
    "q": {"kind": "no-policy-found", "strings": [], "mx": []},
}
ROWS = {
    row(): 5326,
    row(
        failure="certificate-expired", reason="expired", host="mx.example.net", address="192.0.2.1", local="192.0.2.9"
    ): 100,
    row(failure="starttls-not-supported", host="mx2.example.net"): 203,
    row("q"): 7,
    row("gone"): 9,
    "junk": 1,
    "[]": 1,
}
REPORT = Report(Reporter("Example Org", "postmaster@example.org", "example.org"), "example.net", DAY, ROWS, POLICIES)


def test_a_report_says_what_happened_by_policy():
    data = REPORT.to_json()
    assert data["organization-name"] == "Example Org" and data["contact-info"] == "postmaster@example.org"
    assert data["report-id"] == "2025-11-26.example.net"
    assert data["date-range"] == {"start-datetime": "2025-11-26T00:00:00Z", "end-datetime": "2025-11-26T23:59:59Z"}
    sts, without = data["policies"]
    assert sts["policy"] == {
        "policy-type": "sts",
        "policy-string": ["version: STSv1", "mode: testing"],
        "policy-domain": "example.net",
        "mx-host": ["*.example.net"],
    }
    assert sts["summary"] == {"total-successful-session-count": 5326, "total-failure-session-count": 303}
    assert sts["failure-details"][0] == {
        "result-type": "certificate-expired",
        "sending-mta-ip": "192.0.2.9",
        "receiving-mx-hostname": "mx.example.net",
        "receiving-ip": "192.0.2.1",
        "failed-session-count": 100,
        "failure-reason-code": "expired",
    }
    assert without == {
        "policy": {"policy-type": "no-policy-found", "policy-domain": "example.net"},
        "summary": {"total-successful-session-count": 7, "total-failure-session-count": 0},
    }


def test_a_report_is_mailed_as_the_standard_has_it():
    (to,) = read_record([b"v=TLSRPTv1; rua=mailto:reports@example.net"]).mail
    packed = REPORT.compressed()
    octets = render_mail(REPORT, "tls@example.org", [to], packed, 1.7e9)
    assert octets.count(b"\n") == octets.count(b"\r\n") and octets.isascii()
    mail = email.message_from_bytes(octets, policy=email.policy.default)
    assert (mail["From"], mail["To"]) == ("tls@example.org", "reports@example.net")
    assert (
        mail["Subject"]
        == "Report Domain: example.net Submitter: example.org Report-ID: <2025-11-26.example.net@example.org>"
    )
    assert (mail["TLS-Report-Domain"], mail["TLS-Report-Submitter"]) == ("example.net", "example.org")
    assert mail["TLS-Required"] == "No"
    assert mail.get_content_type() == "multipart/report" and mail.get_param("report-type") == "tlsrpt"
    note, attachment = mail.iter_parts()  # type: ignore[attr-defined]
    assert note.get_content_type() == "text/plain"
    assert attachment.get_content_type() == "application/tlsrpt+gzip"
    assert attachment.get_filename() == "example.org!example.net!1764115200!1764201599!20418.json.gz"
    assert json.loads(gzip.decompress(attachment.get_payload(decode=True))) == REPORT.to_json()
