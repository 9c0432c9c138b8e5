"""What clients think of a listener's certificate: until when it is good, and whether it is for our name.

OpenSSL says so in a handshake between two ends of this process; the certificate itself is the trust anchor, so who
signed it does not matter here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

_STEPS: Final = 20
_OTHER_NAME: Final = 62
"""X509_V_ERR_HOSTNAME_MISMATCH."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """`ends` in epoch seconds, 0 where that is not known; `invalid` says why it is not good now."""

    ends: float = 0.0
    invalid: str = ""
    fits: bool = True


def inspect(certificate: str, key: str, hostname: str) -> Certificate:
    """Look at a certificate and its key. Raises OSError when they cannot be read."""
    try:
        ends = _shake(certificate, key, "")
    except ssl.SSLCertVerificationError as error:
        # Its time, mostly; also that it is for something else than servers, or weak.
        return Certificate(invalid=error.verify_message)
    except ssl.SSLError as error:
        return Certificate(invalid=error.reason or "it cannot be used")
    try:
        _shake(certificate, key, hostname)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code != _OTHER_NAME:
            raise
        return Certificate(ends, fits=False)
    return Certificate(ends)


def _shake(certificate: str, key: str, hostname: str) -> float:
    """The end of the certificate's time, when a client that checks for `hostname` (empty: for none) is content."""
    here, there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    here.load_cert_chain(certificate, key, password=lambda: "")
    there.check_hostname = bool(hostname)
    there.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there.load_verify_locations(certificate)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = here.wrap_bio(one, other, server_side=True)
    client = there.wrap_bio(other, one, server_hostname=hostname or None)
    for _ in range(_STEPS):
        waiting = False
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
        if not waiting:
            break
    found = client.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(found["notAfter"])) if "notAfter" in found else 0.0
