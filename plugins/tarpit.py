"""Slow suspicious clients down: each of their recipients is answered some seconds late.

A sender of one message hardly notices. One that has a million to send, or tries names from a dictionary, pays in time
and connections, and many of them give up.

*Promises*: so many clients are held at once and no more: beyond that nobody is, so that who wants to fill the gateway
with held sessions speeds everybody up instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from prometheus_client import Counter, Gauge
from pydantic import Field, FiniteFloat, model_validator

from gateway.sdk import (
    Dnsbl,
    Duration,
    EarlyTalk,
    Finding,
    HeloName,
    Plugin,
    PluginOptions,
    Session,
    Stage,
    acts,
)

HELD = Gauge("gatepost_tarpit_held", "Sessions that are held now.", multiprocess_mode="livesum")
ANSWERS = Counter("gatepost_tarpit_answers", "Recipients of suspicious clients, held or not.", ["result"])


class TarpitOptions(PluginOptions):
    """Options of `tarpit`."""

    delay: Duration = Field(
        5.0, le=15, description="How long each recipient is held, at most 15s; below the stage's deadline."
    )
    dnsbl_score: FiniteFloat | None = Field(1.0, description="Hold clients with this score or more; null holds none.")
    helo_problems: bool = Field(True, description="Hold clients with a problem in their HELO name.")
    early_talk: bool = Field(True, description="Hold clients that talked before their greeting and got away with it.")
    everybody: bool = Field(False, description="Hold all clients but those in `relay_from`.")
    at_once: int = Field(100, ge=1, le=400, description="So many sessions are held at once in a worker.")

    @model_validator(mode="after")
    def _has_somebody(self) -> TarpitOptions:
        if not (self.dnsbl_score is not None or self.helo_problems or self.early_talk or self.everybody):
            raise ValueError("nobody would be held: name a dnsbl_score, helo_problems, early_talk or everybody")
        return self


@dataclass(frozen=True, slots=True)
class Tarpit(Finding):
    """How long a recipient was held, in seconds, and why; held for 0 seconds with a reason where there was no room."""

    held: float = 0.0
    reason: str = ""


class TarpitPlugin(Plugin):
    """Holds recipients of suspicious clients. It has no policy: it decides nothing."""

    name = "tarpit"
    Options = TarpitOptions
    timeout = 18.0
    options: TarpitOptions

    async def start(self) -> None:
        self._held = 0

    def patience(self) -> float:
        return self.options.delay

    @acts(Stage.RCPT)
    async def hold(
        self, session: Session, dnsbl: Dnsbl | None, helo: HeloName | None, talk: EarlyTalk | None
    ) -> Tarpit:
        """Hold this recipient if there is a reason to."""
        reason = "" if session.trusted else self._suspicion(dnsbl, helo, talk)
        if not reason:
            return Tarpit()
        if self._held >= self.options.at_once or not self.options.delay:
            ANSWERS.labels("not-held").inc()
            return Tarpit(0.0, reason)
        ANSWERS.labels("held").inc()
        self._held += 1
        HELD.inc()
        try:
            await asyncio.sleep(self.options.delay)
        finally:
            HELD.dec()
            self._held -= 1
        return Tarpit(round(self.options.delay, 3), reason)

    def _suspicion(self, dnsbl: Dnsbl | None, helo: HeloName | None, talk: EarlyTalk | None) -> str:
        options = self.options
        if options.dnsbl_score is not None and dnsbl is not None and dnsbl.score >= options.dnsbl_score:
            return f"score {dnsbl.score:g}"
        if options.helo_problems and helo is not None and helo.problems:
            return f"HELO: {', '.join(helo.problems)}"
        if options.early_talk and talk is not None and talk.early:
            return "talked early"
        return "everybody" if options.everybody else ""
