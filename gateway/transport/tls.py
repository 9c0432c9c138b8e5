"""TLS towards next hops: contexts by security level, and what was negotiated.

*RFCs*: 3207 (STARTTLS), 8996 (nothing below TLS 1.2).
"""

from __future__ import annotations

import asyncio
import ssl

from gateway.transport.transport import Security


def make_context(security: Security, ca_file: str = "") -> ssl.SSLContext:
    """The client context for a level; `ca_file` (PEM) replaces the system's CAs for `Security.VERIFY`.

    Reads files. Raises OSError (of which ssl.SSLError is one) when `ca_file` cannot be used.
    """
    if security is Security.VERIFY:
        context = ssl.create_default_context(cafile=ca_file or None)
    else:
        # Any certificate: without DANE or a CA there is nothing to check it against, and TLS still keeps
        # eavesdroppers out (RFC 7435).
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def describe(transport: asyncio.BaseTransport) -> str:
    """Version and cipher as OpenSSL writes them (``TLSv1.3/TLS_AES_256_GCM_SHA384``); empty in the clear."""
    ssl_object = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return ""
    cipher = ssl_object.cipher()
    return f"{ssl_object.version()}/{cipher[0] if cipher else 'unknown'}"
