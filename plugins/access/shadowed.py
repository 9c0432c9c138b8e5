"""Lines that never match since earlier ones take all that they are about: for `gatepost lint`.

In a list the first line that matches decides. Who comes from Postfix, where the longest name is looked for first,
writes the exception below the rule; here it is never reached.

*Promises*: a line that is called hidden is. Of regular expressions and globs, only those that match everything and
repetitions are known to hide others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from plugins.access.lines import Rule
from plugins.access.tables import KeyTable, Subject, domain_keys, parse_client, parse_network

Network = tuple[int, int, int]

_BITS: Final = {4: 32, 6: 128}
_EVERYTHING: Final = {"regexp": frozenset({"", "^", ".", ".*", "^.", "^.*", "^.*$"}), "glob": frozenset({"*"})}


def hidden_networks(rules: Iterable[Rule], parse: Callable[[str], Network]) -> Iterator[tuple[Rule, Rule]]:
    """Lines of networks, each with the earlier line that holds all of it."""
    known: dict[int, dict[int, dict[int, Rule]]] = {4: {}, 6: {}}
    for rule in rules:
        if rule.negated:
            continue
        version, prefix, number = parse(rule.pattern)
        earlier = (
            found
            for length, networks in known[version].items()
            if length <= prefix and (found := networks.get(number >> (_BITS[version] - length)))
        )
        if (first := min(earlier, key=lambda found: found.line, default=None)) is not None:
            yield rule, first
        else:
            known[version].setdefault(prefix, {})[number >> (_BITS[version] - prefix)] = rule


def hidden_keys(rules: Iterable[Rule], parse: Callable[[str], str]) -> Iterator[tuple[Rule, Rule]]:
    """Lines of exact keys, each with the earlier line that matches whatever it does."""
    read = [(parse(rule.pattern), rule) for rule in rules]
    table = KeyTable(read)
    for key, rule in read:
        first = table.find(Subject(key, tuple(_common(key))))
        if first is not None and first.line < rule.line:
            yield rule, first


def _common(key: str) -> Iterator[str]:
    """The keys that everything has which this one matches."""
    local, at, domain = key.rpartition("@")
    if not at:
        yield from domain_keys(key)
        return
    yield key
    if domain and local:
        yield f"{local}@"
        yield from domain_keys(domain)


def hidden_patterns(rules: Iterable[Rule], kind: str) -> Iterator[tuple[Rule, Rule]]:
    """Patterns after one that matches everything, and those that stand there twice."""
    known: dict[tuple[str, bool], Rule] = {}
    everything: Rule | None = None
    for rule in rules:
        first = known.setdefault((rule.pattern, rule.negated), rule)
        if everything is not None or first is not rule:
            yield rule, everything or first
        elif takes_all(rule, kind):
            everything = rule


def takes_all(rule: Rule, kind: str) -> bool:
    """Whether this pattern of `kind` ``regexp`` or ``glob`` matches everything."""
    return not rule.negated and rule.pattern in _EVERYTHING[kind]


def all_networks(rules: Sequence[Rule], parse: Callable[[str], Network]) -> Rule | None:
    """The line with which every address of both families has been matched; None when some are left."""
    seen: set[int] = set()
    for rule in rules:
        version, prefix, _ = parse(rule.pattern)
        if not rule.negated and prefix == 0:
            seen.add(version)
            if len(seen) == len(_BITS):
                return rule
    return None


NETWORK_PARSERS: Final = {"cidr": parse_network, "exact": parse_client}
