"""The public names of the SDK as text: every name with its signature, fields or members, one to a line.

`make public-names` writes them to `FILE`, and a test compares. The text comes from `inspect` and holds only what stands
in the source, so that it is the same on every Python: annotations as they are written, defaults, bases by name.

Names do not go without a warning: what stands in the file and is no public name any more must have become one that is
going (`gateway.sdk.deprecation.NAMES`), and one that is going stays until its release has come.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.sdk.deprecation import NAMES, OldName

MODULES: Final = (
    "gateway.kit.checks",
    "gateway.kit.client",
    "gateway.kit.contracts.spool",
    "gateway.kit.contracts.state",
    "gateway.kit.contracts.transport",
    "gateway.kit.door",
    "gateway.kit.messages",
    "gateway.kit.pipeline",
    "gateway.kit.pytest_plugin",
    "gateway.kit.record",
    "gateway.kit.strategies",
    "gateway.sdk",
    "gateway.sdk.actions",
    "gateway.sdk.lint",
    "gateway.sdk.lookalikes",
    "gateway.sdk.options",
    "gateway.sdk.testing",
    "gateway.sdk.words",
)
"""All that is public; docs/stability.md has the same list."""

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "tests/sdk/public_names.txt"
_STARS: Final[Mapping[int, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def render() -> str:
    """The text of what the code has now."""
    lines: list[str] = []
    for module in MODULES:
        lines += [f"# {module}", ""]
        loaded = importlib.import_module(module)
        for name in sorted(loaded.__all__):
            lines += [*_described(f"{module}.{name}", name, getattr(loaded, name)), ""]
        lines += [f"{old}: going, gone in {going.gone_in}\n" for old, going in _going(module, NAMES)]
    return "\n".join(lines)


def _going(module: str, names: Mapping[str, OldName]) -> list[tuple[str, OldName]]:
    return sorted((name, going) for name, going in names.items() if name.rpartition(".")[0] == module)


def _described(where: str, name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type) and value.__name__ == name:
        yield from _class(where, value)
    elif inspect.isfunction(inspect.unwrap(value)):
        yield _function(where, inspect.unwrap(value))
    elif isinstance(value, (bool, int, float, str)):
        yield f"{where} = {value!r}"
    elif value.__class__.__module__.startswith("gateway."):
        yield f"{where}: {value.__class__.__name__}"
    elif isinstance(value, frozenset):
        yield f"{where}: frozenset of {len(value)}"
    else:
        yield f"{where}: another name for {_alias(value)}"


def _alias(value: Any) -> str:
    """What a type alias stands for; of one with validators, the type that they give."""
    if typing.get_origin(value) is Annotated:
        value = typing.get_args(value)[0]
    text = value.__name__ if type(value) is type else str(value)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


def _class(where: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    kind = "enum" if issubclass(cls, Enum) else "class"
    yield f"{where}: {kind}({bases})" if bases else f"{where}: {kind}"
    if issubclass(cls, Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
    elif issubclass(cls, BaseModel):
        yield from (f"    {name}: {_model_field(info)}" for name, info in cls.model_fields.items())
    elif is_dataclass(cls):
        yield from (f"    {f.name}: {f.type}{_default(f)}" for f in fields(cls))
    inherited = [c for c in cls.__mro__[1:] if c.__module__.startswith("gateway.") and not _is_public(c)]
    known = {f.name for f in fields(cls)} if is_dataclass(cls) else set()
    yield from (f"    {line}" for _, line in sorted(_members([cls, *inherited], known)))


def _is_public(cls: type) -> bool:
    return any(getattr(importlib.import_module(module), cls.__name__, None) is cls for module in MODULES)


def _members(classes: list[type], known: set[str]) -> Iterator[tuple[str, str]]:
    """Methods, properties and attributes that these classes say themselves."""
    seen: set[str] = set(known)
    for cls in classes:
        own = vars(cls)
        notes = inspect.get_annotations(cls)
        for name in {*own, *notes} - seen:
            value = own.get(name)
            if name.startswith("_") and name != "__call__" and not (name == "__init__" and _written(cls)):
                continue
            if issubclass(cls, BaseModel) and (name.startswith("model_") or name in cls.model_fields):
                continue
            if issubclass(cls, Enum) and name in cls.__members__:
                continue
            if inspect.ismemberdescriptor(value):
                continue
            seen.add(name)
            yield name, _member(name, value, notes)
        yield from ((name, f"{name}: {note}") for name, note in _set_by_constructor(cls) if name not in seen)


def _written(cls: type) -> bool:
    """Whether the constructor stands in the source, and is not a dataclass's or model's."""
    init = vars(cls).get("__init__")
    return inspect.isfunction(init) and not is_dataclass(cls) and init.__qualname__ == f"{cls.__qualname__}.__init__"


def _member(name: str, value: Any, notes: Mapping[str, Any]) -> str:
    match value:
        case property():
            return f"{name}: property -> {value.fget.__annotations__.get('return', 'Any')}"
        case classmethod():
            return f"{name}{_signature(value.__func__)}  # classmethod"
        case staticmethod():
            return f"{name}{_signature(value.__func__)}  # staticmethod"
    if inspect.isfunction(value):
        return _function(name, value)
    default = "" if value is None else f" = {_shown(value)}"
    return f"{name}: {notes.get(name, type(value).__name__)}{default}"


def _function(name: str, function: Any) -> str:
    does_wait = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return ("async " if does_wait else "") + f"{name}{_signature(function)}"


def _set_by_constructor(cls: type) -> Iterator[tuple[str, str]]:
    """Public attributes that the constructor gives, with their annotations."""
    if not _written(cls):
        return
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(vars(cls)["__init__"])))):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_"):
            yield target.attr, ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else "as given"


def _signature(function: Any) -> str:
    """Parameters as written; annotations are strings, since every module of the SDK postpones them."""
    parameters: list[str] = []
    mark = ""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and mark != "*":
            mark = "*"
            parameters.append("*")
        star = _STARS.get(parameter.kind, "")
        mark = "*" if star == "*" else mark
        note = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {_shown(parameter.default)}"
        parameters.append(f"{star}{parameter.name}{note}{default}")
    result = function.__annotations__.get("return")
    return f"({', '.join(parameters)})" + ("" if result is None else f" -> {result}")


def _model_field(info: FieldInfo) -> str:
    note = getattr(info.annotation, "__name__", str(info.annotation))
    return note if info.is_required() else f"{note} = {_shown(info.default)}"


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f" = {_shown(field.default)}"
    if field.default_factory is MISSING:
        return ""
    assert isinstance(field.default_factory, (type, FunctionType))
    return f" = {field.default_factory.__name__}()"


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, (bool, int, float, str, bytes, type(None))) or value in ((), {}, frozenset()):
        return repr(value)
    return f"{type(value).__name__}(...)"


def names(text: str) -> dict[str, str]:
    """Each name of such a text, with the release in which it is to be gone, or empty."""
    found = re.findall(r"(?m)^(?:async )?(gateway\.[\w.]+)(?:: going, gone in (\S+)$)?", text)
    return dict(found)


def refusals(before: str, now: str, release: str) -> list[str]:
    """Names that `now` may not be without, and why."""
    old, new = names(before), names(now)
    out = []
    for name in sorted(old.keys() - new.keys()):
        gone_in = old[name]
        if not gone_in:
            out.append(f"{name} is gone without a warning: put it into gateway.sdk.deprecation.NAMES first")
        elif not OldName("0.0", gone_in, name).due(release):
            out.append(f"{name} was to warn until {gone_in}, and this is {release}")
    return out


def difference(before: str, now: str) -> str:
    """What has changed."""
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), "as written", "as it is", lineterm="", n=2)
    return "\n".join(lines)


def main() -> int:
    """Write the file; 1 when that would drop a name without a warning."""
    before, now = FILE.read_text() if FILE.exists() else "", render()
    if refused := refusals(before, now, version("gatepost")):
        print("\n".join(refused), "docs/stability.md says how a public name goes.", sep="\n", file=sys.stderr)
        return 1
    FILE.write_text(now)
    print(difference(before, now) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
