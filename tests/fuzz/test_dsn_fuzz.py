"""DSNs made of hostile parts are still DSNs."""

from __future__ import annotations

import asyncio
import email
import email.policy
import quopri
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.address import Address
from gateway.mail.envelope import MailParameters, Recipient, Ret
from gateway.mail.message import split_header
from gateway.queue import dsn
from gateway.queue.dsn import Original, Writer
from gateway.queue.lifecycle import Action, Report
from tests.queue.rig import START, Octets, stored

_HOSTILE = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(codec="utf-8"), max_size=2000),
    st.text('\r\n \t\0"<>()@;:+=\\x{}.-Aä\u2028\ud800', max_size=80),
    st.builds(
        "\r\n".join, st.lists(st.sampled_from(["Bcc: x@y.example", "", "--=_D1.0", "--=_D1.0--", "."]), max_size=6)
    ),
)
_OCTETS = st.one_of(
    st.binary(max_size=400),
    st.builds(
        b"".join,
        st.lists(
            st.sampled_from(
                [b"Subject: a\r\n", b" fold\r\n", b"\r\n", b"\r", b"\n", b"\0", b"--=_D1.0\r\n", b"--=_D1.1--\r\n",
                 b"Message-ID: <a@b>\r\n", b"X: " + b"y" * 1200 + b"\r\n", b"\xff\xfe", "ü".encode(), b"=", b". \r\n"]
            ),
            max_size=20,
        ),
    ),
)  # fmt: skip
_ADDRESS = st.builds(Address, _HOSTILE, _HOSTILE)
_REPORT = st.builds(
    Report, st.builds(Recipient, _ADDRESS, st.just(frozenset()), _HOSTILE), st.sampled_from(Action), _HOSTILE, _HOSTILE,
    st.booleans(), st.booleans(),
)  # fmt: skip
_PARAMETERS = st.builds(MailParameters, smtputf8=st.booleans(), envid=_HOSTILE, ret=st.sampled_from([None, *Ret]))
_ALLOWED = {
    "from", "to", "subject", "date", "message-id", "in-reply-to", "references", "auto-submitted", "mime-version",
    "content-type",
}  # fmt: skip
_STATUS_FIELDS = {
    "original-envelope-id", "reporting-mta", "x-gatepost-queue-id", "arrival-date", "original-recipient",
    "final-recipient", "action", "status", "remote-mta", "diagnostic-code", "last-attempt-date", "will-retry-until",
}  # fmt: skip


@settings(max_examples=300)
@given(_ADDRESS, _PARAMETERS, st.lists(_REPORT, min_size=1, max_size=4), _OCTETS, st.booleans())
def test_a_dsn_of_hostile_parts_is_well_formed(
    sender: Address, parameters: MailParameters, reports: list[Report], octets: bytes, readable: bool
) -> None:
    message = stored(sender=sender, parameters=parameters, size=len(octets))
    original = asyncio.run(dsn.read_original(message, Octets(octets))) if readable else None
    new = dsn.write("D1", message, reports, original, START + 60, Writer("mx.example.org", 432000.0))

    lines = new.content.split(b"\r\n")
    assert lines[-1] == b""
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)
    assert max(map(len, lines)) <= 998
    if new.content.isascii():
        assert new.message.envelope.parameters.body == "7BIT"

    parsed = email.message_from_bytes(new.content, policy=email.policy.compat32)
    assert {name.lower() for name in parsed.keys()} <= _ALLOWED
    assert len(parsed.keys()) == len(set(parsed.keys()))
    assert not parsed.defects
    if not new.message.envelope.parameters.smtputf8:
        assert new.content[: new.content.index(b"\r\n\r\n")].isascii()

    boundary = parsed.get_boundary()
    assert boundary
    parts = new.content.split(f"\r\n--{boundary}".encode())
    returned = original.octets if original is not None else b""
    if original is not None and original.full and not any(report.action is Action.FAILED for report in reports):
        # Where nothing failed, no more than the fields is returned.
        returned = b"".join(field.raw for field in split_header(returned)[0] if field.raw.endswith(b"\r\n"))
    assert len(parts) == (5 if returned else 4)
    assert parts[-1] == b"--\r\n"
    _check_status(parts[2], len(reports))


def _check_status(part: bytes, reports: int) -> None:
    header, body = part.split(b"\r\n\r\n", 1)
    assert re.match(rb"\r\nContent-Type: message/(global-)?delivery-status(\r\n|\Z)", header)
    if b"quoted-printable" in header:
        body = quopri.decodestring(body)
    groups = body.removesuffix(b"\r\n").split(b"\r\n\r\n")
    assert len(groups) == 1 + reports
    for group in groups:
        names = [line.split(b":")[0].decode().lower() for line in group.split(b"\r\n") if not line.startswith(b" ")]
        assert set(names) <= _STATUS_FIELDS and len(names) == len(set(names))
    for group in groups[1:]:
        assert re.search(rb"(?m)^Final-Recipient: (rfc822|utf-8); ", group)
        assert re.search(rb"(?m)^Action: (failed|delayed|delivered|relayed)\r?$", group)
        assert re.search(rb"(?m)^Status: [245]\.\d{1,3}\.\d{1,3}\r?$", group)


@settings(max_examples=200)
@given(_OCTETS, st.sampled_from([None, *Ret]))
def test_the_returned_header_section_is_made_of_whole_fields(octets: bytes, ret: Ret | None) -> None:
    message = stored(parameters=MailParameters(ret=ret), size=len(octets))
    original: Original = asyncio.run(dsn.read_original(message, Octets(octets)))
    if original.full:
        assert original.octets == octets
    else:
        assert octets.startswith(original.octets)
        assert original.octets == b"" or original.octets.endswith(b"\r\n")
