"""The types that an expression is checked against, read from the annotations of findings and other values.

A type also bounds how much there can be of a value, so that the cost of an expression is known before it ever runs:
texts longer than `TEXT` characters are cut, lists longer than `ITEMS`, and lists inside of something else longer than
`INNER`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any, Final

TEXT: Final = 4000
ITEMS: Final = 1000
INNER: Final = 100
_DEPTH: Final = 6


class Kind(StrEnum):
    """What a value is."""

    BOOL = "bool"
    INT = "int"
    DOUBLE = "double"
    STRING = "string"
    NULL = "null"
    LIST = "list"
    MAP = "map"
    OBJECT = "object"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Type:
    """A type. `name` is for messages; `values` are all that a text can be, where that is known; `size` is how many
    characters or items there can be at most."""

    kind: Kind
    name: str = ""
    nullable: bool = False
    item: Type | None = None
    fields: Mapping[str, Type] = field(default_factory=dict, hash=False, compare=False)
    values: frozenset[str] = frozenset()
    size: int = 1

    def __str__(self) -> str:
        return self.name or self.kind.value

    @property
    def numeric(self) -> bool:
        return self.kind in (Kind.INT, Kind.DOUBLE, Kind.ANY)


BOOL: Final = Type(Kind.BOOL)
INT: Final = Type(Kind.INT)
DOUBLE: Final = Type(Kind.DOUBLE)
STRING: Final = Type(Kind.STRING, size=TEXT)
NULL: Final = Type(Kind.NULL, nullable=True)
ANY: Final = Type(Kind.ANY, size=ITEMS)
_PLAIN: Final[dict[Any, Type]] = {
    bool: BOOL,
    int: INT,
    float: DOUBLE,
    str: STRING,
    bytes: STRING,
    type(None): NULL,
    ipaddress.IPv4Address: replace(STRING, size=45),
    ipaddress.IPv6Address: replace(STRING, size=45),
}


def list_of(item: Type, size: int = ITEMS) -> Type:
    """The type of lists of these."""
    return Type(Kind.LIST, f"list of {item}", item=item, size=size)


def type_of(annotation: Any, depth: int = _DEPTH) -> Type:
    """The type of values with this annotation; what has no form in CEL, or is nested too deep, can be anything."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if depth <= 0:
        return ANY
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Union or isinstance(annotation, types.UnionType):
        return _union(args, depth)
    if origin in (tuple, list, frozenset, set):
        return list_of(_item([a for a in args if a is not Ellipsis], depth), _most(depth))
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return Type(Kind.MAP, "map", item=type_of(args[1], depth - 1), size=_most(depth))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _enum(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Type(Kind.OBJECT, annotation.__name__, fields=members(annotation, depth - 1))
    return ANY


def _most(depth: int) -> int:
    """Items of a list at this depth."""
    return ITEMS if depth == _DEPTH else INNER


def _union(args: tuple[Any, ...], depth: int) -> Type:
    found = {type_of(a, depth) for a in args if a is not type(None)}
    only = found.pop() if len(found) == 1 else ANY
    return replace(only, nullable=True) if type(None) in args else only


def _item(args: list[Any], depth: int) -> Type:
    found = {type_of(a, depth - 1) for a in args}
    return found.pop() if len(found) == 1 else ANY


def _enum(kind: type[Enum]) -> Type:
    values = [member.value for member in kind]
    if all(isinstance(value, str) for value in values):
        return Type(Kind.STRING, values=frozenset(values), size=max(map(len, values), default=0))
    return INT if all(isinstance(value, int) for value in values) else ANY


def members(owner: type, depth: int = _DEPTH) -> dict[str, Type]:
    """The fields of a dataclass by name, and its public properties that say what they give."""
    try:
        hints = typing.get_type_hints(owner)
    except (NameError, TypeError):
        # An author's annotations may name what is imported for type checkers only: then nothing is known of the types.
        hints = {}
    out = {f.name: type_of(hints.get(f.name), depth) if f.name in hints else ANY for f in dataclasses.fields(owner)}
    for name in dir(owner):
        found = getattr(owner, name, None)
        if isinstance(found, property) and not name.startswith("_") and found.fget is not None:
            try:
                out[name] = type_of(typing.get_type_hints(found.fget).get("return"), depth)
            except (NameError, TypeError):
                out[name] = ANY
    return out


def plain(value: Any, depth: int = _DEPTH) -> Any:
    """A value as the library takes it; what is too long is cut, what is too deep is null."""
    if type(value) is str:
        return text(value)
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bytes):
        return value[:TEXT].decode("latin-1")
    if depth <= 0:
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name), depth - 1) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {text(str(k)): plain(v, depth - 1) for k, v in list(value.items())[: _most(depth)]}
    if isinstance(value, (frozenset, set)):
        value = sorted(value, key=str)
    if isinstance(value, (tuple, list)):
        return [plain(item, depth - 1) for item in value[: _most(depth)]]
    return text(str(value))


def text(value: str) -> str:
    """Text as the library takes it: cut, and without the halves of surrogate pairs that undecodable octets became."""
    cut = value[:TEXT]
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode("utf-8")


_known_names: dict[type, tuple[str, ...]] = {}


def _names(owner: type) -> tuple[str, ...]:
    found = _known_names.get(owner)
    if found is None:
        found = _known_names[owner] = tuple(members(owner, 1))
    return found
