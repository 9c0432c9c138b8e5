"""What a milter of pymilter's finds in ``self._ctx``: libmilter's context, without libmilter.

The methods are those of pymilter's ``milterContext``, and fail as those do: an argument of the wrong type is a
`TypeError`, text with a NUL a `ValueError`, and what libmilter would not do is `milter.error`. Changes are collected,
and made when the callback ``eom`` has returned.

Two things are easier here: every macro that Gatepost knows can be had, whatever list it would be on, and text may hold
octets that are no UTF-8 (as surrogates).

*Promises*: it never grows beyond its limits, whatever the milter does; one that hits them has failed (`broken`), even
when it catches the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from plugins.milter.changes import HEADER_OCTETS
from plugins.milter.macros import Facts, canonical, macro
from plugins.milter.packets import (
    Actions,
    BodyReplaced,
    HeaderAdded,
    HeaderChanged,
    HeaderInserted,
    MilterError,
    Modification,
    Quarantined,
    RecipientAdded,
    RecipientDeleted,
    SenderChanged,
)

_LINES: Final = 32
_LINE: Final = 980
_INT_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one milter may change in a message: number of changes, octets of a new body."""

    edits: int
    body_size: int


@dataclass(frozen=True, slots=True)
class OwnReply:
    """A reply of the milter's own; `detail` is its status without the class digit, empty for none."""

    code: int
    detail: str
    text: str


class Notices:
    """How a context tells the event loop what cannot wait; both may be called from any thread."""

    def __init__(self, edit_begun: Callable[[], None], progress: Callable[[], None]) -> None:
        self.edit_begun = edit_begun
        self.progress = progress


class Context:
    """The context of one instance. `facts` and `notices` are those of the callback that runs."""

    def __init__(self, error: type[Exception], limits: Limits, values: Mapping[str, str]) -> None:
        self.facts: Facts | None = None
        self.notices: Notices | None = None
        self.actions = 0
        """What it may do: the numbers of `Actions`."""
        self.at_end = False
        """Whether ``eom`` runs: the only time for changes."""
        self.broken = ""
        self._error = error
        self._limits = limits
        self._values = values
        self._priv: Any = None
        self._reply: OwnReply | None = None
        self._forget()

    def _forget(self) -> None:
        self._changes: list[Modification] = []
        self._octets = 0
        self._body: bytearray | None = None

    def begin_end(self) -> None:
        """``eom`` begins."""
        self.at_end = True
        self._forget()

    def finish_end(self) -> list[Modification]:
        """``eom`` has returned: what it changed. Raises `MilterError` when that was too much."""
        changes = self._changes
        if self._body is not None:
            changes.append(BodyReplaced(bytes(self._body)))
        self.at_end = False
        self._forget()
        if self.broken:
            raise MilterError(self.broken)
        return changes

    def take_reply(self, refusal: str) -> OwnReply | None:
        """The reply that was set, if it is of this class (``4`` or ``5``). As in libmilter it is kept until then."""
        reply = self._reply
        if reply is None or str(reply.code)[0] != refusal:
            return None
        self._reply = None
        return reply

    # The methods of pymilter's milterContext.

    def getpriv(self) -> Any:
        return self._priv

    def setpriv(self, value: Any) -> Any:
        old, self._priv = self._priv, value
        return old

    def getsymval(self, name: str) -> str | None:
        _text("getsymval", name)
        if self.facts is None:
            return None
        try:
            return macro(canonical(name), self.facts, self._values)
        except ValueError:
            return None

    def setsymlist(self, stage: int, names: bytes | str) -> None:
        """Nothing to do: all macros are there."""
        self._need(Actions.SET_MACROS, "cannot set symbol list")

    def setreply(self, code: str, status: str | None = None, *lines: str | None) -> None:
        _text("setreply", code)
        if status is not None:
            _text("setreply", status)
        texts = [_text("setreply", line) for line in lines if line is not None]
        digits = len(code) == 3 and code.isascii() and code.isdigit()
        if not digits or code[0] not in "45" or (status is not None and not _is_status(status, code[0])):
            raise self._error("cannot set reply")
        if len(texts) > _LINES or any(len(line) > _LINE or "\r" in line or "\n" in line for line in texts):
            raise self._error("cannot set reply")
        if status is None and len(texts) > 1:
            status = f"{code[0]}.0.0"
        text = "\n".join(line.replace("%%", "%") for line in texts)
        self._reply = OwnReply(int(code), status[2:] if status else "", text)

    def addheader(self, name: str, value: str, index: int = -1) -> None:
        _text("addheader", name), _text("addheader", value)
        made = HeaderAdded(name, value) if index < 0 else HeaderInserted(min(index, _INT_MAX), name, value)
        self._change(Actions.ADD_HEADERS, "cannot add header", made, len(name) + len(value))

    def chgheader(self, name: str, index: int, value: str | None) -> None:
        _text("chgheader", name)
        value = _text("chgheader", value) if value is not None else ""
        if not 0 <= index <= _INT_MAX:
            raise self._error("cannot change header")
        made = HeaderChanged(index, name, value)
        self._change(Actions.CHANGE_HEADERS, "cannot change header", made, len(name) + len(value))

    def addrcpt(self, path: str, parameters: str | None = None) -> None:
        needed = Actions.ADD_RCPT if parameters is None else Actions.ADD_RCPT_PAR
        made = RecipientAdded(_text("addrcpt", path), _text("addrcpt", parameters or ""))
        self._change(needed, "cannot add recipient", made, len(path))

    def delrcpt(self, path: str) -> None:
        made = RecipientDeleted(_text("delrcpt", path))
        self._change(Actions.DELETE_RCPT, "cannot delete recipient", made, len(path))

    def chgfrom(self, path: str, parameters: str | None = None) -> None:
        made = SenderChanged(_text("chgfrom", path), _text("chgfrom", parameters or ""))
        self._change(Actions.CHANGE_FROM, "cannot change sender", made, len(path))

    def replacebody(self, octets: bytes | str) -> None:
        if isinstance(octets, str):
            octets = octets.encode("utf-8", "surrogateescape")
        self._begin(Actions.CHANGE_BODY, "cannot replace message body")
        # In one piece, since pieces may be any number.
        if self._body is None:
            self._body = bytearray()
        if len(self._body) + len(octets) > self._limits.body_size:
            raise self._over(f"it replaces the body by more than {self._limits.body_size} octets")
        self._body += octets

    def quarantine(self, reason: str) -> None:
        made = Quarantined(_text("quarantine", reason))
        self._change(Actions.QUARANTINE, "cannot quarantine", made, len(reason))

    def progress(self) -> None:
        if self.notices is not None:
            self.notices.progress()

    def _need(self, action: Actions, problem: str) -> None:
        if not self.actions & action.value:
            raise self._error(problem)

    def _begin(self, action: Actions, problem: str) -> None:
        self._need(action, problem)
        if not self.at_end:
            raise self._error(problem)
        if not self._changes and self._body is None and self.notices is not None:
            self.notices.edit_begun()

    def _change(self, action: Actions, problem: str, made: Modification, octets: int) -> None:
        self._begin(action, problem)
        self._octets += octets
        if len(self._changes) >= self._limits.edits:
            raise self._over("it makes too many changes")
        if self._octets > HEADER_OCTETS:
            raise self._over(f"it writes more than {HEADER_OCTETS} octets of header fields")
        self._changes.append(made)

    def _over(self, problem: str) -> Exception:
        self.broken = problem
        return self._error(problem)


def _text(method: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{method}() argument must be str, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError("embedded null character")
    return value


def _is_status(status: str, kind: str) -> bool:
    """Whether it is an enhanced status of this class (RFC 3463 section 2)."""
    parts = status.split(".")
    return (
        len(parts) == 3
        and parts[0] == kind
        and all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts[1:])
    )
