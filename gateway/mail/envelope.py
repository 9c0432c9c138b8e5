"""The envelope: who sends, who receives, and what the ESMTP parameters asked for.

*RFCs*: 5321 section 2.3.1, 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 3461 (RET, ENVID, NOTIFY, ORCPT),
8689 (REQUIRETLS).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.session import IPAddress


class Body(StrEnum):
    """BODY parameter of MAIL (RFC 6152). BINARYMIME is not offered."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


class Ret(StrEnum):
    """RET parameter of MAIL: what a DSN returns (RFC 3461 section 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(StrEnum):
    """NOTIFY parameter of RCPT (RFC 3461 section 4.1)."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class Priority(StrEnum):
    """Who goes first where mail has to wait. Written from the first to the last."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


TURNS: Final = (
    Priority.HIGH,
    Priority.NORMAL,
    Priority.HIGH,
    Priority.LOW,
    Priority.HIGH,
    Priority.NORMAL,
    Priority.HIGH,
)
"""Whose turn it is, again and again: of seven, high has four, normal two, low one. Nobody starves."""


_DEFAULT_NOTIFY: Final[frozenset[Notify]] = frozenset()


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT. `orcpt` is kept as sent (``rfc822;xtext``, case and all); an empty `notify` is the default set."""

    address: Address
    notify: frozenset[Notify] = frozenset()
    orcpt: str = ""

    def repeats(self, other: Recipient) -> bool:
        """Whether both are the same mailbox for certain, and ask for the same: case makes no difference in a domain."""
        if self.address.local != other.address.local or self.notify != other.notify:
            return False
        return self.address.key == other.address.key and self.orcpt.lower() == other.orcpt.lower()

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"local": self.address.local, "domain": self.address.domain}
        if self.notify:
            out["notify"] = sorted(self.notify)
        if self.orcpt:
            out["orcpt"] = self.orcpt
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipient:
        notify = frozenset(Notify(n) for n in data["notify"]) if "notify" in data else _DEFAULT_NOTIFY
        return cls(Address(data["local"], data["domain"]), notify, data.get("orcpt", ""))


@dataclass(frozen=True, slots=True)
class MailParameters:
    """What MAIL carried besides the path. `size` is the client's declaration in octets, 0 for none.

    `requiretls` says that the message is to be protected all the way (RFC 8689).
    """

    size: int = 0
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str = ""
    requiretls: bool = False


_PLAIN: Final = MailParameters()
_ELSEWHERE: Final = frozenset({"sender", "next_hop", "origin", "priority"})
"""What an envelope's JSON holds beside the parameters."""


_ip_address = lru_cache(maxsize=4096)(ipaddress.ip_address)


@dataclass(frozen=True, slots=True)
class Origin:
    """The client whom a message came from, for next hops that are to know. `name` and `helo` may be empty."""

    client: IPAddress
    port: int = 0
    name: str = ""
    helo: str = ""
    esmtp: bool = True

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"client": str(self.client)}
        if self.port:
            out["port"] = self.port
        if self.name:
            out["name"] = self.name
        if self.helo:
            out["helo"] = self.helo
        if not self.esmtp:
            out["esmtp"] = False
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Origin:
        port = data.get("port", 0)
        if not isinstance(port, int) or not 0 <= port <= 0xFFFF:
            raise ValueError("no port")
        name, helo = str(data.get("name", "")), str(data.get("helo", ""))
        return cls(_ip_address(str(data["client"])), port, name, helo, bool(data.get("esmtp", True)))


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender, recipients and parameters of one message. `next_hop` is its own, in place of the routes', or empty.

    `origin` is None for mail of our own, and for what was spooled before there was one.
    """

    sender: Sender
    recipients: tuple[Recipient, ...]
    parameters: MailParameters = MailParameters()
    next_hop: str = ""
    origin: Origin | None = None
    priority: Priority = Priority.NORMAL

    def to_json(self) -> dict[str, Any]:
        """All but the recipients, which the spool keeps one by one with their state."""
        p = self.parameters
        out: dict[str, Any] = {}
        if isinstance(self.sender, Address):
            out["sender"] = {"local": self.sender.local, "domain": self.sender.domain}
        if p.body is Body.EIGHT_BIT:
            out["body"] = p.body.value
        if p.smtputf8:
            out["smtputf8"] = True
        if p.ret:
            out["ret"] = p.ret.value
        if p.envid:
            out["envid"] = p.envid
        if p.requiretls:
            out["requiretls"] = True
        if self.next_hop:
            out["next_hop"] = self.next_hop
        if self.origin:
            out["origin"] = self.origin.to_json()
        if self.priority is not Priority.NORMAL:
            out["priority"] = self.priority.value
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any], recipients: tuple[Recipient, ...]) -> Envelope:
        s = data.get("sender")
        sender: Sender = Address(s["local"], s["domain"]) if s else NULL_SENDER
        parameters = _PLAIN
        if not data.keys() <= _ELSEWHERE:
            parameters = MailParameters(
                body=Body(data["body"]) if "body" in data else Body.SEVEN_BIT,
                smtputf8=bool(data.get("smtputf8", False)),
                ret=Ret(data["ret"]) if "ret" in data else None,
                envid=data.get("envid", ""),
                requiretls=bool(data.get("requiretls", False)),
            )
        origin = Origin.from_json(data["origin"]) if "origin" in data else None
        priority = Priority(data["priority"]) if "priority" in data else Priority.NORMAL
        return cls(sender, recipients, parameters, str(data.get("next_hop", "")), origin, priority)
