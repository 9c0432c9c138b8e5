"""`tools/stubs` gives types to libraries that have none: it may leave out what is there, and make nothing up."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STUBS = Path(__file__).parents[2] / "tools/stubs"


def said(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """The public names of a module's stub, those of classes with a dot."""
    (path,) = [path for path in (STUBS / f"{module}.pyi", STUBS / module / "__init__.pyi") if path.exists()]
    for node in ast.parse(path.read_text()).body:
        yield from named(node)
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", inner) for part in node.body for name, inner in named(part))


def named(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
        yield node.target.id, node


def wrong(node: ast.stmt, real: Any) -> bool:
    """Whether the thing is no such thing."""
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "int" and not isinstance(real, int)
    if isinstance(node, ast.ClassDef):
        return not isinstance(real, type)
    if not inspect.isfunction(real):
        return not callable(real)
    assert isinstance(node, ast.FunctionDef)
    taken = inspect.signature(real).parameters.values()
    plain = [p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD]
    several = any(p.kind is p.VAR_POSITIONAL for p in taken)
    given = [argument.arg for argument in node.args.args]
    count = len(node.args.posonlyargs) + len(given)
    return count != len(plain) or plain[count - len(given) :] != given or several != bool(node.args.vararg)


@pytest.mark.parametrize("module", ["Milter", "milter"])
def test_a_stub_says_what_the_library_has(module: str) -> None:
    library = importlib.import_module(module)
    names = dict(said(module))
    assert len(names) > 10
    for name, node in names.items():
        found = library
        for part in name.split("."):
            assert hasattr(found, part), f"{module} has no {name}"
            found = getattr(found, part)
        assert not wrong(node, found), f"{module}.{name} is not as its stub says"
