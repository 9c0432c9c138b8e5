"""An API server in memory, enough for the real Helm to install, upgrade, test, roll back and remove a release.

What is written is checked against Kubernetes' own schemas, and fields of a StatefulSet that cannot change cannot change
here either. Nothing but a Service's address and a StatefulSet's strategy is defaulted, nothing is admitted, and there
are no controllers: pods and jobs end at once, by `ends`, and a `node` may run those of a StatefulSet.
"""

from __future__ import annotations

import base64
import copy
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from tests.chart import kubernetes, remote
from tests.chart.helm import Document

VERSION: Final = "1.33.0"
STARTED: Final = "2026-01-01T00:00:00Z"
GROUPS: Final[dict[str, dict[str, str]]] = {
    "v1": {
        "configmaps": "ConfigMap", "secrets": "Secret", "services": "Service", "pods": "Pod",
        "serviceaccounts": "ServiceAccount", "namespaces": "Namespace",
    },
    "apps/v1": {"statefulsets": "StatefulSet", "replicasets": "ReplicaSet"},
    "batch/v1": {"jobs": "Job"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
}  # fmt: skip
CUSTOM: Final = "monitoring.coreos.com/v1"
FIXED: Final = ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")
"""Fields of a StatefulSet that a server lets nobody change."""


class Key(NamedTuple):
    group: str
    plural: str
    namespace: str
    name: str


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Node(Protocol):
    """Runs pods. It is told while a request waits, so what it did is done when the answer comes."""

    def changed(self, document: Document) -> None:
        """A StatefulSet or a ConfigMap is new or another one."""

    def execute(self, pod: str, command: list[str]) -> tuple[bytes, bytes, int]:
        """Run a command in a pod: its output, its errors and its status."""

    def log(self, pod: str, container: str) -> str:
        """What a pod that ended has said."""


@dataclass
class Api:
    """The server. `ends` says of a Job or Pod whether it ends well; it runs while the request waits."""

    ends: Callable[[Document, Api], bool] = lambda document, api: True
    node: Node | None = None
    """What runs the pods of StatefulSets; None when nothing does."""
    objects: dict[Key, Document] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _revision: int = 100
    _watches: list[tuple[Key, queue.Queue[Document]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self) -> str:
        """For Helm and kubectl."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": {"server": self.url}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "mail"}}],
                "current-context": "here",
            }
        )

    def of_kind(self, kind: str) -> dict[str, Document]:
        """Objects of a kind by name."""
        with self.lock:
            return {key.name: document for key, document in self.objects.items() if document["kind"] == kind}

    def put(self, key: Key, document: Document, *, dry: bool = False) -> Document:
        """Create or replace an object. Raises `Refused`."""
        with self.lock:
            old = self.objects.get(key)
            self._check(key, document, old)
            meta = document["metadata"]
            meta.update(namespace=key.namespace, creationTimestamp=STARTED, uid=f"00000000-{key.name}")
            changed = old is None or old.get("spec") != document.get("spec")
            generation = old["metadata"]["generation"] if old else 0
            meta["generation"] = generation + changed
            self._revision += 1
            meta["resourceVersion"] = str(self._revision)
            if document["kind"] == "Service":
                document["spec"].setdefault("clusterIP", "10.96.0.1")
            if document["kind"] == "StatefulSet":
                rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
                document["spec"].setdefault("updateStrategy", rolling)
            if not dry:
                document["status"] = self._status(document, old)
                self.objects[key] = document
                if self.node is not None and document["kind"] in ("StatefulSet", "ConfigMap"):
                    self.node.changed(document)
                self._tell("MODIFIED" if old else "ADDED", key, document)
            return document

    def delete(self, key: Key) -> None:
        with self.lock:
            document = self.objects.pop(key, None)
            if document is None:
                raise Refused(404, "NotFound", f'{key.plural} "{key.name}" not found')
            self._tell("DELETED", key, document)

    def _check(self, key: Key, document: Document, old: Document | None) -> None:
        if key.group != CUSTOM:
            try:
                kubernetes.validate({k: v for k, v in document.items() if k != "status"}, VERSION)
            except jsonschema.ValidationError as error:
                raise Refused(422, "Invalid", f"{key.name} is invalid: {error.json_path}: {error.message}") from error
        if old is not None and document["kind"] == "StatefulSet":
            for name in FIXED:
                if old["spec"].get(name) != document["spec"].get(name):
                    message = "updates to statefulset spec for other fields are forbidden"
                    raise Refused(422, "Invalid", f"{key.name} is invalid: spec.{name}: Forbidden: {message}")

    def _status(self, document: Document, old: Document | None) -> Document:
        generation = document["metadata"]["generation"]
        match document["kind"]:
            case "StatefulSet":
                count = document["spec"].get("replicas", 1)
                counts = ("replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas")
                revisions = {"currentRevision": "r", "updateRevision": "r", "observedGeneration": generation}
                return {**dict.fromkeys(counts, count), **revisions}
            case "PodDisruptionBudget":
                healthy = ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods")
                return {**dict.fromkeys(healthy, 1), "observedGeneration": generation}
            case "Service" if document["spec"].get("type") == "LoadBalancer":
                return {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}
            case "Pod" if "status" in document:
                status: Document = document["status"]
                return status
            case "Pod" if old is None:
                return {"phase": "Succeeded" if self.ends(document, self) else "Failed"}
            case "Job" if old is None:
                kind, count = ("Complete", "succeeded") if self.ends(document, self) else ("Failed", "failed")
                return {"conditions": [{"type": kind, "status": "True"}], count: 1, "startTime": STARTED}
        return old.get("status", {}) if old else {}

    # Watching

    def watch(self, where: Key) -> tuple[list[Document], queue.Queue[Document]]:
        """What there is, and what changes from now on."""
        with self.lock:
            events: queue.Queue[Document] = queue.Queue()
            self._watches.append((where, events))
            return self.listed(where), events

    def listed(self, where: Key) -> list[Document]:
        with self.lock:
            return [copy.deepcopy(document) for key, document in self.objects.items() if _below(where, key)]

    @property
    def revision(self) -> str:
        return str(self._revision)

    def _tell(self, kind: str, key: Key, document: Document) -> None:
        for where, events in self._watches:
            if _below(where, key):
                events.put({"type": kind, "object": copy.deepcopy(document)})


def _below(where: Key, key: Key) -> bool:
    return where[:2] == key[:2] and where.namespace in ("", key.namespace)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, question = self._asked()
        try:
            discovered = _discovery(path)
            if discovered is not None:
                self._answer(200, discovered)
                return
            key = self._key(path)
            if path[-1] in ("exec", "log") and key.plural == "pods" and self.api.node is not None:
                self._ask_node(self.api.node, key, path[-1])
            elif key.name:
                self._answer(200, self._one(key))
            elif question.get("watch") in ("1", "true"):
                self._watch(key, question)
            else:
                items = [d for d in self.api.listed(key) if _selected(d, question)]
                kind = f"{GROUPS[key.group][key.plural]}List"
                meta = {"resourceVersion": self.api.revision}
                self._answer(200, {"kind": kind, "apiVersion": key.group, "metadata": meta, "items": items})
        except Refused as no:
            self._refuse(no)

    def _ask_node(self, node: Node, key: Key, what: str) -> None:
        question = parse_qs(urlsplit(self.path).query)
        if what == "exec":
            self._one(key)
            remote.answer(self, *node.execute(key.name, question["command"]))
            return
        names = [container["name"] for container in self._one(key)["spec"]["containers"]]
        if "container" not in question and len(names) > 1:
            raise Refused(400, "BadRequest", f"a container name must be specified for pod {key.name}, one of: {names}")
        text = node.log(key.name, *question.get("container", names)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        def create(where: Key, document: Document, question: dict[str, str]) -> Document:
            key = where._replace(name=document["metadata"]["name"])
            if key in self.api.objects:
                raise Refused(409, "AlreadyExists", f'{key.plural} "{key.name}" already exists')
            document = {"apiVersion": key.group, "kind": GROUPS[key.group][key.plural], **document}
            return self.api.put(key, document, dry="dryRun" in question)

        self._write(create, 201)

    def do_PUT(self) -> None:
        def replace(key: Key, document: Document, question: dict[str, str]) -> Document:
            document = {"apiVersion": key.group, "kind": GROUPS[key.group][key.plural], **document}
            return self.api.put(key, document, dry="dryRun" in question)

        self._write(replace, 200)

    def do_PATCH(self) -> None:
        def patch(key: Key, document: Document, question: dict[str, str]) -> Document:
            # Helm 4 applies whole objects; Helm 3 sends what has changed.
            if "apply-patch" not in self.headers.get("Content-Type", ""):
                document = _merged(copy.deepcopy(self._one(key)), document)
            return self.api.put(key, document, dry="dryRun" in question)

        self._write(patch, 200)

    def do_DELETE(self) -> None:
        def delete(key: Key, document: Document, question: dict[str, str]) -> Document:
            self.api.delete(key)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

        self._write(delete, 200)

    def _write(self, change: Callable[[Key, Document, dict[str, str]], Document], code: int) -> None:
        path, question = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            document = _from_protobuf(body) if body.startswith(_MAGIC) else yaml.safe_load(body)
            with self.api.lock:
                made = copy.deepcopy(change(self._key(path), document or {}, question))
            self._answer(code, made)
        except Refused as no:
            self._refuse(no)

    def _asked(self) -> tuple[list[str], dict[str, str]]:
        url = urlsplit(self.path)
        return [part for part in url.path.split("/") if part], {k: v[0] for k, v in parse_qs(url.query).items()}

    def _key(self, path: list[str]) -> Key:
        group, rest = ("v1", path[2:]) if path[:1] == ["api"] else ("/".join(path[1:3]), path[3:])
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if group not in GROUPS or not rest or rest[0] not in GROUPS[group]:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return Key(group, rest[0], namespace, rest[1] if len(rest) > 1 else "")

    def _one(self, key: Key) -> Document:
        if key.plural == "namespaces" and key not in self.api.objects:
            return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": key.name}}
        with self.api.lock:
            if key not in self.api.objects:
                raise Refused(404, "NotFound", f'{key.plural} "{key.name}" not found')
            return copy.deepcopy(self.api.objects[key])

    def _watch(self, key: Key, question: dict[str, str]) -> None:
        items, events = self.api.watch(key)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        initial = question.get("sendInitialEvents") == "true"
        if initial or question.get("resourceVersion", "0") == "0":
            for item in items:
                if _selected(item, question):
                    self._event({"type": "ADDED", "object": item})
        if initial:
            done = {"resourceVersion": self.api.revision, "annotations": {"k8s.io/initial-events-end": "true"}}
            kind = GROUPS[key.group][key.plural]
            bookmark = {"apiVersion": key.group, "kind": kind, "metadata": done}
            self._event({"type": "BOOKMARK", "object": bookmark})
        try:
            while True:
                event = events.get(timeout=20)
                if _selected(event["object"], question):
                    self._event(event)
        except (queue.Empty, OSError):
            # Nothing more, or nobody who listens; the client asks again if it wants to.
            return

    def _event(self, event: Document) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")

    def _answer(self, code: int, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, no: Refused) -> None:
        said = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
        self._answer(no.code, {**said, "reason": no.reason, "message": no.message, "code": no.code})


def _selected(document: Document, question: dict[str, str]) -> bool:
    labels = document["metadata"].get("labels", {})
    for term in filter(None, question.get("labelSelector", "").replace("==", "=").split(",")):
        name, _, value = term.partition("=")
        if (labels.get(name.rstrip("!")) == value) is name.endswith("!"):
            return False
    wanted = dict(term.split("=", 1) for term in filter(None, question.get("fieldSelector", "").split(",")))
    own: str = document["metadata"]["name"]
    return wanted.get("metadata.name", own) == own


def _merged(old: Any, new: Any) -> Any:
    """A merge patch (RFC 7396); directives of strategic ones say nothing that matters here."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    for name, value in new.items():
        if value is None:
            old.pop(name, None)
        elif not name.startswith("$"):
            old[name] = _merged(old.get(name), value)
    return old


# Discovery


def _discovery(path: list[str]) -> Document | None:
    """What there is to be asked for; None when that is not the question."""
    match path:
        case ["version"]:
            return {"major": "1", "minor": VERSION.split(".")[1], "gitVersion": f"v{VERSION}"}
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            groups = [_group(group) for group in GROUPS if "/" in group]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["openapi", "v3"]:
            return {"paths": {_place(g): {"serverRelativeURL": f"/openapi/v3/{_place(g)}?hash=1"} for g in GROUPS}}
        case ["openapi", "v3", _, *rest]:
            return _openapi("/".join(rest))
        case ["api", "v1"]:
            return _resources("v1")
        case ["apis", name, version]:
            return _resources(f"{name}/{version}")
    return None


def _place(group: str) -> str:
    return f"apis/{group}" if "/" in group else f"api/{group}"


def _group(group: str) -> Document:
    name, version = group.split("/")
    one = {"groupVersion": group, "version": version}
    return {"name": name, "versions": [one], "preferredVersion": one}


def _resources(group: str) -> Document:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    found = [
        {"name": plural, "singularName": kind.lower(), "namespaced": kind != "Namespace", "kind": kind, "verbs": verbs}
        for plural, kind in GROUPS.get(group, {}).items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": found}


def _openapi(group: str) -> Document:
    name, _, version = group.rpartition("/")
    parameters = [{"name": n, "in": "query", "schema": {"type": "string"}} for n in ("fieldValidation", "dryRun")]
    paths = {
        f"/{_place(group)}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind},
            }
        }
        for plural, kind in GROUPS.get(group, {}).items()
    }
    return {"openapi": "3.0.0", "info": {"title": "in memory", "version": VERSION}, "paths": paths}


# Helm writes its own Secrets, and kubectl namespaces, in Kubernetes' protobuf form: a magic number, and a message
# (runtime.Unknown) with the object's type (1: apiVersion, 2: kind) as its first field and the object as its second.

_MAGIC: Final = b"k8s\0"


def _from_protobuf(body: bytes) -> Document:
    envelope = _fields(body[len(_MAGIC) :])
    kind = _fields(envelope[1][0])
    found: Document = {"apiVersion": kind[1][0].decode(), "kind": kind[2][0].decode()}
    if found["kind"] not in ("Secret", "Namespace"):
        return found
    secret = _fields(envelope[2][0])
    meta = _fields(secret[1][0])
    labels = {name: value.decode() for name, value in _entries(meta.get(11, []))}
    found["metadata"] = {"name": meta[1][0].decode(), "labels": labels}
    if found["kind"] == "Namespace":
        return found
    return {
        **found,
        "data": {name: base64.b64encode(value).decode() for name, value in _entries(secret.get(2, []))},
        "type": secret.get(3, [b"Opaque"])[0].decode(),
    }


def _entries(entries: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        parts = _fields(entry)
        yield parts[1][0].decode(), parts.get(2, [b""])[0]


def _fields(data: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a protobuf message, by number; others are stepped over."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        match tag & 7:
            case 0:
                _, at = _number(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case _:
                length, at = _number(data, at)
                found.setdefault(tag >> 3, []).append(data[at : at + length])
                at += length
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits an octet, the low ones first; and what comes after it."""
    value = shift = 0
    while True:
        octet = data[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at
