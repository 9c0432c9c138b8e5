"""DLP: what detectors find and what they leave, thresholds, and that no number is shown."""

from __future__ import annotations

import json

import pytest

from gateway.sdk import Action, Dlp, Mime, MimePart, MimeText
from gateway.sdk.testing import Bench, make_message
from plugins.content.detectors import DETECTORS, masked
from plugins.content.dlp import DetectorOptions
from tests.plugins.test_cards import card, table

CARD, AMEX = "4111111111111111", "378282246310005"
IBAN = "DE89370400440532013000"


def values(detector: str, text: str) -> list[str]:
    found = list(DETECTORS[detector].find(text))
    for value in found:
        assert text[value.start : value.end].replace(" ", "").upper()[:2] == value.value[:2]
    return [value.value for value in found]


@pytest.mark.parametrize(
    "text",
    [
        CARD,
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4111\u00a01111\u00a01111\u00a01111",
        f"card:{CARD}, thanks",
        f"({CARD})",
        f"1234 {CARD}",
        f"05 2027 {CARD} 123",
    ],
)
def test_a_card_number_is_found_in_the_ways_it_is_written(text):
    assert values("payment-card", text) == [CARD]


@pytest.mark.parametrize(
    "number",
    ["5555555555554444", "2223003122003222", AMEX, "30569309025904", "6011111111111117", "3530111333300000",
     "6200000000000005", "4222222222222", "6759649826438453"],
)  # fmt: skip
def test_numbers_of_all_issuers_are_found(number):
    assert values("payment-card", f"pay {number}.") == [number]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "1111111111111117",
        f"{CARD}1",
        f"x{CARD}",
        f"{CARD}_",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "41-11-11-11-11-11-11-11",
        "2027-11-01 10:00:00.123456",
        "+49 30 123456 789",
        "",
    ],
)
def test_what_only_looks_like_a_card_number_is_none(text):
    assert values("payment-card", text) == []


def test_several_cards_in_one_line_are_several():
    assert values("payment-card", f"4111 1111 1111 1111 5555 5555 5555 4444 {AMEX}") == [
        CARD,
        "5555555555554444",
        AMEX,
    ]


@pytest.mark.parametrize("text", [IBAN, "DE89 3704 0044 0532 0130 00", f"iban {IBAN.lower()}.", f"{IBAN} and more"])
def test_a_bank_account_is_found_in_the_ways_it_is_written(text):
    assert values("iban", text) == [IBAN]


@pytest.mark.parametrize(
    "number",
    ["GB82WEST12345698765432", "NO9386011117947", "MT84MALT011000012345MTLCAST001S", "CH9300762011623852957",
     "NL91ABNA0417164300", "FR1420041010050500013M02606", "LC55HEMM000100010012001200023015"],
)  # fmt: skip
def test_bank_accounts_of_many_countries_are_found(number):
    assert values("iban", number) == [number]


@pytest.mark.parametrize(
    "text", ["DE88370400440532013000", f"{IBAN}7", "XX89370400440532013000", "DE89 3704", f"A{IBAN}"]
)
def test_what_only_looks_like_a_bank_account_is_none(text):
    assert values("iban", text) == []


@pytest.mark.parametrize(
    ("detector", "good", "bad"),
    [
        ("us-ssn", "078-05-1120", "000-05-1120 666-05-1120 900-05-1120 078-00-1120 078-05-0000 078051120"),
        ("uk-nino", "AB 12 34 56 C", "DB123456C GB123456C AB123456E"),
        ("es-dni", "12345678Z", "12345678A"),
        ("es-dni", "X1234567L", "X1234567A"),
        ("fr-nir", "2 55 08 14 168 025 38", "2 55 08 14 168 025 39"),
        ("it-codice-fiscale", "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
        ("de-tax-id", "86 095 742 719", "86 095 742 718 12345678901"),
        ("pl-pesel", "44051401458", "44051401459 44991401458"),
        ("nl-bsn", "111222333", "111222334 000000000"),
    ],
)
def test_national_numbers_are_found_by_shape_and_check(detector, good, bad):
    assert values(detector, f"it is {good}, yes") == [good.replace(" ", "").replace("-", "")]
    assert values(detector, bad) == []


@pytest.mark.parametrize("letter", ["\u212a", "\u0130", "\u0131", "\u017f"])
def test_letters_that_are_others_in_another_case_only_are_none_of_a_number(letter):
    """The signs of Kelvin and their like: to Python, `[A-Z]` without case has them too."""
    assert values("it-codice-fiscale", f"{letter}SSMRA85T10A562S") == []
    assert values("uk-nino", f"{letter}B123456C") == []


def mime(*texts: str, kind: str = "text/plain", truncated: bool = False, complete: bool = True) -> Mime:
    parts = tuple(MimePart(f"1.{n}", kind) for n, _ in enumerate(texts, 1))
    found = tuple(MimeText(f"1.{n}", kind, text, truncated) for n, text in enumerate(texts, 1))
    return Mime(parts, texts=found, complete=complete)


def look(given: Mime, subject: str = "x", **options) -> Dlp:
    message = make_message(f"Subject: {subject}\r\n\r\n".encode())
    found = Bench().find("dlp", {"detect": {"payment-card": {}}, **options}, message=message, findings=[given])
    assert isinstance(found, Dlp)
    return found


def test_numbers_are_counted_once_each_and_come_to_a_threshold():
    text = f"{CARD} and 4111 1111 1111 1111 again"
    assert look(mime(text)).count("payment-card") == 1
    assert look(mime(text), detect={"payment-card": {"threshold": 2}}).over == ()
    found = look(mime(text, AMEX), detect={"payment-card": {"threshold": 2}})
    assert (found.over, found.count("payment-card")) == (("payment-card",), 2)


def test_the_subject_and_what_html_shows_are_looked_at():
    assert look(mime(), subject=f"=?utf-8?q?pay_{CARD}?=").over == ("payment-card",)
    found = look(mime(f"<p>4111<b> 1111</b> 1111 1111</p><p>{AMEX}", kind="text/html"))
    assert found.count("payment-card") == 2
    assert look(mime(f'<a href="/{CARD}">x</a>', kind="text/html")).over == ()


def test_words_must_stand_near_where_they_are_asked_for():
    near = {"payment-card": {"near": ["Kreditkarte", "credit card"], "within": 20}}
    assert look(mime(f"my CREDIT CARD: {CARD}"), detect=near).over == ("payment-card",)
    assert look(mime(f"credit card {'x' * 20} {CARD}"), detect=near).over == ()
    assert look(mime(f"order {CARD}"), detect=near).over == ()
    pesel = "44051401458"
    assert look(mime(f"order {pesel}"), detect={"pl-pesel": {}}).over == ()
    assert look(mime(f"PESEL: {pesel}"), detect={"pl-pesel": {}}).over == ("pl-pesel",)
    assert look(mime(f"order {pesel}"), detect={"pl-pesel": {"near": []}}).over == ("pl-pesel",)


def test_a_pattern_of_ones_own_is_a_detector():
    detect = {"project": {"pattern": r"\bPRJ-[0-9]{6}\b", "threshold": 2, "near": ["streng geheim"]}}
    text = "Größe: streng geheim prj-123456, PRJ-654321, PRJ-123456"
    found = look(mime(text), detect=detect)
    assert (found.over, found.count("project")) == (("project",), 3), "case is part of the value"
    assert look(mime(text.replace("geheim", "")), detect=detect).over == ()
    cased = {"project": {**detect["project"], "case": True}}
    assert look(mime(text), detect=cased).count("project") == 2


def test_a_finding_shows_no_number():
    found = look(
        mime(f"{CARD} {AMEX} {IBAN}"), detect={"payment-card": {}, "iban": {}, "own": {"pattern": "[0-9]{5,}"}}
    )
    text = json.dumps(found.to_json())
    for number in (CARD, AMEX, IBAN):
        assert number not in text and number[:8] not in text
    assert "************1111" in text
    assert masked("12345678") == "********" and masked("x" * 500, 2) == "*" * 24 + "xx"
    assert look(mime(CARD), samples=0).detections[0].samples == ()


@pytest.mark.parametrize(
    ("options", "action"),
    [
        ({}, Action.QUARANTINE),
        ({"action": "reject"}, Action.REJECT),
        ({"action": "defer"}, Action.DEFER),
        ({"action": "record"}, Action.PROCEED),
        ({"action": "reject", "detect": {"payment-card": {"action": "record"}}}, Action.PROCEED),
        ({"detect": {"payment-card": {"action": "record"}, "iban": {"action": "reject"}}}, Action.REJECT),
    ],
)
def test_what_is_done_is_what_the_options_say_and_the_reply_tells_nothing(options, action):
    options = {"detect": {"payment-card": {}}, **options}
    found = look(mime(f"{CARD} {IBAN}"), **options)
    verdict = Bench().judge("dlp", options, findings=[found])
    assert verdict.action is action
    assert "payment-card (1)" in verdict.reason and "1111" not in str(verdict.to_json())
    assert verdict.reply is None or "card" not in verdict.reply.text


def test_text_that_was_not_looked_at_is_said_and_can_decide():
    found = look(mime("nothing", truncated=True))
    assert not found.complete and look(mime("nothing")).complete and not look(mime(complete=False)).complete
    options = {"detect": {"payment-card": {}}}
    assert Bench().judge("dlp", options, findings=[found]).action is Action.PROCEED
    assert Bench().judge("dlp", {**options, "unread": "quarantine"}, findings=[found]).action is Action.QUARANTINE


@pytest.mark.parametrize(
    ("detect", "problem"),
    [
        ({}, "at least 1"),
        ({"creditcard": {}}, "needs a pattern; known are payment-card"),
        ({"iban": {"pattern": "x"}}, "is known, and has no pattern"),
        ({"own": {"pattern": "(?=x)"}}, "own: RE2 does not take"),
        ({"own": {"pattern": "x*"}}, "matches the empty text"),
        ({"iban": {"near": [" "]}}, "a word has 1 to 100 characters"),
        ({"iban": {"threshold": 0}}, "greater than or equal to 1"),
    ],
)
def test_wrong_options_say_what_is_wrong(detect, problem):
    with pytest.raises(ValueError, match=problem):
        look(mime(), detect=detect)


def test_texts_made_to_take_long_do_not():
    hostile = ["4" * 100_000, "1 " * 50_000, "4111 " * 20_000, "DE89 " * 20_000, "AA00" * 25_000, "1-2-" * 25_000]
    every = {name: {"near": ["x"]} for name in DETECTORS}
    assert look(mime(*hostile), detect={**every, "own": {"pattern": "(a+)+b"}}).over == ()


def test_more_than_anybody_needs_is_not_counted():
    text = " ".join(f"{n:09d}" for n in range(30_000))
    found = look(mime(text), detect={"own": {"pattern": "[0-9]{9}"}})
    assert (found.count("own"), found.complete) == (10_000, False)


def test_the_options_of_a_detector_and_all_that_are_known_are_on_the_card():
    assert table(DetectorOptions) in card("dlp")
    for name in DETECTORS:
        assert f"| `{name}` |" in card("dlp")
