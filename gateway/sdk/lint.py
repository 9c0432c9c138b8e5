"""What an author tells `gatepost lint`: how a policy decides, what a plugin passes over, and remarks of their own.

Lint reads a configuration that is valid and says what may go wrong with it all the same. It knows pipelines, stages and
findings by itself; only a policy knows what its options make it do, so `Policy.ways`, `Policy.changes`,
`Plugin.patience`, `Plugin.looks_up_to` and the two `lint` methods say that. All of them are answered from options
alone: no I/O but reading files that options name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.mail.edit import AddHeader, ChangeHeader, DeleteHeader, Edit, ReplaceBody
from gateway.sdk.deprecation import old_names
from gateway.sdk.stage import Stage
from gateway.sdk.verdict import Action

__all__ = [
    "SIGNED",
    "Check",
    "IPAddress",
    "Path",
    "Remark",
    "Setting",
    "Severity",
    "Trust",
    "Way",
    "break_signatures",
    "refuses_public_resolvers",
]

Path = tuple[str | int, ...]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Strangers can do harm, or mail is lost: do not run it so."""
    WARNING = "warning"
    """It does not do what its owner most likely believes."""
    NOTE = "note"
    """Worth knowing, and often meant so."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that lint looks for. `code` is ``NAME/word`` with the name of the plugin or policy (lint's own are
    ``GP`` and three digits); it never changes its meaning. `title` says in a line what is wrong."""

    code: str
    severity: Severity
    title: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a check found.

    `path` is the option that causes it, within the options; `offset` a character of its text, from 0, where one is
    meant. `message` says what is the case, `example` what can happen (a client, a sender, a recipient), `fix` what to
    write instead.
    """

    check: Check
    path: Path
    message: str
    example: str = ""
    fix: str = ""
    offset: int | None = None


class Trust(StrEnum):
    """What a verdict in somebody's favour rests on."""

    EVIDENCE = "evidence"
    """The client's address or confirmed name, or what a plugin found out."""
    CLAIM = "claim"
    """What the client says of itself, such as the sender or a header field: anybody can say it."""
    SERVICE = "service"
    """Whatever somebody who is asked at the time says."""
    RECIPIENT = "recipient"
    """Whom it is for: it holds for every client."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a policy's options let it decide.

    `always` says that it does so for every client, message and recipient, so that whatever comes later at that stage is
    never asked. `path` and `offset` as in `Remark`; `what` names it, such as ``rule newsletters``.
    """

    stage: Stage
    action: Action
    trust: Trust = Trust.EVIDENCE
    always: bool = False
    path: Path = ()
    offset: int | None = None
    what: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """What lint tells an author of the configuration around the entry.

    `findings` are the names of those that the entry's pipeline gives, by kind; `public_resolvers` those of the
    nameservers in use that are known to be large public ones; `relays` whether anybody is in `relay_from`.
    """

    hostname: str = ""
    domains: tuple[str, ...] = ()
    message_size: int = 0
    relays: bool = False
    public_resolvers: tuple[str, ...] = ()
    findings: Mapping[type[Any], tuple[str, ...]] = field(default_factory=dict)


SIGNED: Final = frozenset(
    "from reply-to subject date to cc message-id in-reply-to references mime-version content-type"
    " content-transfer-encoding list-id".split()
)
"""Header fields that signatures mostly cover (RFC 6376 section 5.4.1), in lower case."""


def break_signatures(edits: Iterable[Edit]) -> bool:
    """Whether these edits change what signatures mostly cover."""
    for edit in edits:
        if isinstance(edit, ReplaceBody):
            return True
        if isinstance(edit, (AddHeader, ChangeHeader, DeleteHeader)) and edit.name.lower() in SIGNED:
            return True
    return False


_REFUSE_PUBLIC: Final = ("spamhaus.org", "uribl.com", "surbl.org", "dnswl.org")
"""Lists whose terms of use leave out who asks through a resolver that very many share. Paid zones are others."""


def refuses_public_resolvers(zone: str) -> bool:
    """Whether this DNS list does not answer the large public resolvers."""
    name = zone.lower().removesuffix(".")
    return any(name == end or name.endswith(f".{end}") for end in _REFUSE_PUBLIC)


if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
