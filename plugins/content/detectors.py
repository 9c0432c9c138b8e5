"""Detectors of data that should stay in the house: what looks like it, unless its check digits disprove that.

A detector gives values in a form of their own (without separators), so that one that stands there twice is one. Looking
takes linear time. No value leaves this module but in `masked`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from plugins.content.pattern import Flags, Kind, compile_pattern

MOST: Final = 10_000
"""Candidates of one detector in one text; nobody needs to know of more."""
_SHOWN: Final = 24


@dataclass(frozen=True, slots=True)
class Value:
    """A value in its own form, and where it stands in the text."""

    value: str
    start: int
    end: int


Find = Callable[[str], Iterator[Value]]


def masked(value: str, tail: int = 4) -> str:
    """A value of which only its last characters can be read, and none of a short one."""
    shown = tail if len(value) >= 2 * tail + 4 else 0
    hidden = "*" * min(len(value) - shown, _SHOWN)
    return hidden + (value[len(value) - shown :] if shown else "")


# Check digits


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) << (place & 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(text: str) -> bool:
    """ISO 7064 MOD 97-10, as IBANs have it (ISO 13616): letters are two digits, the first four characters go last."""
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def mod11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


# Payment cards

_CARD_RUN: Final = re.compile(r"(?<![\w])\d(?:[ .\-\u00a0]?\d){11,}(?![\w])")
_GROUP: Final = re.compile(r"\d+")
_ISSUERS: Final = (
    ("4", "4", (13, 16, 19)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("300", "305", (14, 16, 17, 18, 19)),
    ("3095", "3095", (14, 16, 17, 18, 19)),
    ("36", "36", (14, 15, 16, 17, 18, 19)),
    ("38", "39", (14, 16, 17, 18, 19)),
    ("3528", "3589", (16, 17, 18, 19)),
    ("6011", "6011", (16, 17, 18, 19)),
    ("62", "62", (16, 17, 18, 19)),
    ("644", "659", (16, 17, 18, 19)),
    ("5018", "5018", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("5020", "5020", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("5038", "5038", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("5893", "5893", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("6304", "6304", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("6759", "6763", (12, 13, 14, 15, 16, 17, 18, 19)),
)
"""First digits from and to, and lengths: Visa, Mastercard, Amex, Diners, JCB, Discover, UnionPay, Maestro."""
_LONGEST_CARD: Final = 19


def is_card(digits: str) -> bool:
    """Whether it is a payment card number: an issuer's range and length, and Luhn's check digit."""
    known = any(low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in _ISSUERS)
    return known and luhn(digits)


def find_cards(text: str) -> Iterator[Value]:
    """Payment card numbers, in one piece or in groups; a run of groups may hold several."""
    for run in _CARD_RUN.finditer(text):
        groups = [(m.start() + run.start(), m.end() + run.start(), m[0]) for m in _GROUP.finditer(run[0])]
        at = 0
        while at < len(groups):
            at = yield from _card_from(groups, at)


def _card_from(groups: list[tuple[int, int, str]], first: int) -> Any:
    """A card that begins with this group, if there is one; gives the group to go on with."""
    digits = ""
    for last in range(first, len(groups)):
        _, end, group = groups[last]
        digits += group
        if len(digits) > _LONGEST_CARD:
            break
        if is_card(digits):
            yield Value(digits, groups[first][0], end)
            return last + 1
        # Numbers are written in groups of three and more; only the last one may be shorter.
        if len(group) < 3:
            break
    return first + 1


# IBANs

_IBAN: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ \-\u00a0]?[A-Za-z0-9]){11,30}")
_SEPARATORS: Final = re.compile(r"[ .\-\u00a0/]")
_IBAN_LENGTHS: Final = {
    country: int(length)
    for country, length in (
        pair.split(":")
        for pair in (
            "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 "
            "DJ:27 DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 "
            "HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 "
            "MD:24 ME:22 MK:19 MN:20 MR:27 MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 "
            "RS:22 RU:33 SA:24 SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 "
            "VG:24 XK:20 YE:30"
        ).split()
    )
}


def find_ibans(text: str) -> Iterator[Value]:
    """International bank account numbers: the country's length, and check digits by MOD 97-10."""
    at = 0
    while match := _IBAN.search(text, at):
        value, end = _cut_iban(match[0])
        at = match.start() + max(end, 2)
        if end and not text[at : at + 1].isalnum() and mod97(value):
            yield Value(value, match.start(), at)


def _cut_iban(text: str) -> tuple[str, int]:
    """As many characters as the country has, and where they end in the text; 0 where there are not as many."""
    wanted, value = _IBAN_LENGTHS.get(text[:2].upper(), 0), ""
    for place, character in enumerate(text, 1):
        if not _SEPARATORS.match(character):
            value += character.upper()
            if len(value) == wanted:
                return value, place
    return "", 0


# National numbers: each a shape and a check


def _shaped(shape: str, good: Callable[[str], bool]) -> Find:
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{shape})(?![A-Za-z0-9])", re.IGNORECASE | re.ASCII)

    def find(text: str) -> Iterator[Value]:
        for match in pattern.finditer(text):
            value = _SEPARATORS.sub("", match[0]).upper()
            if good(value):
                yield Value(value, match.start(), match.end())

    return find


def _us_ssn(digits: str) -> bool:
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def _uk_nino(value: str) -> bool:
    return value[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _es_dni(value: str) -> bool:
    number = value[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == value[-1]


def _de_tax_id(digits: str) -> bool:
    # Of the first ten digits one stands there twice or three times.
    counts = sorted(digits[:10].count(d) for d in set(digits[:10]))
    return digits[0] != "0" and counts[-1] in (2, 3) and len(counts) >= 8 and mod11_10(digits)


def _fr_nir(value: str) -> bool:
    body = value[:-2].replace("2A", "19").replace("2B", "18")
    return 97 - int(body) % 97 == int(value[-2:])


def _pl_pesel(digits: str) -> bool:
    month = int(digits[2:4]) % 20
    sum_ = _weighted(digits[:10], (1, 3, 7, 9, 1, 3, 7, 9, 1, 3))
    return 1 <= month <= 12 and 1 <= int(digits[4:6]) <= 31 and (10 - sum_ % 10) % 10 == int(digits[10])


def _nl_bsn(digits: str) -> bool:
    return digits.strip("0") != "" and _weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


_ODD_DIGITS: Final = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS: Final = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _it_codice_fiscale(value: str) -> bool:
    total = 0
    for place, character in enumerate(value[:15]):
        number = int(character) if character.isdigit() else ord(character) - 65
        odd = _ODD_DIGITS if character.isdigit() else _ODD_LETTERS
        total += number if place % 2 else odd[number]
    return chr(65 + total % 26) == value[15]


@dataclass(frozen=True, slots=True)
class Detector:
    """How to find a kind of data. `near` are words of which one must stand near it, unless the options name others."""

    find: Find
    near: tuple[str, ...] = ()
    tail: int = 4


DETECTORS: Final[dict[str, Detector]] = {
    "payment-card": Detector(find_cards),
    "iban": Detector(find_ibans),
    "us-ssn": Detector(_shaped(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", _us_ssn)),
    "uk-nino": Detector(
        _shaped(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", _uk_nino), tail=2
    ),
    "es-dni": Detector(_shaped(r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-Z]", _es_dni), tail=2),
    "fr-nir": Detector(_shaped(r"[12] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", _fr_nir)),
    "it-codice-fiscale": Detector(
        _shaped(r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]", _it_codice_fiscale)
    ),
    "de-tax-id": Detector(
        _shaped(r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", _de_tax_id),
        near=("steuer", "identifikationsnummer", "idnr", "id-nr", "tax id", "tin"),
    ),
    "pl-pesel": Detector(_shaped(r"[0-9]{11}", _pl_pesel), near=("pesel",)),
    "nl-bsn": Detector(_shaped(r"[0-9]{3}\.?[0-9]{2}\.?[0-9]{4}|[0-9]{9}", _nl_bsn), near=("bsn", "burgerservice")),
}


def pattern_detector(pattern: str, *, case: bool) -> Find:
    """A detector of what a postmaster's own expression matches. Raises ValueError for what RE2 does not take."""
    made = compile_pattern(pattern, Kind.PCRE, Flags(ignore_case=not case), decoded=True)
    if made.search(b"") is not None:
        raise ValueError("the pattern matches the empty text, so it would be found everywhere")

    def find(text: str) -> Iterator[Value]:
        octets = text.encode("utf-8", "replace")
        place = reached = 0
        for count, match in enumerate(made.compiled.finditer(octets)):
            if count >= MOST:
                return
            start, end = match.span()
            place += len(octets[reached:start].decode("utf-8", "replace"))
            reached = start
            value = octets[start:end].decode("utf-8", "replace")
            yield Value(" ".join(value.split()), place, place + len(value))

    return find


class Near:
    """Whether one of some words stands near a place. Words are compared without case, and are parts of words, too."""

    def __init__(self, words: tuple[str, ...], within: int) -> None:
        self._words = tuple(word.casefold() for word in words)
        self._within = within

    def __call__(self, text: str, value: Value) -> bool:
        if not self._words:
            return True
        before = text[max(0, value.start - self._within) : value.start]
        around = (before + "\0" + text[value.end : value.end + self._within]).casefold()
        return any(word in around for word in self._words)
