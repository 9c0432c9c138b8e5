"""Custom resources are what the models of their operators take: ``make chart-full``."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.helm import EXAMPLES, ROOT, only, rendered

CUSTOM = {
    "Certificate": "cert_manager.v1",
    "PodMonitor": "prometheus_operator.v1",
    "PrometheusRule": "prometheus_operator.v1",
    "ScaledObject": "keda.v1alpha1",
    "ServiceMonitor": "prometheus_operator.v1",
}
"""Where there are models of custom resources."""


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Any]]:
    """Models of custom resources, by kind."""
    where = ROOT / ".venv/tools/models"
    assert where.is_dir(), "run tools/setup.sh full, which installs them"
    sys.path.append(str(where))
    try:
        yield {
            kind: getattr(importlib.import_module(f"cloudcoil.models.{module}"), kind)
            for kind, module in CUSTOM.items()
        }
    finally:
        sys.path.remove(str(where))


def test_custom_resources_are_what_their_operators_take(models: dict[str, Any]) -> None:
    seen = set()
    for file in EXAMPLES:
        for document in rendered(file):
            if (model := models.get(document["kind"])) is None:
                continue
            seen.add(document["kind"])
            kept = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert not dropped(document, kept), document["kind"]
    assert seen == set(CUSTOM)


def dropped(given: Any, kept: Any, path: str = "") -> list[str]:
    """Keys that a model does not know."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return []
        lost = [f"{path}/{key}" for key in given if key not in kept]
        return lost + [p for key in given if key in kept for p in dropped(given[key], kept[key], f"{path}/{key}")]
    if isinstance(given, list) and isinstance(kept, list):
        return [
            p
            for i, (one, other) in enumerate(zip(given, kept, strict=True))
            for p in dropped(one, other, f"{path}/{i}")
        ]
    return []


def test_a_key_that_an_operator_does_not_know_is_seen(models: dict[str, Any]) -> None:
    monitor = copy.deepcopy(only(rendered("examples/ha-metallb.yaml"), "PodMonitor"))
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "30s"
    kept = models["PodMonitor"].model_validate(monitor).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert dropped(monitor, kept) == ["/spec/podMetricsEndpoints/0/intervall"]
