"""Rules that every rendering of the chart keeps; each function fails with what breaks one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tests.chart.helm import Document, configuration, names, of_kind, pods, workload


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def check_references(documents: Collection[Document], foreign: Collection[str]) -> None:
    """Selectors find the gateway's pods and no others, and what is named is there; `foreign` are names of what the
    operator has."""
    runs = workload(documents)
    labels = runs["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in runs["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert runs["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["gatepost/traffic"] == "on" and "gatepost/traffic" not in runs["spec"]["selector"]["matchLabels"]
    for service in of_kind(documents, "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        # Who is switched off by hand gets no mail, and keeps its name and its metrics.
        switched = service["spec"]["selector"].get("gatepost/traffic") == "on"
        assert switched is not service["metadata"]["name"].endswith("-pods")
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for document in of_kind(documents, kind):
            assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for document in of_kind(documents, "ServiceMonitor"):
        wanted = document["spec"]["selector"]["matchLabels"].items()
        matching = [s for s in of_kind(documents, "Service") if wanted <= s["metadata"]["labels"].items()]
        assert [s["metadata"]["name"] for s in matching] == [f"{runs['metadata']['name']}-pods"]
    nodes = [
        port["nodePort"] for s in of_kind(documents, "Service") for port in s["spec"]["ports"] if "nodePort" in port
    ]
    assert len(nodes) == len(set(nodes)), "two Services at one port of the nodes"
    there = names(documents)
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for document in of_kind(documents, kind):
            target = document["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in there
    assert len({(d["kind"], d["metadata"]["name"]) for d in documents}) == len(documents), "two objects of one name"
    for whose, spec, pod_labels in pods(documents):
        if whose.split()[0] != runs["kind"]:
            assert not runs["spec"]["selector"]["matchLabels"].items() <= pod_labels.items(), f"{whose} gets mail"
        for kind, name in referred(spec):
            # Secrets of certificates are made by cert-manager; others and claims are the operator's.
            assert (kind, name) in there or name in foreign or kind == "Secret", (whose, kind, name)


def referred(spec: Document) -> Iterator[tuple[str, str]]:
    """What a pod's spec names, by kind and name."""
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    if spec.get("serviceAccountName", "default") != "default":
        yield "ServiceAccount", spec["serviceAccountName"]


def check_mounts(documents: Collection[Document]) -> None:
    """Every mount has its volume, every volume its mount, and none that changes is a sub-path."""
    for whose, spec, _ in pods(documents):
        volumes = [volume["name"] for volume in spec.get("volumes", [])]
        assert len(volumes) == len(set(volumes)), f"{whose}: two volumes of one name"
        claims = ["queue"] if whose.startswith("StatefulSet") else []
        mounted = set()
        for container in containers(spec):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(paths) == len(set(paths)), f"{whose}: two mounts at one place"
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in [*volumes, *claims], f"{whose} {container['name']}: {mount}"
                assert "subPath" not in mount
                mounted.add(mount["name"])
        assert set(volumes) <= mounted | {"socket"}, f"{whose} has volumes that nobody uses"


def check_files(documents: Collection[Document]) -> None:
    """What the configuration names below the chart's own directories is mounted by all who read it."""
    config = configuration(documents)
    for whose, spec, _ in pods(documents):
        if whose.startswith("Pod "):
            continue
        paths = {mount["mountPath"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
        if "token_file" in config["admin"]:
            assert config["admin"]["token_file"].rpartition("/")[0] in paths, whose
        if any("tls" in listener for listener in config["listeners"]):
            assert "/etc/gatepost/tls" in paths, whose
        asking = any("client_ca" in listener.get("tls", {}) for listener in config["listeners"])
        assert not asking or "/etc/gatepost/client-ca" in paths, whose
        if (folder := config.get("policy_folder")) and folder.startswith("/etc/gatepost"):
            assert folder in paths, whose
