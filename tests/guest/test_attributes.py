"""The policy protocol's requests as octets."""

from __future__ import annotations

import pytest

from gateway.guest.attributes import ATTRIBUTES, REQUEST_OCTETS, AttributeReader, BadRequest

WHOLE = b"request=smtpd_access_policy\nsender=a=b@c\nempty=\nraw=\xff\n\n"
READ = {"request": "smtpd_access_policy", "sender": "a=b@c", "empty": "", "raw": "\udcff"}


def test_a_request_is_its_attributes_and_may_come_in_pieces() -> None:
    reader = AttributeReader()
    assert reader.feed(WHOLE) == [READ]
    assert not reader.partial
    for at in range(1, len(WHOLE)):
        assert reader.feed(WHOLE[:at]) == []
        assert reader.partial
        assert reader.feed(WHOLE[at:]) == [READ]


def test_several_requests_at_once_come_in_order() -> None:
    second = WHOLE.replace(b"empty=", b"empty=2")
    assert AttributeReader().feed(WHOLE + second + WHOLE[:5]) == [READ, {**READ, "empty": "2"}]


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\n", "not a request for access policy"),
        (b"request=other\n\n", "not a request for access policy"),
        (b"sender=x\n\n", "not a request for access policy"),
        (b"GET / HTTP/1.0\r\n", "a line is no attribute"),
        (b"=x\n", "a line is no attribute"),
        (b"a b=x\n", "a line is no attribute"),
        (b"a=b\r\n", "a value holds a control character"),
        (b"a=\0\n", "a value holds a control character"),
        (b"a=1\na=2\n", "an attribute is given twice"),
        (b"".join(b"a%d=\n" % n for n in range(ATTRIBUTES + 1)), "too many attributes"),
        (b"a=" + b"x" * REQUEST_OCTETS, "request is too long"),
        (b"a=" + b"x" * REQUEST_OCTETS + b"\n", "request is too long"),
    ],
)
def test_what_is_no_request_is_said_at_once_and_ends_it(octets: bytes, reason: str) -> None:
    reader = AttributeReader()
    assert reader.feed(WHOLE + octets) == [READ, BadRequest(reason)]
    assert reader.feed(WHOLE) == []
    assert not reader.partial
