"""What is going: public names, hooks and options that work for one release more, with a warning.

Each is a `Going` that says since which release it warns, which one is without it, and what to use instead. Names stand
in `NAMES`, hooks in `HOOKS`, options in `OptionsModel.going`. docs/stability.md has the promise to authors, and how to
rename something. A test fails as soon as the version is one that something here was to be gone in.

*Promises*: what is going works as before, and whoever uses it is told, at the place where they do.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

NOTICES: Final = "gateway.sdk.deprecation.notices"
"""Key of pydantic's validation context: the `Notices` that are told of options, in place of a DeprecationWarning."""

_RELEASE: Final = re.compile(r"(\d{1,4})\.(\d{1,4})")
_DEPTH: Final = 32


def _release(text: str) -> tuple[int, int]:
    """Major and minor of a version; raises ValueError."""
    match = _RELEASE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no release such as 0.3")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class Going:
    """One thing that is going: it warns since release `since`, and release `gone_in` is without it.

    `instead` is its new name, empty where there is none. Raises ValueError unless there is a release in between that
    warns.
    """

    since: str
    gone_in: str
    instead: str = ""

    def __post_init__(self) -> None:
        if _release(self.since) >= _release(self.gone_in):
            raise ValueError(f"going since {self.since} and gone in {self.gone_in}: no release would warn")

    def due(self, version: str) -> bool:
        """Whether this version of Gatepost is to be without it."""
        return _release(version) >= _release(self.gone_in)

    def text(self, name: str) -> str:
        """What whoever uses `name` is told."""
        use = f"use {self.instead}" if self.instead else "nothing comes in its place"
        return f"{name} is deprecated since Gatepost {self.since} and gone in {self.gone_in}; {use}"


@dataclass(frozen=True, slots=True)
class OldName(Going):
    """A name of a public module. `gives` is the dotted name of what it gives; without it, `instead` is that."""

    gives: str = ""

    def load(self) -> Any:
        """What the old name stands for."""
        module, _, name = (self.gives or self.instead).rpartition(".")
        return getattr(importlib.import_module(module), name)


NAMES: Final[dict[str, OldName]] = {}
"""By dotted name, such as ``gateway.sdk.Old``."""

HOOKS: Final[dict[str, Going]] = {}
"""By the old name of a method that authors write: a policy's ``on_...``, or one of `Plugin`. `instead` is a method."""


def old_names(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a public module: gives what is in `NAMES`, with a DeprecationWarning for the importer."""

    def find(name: str) -> Any:
        going = NAMES.get(f"{module}.{name}")
        if going is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(going.text(f"{module}.{name}"), DeprecationWarning, stacklevel=2)
        return going.load()

    return find


def adopt_old_hooks(cls: type) -> None:
    """Give a new class's methods that have a name in `HOOKS` their new one. Raises TypeError if it has both."""
    for name in [name for name in vars(cls) if name in HOOKS]:
        going = HOOKS[name]
        where = f"{cls.__module__}.{cls.__qualname__}.{name}"
        if going.instead in vars(cls):
            raise TypeError(f"{where} is the old name of {going.instead}, and both are there")
        # The line to point at is that of the class statement: two calls up, past `__init_subclass__`.
        warnings.warn(going.text(where), DeprecationWarning, stacklevel=3)
        if going.instead:
            setattr(cls, going.instead, vars(cls)[name])
        delattr(cls, name)


@dataclass(frozen=True, slots=True)
class Notice:
    """One option that is going, at `path` in what was validated."""

    path: tuple[str | int, ...]
    message: str


class Notices:
    """What is told, while options are validated, of those that are going; given under `NOTICES` as context."""

    def __init__(self) -> None:
        self._told: list[tuple[Mapping[str, Any], str, str]] = []

    def tell(self, holder: Mapping[str, Any], key: str, message: str) -> None:
        """Note `key` of the mapping `holder`."""
        self._told.append((holder, key, message))

    def within(self, raw: Any) -> tuple[Notice, ...]:
        """All of them, with their places in `raw`, which was validated; each once."""
        found = ((_path(raw, holder, _DEPTH), key, message) for holder, key, message in self._told)
        return tuple(dict.fromkeys(Notice((*(path or ()), key), message) for path, key, message in found))


def _path(raw: Any, holder: Mapping[str, Any], depth: int) -> tuple[str | int, ...] | None:
    """Where in `raw` this very mapping stands; None when a validator has made it."""
    if raw is holder:
        return ()
    if not depth or not isinstance(raw, (Mapping, list, tuple)):
        return None
    for key, value in raw.items() if isinstance(raw, Mapping) else enumerate(raw):
        path = _path(value, holder, depth - 1)
        if path is not None:
            return (key, *path)
    return None


def take_old_options(
    data: Mapping[str, Any], going: Mapping[str, Going], fields: Mapping[str, Any], notices: Notices | None
) -> dict[str, Any]:
    """The options with those that are going under their new names, or, where there is none, left out.

    One that is still among `fields` stays. Raises ValueError when an option is given under both names.
    """
    out = dict(data)
    for key in going.keys() & data.keys():
        message = going[key].text(key)
        if notices is None:
            warnings.warn(message, DeprecationWarning, stacklevel=2)
        else:
            notices.tell(data, key, message)
        if key in fields:
            continue
        value = out.pop(key)
        if new := going[key].instead:
            if new in out:
                raise ValueError(f"{key} is the old name of {new}, and both are given")
            out[new] = value
    return out
