"""Values for the chart, made from its schema: good ones in which some parts are made anew, and ones with one fault.

The schema cannot judge what is passed on to Kubernetes or an operator as it is, such as `affinity`, `sidecars` and
`extraObjects`, so `PASSED_ON` has a short list of good ones for each of them. Everything else is made from the schema's
own keywords. A keyword that nothing here obeys is an error, so that no new one is overlooked, and so is a new value
that takes anything and has no list.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from jsonschema import Draft7Validator
from jsonschema.validators import extend

from tests.chart.helm import CHART, EXAMPLES

Node = dict[str, Any]
Path = tuple[str | int, ...]
Any_ = SearchStrategy[Any]

SCHEMA: Final[Node] = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Final[Node] = yaml.safe_load((CHART / "values.yaml").read_text())

_JUDGED: Final = {
    "$ref", "additionalProperties", "anyOf", "const", "enum", "exclusiveMinimum", "items", "maxItems", "maxLength",
    "maxProperties", "maximum", "minItems", "minLength", "minimum", "oneOf", "pattern", "patternProperties",
    "properties", "required", "type", "uniqueItems",
}  # fmt: skip
_SAID: Final = {"$schema", "$defs", "title", "description"}
_LISTED: Final = 3
"""Items of a list, and entries of a mapping, at most."""

_EMPTY: Final[dict[str, Any]] = {"emptyDir": {}}
_CONTAINER: Final = {
    "name": "rspamd",
    "image": "registry.example.org/rspamd:3",
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}
PASSED_ON: Final[dict[str, list[Any]]] = {
    "affinity": [
        {},
        {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"topologyKey": "example.org/rack", "labelSelector": {}}}]}},
    ],
    "dnsConfig": [{}, {"nameservers": ["10.96.0.53"]}, {"options": [{"name": "ndots", "value": "1"}]}],
    "extraEnv": [[], [{"name": "TZ", "value": "UTC"}], [{"name": "A", "value": "on"}, {"name": "B", "value": "a: b"}]],
    "extraEnvFrom": [[], [{"configMapRef": {"name": "settings"}}], [{"secretRef": {"name": "1"}, "prefix": "P_"}]],
    "extraObjects": [
        [],
        [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}, "data": {"a": "{{ .Release.Name }}"}}],
        ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: most}\ndata: {b: '{{ .Values.replicas }}'}\n", ""],
    ],
    "extraVolumeMounts": [[]],
    "extraVolumes": [[{"name": "socket", "emptyDir": {}}]],
    "hostAliases": [[], [{"ip": "10.1.2.3", "hostnames": ["store.example.org"]}]],
    "initContainers": [[], [{**_CONTAINER, "name": "wait"}]],
    "lifecycle": [
        {}, {"preStop": {"exec": {"command": ["/bin/true"]}}}, {"postStart": {"httpGet": {"port": 8080, "path": "/x"}}},
    ],
    "monitoring.podMonitor.metricRelabelings": [[], [{"action": "drop", "sourceLabels": ["x"], "regex": "y"}]],
    "monitoring.podMonitor.relabelings": [[], [{"action": "labeldrop", "regex": "endpoint"}]],
    "monitoring.rules.extra": [[], [{"record": "gatepost:sessions", "expr": "sum(gatepost_sessions_open)"}]],
    "monitoring.serviceMonitor.metricRelabelings": [[], [{"action": "drop", "sourceLabels": ["x"], "regex": "y"}]],
    "monitoring.serviceMonitor.relabelings": [[], [{"action": "labeldrop", "regex": "endpoint"}]],
    "networkPolicy.egress.rules": [[], [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]],
    "networkPolicy.metricsFrom": [[], [{"namespaceSelector": {}}]],
    "plugins.wheels.source": [{}, _EMPTY, {"configMap": {"name": "wheels"}}],
    "podSecurityContext": [{}, DEFAULTS["podSecurityContext"], {"runAsNonRoot": True, "supplementalGroups": [5]}],
    "securityContext": [DEFAULTS["securityContext"], {**DEFAULTS["securityContext"], "runAsUser": 7}],
    "sidecars": [[], [_CONTAINER]],
    "tolerations": [[], [{"key": "mail", "operator": "Exists"}], [{"effect": "NoExecute", "tolerationSeconds": 5}]],
    "topologySpreadConstraints": [
        [], [{"maxSkew": 2, "topologyKey": "r", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}],
    ],
}  # fmt: skip
"""Good ones of what is passed on as it is, by its place."""

WORDS: Final = (
    "", "a", "mail", "mx", "on", "no", "y", "true", "null", "~", "1", "0", "0x1f", "1e3", "1_000", "1.0", "-", "-x",
    "1:2", "2001-01-01", "a: b", "a #b", "#", "- a", "&a", "*a", "!x", "%", "@", "`", "'", "\"", "{a", "[a", "|",
    "{{ .Release.Name }}", " ", " a", "a ", "\n", "a\nb", "a\n\n  b\n", "\ta", "a\r\nb", "é", "\u2028",
    "x" * 70, "latest", "default", "health", "handover", "pods", "smtp", "config", "wheels", "queue", "gatepost",
    "tmp", "ca.crt", "tls.crt", "..", "app.kubernetes.io/name", "app.kubernetes.io/component", "helm.sh/chart",
    "gatepost/traffic", "gatepost/config", "team", "severity", "example.org/a", "mx.example.org", "example.org",
    "postmaster@example.org", "192.0.2.0/24", "::/0", "192.0.2.1", "10Gi", "0.5", "100m", "5m", "10 MiB", "30s", "1h",
    "25%", "100%", "0%", "http://prometheus:9090", "discard", "mx:example.net", "smtp:[192.0.2.1]:25",
    "postgresql://u@db/x", "redis://r/0", "/etc/gatepost/secrets/a/b", "spf", "own.py",
)  # fmt: skip
"""Texts that YAML, Kubernetes or the chart may take for something else, and ones that have a meaning here.

U+0085 is not among them: Helm writes it as it is, and what reads YAML 1.1 has a line break then.
"""
_CHARACTERS: Final = st.sampled_from("aZ09 -_./:@%#{}[]'\"\\\n\té&*!|>?,=~")
_ENTRIES: Final[tuple[Any, ...]] = (
    "spf",
    {"greylist": {"delay": "5m"}},
    "no-such-plugin",
    {"rules": {"rules": []}},
    {"a": 1, "b": None},
)
"""Entries of a pipeline, good and bad."""


def resolved(node: Node) -> Node:
    """A part of the schema, found by its reference where it is one."""
    if "$ref" not in node:
        return node
    found = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return resolved({**found, **{key: value for key, value in node.items() if key not in ("$ref", *_SAID)}})


def known(node: Any, where: str = "#") -> None:
    """Raises ValueError for a word of the schema's language that nothing here obeys."""
    if isinstance(node, bool):
        return
    if unknown := node.keys() - _JUDGED - _SAID:
        raise ValueError(f"{where}: tests/chart/generated.py does not know {', '.join(sorted(unknown))}")
    for key in ("properties", "patternProperties", "$defs"):
        for name, part in node.get(key, {}).items():
            known(part, f"{where}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            known(node[key], f"{where}/{key}")
    for key in ("anyOf", "oneOf"):
        for number, part in enumerate(node.get(key, ())):
            known(part, f"{where}/{key}/{number}")


def _matches(validator: Any, pattern: str, instance: Any, schema: Node) -> Iterator[Any]:
    # As Go, by which Helm judges: $ is the end and nothing before it, and \s is ASCII's.
    if isinstance(instance, str) and not _compiled(pattern).search(instance):
        yield from Draft7Validator({"pattern": pattern}).iter_errors(f"{instance}\n\n")


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\$$", r"\\Z", pattern), re.ASCII)


JUDGE: Final[Any] = extend(Draft7Validator, {"pattern": _matches})
"""What a JSON Schema says, with patterns as Helm reads them."""


def accepted(tree: Any, node: Node = SCHEMA) -> bool:
    """Whether the schema, or a part of it, takes this."""
    return bool(JUDGE({**node, "$defs": SCHEMA["$defs"]}).is_valid(tree))


# --- one part ---------------------------------------------------------------------------------------------------------

_made: dict[Path, Any_] = {}


def made(node: Node, path: Path = ()) -> Any_:
    """What this part of the schema takes; `path` is where it is, with * for what has a name or number of its own."""
    if path not in _made:
        _made[path] = _new(resolved(node), path)
    return _made[path]


def _new(node: Node, path: Path) -> Any_:
    if good := PASSED_ON.get(".".join(map(str, path))):
        return st.sampled_from(good).map(copy.deepcopy)
    if path in (("config", "pipeline", "*"), ("config", "pipelines", "*", "*")):
        return st.sampled_from(_ENTRIES).map(copy.deepcopy)
    for key in ("anyOf", "oneOf"):
        if key in node:
            return st.one_of([made(part, (*path, f"<{key} {n}>")) for n, part in enumerate(node[key])])
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if "type" not in node:
        return st.sampled_from(["text", 1, {}, []])
    types = node["type"] if isinstance(node["type"], list) else [node["type"]]
    makers = {
        "array": _array, "boolean": lambda *_: st.booleans(), "integer": _integer, "null": lambda *_: st.none(),
        "number": _number, "object": _object, "string": _string,
    }  # fmt: skip
    return st.one_of([makers[one](node, path) for one in types])


def _string(node: Node, path: Path) -> Any_:
    one: Node = {key: node[key] for key in ("pattern", "minLength", "maxLength") if key in node}
    words = _words(json.dumps(one))
    texts: Any_
    if "pattern" in node:
        texts = st.from_regex(_compiled(node["pattern"])).filter(str.isprintable)
    else:
        texts = st.text(_CHARACTERS, min_size=node.get("minLength", 0), max_size=min(node.get("maxLength", 20), 20))
    texts = texts.filter(lambda text: accepted(text, one))
    return st.one_of([*([st.sampled_from(words)] * 2 if words else []), texts])


@cache
def _words(node: str) -> tuple[str, ...]:
    return tuple(word for word in WORDS if accepted(word, json.loads(node)))


def _integer(node: Node, path: Path) -> Any_:
    low, high = node.get("minimum", -5), node.get("maximum", 10**12)
    edges = [edge for edge in (low, high, 0, 1, 443, 10**6, 2**31, 10**10) if low <= edge <= high]
    return st.one_of(st.sampled_from(edges), st.integers(low, min(high, low + 100)))


def _number(node: Node, path: Path) -> Any_:
    low, high = node.get("minimum", node.get("exclusiveMinimum", 0)), node.get("maximum", 10.0**6)
    return st.floats(low, high, exclude_min="exclusiveMinimum" in node, allow_subnormal=False, width=32)


def _array(node: Node, path: Path) -> Any_:
    least, most = node.get("minItems", 0), min(node.get("maxItems", _LISTED), _LISTED)
    # What is in the list is short enough to be compared by how it is printed.
    by = repr if node.get("uniqueItems") else None
    return st.lists(made(node["items"], (*path, "*")), min_size=least, max_size=most, unique_by=by)


def _object(node: Node, path: Path) -> Any_:
    if "properties" in node:
        parts = {key: made(part, (*path, key)) for key, part in node["properties"].items() if resolved(part)}
        needed = set(node.get("required", ()))
        return _some(
            {key: part for key, part in parts.items() if key in needed},
            {key: part for key, part in parts.items() if key not in needed},
        )
    if (entry := _entry(node)) is None:
        raise ValueError(f"{'.'.join(map(str, path))}: PASSED_ON has no good ones for what takes anything")
    key, part = entry
    most = min(node.get("maxProperties", _LISTED), _LISTED)
    return st.dictionaries(key, made(part, (*path, "*")), max_size=most)


def _entry(node: Node) -> tuple[Any_, Node] | None:
    """Keys and values of a mapping whose keys are the operator's own; None when it is none, or takes anything."""
    for pattern, part in node.get("patternProperties", {}).items():
        return _string({"pattern": pattern}, ()), part
    if isinstance(more := node.get("additionalProperties"), dict):
        return _string({"minLength": 1}, ()), more
    return None


@st.composite
def _some(draw: DrawFn, needed: dict[str, Any_], optional: dict[str, Any_]) -> dict[str, Any]:
    """A mapping with all that it needs and a little of what it may have."""
    chosen = draw(st.lists(st.sampled_from(sorted(optional)), max_size=_LISTED, unique=True)) if optional else []
    return {key: draw(part) for key, part in (*needed.items(), *((key, optional[key]) for key in chosen))}


# --- whole trees ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """A place in values, and the part of the schema that judges it."""

    path: Path
    """Where it is."""
    general: Path
    """The same with * for what has a name or number of its own."""
    node: Node
    there: bool
    """Whether something is there."""
    needed: bool
    """Whether the schema wants it there."""


def sites(tree: Any, node: Node, path: Path = (), general: Path = ()) -> Iterator[Site]:
    """All places below one, present or not, that the schema describes."""
    node = resolved(node)
    for part in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        if accepted(tree, part):
            yield from sites(tree, part, path, general)
            return
    if ".".join(map(str, general)) in PASSED_ON:
        return
    if isinstance(tree, list) and "items" in node and not node.get("uniqueItems"):
        for number, item in enumerate(tree):
            yield Site((*path, number), (*general, "*"), node["items"], True, True)
            yield from sites(item, node["items"], (*path, number), (*general, "*"))
    elif isinstance(tree, dict):
        for key, part in node.get("properties", {}).items():
            yield Site((*path, key), (*general, key), part, key in tree, key in node.get("required", ()))
            if key in tree:
                yield from sites(tree[key], part, (*path, key), (*general, key))
        if (entry := _entry(node)) is not None:
            for key in tree:
                yield Site((*path, key), (*general, "*"), entry[1], True, False)
                yield from sites(tree[key], entry[1], (*path, key), (*general, "*"))


def holder(tree: Any, path: Path) -> Any:
    """What has the last step of a path."""
    for step in path[:-1]:
        tree = tree[step]
    return tree


def merged(given: Any, defaults: Any) -> Any:
    """Values as Helm has them: a null takes a default away."""
    if not isinstance(given, dict) or not isinstance(defaults, dict):
        return copy.deepcopy(given)
    kept = {key: copy.deepcopy(value) for key, value in defaults.items() if key not in given}
    return kept | {k: merged(v, defaults.get(k)) for k, v in given.items() if v is not None or k not in defaults}


def difference(tree: Any, defaults: Any) -> Any:
    """What has to be given to Helm so that it has this tree."""
    if not isinstance(tree, dict) or not isinstance(defaults, dict):
        return tree
    gone: dict[str, Any] = dict.fromkeys(defaults.keys() - tree.keys())
    # As text, since True is equal to 1.
    changed = {k: v for k, v in tree.items() if k not in defaults or json.dumps(v) != json.dumps(defaults[k])}
    return gone | {key: difference(value, defaults.get(key)) for key, value in changed.items()}


BASES: Final = (DEFAULTS, *(merged(yaml.safe_load((CHART / file).read_text()), DEFAULTS) for file in EXAMPLES))
"""Good values."""


KEYS: Final = (*SCHEMA["properties"], *["config"] * 9, *["services"] * 4)
"""Values of the first level; those with much below are chosen more often."""


@st.composite
def _site(draw: DrawFn, tree: Node, keys: Collection[str], *, there: bool = False) -> Site:
    """A place in values, below one of these keys."""
    key = draw(st.sampled_from([key for key in keys if key in tree or not there]))
    part = SCHEMA["properties"][key]
    first = Site((key,), (key,), part, key in tree, key in SCHEMA["required"])
    below = list(sites(tree[key], part, (key,), (key,))) if key in tree else []
    return draw(st.sampled_from([first, *(site for site in below if site.there or not there)]))


@dataclass(frozen=True, repr=False, slots=True)
class Values:
    """Values with all defaults in them."""

    tree: Node

    @property
    def given(self) -> Node:
        """What has to be given to Helm."""
        return dict(difference(self.tree, DEFAULTS))

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.given}"


@st.composite
def values(draw: DrawFn, keys: Collection[str] = KEYS) -> Values:
    """Values that the schema takes: good ones with one to twelve places changed, all below these keys."""
    tree = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 12))):
        site = draw(_site(tree, keys))
        where, step = holder(tree, site.path), site.path[-1]
        if site.there and not site.needed and draw(st.integers(0, 3)) == 0:
            del where[step]
        elif (entry := _entry(resolved(site.node))) is not None and site.there and draw(st.booleans()):
            where[step][draw(entry[0])] = draw(made(entry[1], (*site.general, "*")))
        else:
            where[step] = draw(made(site.node, site.general))
    return Values(tree)


@dataclass(frozen=True, repr=False, slots=True)
class Broken(Values):
    """Values that the schema refuses."""

    name: str
    """What is wrong in them."""


_WRONG: Final[tuple[Any, ...]] = ("Wrong!", "", -1, 0, 10**9, 1.5, True, ["Wrong!"], [[]], {"wrong": []})


@st.composite
def broken(draw: DrawFn, keys: Collection[str] = KEYS) -> Broken:
    """Good values with one fault: another type, a number out of range, a text of another form, or an unknown key."""
    tree = copy.deepcopy(draw(st.sampled_from(BASES)))
    site = draw(_site(tree, keys, there=True).filter(lambda site: bool(_faults(tree, site))))
    name, wrong = draw(st.sampled_from(_faults(tree, site)))
    holder(tree, site.path)[site.path[-1]] = wrong
    return Broken(tree, name)


def _faults(tree: Node, site: Site) -> list[tuple[str, Any]]:
    """What a place must not have, by the name that is to be in the message."""
    node = resolved(site.node)
    name = next(step for step in reversed(site.path) if isinstance(step, str))
    name = name.replace("~", "~0").replace("/", "~1")
    found = [(name, wrong) for wrong in _WRONG if not accepted(wrong, node)]
    here = holder(tree, site.path)[site.path[-1]]
    if isinstance(here, dict) and not accepted(unknown := {**here, "Unknown!": 1}, node):
        found.append(("Unknown!", unknown))
    return found


known(SCHEMA)
