"""Checking an expression before it ever runs: names, fields, functions, types, what may be missing, and what it costs.

Every value has a type that is known from the annotations of findings, so a misspelt field, a text that an enum never
holds, and a text compared with a number are found when the configuration is read.

What may be missing (a finding, TLS) is null. An expression that looks into such a thing without asking whether it is
there (`spf != null`, `spf == null`) *needs* it: without it the rule does not match.

*Fails by*: `ExpressionError`, which says at which character.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from policies.rules.functions import FUNCTIONS, MACROS, Function
from policies.rules.syntax import ExpressionError, Node, Op
from policies.rules.types import ANY, BOOL, DOUBLE, INT, NULL, STRING, Kind, Type, list_of

COST: Final = 100_000
"""Steps that an expression may take; a step is well under a microsecond."""
_OCTETS_PER_STEP: Final = 64
_ITEMS_PER_STEP: Final = 16

Path = tuple[str, ...]


@dataclass(slots=True)
class Checked:
    """What was learnt of an expression.

    `uses` are the variables that it names, each with the fields of it that it names, and `places` where it first does.
    `needs` are things that may be missing and without which it does not match; `tested` are those whose presence it
    asks for. `renamed` are functions that the library knows by another name: where they stand, and both names.
    """

    uses: dict[str, set[str]] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    needs: dict[Path, int] = field(default_factory=dict)
    tested: set[Path] = field(default_factory=set)
    renamed: list[tuple[int, str, str]] = field(default_factory=list)
    cost: int = 0


def check(tree: Node, variables: Mapping[str, Type]) -> Checked:
    """Check a whole expression, which must be a question. Raises `ExpressionError`."""
    checker = _Checker(variables)
    checker.boolean(tree, "the rule")
    found = checker.found
    found.needs = {path: at for path, at in found.needs.items() if path not in found.tested}
    for path, at in found.needs.items():
        if path[0] not in variables:
            raise ExpressionError(f"{'.'.join(path[1:])} may be null; ask for it with != null", at)
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` when something like it is known, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def path_of(node: Node) -> Path | None:
    """``("session", "tls")`` for ``session.tls``; None for what is no plain chain of names."""
    if node.op is Op.NAME:
        return (node.name,)
    if node.op is Op.SELECT and (before := path_of(node.args[0])) is not None:
        return (*before, node.name)
    return None


class _Checker:
    def __init__(self, variables: Mapping[str, Type]) -> None:
        self.found = Checked()
        self._variables = variables
        self._bound: dict[str, Type] = {}
        self._times = 1

    # What is expected of a part.

    def boolean(self, node: Node, what: str) -> None:
        """The part must be true or false."""
        kind = self.there(node)
        if kind.kind not in (Kind.BOOL, Kind.ANY):
            raise ExpressionError(f"{what} must be true or false, and this is {_a(kind)}", node.start)

    def there(self, node: Node) -> Type:
        """The type of a part that must not be null here: where it may be, the rule needs it."""
        kind = self._type(node)
        if kind.kind is Kind.NULL:
            raise ExpressionError("null is of no use here; compare with == null or != null", node.start)
        if kind.nullable:
            path = self._path(node)
            if path is None:
                raise ExpressionError("this may be null, and nothing here asks whether it is", node.start)
            self.found.needs.setdefault(path, node.start)
        return replace(kind, nullable=False) if kind.nullable else kind

    def _path(self, node: Node) -> Path | None:
        """As `path_of`; what begins with a macro's variable is set apart from what a variable of that name would be."""
        path = path_of(node)
        return ("", *path) if path is not None and path[0] in self._bound else path

    # Types.

    def _type(self, node: Node) -> Type:
        self._pay(1, node.at)
        match node.op:
            case Op.LITERAL:
                return _literal(node.value)
            case Op.NAME:
                return self._name(node)
            case Op.SELECT:
                return self._select(node)
            case Op.INDEX:
                return self._index(node)
            case Op.LIST:
                items = [self._type(arg) for arg in node.args]
                return list_of(_common(items), len(items))
            case Op.MAP:
                return self._map(node)
            case Op.UNARY:
                return self._unary(node)
            case Op.BINARY:
                return self._binary(node)
            case Op.CHOICE:
                self.boolean(node.args[0], "what stands before ?")
                return self._choice(node)
            case Op.CALL | Op.METHOD:
                return self._call(node)
        raise TypeError(f"{node.op} is no operation")

    def _pay(self, steps: int, at: int) -> None:
        self.found.cost += steps * self._times
        if self.found.cost > COST:
            raise ExpressionError(f"would take more than {COST} steps on a large message", at)

    def _name(self, node: Node) -> Type:
        if node.name in self._bound:
            return self._bound[node.name]
        kind = self._variables.get(node.name)
        if kind is None:
            near = did_you_mean(node.name, [*self._variables, *self._bound])
            raise ExpressionError(f"there is no variable {node.name}{near}", node.at)
        self.found.uses.setdefault(node.name, set())
        self.found.places.setdefault(node.name, node.at)
        return kind

    def _select(self, node: Node) -> Type:
        (owner,) = node.args
        kind = self.there(owner)
        if owner.op is Op.NAME and owner.name not in self._bound:
            self.found.uses[owner.name].add(node.name)
        if kind.kind is Kind.ANY:
            return ANY
        if kind.kind is Kind.MAP:
            return kind.item or ANY
        if kind.kind is not Kind.OBJECT:
            raise ExpressionError(f"{_a(kind)} has no fields", node.at)
        found = kind.fields.get(node.name)
        if found is None:
            near = did_you_mean(node.name, kind.fields) or f"; there are {', '.join(sorted(kind.fields))}"
            raise ExpressionError(f"{kind} has no field {node.name}{near}", node.at)
        return found

    def _index(self, node: Node) -> Type:
        owner, index = self.there(node.args[0]), self.there(node.args[1])
        if owner.kind is Kind.ANY:
            return ANY
        wanted = {Kind.LIST: Kind.INT, Kind.MAP: Kind.STRING}.get(owner.kind)
        if wanted is None:
            raise ExpressionError(f"{_a(owner)} has no items", node.at)
        if index.kind not in (wanted, Kind.ANY):
            raise ExpressionError(f"items of {_a(owner)} are chosen by {wanted}, not by {index}", node.args[1].start)
        return owner.item or ANY

    def _map(self, node: Node) -> Type:
        for key in node.args[::2]:
            if self.there(key).kind not in (Kind.STRING, Kind.ANY):
                raise ExpressionError("keys of a map are texts here", key.start)
        values = [self._type(arg) for arg in node.args[1::2]]
        return Type(Kind.MAP, "map", item=_common(values), size=len(values))

    def _choice(self, node: Node) -> Type:
        first, second = (self._type(arg) for arg in node.args[1:])
        if first.kind is not second.kind and not {Kind.ANY, Kind.NULL} & {first.kind, second.kind}:
            raise ExpressionError(f"gives {first} or {second}; both sides of : must be alike", node.at)
        return _common([first, second])

    def _unary(self, node: Node) -> Type:
        if node.name == "!":
            self.boolean(node.args[0], "what stands after !")
            return BOOL
        kind = self.there(node.args[0])
        if not kind.numeric:
            raise ExpressionError(f"{_a(kind)} has no negative", node.at)
        return kind

    def _binary(self, node: Node) -> Type:
        left, right = node.args
        match node.name:
            case "&&" | "||":
                self.boolean(left, f"what stands before {node.name}")
                self.boolean(right, f"what stands after {node.name}")
                return BOOL
            case "==" | "!=":
                self._equality(node)
                return BOOL
            case "in":
                self._membership(node)
                return BOOL
            case "<" | "<=" | ">" | ">=":
                self._order(node)
                return BOOL
        return self._arithmetic(node)

    def _equality(self, node: Node) -> None:
        kinds = [self._type(arg) for arg in node.args]
        for (kind, part), other in zip(zip(kinds, node.args, strict=True), reversed(kinds), strict=True):
            if other.kind is Kind.NULL:
                if not kind.nullable and kind.kind is not Kind.ANY:
                    raise ExpressionError("this is never null", part.start)
                if (path := self._path(part)) is not None:
                    self.found.tested.add(path)
                return
        first, second = kinds
        if Kind.OBJECT in (first.kind, second.kind):
            raise ExpressionError("only fields can be compared, not a thing as a whole (except with null)", node.at)
        if not _alike(first, second):
            raise ExpressionError(f"{_a(first)} never equals {_a(second)}", node.at)
        for kind, part in zip(kinds, reversed(node.args), strict=True):
            self._possible(kind, part)

    def _possible(self, kind: Type, part: Node) -> None:
        """A text that is written out must be among those that the other side can be."""
        if kind.values and part.op is Op.LITERAL and isinstance(part.value, str) and part.value not in kind.values:
            near = did_you_mean(part.value, kind.values) or f"; it is one of {', '.join(sorted(kind.values))}"
            raise ExpressionError(f"is never {part.value!r}{near}", part.start)

    def _membership(self, node: Node) -> None:
        left, right = node.args
        item, whole = self._type(left), self.there(right)
        self._pay(whole.size // _ITEMS_PER_STEP, node.at)
        if whole.kind is Kind.STRING:
            raise ExpressionError("`in` is for lists; for texts there is .contains(...)", node.at)
        if whole.kind not in (Kind.LIST, Kind.MAP, Kind.ANY):
            raise ExpressionError(f"nothing is in {_a(whole)}", node.at)
        inner = (STRING if whole.kind is Kind.MAP else whole.item) or ANY
        if whole.size and not _alike(item, inner):
            raise ExpressionError(f"{_a(item)} is never in {_a(whole)}", node.at)
        self._possible(inner, left)
        if right.op is Op.LIST:
            for part in right.args:
                self._possible(item, part)

    def _order(self, node: Node) -> None:
        first, second = (self.there(arg) for arg in node.args)
        ordered = (Kind.STRING, Kind.INT, Kind.DOUBLE, Kind.ANY)
        if first.kind not in ordered or second.kind not in ordered or not _alike(first, second):
            raise ExpressionError(f"{_a(first)} and {_a(second)} have no order", node.at)

    def _arithmetic(self, node: Node) -> Type:
        first, second = (self.there(arg) for arg in node.args)
        kinds = {first.kind, second.kind}
        allowed = {"%": {Kind.INT}, "+": {Kind.INT, Kind.DOUBLE, Kind.STRING, Kind.LIST}}
        if kinds == {Kind.INT, Kind.DOUBLE}:
            raise ExpressionError("whole numbers and others do not mix; write 1.0, or double(...)", node.at)
        if kinds - {Kind.ANY} - allowed.get(node.name, {Kind.INT, Kind.DOUBLE}) or len(kinds - {Kind.ANY}) > 1:
            raise ExpressionError(f"{_a(first)} {node.name} {_a(second)} has no meaning", node.at)
        if node.name in "/%" and node.args[1].op is Op.LITERAL and not node.args[1].value:
            raise ExpressionError("a division by 0", node.at)
        if Kind.ANY in kinds:
            return ANY
        if first.kind in (Kind.STRING, Kind.LIST):
            size = first.size + second.size
            self._pay(size // _OCTETS_PER_STEP, node.at)
            return replace(_common([first, second]), size=size, values=frozenset())
        return first

    # Functions and macros.

    def _call(self, node: Node) -> Type:
        method = node.op is Op.METHOD
        if node.name == "has" and not method:
            return self._has(node)
        if method and node.name in MACROS and len(node.args) in (3, 4) and node.args[1].op is Op.NAME:
            return self._macro(node)
        ways = [way for way in FUNCTIONS.get(node.name, ()) if way.method is method]
        if not ways:
            known = [name for name, all_ways in FUNCTIONS.items() if any(w.method is method for w in all_ways)]
            near = did_you_mean(node.name, [*known, *(MACROS if method else ["has"])])
            raise ExpressionError(f"there is no function {node.name}{near}", node.at)
        kinds = [self.there(arg) for arg in node.args]
        for way in ways:
            fits = len(way.takes) == len(kinds) and all(k.kind in t for k, t in zip(kinds, way.takes, strict=True))
            if fits and (not way.receiver or kinds[0].name == way.receiver):
                return self._apply(node, way, kinds)
        shown = ", ".join(map(str, kinds[1:] if method else kinds))
        of = f" of {_a(kinds[0])}" if method and kinds else ""
        raise ExpressionError(f"there is no {node.name}({shown}){of}", node.at)

    def _apply(self, node: Node, way: Function, kinds: list[Type]) -> Type:
        last = node.args[-1]
        if way.literal is not None:
            if last.op is not Op.LITERAL:
                raise ExpressionError(f"what {node.name} takes must be written out", last.start)
            try:
                way.literal(last.value)
            except ValueError as error:
                raise ExpressionError(str(error), last.start) from None
        self._pay(1 + sum(kind.size for kind in kinds) // _OCTETS_PER_STEP, node.at)
        if way.native != node.name:
            self.found.renamed.append((node.at, node.name, way.native))
        return way.gives

    def _has(self, node: Node) -> Type:
        if len(node.args) != 1 or node.args[0].op is not Op.SELECT:
            raise ExpressionError("has() takes a key of a map: has(m.key)", node.at)
        (chosen,) = node.args
        owner = self.there(chosen.args[0])
        if chosen.args[0].op is Op.NAME and chosen.args[0].name not in self._bound:
            self.found.uses[chosen.args[0].name].add(chosen.name)
        if owner.kind not in (Kind.MAP, Kind.ANY):
            raise ExpressionError("has() is for maps; whether something is there says `!= null`", node.at)
        return BOOL

    def _macro(self, node: Node) -> Type:
        whole, variable, *parts = node.args
        kind = self.there(whole)
        if kind.kind not in (Kind.LIST, Kind.MAP, Kind.ANY):
            raise ExpressionError(f"{node.name} is for lists, and this is {_a(kind)}", node.at)
        if len(parts) == 2 and node.name != "map":
            raise ExpressionError(f"{node.name} takes a variable and a question", node.at)
        item = ANY if kind.kind is Kind.ANY else (STRING if kind.kind is Kind.MAP else kind.item or ANY)
        outer, hidden = self._times, dict(self._bound)
        self._times *= max(kind.size, 1)
        self._bound[variable.name] = item
        try:
            if len(parts) == 2:
                self.boolean(parts[0], "the first part of map")
            if node.name == "map":
                gives = list_of(self._type(parts[-1]), kind.size)
            else:
                self.boolean(parts[0], f"what {node.name} asks")
                gives = list_of(item, kind.size) if node.name == "filter" else BOOL
        finally:
            self._bound, self._times = hidden, outer
        return gives


def _literal(value: object) -> Type:
    match value:
        case None:
            return NULL
        case bool():
            return BOOL
        case int():
            return INT
        case float():
            return DOUBLE
    return replace(STRING, size=len(str(value)))


def _common(kinds: list[Type]) -> Type:
    """A type that all of these are."""
    real = [kind for kind in kinds if kind.kind is not Kind.NULL]
    if not real:
        return ANY if not kinds else NULL
    if any(kind.kind is not real[0].kind for kind in real):
        return ANY
    nullable = len(real) < len(kinds) or any(kind.nullable for kind in real)
    values = (
        frozenset[str]().union(*(kind.values for kind in real)) if all(kind.values for kind in real) else frozenset()
    )
    return replace(real[0], nullable=nullable, values=values, size=max(kind.size for kind in real))


def _alike(first: Type, second: Type) -> bool:
    if Kind.ANY in (first.kind, second.kind) or Kind.NULL in (first.kind, second.kind):
        return True
    if first.kind is Kind.LIST and second.kind is Kind.LIST:
        return _alike(first.item or ANY, second.item or ANY)
    return first.kind is second.kind or (first.numeric and second.numeric)


def _a(kind: Type) -> str:
    """The type with its article."""
    text = str(kind)
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}" if kind.kind is not Kind.NULL else "null"
