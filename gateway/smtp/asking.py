"""TLS whose clients are asked for a certificate.

Python's `ssl` can ask, but then breaks off the handshake whenever a certificate does not verify, and there are senders
that show everybody a certificate of their own. So OpenSSL is reached by pyOpenSSL here, which lets us see what is wrong
and go on (docs/decisions/0009-client-certificates.md). Listeners that ask nobody have nothing to do with this.

*Promises*: sessions are not taken up again, so each one is judged by the CAs that are in force.

*RFCs*: 8446 section 4.3.2 and 4.4.2 (asking, and the answer), 5246 section 7.4.4 and 7.4.6 (the same for TLS 1.2).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from gateway.mail.session import ClientCertificate
from gateway.smtp.certificate import UNREADABLE, inspect

_DEPTH: Final = 10
_RECORD: Final = 16 << 10
"""What one record of TLS holds at most (RFC 8446 section 5.1)."""
_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_TICKET

_T = TypeVar("_T")


class AskingContext(ssl.SSLContext):
    """A server context that asks each client for a certificate by one of these CAs.

    With `required` the handshake fails without one. Else it goes on, and `Asked.client` says what came.
    """

    def __new__(cls, *_: Any, **__: Any) -> AskingContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: str, key: str, authorities: Sequence[x509.Certificate], *, required: bool) -> None:
        """Raises OSError, of which ssl.SSLError is one, when the files are no good."""
        # What all the other listeners offer.
        ciphers = [cipher["name"] for cipher in self.get_ciphers() if not cipher["name"].startswith("TLS_")]
        try:
            self._context = _server(certificate, key, ciphers)
            _ask(self._context, authorities, required)
        except (SSL.Error, crypto.Error) as error:
            raise _failed(_reason(error)) from error
        self._required = required

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As the event loop calls it; what it gets does what the event loop calls of an `ssl.SSLObject`."""
        return cast(ssl.SSLObject, Asked(self._context, incoming, outgoing, required=self._required))


def _server(certificate: str, key: str, ciphers: Sequence[str]) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    context.set_cipher_list(":".join(ciphers).encode())
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # An idle session needs none.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    with open(certificate, "rb"), open(key, "rb") as file:
        # OpenSSL does not say so well why the other one cannot be read.
        data = file.read()
    context.use_certificate_chain_file(certificate)
    try:
        # Read here, as OpenSSL would ask a terminal for a passphrase.
        context.use_privatekey(cast(Any, load_pem_private_key(data, None)))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _failed(str(error)) from error
    context.check_privatekey()
    return context


def _ask(context: SSL.Context, authorities: Sequence[x509.Certificate], required: bool) -> None:
    store = context.get_cert_store()
    assert store is not None
    # Each of them is trusted for itself, and not only those that sign themselves.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify_depth(_DEPTH)
    context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0), _note)


@dataclass(slots=True)
class _Verification:
    """What OpenSSL finds out about one client's certificate, while the handshake goes on."""

    required: bool
    problem: str = "nobody has looked at it"
    failed: bool = False

    def note(self, number: int, depth: int, ok: bool) -> bool:
        """Whether to go on after a certificate of the chain; the client's own, at depth 0, is the last."""
        if not ok:
            if not self.failed:
                self.problem, self.failed = _WORDS.get(number, f"error {number} of OpenSSL"), True
        elif depth == 0 and not self.failed:
            self.problem = ""
        return ok or not self.required


class Asked:
    """One connection's TLS: as much of `ssl.SSLObject` as event loops use, between the same two buffers."""

    def __init__(
        self, context: SSL.Context, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, required: bool
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._tls = SSL.Connection(context)
        self._verification = _Verification(required)
        # Not this object itself, which would then be kept until garbage is looked for.
        self._tls.set_app_data(self._verification)
        self._tls.set_accept_state()
        self._fed = False
        """Whether OpenSSL may hold something that came and that it has not looked at."""
        self.client: ClientCertificate | None = None
        """What the client showed, once the handshake is over; None for nothing."""

    def do_handshake(self) -> None:
        """Raises ssl.SSLWantReadError while there is more to come, and ssl.SSLError when it fails."""
        self._do(self._tls.do_handshake)
        shown = self._tls.get_peer_certificate(as_cryptography=False)
        if shown is not None:
            self.client = inspect(crypto.dump_certificate(crypto.FILETYPE_ASN1, shown), self._verification.problem)
        if self._verification.required and (self.client is None or not self.client.verified):
            raise _failed(UNREADABLE)

    def read(self, size: int = _RECORD, buffer: Any = None) -> Any:
        """Octets, or how many were put into `buffer`; none at the end."""
        try:
            if buffer is None:
                return self._do(lambda: self._tls.recv(min(size, _RECORD)))
            return self._do(lambda: self._tls.recv_into(buffer, min(size, _RECORD)))
        except ssl.SSLEOFError:
            # Whether the end was announced makes no difference to SMTP, which says itself when it is over.
            return b"" if buffer is None else 0

    def write(self, data: Any) -> int:
        return self._do(lambda: self._tls.send(data))

    def pending(self) -> int:
        """Whether there may be more to read without more from the client; no exact number, of which nobody asks."""
        return self._tls.pending() or int(self._fed)

    def unwrap(self) -> None:
        """Say goodbye. Raises ssl.SSLWantReadError until the client has, too."""
        if not self._do(self._tls.shutdown):
            raise ssl.SSLWantReadError

    def version(self) -> str:
        return self._tls.get_protocol_version_name()

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._tls.get_cipher_name()
        return (name, self._tls.get_cipher_version() or "", self._tls.get_cipher_bits() or 0) if name else None

    def compression(self) -> None:
        """None is offered."""

    def getpeercert(self, binary_form: bool = False) -> None:
        """What the client showed stands in `client`, which says as well what it is worth."""

    def _do(self, step: Callable[[], _T]) -> _T:
        """Do it, take in no more of what came than it needs, and put out what is to be sent."""
        try:
            while True:
                try:
                    return step()
                except SSL.WantReadError:
                    self._take_in()
        except SSL.ZeroReturnError:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client has ended it") from None
        except SSL.SysCallError as error:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, str(error)) from error
        except SSL.Error as error:
            told = self._verification.required and self._verification.failed
            raise _failed(self._verification.problem if told else _reason(error)) from error
        finally:
            self._put_out()

    def _take_in(self) -> None:
        """Give OpenSSL something more of what came; the rest is left for the event loop to count."""
        data = self._incoming.read(_RECORD)
        self._fed = bool(data)
        if data:
            self._tls.bio_write(data)
        elif self._incoming.eof:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client is gone")
        else:
            raise ssl.SSLWantReadError

    def _put_out(self) -> None:
        while True:
            try:
                self._outgoing.write(self._tls.bio_read(_RECORD))
            except SSL.WantReadError:
                return


def _note(connection: SSL.Connection, _: Any, number: int, depth: int, ok: int) -> bool:
    """As OpenSSL calls it, for each certificate of the chain and each thing that is wrong with one."""
    verification: _Verification = connection.get_app_data()
    return verification.note(number, depth, bool(ok))


_WORDS: Final = {
    **{
        number: name.removeprefix("ERR_").replace("_", " ").lower()
        for name, number in vars(SSL.X509VerificationCodes).items()
        if name.startswith("ERR_")
    },
    # Which pyOpenSSL has no names for.
    **{66: "ee key too small", 67: "ca key too small", 68: "ca md too weak"},
}


def _failed(reason: str) -> ssl.SSLError:
    return ssl.SSLError(ssl.SSL_ERROR_SSL, reason)


def _reason(error: SSL.Error | crypto.Error) -> str:
    """What OpenSSL has to say; the first thing is where it began to go wrong."""
    reasons = [str(one[2]) for one in error.args[0] if one[2]] if error.args and error.args[0] else []
    return reasons[0] if reasons else "TLS failed"
