"""The contracts fail who does not keep them; those who do are in tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.kit.contracts.spool import SpoolContract
from gateway.kit.contracts.state import OpenState, StateContract
from gateway.kit.contracts.stock import SMALL
from gateway.kit.contracts.transport import Arrived, TransportContract
from gateway.mail.reply import Reply
from gateway.sdk import Address, Recipient, State, Taken
from gateway.sdk.testing import FakeState, ManualClock
from gateway.spool.hands import OperatedSpool
from gateway.transport.transport import Delivery, Fault, Outcome, Result, Transport
from tests.contract.test_spool_contract import SqlitePlace

STORED = Outcome(Result.DELIVERED, Reply(250, "0.0", "stored"))
FULL = Outcome(Result.DEFERRED, Reply(451, "3.0", "no room"), fault=Fault.OURS)


class Files:
    """A transport that keeps the contract: a file for each recipient, whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        return [await self._store(delivery, recipient) for recipient in delivery.recipients]

    async def _store(self, delivery: Delivery, recipient: Recipient) -> Outcome:
        self.count += 1
        path = self.directory / f"{recipient.address}-{self.count}-{id(self)}"
        half = self.directory / f".{path.name}"
        try:
            await self.write(half, delivery)
        except OSError:
            return FULL
        half.rename(path)
        return STORED

    async def write(self, path: Path, delivery: Delivery) -> None:
        with path.open("wb") as file:
            async for block in delivery.content.blocks():
                file.write(block)

    async def close(self) -> None:
        """Nothing is open."""


class Place:
    """Where such a transport delivers to."""

    def __init__(self, directory: Path, kind: type[Files]) -> None:
        self._directory = directory
        self._kind = kind

    def recipient(self, number: int) -> Recipient:
        return Recipient(Address(f"user{number}", "example.org"))

    def transport(self) -> Transport:
        return self._kind(self._directory)

    async def received(self) -> list[Arrived]:
        files = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        return [Arrived(path.name.split("-")[0], path.read_bytes()) for path in files]

    async def down(self) -> None:
        self._directory.rename(self._directory.with_name(f"{self._directory.name}-gone"))

    async def close(self) -> None:
        """Nothing is open."""


class OneOutcome(Files):
    """Forgets all recipients but the first."""

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        return (await super().deliver(delivery))[:1]


class Optimist(Files):
    """Says that all is delivered, whatever happened."""

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        return [STORED for _ in await super().deliver(delivery)]


class Fatalist(Files):
    """Has one answer to everything."""

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        return [
            Outcome(one.result, Reply(250, "0.0", "well"), fault=one.fault) for one in await super().deliver(delivery)
        ]


class InPlace(Files):
    """Writes where the reader looks."""

    async def _store(self, delivery: Delivery, recipient: Recipient) -> Outcome:
        self.count += 1
        with contextlib.suppress(OSError):
            await self.write(self.directory / f"{recipient.address}-{self.count}-{id(self)}", delivery)
            return STORED
        return FULL


class Whole(Files):
    """Takes all into memory."""

    async def write(self, path: Path, delivery: Delivery) -> None:
        path.write_bytes(b"".join([block async for block in delivery.content.blocks()]))


class Stubborn(Files):
    """Does not let itself be called off."""

    async def write(self, path: Path, delivery: Delivery) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await super().write(path, delivery)


class Mixed(Files):
    """One file for all that is delivered at the same time."""

    async def write(self, path: Path, delivery: Delivery) -> None:
        with path.open("wb") as file:
            async for block in delivery.content.blocks():
                with (self.directory / ".shared").open("ab") as shared:
                    shared.write(block)
                await asyncio.sleep(0)
            file.write((self.directory / ".shared").read_bytes())


class Shut(Files):
    """Is of no use once it was closed."""

    closed = False

    async def write(self, path: Path, delivery: Delivery) -> None:
        if self.closed:
            raise RuntimeError("closed")
        await super().write(path, delivery)

    async def close(self) -> None:
        self.closed = True


class Proud(Files):
    """Raises what should be an outcome."""

    async def _store(self, delivery: Delivery, recipient: Recipient) -> Outcome:
        path = self.directory / f"{recipient.address}-{id(delivery)}"
        path.write_bytes(b"".join([block async for block in delivery.content.blocks()]))
        return STORED


T = TransportContract


def put_to_the_test(method: Callable[..., None], **given: Any) -> None:
    """Run one of a contract's tests, with the first of its parameters' values."""
    for mark in getattr(method, "pytestmark", ()):
        given.setdefault(mark.args[0], mark.args[1][-1])
    method(None, **given)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (OneOutcome, T.test_each_recipient_has_one_outcome_and_one_message),
        (Optimist, T.test_a_far_end_that_is_down_defers_everybody),
        (Fatalist, T.test_a_far_end_that_is_down_defers_everybody),
        (InPlace, T.test_what_is_called_off_leaves_no_half_message),
        (InPlace, T.test_content_that_cannot_be_read_is_not_delivered),
        (Whole, T.test_large_content_is_streamed),
        (Stubborn, T.test_what_is_called_off_leaves_no_half_message),
        (Mixed, T.test_deliveries_at_the_same_time_do_not_mix),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_transport_that_breaks_the_contract_fails(
    tmp_path: Path, kind: type[Files], method: Callable[..., None]
) -> None:
    for each in ("honest", "broken"):
        (tmp_path / each).mkdir()
    put_to_the_test(method, place=Place(tmp_path / "honest", Files))
    with pytest.raises(AssertionError):
        put_to_the_test(method, place=Place(tmp_path / "broken", kind))


@pytest.mark.parametrize(
    ("kind", "method", "error"),
    [
        (Shut, T.test_it_can_be_closed_at_any_time_and_more_than_once, RuntimeError),
        (Proud, T.test_a_far_end_that_is_down_defers_everybody, OSError),
    ],
)
def test_a_transport_that_raises_fails(
    tmp_path: Path, kind: type[Files], method: Callable[..., None], error: type[Exception]
) -> None:
    with pytest.raises(error):
        put_to_the_test(method, place=Place(tmp_path, kind))


class Generous(FakeState):
    """Buckets never run dry."""

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        return Taken(True, capacity, 0.0)


class Hasty(FakeState):
    """Looks first and stores later."""

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        there = await self.get(key)
        await asyncio.sleep(0)
        if there is None:
            await self.put(key, value, ttl)
        return there


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (Generous, StateContract.test_a_bucket_gives_many_at_once_no_more_than_it_holds),
        (Hasty, StateContract.test_put_new_by_many_at_once_has_one_winner),
    ],
)
def test_a_state_store_that_breaks_the_contract_fails(kind: type[FakeState], method: Callable[..., None]) -> None:
    def opening(made: type[FakeState]) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncIterator[State]:
            yield made(clock)

        return opened

    put_to_the_test(method, open_state=opening(FakeState))
    with pytest.raises(AssertionError):
        put_to_the_test(method, open_state=opening(kind))


class Forgetful(SqlitePlace):
    """Begins anew each time."""

    async def open(self, *, record: bool = True) -> OperatedSpool:
        await self.close()
        shutil.rmtree(self._directory / "spool", ignore_errors=True)
        return await super().open(record=record)


def test_a_spool_that_forgets_fails(tmp_path: Path) -> None:
    method = SpoolContract.test_what_was_committed_is_claimed_as_it_was
    put_to_the_test(method, place=SqlitePlace(tmp_path / "kept"), content=SMALL, restarted=True)
    with pytest.raises(ValueError, match="unpack"):
        put_to_the_test(method, place=Forgetful(tmp_path / "lost"), content=SMALL, restarted=True)


def test_every_test_of_a_contract_is_seen_by_pytest() -> None:
    for contract in (TransportContract, StateContract, SpoolContract):
        for name in dir(contract):
            if name.startswith("test_"):
                method = getattr(contract, name)
                parameters = inspect.signature(method).parameters
                assert not inspect.iscoroutinefunction(method), "pytest would not wait for it"
                assert {"place", "open_state"} & set(parameters), name
