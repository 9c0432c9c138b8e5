"""When the listeners' certificates end, for the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from cryptography import x509

from gateway.config.model import Listener
from gateway.ops import log, metrics

_log = log.get()
_told: Final[set[str]] = set()


def note(listeners: Iterable[Listener]) -> None:
    """Tell the metrics of these listeners' certificates. What was told of others does not hold any more."""
    now: set[str] = set()
    for one in listeners:
        if one.tls is None:
            continue
        try:
            with open(one.tls.certificate, "rb") as file:
                (leaf, *_) = x509.load_pem_x509_certificates(file.read())
        except (OSError, ValueError) as error:
            # It was good a moment ago, or the configuration would not be in force.
            _log.warning("certificate.unreadable", path=one.tls.certificate, reason=str(error))
            continue
        now.add(str(one.address))
        metrics.CERTIFICATE_EXPIRY.labels(str(one.address)).set(leaf.not_valid_after_utc.timestamp())
    for gone in _told - now:
        # Metrics that several processes share forget nothing; NaN is no time, and neither before nor after another.
        metrics.CERTIFICATE_EXPIRY.labels(gone).set(math.nan)
    _told.update(now)
