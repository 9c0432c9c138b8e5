"""Text for mail that nobody wrote: sentences from a word list of our own, the same for the same dice."""

from __future__ import annotations

import random
from typing import Final

_NOUNS: Final = (
    "harbour lantern orchard ledger kettle bridge parcel garden violin window engine meadow chapter kitchen "
    "station carpet mountain letter ribbon saddle village anchor basket candle feather glacier hammer island "
    "journal ladder mirror needle orange pencil quarry river shelter timber umbrella valley whistle yard zephyr"
).split()
_VERBS: Final = (
    "carries follows opens mends counts paints answers gathers measures borrows delivers finds keeps leaves "
    "moves orders prints returns sends turns visits watches"
).split()
_ADJECTIVES: Final = (
    "quiet green narrow early wooden distant plain sturdy bright heavy modern gentle second upper local annual "
    "steady small round open yellow famous"
).split()
_FOREIGN: Final = "Grüße Straße Äpfel façade señor naïve smörgåsbord žluťoučký øre 郵便 встреча".split()
_HOOKS: Final = ("limited offer", "last reminder", "you have won", "cheap pills", "act now", "wire the fee")


def name(dice: random.Random) -> str:
    """Two words, as people and machines are called here: of letters only, 24 at most with what joins them."""
    return f"{dice.choice(_ADJECTIVES)}.{dice.choice(_NOUNS)}"


def label(dice: random.Random) -> str:
    """A label for a domain."""
    return dice.choice(_ADJECTIVES) + dice.choice(_NOUNS)


def sentence(dice: random.Random) -> str:
    words = [dice.choice(_ADJECTIVES), dice.choice(_NOUNS), dice.choice(_VERBS), "the", dice.choice(_NOUNS)]
    return " ".join(words).capitalize() + "."


def subject(dice: random.Random) -> str:
    """A subject, now and then with words that ASCII does not hold."""
    text = f"The {dice.choice(_ADJECTIVES)} {dice.choice(_NOUNS)}"
    return f"{text} {dice.choice(_FOREIGN)}" if dice.random() < 0.2 else text


def hook(dice: random.Random) -> str:
    """A subject as senders of spam like them."""
    return f"{dice.choice(_HOOKS).capitalize()}: {dice.choice(_NOUNS)}"


def text(dice: random.Random, sentences: int) -> str:
    """Paragraphs of five sentences each, in lines that end in CRLF."""
    lines = [sentence(dice) + " " + sentence(dice) for _ in range((sentences + 1) // 2)]
    return "\r\n".join(line if n % 3 else f"\r\n{line}" for n, line in enumerate(lines, 1)) + "\r\n"
