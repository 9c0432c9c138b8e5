"""The contract of state stores, kept by the fake that authors test with, the one in memory and the one in a file."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.kit.contracts.state import OpenState, StateContract
from gateway.sdk import State
from gateway.sdk.testing import FakeState, ManualClock
from gateway.services.state import MemoryState, SqliteState


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
