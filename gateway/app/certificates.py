"""When the listeners' certificates end, for the metrics."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from gateway.config.model import Listener
from gateway.ops import log, metrics

_log = log.get()


def note(listeners: Iterable[Listener]) -> None:
    """Tell the metrics of these listeners' certificates, and of no others."""
    metrics.CERTIFICATE_EXPIRY.clear()
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
        metrics.CERTIFICATE_EXPIRY.labels(str(one.address)).set(leaf.not_valid_after_utc.timestamp())
