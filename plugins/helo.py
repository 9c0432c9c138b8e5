"""The name that a client gives itself at HELO or EHLO: is it one, is it not ours, and does the DNS know it?

The standard wants a domain name that resolves, or the client's own address in brackets; it does not let a server
refuse mail because the name is not the client's. So only what no honest mail server says is refused by default.

*Promises*: at most three questions, within `wait` seconds. DNS that does not answer is never evidence.

*RFCs*: 5321 section 2.3.5 (names), 4.1.3 (address literals), 4.1.4 (what HELO may hold), 7505 (null MX).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from enum import StrEnum
from typing import Final

from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    DnsStatus,
    Duration,
    HeloName,
    LocalParts,
    Mx,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Session,
    Stage,
    Verdict,
    defer,
    finds,
    reject,
)

# Underscores are no part of host names, and many honest Windows hosts have them.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NAME_CHARACTERS: Final = 253
_IPV6_TAG: Final = "ipv6:"


class HeloProblem(StrEnum):
    """What may speak against a name."""

    NOT_A_NAME = "not-a-name"
    """Neither a host name nor an address literal by their grammar."""
    BARE_ADDRESS = "bare-address"
    """An address without brackets."""
    LITERAL_MISMATCH = "literal-mismatch"
    """An address in brackets, and not the client's."""
    OUR_NAME = "our-name"
    """The gateway's own host name, or one of `own_names`."""
    SINGLE_LABEL = "single-label"
    """A name without a domain, such as ``localhost``."""
    NO_SUCH_NAME = "no-such-name"
    """The DNS says that the name does not exist."""
    UNRESOLVABLE = "unresolvable"
    """The name exists, and has neither an address nor an MX."""


class HeloOptions(PluginOptions):
    """Options of `helo`."""

    own_names: tuple[str, ...] = Field(
        (), max_length=1000, description="Names that no stranger may use, besides the gateway's own `hostname`."
    )
    subdomains: bool = Field(False, description="Protect names below `own_names`, too.")
    reject: tuple[HeloProblem, ...] = Field(
        (HeloProblem.BARE_ADDRESS, HeloProblem.LITERAL_MISMATCH, HeloProblem.OUR_NAME),
        description="Problems for which a client is refused for good.",
    )
    defer: tuple[HeloProblem, ...] = Field((), description="Problems for which a client is refused for now.")
    resolve: bool = Field(True, description="Look the name up.")
    wait: Duration = Field(5.0, gt=0, description="Time for all look-ups together; after it they count as failed.")
    exempt: LocalParts = Field(
        frozenset({"postmaster"}), description="Local parts that any client may write to (RFC 5321 section 4.5.1)."
    )

    @field_validator("own_names")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower().removesuffix(".") for name in value)
        for name in names:
            if not is_name(name):
                raise ValueError(f"{name!r} is no host or domain name; write others than ASCII as A-labels (xn--...)")
        return names

    @model_validator(mode="after")
    def _agree(self) -> HeloOptions:
        both = sorted(set(self.reject) & set(self.defer))
        if both:
            raise ValueError(f"{', '.join(both)} stands under both reject and defer; leave it under one")
        return self


class HeloPolicy(Policy):
    """Judged at RCPT, where every client understands a refusal; postmaster can always be written to."""

    name = "helo"
    Options = HeloOptions
    options: HeloOptions

    def on_rcpt(self, session: Session, recipient: Recipient, helo: HeloName) -> Verdict:
        if session.trusted or recipient.address.has_local(self.options.exempt):
            return PROCEED
        reason = f"HELO {helo.name}: {', '.join(helo.problems)}"
        if not set(self.options.reject).isdisjoint(helo.problems):
            return reject("7.1", "host name in HELO is not acceptable", reason=reason)
        if not set(self.options.defer).isdisjoint(helo.problems):
            return defer("7.1", "host name in HELO is not acceptable, try again later", code=450, reason=reason)
        return PROCEED


class HeloPlugin(Plugin):
    """Looks at the client's HELO name, and looks it up."""

    name = "helo"
    Options = HeloOptions
    policy = HeloPolicy
    options: HeloOptions

    async def start(self) -> None:
        self._own = frozenset((*self.options.own_names, self.services.hostname.lower()))

    def patience(self) -> float:
        return self.options.wait

    @finds(Stage.HELO)
    async def named(self, session: Session) -> HeloName:
        """What speaks against the name. That of a trusted client is not looked up."""
        name = session.helo.lower().removesuffix(".")
        problem = self._look(name, session)
        if problem or name.startswith("[") or session.trusted or not self.options.resolve:
            return HeloName(name, (problem,) if problem else ())
        problem, resolves = await self._resolve(name)
        return HeloName(name, (problem,) if problem else (), resolves)

    def _look(self, name: str, session: Session) -> HeloProblem | None:
        """What can be seen without the DNS: the first problem decides, there cannot be two."""
        if "%" in name:
            # Python takes a zone after an IPv6 address, of any characters; RFC 5321 section 4.1.3 knows none.
            return HeloProblem.NOT_A_NAME
        if name.startswith("["):
            return _literal_problem(name, session)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            return HeloProblem.BARE_ADDRESS
        if not is_name(name):
            return HeloProblem.NOT_A_NAME
        if name in self._own or (
            self.options.subdomains and any(name.endswith("." + own) for own in self.options.own_names)
        ):
            return HeloProblem.OUR_NAME
        return None if "." in name else HeloProblem.SINGLE_LABEL

    async def _resolve(self, name: str) -> tuple[HeloProblem | None, bool | None]:
        """What the DNS says of the name, and whether it resolves; (None, None) when it does not answer."""
        try:
            async with asyncio.timeout(self.options.wait):
                statuses = list(await asyncio.gather(*(self._ask(name, rdtype) for rdtype in ("A", "AAAA"))))
                if DnsStatus.OK not in statuses and set(statuses) != {DnsStatus.NXDOMAIN}:
                    statuses.append(await self._ask(name, "MX"))
        except TimeoutError:
            return None, None
        if DnsStatus.OK in statuses:
            return None, True
        if DnsStatus.FAILED in statuses:
            return None, None
        missing = set(statuses) == {DnsStatus.NXDOMAIN}
        return HeloProblem.NO_SUCH_NAME if missing else HeloProblem.UNRESOLVABLE, False

    async def _ask(self, name: str, rdtype: str) -> DnsStatus:
        answer = await self.services.dns.lookup(name, rdtype)
        # A null MX (RFC 7505) says that there is no mail host.
        if rdtype == "MX" and all(isinstance(mx, Mx) and not mx.host for mx in answer.records):
            return DnsStatus.NODATA if answer.status is DnsStatus.OK else answer.status
        return answer.status


def is_name(text: str) -> bool:
    """Whether the lower-case text is a host name by its letters; a last label of digits makes it none."""
    labels = text.split(".")
    return len(text) <= _NAME_CHARACTERS and all(map(_LABEL.match, labels)) and not labels[-1].isdigit()


def _literal_problem(name: str, session: Session) -> HeloProblem | None:
    inner = name[1:-1] if name.endswith("]") else ""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        if inner.startswith(_IPV6_TAG):
            address = ipaddress.IPv6Address(inner.removeprefix(_IPV6_TAG))
        else:
            address = ipaddress.IPv4Address(inner)
    except ValueError:
        return HeloProblem.NOT_A_NAME
    if _plain(address) != _plain(session.client):
        return HeloProblem.LITERAL_MISMATCH
    return None


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address in IPv6 form is that IPv4 address."""
    return getattr(address, "ipv4_mapped", None) or address
