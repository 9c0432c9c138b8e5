"""What a policy server may answer: the actions of Postfix's access(5).

*Source*: access(5). Restrictions other than ``permit``, ``reject``, ``defer`` and ``defer_if_...`` are Postfix's own,
so their names are no answer here.
*RFCs*: 3463 (enhanced status codes at the beginning of a text).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gateway.sdk import (
    AddHeader,
    AddRecipient,
    Address,
    DelegatedAction,
    Edit,
    Notify,
    Recipient,
    Redirect,
    Reroute,
    field_value,
    parse_endpoint,
    parse_mailbox,
)

_CODE: Final = re.compile(r"[45][0-9]{2}\Z")
_DIGITS: Final = re.compile(r"[0-9]+\Z")
_STATUS: Final = re.compile(r"[245]\.([0-9]{1,3}\.[0-9]{1,3})(?:\s+|\Z)")
_TRANSPORTS: Final = {"smtp": ("smtp", 25), "relay": ("smtp", 25), "lmtp": ("lmtp", 24)}


class ActionError(ValueError):
    """It is no action that could be carried out. ``str(error)`` says why."""


class Word(StrEnum):
    """What an action may begin with, in either case. Reply codes are the other possibility."""

    OK = "OK"
    RELAY = "RELAY"
    PERMIT = "PERMIT"
    DUNNO = "DUNNO"
    REJECT = "REJECT"
    DEFER = "DEFER"
    DEFER_IF_REJECT = "DEFER_IF_REJECT"
    DEFER_IF_PERMIT = "DEFER_IF_PERMIT"
    DISCARD = "DISCARD"
    HOLD = "HOLD"
    INFO = "INFO"
    WARN = "WARN"
    PREPEND = "PREPEND"
    BCC = "BCC"
    REDIRECT = "REDIRECT"
    FILTER = "FILTER"


_PERMITS: Final = frozenset({Word.OK, Word.RELAY, Word.PERMIT})
_REFUSALS: Final = frozenset({Word.REJECT, Word.DEFER, Word.DEFER_IF_REJECT, Word.DEFER_IF_PERMIT})


@dataclass(frozen=True, slots=True)
class Asked:
    """An action as it was written: its first word in upper case, and what stood behind."""

    word: str
    text: str

    @classmethod
    def split(cls, action: str) -> Asked:
        word, _, text = action.strip().partition(" ")
        return cls(word.upper(), text.strip())


def parse_action(action: str, service: str) -> DelegatedAction:
    """The finding that an action makes, said by `service`. Raises `ActionError`."""
    asked = Asked.split(action)
    found = DelegatedAction(asked.word, service, text=asked.text)
    if _CODE.match(asked.word) and asked.text:
        return _reply(replace(found, code=int(asked.word)))
    if _DIGITS.match(asked.word) and not asked.text:
        # Whatever number it is: some note down when somebody proved who he is (access(5)).
        return replace(found, action=Word.OK.value, text=asked.word)
    try:
        word = Word(asked.word)
    except ValueError:
        raise ActionError(f"{asked.word[:40]!r} is no action") from None
    if word in _PERMITS:
        return replace(found, action=Word.OK.value)
    if word in _REFUSALS:
        return _reply(found)
    return replace(found, edits=_edits(word, asked.text))


def _reply(found: DelegatedAction) -> DelegatedAction:
    """With the enhanced status that its text may begin with; the class digit follows from the reply code."""
    match = _STATUS.match(found.text)
    return replace(found, detail=match[1], text=found.text[match.end() :]) if match else found


def _edits(word: Word, text: str) -> tuple[Edit, ...]:
    try:
        match word:
            case Word.PREPEND:
                return (_header(text),)
            case Word.BCC:
                # A copy that nobody asked for is none that the sender hears of.
                return (AddRecipient(Recipient(_mailbox(text), frozenset({Notify.NEVER}))),)
            case Word.REDIRECT:
                return (Redirect(Recipient(_mailbox(text))),)
            case Word.FILTER:
                return (Reroute(_next_hop(text)),)
    except ValueError as error:
        raise ActionError(f"{word} that cannot be carried out: {error}") from None
    return ()


def _header(text: str) -> AddHeader:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError("a header field has a colon")
    # Servers put together what clients said, and the line gets longer than one may be.
    return AddHeader(name.rstrip(), field_value(value.strip()))


def _mailbox(text: str) -> Address:
    inner = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    return parse_mailbox(inner, utf8=True)


def _next_hop(text: str) -> str:
    """``transport:destination`` of Postfix as a next hop of ours; only hosts and sockets that speak SMTP or LMTP."""
    transport, colon, destination = text.partition(":")
    if not colon or transport not in _TRANSPORTS or not destination:
        raise ValueError("only smtp, relay and lmtp with a destination are understood")
    scheme, port = _TRANSPORTS[transport]
    if not destination.startswith("unix:"):
        destination = _host_and_port(destination.removeprefix("inet:"), port)
    return f"{scheme}:{parse_endpoint(destination)}"


def _host_and_port(text: str, port: int) -> str:
    """``[host]:port``, ``[host]``, ``host:port`` or ``host``, as an endpoint is written."""
    if not text.startswith("["):
        return text if ":" in text else f"{text}:{port}"
    host, bracket, after = text[1:].partition("]")
    if not bracket:
        raise ValueError("a bracket is not closed")
    host = host.removeprefix("ipv6:").removeprefix("IPv6:")
    return f"[{host}]{after or f':{port}'}" if ":" in host else f"{host}{after or f':{port}'}"
