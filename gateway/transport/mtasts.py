"""MTA-STS: what a domain publishes about TLS at its mail hosts. Records and policies as values; strict and bounded.

*RFCs*: 8461 sections 3.1 (record), 3.2 (policy) and 4.1 (names).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.transport.tls import is_for

POLICY_OCTETS: Final = 64 << 10
MAX_AGE: Final = 31_557_600
"""Seconds; a policy lives for no longer (section 3.2)."""
PATTERNS: Final = 1000
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}\Z")
_FIELD: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:[ \t]*(.*?)[ \t]*\Z", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,10}\Z")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PATTERN: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\Z")


class Mode(StrEnum):
    """How serious the domain is about its policy."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A domain's policy. `mx` are names, or ``*.`` and a domain; `lines` are its text as it was published."""

    mode: Mode
    max_age: int
    mx: tuple[str, ...]
    lines: tuple[str, ...]

    def names(self, host: str) -> bool:
        """Whether the policy lists this mail host (RFC 8461 section 4.1)."""
        return any(is_for(pattern, host) for pattern in self.mx)


def read_record(records: Iterable[object]) -> str | None:
    """The id in the TXT records under ``_mta-sts``; None when they say that there is no policy.

    Text that is no record of this kind is passed over; of two records, none counts (section 3.1).
    """
    texts = [r.decode("ascii", "replace") for r in records if isinstance(r, bytes) and _is_record(r)]
    if len(texts) != 1:
        return None
    id: str | None = None
    for field in texts[0].split(";")[1:]:
        key, equals, value = field.strip().partition("=")
        if equals and key.strip() == "id" and id is None:
            id = value.strip()
    return id if id is not None and _ID.match(id) else None


def _is_record(text: bytes) -> bool:
    version, semicolon, _ = text.partition(b";")
    return bool(semicolon) and version.strip() == b"v=STSv1"


def read_policy(body: bytes) -> StsPolicy:
    """The policy in a file; raises ValueError with what is wrong with it.

    Of a field that comes twice the first counts.
    """
    if len(body) > POLICY_OCTETS:
        raise ValueError("it is too long")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    fields: dict[str, str] = {}
    patterns: list[str] = []
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    for number, line in enumerate(lines):
        match = _FIELD.match(line)
        if match is None:
            raise ValueError(f"line {number + 1} is no field")
        key, value = match.groups()
        if key == "mx":
            patterns.append(_pattern(value))
        else:
            fields.setdefault(key, value)
    if fields.get("version") != "STSv1":
        raise ValueError("it has no version: STSv1")
    try:
        mode = Mode(fields.get("mode", ""))
    except ValueError:
        raise ValueError("its mode is none of enforce, testing and none") from None
    age = fields.get("max_age", "")
    if not _NUMBER.match(age):
        raise ValueError("its max_age is no number of seconds")
    if not patterns and mode is not Mode.NONE:
        raise ValueError("it names no mx")
    if len(patterns) > PATTERNS:
        raise ValueError("it names too many mx")
    return StsPolicy(mode, min(int(age), MAX_AGE), tuple(dict.fromkeys(patterns)), tuple(lines))


def _pattern(value: str) -> str:
    name = value.lower().removesuffix(".")
    if not _PATTERN.match(name):
        raise ValueError("an mx is no host name")
    return name
