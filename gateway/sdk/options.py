"""Option types with units, for plugins, policies and Gatepost's own configuration.

``Duration`` is seconds as a float and reads ``500ms``, ``30s``, ``5m``, ``2h``, ``5d``; ``Size`` is octets and reads
``64KiB``, ``25MiB``, ``1GiB`` or ``10MB``. A bare whole number is no duration, except 0: the unit must be said. As a
size it is octets. Nothing here is negative or endless.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)

from gateway.sdk.deprecation import NOTICES, Going, old_names, take_old_options

__all__ = [
    "Duration",
    "LocalParts",
    "OptionError",
    "OptionProblem",
    "OptionsModel",
    "Size",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_size",
]

if not TYPE_CHECKING:
    # Type checkers shall know only the names that are here.
    __getattr__ = old_names(__name__)

_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(ms|s|m|h|d)\Z")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(B|KiB|MiB|GiB|kB|MB|GB)\Z")
_SIZE_UNITS: Final = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
}


def parse_duration(value: Any) -> float:
    """Seconds from ``5m`` and the like; raises ValueError with the forms that are understood."""
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 30s, 5m or 2h")
    if value == 0 or isinstance(value, float):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError("a duration is neither negative nor endless")
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a duration with its unit: 500ms, 30s, 5m, 2h or 5d")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size(value: Any) -> int:
    """Octets from ``25MiB`` and the like; raises ValueError with the forms that are understood."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("expected a size with its unit: 100B, 64KiB, 25MiB, 1GiB (or kB, MB, GB)")
    return int(match[1]) * _SIZE_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest exact form of a duration."""
    for unit in ("d", "h", "m", "s"):
        size = _DURATION_UNITS[unit]
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return "0s" if not seconds else f"{round(seconds * 1000)}ms"


def format_size(octets: int) -> str:
    """The shortest exact form of a size."""
    for unit in ("GiB", "MiB", "KiB"):
        if octets and octets % _SIZE_UNITS[unit] == 0:
            return f"{octets // _SIZE_UNITS[unit]}{unit}"
    return f"{octets}B"


Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration, when_used="json")]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size, when_used="json")]

LocalParts = Annotated[
    frozenset[str],
    AfterValidator(lambda parts: frozenset(part.lower() for part in parts)),
    PlainSerializer(sorted, return_type=list[str], when_used="json"),
]
"""Local parts of addresses, compared without regard to case."""


class OptionsModel(BaseModel):
    """Base of everything that is read from the configuration file: frozen, and unknown keys are refused.

    `sole` names the option that a bare list in place of the mapping stands for; without it a list is refused. `going`
    has deprecated options, by their old name: they are taken for one release more, and whoever set them is told.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    sole: ClassVar[str] = ""
    going: ClassVar[Mapping[str, Going]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take_old_options(cls, data: Any, info: ValidationInfo) -> Any:
        if not cls.going or not isinstance(data, Mapping):
            return data
        return take_old_options(data, cls.going, cls.model_fields, (info.context or {}).get(NOTICES))


@dataclass(frozen=True, slots=True)
class OptionProblem:
    """One wrong option. `path` is its place in the options; `offset` the character of its text, from 0, where one is
    meant."""

    path: tuple[str | int, ...]
    message: str
    offset: int | None = None


class OptionError(Exception):
    """Options are wrong, for reasons that their own validation cannot see: `problems` has all of them, each with its
    place. For constructors of plugins and policies, and for `Policy.wire`."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[OptionProblem] = []

    def __str__(self) -> str:
        return "; ".join(problem.message for problem in self.problems)

    def add(self, path: tuple[str | int, ...], message: str, offset: int | None = None) -> None:
        """Note one more problem."""
        self.problems.append(OptionProblem(path, message, offset))

    def raise_if_any(self) -> None:
        """Raise this error unless all is well."""
        if self.problems:
            raise self
