"""What `gatepost explain --json` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def found(explained: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Every finding of that kind anywhere in what `gatepost explain --json` gave."""
    if isinstance(explained, dict):
        if explained.get("finding") == kind:
            yield explained["value"]
        for value in explained.values():
            yield from found(value, kind)
    elif isinstance(explained, list):
        for value in explained:
            yield from found(value, kind)
