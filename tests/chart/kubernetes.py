"""Objects against the schemas of the Kubernetes versions: unknown keys and wrong types are seen, as by a server."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

from jsonschema.validators import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

VERSIONS: Final = ("1.27.0", "1.29.0", "1.33.0", "1.37.0")


def validate(document: dict[str, Any], version: str) -> None:
    """Raises `jsonschema.ValidationError`; FileNotFoundError when that version knows no such kind of object."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document["apiVersion"])
    _validator(f"{document['kind'].lower()}-{group}", version).validate(document)


@cache
def _validator(name: str, version: str) -> Any:
    # The package's own function reads the definitions, which are large, for every object anew.
    resource: Any = Resource.from_contents(_contents(name, version))
    return Draft202012Validator(resource.contents, registry=resource @ _definitions(version))


@cache
def _definitions(version: str) -> Any:
    resource: Any = Resource.from_contents(_contents("_definitions", version))
    return (resource @ Registry()).crawl()


def _contents(name: str, version: str) -> Any:
    return schema_contents(f"kubernetes-json-schema/v{version}-local-strict/{name}.json", version)
