"""The contract of state stores, kept by the fake that authors test with, those in memory, in a file and in Redis, and
the one with a stand-in for Redis."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.kit.contracts.state import OpenState, StateContract
from gateway.sdk import State
from gateway.sdk.testing import FakeState, ManualClock
from gateway.services.redis_options import RedisOptions
from gateway.services.redis_options import RedisServer as RedisAddress
from gateway.services.redis_state import RedisState
from gateway.services.stand_in import StandIn
from gateway.services.state import MemoryState, SqliteState
from tests.support.process import free_port
from tests.support.redis_server import RedisServer


class TestFakeState(StateContract):
    @pytest.fixture
    def open_state(self) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncIterator[State]:
            yield FakeState(clock)

        return opened


class TestMemoryState(StateContract):
    @pytest.fixture
    def open_state(self) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncIterator[State]:
            state = MemoryState(clock)
            await state.start()
            yield state
            await state.close()

        return opened


class TestSqliteState(StateContract):
    @pytest.fixture
    def open_state(self, tmp_path: Path) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncIterator[State]:
            state = SqliteState(tmp_path / "state", clock)
            await state.start()
            try:
                yield state
            finally:
                await state.close()

        return opened


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


_places = itertools.count()


class TestRedisState(StateContract):
    @pytest.fixture
    def open_state(self, redis_server: RedisServer) -> OpenState:
        @contextlib.asynccontextmanager
        async def opened(clock: ManualClock) -> AsyncIterator[State]:
            state = RedisState(redis_server.options(prefix=f"contract{next(_places)}", timeout=30.0), clock)
            await state.start()
            yield state
            await state.close()

        return opened


def stand_in(server: RedisAddress) -> OpenState:
    """Opens a shared store that is at this address, or is not, with a stand-in."""

    @contextlib.asynccontextmanager
    async def opened(clock: ManualClock) -> AsyncIterator[State]:
        shared = RedisState(RedisOptions(server, prefix=f"contract{next(_places)}", timeout=30.0), clock)
        state = StandIn(shared, MemoryState(clock), clock)
        await state.start()
        yield state
        await state.close()

    return opened


class TestStandInWhileRedisIsUp(StateContract):
    @pytest.fixture
    def open_state(self, redis_server: RedisServer) -> OpenState:
        return stand_in(RedisAddress("127.0.0.1", redis_server.port))


class TestStandInWhileRedisIsDown(StateContract):
    @pytest.fixture
    def open_state(self) -> OpenState:
        return stand_in(RedisAddress("127.0.0.1", free_port()))
