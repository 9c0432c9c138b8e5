"""Values that contradict each other are refused, with a message that names both."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import CHART, MAJORS, helm, refusal, render

pytestmark = pytest.mark.slow

CERTIFICATE = {"enabled": True, "issuer": {"name": "le"}, "dnsNames": ["mx.example.org"]}

PEERS = {"enabled": True, "secret": "peers"}

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "two registries": (
        {"image": {"registry": "registry.example.org", "repository": "mirror.example.net/gatepost"}},
        ("image.registry is registry.example.org", "image.repository is mirror.example.net/gatepost"),
    ),
    "a label that pods are found by": (
        {"podLabels": {"app.kubernetes.io/component": "mail"}},
        ("podLabels has app.kubernetes.io/component", "sets itself"),
    ),
    "a label that every alert has": (
        {"monitoring": {"rules": {"labels": {"severity": "page"}}}},
        ("monitoring.rules.labels has severity",),
    ),
    "a service of a name that is taken": (
        {"services": {"health": {"targetPort": 2600}}},
        ("services.health is no name", "handover and pods"),
    ),
    "two images of one name": (
        {"plugins": {"images": [{"name": "a", "image": "b:1"}, {"name": "a", "image": "b:2"}]}},
        ("plugins.images has a", "one of its own"),
    ),
    "a port of the nodes twice": (
        {"services": {"mx": {"nodePort": 30025}, "in": {"targetPort": 2600, "type": "NodePort", "nodePort": 30025}}},
        ("services.in and services.mx both have nodePort 30025",),
    ),
    "one family of two": (
        {
            "ipFamilies": ["IPv4", "IPv6"],
            "services": {"mx": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}},
        },
        ("services.mx.ipFamilyPolicy is SingleStack", "services.mx.ipFamilies"),
    ),
    "a key of no size": (
        {"tls": {"certificate": {**CERTIFICATE, "privateKey": {"algorithm": "RSA"}}}},
        ("tls.certificate.privateKey.algorithm is RSA", "tls.certificate.privateKey.size is 256"),
    ),
    "pods that find no name": ({"dnsPolicy": "None"}, ("dnsPolicy is None", "dnsConfig has no nameservers")),
    "PROXY without networks": (
        {"services": {"mx": {"proxyProtocol": True}}},
        ("services.mx.proxyProtocol is true", "services.mx.trustedNetworks is empty"),
    ),
    "networks without PROXY": (
        {"services": {"mx": {"trustedNetworks": ["10.0.0.0/8"]}}},
        ("services.mx.trustedNetworks", "services.mx.proxyProtocol is false"),
    ),
    "one port twice": (
        {"services": {"in": {"targetPort": 2525}}},
        ("services.mx.targetPort is 2525", "services.in"),
    ),
    "the probes' port": (
        {"services": {"mx": {"targetPort": 8080}}},
        ("services.mx.targetPort is 8080", "probes and metrics"),
    ),
    "no service": ({"services": {"mx": {"enabled": False}}}, ("no entry of services is enabled",)),
    "a policy without nodes": (
        {"services": {"mx": {"type": "ClusterIP", "externalTrafficPolicy": "Local"}}},
        ("services.mx.externalTrafficPolicy is Local", "services.mx.type is ClusterIP"),
    ),
    "a node port without nodes": (
        {"services": {"mx": {"type": "ClusterIP", "nodePort": 30025}}},
        ("services.mx.nodePort is 30025", "services.mx.type is ClusterIP"),
    ),
    "ranges without a load balancer": (
        {"services": {"mx": {"type": "NodePort", "loadBalancerSourceRanges": ["192.0.2.0/24"]}}},
        ("services.mx.loadBalancerSourceRanges", "services.mx.type is NodePort"),
    ),
    "a class without a load balancer": (
        {"services": {"mx": {"type": "NodePort", "loadBalancerClass": "x"}}},
        ("services.mx.loadBalancerClass", "services.mx.type is NodePort"),
    ),
    "a family that nobody listens on": (
        {"services": {"mx": {"ipFamilies": ["IPv6"]}}},
        ("services.mx.ipFamilies has IPv6", "ipFamilies, what pods listen on, is IPv4"),
    ),
    "two families where one listens": (
        {"services": {"mx": {"ipFamilyPolicy": "PreferDualStack"}}},
        ("services.mx.ipFamilyPolicy is PreferDualStack", "ipFamilies, what pods listen on, is IPv4"),
    ),
    "TLS without a certificate": (
        {"services": {"mx": {"tls": "implicit"}}},
        ("services.mx.tls is implicit", "tls.existingSecret is empty", "tls.certificate.enabled is false"),
    ),
    "CAs of clients without a certificate": (
        {"tls": {"clientCA": {"existingSecret": "partners"}}},
        ("tls.clientCA is given", "tls.existingSecret is empty", "tls.certificate.enabled is false"),
    ),
    "CAs of clients twice": (
        {"tls": {"existingSecret": "a", "clientCA": {"existingSecret": "partners", "existingConfigMap": "friends"}}},
        ("tls.clientCA.existingSecret is partners", "tls.clientCA.existingConfigMap is friends"),
    ),
    "certificates of clients by nobody": (
        {"tls": {"existingSecret": "a"}, "services": {"mx": {"clientCertificates": "require"}}},
        ("services.mx.clientCertificates is require", "tls.clientCA.existingSecret"),
    ),
    "certificates of clients in the clear": (
        {
            "tls": {"existingSecret": "a", "clientCA": {"existingSecret": "partners"}},
            "services": {"mx": {"tls": "none", "clientCertificates": "ask"}},
        },
        ("services.mx.clientCertificates is ask", "no TLS"),
    ),
    "a pipeline that is not there": (
        {"services": {"mx": {"pipeline": "strict"}}, "config": {"pipelines": {"lax": []}}},
        ("services.mx.pipeline is strict", "config.pipelines"),
    ),
    "relaying for hidden clients": (
        {
            "services": {"mx": {"externalTrafficPolicy": "Cluster"}},
            "config": {"relay_from": ["10.0.0.0/8"]},
        },
        ("config.relay_from", "services.mx.externalTrafficPolicy is Cluster", "services.mx.proxyProtocol is false"),
    ),
    "listeners twice": ({"config": {"listeners": []}}, ("config.listeners", "services")),
    "the admin side": ({"config": {"admin": {"address": "0.0.0.0:1"}}}, ("config.admin",)),
    "another spool": ({"config": {"spool": {"path": "/x"}}}, ("config.spool.path", "persistence")),
    "another state": ({"config": {"state": {"path": "/x"}}}, ("config.state.path", "persistence")),
    "two drains": ({"config": {"timeouts": {"drain": "1m"}}}, ("config.timeouts.drain", "drain.sessionSeconds")),
    "two delays": (
        {"config": {"timeouts": {"drain_delay": "1m"}}},
        ("config.timeouts.drain_delay", "drain.delaySeconds"),
    ),
    "two watches": ({"config": {"reload": {"watch": "1m"}}}, ("config.reload", "reloadSeconds")),
    "two policy folders": (
        {"config": {"policy_folder": "/x"}, "plugins": {"inline": {"a.py": ""}}},
        ("config.policy_folder", "plugins.inline"),
    ),
    "two certificates": (
        {"tls": {"existingSecret": "a", "certificate": CERTIFICATE}},
        ("tls.existingSecret is a", "tls.certificate.enabled is true"),
    ),
    "a certificate of nobody": (
        {"tls": {"certificate": {**CERTIFICATE, "issuer": {"name": ""}}}},
        ("tls.certificate.enabled is true", "tls.certificate.issuer.name is empty"),
    ),
    "a certificate for nobody": (
        {"tls": {"certificate": {**CERTIFICATE, "dnsNames": []}}},
        ("tls.certificate.enabled is true", "tls.certificate.dnsNames is empty"),
    ),
    "a queue that is lost": (
        {"persistence": {"enabled": False}},
        ("persistence.enabled is false", "persistence.acceptLoss is false"),
    ),
    "a claim that is not used": (
        {"persistence": {"enabled": False, "acceptLoss": True, "existingClaim": "q"}, "replicas": 1},
        ("persistence.existingClaim is q", "persistence.enabled is false"),
    ),
    "a claim for several": (
        {"persistence": {"existingClaim": "q"}},
        ("persistence.existingClaim is q", "replicas is 2"),
    ),
    "a claim for an autoscaler": (
        {"persistence": {"existingClaim": "q"}, "replicas": 1, "autoscaling": {"enabled": True}},
        ("persistence.existingClaim is q", "autoscaler"),
    ),
    "claims that go with their pods": (
        {"persistence": {"retention": {"whenScaled": "Delete"}}},
        ("persistence.retention.whenScaled is Delete", "persistence.acceptLoss is false"),
    ),
    "too little time": (
        {"drain": {"delaySeconds": 20, "sessionSeconds": 90}},
        ("terminationGracePeriodSeconds is 120", "drain.delaySeconds 20", "drain.sessionSeconds 90"),
    ),
    "claims beside a database": (
        {"config": {"spool": {"postgres": {"url": "postgresql://db/x"}}}, "persistence": {"enabled": True}},
        ("config.spool.postgres is given", "persistence.enabled is true"),
    ),
    "a claim beside a database": (
        {"config": {"spool": {"postgres": "postgresql://db/x"}}, "persistence": {"existingClaim": "q"}},
        ("config.spool.postgres is given", "persistence.existingClaim is q"),
    ),
    "a password for everybody": (
        {"config": {"spool": {"postgres": "postgresql://gatepost:hidden@db/x"}}},
        ("config.spool.postgres has a password", "secrets", "config.spool.postgres.password_file"),
    ),
    "a password that nobody mounts": (
        {"config": {"state": {"redis": {"url": "redis://r/0", "password_file": "/etc/gatepost/secrets/redis/p"}}}},
        ("config.state.redis.password_file is /etc/gatepost/secrets/redis/p", "secrets has no redis"),
    ),
    "pods that cannot be replaced": (
        {"stateless": {"maxUnavailable": "0%", "maxSurge": 0}},
        ("stateless.maxUnavailable is 0%", "stateless.maxSurge is 0"),
    ),
    "two autoscalers": (
        {"autoscaling": {"enabled": True}, "keda": {"enabled": True, "prometheus": "http://p"}},
        ("autoscaling.enabled", "keda.enabled"),
    ),
    "more at least than at most": (
        {"autoscaling": {"enabled": True, "minReplicas": 9}},
        ("autoscaling.minReplicas is 9", "autoscaling.maxReplicas is 6"),
    ),
    "more at least than at most, for KEDA": (
        {"keda": {"enabled": True, "prometheus": "http://p", "minReplicas": 9}},
        ("keda.minReplicas is 9", "keda.maxReplicas is 6"),
    ),
    "scaling by nothing": (
        {"autoscaling": {"enabled": True, "cpu": 0}},
        ("autoscaling.enabled is true", "autoscaling.cpu", "autoscaling.sessions"),
    ),
    "scaling by a share of nothing": (
        {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}},
        ("autoscaling.cpu is 80", "resources.requests.cpu"),
    ),
    "KEDA without Prometheus": ({"keda": {"enabled": True}}, ("keda.enabled is true", "keda.prometheus is empty")),
    "KEDA by nothing": (
        {"keda": {"enabled": True, "prometheus": "http://p", "queueMessages": 0, "sessions": 0}},
        ("keda.enabled is true", "keda.queueMessages", "keda.sessions"),
    ),
    "packages twice": (
        {"plugins": {"existingClaim": "packages", "images": [{"name": "a", "image": "b:1"}]}},
        ("plugins.existingClaim is packages", "plugins.images"),
    ),
    "packages in the queue": (
        {"plugins": {"existingClaim": "q"}, "persistence": {"existingClaim": "q"}, "replicas": 1},
        ("plugins.existingClaim", "persistence.existingClaim", "both q"),
    ),
    "a check before its certificate": (
        {
            "checkBeforeInstall": True,
            "tls": {"certificate": {"enabled": True, "issuer": {"name": "ca"}, "dnsNames": ["mx.example.org"]}},
        },
        ("checkBeforeInstall is true", "tls.certificate.enabled is true"),
    ),
    "a hook that takes too long": (
        {"lifecycle": {"preStop": {"sleep": {"seconds": 16}}}},
        ("terminationGracePeriodSeconds is 120", "lifecycle.preStop.sleep.seconds 16", "105", "121"),
    ),
    "evacuation twice": ({"config": {"evacuate": {"when": "drain"}}}, ("config.evacuate", "made from evacuate")),
    "peers without a token": (
        {"evacuate": {"enabled": True}},
        ("evacuate.enabled is true", "evacuate.secret is empty"),
    ),
    "a hand-over to nobody": (
        {"evacuate": {"when": "drain"}},
        ("evacuate.when is drain", "evacuate.enabled is false"),
    ),
    "nothing to hand over": (
        {"evacuate": PEERS, "config": {"spool": {"postgres": "postgresql://gatepost@db/gatepost"}}},
        ("evacuate.enabled is true", "config.spool.postgres"),
    ),
    "orphans for nobody": (
        {"evacuate": {"claims": ["queue-old-0"]}},
        ("evacuate.claims", "evacuate.enabled is false"),
    ),
    "orphans without claims": (
        {"evacuate": {**PEERS, "orphans": [1]}, "persistence": {"existingClaim": "q"}, "replicas": 1},
        ("evacuate.orphans", "persistence.existingClaim"),
    ),
    "an orphan that is none": (
        {"evacuate": {**PEERS, "orphans": [2, 1]}},
        ("evacuate.orphans has 1", "2 pods"),
    ),
    "too little time to hand over": (
        {"evacuate": {**PEERS, "when": "drain", "seconds": 30}},
        ("terminationGracePeriodSeconds is 120", "evacuate.seconds 30", "155"),
    ),
    "the peers' port": (
        {"services": {"mx": {"targetPort": 9926}}},
        ("services.mx.targetPort is 9926", "mail of other pods"),
    ),
    "latest": ({"image": {"tag": "latest"}}, ("image.tag is latest", "image.digest")),
    "two monitors": (
        {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        ("monitoring.podMonitor.enabled", "monitoring.serviceMonitor.enabled"),
    ),
    "a copy from what is mounted": (
        {"plugins": {"images": [{"name": "a", "image": "b:1", "volume": True, "command": ["/copy"]}]}},
        ("plugins.images has a with volume and with command",),
    ),
    "a message to nobody": ({"test": {"send": True}}, ("test.send is true", "test.recipient is empty")),
    "wheels from nowhere": (
        {"plugins": {"wheels": {"requirements": "a==1"}}},
        ("plugins.wheels.requirements", "plugins.wheels.source"),
    ),
    "wheels for nothing": (
        {"plugins": {"wheels": {"source": {"emptyDir": {}}}}},
        ("plugins.wheels.source", "plugins.wheels.requirements"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_that_contradict_each_other_are_refused_by_name(case: str) -> None:
    values, said = CASES[case]
    message = refusal(values)
    for part in said:
        assert part in message


def test_helm_3_says_the_same() -> None:
    values, said = CASES["too little time"]
    assert all(part in refusal(values, major=MAJORS[0]) for part in said)


def test_every_guard_has_a_case() -> None:
    guards = (CHART / "templates/_checks.tpl").read_text().count("fail ")
    # Four guards have more than one case: paths, ports (three), what only load balancers have, claims for several pods.
    # And two have tests of their own, below.
    assert guards + 3 == len(CASES), "a guard without a case, or a case without one"


@pytest.mark.parametrize("major", MAJORS)
def test_an_image_is_no_volume_where_kubernetes_has_none(major: int) -> None:
    values = {"plugins": {"images": [{"name": "a", "image": "b:1", "volume": True}]}}
    message = refusal(values, major=major, kubernetes="1.32.9")
    for part in ("plugins.images has a with volume true", "Kubernetes is v1.32.9", "from 1.33 on"):
        assert part in message
    # Providers add to a version what sorts before it.
    assert render(values, major=major, kubernetes="1.33.0-gke.1")


@pytest.mark.parametrize("name", ["9gate", "gate.mail"])
def test_a_release_whose_name_begins_no_services_name_needs_another_one_for_objects(name: str) -> None:
    result = helm("template", name, str(CHART))
    assert f"the names of all objects would begin with {name}-gatepost" in result.stderr
    assert "set fullnameOverride" in result.stderr
    assert helm("template", name, str(CHART), "--set", "fullnameOverride=gate").returncode == 0


@pytest.mark.parametrize("given", [{"labels": {"helm.sh/chart": "x"}}, {"podAnnotations": {"gatepost/config": "x"}}])
def test_no_value_takes_the_place_of_a_label_or_annotation_of_the_charts_own(given: dict[str, Any]) -> None:
    ((at, labels),) = given.items()
    assert f"{at} has {next(iter(labels))}" in refusal(given)
    service = {"services": {"more": {"targetPort": 2600, "labels": {"gatepost/traffic": "off"}}}}
    assert "services.more.labels has gatepost/traffic" in refusal(service)


def test_a_plugins_image_cannot_have_the_name_of_the_wheels() -> None:
    wheels = {"requirements": "a==1", "source": {"emptyDir": {}}}
    images = [{"name": "wheels", "image": "b:1"}]
    assert "plugins.images has wheels" in refusal({"plugins": {"images": images, "wheels": wheels}})
    assert render({"plugins": {"images": images}})


def test_a_service_is_a_port_too_and_has_the_name_of_one() -> None:
    assert "services.a--b is no name" in refusal({"services": {"a--b": {"targetPort": 2600}}})
    assert "services.pods is no name" in refusal({"services": {"pods": {"targetPort": 2600}}})


def test_what_comes_close_is_rendered() -> None:
    proxied = {"proxyProtocol": True, "trustedNetworks": ["10.0.0.0/8"], "externalTrafficPolicy": "Cluster"}
    for values in (
        {"services": {"mx": {"externalTrafficPolicy": "Cluster"}}},
        {"services": {"mx": proxied}, "config": {"relay_from": ["192.0.2.0/24"]}},
        {"persistence": {"enabled": False, "acceptLoss": True}},
        {"persistence": {"existingClaim": "q"}, "replicas": 1},
        {"evacuate": {**PEERS, "orphans": [2]}},
        {"evacuate": {**PEERS, "when": "drain", "seconds": 30}, "terminationGracePeriodSeconds": 155},
        {"persistence": {"retention": {"whenScaled": "Delete"}, "acceptLoss": True}},
        {"persistence": {"enabled": False}, "config": {"spool": {"postgres": "postgresql://u@db/x"}}},
        {"lifecycle": {"preStop": {"sleep": {"seconds": 15}}}},
        {"plugins": {"existingClaim": "packages"}, "persistence": {"existingClaim": "q"}, "replicas": 1},
        {"drain": {"delaySeconds": 20, "sessionSeconds": 65}},
        {"config": {"spool": {"keep_records": "1d"}, "timeouts": {"command": "1m"}, "policy_folder": "/etc/policies"}},
    ):  # fmt: skip
        assert render(values)
