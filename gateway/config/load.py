"""From a file to a `Config`: read, validate, and say everything that is wrong at once."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.cross import check_together
from gateway.config.described import describe
from gateway.config.document import FILE_OCTETS, Document, read
from gateway.config.model import Config
from gateway.config.problems import ConfigError, Path, Problem, did_you_mean, dotted
from gateway.config.reference import section_at
from gateway.config.values import BASE, REFUSED
from gateway.sdk.deprecation import NOTICES, Notices

DIGEST: Final = 12
"""Hexadecimal digits of a file's SHA-256 by which configurations are told apart."""

_WORDING: Final = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of keys to values",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "model_attributes_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "string_pattern_mismatch": "must be a name of lower-case letters, digits, - and _",
    "string_type": "must be text",
    "too_short": "must have at least one entry",
    "tuple_type": "must be a list",
}


def load(path: str) -> Config:
    """Read and check a configuration file. Raises `ConfigError` with every problem found."""
    return parse(octets(path), path)


def parse(data: bytes, path: str) -> Config:
    """As `load`, of what was read from the file `path`; relative paths start from its directory."""
    document = read(_decoded(data, path), path)
    document.digest = hashlib.sha256(data).hexdigest()[:DIGEST]
    if document.values is None:
        document.values = {}
    config: Config | None = None
    try:
        notices = Notices()
        context = {BASE: os.path.dirname(os.path.abspath(path)), NOTICES: notices}
        config = Config.model_validate(document.values, context=context)
        document.notices = notices.within(document.values)
    except ValidationError as error:
        # "Too short" comes last: a list is that too when its items are wrong, and then it need not be said.
        found = error.errors(include_url=False, include_input=False)
        for details in sorted(found, key=lambda d: d["type"] == "too_short"):
            _report(document, details)
    check_together(document)
    if document.problems or config is None:
        raise ConfigError(sorted(set(document.problems)))
    config.attach(document)
    return config


def json_schema() -> dict[str, Any]:
    """JSON Schema of the configuration file."""
    describe()
    schema = Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Gatepost configuration", **schema}


def text_of(path: str) -> str:
    """The text of a YAML file of bounded size. Raises `ConfigError`."""
    return _decoded(octets(path), path)


def octets(path: str) -> bytes:
    """What stands in the file. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_OCTETS + 1)
    except OSError as error:
        raise ConfigError([Problem(path, 1, "", f"cannot be read: {error.strerror}")]) from error
    if len(data) > FILE_OCTETS:
        raise ConfigError([Problem(path, 1, "", f"larger than {FILE_OCTETS >> 20} MiB")])
    return data


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(path, line, "", "not UTF-8")]) from error


def _report(document: Document, details: ErrorDetails) -> None:
    """Turn one validation error into problems with the keys as they stand in the file."""
    at = document.known(details["loc"])
    kind = details["type"]
    match kind:
        case "default_factory_not_called":
            return  # follows from another problem
        case "too_short" if any(p.path.startswith(dotted(at) + "[") for p in document.problems):
            return
        case _ if kind == REFUSED:
            document.refuse((*at, *details["ctx"]["at"]), details["msg"])
        case "missing":
            document.refuse((*at, str(details["loc"][-1])), "this key is required")
        case "extra_forbidden":
            document.refuse(at, _unknown(at))
        case _:
            document.refuse(at, wording(details))


def wording(details: ErrorDetails) -> str:
    """What a validation error says, in our words."""
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return _WORDING.get(details["type"], message)


def _unknown(at: Path) -> str:
    section = section_at(Config, at[:-1])
    return f"unknown key{did_you_mean(str(at[-1]), section.model_fields)}" if section else "unknown key"
