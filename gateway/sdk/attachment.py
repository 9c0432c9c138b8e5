"""What is attached to a message, and what is inside of that: a finding of what files there are, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from gateway.sdk.findings import Finding

_SHOWN: Final = 100
_SHOWN_NAMES: Final = 5
_SHOWN_NAME: Final = 500
_CUT: Final = "…"


class Flaw(StrEnum):
    """What is wrong with an archive, or why it was not looked through (the first six)."""

    TOO_DEEP = "too-deep"
    TOO_MANY = "too-many"
    TOO_LARGE = "too-large"
    RATIO = "ratio"
    """It unpacks to many times its size."""
    OVERLAP = "overlap"
    """Members share octets, which only bombs have a use for."""
    TOO_SLOW = "too-slow"
    BROKEN = "broken"
    """It cannot be read to its end."""
    UNSUPPORTED = "unsupported"
    """A way of packing that is not known here."""
    DUPLICATE_NAME = "duplicate-name"
    NAME_MISMATCH = "name-mismatch"
    """A member has another name, or another kind of packing, where it stands than in the directory."""
    SIZE_MISMATCH = "size-mismatch"
    """A member unpacks to another size than it says."""
    UNSAFE_PATH = "unsafe-path"
    LEADING_DATA = "leading-data"
    TRAILING_DATA = "trailing-data"
    HIDDEN_MEMBER = "hidden-member"
    """A member that the directory does not name."""

    @property
    def limit(self) -> bool:
        """Whether it means that an archive was not looked through."""
        return self in _LIMITS


_LIMITS: Final = frozenset({Flaw.TOO_DEEP, Flaw.TOO_MANY, Flaw.TOO_LARGE, Flaw.RATIO, Flaw.OVERLAP, Flaw.TOO_SLOW})


@dataclass(frozen=True, slots=True)
class Attachment:
    """One file: attached, or a member of an archive that is.

    `name` is the file name as most readers show it, `names` all that they may show, and `extensions` how these end, in
    lower case and without the dot. `declared` is the type that the message says (empty within archives), `type` the one
    that its content has, empty where that is not known. `size` is in octets, unpacked; `sha256` in hexadecimal, empty
    when it could not be unpacked to the end. `section` is its part of the message and `inside` the names of the
    archives around it, the outermost first.

    `encrypted` needs a password; `macro` brings program code with a document; `opaque` is an archive or an image of a
    disk that was not looked through; `executable` is a program by its content; `double_extension` is a name that is
    made to look like another kind of file.
    """

    name: str
    type: str = ""
    declared: str = ""
    extensions: tuple[str, ...] = ()
    size: int = 0
    sha256: str = ""
    section: str = ""
    inside: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    encrypted: bool = False
    macro: bool = False
    opaque: bool = False
    executable: bool = False
    double_extension: bool = False
    flaws: tuple[Flaw, ...] = ()

    def __post_init__(self) -> None:
        # A record leaves out what is only the name once more, and when it is read back it is there again.
        if not self.names:
            object.__setattr__(self, "names", (self.name,))

    def to_json(self) -> dict[str, Any]:
        """What a record says of it: what is empty is left out, and `names` where there is only `name`."""
        out: dict[str, Any] = {"name": self.name[:_SHOWN_NAME], "section": self.section, "size": self.size}
        for key in ("type", "declared", "sha256"):
            if value := getattr(self, key):
                out[key] = value
        if self.extensions:
            out["extensions"] = list(self.extensions)
        if self.names != (self.name,):
            out["names"] = [name[:_SHOWN_NAME] for name in self.names[:_SHOWN_NAMES]]
        if self.inside:
            out["inside"] = [name[:_SHOWN_NAME] for name in self.inside]
        for key in ("encrypted", "macro", "opaque", "executable", "double_extension"):
            if getattr(self, key):
                out[key] = True
        if self.flaws:
            out["flaws"] = [flaw.value for flaw in self.flaws]
        return out


@dataclass(frozen=True, slots=True)
class Attachments(Finding):
    """All files of a message, each archive followed by what is inside of it. `complete` says that all was looked at."""

    items: tuple[Attachment, ...] = ()
    complete: bool = True

    @property
    def flaws(self) -> tuple[Flaw, ...]:
        """Those of all files, each once, in the order of `Flaw`."""
        found = {flaw for item in self.items for flaw in item.flaws}
        return tuple(flaw for flaw in Flaw if flaw in found)

    def to_json(self) -> dict[str, Any]:
        """All, or of more than a hundred files the first hundred, and a mark."""
        more = [_CUT] if len(self.items) > _SHOWN else []
        return {"complete": self.complete, "items": [*(item.to_json() for item in self.items[:_SHOWN]), *more]}
