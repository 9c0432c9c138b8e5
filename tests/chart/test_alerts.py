"""Alerts and the dashboard: Prometheus itself says when alerts fire, and what they ask for is what the gateway has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.ops import metrics
from tests.chart.helm import of_kind, only, render, rendered
from tests.house.test_docs import metrics_of
from tests.support.process import binary

pytestmark = pytest.mark.slow

POD = {f"POD{n}": f'namespace="mail",pod="rel-gatepost-{n}",' for n in (0, 1)}
CASES: dict[str, Any] = yaml.safe_load(
    re.sub(r"labels: \{(.*)POD(\d)\}", r"labels: {\1namespace: mail, pod: rel-gatepost-\2}",
           (Path(__file__).with_name("alerts.yaml")).read_text())
)  # fmt: skip
FOREIGN = {"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"} | {
    "kube_persistentvolumeclaim_info",
    "kube_statefulset_replicas",
}
"""What Prometheus, the kubelet and kube-state-metrics say."""


def rules(**values: Any) -> list[dict[str, Any]]:
    made = only(render({"monitoring": {"rules": {"enabled": True, **values}}}), "PrometheusRule")
    (group,) = made["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def play(alert: str, found: dict[str, Any], series: dict[str, str], at: dict[str, bool]) -> dict[str, Any]:
    """A test for promtool: whether the alert fires at these times."""
    labels = {**found["labels"], **CASES[alert].get("labels", {})}
    return {
        "interval": "1m",
        "input_series": [{"series": named(name), "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": time, "alertname": alert, "exp_alerts": [{"exp_labels": labels}] if fires else []}
            for time, fires in at.items()
        ],
    }


def named(series: str) -> str:
    for short, labels in POD.items():
        series = series.replace(short, labels)
    return series.replace(",}", "}")


def test_every_alert_fires_of_its_trouble_and_of_nothing_else(tmp_path: Path) -> None:
    found = {rule["alert"]: rule for rule in rules()}
    assert set(found) == set(CASES), "an alert without a case, or a case without one"
    tests = []
    for alert, case in CASES.items():
        tests.append(play(alert, found[alert], case["series"], {case["quiet_at"]: False, case["fires_at"]: True}))
        if "never" in case:
            tests.append(play(alert, found[alert], case["never"], {case["fires_at"]: False}))
    # What is said to people depends on values, and is checked below.
    bare = [{key: rule[key] for key in ("alert", "expr", "for", "labels")} for rule in found.values()]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": bare}]}))
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    said = promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert said.returncode == 0, said.stdout + said.stderr


def test_alerts_about_claims_are_those_of_pods_with_claims() -> None:
    made = only(rendered("ci/stateless-values.yaml"), "PrometheusRule")
    found = {rule["alert"]: rule["expr"] for rule in made["spec"]["groups"][0]["rules"]}
    assert set(found) == set(CASES) - {"GatepostQueueDiskFull", "GatepostOrphanQueueClaim"}
    (pattern,) = re.findall(r'pod=~"([^"]*)"', found["GatepostDown"])
    assert re.fullmatch(pattern, "rel-gatepost-7c9f6d5b8-x2x4z")
    for other in ("rel-gatepost-check-x2x4z", "rel-gatepost-selftest", "rel-gatepost-0"):
        assert not re.fullmatch(pattern, other), other


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("file", ["examples/ha-metallb.yaml", "ci/everything-values.yaml"])
def test_prometheus_takes_the_rules_with_all_that_they_say(file: str, tmp_path: Path) -> None:
    spec = only(rendered(file), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", str(tmp_path / "rules.yaml"))
    assert said.returncode == 0, said.stdout + said.stderr


def test_alerts_can_be_left_out_and_labelled() -> None:
    found = rules(disabled=["GatepostDown"], labels={"team": "mail"})
    assert {rule["alert"] for rule in found} == set(CASES) - {"GatepostDown"}
    assert all(rule["labels"]["team"] == "mail" for rule in found)


def known() -> set[str]:
    """Names of series that the gateway shows."""
    found = set()
    for name, (kind, _) in metrics_of(vars(metrics).values()).items():
        found |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return found


def asked(expression: str) -> set[str]:
    """Names of the series in an expression."""
    return set(re.findall(r"\b(?:gatepost|kube|kubelet)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def test_alerts_ask_for_metrics_that_there_are() -> None:
    for rule in rules():
        names = asked(rule["expr"])
        assert names and names <= known() | FOREIGN, rule["alert"]


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    maps = of_kind(rendered("examples/ha-metallb.yaml"), "ConfigMap")
    (text,) = (d["data"]["gatepost.json"] for d in maps if "gatepost.json" in d["data"])
    dashboard = json.loads(text)
    labels = {name: set(labels) for name, (_, labels) in metrics_of(vars(metrics).values()).items()}
    expressions = list(queries(dashboard))
    assert len(expressions) > 15
    for expression in expressions:
        names = asked(expression)
        assert names and names <= known(), expression
        allowed = {"namespace", "pod", "le"}.union(
            *(labels[re.sub(r"_(bucket|sum|count)$", "", name)] for name in names if name in known())
        )
        used = {
            label for inside in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)[!=]", inside)
        }
        used |= {label for inside in re.findall(r"by \(([^)]*)\)", expression) for label in re.findall(r"\w+", inside)}
        assert used <= allowed, expression
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= grouped(target["expr"]), panel["title"]


def grouped(expression: str) -> set[str]:
    """The labels that are left of it."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))


def queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["expr"]] if isinstance(node.get("expr"), str) else [])
        for value in node.values():
            yield from queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from queries(value)
