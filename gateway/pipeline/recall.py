"""Findings and verdicts from their JSON: as the decision record keeps them, or as somebody writes them by hand.

*Fails by*: `RecallError` for what is no such finding, or was cut when it was recorded.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from gateway.mail.address import parse_mailbox
from gateway.mail.edit import Edit, ReplaceBody, edit_from_json
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.sdk.findings import Finding
from gateway.sdk.verdict import Action, Verdict, When

_REPLY: Final = re.compile(
    r"(?P<code>[2-5][0-9]{2}) (?:(?P<class>[245])\.(?P<detail>[0-9]{1,3}\.[0-9]{1,3}) )?(?P<text>.*)\Z", re.DOTALL
)


class RecallError(ValueError):
    """The JSON does not make the finding. ``str(error)`` says why, `path` where in it, when that can be told."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


def recall(kind: type[Finding], value: Mapping[str, Any], hidden: Mapping[str, Any] = MappingProxyType({})) -> Finding:
    """The finding of this kind that `value` describes; fields that are left out have their defaults.

    `hidden` are fields that were redacted, and what stands there instead. Raises `RecallError`.
    """
    readers = _readers(kind)
    fields = {n: _field(kind, n, readers.get(n), given) for n, given in value.items() if n not in hidden}
    try:
        return kind(**fields, **hidden)
    except (ValueError, TypeError) as error:
        needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
        if lacking := [name for name in needed if name not in fields and name not in hidden]:
            raise RecallError(f"{kind.__name__} needs {', '.join(lacking)}") from error
        raise RecallError(f"{kind.__name__}: {error}") from error


def _field(kind: type[Finding], name: str, reader: Callable[[Any], Any] | None, given: Any) -> Any:
    if reader is None:
        known = ", ".join(field.name for field in dataclasses.fields(kind))
        raise RecallError(f"{kind.__name__} has no field {name!r}; it has {known}", (name,))
    try:
        return reader(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, (name, *problem["loc"])))
        raise RecallError(f"{kind.__name__}: {where}: {problem['msg']}", (name, *problem["loc"])) from error
    except (ValueError, TypeError) as error:
        raise RecallError(f"{kind.__name__}: {name}: {error}", (name,)) from error


_Readers = Mapping[str, Callable[[Any], Any]]
_made: dict[type[Finding], _Readers] = {}


def _readers(kind: type[Finding]) -> _Readers:
    """How each field is read: by its type, but edits from their description."""
    if kind not in _made:
        hints = typing.get_type_hints(kind)
        _made[kind] = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    return _made[kind]


def _reader(hint: Any) -> Callable[[Any], Any]:
    return _edits if hint == tuple[Edit, ...] else TypeAdapter(hint).validate_python


def _edits(given: Any) -> tuple[Edit, ...]:
    return tuple(edit_from_json(one) for one in given)


def recall_verdict(note: Mapping[str, Any]) -> Verdict:
    """The verdict of a record's note, without what no record holds: new bodies, and what recipients asked for.

    Raises `RecallError`.
    """
    try:
        return Verdict(
            Action(note["action"]),
            recall_reply(note["reply"]) if "reply" in note else None,
            note.get("reason", ""),
            recall_edits(note.get("edits", ())),
            tuple(Recipient(parse_mailbox(address, utf8=True)) for address in note.get("recipients", ())),
            When(note.get("when", When.ALWAYS)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecallError(f"no verdict of a record: {error}") from error


def recall_reply(text: str) -> Reply:
    """A reply as ``str(reply)`` has it. Raises ValueError for what is none."""
    match = _REPLY.match(text)
    if not match or (match["class"] and match["class"] != match["code"][0]):
        raise ValueError("no reply")
    return Reply(int(match["code"]), match["detail"] or "", match["text"])


def recall_edits(notes: Iterable[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """Edits as the record keeps them, but for new bodies, of which it knows the size alone. Raises ValueError."""
    return tuple(edit_from_json(note) for note in notes if note.get("edit") != ReplaceBody.__name__)
