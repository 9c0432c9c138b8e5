"""The author domains of a message: what stands behind the @ in From, in A-labels.

From comes from strangers, so this is a scanner of one pass that never goes back. It reads comments, quoted strings,
groups, source routes, obsolete white space and UTF-8, and calls anything else malformed instead of guessing: two
readers that guess differently are how forged mail gets shown.

*RFCs*: 5322 sections 3.4 and 4.4 (addresses), 6532 (UTF-8), 5890 (A-labels), 9989 sections 5.3.1 and 11.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.sdk import Address

FIELD_CHARACTERS: Final = 16_384
ADDRESSES: Final = 100
_DEPTH: Final = 20
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_SPACE: Final = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Authors:
    """The distinct author domains in order; with `problem`, they cannot be told for sure."""

    domains: tuple[str, ...]
    problem: str = ""


class _Malformed(Exception):
    pass


def author_domains(fields: Sequence[str]) -> Authors:
    """The domains of all addresses in all From fields (their unfolded values)."""
    if not fields:
        return Authors((), "no From field")
    domains: dict[str, None] = {}
    try:
        for field in fields[:ADDRESSES]:
            for spec in _specs(field):
                domains[_domain(spec)] = None
    except _Malformed as error:
        return Authors(tuple(domains), f"From is malformed: {error}")
    if len(fields) > ADDRESSES:
        return Authors(tuple(domains), "too many From fields")
    return Authors(tuple(domains), "" if domains else "From names no address")


def _specs(text: str) -> list[str]:
    """Each address of an address list, without display names, comments and white space at its ends."""
    if len(text) > FIELD_CHARACTERS:
        raise _Malformed("the field is too long")
    scan = _Scan()
    at = 0
    while at < len(text):
        c = text[at]
        if c == '"':
            # Only that something is quoted stays: it may hold an @, and it never belongs to a domain.
            at = _quoted_end(text, at)
            scan.put('"')
        elif c == "(":
            at = _comment_end(text, at)
            scan.put(" ")
        elif c == "[":
            end = text.find("]", at)
            if end < 0:
                raise _Malformed("an address literal does not end")
            scan.put(text[at : end + 1])
            at = end + 1
        else:
            scan.take(c)
            at += 1
    return scan.end()


class _Scan:
    """What was read of the present mailbox, and the addresses before it."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._plain: list[str] = []
        self._angle: list[str] = []
        self._inside = False
        self._closed = False

    def put(self, text: str) -> None:
        """Something that is no delimiter."""
        if self._inside:
            self._angle.append(text)
        elif not self._closed:
            self._plain.append(text)
        elif text.strip(_SPACE):
            raise _Malformed("text after an address in angle brackets")

    def take(self, c: str) -> None:
        """One character that may be a delimiter."""
        if c == "\\":
            raise _Malformed("a backslash outside of quotes")
        if self._inside:
            if c == "<":
                raise _Malformed("angle brackets within angle brackets")
            if c == ">":
                self._inside, self._closed = False, True
            else:
                self._angle.append(c)
        elif c == "<":
            if self._closed:
                raise _Malformed("two addresses without a comma")
            self._inside = True
        elif c == ">":
            raise _Malformed("an angle bracket that closes nothing")
        elif c in ",;":
            self._flush()
        elif c == ":":
            if self._closed or "@" in self._plain:
                raise _Malformed("a colon after an address")
            self._plain.clear()
        else:
            self.put(c)

    def end(self) -> list[str]:
        if self._inside:
            raise _Malformed("an angle bracket is not closed")
        self._flush()
        return self._found

    def _flush(self) -> None:
        spec = "".join(self._angle if self._closed else self._plain).strip(_SPACE)
        if self._closed and spec.startswith("@"):
            spec = spec[spec.rfind(":") + 1 :]
        if spec:
            self._found.append(spec)
        elif self._closed:
            raise _Malformed("an empty address")
        if len(self._found) > ADDRESSES:
            raise _Malformed("too many addresses")
        self._plain, self._angle, self._closed = [], [], False


def _quoted_end(text: str, at: int) -> int:
    """Where it goes on after the quoted string that begins at `at`."""
    at += 1
    while at < len(text):
        if text[at] == '"':
            return at + 1
        at += 2 if text[at] == "\\" else 1
    raise _Malformed("a quoted string does not end")


def _comment_end(text: str, at: int) -> int:
    """Where it goes on after the comment that begins at `at`; comments nest."""
    depth = 0
    while at < len(text):
        c = text[at]
        if c == "(":
            depth += 1
            if depth > _DEPTH:
                raise _Malformed("comments are nested too deeply")
        elif c == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 2 if c == "\\" else 1
    raise _Malformed("a comment does not end")


def _domain(spec: str) -> str:
    local, sign, domain = spec.partition("@")
    if not sign or not local.strip(_SPACE) or "@" in domain:
        raise _Malformed("something that is no address")
    # Obsolete syntax allows white space around dots.
    name = ".".join(label.strip(_SPACE) for label in domain.split(".")).removesuffix(".")
    if not 0 < len(name) <= 255:
        raise _Malformed("a domain that is empty or too long")
    try:
        name = Address("", name).ascii_domain
    except ValueError:
        raise _Malformed("a domain that has no A-label form") from None
    if not is_domain(name):
        raise _Malformed("a domain with other characters than letters, digits and hyphens")
    return name


def is_domain(name: str) -> bool:
    """Whether it is a domain name in A-labels and lower case (underscores are tolerated, they occur)."""
    return len(name) <= 253 and all(_LABEL.match(label) for label in name.split("."))
