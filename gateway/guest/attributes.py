"""Requests of Postfix's policy delegation protocol, as a codec: octets in, requests out.

A request is lines of ``name=value``, each ended by LF, and an empty line (SMTPD_POLICY_README of Postfix). Names that
nobody knows are kept and ignored. What is no request ends the connection: after `BadRequest` nothing is read any more.

*Promises*: bounded by `REQUEST_OCTETS` and `ATTRIBUTES`, whatever comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

REQUEST_OCTETS: Final = 64 << 10
ATTRIBUTES: Final = 256
REQUEST_TYPE: Final = "smtpd_access_policy"

_NAME: Final = re.compile(rb"[A-Za-z0-9_.-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class BadRequest:
    """What came is no request; `reason` says why, without repeating it."""

    reason: str


class AttributeReader:
    """Reads requests from a stream of octets. Lines are checked as they come, so that nonsense is not waited for."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._found: dict[str, str] = {}
        self._size = 0
        self._failed = False

    @property
    def partial(self) -> bool:
        """Whether a request has begun and is not complete."""
        return bool(self._line or self._found)

    def feed(self, data: bytes) -> list[Mapping[str, str] | BadRequest]:
        """Take octets in; gives the requests that are complete now, in order, each as its attributes.

        Octets that are no UTF-8 come as surrogateescape.
        """
        out: list[Mapping[str, str] | BadRequest] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            if self._failed:
                return out
            self._line += line
            whole = bytes(self._line)
            self._line.clear()
            self._size += len(whole) + 1
            problem = self._attribute(whole) if whole else self._end(out)
            if problem or self._size > REQUEST_OCTETS:
                return [*out, self._fail(problem or "request is too long")]
        if not self._failed:
            self._line += rest
            if self._size + len(self._line) > REQUEST_OCTETS:
                return [*out, self._fail("request is too long")]
        return out

    def _attribute(self, line: bytes) -> str:
        """Take one line in; gives what is wrong with it."""
        name, equals, value = line.partition(b"=")
        if not equals or not _NAME.match(name):
            return "a line is no attribute"
        if b"\0" in value or b"\r" in value:
            return "a value holds a control character"
        key = name.decode("ascii")
        if key in self._found:
            return "an attribute is given twice"
        if len(self._found) >= ATTRIBUTES:
            return "too many attributes"
        self._found[key] = value.decode("utf-8", "surrogateescape")
        return ""

    def _end(self, out: list[Mapping[str, str] | BadRequest]) -> str:
        """The empty line has come; gives what is wrong with the request."""
        found, self._found, self._size = self._found, {}, 0
        if found.get("request") != REQUEST_TYPE:
            return "not a request for access policy"
        out.append(found)
        return ""

    def _fail(self, reason: str) -> BadRequest:
        self._failed = True
        self._line.clear()
        self._found.clear()
        return BadRequest(reason)
