"""A spec file read: what it is about, and its cases, those of tables too.

*Promises*: size, depth, the number of cases and what they come to when shared values are laid under each are bounded.

*Fails by*: `gateway.config.ConfigError`, with file, line and column of every problem.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from gateway.config import ConfigError, Problem
from gateway.config.document import Document, read
from gateway.config.load import text_of, wording
from gateway.config.problems import Path, did_you_mean, dotted
from gateway.sdk.options import OptionsModel
from gateway.specs.layers import Layer
from gateway.specs.model import Expected, Given

CASES: Final = 5000
VALUES: Final = 1_000_000
"""Values of all cases together, with what is shared laid under each."""

_FILE_KEYS: Final = ("policy", "options", "pipeline", "run", "given", "expect", "cases", "tables")
_SHARED: Final = ("given", "expect", "options")
_CASE_KEYS: Final = ("name", *_SHARED)
_TABLE_KEYS: Final = ("name", "columns", "rows", *_SHARED)
_COLUMNS: Final = ("name", *_SHARED)
_NAME: Final = 200
_KEYS: Final = 10
"""Keys of one column's way."""

_M = TypeVar("_M", bound=OptionsModel)


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `options` are the policy's, and `given` is laid out as it stands in the file for what is read later."""

    name: str
    place: Path
    given: Given
    expected: Expected
    layer: Layer
    options: Layer


@dataclass(frozen=True, slots=True)
class Reference:
    """A pipeline of a configuration file."""

    file: str
    name: str


class Sheet:
    """A spec file. Made by `load`; `refuse` collects problems, which `check` raises."""

    def __init__(self, document: Document) -> None:
        self.file = document.file
        self.policy = ""
        self.pipeline: list[Any] | Reference | None = None
        self.run: tuple[str, ...] = ()
        self.cases: list[Case] = []
        self._document = document
        self.problems: list[Problem] = []

    @property
    def directory(self) -> str:
        return os.path.dirname(os.path.abspath(self.file))

    def line(self, path: Path) -> int:
        return self._document.line(path)

    def value(self, path: Path) -> Any:
        """What stands at a place in the file; None where there is nothing."""
        return self._document.value(path)

    def refuse(self, path: Path, message: str, offset: int | None = None) -> None:
        """Note a problem with the value at `path`, or with the character `offset` of its text."""
        document = self._document
        at = document.known(path)
        place = document.place(path, offset) if offset is not None else None
        line, column = place or (document.line(at), document.column(at))
        problem = Problem(self.file, line, dotted(at), message, column)
        if problem not in self.problems and len(self.problems) < 100:
            self.problems.append(problem)

    def check(self) -> None:
        """Raise `ConfigError` if anything was refused."""
        if self.problems:
            raise ConfigError(sorted(self.problems))


def load(file: str) -> Sheet:
    """Read a spec file. Raises `ConfigError`."""
    document = read(text_of(file), file)
    if document.problems:
        raise ConfigError(sorted(document.problems))
    sheet = Sheet(document)
    _Reader(sheet, document.values).read()
    sheet.check()
    return sheet


class _Reader:
    def __init__(self, sheet: Sheet, values: Any) -> None:
        self._sheet = sheet
        self._values = values if isinstance(values, dict) else {}
        self._whole = isinstance(values, dict)
        self._cost = 0

    def read(self) -> None:
        sheet, values = self._sheet, self._values
        if not self._whole:
            sheet.refuse((), "must be a mapping with policy or pipeline, and cases or tables")
            return
        self._keys(values, (), _FILE_KEYS)
        self._subject()
        shared = self._shared(values, ())
        for place, layer in (*self._cases(shared), *self._tables(shared)):
            if len(sheet.cases) >= CASES:
                sheet.refuse(place, f"there are more than {CASES} cases in this file")
                return
            self._cost += layer.size
            if self._cost > VALUES:
                sheet.refuse(place, "what is shared is too much for so many cases; split the file")
                return
            self._case(place, layer)
        if not sheet.cases and not sheet.problems:
            sheet.refuse((), "has no case: give cases or tables")

    def _keys(self, values: Mapping[str, Any], path: Path, known: tuple[str, ...]) -> None:
        for key in values:
            if key not in known:
                self._sheet.refuse((*path, key), f"unknown key{did_you_mean(key, known)}")

    def _subject(self) -> None:
        """What is tested: a policy with its options, or a pipeline."""
        sheet, values = self._sheet, self._values
        if ("policy" in values) == ("pipeline" in values):
            sheet.refuse((), "give policy, or pipeline, and not both")
        policy = values.get("policy", "")
        if not isinstance(policy, str) or ("policy" in values and not policy):
            sheet.refuse(("policy",), "must be the name of a policy")
        else:
            sheet.policy = policy
        if "pipeline" in values:
            for key in ("options",):
                if key in values:
                    sheet.refuse((key,), "is for a single policy; entries of a pipeline have their own")
            sheet.pipeline = self._pipeline(values["pipeline"])
        run = values.get("run", [])
        if not isinstance(run, list) or not all(isinstance(name, str) for name in run):
            sheet.refuse(("run",), "must be a list of names of entries")
        elif run and "pipeline" not in values:
            sheet.refuse(("run",), "is for a pipeline: a policy alone has no plugins")
        else:
            sheet.run = tuple(run)

    def _pipeline(self, value: Any) -> list[Any] | Reference | None:
        if isinstance(value, list):
            return value
        if isinstance(value, dict):
            self._keys(value, ("pipeline",), ("file", "name"))
            file, name = value.get("file"), value.get("name", "default")
            if isinstance(file, str) and file and isinstance(name, str):
                return Reference(os.path.normpath(os.path.join(self._sheet.directory, file)), name)
        self._sheet.refuse(("pipeline",), "must be a list of entries, or {file: CONFIGURATION, name: PIPELINE}")
        return None

    def _shared(self, values: Mapping[str, Any], path: Path, below: Layer | None = None) -> Layer:
        """What holds for all cases of the file, or of a table."""
        return Layer.of({key: _full(key, values[key]) for key in _SHARED if key in values}, path).over(below)

    def _cases(self, shared: Layer) -> Iterator[tuple[Path, Layer]]:
        for i, case in enumerate(self._list(self._values, (), "cases")):
            place: Path = ("cases", i)
            if not isinstance(case, dict):
                self._sheet.refuse(place, "must be a mapping with given and expect")
                continue
            self._keys(case, place, _CASE_KEYS)
            yield place, Layer.of({key: _full(key, value) for key, value in case.items()}, place).over(shared)

    def _tables(self, shared: Layer) -> Iterator[tuple[Path, Layer]]:
        for i, table in enumerate(self._list(self._values, (), "tables")):
            place: Path = ("tables", i)
            if not isinstance(table, dict):
                self._sheet.refuse(place, "must be a mapping with columns and rows")
                continue
            self._keys(table, place, _TABLE_KEYS)
            columns = self._columns(table, place)
            below = self._shared(table, place, shared)
            title = table.get("name") or f"table {i + 1}"
            for r, row in enumerate(self._list(table, place, "rows")):
                at: Path = (*place, "rows", r)
                if not isinstance(row, list) or len(row) != len(columns):
                    self._sheet.refuse(at, f"must be a list of {len(columns)} values, one for each column")
                    continue
                yield at, self._row(columns, row, at, f"{title}, row {r + 1}").over(below)

    def _row(self, columns: list[tuple[str, ...]], row: list[Any], at: Path, name: str) -> Layer:
        """A row as a case; an empty cell says nothing."""
        layer = Layer.at(("name",), name, at)
        for c, (keys, cell) in enumerate(zip(columns, row, strict=True)):
            if cell is not None:
                value = _full(keys[0], cell) if len(keys) == 1 else cell
                layer = Layer.at(keys, value, (*at, c)).over(layer)
        return layer

    def _columns(self, table: Mapping[str, Any], place: Path) -> list[tuple[str, ...]]:
        columns: list[tuple[str, ...]] = []
        for i, column in enumerate(self._list(table, place, "columns")):
            keys = tuple(column.split(".")) if isinstance(column, str) else ("",)
            if keys[0] not in _COLUMNS or not all(keys) or len(keys) > _KEYS:
                message = f"must be the way to a value, such as given.session.helo: begin with {', '.join(_COLUMNS)}"
                self._sheet.refuse((*place, "columns", i), message)
            elif keys in columns:
                self._sheet.refuse((*place, "columns", i), "is there twice")
            columns.append(keys)
        return columns

    def _list(self, values: Mapping[str, Any], path: Path, key: str) -> list[Any]:
        found = values.get(key, [])
        if isinstance(found, list):
            return found
        self._sheet.refuse((*path, key), "must be a list")
        return []

    def _case(self, place: Path, layer: Layer) -> None:
        name = layer.get("name")
        title = name.value if name is not None else f"case {len(self._sheet.cases) + 1}"
        if not isinstance(title, str) or not title or len(title) > _NAME:
            self._sheet.refuse(name.origin if name else place, f"must be a text of at most {_NAME} characters")
            return
        given = self._model(Given, layer.get("given") or Layer.of({}, place))
        expect = layer.get("expect")
        expected = self._model(Expected, expect) if expect else None
        if expect is None or not expect.size > 1:
            self._sheet.refuse(place, "expects nothing")
        options = layer.get("options") or Layer.of(None, place)
        if self._sheet.pipeline is not None and layer.get("options"):
            self._sheet.refuse(options.origin, "is for a single policy; entries of a pipeline have their own")
        if expected and expected.problem is not None and self._sheet.pipeline is not None:
            message = "is for a single policy: there is nothing to test in a pipeline that is wrong"
            self._sheet.refuse(layer.place(("expect", "problem")), message)
        if given and expected:
            self._sheet.cases.append(Case(title, place, given, expected, layer, options))

    def _model(self, model: type[_M], layer: Layer) -> _M | None:
        try:
            return model.model_validate(layer.plain())
        except ValidationError as error:
            for details in error.errors(include_url=False, include_input=False):
                path = layer.place(details["loc"])
                message = wording(details)
                if details["type"] == "extra_forbidden":
                    message = f"unknown key{did_you_mean(str(details['loc'][-1]), _fields(model, details['loc'][:-1]))}"
                self._sheet.refuse(path, message)
        return None


def _full(key: str, value: Any) -> Any:
    """The long form: what is expected may be an action alone."""
    return {"action": value} if key == "expect" and isinstance(value, str) else value


def _fields(model: type[OptionsModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that there are at a place of the model."""
    found: Any = model
    for part in location:
        field = found.model_fields.get(part) if isinstance(part, str) else None
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, OptionsModel)):
            return []
        found = kind
    return list(found.model_fields)
