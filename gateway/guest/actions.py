"""Rulings as actions of Postfix's access(5), which is what a policy server answers.

Postfix takes one action for each answer. So whatever else is to be done with the message waits for the next request
about it, and what no request came for is left out, which is logged and recorded.

*Promises*: relay control is Postfix's: without `ok` nothing is ever permitted here, only not objected to. An answer is
one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gateway.guest.request import State
from gateway.guest.ruling import Ruling
from gateway.mail.edit import (
    END,
    AddHeader,
    AddRecipient,
    Edit,
    Redirect,
    Reroute,
    edit_json,
)
from gateway.mail.reply import Reply
from gateway.sdk.verdict import Action, When
from gateway.transport.routing import parse_next_hop
from gateway.transport.transport import Kind

DUNNO: Final = "DUNNO"
TROUBLE: Final = "DEFER_IF_PERMIT 4.3.0 try again later"
"""What is answered when something of ours failed."""

_LINE: Final = 2000
"""Octets of an action; Postfix reads lines of 2048 (``line_length_limit``)."""
_TEXT: Final = 400
_HANG_UP: Final = frozenset({421, 521})
_BEFORE_MAIL: Final = frozenset({State.CONNECT, State.HELO})


@dataclass(slots=True)
class Owed:
    """What Postfix is still to be told about a message, in the order in which it was decided.

    `bcc` says that it was told of one more recipient, which Postfix remembers only one of.
    """

    discard: str = ""
    hold: str = ""
    edits: dict[Edit, None] = field(default_factory=dict)
    made: dict[Edit, None] = field(default_factory=dict)
    bcc: bool = False
    _told: set[str] = field(default_factory=set)

    def take(self, edits: Iterable[Edit]) -> None:
        """Add edits; equal ones are made once."""
        self.edits.update((edit, None) for edit in edits if edit not in self.made)

    def next(self, state: State) -> str:
        """The next action that can be told in this state, or an empty text."""
        if state in _BEFORE_MAIL:
            # Postfix skips these actions then: there is no message yet.
            return ""
        for name, reason in (("DISCARD", self.discard), ("HOLD", self.hold)):
            # After RSET Postfix has forgotten it, and asks as if about the same message. To say it twice does no harm.
            if reason and (name not in self._told or state is State.MAIL):
                self._told.add(name)
                return f"{name} {_one_line(reason)}"
        if self.discard:
            return ""
        for edit in self.edits:
            if action := self._action(edit, state):
                self._done(edit)
                return action
        return ""

    def unsaid(self) -> list[str]:
        """What nobody could be told, in words."""
        if self.discard and "DISCARD" not in self._told:
            return [f"discard: {self.discard}"]
        held = [f"quarantine: {self.hold}"] if self.hold and "HOLD" not in self._told else []
        return held if self.discard else [*held, *map(describe, self.edits)]

    def _done(self, edit: Edit) -> None:
        del self.edits[edit]
        self.made[edit] = None

    def _action(self, edit: Edit, state: State) -> str:
        match edit:
            case AddHeader(name, value, index) if index in (0, END) and state is not State.END:
                # A fold cannot be told; a field that is shown in one line is the same field.
                return _fitting(f"PREPEND {name}: {value.replace(chr(10), '')}")
            case AddRecipient(recipient) if not self.bcc:
                action = _fitting(f"BCC {recipient.address}")
                self.bcc = bool(action)
                return action
            case Redirect(recipient):
                return _fitting(f"REDIRECT {recipient.address}")
            case Reroute(next_hop):
                return _fitting(_filter(next_hop))
        return ""


def refusal(ruling: Ruling, reply: Reply) -> str:
    """The action of a refusal: its code and text, or what leaves the last word to Postfix's later restrictions."""
    text = _one_line(f"{reply.status or ('4.3.0' if reply.temporary else '5.7.1')} {reply.text}")
    if ruling.action is Action.DEFER and ruling.when is When.IF_PERMIT:
        return f"DEFER_IF_PERMIT {text}"
    if ruling.action is Action.DEFER and ruling.when is When.IF_REJECT:
        return f"DEFER_IF_REJECT {text}"
    return f"{code_of(ruling, reply)} {text}"


def code_of(ruling: Ruling, reply: Reply) -> int:
    """The code that makes the MTA do what is meant: 421 and 521 hang up, and all others do not."""
    if ruling.action is Action.DISCONNECT:
        return 421 if reply.temporary else 521
    if reply.code in _HANG_UP:
        return 451 if reply.temporary else 550
    return reply.code


def check_trouble(text: str) -> str:
    """The action for our own trouble, checked: it must neither permit nor refuse for good. Raises ValueError."""
    word, _, _ = text.partition(" ")
    deferring = word.upper() in ("DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT", DUNNO)
    temporary = len(word) == 3 and word.isascii() and word.isdigit() and word.startswith("4")
    if not (deferring or temporary) or not text.isascii() or not text.isprintable() or len(text) > _TEXT:
        raise ValueError("write DEFER, DEFER_IF_PERMIT, DEFER_IF_REJECT, DUNNO or a 4xx code, and a text if you like")
    return text


def describe(edit: Edit) -> str:
    """An edit in words, without a header's value, which may be long."""
    told = edit_json(edit)
    rest = [str(value) for key, value in told.items() if key not in ("edit", "value")]
    return " ".join([told["edit"], *rest])


def _filter(next_hop: str) -> str:
    """A next hop as FILTER has it; those that only our own transports know have none."""
    try:
        destination = parse_next_hop(next_hop)
    except ValueError:
        return ""
    if destination.mx or destination.kind not in (Kind.SMTP, Kind.LMTP):
        return ""
    if destination.path:
        return f"FILTER lmtp:unix:{destination.path}" if destination.kind is Kind.LMTP else ""
    host = f"[{destination.host}]" if ":" not in destination.host else f"[ipv6:{destination.host}]"
    return f"FILTER {destination.kind.value}:{host}:{destination.port}"


def _fitting(action: str) -> str:
    """The action, or nothing if it cannot stand on one line."""
    octets = action.encode("utf-8", "surrogateescape")
    return action if len(octets) <= _LINE and not set(octets) & {0, 10, 13} else ""


def _one_line(text: str) -> str:
    """Printable ASCII in one line; what is printed to a client's screen holds no surprises."""
    flat = text.replace("\n", " ")
    clean = "".join(c if " " <= c <= "~" else "?" for c in flat)
    # Cut in front of the reference rather than through it.
    tail = clean[clean.rfind(" (ref ") :] if clean.endswith(")") and " (ref " in clean else ""
    return clean if len(clean) <= _TEXT else clean[: _TEXT - len(tail)] + tail
