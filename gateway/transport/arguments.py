"""The words of a command, with addresses put in. Pure.

A word of the configuration stays one word, whatever an address holds; nothing goes through a shell. What could be
taken for an option or for a way out of a directory is refused, since nobody can quote it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gateway.mail.address import Address, Sender

PLACEHOLDERS: Final = ("sender", "recipient", "local", "domain", "id")
OF_THE_RECIPIENT: Final = ("recipient", "local", "domain")

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}?|\}")
_LITERAL: Final = re.compile(r"[A-Za-z0-9_.,:=@%+/^~-]*\Z")
_TAKES_CODE: Final = frozenset({"-c", "-e", "-lc"})
_UP: Final = frozenset({"", ".", ".."})


class Unsafe(Exception):
    """An address cannot be handed over. `sender` says that it is the sender's."""

    def __init__(self, problem: str, *, sender: bool) -> None:
        super().__init__(problem)
        self.sender = sender


def check_word(number: int, words: Sequence[str]) -> None:
    """Check one word of a command; raises ValueError with a text for whoever wrote the configuration."""
    word = words[number]
    if "\0" in word:
        raise ValueError("a NUL cannot stand in a word of a command")
    found = [match[0] for match in _PLACEHOLDER.finditer(word)]
    if number == 0:
        if found or not word.startswith("/"):
            raise ValueError("the command's own name is an absolute path, such as /usr/bin/procmail")
        return
    for text in found:
        if text[1:-1] not in PLACEHOLDERS or not text.endswith("}"):
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"{text!r} is no placeholder; there are {known}")
    if found and words[number - 1] in _TAKES_CODE:
        raise ValueError(f"an address would be run as code after {words[number - 1]}; give it as a later word")
    if found and not _LITERAL.match(_PLACEHOLDER.sub("", word)):
        raise ValueError("beside a placeholder only letters, digits and _.,:=@%+/^~- may stand in a word")


def uses(words: Sequence[str], names: Sequence[str]) -> bool:
    """Whether any of the placeholders stands in the words."""
    return any(f"{{{name}}}" in word for word in words for name in names)


def build(words: Sequence[str], id: str, sender: Sender, recipients: Sequence[Address], hostname: str) -> list[bytes]:
    """The argument vector. A word that names the recipient is repeated for each of several.

    ``{recipient}`` and ``{sender}`` are as they came, the null sender is empty; ``{local}`` and ``{domain}`` are in
    lower case, the domain as A-labels. Raises `Unsafe`.
    """
    common = {"sender": str(sender), "id": id}
    each = [_of(address, hostname) for address in recipients]
    out: list[bytes] = []
    options_end = False
    for word in words:
        for values in each if uses((word,), OF_THE_RECIPIENT) else each[:1]:
            out.append(_fill(word, {**common, **values}, options_end=options_end).encode())
        options_end = options_end or word == "--"
    return out


def _of(address: Address, hostname: str) -> dict[str, str]:
    domain = address.ascii_domain or hostname
    return {"recipient": str(address), "local": address.local.lower(), "domain": domain}


def _fill(word: str, values: dict[str, str], *, options_end: bool) -> str:
    names = [match[1] for match in _PLACEHOLDER.finditer(word)]
    if not names:
        return word
    by_sender = "sender" in names and not set(names) & set(OF_THE_RECIPIENT)
    for name in names:
        value = values[name]
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise Unsafe("an address with control characters cannot be handed to a command", sender=name == "sender")
        if "/" in word and ("/" in value or (value in _UP and name != "sender")):
            raise Unsafe("an address that would lead elsewhere cannot stand in a path", sender=name == "sender")
    filled = _PLACEHOLDER.sub(lambda match: values[match[1]], word)
    if filled.startswith("-") and not word.startswith("-") and not options_end:
        raise Unsafe("an address that begins with - would be taken for an option", sender=by_sender)
    return filled
