"""The functions that rules may call: those that the library brings, and ours beside them.

Ours are named as Kubernetes and cel-go name theirs. None of them raises, whatever a stranger's text holds. Two of the
library's are replaced under another name: its `matches` makes the pattern anew at each call, and its `size` counts a
text's octets where the language wants characters.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import re2

from policies.rules.types import BOOL, DOUBLE, INT, STRING, Kind, Type, list_of

_PATTERN_MEMORY: Final = 1 << 20
_UPPER: Final = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER: Final = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")

NETWORK: Final = Type(Kind.OBJECT, "network")
MESSAGE: Final = "message"
"""Name of the type whose methods read header fields."""


@dataclass(frozen=True, slots=True)
class Function:
    """One way to call a function: what it takes (the receiver first, where it is a method) and gives.

    `literal` checks its last argument, which must be written out then; it raises ValueError. `native` is the name under
    which the library knows it.
    """

    takes: tuple[frozenset[Kind], ...]
    gives: Type
    native: str
    method: bool = True
    receiver: str = ""
    literal: Callable[[str], object] | None = None


_TEXT: Final = frozenset({Kind.STRING, Kind.ANY})
_NUMBER: Final = frozenset({Kind.INT, Kind.DOUBLE, Kind.ANY})
_OBJECT: Final = frozenset({Kind.OBJECT})


@lru_cache(maxsize=1024)
def pattern(text: str) -> Any:
    """A regular expression. Raises ValueError for what RE2 does not take, such as look-around and back references."""
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.never_capture = True
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"is no regular expression of RE2: {reason}") from None


@lru_cache(maxsize=1024)
def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network in CIDR form. Raises ValueError."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"is no network: {error}") from None


def _matches(text: str, regex: str) -> bool:
    return pattern(regex).search(text) is not None


def _contains_ip(cidr: str, text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address) in network(cidr)


FUNCTIONS: Final[dict[str, tuple[Function, ...]]] = {
    "contains": (Function((_TEXT, _TEXT), BOOL, "contains"),),
    "startsWith": (Function((_TEXT, _TEXT), BOOL, "startsWith"),),
    "endsWith": (Function((_TEXT, _TEXT), BOOL, "endsWith"),),
    "matches": (Function((_TEXT, _TEXT), BOOL, "re2_match", literal=pattern),),
    "lowerAscii": (Function((_TEXT,), STRING, "lowerAscii"),),
    "upperAscii": (Function((_TEXT,), STRING, "upperAscii"),),
    "trim": (Function((_TEXT,), STRING, "trim"),),
    "size": (
        Function((_TEXT - {Kind.ANY},), INT, "text_size"),
        Function((_TEXT - {Kind.ANY},), INT, "text_size", method=False),
        Function((frozenset({Kind.LIST, Kind.MAP, Kind.ANY}),), INT, "size"),
        Function((frozenset({Kind.LIST, Kind.MAP, Kind.ANY}),), INT, "size", method=False),
    ),
    "string": (Function((_NUMBER | _TEXT,), Type(Kind.STRING, size=32), "string", method=False),),
    "int": (Function((_NUMBER,), INT, "int", method=False),),
    "double": (Function((_NUMBER,), DOUBLE, "double", method=False),),
    "cidr": (Function((_TEXT,), NETWORK, "cidr", method=False, literal=network),),
    "containsIP": (Function((_OBJECT, _TEXT), BOOL, "containsIP", receiver="network"),),
    "first": (Function((_OBJECT, _TEXT), STRING, "first", receiver=MESSAGE),),
    "all": (Function((_OBJECT, _TEXT), list_of(STRING), "all", receiver=MESSAGE),),
}
"""By the name that rules call them by."""

MACROS: Final = {"all": 2, "exists": 2, "exists_one": 2, "filter": 2, "map": 2}
"""Methods of lists that take a variable and what is asked of each item."""

CALLABLES: Final[dict[str, Callable[..., Any]]] = {
    "re2_match": _matches,
    "text_size": len,
    "lowerAscii": lambda text: text.translate(_LOWER),
    "upperAscii": lambda text: text.translate(_UPPER),
    "trim": str.strip,
    "cidr": lambda text: text,
    "containsIP": _contains_ip,
}
"""Ours by the name under which the library is given them; those of the message are made with it."""
