"""What the chart makes is what Kubernetes, the operators and the gateway itself take, by either Helm."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.config import parse
from tests.chart import files
from tests.chart.helm import (
    CHART,
    EXAMPLES,
    MAJORS,
    Document,
    configuration,
    helm,
    is_hook,
    names,
    of_kind,
    only,
    render,
    rendered,
)
from tests.chart.kubernetes import VERSIONS, objections, validate
from tests.support.servers import Certificate as MadeCertificate
from tests.support.servers import make_certificate

pytestmark = pytest.mark.slow

CUSTOM = ("Certificate", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor")
"""What operators take; tests/chart/full_custom.py looks at these."""
FOREIGN = ("IngressRouteTCP",)
"""Custom resources of examples, for which there is no model."""


@pytest.mark.parametrize("major", MAJORS)
def test_helm_finds_nothing_to_complain_of(major: int) -> None:
    result = helm("lint", "--strict", str(CHART), major=major)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", EXAMPLES)
def test_both_helms_make_the_same_of_every_example(file: str) -> None:
    three, four = (sorted(rendered(file, major=major), key=json.dumps) for major in MAJORS)
    assert three == four


@pytest.mark.parametrize("file", EXAMPLES)
def test_kubernetes_takes_every_object_of_every_example(file: str) -> None:
    for document in rendered(file):
        if document["kind"] in CUSTOM or document["kind"] in FOREIGN:
            continue
        for version in VERSIONS:
            validate(document, version)


def test_what_kubernetes_would_not_take_is_seen() -> None:
    document = copy.deepcopy(only(rendered("examples/minimal.yaml"), "StatefulSet"))
    document["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(jsonschema.ValidationError, match="terminationGracePeriodSecond"):
        validate(document, VERSIONS[0])
    del document["spec"]["template"]["spec"]["terminationGracePeriodSecond"]
    validate(document, VERSIONS[0])
    document["spec"]["minReadySeconds"] = 2**31
    with pytest.raises(jsonschema.ValidationError, match="int32"):
        validate(document, VERSIONS[0])
    assert objections(document) == []
    document["metadata"]["labels"]["a b"] = ""
    spec = document["spec"]["template"]["spec"]
    spec["containers"][0]["ports"].append({"name": "mx", "containerPort": 0})
    spec["containers"].append({"name": "gatepost", "resources": {"limits": {"cpu": "many"}}})
    said = objections(document)
    for where in ("metadata/labels", "/ports:", "/containerPort: 0", "/containers:", "/limits:"):
        assert any(where in one for one in said), where


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> MadeCertificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def with_files(text: str, certificate: MadeCertificate) -> str:
    """A configuration that names files that are there, in place of those that pods have mounted."""
    text = text.replace("/etc/gatepost/tls/tls.crt", str(certificate.certificate))
    text = text.replace("/etc/gatepost/tls/tls.key", str(certificate.key))
    text = text.replace("/etc/gatepost/client-ca/ca.crt", str(certificate.certificate))
    text = re.sub(r"/etc/gatepost/secrets/\S+/password", str(certificate.key), text)
    token = certificate.key.with_name("peers.token")
    token.write_text("a-token-of-sixteen-or-more\n")
    return re.sub(r"/etc/gatepost/handover/\S+", str(token), text)


@pytest.mark.parametrize("file", EXAMPLES)
def test_the_gateway_takes_the_configuration_of_every_example(file: str, certificate: MadeCertificate) -> None:
    (text,) = (
        d["data"]["gatepost.yaml"]
        for d in of_kind(rendered(file), "ConfigMap")
        if "gatepost.yaml" in d["data"] and not is_hook(d)
    )
    config = parse(with_files(text, certificate).encode(), "/etc/gatepost/config/gatepost.yaml")
    assert config.admin.health is not None and config.admin.address.ip.is_loopback
    assert config.spool.path.startswith("/var/lib/gatepost/") and config.state.path.startswith("/var/lib/gatepost/")


def test_the_notes_say_what_is_risky() -> None:
    values = {
        "config": {"pipeline": [{"greylist": {}}], "relay_from": ["192.0.2.0/24"]},
        "services": {
            "other": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "targetPort": 2600, "proxyProtocol": True,
                      "trustedNetworks": ["10.0.0.0/8"]},
        },
        "autoscaling": {"enabled": True},
    }  # fmt: skip
    notes = helm("install", "rel", str(CHART), "--dry-run=client", values=values).stdout
    notes = notes.partition("NOTES:")[2]
    for said in (
        "config.domains is empty", "config.hostname is empty", "There is no certificate", "has greylist, and each pod",
        "services.other wants a PROXY header from 10.0.0.0/8", "192.0.2.0/24 may send to any domain",
        "takes none away",
    ):  # fmt: skip
        assert said in notes, said
    stateless = helm("install", "rel", str(CHART), "--dry-run=client", "-f", str(CHART / "ci/stateless-values.yaml"))
    for said in ("a pod that goes has nothing to hand over", "config.state.redis is not given", "deploy/rel-gatepost"):
        assert said in stateless.stdout, said
    assert "takes none away" not in stateless.stdout and "each pod remembers" not in stateless.stdout
    quiet = helm("install", "rel", str(CHART), "--dry-run=client", "-f", str(CHART / "examples/minimal.yaml"))
    assert "Mind" not in quiet.stdout and "Next steps" in quiet.stdout


@pytest.mark.parametrize("major", MAJORS)
def test_it_can_be_a_part_of_another_chart(major: int, tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text(
        "apiVersion: v2\nname: umbrella\nversion: 1.0.0\ndependencies:\n"
        f"  - {{name: gatepost, version: '*', repository: 'file://{CHART}', condition: gatepost.enabled}}\n"
    )
    (tmp_path / "values.yaml").write_text(
        "global: {somethingElse: {a: 1}, imageRegistry: registry.example.org}\ngatepost: {enabled: true}\n"
    )
    built = subprocess.run(
        [str(Path(__file__).parents[2] / f".venv/tools/helm{major}"), "dependency", "build", str(tmp_path)],
        capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    made = helm("template", "rel", str(tmp_path), major=major)
    assert made.returncode == 0, made.stderr
    assert 'image: "registry.example.org/gatepost:' in made.stdout
    off = helm("template", "rel", str(tmp_path), "--set", "gatepost.enabled=false", major=major)
    assert off.returncode == 0 and "kind: StatefulSet" not in off.stdout


def test_the_values_that_the_page_shows_are_good_ones() -> None:
    page = (CHART.parents[1] / "docs/kubernetes.md").read_text()
    least, shared = (render(yaml.safe_load(shown)) for shown in re.findall(r"(?s)```yaml\n(.*?)```", page))
    assert configuration(least)["hostname"] == "mx.example.org" and of_kind(least, "StatefulSet")
    assert of_kind(shared, "Deployment")


def test_the_package_has_the_chart_and_not_its_examples(tmp_path: Path) -> None:
    packed = helm("package", str(CHART), "--destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (package,) = tmp_path.glob("gatepost-*.tgz")
    with tarfile.open(package) as archive:
        held = {name.removeprefix("gatepost/") for name in archive.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "files/alerts.yaml"} <= held
    assert not any(name.startswith(("examples/", "ci/")) for name in held)
    for major in MAJORS:
        assert (
            helm("template", "rel", str(package), major=major).stdout
            == helm("template", "rel", str(CHART), major=major).stdout
        )


# --- schema and README ------------------------------------------------------------------------------------------------


def test_the_schema_and_the_readme_are_made_from_the_models() -> None:
    assert files.SCHEMA.read_text() == files.written_schema(), "run make chart-files"
    assert files.README.read_text() == files.written_readme(), "run make chart-files"


def test_every_default_stands_in_the_schema_and_every_key_of_it_has_a_default() -> None:
    schema, defaults = files.schema(), yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(defaults)
    lacking = {path for path in undefaulted(schema, schema, defaults) if not path.startswith("services.mx.")}
    assert lacking == {"enabled"}


def undefaulted(whole: Document, node: Document, values: Any, path: str = "") -> set[str]:
    """Keys of the schema that values.yaml does not have, `config` aside."""
    found = set()
    for key, part in node.get("properties", {}).items():
        part = whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if key not in values:
            found.add(path + key)
        elif path + key not in ("config", "lifecycle", "resources"):
            found |= undefaulted(whole, part, values[key], f"{path}{key}.")
    return found


@pytest.mark.parametrize("major", MAJORS)
def test_the_schema_refuses_what_is_misspelt_or_of_another_type(major: int) -> None:
    result = helm(
        "template", "rel", str(CHART), major=major,
        values={
            "replicas": "three",
            "tsl": {},
            "persistence": {"accessModes": ["ReadWriteMany"]},
            "services": {"mx": {"targetPort": 25}, "Upper": {"targetPort": 2600}, "other": {}},
            "config": {"limits": {"session": 5}, "domains": {"example.org": {"next_hops": "mx"}}},
            "plugins": {"inline": {"../x.py": ""}},
        },
    )  # fmt: skip
    assert result.returncode != 0
    for where in ("replicas", "tsl", "accessModes", "targetPort", "Upper", "session", "next_hops", "../x.py"):
        assert where in result.stderr, where


@pytest.mark.parametrize("major", MAJORS)
def test_the_schema_refuses_what_kubernetes_or_an_operator_would(major: int) -> None:
    values = {
        "global": {"imagePullSecrets": "one"},
        "nameOverride": "a: b",
        "fullnameOverride": "Mail Gate",
        "labels": {"a b": "c"},
        "podLabels": {"tier": "a b"},
        "podAnnotations": {"c d": "e"},
        "nodeSelector": {"disk": "x" * 64},
        "image": {"registry": "a b", "repository": "a b", "tag": "a b"},
        "ipFamilies": ["IPv4", "IPv4"],
        "services": {"mx": {"externalIPs": ["mx.example.org"], "loadBalancerClass": "a: b"}},
        "secrets": {"ldap": "a..b"},
        "tls": {"clientCA": {"key": ".."}},
        "persistence": {"size": "much", "accessModes": [], "storageClass": "a: b"},
        "stateless": {"maxSurge": "00%"},
        "podDisruptionBudget": {"maxUnavailable": "some"},
        "minReadySeconds": 2**31,
        "terminationGracePeriodSeconds": 2**31,
        "revisionHistoryLimit": 2**31,
        "autoscaling": {"cpu": 2**31},
        "priorityClassName": "a: b",
        "runtimeClassName": "a: b",
        "resources": {"limits": {"memory": "much"}},
        "lifecycle": {"preStop": {"sleep": 5}},
        "monitoring": {"podMonitor": {"interval": "1s1h"}, "rules": {"labels": {"a-b": "c"}}},
        "plugins": {"images": [{"name": "a", "image": "b c"}]},
    }
    result = helm("template", "rel", str(CHART), major=major, values=values)
    assert result.returncode != 0
    for where in (
        "/global/imagePullSecrets", "/nameOverride", "/fullnameOverride", "'a b' not allowed", "/podLabels/tier",
        "'c d' not allowed", "/nodeSelector/disk", "/image/registry", "/image/repository", "/image/tag", "/ipFamilies",
        "/externalIPs/0", "/loadBalancerClass", "/secrets/ldap", "/clientCA/key", "/persistence/size", "/accessModes",
        "/storageClass", "/stateless/maxSurge", "/podDisruptionBudget/maxUnavailable", "/minReadySeconds",
        "/terminationGracePeriodSeconds", "/revisionHistoryLimit", "/autoscaling/cpu", "/priorityClassName",
        "/runtimeClassName", "/resources/limits/memory", "/preStop/sleep", "/podMonitor/interval",
        "'a-b' not allowed", "/plugins/images/0/image",
    ):  # fmt: skip
        assert where in result.stderr, where


NUMBERS: Document = {
    "nameOverride": "1",
    "fullnameOverride": "on",
    "replicas": 1,
    "global": {"imagePullSecrets": ["1"]},
    "image": {"repository": "1", "tag": "20"},
    "config": {"pipelines": {"1": []}},
    "services": {"on": {"targetPort": 2600, "pipeline": "1", "loadBalancerClass": "2", "type": "LoadBalancer"}},
    "tls": {"existingSecret": "2", "clientCA": {"existingConfigMap": "3", "key": "1.0"}},
    "secrets": {"a": "4"},
    "evacuate": {"enabled": True, "secret": "5", "key": "6", "claims": ["7"]},
    "plugins": {"existingClaim": "9"},
    "serviceAccount": {"name": "0"},
    "persistence": {"storageClass": "8", "size": 10737418240},
    "podDisruptionBudget": {"maxUnavailable": 1_000_000},
    "priorityClassName": "1e3",
    "runtimeClassName": "0x1f",
    "terminationGracePeriodSeconds": 10_000_000,
    "minReadySeconds": 1_000_000,
    "revisionHistoryLimit": 1_000_000,
    "autoscaling": {"enabled": True, "minReplicas": 2, "cpu": 1_000_000, "queueMessages": 1_000_000},
}
"""Texts that YAML would take for something else, and numbers that Go prints in a way of its own."""


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"persistence": {"existingClaim": "8"}, "autoscaling": {}},
        {"tls": {"existingSecret": "2", "clientCA": {"existingSecret": "3", "key": "null"}},
         "plugins": {"images": [{"name": "a", "image": "1:20"}, {"name": "b", "image": "1:30", "volume": True}]}},
        {"config": {"pipelines": {"1": []}, "spool": {"postgres": "postgresql://u@db/x"}}, "evacuate": {},
         "persistence": {}, "stateless": {"sizeLimit": 10737418240, "maxSurge": 1_000_000}},
    ],
)  # fmt: skip
def test_texts_stay_texts_and_numbers_stay_numbers(more: Document) -> None:
    documents = render({**NUMBERS, **more}, kubernetes="1.37.0")
    for document in documents:
        validate(document, "1.37.0")
        assert objections(document) == []
    found = {listener["pipeline"] for listener in configuration(documents)["listeners"]}
    assert found == {"default", "1"}


def test_the_most_special_of_two_labels_is_there_and_there_once() -> None:
    values = {
        "labels": {"team": "all", "a": "b"},
        "services": {"mx": {"labels": {"team": "net"}}},
        "monitoring": {
            "labels": {"team": "watch"}, "podMonitor": {"enabled": True}, "rules": {"enabled": True},
            "dashboard": {"enabled": True, "labels": {"team": "look"}},
        },
    }  # fmt: skip
    for document in render(values):
        name = document["metadata"]["name"]
        special = {"PodMonitor": "watch", "PrometheusRule": "watch"}.get(document["kind"], "all")
        special = {"rel-gatepost-mx": "net", "rel-gatepost-dashboard": "look"}.get(name, special)
        labels = document["metadata"]["labels"]
        assert (labels["team"], labels["a"]) == (special, "b"), name


def test_the_longest_names_are_short_enough() -> None:
    claims = {"enabled": True, "secret": "peers", "orphans": [999], "claims": ["queue-old-0"]}
    values = {"fullnameOverride": f"{'a' * 44}--b", "evacuate": claims, "services": {"a" * 15: {"targetPort": 2600}}}
    for document in render(values):
        assert objections(document) == []


def test_prometheus_address_may_be_any_text() -> None:
    address = "http://prometheus:9090/a: b #c"
    documents = render({"keda": {"enabled": True, "prometheus": address}})
    triggers = only(documents, "ScaledObject")["spec"]["triggers"]
    assert {trigger["metadata"]["serverAddress"] for trigger in triggers} == {address}


def test_the_charts_version_is_the_gateways() -> None:
    from importlib.metadata import version

    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version("gatepost")


def test_artifact_hub_can_read_what_the_chart_says_of_itself() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    said = {key.removeprefix("artifacthub.io/"): value for key, value in annotations.items()}
    assert all(isinstance(value, str) for value in said.values()), "annotations are texts, lists too"
    assert (said["license"], said["operator"]) == ("Apache-2.0", "false")
    images, changes = yaml.safe_load(said["images"]), yaml.safe_load(said["changes"])
    (container,) = only(render({}), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert images == [{"name": "gatepost", "image": container["image"], "whitelisted": True}]
    newest = (CHART.parents[1] / "CHANGELOG.md").read_text().split("\n## ")[1]
    sections = {section.lower() for section in re.findall(r"(?m)^### (\w+)$", newest)}
    assert sections <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    for change in changes:
        assert change.keys() == {"kind", "description"} and change["kind"] in sections, change
        assert isinstance(change["description"], str) and change["description"], change


# --- what upgrades live by --------------------------------------------------------------------------------------------


def test_an_upgrade_never_changes_what_cannot_be_changed() -> None:
    before = only(rendered("examples/minimal.yaml"), "StatefulSet")["spec"]
    values = {
        "replicas": 5, "labels": {"a": "b"}, "podLabels": {"c": "d"}, "image": {"tag": "9.9.9"}, "reload": "rolling",
        "services": {"more": {"targetPort": 2600}}, "tls": {"existingSecret": "other"},
    }  # fmt: skip
    after = only(render(values), "StatefulSet")["spec"]
    for key in ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"):
        assert before[key] == after[key], key


def test_rendering_twice_gives_the_same() -> None:
    assert helm("template", "rel", str(CHART)).stdout == helm("template", "rel", str(CHART)).stdout


def test_pods_restart_for_what_is_bound_to_the_start_and_for_all_only_when_rolling() -> None:
    def fingerprint(**values: Any) -> str:
        template = only(render(values), "StatefulSet")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["gatepost/config"]
        return found

    policy, workers = {"pipeline": ["spf"]}, {"workers": 3}
    hot = fingerprint()
    assert fingerprint(config=policy) == hot
    assert fingerprint(plugins={"inline": {"own.py": "pass"}}) == hot
    assert len({hot, fingerprint(config=workers), fingerprint(services={"more": {"targetPort": 2600}})}) == 3
    rolling = fingerprint(reload="rolling")
    assert len({rolling, fingerprint(reload="rolling", config=policy)}) == 2
    assert configuration(render({}))["reload"] == {"watch": "10s"}
    assert "reload" not in configuration(render({"reload": "rolling"}))


def test_the_number_of_pods_is_left_to_an_autoscaler() -> None:
    assert only(render({"replicas": 3}), "StatefulSet")["spec"]["replicas"] == 3
    for values in ({"autoscaling": {"enabled": True}}, {"keda": {"enabled": True, "prometheus": "http://p:9090"}}):
        assert "replicas" not in only(render(values), "StatefulSet")["spec"]


def test_one_pod_has_no_budget_and_several_have() -> None:
    assert ("PodDisruptionBudget", "rel-gatepost") in names(render({"replicas": 2}))
    assert not of_kind(render({"replicas": 1}), "PodDisruptionBudget")
