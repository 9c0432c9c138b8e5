"""Redaction: decision records without the local parts of addresses.

Each local part is replaced by a keyed hash, ``~`` and 24 characters, and the domain stays. The hash is made of the
whole address in the form in which addresses are compared, so the same address always has the same one, and who knows
an address can search for it. Header values that edits put in or take out are left out, since they may hold anything.

In all other text (replies, reasons, what plugins found) everything before an ``@`` is replaced, and so are the local
parts of sender and recipients where they stand alone. ``postmaster`` and ``abuse`` are nobody's names and stay.

*Promises*: what was changed is said (``redacted``), so that nobody takes a hash for what was there.

*Fails by*: `KeyFileError`.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.mail.address import AddressError, ascii_domain

ROLES: Final = frozenset({"postmaster", "abuse"})
"""Local parts that stay as they are."""

_HIDDEN: Final = re.compile(r"~[a-z2-7]{24}\Z")
_KEY_OCTETS: Final = 32
_KEY: Final = re.compile(rb"([0-9a-fA-F]{64})\s*\Z")
_DEPTH: Final = 40
_AT: Final = re.compile(r"@|%40")
# What cannot stand in a local part without quotes; it ends one, going backwards from the "@".
_BEFORE_LOCAL: Final = ' \t\r\n<>()[],;:\\"'
_WORD: Final = re.compile(r"[^\s<>()\[\],;:\"'/&?=%@|!\\]+")
_ESCAPED: Final = re.compile(r"\\(.)")


class KeyFileError(Exception):
    """The key cannot be read or made. ``str(error)`` says why, and what to do."""


def read_key(path: str) -> bytes:
    """The key in this file: 64 hexadecimal digits. Raises `KeyFileError`."""
    try:
        with open(path, "rb") as file:
            match = _KEY.match(file.read(1000))
    except OSError as error:
        raise KeyFileError(f"cannot read the redaction key {path}: {error.strerror}") from error
    if match is None:
        raise KeyFileError(f"{path} is no redaction key: expected 64 hexadecimal digits (openssl rand -hex 32)")
    return bytes.fromhex(match[1].decode())


def make_key(path: str) -> bytes:
    """The key in this file, which is made if there is none; of several processes that make it one wins.

    Raises `KeyFileError`.
    """
    if not os.path.exists(path):
        aside = f"{path}.{secrets.token_hex(8)}"
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, secrets.token_hex(_KEY_OCTETS).encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(aside, path)
            except FileExistsError:
                pass  # somebody else was first
            finally:
                os.unlink(aside)
        except OSError as error:
            raise KeyFileError(f"cannot make the redaction key {path}: {error.strerror}") from error
    return read_key(path)


def is_hidden(address: str) -> bool:
    """Whether this address of a redacted record stands without its local part."""
    return bool(_HIDDEN.match(address.rpartition("@")[0]))


@dataclass(frozen=True, slots=True)
class _Shape:
    """Keys of a part of a record: what stays as it is, what holds addresses, what is left out, and parts of its own.

    Everything else is text, at any depth.
    """

    kept: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    parts: Mapping[str, _Shape] | None = None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EDIT: Final = _Shape(
    _words("edit name nth index lead size old_size next_hop priority"), _words("sender recipient"), _words("value was")
)
_FINDING: Final = _Shape(_words("stage plugin finding ms fault pending missing given truncated"), _words("recipient"))
_VERDICT: Final = _Shape(
    _words("stage plugin policy version action shadow when truncated"),
    _words("recipient recipients"),
    parts={"edits": _EDIT},
)
_RECORD: Final = _Shape(
    _words("v id session time listener pipeline outcome copies size"),
    _words("sender"),
    parts={
        "client": _Shape(_words("ip port peer")),
        "tls": _Shape(
            _words("version cipher"), parts={"client": _Shape(_words("verified fingerprint problem serial"))}
        ),
        "recipients": _Shape(addresses=_words("address")),
        "findings": _FINDING,
        "verdicts": _VERDICT,
        "edits": _EDIT,
        "mta": _Shape(_words("through queue_id")),
    },
)
_ATTEMPT: Final = _Shape(_words("time outcome seconds host"), _words("recipient"))
_SESSION_TEXTS: Final = (
    ("helo",),
    ("client", "name"),
    ("tls", "sni"),
    ("tls", "client", "subject"),
    ("tls", "client", "names"),
    ("tls", "client", "issuer"),
)


class Redactor:
    """Redacts by one key. What it is given is plain JSON and stays as it is: what it gives is new."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def local(self, local: str, domain: str) -> str:
        """What stands for this local part (without quotes) at this domain."""
        try:
            domain = ascii_domain(domain)
        except AddressError:
            domain = domain.lower()
        whole = f"{local.lower()}@{domain}".encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._key, whole, "sha256")
        return "~" + base64.b32encode(digest[:15]).decode().lower()

    def address(self, text: str) -> str:
        """An address, redacted. What has no local part or no domain stays, as ``<>`` and ``postmaster`` do."""
        local, at, domain = text.rpartition("@")
        if not at or not local or local.lower() in ROLES:
            return text
        return f"{self.local(_unquoted(local), domain)}@{domain}"

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A decision record, redacted."""
        work = _Work(self, _named(record))
        out = work.note(record, _RECORD)
        for kind, note in zip(_list(record, "findings"), _list(out, "findings"), strict=False):
            if isinstance(kind, dict) and isinstance(kind.get("value"), dict):
                before, after = kind["value"], note["value"]
                if changed := [name for name in before if after.get(name) != before[name]]:
                    note["redacted"] = changed
        out["redacted"] = [".".join(path) for path in _SESSION_TEXTS if _at(record, path) != _at(out, path)]
        return out

    def attempts(self, notes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Delivery attempts, and what somebody did by hand, as they stand beside a record."""
        notes = list(notes)
        work = _Work(self, [str(note.get("recipient", "")) for note in notes])
        return [work.note(note, _ATTEMPT) for note in notes]


class _Work:
    """The redaction of one record: `named` are the addresses that it is about."""

    def __init__(self, redactor: Redactor, named: Iterable[str]) -> None:
        self._redactor = redactor
        self._known: dict[str, str] = {}
        for address in named:
            self._learn(address)
        # Those that are no single word cannot be looked up by word.
        self._odd = [local for local in self._known if not _WORD.fullmatch(local)]

    def _learn(self, address: str) -> None:
        local, at, domain = address.rpartition("@")
        plain = _unquoted(local)
        for name in {local.lower(), plain.lower(), plain.lower().partition("+")[0]}:
            if at and name and name not in ROLES:
                self._known.setdefault(name, self._redactor.local(plain, domain))

    def note(self, note: Mapping[str, Any], shape: _Shape) -> dict[str, Any]:
        parts = shape.parts or {}
        out: dict[str, Any] = {}
        for key, value in note.items():
            if key in shape.left_out:
                continue
            if key in shape.kept:
                out[key] = value
            elif key in shape.addresses:
                out[key] = _each(value, str, self._redactor.address) if _is_address(value) else self.plain(value)
            elif key in parts:
                out[key] = _each(value, dict, partial(self.note, shape=parts[key]), self.plain)
            else:
                out[key] = self.plain(value)
        return out

    def plain(self, value: Any, depth: int = _DEPTH) -> Any:
        """Any value, with its texts redacted."""
        if isinstance(value, str):
            return self.text(value)
        if not isinstance(value, (dict, list)):
            return value
        if not depth:
            return None
        if isinstance(value, list):
            return [self.plain(one, depth - 1) for one in value]
        if "edit" in value and ("name" in value or _EDIT.addresses & value.keys()):
            return self.note(value, _EDIT)
        return {self.text(key): self.plain(one, depth - 1) for key, one in value.items()}

    def text(self, text: str) -> str:
        """Text, with local parts replaced."""
        if "@" in text or "%40" in text:
            text = self._without_addresses(text)
        lower = text.lower()
        if not any(local in lower for local in self._known):
            return text
        for local in self._odd:
            # A hash holds no backslash, so it stands for itself.
            text = re.sub(re.escape(local), self._known[local], text, flags=re.IGNORECASE)
        return _WORD.sub(self._word, text)

    def _word(self, match: re.Match[str]) -> str:
        word = match[0].rstrip(".")
        rest = match[0][len(word) :]
        if match.start() and match.string[match.start() - 1] == "@":
            return match[0]
        lower = word.lower()
        hidden = self._known.get(lower) or self._known.get(lower.partition("+")[0])
        return hidden + rest if hidden else match[0]

    def _without_addresses(self, text: str) -> str:
        """Text with what stands before each ``@`` replaced."""
        out: list[str] = []
        at = 0
        for sign in _AT.finditer(text):
            before = text[at : sign.start()]
            start = _local_start(before)
            local = before[start:]
            end = _domain_end(text, sign.end())
            out.append(before[:start])
            if local and local.lower() not in ROLES:
                local = self._redactor.local(_unquoted(local), text[sign.end() : end])
            out += (local, sign[0])
            at = sign.end()
        return "".join([*out, text[at:]])


def _local_start(before: str) -> int:
    """Where the local part begins that ends where `before` ends. In doubt it begins early: too much is hidden then."""
    if before.endswith('"'):
        return max(0, before.find('"'))
    return 1 + max(before.rfind(mark) for mark in _BEFORE_LOCAL)


_DOMAIN: Final = re.compile(r"\[[^\]\s]{1,100}\]|[\w.-]*\w")


def _domain_end(text: str, at: int) -> int:
    match = _DOMAIN.match(text, at)
    return match.end() if match else at


def _unquoted(local: str) -> str:
    if len(local) > 1 and local[0] == local[-1] == '"':
        return _ESCAPED.sub(r"\1", local[1:-1])
    return local


def _is_address(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _each(
    value: Any, kind: type, change: Callable[[Any], Any], other: Callable[[Any], Any] = lambda value: value
) -> Any:
    """`change` for a value of this kind, or for those in a list; `other` for what is something else."""
    if isinstance(value, list):
        return [change(one) if isinstance(one, kind) else other(one) for one in value]
    return change(value) if isinstance(value, kind) else other(value)


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _at(record: Mapping[str, Any], path: Iterable[str]) -> Any:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _named(record: Mapping[str, Any]) -> Iterator[str]:
    """The addresses that a record is about: of its envelope, and those that verdicts and edits name."""
    yield from _texts(record.get("sender"))
    for note in _list(record, "recipients"):
        if isinstance(note, dict):
            yield from _texts(note.get("address"))
    for note in (*_list(record, "edits"), *_list(record, "verdicts"), *_list(record, "findings")):
        if isinstance(note, dict):
            for key in ("sender", "recipient", "recipients"):
                yield from _texts(note.get(key))
            for edit in _list(note, "edits"):
                if isinstance(edit, dict):
                    yield from _texts(edit.get("sender"))
                    yield from _texts(edit.get("recipient"))


def _texts(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield one
