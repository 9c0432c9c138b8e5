"""What is asked of TLS on one connection to one host, and in which ways it can fail. Values only.

*RFCs*: 8460 section 4.3 (result types), 8689 (REQUIRETLS, TLS-Required).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum

from gateway.sdk.services import Tlsa


class Level(IntEnum):
    """From nothing to the most."""

    NONE = 0
    """In the clear."""
    MAY = 1
    """TLS when it is offered, any certificate."""
    ANY = 2
    """TLS, any certificate."""
    CA = 3
    """TLS, and a certificate by a CA for one of the names."""
    DANE = 4
    """TLS, and a certificate that a TLSA record vouches for."""


class Demand(Enum):
    """What a message itself asks for."""

    USUAL = "usual"
    RELAXED = "relaxed"
    """TLS-Required: No."""
    STRICT = "strict"
    """REQUIRETLS."""


class Failure(StrEnum):
    """Why no session came about that the rule allows, as RFC 8460 section 4.3 calls it."""

    NO_STARTTLS = "starttls-not-supported"
    WRONG_NAME = "certificate-host-mismatch"
    EXPIRED = "certificate-expired"
    UNTRUSTED = "certificate-not-trusted"
    HANDSHAKE = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_FETCH = "sts-policy-fetch-error"
    STS_INVALID = "sts-policy-invalid"
    STS_WEBPKI = "sts-webpki-invalid"


@dataclass(frozen=True, slots=True)
class Applied:
    """A published policy as reports name it.

    `kind` is tlsa, sts or no-policy-found, `strings` is its text, `mx` are the names in it.
    """

    kind: str = "no-policy-found"
    strings: tuple[str, ...] = ()
    mx: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for a connection.

    `policy` is its name in records, logs and metrics. `server_name` is what SNI says, the host's name when it is empty.
    `names` are those that the certificate must be for, one of them: exact, or with a leading dot for all names below;
    for `Level.CA` none means the server name. `ca_file` (PEM) replaces the system's CAs. `tlsa` are the usable records.
    `applied` is what the rule comes from, if the domain has published it.
    """

    level: Level
    policy: str
    server_name: str = ""
    names: tuple[str, ...] = ()
    tlsa: tuple[Tlsa, ...] = ()
    ca_file: str = ""
    applied: Applied = Applied()


@dataclass(frozen=True, slots=True)
class TlsFailed:
    """No session that the rule allows: `problem` is a text for the record."""

    problem: str
    failure: Failure = Failure.HANDSHAKE
    local: str = ""
    """Our own address on the connection."""


CLEAR = Rule(Level.NONE, "none")
"""No TLS at all."""
FALLBACK = Rule(Level.NONE, "opportunistic")
"""In the clear since TLS failed where it need not be."""
OPPORTUNISTIC = Rule(Level.MAY, "opportunistic")
REQUIRE = Rule(Level.ANY, "require")
NOT_REQUIRED = (Rule(Level.MAY, "tls-required-no"), Rule(Level.NONE, "tls-required-no"))
"""For a message that says TLS-Required: No (RFC 8689 section 5), where what the domain publishes was in its way."""
STRICT_POLICY = "requiretls"
"""The policy of all rules for mail that came with REQUIRETLS."""
