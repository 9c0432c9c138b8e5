"""Forward-confirmed reverse DNS: has the client a name, and does that name lead back to its address?

The client's address is looked up for its names (PTR), and each name for addresses, all at once. The names are also
looked at for how they are made: names that providers give to the lines of their customers in bulk.

*Promises*: at most 10 names are followed, within `wait` seconds. DNS that does not answer is never evidence.

*RFCs*: 8601 section 3 (iprev) and 2.7.3 (its results), 7372 section 3.3 (X.7.25).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from typing import Final, Literal

from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    AuthResult,
    DnsStatus,
    Duration,
    LocalParts,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    ReverseName,
    Session,
    Stage,
    Verdict,
    defer,
    finds,
    reject,
)

Reaction = Literal["none", "defer", "reject"]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_NAMES: Final = 10
_NAME_CHARACTERS: Final = 255
_DOMAIN_LABELS: Final = 2
"""The last labels of a name are its owner's and say nothing about the host."""
_WORD: Final = re.compile(r"[a-z]+")
_NUMBER: Final = re.compile(r"\d+")
_DASHED: Final = re.compile(r"(?<![0-9a-f-])[0-9a-f]{0,4}(?:-[0-9a-f]{0,4}){2,7}(?![0-9a-f-])")
_INTERFACE_NIBBLES: Final = 16

WORDS: Final = (
    "adsl",
    "broadband",
    "cable",
    "catv",
    "dhcp",
    "dial",
    "dialin",
    "dialup",
    "dsl",
    "dyn",
    "dynamic",
    "dynip",
    "ftth",
    "pool",
    "ppp",
    "pppoe",
    "vdsl",
    "xdsl",
)


def looks_generic(name: str, client: IPAddress, words: Iterable[str] = WORDS) -> bool:
    """Whether a name looks as if it was given in bulk: it holds the client's address, or one of these words.

    The last two labels do not count: ``mail.dsl.example`` is no generic name. Neither does part of the address, since
    big senders number their hosts by it.
    """
    labels = name.lower()[:_NAME_CHARACTERS].removesuffix(".").split(".")
    host = ".".join(labels[:-_DOMAIN_LABELS])
    if not host:
        return False
    return not set(words).isdisjoint(_WORD.findall(host)) or _holds_address(host, client)


def _holds_address(host: str, client: IPAddress) -> bool:
    if isinstance(client, ipaddress.IPv6Address):
        nibbles = client.exploded.replace(":", "")
        squeezed = re.sub(r"[^0-9a-z]", "", host)
        forms = (nibbles, nibbles[::-1], nibbles[-_INTERFACE_NIBBLES:])
        # An interface part that is nearly all zeros says nothing.
        if any(len(form.strip("0")) > 8 and form in squeezed for form in forms):
            return True
        return any(_reads_as(text.replace("-", ":"), client) for text in _DASHED.findall(host))
    octets = list(client.packed)
    numbers = [int(text) for text in _NUMBER.findall(host) if len(text) <= 3]
    for at in range(len(numbers) - 3):
        if numbers[at : at + 4] in (octets, octets[::-1]):
            return True
    packed = ("".join(f"{octet:03}" for octet in octets), "".join(f"{octet:03}" for octet in reversed(octets)))
    return any(form in host for form in (*packed, client.packed.hex()))


def _reads_as(text: str, client: IPAddress) -> bool:
    try:
        return ipaddress.ip_address(text) == client
    except ValueError:
        return False


class RdnsOptions(PluginOptions):
    """Options of `rdns`."""

    nameless: Reaction = Field("none", description="What a client without any name gets.")
    mismatch: Reaction = Field("none", description="What a client gets whose names do not lead back to its address.")
    generic: Reaction = Field("none", description="What a client gets whose names all look as if given in bulk.")
    defer_temperror: bool = Field(False, description="Refuse for now when the DNS does not answer.")
    words: tuple[str, ...] = Field(
        WORDS, max_length=200, description="Words that make a name generic, where no letter stands beside them."
    )
    wait: Duration = Field(5.0, gt=0, description="Time for all look-ups together; after it they count as failed.")
    exempt: LocalParts = Field(
        frozenset({"postmaster"}), description="Local parts that any client may write to (RFC 5321 section 4.5.1)."
    )

    @field_validator("words")
    @classmethod
    def _letters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(word.lower() for word in value)
        for word in lowered:
            if not _WORD.fullmatch(word):
                raise ValueError(f"{word!r} is no word of the letters a to z")
        return lowered


class RdnsPolicy(Policy):
    """Refuse clients by their reverse names, recipient by recipient, so that the postmaster stays reachable."""

    name = "rdns"
    Options = RdnsOptions
    options: RdnsOptions

    def on_rcpt(self, session: Session, recipient: Recipient, found: ReverseName) -> Verdict:
        if session.trusted or recipient.address.has_local(self.options.exempt):
            return PROCEED
        names = ", ".join(found.names)
        match found.result:
            case AuthResult.TEMPERROR:
                if self.options.defer_temperror:
                    return defer("7.25", "cannot look up your host name now", code=450, reason=found.problem)
                return PROCEED
            case AuthResult.PERMERROR:
                reaction, reason = self.options.nameless, "the client has no name"
            case AuthResult.FAIL:
                reaction, reason = self.options.mismatch, f"the client's names do not lead back to it: {names}"
            case _:
                reaction, reason = "none", ""
        if found.generic and _RANK[self.options.generic] > _RANK[reaction]:
            reaction, reason = self.options.generic, f"the client's name is generic: {found.name or names}"
        match reaction:
            case "reject":
                return reject("7.25", "host name is not acceptable", reason=reason)
            case "defer":
                return defer("7.25", "host name is not acceptable, try again later", code=450, reason=reason)
        return PROCEED


_RANK: Final[dict[str, int]] = {"none": 0, "defer": 1, "reject": 2}


class RdnsPlugin(Plugin):
    """Looks the client's names up and confirms them."""

    name = "rdns"
    Options = RdnsOptions
    policy = RdnsPolicy
    options: RdnsOptions

    def patience(self) -> float:
        return self.options.wait

    @finds(Stage.CONNECT)
    async def confirmed(self, session: Session) -> ReverseName:
        """iprev of the client's address."""
        client: IPAddress = getattr(session.client, "ipv4_mapped", None) or session.client
        until = asyncio.get_running_loop().time() + self.options.wait
        records = await self._ask(client.reverse_pointer, "PTR", until)
        if records is None:
            return ReverseName(AuthResult.TEMPERROR, str(client), problem="no answer to PTR")
        names = tuple(sorted({name for name in records if 0 < len(name) <= _NAME_CHARACTERS}))
        if not names:
            return ReverseName(AuthResult.PERMERROR, str(client), problem="no PTR record")
        names, more = names[:MAX_NAMES], len(names) - MAX_NAMES
        confirmed = await asyncio.gather(*(self._leads_back(name, client, until) for name in names))
        passed = [name for name, yes in zip(names, confirmed, strict=True) if yes]
        generic = all(looks_generic(name, client, self.options.words) for name in passed or names)
        if passed:
            return ReverseName(AuthResult.PASS, str(client), passed[0], names, generic=generic)
        if None in confirmed:
            return ReverseName(AuthResult.TEMPERROR, str(client), "", names, "no answer for a name", generic=generic)
        problem = f"no name leads back, {more} more not looked at" if more > 0 else "no name leads back"
        return ReverseName(AuthResult.FAIL, str(client), "", names, problem, generic=generic)

    async def _leads_back(self, name: str, client: IPAddress, until: float) -> bool | None:
        """Whether the name has the client's address; None when the DNS does not say."""
        records = await self._ask(name, "A" if client.version == 4 else "AAAA", until)
        return None if records is None else str(client) in (str(ipaddress.ip_address(text)) for text in records)

    async def _ask(self, name: str, rdtype: str, until: float) -> list[str] | None:
        """The records, empty when there are none; None when there is no usable answer in time."""
        try:
            async with asyncio.timeout_at(until):
                answer = await self.services.dns.lookup(name, rdtype)
        except TimeoutError:
            return None
        if answer.status is DnsStatus.FAILED:
            return None
        return [record for record in answer.records if isinstance(record, str)]
