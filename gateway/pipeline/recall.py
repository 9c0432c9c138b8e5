"""Findings from their JSON: as the decision record keeps them, or as somebody writes them by hand.

*Fails by*: `RecallError` for what is no such finding, or was cut when it was recorded.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.mail.edit import Edit, edit_from_json
from gateway.sdk.findings import Finding


class RecallError(ValueError):
    """The JSON does not make the finding. ``str(error)`` says why, `path` where in it, when that can be told."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


def recall(kind: type[Finding], value: Mapping[str, Any], hidden: Mapping[str, Any] = MappingProxyType({})) -> Finding:
    """The finding of this kind that `value` describes; fields that are left out have their defaults.

    `hidden` are fields that were redacted, and what stands there instead. Raises `RecallError`.
    """
    readers = _readers(kind)
    fields = {n: _field(kind, n, readers.get(n), given) for n, given in value.items() if n not in hidden}
    try:
        return kind(**fields, **hidden)
    except (ValueError, TypeError) as error:
        needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
        if lacking := [name for name in needed if name not in fields and name not in hidden]:
            raise RecallError(f"{kind.__name__} needs {', '.join(lacking)}") from error
        raise RecallError(f"{kind.__name__}: {error}") from error


def _field(kind: type[Finding], name: str, reader: Callable[[Any], Any] | None, given: Any) -> Any:
    if reader is None:
        known = ", ".join(field.name for field in dataclasses.fields(kind))
        raise RecallError(f"{kind.__name__} has no field {name!r}; it has {known}", (name,))
    try:
        return reader(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, (name, *problem["loc"])))
        raise RecallError(f"{kind.__name__}: {where}: {problem['msg']}", (name, *problem["loc"])) from error
    except (ValueError, TypeError) as error:
        raise RecallError(f"{kind.__name__}: {name}: {error}", (name,)) from error


_Readers = Mapping[str, Callable[[Any], Any]]
_made: dict[type[Finding], _Readers] = {}


def _readers(kind: type[Finding]) -> _Readers:
    """How each field is read: by its type, but edits from their description."""
    if kind not in _made:
        hints = typing.get_type_hints(kind)
        _made[kind] = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    return _made[kind]


def _reader(hint: Any) -> Callable[[Any], Any]:
    return _edits if hint == tuple[Edit, ...] else TypeAdapter(hint).validate_python


def _edits(given: Any) -> tuple[Edit, ...]:
    return tuple(edit_from_json(one) for one in given)
