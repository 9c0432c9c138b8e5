"""Values laid over each other, each with the place in the file that it came from.

What a case says lies over what its table says, and that over what the file says for all. Mappings are merged key by
key; anything else replaces what was below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.config.problems import Path


@dataclass(slots=True)
class Layer:
    """A value and its place in the file: a mapping as `below`, anything else as `value`."""

    origin: Path
    value: Any = None
    below: dict[str, Layer] | None = None
    size: int = field(default=1, compare=False)
    """How many values it is made of."""

    @classmethod
    def of(cls, value: Any, origin: Path) -> Layer:
        """A value as it stands in the file."""
        if not isinstance(value, dict):
            return cls(origin, value, size=1 + _count(value))
        below = {key: cls.of(inner, (*origin, key)) for key, inner in value.items()}
        return cls(origin, None, below, 1 + sum(layer.size for layer in below.values()))

    @classmethod
    def at(cls, keys: tuple[str, ...], value: Any, origin: Path) -> Layer:
        """A value under these keys, as a column of a table puts it."""
        if not keys:
            return cls.of(value, origin)
        inner = cls.at(keys[1:], value, origin)
        return cls(origin, None, {keys[0]: inner}, inner.size + 1)

    def over(self, other: Layer | None) -> Layer:
        """This one laid over another."""
        if other is None or self.below is None or other.below is None:
            return self
        merged = {**other.below, **{key: layer.over(other.below.get(key)) for key, layer in self.below.items()}}
        return Layer(self.origin, None, merged, self.size + other.size)

    def get(self, key: str) -> Layer | None:
        return self.below.get(key) if self.below is not None else None

    def plain(self) -> Any:
        """The value without places."""
        if self.below is None:
            return self.value
        return {key: layer.plain() for key, layer in self.below.items()}

    def place(self, path: Path) -> Path:
        """Where in the file the value at `path` below stands; parts that lead nowhere are passed over."""
        if self.below is None:
            return (*self.origin, *path)
        for i, part in enumerate(path):
            if isinstance(part, str) and part in self.below:
                return self.below[part].place(path[i + 1 :])
        return self.origin


def _count(value: Any) -> int:
    if isinstance(value, str):
        # A long text is worth many values.
        return len(value) // 64
    if isinstance(value, list):
        return sum(1 + _count(item) for item in value)
    if isinstance(value, dict):
        return sum(1 + _count(item) for item in value.values())
    return 0
