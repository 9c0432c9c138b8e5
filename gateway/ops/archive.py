"""Decision records outside of the spool: JSON lines, one for each record, as docs/records.md describes them.

Every line stands for itself: ``v`` (1, the version of this form), ``record``, and ``attempts`` in the order in which
they were made. A file may have been written by anybody, so it is read line by line, in bounds, and what is not as it
should be ends the reading.

*Fails by*: `ArchiveError`, which names the line.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any, Final, NotRequired

import orjson
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

VERSION: Final = 1
LINE_OCTETS: Final = 16 << 20
_DEPTH: Final = 60


class ArchiveError(Exception):
    """A line is no record. ``str(error)`` says which, and what is wrong."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A record, and the attempts that were made since."""

    record: dict[str, Any]
    attempts: Sequence[dict[str, Any]] = ()


def write_line(kept: Kept) -> bytes:
    """One line, with its end."""
    value = {"v": VERSION, "record": kept.record, "attempts": list(kept.attempts)}
    try:
        return orjson.dumps(value) + b"\n"
    except orjson.JSONEncodeError:
        # Lone surrogates, and numbers of more than 64 bits.
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read_lines(file: IO[bytes], name: str) -> Iterator[Kept]:
    """All records of a file; empty lines are passed over. Raises `ArchiveError`, and OSError."""
    number = 0
    while line := file.readline(LINE_OCTETS + 1):
        number += 1
        if len(line) > LINE_OCTETS:
            raise ArchiveError(f"{name}:{number}: longer than {LINE_OCTETS} octets")
        if line.strip():
            try:
                yield _read(line)
            except ArchiveError as error:
                raise ArchiveError(f"{name}:{number}: {error}") from error


def _read(line: bytes) -> Kept:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ArchiveError(f"no JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("record"), dict):
        raise ArchiveError("expected an object with v, record and attempts, as `gatepost records export` writes it")
    if value.get("v") != VERSION or value["record"].get("v") != VERSION:
        raise ArchiveError(f"is of another version than {VERSION}")
    if not _shallow(value, _DEPTH):
        raise ArchiveError(f"nested deeper than {_DEPTH} levels")
    try:
        _a_line().validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ArchiveError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    return Kept(value["record"], value.get("attempts", []))


def _shallow(value: Any, left: int) -> bool:
    if not isinstance(value, (dict, list)):
        return True
    below = value.values() if isinstance(value, dict) else value
    return left > 0 and all(_shallow(one, left - 1) for one in below)


# What is relied on of a record: the rest is free. Pydantic checks dictionaries in a fifth of the time of models.
_config: Final = with_config(ConfigDict(strict=True, extra="ignore"))

_Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]{1,64}$")]
_Time = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]


@_config
class _Client(TypedDict):
    ip: str
    port: int
    peer: NotRequired[str]
    name: NotRequired[str]


@_config
class _ClientCertificate(TypedDict):
    verified: bool
    fingerprint: str
    problem: NotRequired[str]
    subject: NotRequired[str]
    names: NotRequired[list[str]]
    issuer: NotRequired[str]
    serial: NotRequired[str]


@_config
class _Tls(TypedDict):
    version: str
    cipher: str
    sni: str
    client: NotRequired[_ClientCertificate | None]


@_config
class _Recipient(TypedDict):
    address: str
    reply: str


@_config
class _Edit(TypedDict):
    edit: str
    name: NotRequired[str]
    nth: NotRequired[int]
    value: NotRequired[str]
    was: NotRequired[list[str]]
    size: NotRequired[int]
    old_size: NotRequired[int]


@_config
class _Finding(TypedDict, total=False):
    stage: str
    plugin: str
    finding: str
    recipient: str
    ms: float
    value: dict[str, Any] | None
    fault: str
    detail: str
    redacted: list[str]


@_config
class _Verdict(TypedDict, total=False):
    stage: str
    plugin: str
    policy: str
    version: str
    action: str
    shadow: bool
    recipient: str
    recipients: list[str]
    reply: str
    reason: str
    when: str
    edits: list[_Edit]


@_config
class _Mta(TypedDict, total=False):
    through: str
    queue_id: str
    left_out: list[str]


@_config
class _Record(TypedDict):
    id: _Id
    session: str
    time: _Time
    listener: str
    client: _Client
    tls: _Tls | None
    helo: str
    sender: str | None
    recipients: list[_Recipient]
    size: int
    findings: list[_Finding]
    verdicts: list[_Verdict]
    edits: list[_Edit]
    outcome: str
    reply: str
    pipeline: str
    copies: NotRequired[list[str]]
    mta: NotRequired[_Mta | None]
    redacted: NotRequired[list[str]]


@_config
class _Attempt(TypedDict):
    time: _Time
    recipient: str
    outcome: str
    reply: str
    host: NotRequired[str]
    seconds: NotRequired[float]


@_config
class _Line(TypedDict):
    record: _Record
    attempts: NotRequired[list[_Attempt]]


@functools.cache
def _a_line() -> TypeAdapter[_Line]:
    """Made when it is needed: that takes longer than most commands have."""
    return TypeAdapter(_Line)
