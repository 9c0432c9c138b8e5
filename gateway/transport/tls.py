"""TLS towards next hops: contexts, what was negotiated, and whether the peer is who it should be.

*RFCs*: 3207 (STARTTLS), 8996 (nothing below TLS 1.2), 6125 section 6.4 (names in certificates).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, Self

from gateway.transport.rule import Failure, Level, Rule, TlsFailed

# X509_V_ERR_*: what OpenSSL says is wrong with a certificate.
_FAILURES: Final = {
    10: Failure.EXPIRED,
    9: Failure.EXPIRED,
    62: Failure.WRONG_NAME,
    64: Failure.WRONG_NAME,
    18: Failure.UNTRUSTED,
    19: Failure.UNTRUSTED,
    20: Failure.UNTRUSTED,
    21: Failure.UNTRUSTED,
}


def make_context(level: Level, ca_file: str = "", *, check_name: bool = True) -> ssl.SSLContext:
    """The client context for a level; `ca_file` (PEM) replaces the system's CAs for `Level.CA`.

    Reads files. Raises OSError (of which ssl.SSLError is one) when `ca_file` cannot be used.
    """
    if level is Level.CA:
        context = ssl.create_default_context(cafile=ca_file or None)
        context.check_hostname = check_name
    else:
        # Any certificate: it is not checked at all (RFC 7435: TLS still keeps eavesdroppers out), or by `authenticate`.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Resuming(ssl.SSLContext):
    """`context` for one handshake that takes up an earlier session.

    Event loops make TLS objects from a context and cannot be told of a session, so this stands in for it.
    """

    def __new__(cls, context: ssl.SSLContext, session: ssl.SSLSession) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, context: ssl.SSLContext, session: ssl.SSLSession) -> None:
        self._context = context
        self._session = session

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self._context.wrap_bio(incoming, outgoing, server_side, server_hostname, session or self._session)


class Contexts:
    """Contexts by what they check, each made once: the system's CAs take a while to read."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool] | None, ssl.SSLContext] = {}

    async def get(self, rule: Rule) -> ssl.SSLContext:
        """The context for a rule. Raises as `make_context` does."""
        key = (rule.ca_file, not rule.names) if rule.level is Level.CA else None
        if key not in self._made:
            made = await asyncio.to_thread(make_context, rule.level, rule.ca_file, check_name=not rule.names)
            self._made.setdefault(key, made)
        return self._made[key]


def describe(transport: asyncio.BaseTransport) -> str:
    """Version and cipher as OpenSSL writes them (``TLSv1.3/TLS_AES_256_GCM_SHA384``); empty in the clear."""
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return ""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()}/{cipher[0] if cipher else 'unknown'}"


def authenticate(rule: Rule, ssl_object: Any) -> str | TlsFailed:
    """How the peer of an established session was authenticated, in a few words; empty when the rule asks for nothing.

    What the context checks has been checked before.
    """
    if rule.level is Level.DANE:
        # Its X.509 library takes a while to import, and most gateways never need it.
        from gateway.transport import dane

        found = dane.authenticate(peer_chain(ssl_object), rule.tlsa, rule.names)
        return found if isinstance(found, TlsFailed) else f"TLSA {found}"
    if rule.level is not Level.CA:
        return ""
    if rule.names:
        of_peer = [value for kind, value in ssl_object.getpeercert().get("subjectAltName", ()) if kind == "DNS"]
        if not any(is_for(pattern, name) for pattern in of_peer for name in rule.names):
            shown = ", ".join(of_peer[:5]) or "no name"
            return TlsFailed(f"the certificate is for {shown[:200]}", Failure.WRONG_NAME)
    return "CA"


def peer_chain(ssl_object: Any) -> list[bytes]:
    """The certificates that the peer sent, in DER, its own first."""
    if hasattr(ssl_object, "get_unverified_chain"):
        return list(ssl_object.get_unverified_chain() or ())
    # Before Python 3.13 only the object inside has it.
    chain = ssl_object._sslobj.get_unverified_chain() or ()
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain]


def is_for(pattern: str, wanted: str) -> bool:
    """Whether a name of a certificate, maybe ``*.`` and a domain, is `wanted`: a name, or a dot and a domain.

    The star stands for one label (RFC 6125 section 6.4.3). A wanted ``.example.net`` is any name below it.
    """
    pattern, wanted = pattern.lower().removesuffix("."), wanted.lower()
    if wanted.startswith("."):
        return pattern.endswith(wanted) and len(pattern) > len(wanted)
    if pattern.startswith("*."):
        label, dot, rest = wanted.partition(".")
        return bool(label and dot) and "." in rest and rest == pattern[2:]
    return pattern == wanted


def failure_of(error: BaseException) -> Failure:
    """What kind of failure of the handshake this is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _FAILURES.get(error.verify_code, Failure.HANDSHAKE)
    return Failure.HANDSHAKE
