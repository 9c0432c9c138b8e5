"""What pipeline tests share: services, a session, transactions, messages; plugins and policies made to order."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gateway.mail.address import Address
from gateway.mail.message import HeaderField
from gateway.mail.session import Session
from gateway.pipeline.decision import Decision
from gateway.pipeline.loader import Catalog, Pipeline, StageDeadlines, load
from gateway.pipeline.runner import PipelineSession, PipelineTransaction
from gateway.sdk import (
    PROCEED,
    Callout,
    Clock,
    Finding,
    MailParameters,
    Message,
    Plugin,
    Policy,
    Recipient,
    RecipientRule,
    Services,
    Stage,
    Transaction,
    Verdict,
    acts,
    finds,
    reject,
)
from tests.pipeline.quick import LoopClock

SESSION = Session(
    id="0123456789ABC",
    client=ipaddress.ip_address("192.0.2.7"),
    client_port=40000,
    peer=ipaddress.ip_address("192.0.2.7"),
    listener="edge",
    started=1_700_000_000.0,
    helo="client.example.net",
)
TRANSACTION = Transaction("0123456789ABC1", SESSION, Address("anna", "example.net"), MailParameters())
BEN = Recipient(Address("ben", "example.org"))


class Text:
    """A message's content in memory."""

    size = 14
    eight_bit = False

    async def blocks(self) -> Any:
        yield b"Subject: x\r\n\r\n"


MESSAGE = Message((HeaderField("Subject", b"Subject: x\r\n"),), Text())


class NoNetwork:
    """Stands for services that the test does not use: asking is an error."""

    async def lookup(self, name: str, rdtype: str) -> Any:
        raise AssertionError(f"asked for {name} {rdtype}")

    async def rule(self, address: Address) -> RecipientRule:
        raise AssertionError("asked for a rule")

    async def callout(self, address: Address) -> Callout:
        raise AssertionError("asked for a callout")


def services(clock: Clock | None = None, dns: Any = None, state: Any = None) -> Services:
    nobody: Any = NoNetwork()
    return Services(dns or nobody, state or nobody, clock or LoopClock(), nobody, "mx.test", "mx.test")


@dataclass(frozen=True, slots=True)
class A(Finding):
    value: int = 1


@dataclass(frozen=True, slots=True)
class B(Finding):
    value: int = 2


@dataclass(frozen=True, slots=True)
class C(Finding):
    value: int = 3


@dataclass(frozen=True, slots=True)
class D(Finding):
    value: int = 4


@dataclass(frozen=True, slots=True)
class E(Finding):
    value: int = 5


Work = Callable[..., Awaitable[Any]]


def finder(
    stage: Stage, finding: type[Finding], inputs: Sequence[type], work: Work | None = None, *, does: bool = False
) -> Any:
    """A finder as an author would write it, of these types. `work` gets the inputs; the default gives ``finding()``."""

    async def default(*given: Any) -> Finding:
        return finding()

    do = work or default
    names = [f"given{i}" for i in range(len(inputs))]
    source = f"async def find(self, {', '.join(names)}):\n    return await do({', '.join(names)})"
    space: dict[str, Any] = {"do": do}
    exec(source, space)
    method = space["find"]
    method.__annotations__ = {**dict(zip(names, inputs, strict=True)), "return": finding}
    return (acts if does else finds)(stage)(method)


def hook(stage: Stage, inputs: Sequence[Any], judge: Callable[..., Any]) -> Any:
    """A policy's hook of these types."""
    names = [f"given{i}" for i in range(len(inputs))]
    space: dict[str, Any] = {"judge": judge}
    exec(f"def on_{stage}(self, {', '.join(names)}):\n    return judge({', '.join(names)})", space)
    method = space[f"on_{stage}"]
    method.__annotations__ = {**dict(zip(names, inputs, strict=True)), "return": Verdict}
    return method


def policy(name: str, *hooks: Any) -> type[Policy]:
    return type(f"{name.title()}Policy", (Policy,), {"name": name, **{h.__name__: h for h in hooks}})


def plugin(name: str, *finders: Any, policy: type[Policy] | None = None) -> type[Plugin]:
    body: dict[str, Any] = {"name": name, "policy": policy, **{f"find{i}": f for i, f in enumerate(finders)}}
    return type(name.title(), (Plugin,), body)


def rejecting(name: str, stage: Stage, *inputs: Any) -> type[Policy]:
    """A policy that always refuses, in its own name."""
    return policy(name, hook(stage, inputs, lambda *given: reject("7.1", name)))


def proceeding(name: str, stage: Stage, *inputs: Any) -> type[Policy]:
    return policy(name, hook(stage, inputs, lambda *given: PROCEED))


class Counter:
    """Work that counts how often it was done."""

    def __init__(self, result: Any, seconds: float = 0.0) -> None:
        self.calls = 0
        self.result = result
        self.seconds = seconds

    async def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Flow:
    """A pipeline and one session through it, step by step."""

    entries: ClassVar[list[Any]] = []

    def __init__(
        self,
        entries: Sequence[Any],
        *things: type[Plugin] | type[Policy],
        clock: Clock | None = None,
        deadlines: StageDeadlines | None = None,
        dns: Any = None,
    ) -> None:
        self.pipeline = make(entries, *things, clock=clock, deadlines=deadlines, dns=dns)
        self.session: PipelineSession = self.pipeline.open()
        self.txn: PipelineTransaction | None = None

    async def connect(self) -> Decision:
        return await self.session.connect(SESSION)

    async def helo(self) -> Decision:
        return await self.session.helo(SESSION)

    async def mail(self) -> Decision:
        if self.txn:
            await self.txn.close()
        self.txn = self.session.begin(TRANSACTION)
        return await self.txn.mail(TRANSACTION)

    async def rcpt(self, recipient: Recipient = BEN) -> Decision:
        assert self.txn
        return await self.txn.rcpt(TRANSACTION, recipient)

    async def data(self) -> Decision:
        assert self.txn
        return await self.txn.data(TRANSACTION)

    async def message(self) -> Decision:
        assert self.txn
        return await self.txn.message(TRANSACTION, MESSAGE)

    async def whole(self) -> list[Decision]:
        """All stages of one transaction with one recipient."""
        before = [await self.connect(), await self.helo()]
        return [*before, await self.mail(), await self.rcpt(), await self.data(), await self.message()]

    async def close(self) -> None:
        if self.txn:
            await self.txn.close()
        await self.session.close()
        await self.pipeline.close()


def catalog(*things: type[Plugin] | type[Policy]) -> Catalog:
    plugins = {t.name: t for t in things if issubclass(t, Plugin)}
    return Catalog(plugins, {t.name: t for t in things if issubclass(t, Policy)})


def make(
    entries: Sequence[Any],
    *things: type[Plugin] | type[Policy],
    clock: Clock | None = None,
    deadlines: StageDeadlines | None = None,
    dns: Any = None,
    worker_slots: asyncio.Semaphore | None = None,
) -> Pipeline:
    return load(
        "default",
        entries,
        services(clock, dns),
        known=catalog(*things),
        deadlines=deadlines or StageDeadlines(),
        worker_slots=worker_slots,
    )
