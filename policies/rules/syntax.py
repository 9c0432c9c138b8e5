"""Reading expressions of CEL, the Common Expression Language, into a tree that knows where each part stands.

Evaluating is the library's; it tells nothing of an expression's inside, though, and rules shall be checked when they
are loaded. So this reads the part of the language that rules may use: no octet strings, unsigned numbers or message
literals, which nothing here has a use for.

*Promises*: length and depth are bounded, so that neither this nor the library's parser runs out of stack.

*Fails by*: `ExpressionError`, which says at which character.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

LENGTH: Final = 4000
"""Characters of an expression."""
DEPTH: Final = 24
"""Of brackets and the like."""
HEIGHT: Final = 100
"""Of the tree: a chain of operators is as high as it is long."""
NODES: Final = 600


class ExpressionError(ValueError):
    """The expression is not what a rule may say. `offset` counts characters from 0."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


class Op(StrEnum):
    """What a node is; `CALL` is also every operator, by the name that the operator has in a source text."""

    LITERAL = "literal"
    NAME = "name"
    SELECT = "select"
    INDEX = "index"
    CALL = "call"
    METHOD = "method"
    LIST = "list"
    MAP = "map"
    UNARY = "unary"
    BINARY = "binary"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression: `at` is the character of its name or operator, `start` that of its beginning.

    `name` is what is named, or the operator. The receiver of a method is the first of `args`; entries of a map are its
    keys and values in turn.
    """

    op: Op
    start: int
    at: int
    name: str = ""
    args: tuple[Node, ...] = ()
    value: Any = None
    height: int = 1


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_STRING: Final = (
    r"[rR]?(?:\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|\"(?:[^\"\\\r\n]|\\.)*\"|'(?:[^'\\\r\n]|\\.)*')"
)
_RAW: Final = r"[rR](?:\"\"\"(?:.)*?\"\"\"|'''(?:.)*?'''|\"[^\"\r\n]*\"|'[^'\r\n]*')"
_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n\f]+|//[^\r\n]*)|(?P<octets>[bB][rR]?[\"']|[rR][bB][\"'])"
    rf"|(?P<raw>{_RAW})|(?P<string>{_STRING})"
    r"|(?P<float>[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<int>0x[0-9a-fA-F]+|[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.?))", re.DOTALL
)
_PLAIN_ESCAPES: Final = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))
_CONSTANTS: Final = {"true": True, "false": False, "null": None}
_RESERVED: Final = frozenset(
    "as break const continue else for function if import let loop package namespace return var void while".split()
)
_INT_MAX: Final = (1 << 63) - 1
_LEVELS: Final[tuple[frozenset[str], ...]] = (
    frozenset({"||"}),
    frozenset({"&&"}),
    frozenset({"<", "<=", ">", ">=", "==", "!=", "in"}),
    frozenset({"+", "-"}),
    frozenset({"*", "/", "%"}),
)
"""Binary operators, those that bind weakest first. All of them group to the left."""


def parse(text: str) -> Node:
    """The tree of an expression. Raises `ExpressionError`."""
    if len(text) > LENGTH:
        raise ExpressionError(f"longer than {LENGTH} characters", LENGTH)
    return _Parser(_tokens(text), len(text)).whole()


def _tokens(text: str) -> list[_Token]:
    out: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            kind = "a text without its end" if text[at] in "\"'" else f"{text[at]!r}"
            raise ExpressionError(f"{kind} is not understood here", at)
        if match.lastgroup == "octets":
            raise ExpressionError("octet strings are of no use here: all text is characters", at)
        if match.lastgroup != "space":
            out.append(_Token(str(match.lastgroup), match[0], at))
        at = match.end()
    for number, following in itertools.pairwise(out):
        if number.kind in ("int", "float") and following.at == number.at + len(number.text):
            if following.kind == "name" and following.text in ("u", "U"):
                raise ExpressionError("there are no unsigned numbers here", following.at)
            if following.kind in ("name", "int", "float"):
                raise ExpressionError(f"{number.text}{following.text} is no number", number.at)
    return out


class _Parser:
    """Recursive descent; every way down goes through `_expression` or `_unary`, which count the depth."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens = tokens
        self._end = _Token("end", "the end", end)
        self._place = 0
        self._depth = 0
        self._nodes = 0

    def whole(self) -> Node:
        node = self._expression()
        if self._next.kind != "end":
            raise self._unexpected()
        return node

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else self._end

    def _take(self) -> _Token:
        token = self._next
        self._place += 1
        return token

    def _is(self, *marks: str) -> bool:
        return self._next.kind == "mark" and self._next.text in marks

    def _expect(self, mark: str) -> None:
        if not self._is(mark):
            raise ExpressionError(f"expected {mark!r} and not {self._next.text[:40]}", self._next.at)
        self._take()

    def _unexpected(self) -> ExpressionError:
        return ExpressionError(f"{self._next.text[:40]} is not expected here", self._next.at)

    def _node(
        self, op: Op, start: int, at: int, name: str = "", args: tuple[Node, ...] = (), value: Any = None
    ) -> Node:
        self._nodes += 1
        if self._nodes > NODES:
            raise ExpressionError(f"has more than {NODES} parts", at)
        height = 1 + max((arg.height for arg in args), default=0)
        if height > HEIGHT:
            raise ExpressionError(f"a chain of more than {HEIGHT} parts; `in [...]` may be shorter", at)
        return Node(op, start, at, name, args, value, height)

    def _expression(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH:
            raise ExpressionError(f"nested deeper than {DEPTH} levels", self._next.at)
        node = self._binary(0)
        if self._is("?"):
            at = self._take().at
            chosen = self._binary(0)
            self._expect(":")
            node = self._node(Op.CHOICE, node.start, at, "?:", (node, chosen, self._expression()))
        self._depth -= 1
        return node

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while self._next.text in _LEVELS[level] and self._next.kind in ("mark", "name"):
            operator = self._take()
            right = self._binary(level + 1)
            node = self._node(Op.BINARY, node.start, operator.at, operator.text, (node, right))
        return node

    def _unary(self) -> Node:
        token = self._next
        if not self._is("!", "-"):
            return self._member()
        self._take()
        if self._is(token.text):
            raise ExpressionError(f"{token.text!r} twice says nothing", self._next.at)
        number = self._next
        if token.text == "-" and number.kind in ("int", "float") and number.at == token.at + 1:
            return self._member(token)
        return self._node(Op.UNARY, token.at, token.at, token.text, (self._member(),))

    def _member(self, minus: _Token | None = None) -> Node:
        node = self._primary(minus)
        while self._is(".", "["):
            mark = self._take()
            if mark.text == "[":
                index = self._expression()
                self._expect("]")
                node = self._node(Op.INDEX, node.start, mark.at, "[]", (node, index))
                continue
            name = self._take()
            if name.kind != "name" or name.text in ("in", *_CONSTANTS):
                raise ExpressionError("expected a name after the dot", name.at)
            if self._is("("):
                args = self._arguments(")")
                node = self._node(Op.METHOD, node.start, name.at, name.text, (node, *args))
            else:
                node = self._node(Op.SELECT, node.start, name.at, name.text, (node,))
        if self._is("{"):
            raise ExpressionError("messages cannot be made here", self._next.at)
        return node

    def _primary(self, minus: _Token | None) -> Node:
        token = self._take()
        start = minus.at if minus else token.at
        match token.kind:
            case "int" | "float":
                return self._number(token, minus)
            case "string" | "raw":
                return self._node(Op.LITERAL, start, start, value=_text(token))
            case "name" if token.text in _CONSTANTS:
                return self._node(Op.LITERAL, start, start, value=_CONSTANTS[token.text])
            case "name" if token.text in _RESERVED or token.text == "in":
                raise ExpressionError(f"{token.text} is a reserved word", token.at)
            case "name" if self._is("("):
                return self._node(Op.CALL, start, start, token.text, self._arguments(")"))
            case "name":
                return self._node(Op.NAME, start, start, token.text)
            case "mark" if token.text == "(":
                node = self._expression()
                self._expect(")")
                return node
            case "mark" if token.text == "[":
                self._place -= 1
                return self._node(Op.LIST, start, start, "[]", self._arguments("]"))
            case "mark" if token.text == "{":
                return self._map(start)
        self._place -= 1
        raise self._unexpected()

    def _number(self, token: _Token, minus: _Token | None) -> Node:
        sign, start = (-1, minus.at) if minus else (1, token.at)
        if token.kind == "float":
            return self._node(Op.LITERAL, start, start, value=sign * float(token.text))
        number = sign * int(token.text, 16 if token.text[:2] == "0x" else 10)
        if not -_INT_MAX - 1 <= number <= _INT_MAX:
            raise ExpressionError("the number does not fit into 64 bits", token.at)
        return self._node(Op.LITERAL, start, start, value=number)

    def _arguments(self, end: str) -> tuple[Node, ...]:
        self._take()
        out: list[Node] = []
        while not self._is(end):
            if out:
                self._expect(",")
                if self._is(end) and end == "]":
                    break
            out.append(self._expression())
        self._take()
        return tuple(out)

    def _map(self, start: int) -> Node:
        out: list[Node] = []
        while not self._is("}"):
            if out:
                self._expect(",")
                if self._is("}"):
                    break
            out.append(self._expression())
            self._expect(":")
            out.append(self._expression())
        self._take()
        return self._node(Op.MAP, start, start, "{}", tuple(out))


def _text(token: _Token) -> str:
    """What a literal stands for."""
    text = token.text
    if token.kind == "raw":
        text = text[1:]
    quotes = 3 if text[:3] in ('"""', "'''") else 1
    inner = text[quotes:-quotes]
    if token.kind == "raw":
        return inner
    base = token.at + quotes

    def character(match: re.Match[str]) -> str:
        plain, two, four, eight, octal, unknown = match.groups()
        if plain is not None:
            return _PLAIN_ESCAPES[plain]
        if unknown is not None:
            raise ExpressionError(
                f"\\{unknown} is no escape; write \\\\ for a backslash, or r'...'", base + match.start()
            )
        code = int(octal, 8) if octal is not None else int(two or four or eight, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise ExpressionError("is no character", base + match.start())
        return chr(code)

    return _ESCAPE.sub(character, inner)
