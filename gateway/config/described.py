"""The text under each option as its description, for the schema and the reference.

It is read from the sources, which takes a tenth of a second: no command that only reads a configuration waits for it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping

from gateway.config.values import Section


def describe() -> None:
    """Have all sections know their fields' descriptions. Again it costs nothing."""
    for section in _sections(Section):
        lacking = [name for name, field in section.model_fields.items() if field.description is None]
        for name in lacking:
            section.model_fields[name].description = _text(section, name)
        if lacking:
            section.model_rebuild(force=True)


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    """In the order in which they were made, so that each comes after those that it holds."""
    for below in section.__subclasses__():
        yield below
        yield from _sections(below)


def _text(section: type[Section], name: str) -> str | None:
    """What stands under the field where it is defined, None for nothing."""
    for kind in section.__mro__:
        if name in vars(kind).get("__annotations__", {}):
            return _texts(kind.__module__).get((kind.__qualname__, name))
    return None


@functools.cache
def _texts(module: str) -> Mapping[tuple[str, str], str]:
    """All texts under fields of a module's classes, by class and field."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found = {}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, text in zip(kind.body, kind.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if (
                isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[kind.name, field.target.id] = inspect.cleandoc(text.value.value)
    return found
