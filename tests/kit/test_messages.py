"""The messages that tests ask for: what is asked for is there, and nothing else is wrong."""

from __future__ import annotations

import email
import email.policy

import pytest

from gateway.kit.messages import Attached, Damage, MessageFactory
from gateway.sdk import Mime
from gateway.sdk.testing import Bench, make_message

RICH = {"html": "<p>Hello</p>", "attachments": [Attached("a.pdf", b"%PDF-1.7 \xff" * 40, "application/pdf")]}
SEEN_BY_MIME = {
    Damage.NO_FROM: "missing-from",
    Damage.TWO_FROMS: "duplicate-from",
    Damage.NO_DATE: "missing-date",
    Damage.NO_MESSAGE_ID: "missing-message-id",
    Damage.NO_MIME_VERSION: "missing-mime-version",
    Damage.LATIN1_HEADER: "eight-bit-header",
    Damage.BAD_CHARSET: "unknown-charset",
    Damage.BAD_BASE64: "base64-garbage",
    Damage.NO_CLOSING_BOUNDARY: "missing-end-boundary",
    Damage.HEADER_CUT_OFF: "malformed-header",
}


def defects(octets: bytes) -> set[str]:
    """What Gatepost's own reader says is wrong with it."""
    found = Bench().find("mime", message=make_message(octets))
    assert isinstance(found, Mime)
    return {str(defect) for defect in found.defects} | {str(d) for part in found.parts for d in part.defects}


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"text": None, "html": "<p>Gr\xfc\xdfe</p>"},
        {"text": None},
        RICH,
        {**RICH, "nested": 5, "subject": "Gr\xfc\xdfe", "sender": "J\xf6rg <joerg@sender.example>"},
        {"messages": [MessageFactory()(**RICH)], "headers": [("X-A", "1"), ("X-A", "2")]},
        {"text": "Gr\xfc\xdfe\n", "eight_bit": True},
    ],
    ids=str,
)
def test_nothing_is_wrong_with_a_message_unless_it_is_asked_for(made: dict[str, object]) -> None:
    octets = MessageFactory()(**made)  # type: ignore[arg-type]
    assert defects(octets) == set()
    assert octets.replace(b"\r\n", b"").count(b"\n") == octets.replace(b"\r\n", b"").count(b"\r") == 0
    assert octets.endswith(b"\r\n") and max(map(len, octets.split(b"\r\n"))) <= 998
    assert octets.isascii() is ("eight_bit" not in made)


def test_what_is_asked_for_is_read_by_pythons_own_parser() -> None:
    octets = MessageFactory()(
        "Gr\xfc\xdfe\n",
        subject="\xdcber",
        nested=2,
        **RICH,  # type: ignore[arg-type]
        messages=[MessageFactory()(subject="inner")],
        headers=[("X-A", "1")],
    )
    parsed = email.message_from_bytes(octets, policy=email.policy.default)
    assert (parsed["Subject"], parsed["X-A"]) == ("\xdcber", "1")
    types = [part.get_content_type() for part in parsed.walk()]
    assert types[:5] == ["multipart/mixed"] * 3 + ["multipart/alternative", "text/plain"]
    assert types[5:] == ["text/html", "application/pdf", "message/rfc822", "text/plain"]
    parts = {part.get_content_type(): part for part in parsed.walk()}
    assert parts["application/pdf"].get_content() == b"%PDF-1.7 \xff" * 40
    assert parts["application/pdf"].get_filename() == "a.pdf"


def test_header_fields_can_be_plain_utf8() -> None:
    octets = MessageFactory()(subject="Gr\xfc\xdfe", utf8=True)
    assert "\r\nSubject: Gr\xfc\xdfe\r\n".encode() in octets


@pytest.mark.parametrize("damage", list(Damage))
def test_damage_is_done_and_no_other(damage: Damage) -> None:
    whole = MessageFactory()("Hello\n", **RICH)  # type: ignore[arg-type]
    octets = MessageFactory()("Hello\n", **RICH, damage=[damage])  # type: ignore[arg-type]
    assert octets != whole
    body = octets.partition(b"\r\n\r\n")[2]
    bare = octets.replace(b"\r\n", b"")
    assert (b"\n" in bare) is (damage is Damage.BARE_LF)
    assert (b"\r" in bare) is (damage is Damage.BARE_CR)
    assert (b"\0" in body) is (damage is Damage.NUL)
    assert (max(map(len, octets.split(b"\r\n"))) > 998) is (damage is Damage.LONG_LINE)
    assert octets.endswith(b"\r\n") is (damage is not Damage.NO_LAST_LINE_END)
    if damage in SEEN_BY_MIME:
        assert SEEN_BY_MIME[damage] in defects(octets)


def test_several_kinds_of_damage_are_done_together_in_an_order_of_their_own() -> None:
    one = MessageFactory()(damage=["nul", "no-from", "bare-lf"])
    assert one == MessageFactory()(damage=[Damage.BARE_LF, Damage.NUL, Damage.NO_FROM])
    assert b"\0" in one and b"From:" not in one


def test_damage_that_cannot_be_done_is_an_error() -> None:
    with pytest.raises(ValueError, match="bad-base64"):
        MessageFactory()(damage=["bad-base64"])
    with pytest.raises(ValueError, match="nonsense"):
        MessageFactory()(damage=["nonsense"])


def test_the_same_calls_give_the_same_octets() -> None:
    one, other = MessageFactory(), MessageFactory()
    assert [one(**RICH), one()] == [other(**RICH), other()]  # type: ignore[arg-type]
    assert one() != one(), "each message has an id of its own"
