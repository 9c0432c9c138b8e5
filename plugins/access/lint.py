"""What access lists say of themselves to `gatepost lint`: on what ground they accept, and what is never reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gateway.sdk import AccessAction, Action, Stage, read_file
from gateway.sdk.lint import Check, Remark, Severity, Trust, Way
from plugins.access.lines import Rule, logical_lines, numbered
from plugins.access.shadowed import (
    NETWORK_PARSERS,
    all_networks,
    hidden_keys,
    hidden_networks,
    hidden_patterns,
    takes_all,
)
from plugins.access.tables import parse_address, parse_name

if TYPE_CHECKING:
    from plugins.access.plugin import AccessOptions, ListOptions

UNREADABLE: Final = Check("access/file", Severity.ERROR, "a list's file cannot be read")
HIDDEN: Final = Check("access/hidden-line", Severity.WARNING, "a line never matches, since an earlier one does")
UNREACHED: Final = Check("access/unreached-list", Severity.WARNING, "a list is never looked at: an earlier one decides")
CHECKS: Final = (UNREADABLE, HIDDEN, UNREACHED)

_SHOWN: Final = 10
_LINES: Final = 20_000
"""Lines of a file that are looked at; what is hidden in longer ones is nothing that anybody wrote."""
_TRUST: Final = {
    "client": Trust.EVIDENCE,
    "name": Trust.EVIDENCE,
    "helo": Trust.CLAIM,
    "sender": Trust.CLAIM,
    "recipient": Trust.RECIPIENT,
}
_UNDECIDED: Final = (AccessAction.OK, AccessAction.DUNNO, AccessAction.NONE)


def remarks(options: AccessOptions, limit: int) -> Iterator[Remark]:
    """What is wrong with the lists. Files have `limit` octets at most."""
    decided = -1
    for place, listed in enumerate(options.lists):
        if decided >= 0:
            yield Remark(
                UNREACHED,
                ("lists", place),
                f"list {decided + 1} of this entry decides about everybody, so list {place + 1} is never looked at",
                "whoever stands in it is treated as all others are",
                f"put it before list {decided + 1}",
            )
            continue
        try:
            rules = _rules(listed, limit)
        except (OSError, ValueError) as error:
            where = listed.file or ""
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            yield Remark(
                UNREADABLE,
                ("lists", place, "file"),
                f"{where}: {what}",
                "Gatepost does not start, or a reload is refused",
                "mend the file, or the path; relative ones begin where Gatepost is started",
            )
            continue
        yield from _hidden(listed, place, rules[:_LINES])
        end = _end(listed, rules)
        if end is not None and not any(rule.result.action is AccessAction.DUNNO for rule in rules):
            decided = place


def ways(options: AccessOptions, limit: int) -> Iterator[Way]:
    """Where the lists accept, and whether they decide about everybody. Files that cannot be read say nothing."""
    stage = Stage(options.at)
    open_ended = False
    for place, listed in enumerate(options.lists):
        try:
            rules = _rules(listed, limit)
        except (OSError, ValueError):
            # `remarks` says so.
            return
        accepting = next((rule for rule in rules if rule.result.action is AccessAction.ACCEPT), None)
        if accepting is not None:
            what = f"{listed.match} {accepting.pattern}"
            yield Way(stage, Action.ACCEPT, _TRUST[listed.match.value], path=_path(listed, place, accepting), what=what)
        end = _end(listed, rules)
        upto = rules if end is None else rules[: rules.index(end) + 1]
        open_ended = open_ended or any(rule.result.action in _UNDECIDED for rule in upto)
        if end is not None and not open_ended:
            yield Way(stage, Action(end.result.action.value), always=True, path=_path(listed, place, end))
            return


def _rules(listed: ListOptions, limit: int) -> list[Rule]:
    """A list's rules; also checks them as a table would. Raises OSError and ValueError."""
    if not listed.file:
        return list(listed.rules(numbered(listed.entries), "entry"))

    def parse(data: bytes) -> list[Rule]:
        listed.from_file(data)
        return list(listed.rules(logical_lines(data)))

    return read_file(listed.file, parse, limit=limit).value


def _path(listed: ListOptions, place: int, rule: Rule) -> tuple[str | int, ...]:
    """Where a rule stands in the configuration; for one of a file, the file's name does."""
    return ("lists", place, "file") if listed.file else ("lists", place, "entries", rule.line - 1)


def _hidden(listed: ListOptions, place: int, rules: list[Rule]) -> Iterator[Remark]:
    for count, (rule, earlier) in enumerate(_pairs(listed, rules)):
        if count >= _SHOWN:
            return
        what = "line" if listed.file else "entry"
        where = f" of {listed.file}" if listed.file else ""
        yield Remark(
            HIDDEN,
            _path(listed, place, rule),
            f"{what} {rule.line}{where} ({rule.pattern}) never matches: {what} {earlier.line} ({earlier.pattern}) does",
            f"who fits {rule.pattern} is treated as {earlier.pattern} says",
            "put exceptions before the rule: the first line that matches decides",
        )


def _pairs(listed: ListOptions, rules: list[Rule]) -> Iterator[tuple[Rule, Rule]]:
    match listed.kind.value, listed.match.value:
        case ("cidr", _) | ("exact", "client"):
            return hidden_networks(rules, NETWORK_PARSERS[listed.kind.value])
        case ("exact", "name" | "helo"):
            return hidden_keys(rules, parse_name)
        case ("exact", _):
            return hidden_keys(rules, parse_address)
    return hidden_patterns(rules, listed.kind.value)


def _end(listed: ListOptions, rules: list[Rule]) -> Rule | None:
    """The line with which the list has said something about everybody; None when it has not."""
    kind, match = listed.kind.value, listed.match.value
    if match == "client" and kind in NETWORK_PARSERS:
        return all_networks(rules, NETWORK_PARSERS[kind])
    if kind == "exact" or match == "name":
        # Where DNS does not answer, no line about a name matches.
        return None
    return next((rule for rule in rules if takes_all(rule, kind)), None)
