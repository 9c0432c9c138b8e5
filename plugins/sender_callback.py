"""Would the sender's own mail hosts take a reply? Asked with RCPT, as a callout, of somebody else's machine.

Off unless it is listed, and to be used with care: the machine that is asked belongs to a stranger, who has not asked
for it and may take it for address harvesting. So as few questions as can be: only of mail that everything before has
let through, never for the null sender, our own clients, our own domains or a sender that SPF calls forged, each answer
remembered, and no domain asked often.

Only a plain "no such mailbox" is evidence. A refusal of the probe as such, by policy, by block list, or of everybody,
is none, nor is silence.

*RFCs*: 5321 section 4.5.1 (every domain takes postmaster) and 4.5.5 (null sender), 3463 section 3.2 (X.1.n).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from prometheus_client import Counter, Histogram
from pydantic import Field, field_validator

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Address,
    Callout,
    CalloutState,
    Duration,
    Finding,
    Plugin,
    PluginOptions,
    Policy,
    Sender,
    Spf,
    SpfResult,
    Stage,
    Transaction,
    Turns,
    Verdict,
    acts,
    defer,
    reject,
)

_PROBE: Final = re.compile(r"[A-Za-z0-9._+=-]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+\Z")
_REPLY: Final = re.compile(r"(5[0-9]{2})(?: 5\.([0-9]{1,3})\.([0-9]{1,3}))?(?= |\Z)")
# Without an enhanced status: no mailbox, not here, and the name not allowed (RFC 5321 section 4.2.3).
_NO_MAILBOX: Final = frozenset({550, 551, 553})
# With one: the address and nothing else. 5.1.7 and 5.1.8 are about the sender of the probe.
_ABOUT_ADDRESS: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 10})
_REPLY_KEPT: Final = 300
_HOUR: Final = 3600.0
_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

CALLBACKS = Counter("gatepost_sender_callbacks", "Senders looked at.", ["state", "source"])
CALLBACK_SECONDS = Histogram(
    "gatepost_sender_callback_seconds", "Time of a question to a sender's mail hosts.", buckets=_SECONDS
)


class CallbackState(StrEnum):
    """What is known of a sender at its own mail hosts."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"
    """They did not answer, or did not say: trouble, never evidence."""
    NOT_ASKED = "not-asked"


@dataclass(frozen=True, slots=True)
class SenderCallback(Finding):
    """Whether the sender's mail hosts would take a reply. `source` is ``callout``, ``cache`` or empty.

    `reply` is their own text, for the record only; `reason` says why they were not asked, or why a refusal does not
    count.
    """

    state: CallbackState
    source: str = ""
    reply: str = ""
    reason: str = ""


class SenderCallbackOptions(PluginOptions):
    """Options of `sender-callback`."""

    action: Literal["reject", "defer", "proceed"] = Field(
        "reject", description="What to do with mail whose sender's own mail hosts do not know it."
    )
    sender: str = Field(
        "", description="Address to ask as; empty is the null sender, which no host may refuse and some do."
    )
    confirm: bool = Field(
        True, description="Believe a refusal only of mail hosts that take postmaster, as all must; costs one more RCPT."
    )
    wait: Duration = Field(8.0, gt=0, description="Time for one question; after it the sender is unavailable.")
    positive_ttl: Duration = Field(7 * 86400.0, gt=0, description="How long a sender that exists is remembered.")
    negative_ttl: Duration = Field(6 * 3600.0, gt=0, description="How long a sender that does not is remembered.")
    unavailable_ttl: Duration = Field(
        3600.0, gt=0, description="How long a domain whose mail hosts did not answer is left alone."
    )
    per_domain: int = Field(10, gt=0, le=1000, description="Questions to one domain per hour, all workers together.")
    callouts: int = Field(5, gt=0, le=100, description="Questions at once, per worker; the others wait.")
    private: bool = Field(False, description="Ask mail hosts in private and loopback networks, too.")

    @field_validator("sender")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and not _PROBE.match(value):
            raise ValueError("expected an address such as probe@mx.example.org, or nothing for the null sender")
        return value


class SenderCallbackPolicy(Policy):
    """Refuse mail that nobody could answer."""

    name = "sender-callback"
    Options = SenderCallbackOptions
    options: SenderCallbackOptions

    def on_data(self, callback: SenderCallback) -> Verdict:
        if callback.state is not CallbackState.UNKNOWN or self.options.action == "proceed":
            return PROCEED
        reason = f"the sender's mail hosts do not know it ({callback.source})"
        if self.options.action == "defer":
            return defer("1.7", "sender address cannot be verified, try again later", code=450, reason=reason)
        return reject("1.7", "sender address cannot be verified", reason=reason)


class SenderCallbackPlugin(Plugin):
    """Asks the sender's mail hosts whether they know it, and remembers what they said."""

    name = "sender-callback"
    Options = SenderCallbackOptions
    policy = SenderCallbackPolicy
    options: SenderCallbackOptions

    async def start(self) -> None:
        self._slots = asyncio.Semaphore(self.options.callouts)
        self._turns = Turns()
        local, _, domain = self.options.sender.rpartition("@")
        self._probe: Sender = Address(local, domain) if domain else NULL_SENDER

    def patience(self) -> float:
        return self.options.wait

    @acts(Stage.DATA)
    async def callback(self, transaction: Transaction, spf: Spf | None) -> SenderCallback:
        """Once per transaction, when all else has let it come as far as DATA."""
        sender = transaction.sender
        if sender is NULL_SENDER:
            found = _not_asked("the null sender")
        elif transaction.session.trusted:
            found = _not_asked("a client of ours")
        elif sender.ascii_domain.startswith("["):
            found = _not_asked("an address literal")
        elif self.services.directory.store(sender) is not None:
            found = _not_asked("a domain of ours")
        elif spf is not None and spf.result is SpfResult.FAIL:
            found = _not_asked("forged, by SPF")
        else:
            found = await self._verified(sender)
        CALLBACKS.labels(found.state.value, found.source).inc()
        return found

    async def _verified(self, sender: Address) -> SenderCallback:
        key = _key("sender", f"{self.options.sender} {sender.key}")
        domain_key = _key("domain", sender.ascii_domain)
        if known := await self._remembered(key) or await self._remembered(domain_key):
            return known
        try:
            async with asyncio.timeout(self.options.wait) as limit, self._turns.of(key):
                if known := await self._remembered(key) or await self._remembered(domain_key):
                    return known
                async with self._slots:
                    if not await self._may_ask(sender):
                        return _not_asked("its domain was asked often enough")
                    found, down = await self._ask(sender)
                limit.reschedule(None)
                await self._remember(domain_key if down else key, found)
                return found
        except TimeoutError:
            if not limit.expired():
                raise
        found = SenderCallback(CallbackState.UNAVAILABLE, "callout", reason="no answer in time")
        await self._remember(domain_key, found)
        return found

    async def _may_ask(self, sender: Address) -> bool:
        """Whoever makes senders up must not be able to turn us against a domain."""
        most = self.options.per_domain
        bucket = _key("rate", f"{most} {sender.ascii_domain}")
        return (await self.services.state.take(bucket, capacity=most, per_second=most / _HOUR)).allowed

    async def _ask(self, sender: Address) -> tuple[SenderCallback, bool]:
        """The answer, and whether it holds for the whole domain."""
        callout = await self._callout(sender)
        if callout.state is CalloutState.EXISTS:
            return _found(CallbackState.EXISTS, callout), False
        if callout.state is CalloutState.UNAVAILABLE:
            return _found(CallbackState.UNAVAILABLE, callout), callout.down
        if not _about_the_address(callout.reply):
            return _found(CallbackState.UNAVAILABLE, callout, "the refusal is not about the address"), False
        if self.options.confirm:
            postmaster = await self._callout(Address("postmaster", sender.domain))
            if postmaster.state is not CalloutState.EXISTS:
                return _found(CallbackState.UNAVAILABLE, callout, "they do not take postmaster either"), True
        return _found(CallbackState.UNKNOWN, callout), False

    async def _callout(self, address: Address) -> Callout:
        begun = self.services.clock.monotonic()
        try:
            return await self.services.callouts.ask(address, sender=self._probe, private=self.options.private)
        finally:
            CALLBACK_SECONDS.observe(self.services.clock.monotonic() - begun)

    async def _remembered(self, key: str) -> SenderCallback | None:
        """None also for what another version has left behind."""
        value = await self.services.state.get(key)
        if value is None:
            return None
        try:
            state, reply, reason = json.loads(value)
            return SenderCallback(CallbackState(state), "cache", str(reply), str(reason))
        except (ValueError, TypeError):
            return None

    async def _remember(self, key: str, found: SenderCallback) -> None:
        ttl = {
            CallbackState.EXISTS: self.options.positive_ttl,
            CallbackState.UNKNOWN: self.options.negative_ttl,
        }.get(found.state, self.options.unavailable_ttl)
        await self.services.state.put(key, json.dumps([found.state.value, found.reply, found.reason]).encode(), ttl)


def _about_the_address(reply: str) -> bool:
    """Whether a permanent refusal says that there is no such mailbox, and not that we are not welcome."""
    match = _REPLY.match(reply)
    if match is None:
        return False
    if match[2] is None:
        return int(match[1]) in _NO_MAILBOX
    return match[2] == "1" and int(match[3]) in _ABOUT_ADDRESS


def _key(what: str, text: str) -> str:
    """Keys hold no addresses in the clear, and are short whatever a client has made up."""
    return f"callback {what} " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _found(state: CallbackState, callout: Callout, reason: str = "") -> SenderCallback:
    return SenderCallback(state, "callout", callout.reply[:_REPLY_KEPT], reason)


def _not_asked(reason: str) -> SenderCallback:
    return SenderCallback(CallbackState.NOT_ASKED, reason=reason)
