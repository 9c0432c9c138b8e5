"""Findings of mail authentication, and how they stand in an Authentication-Results field.

A finding that has something to say there gives it as `MethodResult` values; whoever lists a plugin of their own gets
their results into the field in the same way.

*RFCs*: 8601 (Authentication-Results), 2045 section 5.1 (token), 7208 section 2.6 and 6376 section 3.9 (results), 9989
(DMARC), 8617 (ARC).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.sdk.findings import Finding

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+\Z")
# What may stand unquoted although it has an @: header.i and the like.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MAILBOX: Final = re.compile(rf"(?:{_ATOM}(?:\.{_ATOM})*)?@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+\Z")
_VALUE_LENGTH: Final = 255
_VALUE_OCTETS: Final = 480
_LINE_OCTETS: Final = 480
"""No property is added to a line that would be longer with it; the longest one alone stays below the 998 octets that a
line may have (RFC 5322 section 2.1.1)."""


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One ``method=result`` with its properties (RFC 8601 section 2.2).

    `properties` are pairs such as ``("header.d", "example.org")``; values may come from a stranger, they are quoted
    where needed. `reason` is free text, for ``reason=``.
    """

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    reason: str = ""

    def render(self) -> str:
        """The result as it stands in the field, folded where its values are long."""
        lines = [f"{self.method}={self.result}"]
        said = (f"reason={quote(self.reason)}",) if self.reason else ()
        for text in (*said, *(f"{name}={_property(value)}" for name, value in self.properties if value)):
            if len(lines[-1].encode()) + len(text.encode()) > _LINE_OCTETS:
                lines.append(text)
            else:
                lines[-1] += f" {text}"
        return "\n\t\t".join(lines)


def authentication_results(authserv_id: str, findings: Iterable[Finding]) -> str:
    """Value of our Authentication-Results field, folded; empty when no finding has anything to say there."""
    results = [result.render() for finding in findings for result in finding.authentication()]
    return f"{authserv_id};\n\t" + ";\n\t".join(results) if results else ""


def quote(text: str) -> str:
    """`text` as an RFC 8601 value: a token of RFC 2045, or a quoted string with nothing in it that ends it."""
    if _TOKEN.match(text):
        return text
    safe = "".join(c if c.isprintable() else "?" for c in text[:_VALUE_LENGTH])
    safe = safe.encode()[:_VALUE_OCTETS].decode("utf-8", "ignore")
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _property(text: str) -> str:
    """The value of a property: as `quote` has it, or an address or domain behind an @ (RFC 8601 section 2.2)."""
    return text if _MAILBOX.match(text) else quote(text)


class SpfResult(StrEnum):
    """RFC 7208 section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class Spf(Finding):
    """SPF for the MAIL FROM identity (for the null sender postmaster@HELO) and for HELO.

    `domain` is the MAIL FROM domain that was judged, in A-labels; `explanation` is the sender's own text, not to
    be trusted; `helo` is the HELO identity's result.

    `lookups` counts the terms that looked something up and `void_lookups` the look-ups that found nothing, as RFC 7208
    section 4.6.4 limits them, for MAIL FROM; `helo_lookups` and `helo_void_lookups` are those for HELO.

    `problem` and `helo_problem` say what went wrong. Beside a result that is no error they mean that it rests on a
    reverse name that could not be looked up, which counts as none (section 5.5): no ground to refuse for good.
    """

    result: SpfResult
    domain: str
    helo: SpfResult
    helo_domain: str
    explanation: str = ""
    problem: str = ""
    lookups: int = 0
    void_lookups: int = 0
    helo_lookups: int = 0
    helo_void_lookups: int = 0
    helo_problem: str = ""

    def authentication(self) -> tuple[MethodResult, ...]:
        both = ((self.result, "smtp.mailfrom", self.domain), (self.helo, "smtp.helo", self.helo_domain))
        return tuple(MethodResult("spf", result, ((name, domain),)) for result, name, domain in both if domain)


class AuthResult(StrEnum):
    """Results of DKIM, DMARC, ARC and iprev (RFC 8601 section 2.7). Not every method has each of them."""

    NONE = "none"
    PASS = "pass"
    FAIL = "fail"
    POLICY = "policy"
    """It would pass, and local policy does not let it count (a key that is too short, ``l=``)."""
    NEUTRAL = "neutral"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class DkimSignature:
    """One DKIM-Signature and what came of it (RFC 6376 section 6).

    `domain` is d= in A-labels and lower case, `identity` i=, `selector` s=, `algorithm` a=; `short` is the beginning
    of b=, by which readers tell signatures apart (RFC 6008). `testing` is the key's t=y. `key_bits` is 0 when there
    is no key.
    """

    result: AuthResult
    domain: str
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    key_bits: int = 0
    testing: bool = False
    short: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Dkim(Finding):
    """The message's DKIM signatures, top down; `unchecked` says how many more there were than are looked at."""

    signatures: tuple[DkimSignature, ...] = ()
    unchecked: int = 0

    @property
    def passed(self) -> tuple[str, ...]:
        """Domains (d=) whose signature holds, in order, each once."""
        return tuple(dict.fromkeys(s.domain for s in self.signatures if s.result is AuthResult.PASS))

    def authentication(self) -> tuple[MethodResult, ...]:
        if not self.signatures:
            return (MethodResult("dkim", AuthResult.NONE),)
        return tuple(
            MethodResult(
                "dkim",
                s.result,
                (
                    ("header.d", s.domain),
                    ("header.i", s.identity),
                    ("header.s", s.selector),
                    ("header.a", s.algorithm),
                    ("header.b", s.short),
                ),
                s.problem,
            )
            for s in self.signatures
        )


class DmarcPolicy(StrEnum):
    """What a domain asks for mail that fails (RFC 9989: p=, sp=, np=)."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Dmarc(Finding):
    """DMARC for the author's domain (RFC 9989, or RFC 7489 where so configured).

    `domain` is the author domain (RFC5322.From) in A-labels, empty when there is none that can be judged (of several,
    it is the one with the worst result, and `others` are those whose policy is not met either); `organizational` its
    organisational domain; `record_domain` where the record was found; `policy` what applies, None without a
    record; `published` the record's text. `spf` and `dkim` say whether an aligned identifier passed, `aligned` names
    them. `testing` is t=y (or, by RFC 7489, that pct sampling spared the message): the policy is one step milder
    already. `list_id` is the message's List-Id, empty when it has none: evidence of a mailing list, and no proof.
    """

    result: AuthResult
    domain: str
    organizational: str = ""
    record_domain: str = ""
    policy: DmarcPolicy | None = None
    spf: bool = False
    dkim: bool = False
    aligned: tuple[str, ...] = ()
    testing: bool = False
    published: str = ""
    problem: str = ""
    list_id: str = ""
    others: tuple[str, ...] = ()

    def authentication(self) -> tuple[MethodResult, ...]:
        properties = (("header.from", self.domain), ("policy.dmarc", self.policy or ""))
        return (MethodResult("dmarc", self.result, properties, self.problem),)


@dataclass(frozen=True, slots=True)
class Arc(Finding):
    """The message's ARC chain (RFC 8617 section 5.2).

    `result` is none, pass, fail, temperror when a key could not be had, or neutral when it was not looked at;
    `sealers` are the d= of the seals, oldest first; `trusted` says that every sealer from the newest down to the one
    whose results count is one that the operator trusts; `results` are the authentication results that this one
    reported (method, result, domain). `oldest_pass` is the lowest instance from which on all message signatures hold,
    0 when all of them do.
    """

    result: AuthResult
    sealers: tuple[str, ...] = ()
    trusted: bool = False
    results: tuple[tuple[str, str, str], ...] = ()
    problem: str = ""
    oldest_pass: int = 0

    def authentication(self) -> tuple[MethodResult, ...]:
        holds = self.result is AuthResult.PASS and self.sealers
        chain = (("header.oldest-pass", str(self.oldest_pass) if holds else ""),)
        return (MethodResult("arc", self.result, chain, self.problem),)


@dataclass(frozen=True, slots=True)
class ReverseName(Finding):
    """The client's name in the DNS, confirmed by its address (iprev, RFC 8601 section 3).

    `name` is the confirmed name, empty unless `result` is pass; `names` are all that PTR gave and that were looked at.
    `generic` says that the name looks like one that a provider gives to its customers' lines in bulk: of several, all
    that were confirmed, or all there are.
    """

    result: AuthResult
    client: str
    name: str = ""
    names: tuple[str, ...] = ()
    problem: str = ""
    generic: bool = False

    def authentication(self) -> tuple[MethodResult, ...]:
        return (MethodResult("iprev", self.result, (("policy.iprev", self.client),), self.problem),)
