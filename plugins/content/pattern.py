"""Regular expressions of Postfix's regexp_table(5) and pcre_table(5), as RE2 understands them.

RE2 takes time that is linear in what it looks at, whatever the pattern is. Where its syntax means something else than
the table's, the pattern is translated; where it cannot say it (look-around, back references), the pattern is refused.
Nothing is taken and then read in another way.

*Fails by*: ValueError that says what is wrong with a pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import re2

PATTERN_CHARACTERS: Final = 4_000
_MEMORY: Final = 8 << 20
_LETTERS: Final = frozenset("wWsSbB")
"""Escapes of letters that GNU's extended expressions know."""
_WORD_CHARACTER: Final = re.compile(r"\w", re.ASCII)
_BRACKET_CLASS: Final = re.compile(r"\[:(\^?)([a-z]{4,6}):\]")
_CLASSES: Final = frozenset(
    "alnum alpha ascii blank cntrl digit graph lower print punct space upper word xdigit".split()
)
_REPEAT: Final = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_PCRE_ONLY: Final = {"h": "[ \\t]", "Z": "\\z", "e": "\\x1b", "N": "[^\\n]"}
_PCRE_OTHER: Final = frozenset("vVHRXKGC")
"""Escapes that RE2 does not know, or knows as something else."""


class Kind(StrEnum):
    """How patterns are written."""

    REGEXP = "regexp"
    """POSIX extended expressions, as GNU has them."""
    PCRE = "pcre"
    """Perl's, as far as they need no going back."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What letters after a pattern came to, over the kind's defaults."""

    ignore_case: bool = True
    multi_line: bool = False
    dot_all: bool = True
    extended: bool = False
    anchored: bool = False
    ungreedy: bool = False


def read_flags(kind: Kind, letters: str) -> Flags:
    """The flags after a pattern; each toggles what its kind has by default. Raises ValueError."""
    on = {letter for letter in letters if letters.count(letter) % 2}
    known = "imx" if kind is Kind.REGEXP else "imsxAEUX"
    for letter in letters:
        if letter not in known:
            raise ValueError(f"{letter!r} is no flag of a {kind} pattern ({', '.join(known)})")
    if kind is Kind.REGEXP:
        if "x" in on:
            raise ValueError("basic expressions (flag x) are not understood: write an extended one")
        return Flags(ignore_case="i" not in on, multi_line="m" in on, dot_all="m" not in on)
    return Flags("i" not in on, "m" in on, "s" not in on, "x" in on, "A" in on, "U" in on)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern ready to be used; `source` is RE2's text for it, flags included; `written` as the table has it."""

    written: str
    source: str
    compiled: Any

    def search(self, octets: bytes) -> Any:
        """The first match, None for none."""
        return self.compiled.search(octets)


def compile_pattern(written: str, kind: Kind, flags: Flags, *, decoded: bool = False) -> Pattern:
    """Make a pattern. `decoded` ones see UTF-8; others see octets as they came. Raises ValueError."""
    if len(written) > PATTERN_CHARACTERS:
        raise ValueError(f"the pattern is longer than {PATTERN_CHARACTERS} characters")
    source = _posix(written, flags) if kind is Kind.REGEXP else _perl(written, flags)
    # Alone first: inside the group that follows, parentheses that do not match could seem to.
    compile_source(source, decoded=decoded)
    inline = "".join(
        letter
        for letter, on in zip("imsU", (flags.ignore_case, flags.multi_line, flags.dot_all, flags.ungreedy), strict=True)
        if on
    )
    source = f"{chr(92) + 'A' if flags.anchored else ''}(?:{source})"
    source = f"(?{inline}){source}" if inline else source
    return Pattern(written, source, compile_source(source, decoded=decoded, longest=kind is Kind.REGEXP))


def compile_source(source: str, *, decoded: bool, longest: bool = False, captures: bool = True) -> Any:
    """RE2's own text, compiled. Raises ValueError for what it does not take."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.UTF8 if decoded else re2.Options.Encoding.LATIN1
    options.longest_match = longest
    options.never_capture = not captures
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(source.encode("utf-8"), options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"RE2 does not take this pattern: {reason}") from None
    except UnicodeEncodeError:
        raise ValueError("the pattern is no Unicode text") from None


def _posix(text: str, flags: Flags) -> str:
    """A POSIX extended expression for RE2."""
    out: list[str] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "[":
            inner, at = _posix_bracket(text, at, newline=flags.multi_line)
            out.append(inner)
            continue
        if character == "\\":
            out.append(_posix_escape(text, at))
            at += 2
            continue
        if text.startswith("(?", at):
            raise ValueError("(? belongs to pcre, and this is a regexp pattern")
        repeat = _REPEAT.match(text, at)
        if character == "{" and repeat and repeat[2] and not repeat[1]:
            # {,n} is no repetition for RE2.
            out.append(f"{{0,{repeat[3]}}}" if repeat[3] else "*")
            at = repeat.end()
            continue
        if character in "*+?}" and out and at and text[at - 1] in "*+?}" and character != "}":
            # Two in a row: RE2 would read the second as lazy or possessive.
            raise ValueError(f"{text[at - 1 : at + 1]!r}: one repetition after another")
        out.append(character)
        at += 1
    return "".join(out)


def _posix_escape(text: str, at: int) -> str:
    following = text[at + 1 : at + 2]
    if not following:
        raise ValueError("the pattern ends in a backslash")
    if following in _LETTERS:
        return "\\" + following
    if following == "<":
        if not _WORD_CHARACTER.match(text[at + 2 : at + 3]):
            raise ValueError(r"\< is understood before a letter, a digit or _ only")
        return "\\b"
    if following == ">":
        if not at or not _WORD_CHARACTER.match(text[at - 1]) or text[at - 2 : at - 1] == "\\":
            raise ValueError(r"\> is understood after a letter, a digit or _ only")
        return "\\b"
    if following.isalnum() or following in "`'":
        raise ValueError(f"\\{following} is nothing that a regexp pattern could say here")
    return re.escape(following) if following.isascii() else following


def _posix_bracket(text: str, start: int, *, newline: bool) -> tuple[str, int]:
    """A bracket expression, in which a backslash is itself, and where it ends."""
    at = start + 1
    negated = text[at : at + 1] == "^"
    at += negated
    out = ["[^" if negated else "["]
    first = at
    while True:
        character = text[at : at + 1]
        if not character:
            raise ValueError("a bracket is not closed")
        if character == "]" and at > first:
            break
        named = _BRACKET_CLASS.match(text, at)
        if named and not named[1] and named[2] in _CLASSES:
            out.append(named[0])
            at = named.end()
            continue
        if character == "[" and text[at + 1 : at + 2] in (":", ".", "="):
            raise ValueError(f"{text[at : at + 6]!r} in a bracket is not understood")
        out.append("\\" + character if character in "\\[]^" else character)
        at += 1
    if negated and newline:
        out.append("\\n")
    return "".join(out) + "]", at + 1


def _perl(text: str, flags: Flags) -> str:
    """A Perl expression for RE2."""
    out: list[str] = []
    at, bracket = 0, -1
    while at < len(text):
        character = text[at]
        if character == "\\":
            out.append(_perl_escape(text, at, inside=bracket >= 0))
            at += 2
            if out[-1] == "\\Q":
                end = text.find("\\E", at)
                end = len(text) if end < 0 else end
                out[-1] = "".join(re.escape(c) if c.isascii() else c for c in text[at:end])
                at = min(len(text), end + 2)
            continue
        if bracket >= 0:
            named = _BRACKET_CLASS.match(text, at)
            if named:
                out.append(named[0])
                at = named.end()
                continue
            out.append("\\[" if character == "[" else character)
            if character == "]" and at > bracket:
                bracket = -1
        elif character == "[":
            out.append(character)
            bracket = at + 1 + (text[at + 1 : at + 2] == "^")
        elif flags.extended and character in " \t\n\r\f\v":
            pass
        elif flags.extended and character == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif text.startswith("(?#", at):
            end = text.find(")", at)
            if end < 0:
                raise ValueError("a comment is not closed")
            at = end
        else:
            out.append(character)
        at += 1
    return "".join(out)


def _perl_escape(text: str, at: int, *, inside: bool) -> str:
    following = text[at + 1 : at + 2]
    if not following:
        raise ValueError("the pattern ends in a backslash")
    if following in _PCRE_OTHER or (inside and following in "NZ"):
        raise ValueError(f"\\{following} is not understood")
    if following == "h" and inside:
        return " \\t"
    return _PCRE_ONLY.get(following, "\\" + following)
