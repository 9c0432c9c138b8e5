"""Findings and verdicts from their JSON: as the decision record keeps them, or as somebody writes them by hand.

*Fails by*: `RecallError` for what is no such finding, or was cut when it was recorded.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

import orjson
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from gateway.mail.address import parse_mailbox
from gateway.mail.edit import Edit, ReplaceBody, edit_from_json
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.sdk.findings import Finding, is_cut
from gateway.sdk.verdict import Action, Verdict, When

_REPLY: Final = re.compile(
    r"(?P<code>[2-5][0-9]{2}) (?:(?P<class>[245])\.(?P<detail>[0-9]{1,3}\.[0-9]{1,3}) )?(?P<text>.*)\Z", re.DOTALL
)
_MAY_BE_CUT: Final = re.compile(rb"\xe2\x80\xa6|\\u2026")
"""The mark of what was cut, which is looked for properly where it stands."""
_KEPT: Final = 10_000
"""Findings that a `Memory` keeps."""
_SMALL: Final = 500
"""Octets of the JSON of one of them, at most."""


class RecallError(ValueError):
    """The JSON does not make the finding. ``str(error)`` says why, `path` where in it, when that can be told."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


def recall(kind: type[Finding], value: Mapping[str, Any], hidden: Mapping[str, Any] = MappingProxyType({})) -> Finding:
    """The finding of this kind that `value` describes; fields that are left out have their defaults.

    `hidden` are fields that were redacted, and what stands there instead. Raises `RecallError`.
    """
    adapter = _adapters.get(kind) or _adapter(kind)
    told = {name: given for name, given in value.items() if name not in hidden} if hidden else value
    try:
        return kind(**adapter.validate_python(told), **hidden)
    except ValidationError as error:
        raise _unread(kind, error) from error
    except (ValueError, TypeError) as error:
        needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
        if lacking := [name for name in needed if name not in told and name not in hidden]:
            raise RecallError(f"{kind.__name__} needs {', '.join(lacking)}") from error
        raise RecallError(f"{kind.__name__}: {error}") from error


class Memory:
    """Findings that were recalled before. Most say what others said (a client on no list), and none ever changes."""

    def __init__(self) -> None:
        self._known: dict[tuple[type[Finding], bytes], Finding] = {}

    def recall(self, kind: type[Finding], octets: bytes, hidden: Mapping[str, Any] = MappingProxyType({})) -> Finding:
        """As `recall`, of the JSON itself as a record keeps it. What has hidden fields is not remembered."""
        key = kind, octets
        found = None if hidden else self._known.get(key)
        if found is None:
            try:
                value = orjson.loads(octets)
            except orjson.JSONDecodeError as error:
                raise RecallError(f"{kind.__name__} cannot be read") from error
            if _MAY_BE_CUT.search(octets) and is_cut(value):
                raise RecallError(f"{kind.__name__} was cut when it was recorded")
            found = recall(kind, value, hidden)
            if not hidden and len(octets) <= _SMALL:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[key] = found
        return found


def _unread(kind: type[Finding], error: ValidationError) -> RecallError:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = problem["loc"]
    if problem["type"] == "extra_forbidden" and len(path) == 1:
        known = ", ".join(field.name for field in dataclasses.fields(kind))
        return RecallError(f"{kind.__name__} has no field {path[0]!r}; it has {known}", path)
    where = ".".join(map(str, path))
    message = problem["msg"].removeprefix("Value error, ")
    return RecallError(f"{kind.__name__}: {where + ': ' if where else ''}{message}", path)


_adapters: dict[type[Finding], TypeAdapter[Any]] = {}


def _adapter(kind: type[Finding]) -> TypeAdapter[Any]:
    """Reads all fields at once, each by its type, but edits from their description."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    read = {name: _EDITS if hint == tuple[Edit, ...] else hint for name, hint in fields.items()}
    # Pydantic takes those of `typing` from Python 3.12 on only.
    make: Any = TypedDict
    shape = with_config(ConfigDict(extra="forbid"))(make(kind.__name__, read, total=False))
    adapter = _adapters[kind] = TypeAdapter(shape)
    return adapter


def _edits(given: Any) -> tuple[Edit, ...]:
    return tuple(edit_from_json(one) for one in given)


_EDITS: Final = Annotated[Any, BeforeValidator(_edits)]


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
