"""Objects against the schemas of the Kubernetes versions, and against what a server asks for beyond them."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
_LABELS: Final = frozenset({"labels", "matchLabels", "nodeSelector"})
_QUANTITY: Final = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"
_PORT: Final = r"(?=.{1,15}\Z)[a-z]([-a-z0-9]*[a-z0-9])?"
_COUNT: Final = r"[0-9]+%"
_NAMED: Final = ("containers", "initContainers", "volumes", "ports")


@_FORMATS.checks("int32")
def _int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


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
    found = list(_objections(document, f"{kind} {metadata['name']}", "monitoring.coreos.com" in document["apiVersion"]))
    if not re.fullmatch(_NAME.get(kind, _SUBDOMAIN), metadata["name"]):
        found.append(f"{kind} {metadata['name']!r} has no such name")
    if kind == "ConfigMap":
        found += [f"{metadata['name']}: key {key!r}" for key in document["data"] if not _is_key(key)]
    return found


def _objections(node: Any, where: str, foreign: bool) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        at = f"{where}/{key}"
        if key == "rules" and foreign:
            continue  # Labels there are those of Prometheus.
        if key in _LABELS and isinstance(value, dict):
            yield from (f"{at}: {k!r}: {v!r}" for k, v in value.items() if not (_is_label(k) and _is_value(v)))
        elif key == "annotations":
            yield from (f"{at}: {k!r}" for k, v in value.items() if not (_is_label(k.lower()) and isinstance(v, str)))
        elif key in ("requests", "limits") or (key in ("sizeLimit", "averageValue") and (value := {"": value})):
            yield from (f"{at}: {v!r}" for v in value.values() if not re.fullmatch(_QUANTITY, str(v)))
        elif key in ("maxUnavailable", "maxSurge"):
            if not (isinstance(value, int) and value >= 0) and not re.fullmatch(_COUNT, str(value)):
                yield f"{at}: {value!r}"
        elif key in ("port", "containerPort", "nodePort") and isinstance(value, int) and not 0 < value < 65536:
            yield f"{at}: {value}"
        elif key == "accessModes" and len(value) != 1:
            yield f"{at}: {value!r}"
        elif key == "ipFamilies" and len(set(value)) != len(value):
            yield f"{at}: {value!r}"
        if key == "ports" and isinstance(value, list):
            ports = [item.get("name", "p") for item in value if isinstance(item, dict)]
            yield from (f"{at}: {name!r}" for name in ports if not re.fullmatch(_PORT, name) or "--" in name)
        if key in _NAMED and isinstance(value, list):
            names = [item["name"] for item in value if "name" in item]
            yield from (f"{at}: {name} twice" for name in {name for name in names if names.count(name) > 1})
        yield from _objections(value, at, foreign)


def _is_label(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(re.fullmatch(_PART, name) and (not slash or re.fullmatch(_SUBDOMAIN, prefix)))


def _is_value(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(rf"({_PART})?", value))


def _is_key(key: str) -> bool:
    return bool(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key)) and not key.startswith("..") and key != "."
