"""The edits of a decision record as a diff, for people: what was taken out, and what was put in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text
from rich.tree import Tree

from gateway.cli.output import text

_REMOVED, _ADDED = "red", "green"


def show_edits(edits: list[Any]) -> Tree:
    """All edits, in the order in which they were made."""
    tree = Tree(text("edits", "bold"))
    for edit in edits:
        for line in _lines(edit) if isinstance(edit, dict) else ():
            tree.add(line)
    return tree


def _lines(edit: dict[str, Any]) -> Iterator[Text]:
    kind, name = str(edit.get("edit", "?")), str(edit.get("name", "?"))
    match kind:
        case "ReplaceBody":
            old, new = edit.get("old_size"), edit.get("size", "?")
            yield text(f"- body of {old} octets" if isinstance(old, int) else "- body", _REMOVED)
            change = f" ({new - old:+d})" if isinstance(old, int) and isinstance(new, int) else ""
            yield text(f"+ body of {new} octets{change}", _ADDED)
        case "AddHeader":
            yield text(f"+ {name}: {_value(edit)}", _ADDED)
        case "ChangeHeader":
            yield from _removed(edit, name)
            if edit.get("was") != []:
                yield text(f"+ {name}: {_value(edit)}", _ADDED)
        case "DeleteHeader":
            yield from _removed(edit, name)
        case "ChangeSender":
            yield text(f"+ sender {edit.get('sender', '?')}", _ADDED)
        case "AddRecipient":
            yield text(f"+ recipient {edit.get('recipient', '?')}", _ADDED)
        case "DeleteRecipient":
            yield text(f"- recipient {edit.get('recipient', '?')}", _REMOVED)
        case "Redirect":
            yield text("- all recipients", _REMOVED)
            yield text(f"+ recipient {edit.get('recipient', '?')}", _ADDED)
        case "Reroute":
            yield text(f"+ next hop {edit.get('next_hop', '?')}", _ADDED)
        case "Prioritize":
            yield text(f"+ priority {edit.get('priority', '?')}", _ADDED)
        case _:
            yield text(kind)


def _value(edit: dict[str, Any]) -> str:
    return str(edit["value"]) if "value" in edit else "(redacted)"


def _removed(edit: dict[str, Any], name: str) -> Iterator[Text]:
    """The fields that went, or which ones were meant where the record does not have them."""
    was = edit.get("was")
    if isinstance(was, list):
        for value in was:
            yield text(f"- {name}: {value}", _REMOVED)
        if not was:
            yield text(f"  {name}: there was none")
        return
    nth = edit.get("nth")
    yield text(f"- {name}{f' #{nth}' if nth else ', all of them' if nth == 0 else ''}", _REMOVED)
