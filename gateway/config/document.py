"""YAML text to plain values, and to the line of every value.

A small, plain YAML: the tags of the core schema only, no aliases, no merge keys, one document, keys as text. ``yes``,
``no``, ``on`` and ``1:30`` are text, as in YAML 1.2.

*Promises*: size, depth and the number of problems are bounded; nothing in the file can name a Python object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.composer import Composer
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from gateway.config.problems import ConfigError, Path, Problem, dotted
from gateway.config.texts import Written, written
from gateway.sdk.deprecation import Notice

FILE_OCTETS: Final = 1 << 20
DEPTH: Final = 24
PROBLEMS: Final = 100

_PREFIX: Final = "tag:yaml.org,2002:"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_HALF: Final = "holds an escape that is half a character (\\ud800 to \\udfff)"
_PLAIN: Final[dict[str, re.Pattern[str]]] = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"[-+]?[0-9]{1,18}\Z"),
    "float": re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z"),
}


class _Refused(Exception):
    """Stops reading at once: the rest of the file cannot be judged."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's reader down to the node graph, without its resolvers and constructors."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            raise _Refused(line, f"aliases (*{event.anchor}) are not allowed here; write the value out")
        if self._depth >= DEPTH:
            raise _Refused(line, f"nested deeper than {DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


for _tag, _pattern in _PLAIN.items():
    _Composer.add_implicit_resolver(_PREFIX + _tag, _pattern, None)


@dataclass(slots=True)
class Document:
    """A file read: its values as dict, list and scalars, and line and column of each by path. `text` is all of it."""

    file: str
    values: Any = None
    text: str = field(default="", repr=False)
    lines: dict[Path, int] = field(default_factory=dict)
    columns: dict[Path, int] = field(default_factory=dict)
    texts: dict[Path, Written] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: tuple[Notice, ...] = ()
    """Options that are going, with their places."""
    digest: str = ""

    def known(self, path: Path) -> Path:
        """The longest part of `path` that stands in the file; parts that no key or index fits are passed over.

        This turns the location of a validation error, which also names alternatives and functions, into a key.
        """
        at: Path = ()
        for part in path:
            if (*at, part) in self.lines:
                at = (*at, part)
        return at

    def value(self, path: Path) -> Any:
        """What stands at `path`; None where there is nothing."""
        value = self.values
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def line(self, path: Path) -> int:
        """The line of the value, or of the nearest thing around it that stands in the file; 1 for the whole."""
        return self.lines.get(self.known(path), 1)

    def column(self, path: Path) -> int:
        """The column at which the key or the item begins that `line` names; 0 for the whole."""
        return self.columns.get(self.known(path), 0)

    def place(self, path: Path, offset: int) -> tuple[int, int] | None:
        """Line and column, from 1, of character `offset` of the text at `path`; None when there is no such text."""
        written = self.texts.get(path)
        return written.place(offset) if written else None

    def refuse(self, path: Path, message: str, *, line: int = 0) -> None:
        """Note a problem with the value at `path`."""
        if len(self.problems) < PROBLEMS:
            self.problems.append(Problem(self.file, line or self.line(path), dotted(path), message))


def read(text: str, file: str) -> Document:
    """Read YAML. Raises `ConfigError` when the text as a whole is no YAML we take.

    What is wrong with single values (a key twice, a tag) stands in `Document.problems`.
    """
    document = Document(file, text=text)
    composer: _Composer | None = None
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
    except _Refused as error:
        raise ConfigError([Problem(file, error.line, "", error.message)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError([Problem(file, mark.line + 1 if mark else 1, "", f"no YAML: {_wording(error)}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem(file, 1, "", f"no YAML: {_first_line(str(error))}")]) from None
    except (ValueError, OverflowError):
        # The scanner looks at the length of an escape such as "\U00110000", and not at what it stands for.
        line = composer.line + 1 if composer is not None else 1
        raise ConfigError([Problem(file, line, "", "no YAML: an escape that stands for no character")]) from None
    if node is not None:
        document.lines[()] = node.start_mark.line + 1
        document.values = _value(document, node, ())
    return document


def _wording(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.context, error.problem) if part)


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0]


def _value(document: Document, node: Node, path: Path) -> Any:
    match node:
        case MappingNode():
            return _mapping(document, node, path)
        case SequenceNode():
            if node.tag != _PREFIX + "seq":
                document.refuse(path, f"the tag {node.tag} is not understood")
            out = []
            for i, item in enumerate(node.value):
                document.lines[(*path, i)] = item.start_mark.line + 1
                document.columns[(*path, i)] = item.start_mark.column + 1
                out.append(_value(document, item, (*path, i)))
            return out
        case ScalarNode():
            value = _scalar(document, node, path)
            if isinstance(value, str):
                document.texts[path] = written(node, value)
            return value
    raise TypeError(f"{type(node).__name__} is no YAML node")


def _mapping(document: Document, node: MappingNode, path: Path) -> dict[str, Any]:
    if node.tag != _PREFIX + "map":
        document.refuse(path, f"the tag {node.tag} is not understood")
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            document.refuse(path, "a key must be plain text", line=line)
            continue
        key = _whole(key_node.value)
        if key is None:
            document.refuse(path, f"a key {_HALF}", line=line)
            continue
        at = (*path, key)
        if key in out:
            document.refuse(at, f"key given twice; first on line {document.lines[at]}", line=line)
            continue
        document.lines[at] = line
        document.columns[at] = key_node.start_mark.column + 1
        out[key] = _value(document, value_node, at)
    return out


def _whole(text: str) -> str | None:
    """The text with characters that JSON writes as two escapes made one; None where a half of one stands alone."""
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return None


def _scalar(document: Document, node: ScalarNode, path: Path) -> Any:
    text: str = node.value
    kind = node.tag.removeprefix(_PREFIX)
    if kind == "str":
        if (whole := _whole(text)) is None:
            document.refuse(path, _HALF)
            return _SURROGATE.sub("?", text)
        return whole
    if kind in _PLAIN and _PLAIN[kind].match(text):
        match kind:
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(text)
        return None
    document.refuse(path, f"the tag {node.tag} is not understood, or the value does not fit it")
    return None
