"""What a postmaster may do to queued mail, as values: which messages are meant, and what is to become of them.

The command line, the admin API and the spool share these; the room is low so that all three can.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from gateway.mail.address import Address, AddressError, ascii_domain, parse_domain, parse_mailbox
from gateway.mail.envelope import Recipient

TEXT_MAX: Final = 320
"""Characters of a text that somebody looks for, or gives as a reason."""
LABEL_MAX: Final = 8192
"""Characters of a destination as lists show it: one may have twenty servers, or be a long path."""


class SelectionError(ValueError):
    """What was said of the messages that are meant makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages are meant: those that fit everything said here; what is empty or None does not matter.

    `sender` and `recipient` are an address or a domain, `sender` also ``<>``; `domain` is that of a recipient,
    `next_hop` where the mail of a recipient goes, as lists show it. These three look at recipients that have not got
    the message yet, and all mean the same one. `reason` is a text within why a message is set aside, or within what
    was last said of a recipient. Letters of ASCII are compared without case. `before` and `since` are epoch seconds at
    which it came, `larger` and `smaller` octets.
    """

    states: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    next_hop: str = ""
    reason: str = ""
    before: float | None = None
    since: float | None = None
    larger: int | None = None
    smaller: int | None = None

    def __post_init__(self) -> None:
        for name in ("sender", "recipient", "domain", "next_hop", "reason"):
            text, most = getattr(self, name), LABEL_MAX if name == "next_hop" else TEXT_MAX
            if len(text) > most or not text.isprintable():
                raise SelectionError(f"{name.replace('_', '-')} has at most {most} printable characters")
        for name, null in (("sender", True), ("recipient", False)):
            if text := getattr(self, name):
                _check(name, text, null=null)
        if self.domain:
            _check_domain("domain", self.domain)

    @property
    def everything(self) -> bool:
        """Whether nothing is said at all."""
        return all(getattr(self, field.name) in ("", (), None) for field in fields(self))


def _check(name: str, text: str, *, null: bool) -> None:
    if null and text == "<>":
        return
    if "@" not in text:
        _check_domain(name, text)
        return
    try:
        parse_mailbox(text, utf8=True)
    except AddressError as error:
        raise SelectionError(f"{name} is an address, a domain{' or <>' if null else ''}: {error}") from None


def _check_domain(name: str, text: str) -> None:
    try:
        parse_domain(text, utf8=True)
    except AddressError as error:
        raise SelectionError(f"{name}: {error}") from None


def domain_forms(domain: str) -> tuple[str, ...]:
    """How a domain may have been written: as it is here, as A-labels, as U-labels; ASCII letters in lower case."""
    forms = {"".join(c.lower() if c.isascii() else c for c in domain)}
    try:
        labels = ascii_domain(domain)
    except AddressError:
        return tuple(forms)
    forms.add(labels)
    if "xn--" in labels:
        import idna

        try:
            forms.add(idna.decode(labels))
        except (idna.IDNAError, UnicodeError):
            return tuple(sorted(forms))
    return tuple(sorted(forms))


@dataclass(frozen=True, slots=True)
class Hold:
    """Set aside until released."""

    reason: str = "by the postmaster"


@dataclass(frozen=True, slots=True)
class Release:
    """Queue what is set aside again, due now; who has not got it is tried again."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Due now."""


@dataclass(frozen=True, slots=True)
class Reroute:
    """A next hop of its own, or with an empty one the routes again. What is queued is due now."""

    next_hop: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Other recipients, in place of all who have not got it yet."""

    to: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class EditRecipients:
    """Recipients more, and some of those fewer who have not got it yet."""

    add: tuple[Recipient, ...] = ()
    remove: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Return:
    """Give it up: its sender gets a bounce, which the gateway writes when it next looks at the message."""

    reason: str = "by the postmaster"


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove it for good, and tell nobody."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Offer it to another gateway: `spool` is the id of that one's spool, `url` where it is asked, `name` its name.

    `offer` is the offer's own id; no other one has it.
    """

    offer: str
    spool: str
    url: str
    name: str


Amendment = Hold | Release | Retry | Reroute | Redirect | EditRecipients | Return | Drop | Leave

_ANY: Final = ("queued", "hold", "quarantine")
STATES: Final[dict[type[Any], tuple[str, ...]]] = {
    Hold: ("queued",),
    Release: ("hold", "quarantine"),
    Retry: ("queued",),
    Reroute: _ANY,
    Redirect: _ANY,
    EditRecipients: _ANY,
    Return: _ANY,
    Drop: (*_ANY, "corrupt"),
    Leave: _ANY,
}
"""The states of messages that it can be done to."""

FOR_GOOD: Final = (Reroute, Redirect, EditRecipients, Return, Drop)
"""What cannot simply be taken back: for more than one message it has to be confirmed."""

DEEDS: Final[dict[type[Any], str]] = {
    Hold: "held",
    Release: "released",
    Retry: "retried",
    Reroute: "rerouted",
    Redirect: "redirected",
    EditRecipients: "edited",
    Return: "returned",
    Drop: "dropped",
    Leave: "offered",
}
"""The word for what was done, in records, logs and metrics."""


class Amended(StrEnum):
    """What came of an amendment of one message."""

    DONE = "done"
    UNDERWAY = "underway"
    """Done, while an attempt was under way: it holds for what that attempt leaves."""
    CLAIMED = "claimed"
    """Nothing was changed: the gateway has the message in hand, to deliver it."""
    WRONG_STATE = "wrong-state"
    UNREADABLE = "unreadable"
    NOT_OWED = "not-owed"
    """No bounce: the sender is empty, or may be forged."""
    NOBODY_LEFT = "nobody-left"
    """It would be left without a recipient."""
    UNCHANGED = "unchanged"
    """There was nothing to change."""
    MISSING = "missing"

    @property
    def done(self) -> bool:
        return self in (Amended.DONE, Amended.UNDERWAY)


WHY_NOT: Final = {
    Amended.CLAIMED: "the gateway is delivering it just now; try again, or suspend its destination first",
    Amended.WRONG_STATE: "not in a state for that",
    Amended.UNREADABLE: "it cannot be read; it can only be dropped",
    Amended.NOT_OWED: "no bounce is sent for it: its sender is empty, or may be forged",
    Amended.NOBODY_LEFT: "nobody would be left to get it; drop it, or redirect it",
    Amended.UNCHANGED: "there was nothing to change",
    Amended.MISSING: "no such message",
}


@dataclass(frozen=True, slots=True)
class Suspension:
    """A destination that nothing is delivered to. `since` is epoch seconds."""

    destination: str
    by: str
    since: float
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"destination": self.destination, "by": self.by, "since": self.since, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for one destination: recipients not yet served, of queued messages. `oldest` is epoch seconds."""

    destination: str
    recipients: int
    due: int
    claimed: int
    octets: int
    oldest: float
    last: str
    """What was last said of one of them."""

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
