"""Rules that every rendering of the chart keeps: the restricted profile, references that lead somewhere, hot files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from gateway.ops import metrics
from tests.chart.helm import (
    CHART,
    EXAMPLES,
    Document,
    configuration,
    helm,
    is_hook,
    names,
    of_kind,
    only,
    pods,
    render,
    rendered,
    workload,
)
from tests.chart.kubernetes import validate
from tests.chart.rules import check_files, check_mounts, check_references, containers, referred
from tests.house.test_docs import metrics_of

pytestmark = pytest.mark.slow

GIVEN = re.compile(r"^(rel-gatepost|rel-gate)")
"""Names of what the release itself makes."""
FOREIGN = ("partners-ca", "wheels")
"""ConfigMaps that examples expect to be there."""


def own(document_spec: Document) -> Iterator[Document]:
    yield from (c for c in containers(document_spec) if c["name"] not in ("wait", "rspamd"))


@pytest.mark.parametrize("file", EXAMPLES)
def test_every_pod_keeps_the_restricted_profile(file: str) -> None:
    found = pods(rendered(file))
    assert found
    for whose, spec, _ in found:
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, whose
        assert spec["automountServiceAccountToken"] is False
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["seccompProfile"] == {"type": "RuntimeDefault"}, whose
        assert context.get("runAsUser") != 0
        kinds = (
            {kind for volume in spec["volumes"] for kind in volume if kind != "name"} if "volumes" in spec else set()
        )
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, whose
        for container in containers(spec):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, container["name"]
            assert context["capabilities"] == {"drop": ["ALL"]}, container["name"]
            assert not container.get("securityContext", {}).get("privileged")
            assert all("hostPort" not in port for port in container.get("ports", []))
        for container in own(spec):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, container["name"]
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("file", EXAMPLES)
def test_every_image_says_which_one_it_is(file: str) -> None:
    for _, spec, _ in pods(rendered(file)):
        for container in containers(spec):
            assert re.search(r"(:[^:/@]+|@sha256:[0-9a-f]{64})$", container["image"]), container["image"]
            assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("file", EXAMPLES)
def test_selectors_services_and_references_lead_somewhere(file: str) -> None:
    check_references(rendered(file), FOREIGN)


@pytest.mark.parametrize("file", EXAMPLES)
def test_every_mount_has_its_volume_and_none_that_changes_is_a_sub_path(file: str) -> None:
    check_mounts(rendered(file))


@pytest.mark.parametrize("file", EXAMPLES)
def test_what_the_configuration_names_is_mounted(file: str) -> None:
    documents = rendered(file)
    check_files(documents)
    asking = any("client_ca" in listener.get("tls", {}) for listener in configuration(documents)["listeners"])
    for whose, spec, _ in pods(documents):
        paths = {mount["mountPath"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
        assert whose.startswith("Pod ") or asking == ("/etc/gatepost/client-ca" in paths), whose


def test_listeners_are_what_services_say() -> None:
    listeners = {one["address"]: one for one in configuration(rendered("ci/everything-values.yaml"))["listeners"]}
    assert set(listeners) == {f"{host}:252{n}" for host in ("0.0.0.0", "[::]") for n in (5, 6, 7)}
    assert listeners["[::]:2527"] == {**listeners["0.0.0.0:2527"], "address": "[::]:2527"}
    assert configuration(rendered("ci/everything-values.yaml"))["admin"]["health"] == "[::]:8080"
    assert listeners["0.0.0.0:2527"]["proxy_protocol"] == {"trusted": ["10.0.0.0/8", "2001:db8::/32"]}
    assert "proxy_protocol" not in listeners["0.0.0.0:2525"]
    assert [listeners[f"0.0.0.0:252{n}"]["tls"]["mode"] for n in (5, 6, 7)] == ["starttls", "implicit", "starttls"]
    asked = [listeners[f"0.0.0.0:252{n}"]["tls"].get("client_certificate") for n in (5, 6, 7)]
    assert asked == ["ask", "require", None]
    assert listeners["0.0.0.0:2526"]["tls"]["client_ca"] == "/etc/gatepost/client-ca/ca.crt"
    assert listeners["0.0.0.0:2526"]["pipeline"] == "inside"
    assert listeners["0.0.0.0:2526"]["xclient"] == {"trusted": ["10.9.0.0/24"]}
    assert configuration(rendered("ci/everything-values.yaml"))["limits"]["sessions"] == 1_000_000


@pytest.mark.parametrize(
    ("given", "volume"),
    [
        ({"existingSecret": "partners"}, {"secret": {"secretName": "partners", "defaultMode": 0o440}}),
        ({"existingConfigMap": "partners"}, {"configMap": {"name": "partners"}}),
    ],
)
def test_cas_of_clients_are_one_mounted_file_and_who_must_show_a_certificate_is_tested_without(
    given: dict[str, str], volume: dict[str, Any]
) -> None:
    values = {
        "tls": {"existingSecret": "mx-example-org", "clientCA": {**given, "key": "all.pem"}},
        "services": {"partners": {"targetPort": 2600, "clientCertificates": "require"}},
    }
    documents = render(values)
    (pod,) = (spec for whose, spec, _ in pods(documents) if whose.startswith("StatefulSet "))
    ((kind, content),) = volume.items()
    items = {"items": [{"key": "all.pem", "path": "ca.crt"}]}
    assert {"name": "client-ca", kind: {**content, **items}} in pod["volumes"]
    asked = [container["args"] for container in only(documents, "Pod")["spec"]["containers"]]
    assert {"--starttls" in args for args in asked if any("partners:" in arg for arg in args)} == {False}
    assert any("--starttls" in args for args in asked)


def test_the_test_pod_asks_every_service_that_it_can_ask() -> None:
    pod = only(rendered("ci/everything-values.yaml"), "Pod")
    asked = [container["args"] for container in pod["spec"]["containers"]]
    to = ["--to", "ben@example.org", "--send"]
    assert asked == [
        ["selftest", "--smtp", "rel-gate-mx:25", "--starttls", *to],
        ["selftest", "--http", "http://rel-gate-pods:8080"],
    ]
    allowed = only(rendered("ci/everything-values.yaml"), "NetworkPolicy", suffix="-gate")["spec"]["ingress"]
    peer = {"app.kubernetes.io/instance": "rel", "app.kubernetes.io/component": "test"}
    for rule in allowed:
        assert {"podSelector": {"matchLabels": peer}} in rule["from"]
    assert peer.items() <= pod["metadata"]["labels"].items()


def test_the_grace_period_holds_all_that_the_gateway_may_need() -> None:
    from gateway.app import supervisor, worker
    from gateway.sdk.options import parse_duration

    for file in EXAMPLES:
        config = configuration(rendered(file))
        timeouts, evacuate = config["timeouts"], config.get("evacuate", {"when": "never"})
        longest = parse_duration(timeouts["drain_delay"]) + parse_duration(timeouts["drain"]) + supervisor._DRAIN_MARGIN
        if evacuate["when"] == "drain":
            longest += parse_duration(evacuate["time"]) + supervisor._EVACUATION_MARGIN
        # The admin server has 6 seconds after that.
        spec = workload(rendered(file))["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= longest + 6
    assert worker._SETTLE_SECONDS < supervisor._DRAIN_MARGIN


def test_a_claim_outlives_its_pod_and_its_release() -> None:
    spec = only(rendered("examples/minimal.yaml"), "StatefulSet")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["labels"] == spec["selector"]["matchLabels"], "labels that change break every upgrade"


def test_autoscalers_use_metrics_that_the_gateway_has_and_take_no_pod_away() -> None:
    known = metrics_of(vars(metrics).values())
    hpa = only(rendered("ci/everything-values.yaml"), "HorizontalPodAutoscaler")["spec"]
    assert {m["pods"]["metric"]["name"] for m in hpa["metrics"] if m["type"] == "Pods"} <= known.keys()
    assert hpa["behavior"]["scaleDown"] == {"selectPolicy": "Disabled"}
    keda = only(rendered("ci/keda-values.yaml"), "ScaledObject")["spec"]
    behavior = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"] == {"selectPolicy": "Disabled"}
    assert keda["minReplicaCount"] >= 1, "a gateway that is away takes no mail"
    queries = [trigger["metadata"]["query"] for trigger in keda["triggers"]]
    used = {name for query in queries for name in re.findall(r"gatepost_\w+", query)}
    assert used == {"gatepost_queue_messages", "gatepost_sessions_open"} and used <= known.keys()


def test_with_a_queue_in_postgresql_pods_are_a_deployments_and_have_no_claims() -> None:
    documents = rendered("ci/stateless-values.yaml")
    assert not of_kind(documents, "StatefulSet") and not of_kind(documents, "PersistentVolumeClaim")
    spec = only(documents, "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": "25%", "maxSurge": 0}
    (queue,) = (volume for volume in spec["template"]["spec"]["volumes"] if volume["name"] == "queue")
    assert queue["emptyDir"] == {"sizeLimit": "1Gi"}
    # All else of the pod is as it is with claims.
    there = workload(render({"config": {"pipeline": []}}))["spec"]["template"]
    here = workload(render({"config": {"spool": {"postgres": "postgresql://db/x"}, "pipeline": []}}))["spec"][
        "template"
    ]
    assert [volume for volume in here["spec"]["volumes"] if volume["name"] != "queue"] == there["spec"]["volumes"]
    assert (
        here["spec"]["containers"] == there["spec"]["containers"]
        and here["metadata"].keys() == there["metadata"].keys()
    )


def test_a_queue_in_postgresql_lets_autoscalers_take_pods_away() -> None:
    for file, kind in (
        ("examples/postgres.yaml", "HorizontalPodAutoscaler"),
        ("ci/stateless-values.yaml", "ScaledObject"),
    ):
        scaler = only(rendered(file), kind)["spec"]
        assert scaler["scaleTargetRef"]["kind"] == "Deployment" and "Disabled" not in str(scaler), file


def test_what_may_go_out_includes_the_stores_that_pods_share() -> None:
    for file, stores in (("examples/postgres.yaml", {5432, 6379}), ("ci/stateless-values.yaml", {5432, 5433})):
        rules = only(rendered(file), "NetworkPolicy", suffix="-gatepost")["spec"]["egress"]
        assert stores <= {port["port"] for rule in rules for port in rule["ports"]}, file
    spool, state = {"postgres": {"url": "postgresql://u@db:6000/x"}}, {"redis": {"url": "rediss://[2001:db8::1]/0"}}
    policy = {"egress": {"enabled": True, "ports": []}}
    documents = render({"config": {"spool": spool, "state": state}, "networkPolicy": policy})
    rules = only(documents, "NetworkPolicy", suffix="-gatepost")["spec"]["egress"]
    assert [port["port"] for port in rules[1]["ports"]] == [6000, 6379]


@pytest.mark.parametrize("file", EXAMPLES)
def test_every_pod_is_under_one_network_policy_where_there_are_any(file: str) -> None:
    documents = rendered(file)
    policies = of_kind(documents, "NetworkPolicy")
    assert len(policies) == (0 if file == "ci/one-pod-values.yaml" else 2)
    for whose, _, labels in pods(documents):
        over = [policy["metadata"]["name"] for policy in policies if selects(policy, labels)]
        assert len(over) == bool(policies), whose
        gateway = whose.split()[0] == workload(documents)["kind"]
        assert not over or over[0].endswith("-jobs") is not gateway, whose


def selects(policy: Document, labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return selector["matchLabels"].items() <= labels.items()


def test_nobody_comes_to_jobs_and_the_test_and_they_go_to_the_gateway_alone() -> None:
    for file, given in (("ci/evacuate-values.yaml", []), ("ci/everything-values.yaml", [{"cidr": "10.0.0.0/8"}])):
        documents = rendered(file)
        policy = only(documents, "NetworkPolicy", suffix="-jobs")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["ingress"] == []
        names, gateway, *rules = policy["egress"]
        assert names == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
        template = workload(documents)["spec"]["template"]
        (peer,) = gateway["to"]
        assert peer["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = {port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["port"] for port in gateway["ports"]} == ports
        assert [peer["ipBlock"] for rule in rules for peer in rule["to"]] == given
    closed = only(rendered("examples/minimal.yaml"), "NetworkPolicy", suffix="-jobs")["spec"]
    assert closed["policyTypes"] == ["Ingress"] and closed["ingress"] == [] and "egress" not in closed


def test_hooks_never_touch_what_the_release_keeps() -> None:
    documents = rendered("ci/everything-values.yaml")
    hooks = {(d["kind"], d["metadata"]["name"]) for d in documents if is_hook(d)}
    assert ("Job", "rel-gate-check") in hooks and ("Pod", "rel-gate-selftest") in hooks
    kept = {(d["kind"], d["metadata"]["name"]) for d in documents if not is_hook(d)}
    assert not hooks & kept
    job = only(documents, "Job")["spec"]["template"]["spec"]
    for kind, name in referred(job):
        if kind == "ConfigMap":
            assert (kind, name) in hooks or not GIVEN.match(name), f"{name} is still the old one before an upgrade"


def test_a_check_before_an_installation_needs_nothing_that_comes_with_it() -> None:
    given = {"checkBeforeInstall": True, "tls": {"existingSecret": "mx-example-org"}}
    for values, when, account in (
        ({}, "pre-upgrade", "rel-gatepost"),
        (given, "pre-install,pre-upgrade", None),
        ({**given, "checkBeforeUpgrade": False}, "pre-install", None),
        ({**given, "serviceAccount": {"create": False, "name": "mail"}}, "pre-install,pre-upgrade", "mail"),
    ):
        documents = render(values)
        job, config = only(documents, "Job"), only(documents, "ConfigMap", suffix="-check")
        assert job["metadata"]["annotations"]["helm.sh/hook"] == when
        assert config["metadata"]["annotations"]["helm.sh/hook"] == when
        spec = job["spec"]["template"]["spec"]
        assert spec.get("serviceAccountName") == account
        made = names(d for d in documents if not is_hook(d))
        assert not made & {*referred(spec), ("ServiceAccount", account)} or when == "pre-upgrade"
    upgrade = helm("template", "rel", str(CHART), "--is-upgrade", values=given)
    assert upgrade.returncode == 0, upgrade.stderr
    (job,) = of_kind(yaml.safe_load_all(upgrade.stdout), "Job")
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "rel-gatepost"


def test_packages_on_a_claim_are_mounted_read_only_by_all_who_load_them() -> None:
    documents = rendered("ci/one-pod-values.yaml")
    found = 0
    for whose, spec, _ in pods(documents):
        if "selftest" in whose:
            continue
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "plugins")
        assert volume["persistentVolumeClaim"] == {"claimName": "packages", "readOnly": True}, whose
        (container,) = spec["containers"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "plugins")
        assert mount["readOnly"] is True
        assert {"name": "PYTHONPATH", "value": mount["mountPath"]} in container["env"]
        assert "initContainers" not in spec, "nothing is to be copied"
        found += 1
    assert found == 2, "the gateway and the check"


POSTGRES: Document = {"config": {"spool": {"postgres": "postgresql://u@db/x"}}}
MOUNTED: Document = {"name": "scanner", "image": "registry.example.org/scanner:1", "volume": True}


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_an_image_that_is_a_volume_is_mounted_read_only_by_all_who_load_packages(kind: str) -> None:
    at_root = {"name": "root", "image": "b:2", "path": "/", "volume": True, "pullPolicy": "Never"}
    copied = {"name": "copied", "image": "c:3"}
    values = POSTGRES if kind == "Deployment" else {"evacuate": {"enabled": True, "secret": "s", "orphans": [2]}}
    documents = render({**values, "plugins": {"images": [MOUNTED, copied, at_root]}}, kubernetes="1.33.0")
    found = [spec for whose, spec, _ in pods(documents) if "selftest" not in whose]
    assert len(found) == (2 if kind == "Deployment" else 3), "the gateway, the check, and the evacuation"
    for spec in found:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["plugin-scanner"]["image"] == {"reference": "registry.example.org/scanner:1"}
        assert volumes["plugin-root"]["image"] == {"reference": "b:2", "pullPolicy": "Never"}
        assert [container["name"] for container in spec["initContainers"]] == ["plugin-copied"]
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        for name in ("scanner", "root"):
            # Mounted whole: parts of an image can be mounted by newer versions only, and by some runtimes.
            mount = {"name": f"plugin-{name}", "mountPath": f"/opt/gatepost-images/{name}", "readOnly": True}
            assert mounts[f"plugin-{name}"] == mount
        path = "/opt/gatepost-plugins:/opt/gatepost-images/scanner/plugins:/opt/gatepost-images/root"
        assert {"name": "PYTHONPATH", "value": path} in container["env"]
    for version in ("1.33.0", "1.37.0"):
        for document in documents:
            validate(document, version)
    with pytest.raises(ValidationError, match="image"):
        validate(workload(documents), "1.29.0")


def test_nothing_is_copied_where_every_image_is_a_volume() -> None:
    for whose, spec, _ in pods(render({"plugins": {"images": [MOUNTED]}}, kubernetes="1.33.0")):
        if "selftest" in whose:
            continue
        assert "initContainers" not in spec and "plugins" not in {volume["name"] for volume in spec["volumes"]}
        path = "/opt/gatepost-images/scanner/plugins"
        assert {"name": "PYTHONPATH", "value": path} in spec["containers"][0]["env"]


def test_pods_that_hand_over_find_each_other_and_nobody_else_comes_in() -> None:
    documents = rendered("ci/evacuate-values.yaml")
    config = configuration(documents)
    assert config["admin"]["handover"] == "0.0.0.0:9926" and config["admin"]["address"] == "127.0.0.1:9925"
    service = only(documents, "Service", suffix="-pods")
    assert service["spec"]["publishNotReadyAddresses"] is True, "one that is ending still says what it took"
    host = f"{service['metadata']['name']}.mail.svc.cluster.example"
    assert config["evacuate"] == {"when": "drain", "peers": f"http://{host}:9926", "time": "90s"}
    assert {"name": "handover", "port": 9926, "targetPort": "handover", "protocol": "TCP"} in service["spec"]["ports"]
    policy = only(documents, "NetworkPolicy", suffix="-gatepost")["spec"]
    (rule,) = (rule for rule in policy["ingress"] if rule["ports"] == [{"port": "handover", "protocol": "TCP"}])
    allowed = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    for whose, _, labels in pods(documents):
        comes_in = any(wanted.items() <= labels.items() for wanted in allowed)
        assert comes_in is (whose.startswith("StatefulSet") or "-evacuate-" in whose), whose
    assert any(rule["ports"] == [{"port": 9926, "protocol": "TCP"}] for rule in policy["egress"])
    plain = rendered("examples/minimal.yaml")
    assert "handover" not in configuration(plain)["admin"] and "evacuate" not in configuration(plain)


def test_a_job_evacuates_each_claim_of_a_pod_that_is_gone() -> None:
    documents = rendered("ci/evacuate-values.yaml")
    jobs = {d["metadata"]["name"]: d for d in of_kind(documents, "Job") if "-evacuate-" in d["metadata"]["name"]}
    claims = {}
    for name, job in jobs.items():
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-upgrade"
        assert job["spec"]["activeDeadlineSeconds"] == 600
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert container["args"][:4] == ["queue", "evacuate", "--wait", "570s"], "it ends before it is ended"
        assert {"name": "queue", "mountPath": "/var/lib/gatepost"} in container["volumeMounts"]
        claims[name] = spec["volumes"][0]["persistentVolumeClaim"]["claimName"]
    (template,) = only(documents, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claims.pop("rel-gatepost-evacuate-9") == f"{template['metadata']['name']}-rel-gatepost-9"
    assert claims.pop("rel-gatepost-evacuate-10") == "queue-rel-gatepost-10"
    assert list(claims.values()) == ["queue-old-0"]
    assert not [d for d in of_kind(rendered("ci/everything-values.yaml"), "Job") if "evacuate" in d["metadata"]["name"]]


def test_an_autoscaler_takes_pods_away_one_at_a_time_where_they_hand_over() -> None:
    hpa = only(rendered("ci/evacuate-values.yaml"), "HorizontalPodAutoscaler")["spec"]
    assert hpa["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
