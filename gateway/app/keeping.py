"""What a reload cannot change: keys whose effect is bound to the start, such as sockets and paths."""

from __future__ import annotations

from typing import Any, Final

from gateway.config import Config

FIXED: Final = ("workers", "spool", "state", "admin", "log")
"""Keys of the gateway that take effect at the next start only; beside them, the addresses of `listeners`."""
FIXED_FOR_GUESTS: Final = ("spool", "state", "admin", "log")


def keep(old: Config, new: Config, fixed: tuple[str, ...]) -> tuple[Config, list[str]]:
    """The configuration as it can be in force now, and the keys that need a restart.

    A listener is known by its address; all else about it can change. Where addresses came or went, those that are open
    stay, each as the new file has it, or as the old one had it.
    """
    kept: dict[str, Any] = {key: getattr(old, key) for key in fixed}
    waiting = [name for key in fixed for name in _differing(key, getattr(old, key), getattr(new, key))]
    if "workers" in fixed:
        if [str(one.address) for one in old.listeners] != [str(one.address) for one in new.listeners]:
            waiting.insert(0, "listeners")
            found = {str(one.address): one for one in new.listeners}
            kept["listeners"] = tuple(found.get(str(one.address), one) for one in old.listeners)
    return new.model_copy(update=kept), waiting


def _differing(key: str, old: Any, new: Any) -> list[str]:
    """The keys at or below `key` whose values are not the same."""
    if old == new:
        return []
    fields = getattr(type(old), "model_fields", None)
    if fields is None or type(old) is not type(new):
        return [key]
    return [f"{key}.{name}" for name in fields if getattr(old, name) != getattr(new, name)]
