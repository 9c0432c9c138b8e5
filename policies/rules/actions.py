"""What a rule does when it matches, as written under `then`: read once, and carried out on what the hook was given.

*Fails by*: ValueError when it is read, so that no reply, address or header field is found wrong when mail comes.

*RFCs*: 5321 section 4.2 (reply codes), 3463 section 2 (enhanced status codes).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.sdk import (
    Action,
    Edit,
    Message,
    Priority,
    Reply,
    Reroute,
    Stage,
    Transaction,
    Verdict,
    When,
)
from gateway.sdk.actions import (
    add_header,
    bcc,
    check_tag,
    delete_header,
    mailbox,
    prioritize,
    redirect,
    set_header,
    tag_subject,
)

ACTIONS: Final = 20
"""Actions of one rule."""
_NOTE: Final = 200
_WIRE: Final = 400
_REPLY: Final = re.compile(
    r"(?:(?P<code>[0-9]{3})[ -]+)?(?:(?P<digit>[0-9])\.(?P<detail>[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z))?(?P<text>.*)\Z"
)
_PRINTABLE: Final = re.compile(r"[ -~]*\Z")
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_HOP: Final = re.compile(
    rf"(?:smtp|lmtp):(?:\[([0-9A-Fa-f:.]+)\]|(?=[^:]{{1,253}}:){_LABEL}(?:\.{_LABEL})*\.?):([0-9]{{1,5}})\Z"
)

Given = Mapping[type, Any]


@dataclass(frozen=True, slots=True)
class Effect:
    """One action. Either it decides (`action`, with its reply), or `edits` makes edits, or it ends the rules (`stop`).

    `needs` is what the edits are made from; `note` goes into the record.
    """

    name: str
    action: Action | None = None
    reply: Reply | None = None
    when: When = When.ALWAYS
    note: str = ""
    stop: bool = False
    needs: type | None = None
    edits: Callable[[Any], tuple[Edit, ...]] | None = None

    @property
    def decides(self) -> bool:
        return self.action is not None or self.stop

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where it can be carried out; none means everywhere. What is made from the whole message waits for it."""
        return (Stage.MESSAGE,) if self.needs is not None else ()


@dataclass(frozen=True, slots=True)
class Then:
    """All that a matching rule does: edits, and at most one decision."""

    effects: tuple[Effect, ...]

    @property
    def decision(self) -> Effect | None:
        return next((effect for effect in self.effects if effect.decides), None)

    @property
    def needs(self) -> set[type]:
        return {effect.needs for effect in self.effects if effect.needs is not None}

    def edits(self, given: Given) -> tuple[Edit, ...]:
        """The edits of all its actions, in order."""
        out: tuple[Edit, ...] = ()
        for effect in self.effects:
            if effect.edits is not None:
                out += effect.edits(given[effect.needs] if effect.needs is not None else None)
        return out


def verdict(effect: Effect, reason: str, edits: tuple[Edit, ...]) -> Verdict:
    """The verdict of a decision. Edits are of use only where the message is kept, as it may be after a defer that waits
    for what others say."""
    action = effect.action or Action.PROCEED
    kept = action in (Action.PROCEED, Action.ACCEPT, Action.QUARANTINE) or effect.when is not When.ALWAYS
    said = f"{reason}: {effect.note}" if effect.note else reason
    return Verdict(action, effect.reply, said, edits if kept else (), when=effect.when)


def read(written: Any) -> Then:
    """Read what stands under `then`: the name of an action, a mapping of actions to what they take, or a list of both.

    Raises ValueError.
    """
    effects = tuple(effect for name, value in _pairs(written) for effect in _read(name, value))
    if not effects:
        raise ValueError("says nothing to do")
    if len(effects) > ACTIONS:
        raise ValueError(f"has more than {ACTIONS} actions")
    deciding = [effect.name for effect in effects if effect.decides]
    if len(deciding) > 1:
        raise ValueError(f"decides twice: {deciding[0]} and {deciding[1]}")
    decision = next((effect for effect in effects if effect.decides), None)
    if decision and decision.action in _THROWN and len(effects) > 1:
        raise ValueError(f"{decision.name} leaves no message to change")
    return Then(effects)


_THROWN: Final = (Action.REJECT, Action.DEFER, Action.DISCARD, Action.DISCONNECT)


def _pairs(written: Any) -> Iterator[tuple[str, Any]]:
    for item in written if isinstance(written, list) else [written]:
        if isinstance(item, str):
            yield item, None
        elif isinstance(item, Mapping) and item:
            yield from item.items()
        else:
            raise ValueError("expected the name of an action, or a mapping of actions to what they take")


def _read(name: str, value: Any) -> tuple[Effect, ...]:
    reader = _READERS.get(name)
    if reader is None:
        raise ValueError(f"{name} is no action; there are {', '.join(_READERS)}")
    try:
        return reader(name, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


_Reader = Callable[[str, Any], tuple[Effect, ...]]


def _refusal(action: Action, code: int, detail: str, when: When = When.ALWAYS) -> _Reader:
    """Reads ``5.7.1 text``, ``550 5.7.1 text`` or ``text``."""

    def reader(name: str, value: Any) -> tuple[Effect, ...]:
        text = _line(value, "the reply's text")
        match = _REPLY.match(text)
        if match is None or not match["text"]:
            raise ValueError("a reply has a text, such as '5.7.1 not accepted'")
        if len(match["text"]) > _WIRE or not _PRINTABLE.match(text):
            raise ValueError(f"a reply's text has at most {_WIRE} printable ASCII characters")
        wanted = int(match["code"] or code)
        digit = match["digit"]
        if match["code"] is None and digit and digit != str(code)[0] and action is Action.DISCONNECT:
            wanted = 554
        if digit and digit != str(wanted)[0]:
            raise ValueError(f"the status {digit}.{match['detail']} does not fit the code {wanted}")
        reply = Reply(wanted, match["detail"] or detail, match["text"])
        made = Verdict(action, reply, when=when)
        return (Effect(name, action, made.reply, when),)

    return reader


def _plain(action: Action | None) -> _Reader:
    """Takes nothing, or a note for the record."""

    def reader(name: str, value: Any) -> tuple[Effect, ...]:
        note = "" if value is None else _line(value, "a note for the record")
        if len(note) > _NOTE:
            raise ValueError(f"a note has at most {_NOTE} characters")
        return (Effect(name, action, note=note, stop=action is None),)

    return reader


def _line(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"expected {what}, in one line")
    return value.strip()


def _tag(name: str, value: Any) -> tuple[Effect, ...]:
    tag = check_tag(_line(value, "what to put before the subject"))

    def edits(message: Message) -> tuple[Edit, ...]:
        return tag_subject(message, tag)

    return (Effect(name, needs=Message, edits=edits),)


def _headers(make: Callable[[str, str], tuple[Edit, ...]]) -> _Reader:
    def reader(name: str, value: Any) -> tuple[Effect, ...]:
        if not isinstance(value, Mapping) or not value:
            raise ValueError("expected a mapping of header fields to their values")
        made: list[tuple[Edit, ...]] = []
        for field, content in value.items():
            if not isinstance(content, str):
                raise ValueError(f"the value of {field} must be text")
            made.append(make(str(field), content))
        return tuple(_fixed(name, edits) for edits in made)

    return reader


def _delete(name: str, value: Any) -> tuple[Effect, ...]:
    out = []
    for field in _names(value, "the name of a header field"):
        add_header(field, "")
        out.append(_fixed(name, delete_header(field)))
    return tuple(out)


def _redirect(name: str, value: Any) -> tuple[Effect, ...]:
    to = mailbox(_line(value, "an address"))

    def edits(txn: Transaction) -> tuple[Edit, ...]:
        return redirect(txn, to)

    return (Effect(name, needs=Transaction, edits=edits),)


def _bcc(name: str, value: Any) -> tuple[Effect, ...]:
    return (_fixed(name, bcc(*(mailbox(address) for address in _names(value, "an address")))),)


def _reroute(name: str, value: Any) -> tuple[Effect, ...]:
    hop = _line(value, "a next hop")
    match = _HOP.match(hop)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError("expected a next hop such as smtp:host:25 or lmtp:[2001:db8::1]:24")
    if match[1]:
        ipaddress.ip_address(match[1])
    return (_fixed(name, (Reroute(hop),)),)


def _priority(name: str, value: Any) -> tuple[Effect, ...]:
    if value not in tuple(Priority):
        raise ValueError(f"expected {', '.join(Priority)}")
    return (_fixed(name, prioritize(Priority(value))),)


def _names(value: Any, what: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"expected {what}")
    return [_line(one, what) for one in values]


def _fixed(name: str, edits: tuple[Edit, ...]) -> Effect:
    """An action whose edits are the same for every message."""
    return Effect(name, edits=lambda _: edits)


_READERS: Final[dict[str, _Reader]] = {
    "reject": _refusal(Action.REJECT, 550, "7.1"),
    "defer": _refusal(Action.DEFER, 451, "7.1"),
    "defer_if_permit": _refusal(Action.DEFER, 451, "7.1", When.IF_PERMIT),
    "defer_if_reject": _refusal(Action.DEFER, 451, "7.1", When.IF_REJECT),
    "disconnect": _refusal(Action.DISCONNECT, 421, "7.0"),
    "accept": _plain(Action.ACCEPT),
    "discard": _plain(Action.DISCARD),
    "quarantine": _plain(Action.QUARANTINE),
    "proceed": _plain(None),
    "tag_subject": _tag,
    "add_header": _headers(add_header),
    "set_header": _headers(set_header),
    "delete_header": _delete,
    "redirect": _redirect,
    "bcc": _bcc,
    "reroute": _reroute,
    "priority": _priority,
}
"""By the name of the action."""

NAMES: Final = tuple(_READERS)
