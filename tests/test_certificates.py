"""What the metrics say of the listeners' certificates."""

from __future__ import annotations

import math
from pathlib import Path

from gateway.app import certificates
from gateway.config import model
from gateway.ops import metrics
from tests.support.certificates import make_ca


def told(listener: model.Listener) -> float:
    found = metrics.CERTIFICATE_EXPIRY.labels(str(listener.address)).collect()
    return next(sample.value for family in found for sample in family.samples)


def test_a_listener_without_a_certificate_has_no_end_of_one_any_more(tmp_path: Path) -> None:
    issued = make_ca().issue("mx.example.org")
    certificate, key = issued.write(tmp_path)
    files = {"certificate": str(certificate), "key": str(key)}
    bare = model.Listener.model_validate({"address": "127.0.0.1:2525"})
    secured = model.Listener.model_validate({"address": "127.0.0.1:2525", "tls": files})
    certificates.note([secured])
    assert told(secured) == issued.certificate.not_valid_after_utc.timestamp()
    certificates.note([secured])
    assert told(secured) == issued.certificate.not_valid_after_utc.timestamp()
    certificates.note([bare])
    assert math.isnan(told(bare))
