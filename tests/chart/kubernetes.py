"""Objects against the schemas of the Kubernetes versions, and against what a server asks for beyond them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from jsonschema import FormatChecker
from jsonschema.validators import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

VERSIONS: Final = ("1.27.0", "1.29.0", "1.33.0", "1.37.0")

_FORMATS: Final = FormatChecker(formats=())
_DNS_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"(?=.{{1,253}}\Z){_DNS_LABEL}(\.{_DNS_LABEL})*"
_NAME: Final = {
    "Job": rf"(?=.{{1,63}}\Z){_DNS_LABEL}",
    "Service": r"(?=.{1,63}\Z)[a-z]([-a-z0-9]*[a-z0-9])?",
    # 11 characters more are in a label of its pods.
    "StatefulSet": rf"(?=.{{1,52}}\Z){_DNS_LABEL}",
}
_PART: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUANTITY: Final = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"
_PORT: Final = r"(?=.{1,15}\Z)(?!.*--)[a-z]([-a-z0-9]*[a-z0-9])?"


def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


_FORMATS.checks("int32")(_int32)


def validate(document: dict[str, Any], version: str) -> None:
    """Raises `jsonschema.ValidationError`; FileNotFoundError when that version knows no such kind of object."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document["apiVersion"])
    _validator(f"{document['kind'].lower()}-{group}", version).validate(document)


@cache
def _validator(name: str, version: str) -> Any:
    # The package's own function reads the definitions, which are large, for every object anew.
    resource: Any = Resource.from_contents(_contents(name, version))
    return Draft202012Validator(resource.contents, registry=resource @ _definitions(version), format_checker=_FORMATS)


@cache
def _definitions(version: str) -> Any:
    resource: Any = Resource.from_contents(_contents("_definitions", version))
    return (resource @ Registry()).crawl()


def _contents(name: str, version: str) -> Any:
    return schema_contents(f"kubernetes-json-schema/v{version}-local-strict/{name}.json", version)


def objections(document: dict[str, Any]) -> list[str]:
    """What a server says beyond the schemas: of forms of names, labels, quantities and ports, and of names twice."""
    kind, metadata = document["kind"], document["metadata"]
    # Labels in rules are those of Prometheus.
    seen = {**document, "spec": {}} if kind == "PrometheusRule" else document
    found = list(_objections(seen, f"{kind} {metadata['name']}"))
    if not re.fullmatch(_NAME.get(kind, _SUBDOMAIN), metadata["name"]):
        found.append(f"{kind} {metadata['name']!r} has no such name")
    if kind == "ConfigMap":
        found += [f"{metadata['name']}: key {key!r}" for key in document["data"] if not _is_key(key)]
    return found


def _objections(node: Any, where: str) -> Iterator[str]:
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from _objections(item, f"{where}/{number}")
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in _GOOD and not _GOOD[key](value, node):
                yield f"{where}/{key}: {value!r}"
            yield from _objections(value, f"{where}/{key}")


def _is_label(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(re.fullmatch(_PART, name) and (not slash or re.fullmatch(_SUBDOMAIN, prefix)))


def _is_key(key: str) -> bool:
    return bool(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key)) and not key.startswith("..") and key != "."


def _are_labels(value: Any, _: Any) -> bool:
    return all(_is_label(k) and isinstance(v, str) and re.fullmatch(f"({_PART})?", v) for k, v in value.items())


def _are_annotations(value: Any, _: Any) -> bool:
    return all(_is_label(key.lower()) and isinstance(text, str) for key, text in value.items())


def _is_quantity(value: Any, _: Any) -> bool:
    return bool(re.fullmatch(_QUANTITY, str(value)))


def _are_quantities(value: Any, _: Any) -> bool:
    return all(_is_quantity(one, _) for one in value.values())


def _is_count(value: Any, _: Any) -> bool:
    return value >= 0 if isinstance(value, int) else bool(re.fullmatch(r"[0-9]+%", value))


def _is_port(value: Any, _: Any) -> bool:
    return 0 < value < 65536 if isinstance(value, int) else bool(re.fullmatch(_PORT, value))


def _are_named(value: Any, _: Any) -> bool:
    names = [item["name"] for item in value if "name" in item]
    return len(names) == len(set(names))


def _are_ports(value: Any, _: Any) -> bool:
    return _are_named(value, _) and all(re.fullmatch(_PORT, item.get("name", "p")) for item in value)


_GOOD: Final[dict[str, Callable[[Any, dict[str, Any]], bool]]] = {
    "labels": _are_labels,
    "matchLabels": _are_labels,
    "nodeSelector": _are_labels,
    "annotations": _are_annotations,
    "requests": _are_quantities,
    "limits": _are_quantities,
    "sizeLimit": _is_quantity,
    "averageValue": _is_quantity,
    "maxUnavailable": _is_count,
    "maxSurge": _is_count,
    "port": _is_port,
    "containerPort": _is_port,
    "nodePort": _is_port,
    "ports": _are_ports,
    "containers": _are_named,
    "initContainers": _are_named,
    "volumes": _are_named,
    "accessModes": lambda value, _: len(value) == 1,
    "ipFamilies": lambda value, _: len(value) == len(set(value)),
    "ipFamilyPolicy": lambda value, node: value != "SingleStack" or len(node.get("ipFamilies", ())) < 2,
    "dnsPolicy": lambda value, node: value != "None" or bool(node.get("dnsConfig", {}).get("nameservers")),
}
"""What a key's value must be; it gets what holds the key, too."""
