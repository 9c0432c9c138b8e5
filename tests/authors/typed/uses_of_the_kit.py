"""The testing kit in the hands of an author, for the type checkers. Nothing here runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import assert_type

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kit.checks import check_policy
from gateway.kit.contracts.state import OpenState, StateContract
from gateway.kit.contracts.transport import Arrived, RefusalContract, RefusingPlace, TransportContract
from gateway.kit.door import SmtpSession
from gateway.kit.messages import Attached, Damage, MessageFactory
from gateway.kit.pipeline import Judged, PipelineBench
from gateway.kit.pytest_plugin import MakePipeline, OpenSession
from gateway.kit.record import Said
from gateway.kit.strategies import findings, hostile_messages, sessions
from gateway.sdk import Address, Outcome, Policy, Recipient, Reply, Session, Spf, State, Verdict, reject
from gateway.sdk.testing import FakeDns, FakeState, ManualClock
from gateway.transport.discard import DiscardTransport
from gateway.transport.transport import Transport


class Never(Policy):
    """Refuses everybody."""

    name = "never"

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("1.1", "no")


def test_in_a_pipeline(gatepost_pipeline: MakePipeline, message_factory: MessageFactory) -> None:
    pipeline = assert_type(gatepost_pipeline(["never"], Never, dns=FakeDns()), PipelineBench)
    octets = message_factory("Hello", attachments=[Attached("a", b"")], damage=[Damage.NUL, "bare-lf"])
    judged = assert_type(pipeline.judge(assert_type(octets, bytes), client="192.0.2.1"), Judged)
    assert judged.outcome is Outcome.REJECTED
    assert_type(judged.decided, Said | None)
    assert_type(judged.verdict, Verdict)
    assert_type(judged.found(Spf), Spf | None)
    assert_type(judged.queued[0].content, bytes)
    pipeline.bench.clock.advance(1)


def test_as_a_client(smtp_session: OpenSession) -> None:
    session = assert_type(smtp_session("- never", Never, client="2001:db8::1"), SmtpSession)
    assert_type(session.say_all("EHLO x", b"NOOP"), list[Reply])
    assert session.record(session.message(b"")).outcome is Outcome.REJECTED


def test_with_whatever_may_come() -> None:
    check_policy(Never, examples=3)


@given(sessions(), hostile_messages(), findings(Spf, domain=st.just("example.org")))
def test_of_my_own(session: Session, octets: bytes, spf: Spf) -> None:
    assert spf.domain


class TestMyState(StateContract):
    @pytest.fixture
    def open_state(self) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncGenerator[State, None]:
            yield FakeState(clock)

        return opened


class FarEnd:
    """The far end of a transport of mine."""

    def recipient(self, number: int) -> Recipient:
        return Recipient(Address(f"user{number}", "example.org"))

    def stranger(self) -> Recipient:
        return Recipient(Address("nobody", "example.org"))

    def transport(self) -> Transport:
        return DiscardTransport()

    async def received(self) -> list[Arrived]:
        return []

    async def down(self) -> None: ...

    async def close(self) -> None: ...


class TestMyTransport(TransportContract, RefusalContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> RefusingPlace:
        return FarEnd()
