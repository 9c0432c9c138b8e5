# ruff: noqa: RUF001 - letters that look like others are what this is about
"""Texts that look like others: letters of other scripts, digits for letters, accents, and single wrong keys.

The table holds letters that look like Latin ones in common fonts, of the scripts that mail programs and registries of
domains allow. It is part of the code, and not of a library that is updated, so that the same mail is judged the same
when it is judged again.

The idea of a skeleton is that of Unicode Technical Standard 39, section 4.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from gateway.sdk.deprecation import old_names

__all__ = [
    "TEXT_CHARACTERS",
    "edit_distance",
    "name_words",
    "skeleton",
]

TEXT_CHARACTERS: Final = 16_384
"""Characters of a text that are looked at: many of them may be invisible."""

_LETTERS: Final = {
    "a": "аАɑαΑᴀӑӓꭺᎪꓮ",
    "b": "ЬьвВΒβᏴꓐɓʙ",
    "c": "сСϲϹᴄϾᏟꓚ",
    "d": "ԁԀɗđĐᎠꓓ",
    "e": "еЕΕєЄεɛҽᴇᎬꓰ",
    "f": "ϝϜƒꞙքꓝ",
    "g": "ɡɢԌԍցᏀꓖ",
    "h": "һҺΗнНհħʜᎻꓧ",
    "j": "јЈϳյʝᎫꓙ",
    "k": "кКκΚқҚᴋᏦꓗ",
    "m": "мМΜᴍᎷꓟ",
    "n": "ΝпПηηոռɴꓠ",
    "o": "оОοΟσօՕοoөӨøØᴏⲟ०০੦૦๐໐ഠഃ၀ჿꓳ0",
    "p": "рРρΡᴘᏢꓑ",
    "q": "ԛԚզգ",
    "r": "гГɾʀᴦᏒꓣ",
    "s": "ѕЅꜱՏᏚꓢ5",
    "t": "тТτΤᴛŧŦᎢꓔ",
    "u": "υսʋᴜꓴ",
    "v": "νѵѴᴠᏙꓦ",
    "w": "ѡԝԜωաᴡᎳꓪ",
    "x": "хХχΧꓫ",
    "y": "уУүҮγɣΥʏყᎩꓬ",
    "z": "ᴢΖᏃꓜ",
    # All that looks like a stroke is one letter, since capital i and small L do.
    "l": "iIɪιΙіІӀӏıłŁɩ1ǀᎥᏞꓡꓲוا",
}
_FOLDED: Final = {ord(other): letter for letter, others in _LETTERS.items() for other in others}
_PAIRS: Final = (("rn", "m"), ("vv", "w"), ("cl", "d"))
_INVISIBLE: Final = ("Mn", "Me", "Cf", "Cc", "Cs")


def skeleton(text: str) -> str:
    """What a reader may take the text for: texts that look alike have the same skeleton. No text to show.

    Case, accents, invisible characters and wide or styled forms go; letters of other scripts become the Latin ones that
    they look like, ``0`` an ``o``, and ``i``, ``1`` and ``l`` the same.
    """
    apart = unicodedata.normalize("NFKD", text[:TEXT_CHARACTERS].translate(_FOLDED))[: 2 * TEXT_CHARACTERS]
    visible = "".join(c for c in apart if unicodedata.category(c) not in _INVISIBLE)
    # Capitals have look-alikes of their own, which neither their decomposition nor their small letters have.
    plain = visible.translate(_FOLDED).casefold().translate(_FOLDED)
    for pair, letter in _PAIRS:
        plain = plain.replace(pair, letter)
    return plain


def name_words(text: str) -> tuple[str, ...]:
    """The skeletons of a text's words: what letters and digits make up, in order."""
    return tuple("".join(c if c.isalnum() else " " for c in skeleton(text)).split())


def edit_distance(one: str, other: str, most: int) -> int:
    """How many keys apart two texts are: letters put in, left out, changed, or swapped with their neighbour.

    More than `most` is given as ``most + 1``. For texts as short as domains: its time is both lengths, multiplied.
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    far = most + 1
    before: list[int] = []
    row = [min(n, far) for n in range(len(other) + 1)]
    for i, letter in enumerate(one, 1):
        before, last = row, before
        row = [far] * (len(other) + 1)
        row[0] = min(i, far)
        for j in range(max(1, i - most), min(len(other), i + most) + 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other[j - 1]))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == other[j - 1]:
                cost = min(cost, last[j - 2] + 1)
            row[j] = min(cost, far)
        if min(row) > most:
            return far
    return row[-1]


if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
