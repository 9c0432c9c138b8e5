"""The chart's own values, as a model: `values.schema.json` and the table in the chart's README are made from it.

What Kubernetes defines itself, such as tolerations, is passed on as it is; the API server knows it better.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Objects = list[dict[str, Any]]
_HOST_PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_HOST = rf"{_HOST_PART}(\.{_HOST_PART})*"
_LABEL_PART = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelName = Annotated[str, Field(pattern=rf"^({_HOST}/)?{_LABEL_PART}$")]
Labels = dict[LabelName, Annotated[str, Field(pattern=rf"^({_LABEL_PART})?$")]]
Annotations = dict[LabelName, str]
PrometheusLabels = dict[Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")], str]
Port = Annotated[int, Field(ge=1, le=65535)]
HighPort = Annotated[int, Field(ge=1024, le=65535)]
"""A port that needs no capability."""
Seconds = Annotated[int, Field(ge=1, le=86400)]
Cidr = Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
Address = Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+$")]
Quantity = (
    Annotated[
        str, Field(pattern=r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$", max_length=40)
    ]
    | Annotated[int, Field(ge=0)]
    | Annotated[float, Field(ge=0)]
)
Name = Annotated[str, Field(pattern=rf"^{_HOST}$", max_length=253)]
NameOrNone = Annotated[str, Field(pattern=rf"^({_HOST})?$", max_length=253)]
Key = Annotated[str, Field(pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", max_length=253)]
"""A key of a Secret or ConfigMap."""
Registry = Annotated[str, Field(pattern=r"^[-A-Za-z0-9._:/\[\]]*$")]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z0-9\[][-A-Za-z0-9._:/@\[\]]*$")]
"""An image, or its name."""
Family = Literal["IPv4", "IPv6"]
ONE_OF_EACH = {"uniqueItems": True}
PortName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$")]
"""At most 15 characters: a container's port has this name."""
VolumeName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][-A-Za-z0-9_.]*\.py$")]
Time = Annotated[str, Field(pattern=r"^([0-9]{1,6}(ms|s|m|h))+$", max_length=40)]
Interval = Annotated[str, Field(pattern=r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$", min_length=1)]
"""A time as Prometheus has it: hours before minutes before seconds."""
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Percent = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,2})%$")]
Replicas = Annotated[int, Field(ge=1, le=1000)]


_SLEEP = {"type": "object", "properties": {"seconds": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}}
HOOKS: dict[str, Any] = {"properties": {"preStop": {"type": "object", "properties": {"sleep": _SLEEP}}}}
"""What a guard reads of what is passed on."""


class Values(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Global(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    imageRegistry: Registry
    """Registry of the gateway's image, before `image.registry`: for a mirror."""
    imagePullSecrets: list[Name]
    """Names of Secrets to pull images with."""


class Image(Values):
    registry: Registry
    """Its registry; empty when `image.repository` has it, or for what the nodes use."""
    repository: Reference
    """The image's name."""
    tag: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?$")]
    """Its tag; empty for the chart's appVersion. `latest` is refused."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
    """Its digest, `sha256:...`, which goes before the tag."""
    pullPolicy: Literal["IfNotPresent", "Always", "Never"]
    """When it is pulled."""
    pullSecrets: list[Name]
    """Names of more Secrets to pull images with."""


class Service(Values):
    """A listener of the gateway, and the Service in front of it."""

    enabled: bool = True
    """Whether there is one."""
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Type of the Service."""
    port: Port = 25
    """Port of the Service."""
    targetPort: HighPort
    """Port of the listener in the container; each listener has one of its own."""
    tls: Literal["", "starttls", "implicit", "none"] = ""
    """TLS of the listener. Empty: `starttls` where the chart has a certificate, else `none`."""
    clientCertificates: Literal["", "ask", "require", "none"] = ""
    """Whether clients are asked for a certificate. Empty: `ask` where there is TLS and `tls.clientCA`, else `none`.
    `require` breaks off TLS with who shows none by these CAs."""
    proxyProtocol: bool = False
    """Whether clients come through proxies that speak the PROXY protocol. The listener then requires the header from
    `trustedNetworks` and refuses all others."""
    trustedNetworks: list[Cidr] = []
    """Networks of these proxies."""
    xclientNetworks: list[Cidr] = []
    """Networks that may use XCLIENT."""
    pipeline: str = "default"
    """The pipeline of what comes in here, by its name under `config.pipelines`."""
    externalTrafficPolicy: Literal["", "Local", "Cluster"] = ""
    """Empty: `Local`, which shows the client's address. `Cluster` may show a node's."""
    internalTrafficPolicy: Literal["", "Local", "Cluster"] = ""
    """As Kubernetes has it."""
    nodePort: Annotated[int, Field(ge=0, le=65535)] = 0
    """A port of the nodes; 0 for any."""
    loadBalancerClass: Annotated[str, Field(pattern=rf"^(({_HOST}/)?{_LABEL_PART})?$")] = ""
    """Which load balancer makes it."""
    loadBalancerSourceRanges: list[Cidr] = []
    """Who may come to the load balancer."""
    externalIPs: list[Address] = []
    """As Kubernetes has it."""
    ipFamilyPolicy: Literal["", "SingleStack", "PreferDualStack", "RequireDualStack"] = ""
    """As Kubernetes has it."""
    ipFamilies: Annotated[list[Family], Field(max_length=2, json_schema_extra=ONE_OF_EACH)] = []
    """As Kubernetes has it."""
    annotations: Annotations = {}
    """Annotations of the Service; what most load balancers are told by."""
    labels: Labels = {}
    """More labels of the Service."""


class Issuer(Values):
    name: NameOrNone
    """Its name."""
    kind: str
    """`ClusterIssuer`, `Issuer`, or an external one's."""
    group: str
    """Its API group."""


class PrivateKey(Values):
    algorithm: Literal["RSA", "ECDSA"]
    """The key's algorithm; the gateway takes both."""
    size: Annotated[int, Field(ge=256, le=8192)]
    """Its size in bits."""
    rotationPolicy: Literal["Always", "Never"]
    """Whether each certificate has a new key."""


class Certificate(Values):
    enabled: bool
    """Whether cert-manager is asked for one."""
    issuer: Issuer
    """Who issues it."""
    dnsNames: list[str]
    """The names that MX records lead to."""
    duration: Time
    """How long it is good."""
    renewBefore: Time
    """How long before its end the next one is made."""
    privateKey: PrivateKey
    """Its key."""


class ClientCA(Values):
    existingSecret: NameOrNone
    """Name of a Secret that holds them."""
    existingConfigMap: NameOrNone
    """Name of a ConfigMap that holds them instead."""
    key: Key
    """The key in it: PEM, one CA or more."""


class Tls(Values):
    existingSecret: NameOrNone
    """Name of a Secret with `tls.crt` and `tls.key`."""
    certificate: Certificate
    """A certificate by cert-manager instead."""
    clientCA: ClientCA
    """CAs by which clients may show certificates."""


class Drain(Values):
    delaySeconds: Annotated[int, Field(ge=0, le=3600)]
    """How long new sessions are taken after SIGTERM, with readiness gone, until load balancers have moved on."""
    sessionSeconds: Seconds
    """How long sessions may go on then."""


class Evacuate(Values):
    enabled: bool
    """Whether pods take over each other's mail, at a port of their own that answers nothing else."""
    secret: NameOrNone
    """Name of a Secret with the token that pods show each other."""
    key: Key
    """Its key in that Secret."""
    when: Literal["never", "drain"]
    """`drain`: a pod that ends hands over what is left in its queue, at every restart, too. `never`: it stays on its
    claim, and goes on when the pod is back."""
    seconds: Seconds
    """How long that may take, after the sessions."""
    orphans: Annotated[list[Annotated[int, Field(ge=0, le=999)]], Field(max_length=100)]
    """Ordinals of pods that are gone for good: after each upgrade a Job for each of them hands over the mail on its
    claim. The claims must be there."""
    claims: Annotated[list[Name], Field(max_length=100)]
    """Other claims with a queue that nobody works on, by their names."""
    jobSeconds: Seconds
    """How long such a Job may take."""
    clusterDomain: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """The cluster's domain: pods find each other by the full name of a Service."""


class Retention(Values):
    whenDeleted: Literal["Retain", "Delete"]
    """What becomes of the claims when the release goes."""
    whenScaled: Literal["Retain", "Delete"]
    """What becomes of a claim when its pod is scaled away."""


class Persistence(Values):
    enabled: bool | Literal["auto"]
    """Whether each pod has a claim for queue and state. Without it, an emptyDir: see `acceptLoss`. `auto`: unless
    `config.spool.postgres` is given, which has the queue of all."""
    size: Quantity
    """Size of each claim."""
    storageClass: NameOrNone
    """Its storage class; empty for the cluster's default."""
    accessModes: Annotated[list[Literal["ReadWriteOnce", "ReadWriteOncePod"]], Field(min_length=1, max_length=1)]
    """Never shared: a queue belongs to one pod."""
    existingClaim: NameOrNone
    """A claim that is there already; for one replica only."""
    annotations: Annotations
    """Annotations of the claims."""
    retention: Retention
    """Which claims are deleted with what they belong to."""
    acceptLoss: bool
    """Must be true for a queue without a claim, and for claims that are deleted: accepted mail may be lost then."""


class Stateless(Values):
    sizeLimit: Quantity
    """Size of the emptyDir with what a pod keeps while mail arrives, and with state that is not in Redis; Kubernetes
    moves a pod that goes beyond."""
    maxUnavailable: Whole | Percent
    """So many pods may be away while new ones come."""
    maxSurge: Whole | Percent
    """So many pods more may there be meanwhile."""


class PluginImage(Values):
    """An image with installed packages."""

    name: VolumeName
    """A name for the container that copies them, or for the volume."""
    image: Reference
    """The image."""
    path: Annotated[str, Field(pattern=r"^[^:]+$")] = "/plugins"
    """Where in it the packages are, as `pip install --target` puts them."""
    volume: bool = False
    """Whether the image itself is mounted, read-only, instead of having its packages copied: an image volume, for
    Kubernetes from 1.33 on, with the feature gate ImageVolume and a container runtime that knows them."""
    pullPolicy: Literal["", "IfNotPresent", "Always", "Never"] = ""
    """When it is pulled."""
    command: list[str] = []
    """What copies them to /opt/gatepost-plugins; by default the image's own `cp -R`."""


class Wheels(Values):
    requirements: str
    """Lines of a requirements file with hashes; nothing is fetched from an index."""
    source: dict[str, Any]
    """The volume that has the wheels, as a pod's volumes have it, without its name."""


class Plugins(Values):
    inline: dict[FileName, str]
    """Python files with policies and plugins, by file name: the gateway's `policy_folder`."""
    existingClaim: NameOrNone
    """A claim with installed packages, as `pip install --target` puts them, instead of `images` and `wheels`. All pods
    and the Job that checks mount it, so with several nodes it must be ReadOnlyMany or ReadWriteMany."""
    images: list[PluginImage]
    """Images with installed packages: `name`, `image`, and where needed `path` (`/plugins`), `pullPolicy`, `command`
    (instead of `cp -R`). With `volume: true` the image itself is mounted, and nothing is copied (Kubernetes 1.33)."""
    wheels: Wheels
    """Wheels that are installed before the gateway starts."""


class Probe(Values):
    periodSeconds: Seconds
    """How often it asks."""
    timeoutSeconds: Seconds
    """How long it waits for the answer."""
    failureThreshold: Seconds
    """So many failures count."""


class Probes(Values):
    startup: Probe
    """`/startupz`: every worker has read its spool."""
    live: Probe
    """`/livez`: event loops run."""
    ready: Probe
    """`/readyz`: mail is taken."""


class Resources(Values):
    requests: dict[str, Quantity] = {}
    """What a pod is sure of."""
    limits: dict[str, Quantity] = {}
    """What it never gets more of."""


class Disruption(Values):
    enabled: bool
    """Whether there is a PodDisruptionBudget; only with more than one replica."""
    maxUnavailable: Whole | Percent
    """So many pods may be away at once."""
    unhealthyPodEvictionPolicy: Literal["", "AlwaysAllow", "IfHealthyBudget"]
    """As Kubernetes has it."""


class Spread(Values):
    zone: Literal["", "ScheduleAnyway", "DoNotSchedule"]
    """Pods spread over zones; empty for not."""
    node: Literal["", "ScheduleAnyway", "DoNotSchedule"]
    """Pods spread over nodes; empty for not."""


class Autoscaling(Values):
    enabled: bool
    """Whether there is a HorizontalPodAutoscaler. It takes pods away only with `config.spool.postgres`."""
    minReplicas: Replicas
    """The least pods."""
    maxReplicas: Replicas
    """The most pods."""
    cpu: Whole
    """Wanted use of the CPU request, in percent; 0 for none."""
    queueMessages: Whole
    """Wanted queued messages per pod (`gatepost_queue_messages`, as a custom metric); 0 for none."""
    sessions: Whole
    """Wanted open sessions per pod (`gatepost_sessions_open`, as a custom metric); 0 for none."""


class Keda(Values):
    enabled: bool
    """Whether there is a ScaledObject. It takes pods away only with `config.spool.postgres`."""
    minReplicas: Replicas
    """The least pods."""
    maxReplicas: Replicas
    """The most pods."""
    prometheus: str
    """URL of Prometheus."""
    queueMessages: Whole
    """Wanted queued messages per pod; 0 for none."""
    sessions: Whole
    """Wanted open sessions per pod; 0 for none."""
    pollingInterval: Seconds
    """Seconds between questions."""
    cooldownPeriod: Seconds
    """As KEDA has it."""
    authenticationRef: NameOrNone
    """A TriggerAuthentication for Prometheus."""


class Egress(Values):
    enabled: bool
    """Whether what goes out is limited. The Jobs and the test get to DNS, to the gateway, and where `rules` say."""
    ports: list[Port]
    """TCP ports of mail stores and foreign mail hosts. Those of PostgreSQL and Redis in `config` are added."""
    rules: Objects
    """More egress rules, such as for filters."""


class NetworkPolicy(Values):
    enabled: bool
    """Whether there are NetworkPolicies: for the gateway, and for its Jobs and its test, to which nobody may come."""
    smtpFrom: list[Cidr]
    """Networks that may come to the SMTP ports; empty for everybody."""
    metricsFrom: Objects
    """Peers, as a NetworkPolicy has them, that may come to probes and metrics; empty for all pods. Nodes always may."""
    egress: Egress
    """What goes out."""


class Monitor(Values):
    enabled: bool
    """Whether there is one."""
    interval: Interval
    """How often it scrapes."""
    scrapeTimeout: Interval
    """How long that may take."""
    relabelings: Objects
    """As the Prometheus operator has it."""
    metricRelabelings: Objects
    """As the Prometheus operator has it."""


class Rules(Values):
    enabled: bool
    """Whether there is a PrometheusRule."""
    disabled: list[str]
    """Names of alerts to leave out."""
    labels: PrometheusLabels
    """More labels of all alerts."""
    queueMessages: Annotated[int, Field(ge=1)]
    """GatepostQueueGrows fires beyond so many queued messages in a pod."""
    queueMinutes: Annotated[int, Field(ge=1)]
    """GatepostQueueOld fires when a pod's oldest queued message has waited longer."""
    deferredRatio: Annotated[float, Field(gt=0, le=1)]
    """GatepostDeliveriesDeferred fires beyond this share of attempts."""
    certificateDays: Annotated[int, Field(ge=1)]
    """GatepostCertificateExpires fires so many days before."""
    extra: Objects
    """More rules."""


class Dashboard(Values):
    enabled: bool
    """Whether there is a ConfigMap with a dashboard for Grafana."""
    labels: Labels
    """Labels by which Grafana's sidecar finds it."""
    annotations: Annotations
    """Its annotations, such as the folder."""


class Monitoring(Values):
    labels: Labels
    """More labels of monitors and rules, by which a Prometheus finds them."""
    podMonitor: Monitor
    """A PodMonitor."""
    serviceMonitor: Monitor
    """A ServiceMonitor; not both."""
    rules: Rules
    """Alerts."""
    dashboard: Dashboard
    """A dashboard."""


class Test(Values):
    recipient: str
    """`helm test`: a recipient that must be taken."""
    send: bool
    """Whether it gets a message, too."""


class ServiceAccount(Values):
    create: bool
    """Whether it is made."""
    name: NameOrNone
    """Its name; empty for the release's, or `default` where it is not made."""
    annotations: Annotations
    """Its annotations."""


class Chart(Values):
    """All values but `config`, whose part of the schema is made from the gateway's own model."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    global_: Annotated[Global, Field(alias="global")]
    """What this chart shares with others that it is installed with."""
    enabled: bool | None = None
    """For a chart that has this one as a part: its condition. Nothing is made of it here."""
    nameOverride: Annotated[str, Field(pattern=rf"^({_HOST_PART})?$")]
    """Instead of the chart's name."""
    fullnameOverride: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$")]
    """Instead of the release's and the chart's name."""
    labels: Labels
    """More labels of everything but pods and claims."""
    replicas: Replicas
    """Pods. Each has a queue of its own on a claim of its own, or, with `config.spool.postgres`, all have one in the
    database. Not used where an autoscaler is on."""
    image: Image
    """The gateway's image."""
    config: dict[str, Any]
    """The gateway's configuration file, as docs/configuration.md has it, but for what is made from other values."""
    ipFamilies: Annotated[list[Family], Field(min_length=1, max_length=2, json_schema_extra=ONE_OF_EACH)]
    """What pods listen on: `[IPv4]`, `[IPv6]` or both, their primary family first. Both need nodes that have both."""
    services: dict[PortName, Service | None]
    """Listeners and Services, by name."""
    tls: Tls
    """The certificate of all listeners."""
    secrets: dict[VolumeName, Name]
    """Existing Secrets for files that `config` names, mounted at /etc/gatepost/secrets/NAME."""
    reload: Literal["hot", "rolling"]
    """`hot`: new configuration, certificates and inline plugins are taken by running pods (and pods restart for what is
    bound to the start); `rolling`: pods restart when the configuration changes."""
    reloadSeconds: Seconds
    """How often pods look for changes."""
    checkBeforeUpgrade: bool
    """Whether a Job checks the new configuration before an upgrade changes anything."""
    checkBeforeInstall: bool
    """Whether a Job checks the configuration before an installation makes anything. Secrets and claims that it names
    must be there; it runs as `serviceAccount.name` where that is not made here, else as `default`."""
    drain: Drain
    """How a pod ends."""
    terminationGracePeriodSeconds: Positive
    """How long it may take to; at least both of `drain` and 35 s."""
    evacuate: Evacuate
    """What becomes of the queue of a pod that ends, or has ended for good."""
    persistence: Persistence
    """Queue and state."""
    stateless: Stateless
    """The Deployment of pods without claims, which there is instead where `config.spool.postgres` is given."""
    plugins: Plugins
    """Policies and plugins that the image does not have."""
    probes: Probes
    """When a pod counts as started, alive and ready."""
    resources: Resources
    """CPU and memory of a pod."""
    podDisruptionBudget: Disruption
    """How many pods may go at once when nodes are emptied."""
    topologySpread: Spread
    """Where pods go in relation to each other."""
    topologySpreadConstraints: Objects
    """More of these, as Kubernetes has them."""
    autoscaling: Autoscaling
    """A HorizontalPodAutoscaler."""
    keda: Keda
    """KEDA instead."""
    networkPolicy: NetworkPolicy
    """Who may talk to pods."""
    dnsPolicy: Literal["", "ClusterFirst", "Default", "None", "ClusterFirstWithHostNet"]
    """As Kubernetes has it."""
    dnsConfig: dict[str, Any]
    """As Kubernetes has it; a resolver of one's own is wanted for DNS lists."""
    hostAliases: Objects
    """As Kubernetes has it."""
    monitoring: Monitoring
    """Prometheus and Grafana."""
    test: Test
    """What `helm test` asks beside greeting, relaying, STARTTLS, readiness and metrics."""
    serviceAccount: ServiceAccount
    """The pods' account; it has no rights, and its token is not mounted."""
    podSecurityContext: dict[str, Any]
    """The restricted profile. For OpenShift set `runAsUser`, `runAsGroup` and `fsGroup` to null."""
    securityContext: dict[str, Any]
    """The restricted profile, of each container."""
    podLabels: Labels
    """More labels of pods."""
    podAnnotations: Annotations
    """More annotations of pods."""
    nodeSelector: Labels
    """As Kubernetes has it."""
    tolerations: Objects
    """As Kubernetes has it."""
    affinity: dict[str, Any]
    """As Kubernetes has it."""
    priorityClassName: NameOrNone
    """As Kubernetes has it."""
    runtimeClassName: NameOrNone
    """As Kubernetes has it."""
    minReadySeconds: Whole
    """As Kubernetes has it."""
    lifecycle: Annotated[dict[str, Any], Field(json_schema_extra=HOOKS)]
    """Hooks of the gateway's container, as Kubernetes has them. Draining needs none, and the image has no shell; what
    `preStop` takes is taken from `terminationGracePeriodSeconds`."""
    revisionHistoryLimit: Whole
    """As Kubernetes has it."""
    extraEnv: Objects
    """More environment variables of the gateway."""
    extraEnvFrom: Objects
    """Where more of them come from."""
    extraVolumes: Objects
    """More volumes of pods."""
    extraVolumeMounts: Objects
    """Where the gateway has them."""
    initContainers: Objects
    """More containers that run before it."""
    sidecars: Objects
    """More containers beside it, such as rspamd."""
    extraObjects: list[dict[str, Any] | str]
    """More objects of the release; templates in them are filled in."""
