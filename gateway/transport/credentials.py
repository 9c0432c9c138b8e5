"""The password for a next hop, from where the configuration says it is, and what follows when it does not let us in.

*Fails by*: OSError and ValueError, whose texts hold no password.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from gateway.ops import log, metrics
from gateway.transport.events import Unauthenticated
from gateway.transport.hosts import Unreachable, deferred
from gateway.transport.options import Credentials
from gateway.transport.sasl import Login, prepare
from gateway.transport.transport import Fault

_log = log.get()

_OCTETS: Final = 1024


def read_login(credentials: Credentials) -> Login:
    """The name with the password as it is now: the first line of the file, or the environment variable. Reads a file.

    Raises OSError or ValueError, with a text for who has to put it right.
    """
    where = credentials.password_file or f"the environment variable {credentials.password_env}"
    if credentials.password_file:
        try:
            with open(credentials.password_file, "rb") as file:
                octets = file.readline(_OCTETS + 2).rstrip(b"\r\n")
        except OSError as error:
            raise OSError(f"the password cannot be read from {where}: {error.strerror}") from None
    else:
        octets = os.environb.get(credentials.password_env.encode(), b"")
    if not 0 < len(octets) <= _OCTETS:
        raise ValueError(f"there is no password of 1 to {_OCTETS} octets in {where}")
    try:
        password = prepare(octets.decode())
    except ValueError:
        raise ValueError(f"what stands in {where} can be no password (RFC 4013)") from None
    return Login(credentials.user, password, credentials.mechanisms, credentials.without_tls)


def locked_out(
    credentials: Credentials, host: str, event: Unauthenticated, fault: Fault = Fault.CONNECT
) -> Unreachable:
    """We could not log in. The mail waits, whatever the next hop said: somebody has to see to it, so this is loud."""
    later = event.reply is not None and event.reply.temporary
    result = "later" if later else "refused" if event.reply is not None else "impossible"
    metrics.AUTH_OUT.labels(result).inc()
    fields = {"host": host, "user": credentials.user, "result": result, "reason": event.problem}
    if later:
        _log.warning("auth.failed", **fields)
    else:
        _log.error("auth.failed", **fields)
    found = deferred("7.0", f"could not log in at {host}: {event.problem}", host, fault=fault)
    return replace(found, everywhere=not later)
