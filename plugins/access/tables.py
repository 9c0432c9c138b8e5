"""Tables: rules made ready to be looked up. In each the first line that matches decides, however it is found.

Networks are kept by the length of their prefix, so that a look-up is one step for each length in use and not for each
line. Regular expressions and globs are RE2's, whose time is linear in the length of what they are applied to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import re2

from gateway.sdk import NULL_SENDER, Address, Sender
from plugins.access.lines import Rule

SUBJECT_OCTETS: Final = 1_024
"""No address, domain or HELO is longer; whatever else comes is cut."""
MAX_PATTERNS: Final = 5_000
_PATTERN_CHARACTERS: Final = 1_000
_PATTERN_MEMORY: Final = 1 << 19
_BLOCK: Final = 50

_BITS: Final = {4: 32, 6: 128}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_PREFIX = re.compile(r"[0-9]{1,3}\Z")
_OCTETS = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){0,2})\.?\Z")
_MAPPED: Final = 0xFFFF << 32
_WILD: Final = frozenset("*?[]")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked up: its text, the keys under which exact lists may have it, and the client's address."""

    text: str
    keys: tuple[str, ...] = ()
    client: IPAddress | None = None


class Table(Protocol):
    """A list made ready."""

    def find(self, subject: Subject) -> Rule | None:
        """The first rule, in the order of lines, that matches."""


# Subjects


def client_subject(client: IPAddress) -> Subject:
    """The client's address; one of IPv4 in IPv6's clothes is of IPv4."""
    if isinstance(client, ipaddress.IPv6Address):
        client = client.ipv4_mapped or ipaddress.IPv6Address(int(client))
    return Subject(str(client), (), client)


def name_subject(name: str) -> Subject:
    """A host's name, or what it says is its name."""
    name = name.lower().removesuffix(".")
    return Subject(name, tuple(domain_keys(name)))


def address_subject(address: Sender, delimiter: str) -> Subject:
    """A sender or a recipient; `delimiter` begins an extension of the local part, empty for none."""
    if address is NULL_SENDER:
        return Subject("<>", ("<>",))
    local, domain = address.local.lower(), address.ascii_domain
    locals_ = [local]
    base = local.partition(delimiter)[0] if delimiter else ""
    if base and base != local:
        locals_.append(base)
    keys = [f"{part}@{domain}" for part in locals_] + [f"{part}@" for part in locals_]
    return Subject(address.key, (*keys, *domain_keys(domain)))


def domain_keys(domain: str) -> Iterable[str]:
    """The keys under which lists may have a domain: itself, and a dot with each name above it."""
    yield domain
    if not domain.startswith("["):
        at = domain.find(".")
        while at >= 0:
            yield domain[at:]
            at = domain.find(".", at + 1)


# Networks


def parse_network(text: str) -> tuple[int, int, int]:
    """An address or a network as (version, prefix length, number of the network's address)."""
    host, slash, length = text.partition("/")
    version = 6 if ":" in host else 4
    try:
        number = int.from_bytes(socket.inet_pton(_FAMILIES[version], host), "big")
    except (OSError, ValueError):
        zone = ": an address in a list has no zone" if "%" in host else ""
        raise ValueError(f"{text!r} is no address or network{zone}") from None
    bits = _BITS[version]
    prefix = bits
    if slash:
        prefix = int(length) if _PREFIX.match(length) else bits + 1
        if prefix > bits:
            raise ValueError(f"{text!r} has no prefix length from 0 to {bits}")
    if number & ((1 << (bits - prefix)) - 1):
        right = ipaddress.ip_network(text, strict=False)
        raise ValueError(f"{text!r} has host bits set: did you mean {right}?")
    if version == 6 and prefix >= 96 and number >> 32 == _MAPPED >> 32:
        return 4, prefix - 96, number & 0xFFFFFFFF
    return version, prefix, number


def parse_client(text: str) -> tuple[int, int, int]:
    """As `parse_network`, and also ``192.0.2``, the first octets of an address."""
    octets = _OCTETS.match(text)
    if not octets:
        return parse_network(text)
    parts = octets[1].split(".")
    return parse_network(".".join(parts + ["0"] * (4 - len(parts))) + f"/{8 * len(parts)}")


class NetworkTable:
    """Networks; the first line that holds the address decides, not the longest prefix."""

    def __init__(self, rules: Iterable[tuple[tuple[int, int, int], Rule]]) -> None:
        lengths: dict[int, dict[int, dict[int, Rule]]] = {4: {}, 6: {}}
        others: dict[int, dict[tuple[int, int], Rule]] = {4: {}, 6: {}}
        for (version, prefix, number), rule in rules:
            shift = _BITS[version] - prefix
            if rule.negated:
                others[version].setdefault((shift, number >> shift), rule)
            else:
                lengths[version].setdefault(shift, {}).setdefault(number >> shift, rule)
        self._networks = {version: tuple(found.items()) for version, found in lengths.items()}
        # Lines stand in order. Of networks that differ, an address is in one of each length at most: the first negated
        # line that does not hold it is soon found.
        self._others = {
            version: tuple((*key, rule) for key, rule in found.items()) for version, found in others.items()
        }

    def find(self, subject: Subject) -> Rule | None:
        client = subject.client
        if client is None:
            return None
        number = int(client)
        first: Rule | None = None
        for shift, networks in self._networks[client.version]:
            rule = networks.get(number >> shift)
            if rule is not None and (first is None or rule.line < first.line):
                first = rule
        for shift, network, rule in self._others[client.version]:
            if first is not None and rule.line > first.line:
                break
            if number >> shift != network:
                return rule
        return first


# Exact keys


def parse_name(text: str) -> str:
    """A host's name, ``.name`` for those below it, or an address literal."""
    if "@" in text:
        raise ValueError(f"{text!r} is an address, and here are names of hosts")
    return _domain(text)


def parse_address(text: str) -> str:
    """An address, ``user@``, a domain, ``.domain`` for those below it, or ``<>``."""
    if text == "<>":
        return text
    local, at, domain = text.rpartition("@")
    if not at:
        if "." not in text and not text.startswith("["):
            raise ValueError(f"{text!r} is no domain: a local part is written {text}@, a top-level domain .{text}")
        return _domain(text)
    if not local:
        raise ValueError(f"{text!r} has nothing before the @: a domain is written {domain}")
    if _WILD & set(local):
        raise ValueError(_no_wildcard(text))
    return f"{local.lower()}@{_domain(domain) if domain else ''}"


def _domain(text: str) -> str:
    if _WILD & set(text) and not text.startswith("["):
        raise ValueError(_no_wildcard(text))
    dot = "." if text.startswith(".") else ""
    name = Address("", text.removeprefix(".").removesuffix(".")).ascii_domain
    if not name or ".." in name or name.startswith(".") or "/" in name:
        raise ValueError(f"{text!r} is no domain")
    return dot + name


def _no_wildcard(text: str) -> str:
    return f"{text!r} has a wildcard: domains below one are written .example.org; for others there is kind: glob"


class KeyTable:
    """Exact keys; of the lines that name the subject or what it belongs to, the first decides."""

    def __init__(self, rules: Iterable[tuple[str, Rule]]) -> None:
        self._rules: dict[str, Rule] = {}
        for key, rule in rules:
            if rule.negated:
                raise ValueError(f"line {rule.line}: an exact list knows no !")
            self._rules.setdefault(key, rule)

    def find(self, subject: Subject) -> Rule | None:
        found = [rule for key in subject.keys if (rule := self._rules.get(key)) is not None]
        return min(found, key=lambda rule: rule.line) if found else None


# Patterns


def glob_pattern(text: str) -> str:
    """A glob as a regular expression for the whole subject: ``*``, ``?``, ``[abc]``, ``[!a-z]``; ``\\`` escapes."""
    out, at = [r"\A"], 0
    while at < len(text):
        character = text[at]
        end = text.find("]", at + 3 if text[at + 1 : at + 2] == "!" else at + 2)
        if character == "*":
            out.append(".*")
        elif character == "?":
            out.append(".")
        elif character == "[" and end > 0:
            inner = text[at + 1 : end]
            negated = inner.startswith("!")
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[negated:])
            out.append(f"[{'^' if negated else ''}{inner}]")
            at = end
        else:
            if character == "\\" and at + 1 < len(text):
                at += 1
                character = text[at]
            out.append(re2.escape(character))
        at += 1
    return "".join(out) + r"\z"


def _compile(pattern: str) -> Callable[[bytes], object]:
    options = re2.Options()
    options.case_sensitive = False
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY
    search: Callable[[bytes], object] = re2.compile(pattern, options).search
    return search


def compile_pattern(pattern: str) -> Callable[[bytes], object]:
    """The pattern's search. Raises ValueError for what RE2 does not take, such as back references and look-around."""
    if len(pattern) > _PATTERN_CHARACTERS:
        raise ValueError(f"the pattern is longer than {_PATTERN_CHARACTERS} characters")
    try:
        return _compile(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        reason = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"{pattern[:60]!r} is no regular expression of RE2: {reason}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{pattern[:60]!r} is no Unicode text") from None


class PatternTable:
    """Regular expressions, in order.

    They are gathered in blocks with one expression for all of a block, so that a subject which none of them matches is
    passed over at once.
    """

    def __init__(self, rules: Iterable[tuple[str, Rule]], what: str = "line") -> None:
        self._blocks: list[tuple[Callable[[bytes], object] | None, list[tuple[Callable[[bytes], object], Rule]]]] = []
        block: list[tuple[str, Rule]] = []
        count = 0
        for pattern, rule in rules:
            count += 1
            if count > MAX_PATTERNS:
                raise ValueError(f"{what} {rule.line}: more than {MAX_PATTERNS} patterns")
            block.append((pattern, rule))
            if len(block) == _BLOCK:
                self._add(block, what)
                block = []
        if block:
            self._add(block, what)

    def _add(self, block: list[tuple[str, Rule]], what: str) -> None:
        searches: list[tuple[Callable[[bytes], object], Rule]] = []
        for pattern, rule in block:
            try:
                searches.append((compile_pattern(pattern), rule))
            except ValueError as error:
                raise ValueError(f"{what} {rule.line}: {error}") from None
        self._blocks.append((_any_of(block), searches))

    def find(self, subject: Subject) -> Rule | None:
        octets = subject.text.encode("utf-8", "replace")[:SUBJECT_OCTETS]
        for any_of, searches in self._blocks:
            if any_of is not None and any_of(octets) is None:
                continue
            for search, rule in searches:
                if (search(octets) is None) is rule.negated:
                    return rule
        return None


def _any_of(block: list[tuple[str, Rule]]) -> Callable[[bytes], object] | None:
    """One expression that matches where any of the block does; None where it would gain nothing or cannot be made."""
    # A \Q without its \E would quote what comes after it.
    if len(block) < 3 or any(rule.negated or r"\Q" in pattern for pattern, rule in block):
        return None
    try:
        return _compile("|".join(f"(?:{pattern})" for pattern, _ in block))
    except (re2.error, UnicodeEncodeError):
        return None
