"""The options as a list: what the reference page shows and what the example file must hold."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from gateway.config.described import describe
from gateway.config.problems import Path
from gateway.config.values import Section

NAME: Final = "NAME"
"""Stands in an option's path for a name that the operator chooses."""
ITEM: Final = "[]"
"""Stands in an option's path for a place in a list."""


@dataclass(frozen=True, slots=True)
class Option:
    """One key. `path` as in ``listeners[].tls.mode``; `default` is JSON text, None when required or computed."""

    path: str
    default: str | None
    required: bool
    text: str


def options(model: type[Section], prefix: str = "") -> Iterator[Option]:
    """Every key below `model` that has no further keys below it, in the order of the model."""
    describe()
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        below, way = _below(field.annotation)
        if below is None:
            yield Option(path + way, _default(field), field.is_required(), " ".join((field.description or "").split()))
            continue
        yield from options(below, f"{path}{way}.")


def table(model: type[Section]) -> str:
    """The options as a Markdown table."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for option in options(model):
        default = "required" if option.required else f"`{option.default}`" if option.default is not None else "-"
        lines.append(f"| `{option.path}` | {default} | {option.text} |")
    return "\n".join(lines) + "\n"


def section_at(model: type[Section], path: Path) -> type[Section] | None:
    """The section that a path in a file leads to; None when it leads to none."""
    at = model
    parts = list(path)
    while parts:
        field = at.model_fields.get(str(parts.pop(0)))
        below, way = _below(field.annotation) if field else (None, "")
        if below is None:
            return None
        if way and parts:
            parts.pop(0)
        at = below
    return at


def _below(annotation: Any) -> tuple[type[Section] | None, str]:
    """The section inside an annotation, and what stands between: nothing, a place in a list, or a name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _below(arguments[0])
    if origin is tuple:
        return _below(arguments[0])[0], ITEM if _below(arguments[0])[0] else ""
    if origin is dict:
        return _below(arguments[1])[0], f".{NAME}"
    if origin in (typing.Union, types.UnionType):
        found = [below for below in map(_below, arguments) if below[0]]
        return found[0] if found else (None, "")
    return None, ""


def _default(field: FieldInfo) -> str | None:
    if field.is_required() or field.default_factory is not None:
        return None
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return json.dumps(TypeAdapter(kind).dump_python(field.default, mode="json"))
