"""No value of the chart is dead: each one that is changed changes what is made, or is refused. ``make chart-full``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from tests.chart.helm import CHART, EXAMPLES, helm

DEFAULTS: Final = yaml.safe_load((CHART / "values.yaml").read_text())
OTHERWISE: Final[dict[str, Any]] = {
    "autoscaling.cpu": 50,
    "autoscaling.minReplicas": 3,
    "autoscaling.maxReplicas": 9,
    "checkBeforeInstall": True,
    "checkBeforeUpgrade": False,
    "drain.delaySeconds": 11,
    "drain.sessionSeconds": 61,
    "fullnameOverride": "other",
    "image.digest": f"sha256:{'0' * 64}",
    "image.registry": "other.example.org",
    "image.repository": "other",
    "image.tag": "0.9.0",
    "keda.cooldownPeriod": 301,
    "keda.maxReplicas": 7,
    "keda.minReplicas": 3,
    "keda.pollingInterval": 31,
    "keda.queueMessages": 501,
    "keda.sessions": 201,
    "monitoring.dashboard.labels.grafana_dashboard": "2",
    "monitoring.podMonitor.interval": "31s",
    "monitoring.podMonitor.metricRelabelings": [{"action": "drop"}],
    "monitoring.podMonitor.relabelings": [{"action": "drop"}],
    "monitoring.podMonitor.scrapeTimeout": "11s",
    "monitoring.rules.certificateDays": 15,
    "monitoring.rules.deferredRatio": 0.6,
    "monitoring.rules.queueMessages": 1001,
    "monitoring.rules.queueMinutes": 61,
    "monitoring.serviceMonitor.interval": "31s",
    "monitoring.serviceMonitor.scrapeTimeout": "11s",
    "networkPolicy.egress.ports": [26],
    "persistence.accessModes": ["ReadWriteOncePod"],
    "persistence.retention.whenDeleted": "Delete",
    "persistence.retention.whenScaled": "Delete",
    "podDisruptionBudget.enabled": False,
    "podSecurityContext.fsGroup": 1,
    "podSecurityContext.fsGroupChangePolicy": "Always",
    "podSecurityContext.runAsGroup": 1,
    "podSecurityContext.runAsNonRoot": None,
    "podSecurityContext.runAsUser": 1,
    "podSecurityContext.seccompProfile.type": "Localhost",
    "resources.limits.memory": "2Gi",
    "resources.requests.cpu": "300m",
    "resources.requests.memory": "512Mi",
    "revisionHistoryLimit": 6,
    "securityContext.allowPrivilegeEscalation": None,
    "securityContext.capabilities.drop": ["CHOWN"],
    "securityContext.readOnlyRootFilesystem": None,
    "stateless.maxSurge": 2,
    "stateless.maxUnavailable": 2,
    "stateless.sizeLimit": "2Gi",
    "terminationGracePeriodSeconds": 121,
    "tls.certificate.duration": "2000h",
    "tls.certificate.issuer.group": "example.org",
    "tls.certificate.privateKey.algorithm": "RSA",
    "tls.certificate.privateKey.rotationPolicy": "Never",
    "tls.certificate.privateKey.size": 384,
    "tls.certificate.renewBefore": "100h",
    "tls.clientCA.existingSecret": "other",
    "tls.clientCA.key": "other.crt",
    **{f"probes.{probe}.{key}": 99 for probe in ("startup", "live", "ready") for key in DEFAULTS["probes"]["live"]},
}
"""Another value for each that no example changes, and that has a default."""


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(values, dict) and values and path[:1] not in (("config",), ("services",)):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def at(values: dict[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The mapping that holds the last key of a path, made where it is missing."""
    for key in path[:-1]:
        values = values.setdefault(key, {})
    return values, path[-1]


def made(values: dict[str, Any]) -> str:
    """What is made of values; what a template says that refuses them; empty when the schema does."""
    result = helm("template", "rel", str(CHART), values=values)
    if result.returncode == 0:
        return result.stdout
    return result.stderr if "execution error" in result.stderr else ""


@pytest.fixture(scope="module")
def bases() -> list[tuple[dict[str, Any], str]]:
    """The values of all examples, and what is made of them."""
    files = [yaml.safe_load((CHART / file).read_text()) for file in EXAMPLES]
    return [(values, made(values)) for values in files]


def test_every_value_that_is_changed_changes_something(bases: list[tuple[dict[str, Any], str]]) -> None:
    dead = []
    for path, default in leaves(DEFAULTS):
        name = ".".join(path)
        changed = False
        for values, before in bases:
            other = copy.deepcopy(values)
            holder, key = at(other, path)
            if name in OTHERWISE:
                holder[key] = OTHERWISE[name]
            elif key in holder and holder[key] != default:
                # A default that is a mapping is merged into what is given, so a given one is emptied.
                holder.pop(key)
            else:
                continue
            after = made(other)
            if after and after != before:
                changed = True
                break
        if not changed:
            dead.append(name)
    assert dead == []
