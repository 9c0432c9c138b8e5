"""A rule's expression, ready to be asked: checked, compiled by the library, and run with what it names.

*Fails by*: `ExpressionError` when it is made. `Unanswered` when it is asked and has no answer: a division by 0, numbers
that grow too large.
"""

from __future__ import annotations

import marshal
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cel

from policies.rules.check import Checked, check
from policies.rules.functions import CALLABLES
from policies.rules.inputs import INPUTS, Values, message_functions, missing, read
from policies.rules.syntax import ExpressionError, parse
from policies.rules.types import Type

_WHERE: Final = re.compile(r"<input>:(\d+):(\d+): ([^\n]*)")
_REASON: Final = 200
_WITHOUT_REFERENCES: Final = 2
"""Version of `marshal` whose octets depend on nothing but the values."""
_KEPT: Final = 500
"""Values of one stage that are kept, at some 3 KB each."""
_SMALL: Final = 500
"""Octets of those, at most."""


class Unanswered(Exception):
    """The expression has no answer for this message."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. `uses`, `needs` as in `Checked`."""

    checked: Checked
    program: Any

    def needs_missing(self, sources: Mapping[str, Any]) -> bool:
        """Whether something is not there that it looks into without asking; `sources` are by variable."""
        return any(missing(path, sources[path[0]]) for path in self.checked.needs)

    def _tested_missing(self, sources: Mapping[str, Any]) -> bool:
        """Whether something is not there that it asks for, so that this may be why it has no answer."""
        return any(path[0] in sources and missing(path, sources[path[0]]) for path in self.checked.tested)

    def holds(self, context: Any, sources: Mapping[str, Any]) -> bool:
        """Its answer. Looking into what is not there is no match. Raises `Unanswered`."""
        try:
            answer = self.program.execute(context)
        except (KeyError, IndexError):
            return False
        except Exception as error:
            if not isinstance(error, ArithmeticError) and self._tested_missing(sources):
                return False
            raise Unanswered(f"{type(error).__name__}: {str(error)[:_REASON]}") from error
        if not isinstance(answer, bool):
            raise Unanswered(f"the answer is {type(answer).__name__} and neither true nor false")
        return answer


def compile(text: str, variables: Mapping[str, Type]) -> Program:
    """Make an expression ready. Raises `ExpressionError`."""
    checked = check(parse(text), variables)
    for at, name, native in sorted(checked.renamed, reverse=True):
        text = text[:at] + native + text[at + len(name) :]
    return Program(checked, _library(text))


def check_syntax(text: str) -> None:
    """See whether it can be read at all, which needs nothing of the pipeline. Raises `ExpressionError`."""
    parse(text)
    _library(text)


def _library(text: str) -> Any:
    try:
        return cel.compile(text)
    except ValueError as error:
        where = _WHERE.search(str(error))
        if where is None:
            raise ExpressionError(str(error)[:_REASON], 0) from None
        lines = text.split("\n")[: int(where[1]) - 1]
        offset = sum(len(line) + 1 for line in lines) + int(where[2]) - 1
        raise ExpressionError(where[3][:_REASON], min(offset, len(text))) from None


class Contexts:
    """Makes the values for a stage's expressions: of each variable what any of them names (`uses`).

    To turn texts into the library's values takes longer than to ask most expressions. Findings say the same again and
    again, so the values of those that were seen are kept; of a message, an envelope or a session nothing is.
    """

    def __init__(self, uses: Mapping[str, set[str]]) -> None:
        self._uses = uses
        self._keeps = uses.keys().isdisjoint(INPUTS)
        self._known: dict[bytes, Any] = {}

    def make(self, sources: Mapping[str, Any], given: Values) -> Any:
        """What the expressions are asked about; `sources` are by variable."""
        values = {name: read(name, fields, sources[name]) for name, fields in self._uses.items()}
        if not self._keeps:
            return context(values, given)
        try:
            # Octets tell 1 from true and 1.0, and what is no number from null.
            key = marshal.dumps(values, _WITHOUT_REFERENCES)
        except ValueError:
            # An author's finding may hold a number of a kind of its own.
            return context(values, given)
        if (known := self._known.get(key)) is None:
            # Without a message that only what is done asks for: it would be kept, too.
            known = context(values, {})
            if len(key) <= _SMALL:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[key] = known
        return known


def context(values: dict[str, Any], given: Values) -> Any:
    """What expressions are asked about: variables with these values, and the functions that they may call."""
    functions: dict[str, Callable[..., Any]] = dict(CALLABLES)
    message_kind = INPUTS["message"].kind
    if message_kind in given:
        functions |= message_functions(given[message_kind])
    return cel.Context(values, functions)
