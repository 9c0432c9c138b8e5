"""The state store that a configuration asks for: on this machine, or shared by replicas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import Config
from gateway.sdk.services import Clock
from gateway.services.state import SqliteState

if TYPE_CHECKING:
    from gateway.services.redis_state import RedisState
    from gateway.services.stand_in import StandIn


def make_state(config: Config, clock: Clock) -> SqliteState | RedisState | StandIn:
    """The store, not started. All of its time is `clock`'s, but for what is in Redis: that goes by the server's."""
    wanted, path = config.state.redis, Path(config.state.path)
    if wanted is None:
        return SqliteState(path, clock)
    # Its library takes a while to import, and most gateways have none.
    from gateway.services.redis_state import RedisState
    from gateway.services.stand_in import StandIn

    shared = RedisState(wanted.options())
    return shared if wanted.fallback == "none" else StandIn(shared, SqliteState(path, clock), clock)
