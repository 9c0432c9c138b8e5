"""Early talkers: clients that do not wait for the greeting before they talk.

An SMTP client waits until it is greeted. Much software that only ever sends spam does not: it has no time to lose. So
a client that is not known yet has to wait for its greeting, and one that talks meanwhile is turned away. A client that
has waited once is remembered and greeted at once from then on.

*Promises*: so many clients wait at once and no more. Only a client that was there to the end of its wait is
remembered; one that talks early is forgotten.

*RFCs*: 5321 section 3.1 (554 instead of a greeting), 4.3.1 (the client waits for the greeting).
"""

from __future__ import annotations

import ipaddress
from typing import Final, Literal

from prometheus_client import Counter
from pydantic import Field
from pydantic.networks import IPvAnyNetwork

from gateway.sdk import (
    PROCEED,
    Duration,
    EarlyTalk,
    Plugin,
    PluginOptions,
    Policy,
    Session,
    Stage,
    Verdict,
    acts,
    disconnect,
)

_IPV6_PREFIX: Final = 64
_WHOLE: Final = 0.95
"""This part of the wait is taken for all of it: timers may be a little early. Who left before has not waited."""

CLIENTS = Counter("gatepost_pregreet_clients", "Clients by how they waited for their greeting.", ["result"])


class PregreetOptions(PluginOptions):
    """Options of `pregreet`."""

    wait: Duration = Field(
        6.0, gt=0, le=9, description="How long an unknown client has to wait, at most 9s; below the stage's deadline."
    )
    remember: Duration = Field(
        604_800.0, description="For so long a client that has waited is greeted at once; 0 lets it wait each time."
    )
    action: Literal["reject", "defer", "none"] = Field(
        "reject", description="What an early talker gets: a refusal for good, one for now, or only a record."
    )
    exempt: tuple[IPvAnyNetwork, ...] = Field((), description="Networks whose clients neither wait nor are refused.")
    at_once: int = Field(
        200, ge=1, le=400, description="So many clients wait at once in a worker; those beyond are greeted at once."
    )


class PregreetPolicy(Policy):
    """Turn early talkers away and close: what does not wait does not listen either."""

    name = "pregreet"
    Options = PregreetOptions
    options: PregreetOptions

    def on_connect(self, session: Session, talk: EarlyTalk) -> Verdict:
        if not talk.early or self.options.action == "none" or _is_exempt(session, self.options):
            return PROCEED
        code = 554 if self.options.action == "reject" else 421
        reason = f"the client talked {talk.waited:.1f}s after it connected, before its greeting"
        return disconnect("5.1", "data before it was asked for", code=code, reason=reason)


class PregreetPlugin(Plugin):
    """Lets unknown clients wait and listens whether they do."""

    name = "pregreet"
    Options = PregreetOptions
    policy = PregreetPolicy
    options: PregreetOptions

    async def start(self) -> None:
        self._waiting = 0

    def patience(self) -> float:
        return self.options.wait

    @acts(Stage.CONNECT)
    async def listen(self, session: Session) -> EarlyTalk:
        """Whether the client talks early. Those who do not have to wait are listened to for a moment only."""
        if _is_exempt(session, self.options):
            return await self._glance(session, "exempt")
        key = f"pregreet {_network(session)}"
        if self.options.remember and await self.services.state.get(key) is not None:
            talk = await self._glance(session, "remembered")
            if talk.early:
                await self.services.state.delete(key)
            return talk
        if self._waiting >= self.options.at_once:
            return await self._glance(session, "crowded")
        self._waiting += 1
        try:
            return await self._watch(session, key)
        finally:
            self._waiting -= 1

    async def _glance(self, session: Session, why: str) -> EarlyTalk:
        early = await self.services.lines.early(session, 0)
        CLIENTS.labels("early" if early else why).inc()
        return EarlyTalk(early, 0.0, remembered=why == "remembered")

    async def _watch(self, session: Session, key: str) -> EarlyTalk:
        """Let the client wait; remember it if it did."""
        clock, wait = self.services.clock, self.options.wait
        began = clock.monotonic()
        early = await self.services.lines.early(session, wait)
        waited = clock.monotonic() - began
        if early:
            CLIENTS.labels("early").inc()
        elif waited < wait * _WHOLE:
            CLIENTS.labels("left").inc()
        else:
            CLIENTS.labels("passed").inc()
            if self.options.remember:
                await self.services.state.put(key, b"1", self.options.remember)
        return EarlyTalk(early, round(waited, 3))


def _is_exempt(session: Session, options: PregreetOptions) -> bool:
    client = _plain(session)
    return session.trusted or any(client.version == net.version and client in net for net in options.exempt)


def _plain(session: Session) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The client's address; an IPv4 address in IPv6 form is that IPv4 address."""
    return getattr(session.client, "ipv4_mapped", None) or session.client


def _network(session: Session) -> str:
    """What is remembered: an IPv4 address, or a network of IPv6, where a client has as many addresses as it wants."""
    client = _plain(session)
    if client.version == 4:
        return str(client)
    return str(ipaddress.ip_network((client, _IPV6_PREFIX), strict=False))
