"""The postmaster's hands on a spool, whatever it is: what the command line and the admin API do with it.

`gateway.spool.postmaster.Postmaster` has them on SQLite, `gateway.spool.postgres.postmaster.PostgresPostmaster` on
PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.ops.operations import Amended, Amendment, Selection, Suspension, Waiting
from gateway.spool.parcel import Entered, Parcel
from gateway.spool.spool import Spool, Stored
from gateway.spool.suspensions import Source

Hop = Callable[[str, str, str, str, str], str]
"""Local part and domain of a recipient, the message's own next hop, and local part and domain of its sender, both empty
for the null sender, to the destination as lists show it. Does not raise."""


@dataclass(frozen=True, slots=True)
class Found:
    """A message, and whether a gateway has it in hand."""

    message: Stored
    claimed: bool


class Hands(Protocol):
    """Find messages, amend them, put some in, suspend destinations. All of it raises `SpoolError`.

    Beside a running gateway as without one. A message that a gateway has in hand is left to it, after a wait if one is
    wanted; claims of a gateway that died are none.
    """

    async def find(self, wanted: Selection, hop: Hop, *, limit: int, after: str = "") -> list[Found]:
        """Messages by id, rising, beginning after `after`. `hop` says where a recipient's mail goes."""

    async def one(self, id: str) -> Found | None:
        """One message, even when its row cannot be read."""

    async def waiting(self, now: float, hop: Hop) -> list[Waiting]:
        """What waits for each destination, the most recipients first."""

    async def amend(
        self, ids: Sequence[str], amendment: Amendment, *, by: str, wait: float = 0.0
    ) -> dict[str, Amended]:
        """Amend messages; gives what came of each. What is claimed is tried again for `wait` seconds.

        `by` says who wants it so: that is kept with the attempts.
        """

    async def hasten(self, wanted: Selection, hop: Hop, *, by: str, wait: float = 0.0) -> dict[str, Amended]:
        """Have all queued messages that are meant tried again now: `Retry`, for many at once."""

    async def describe(self, id: str, sha256: str) -> dict[str, Any] | None:
        """What an export says of a message whose content has this digest; None for one that is not there whole."""

    async def enter_described(
        self, data: Any, check_next_hop: Callable[[str], object], blocks: AsyncIterator[bytes], *, by: str
    ) -> str | None:
        """Store what `describe` said; gives its id, None when that is there. Raises ValueError, too."""

    async def enter(self, parcel: Parcel, blocks: AsyncIterator[bytes], *, by: str) -> Entered:
        """Store a message that was exported, with the state that it was in."""

    async def suspensions(self) -> dict[str, Suspension]:
        """What is suspended."""

    async def suspend(self, suspension: Suspension) -> bool:
        """Have nothing delivered there, from about now on; False when that is so already."""

    async def resume(self, destination: str, *, by: str) -> Suspension | None:
        """Have mail delivered there again; None when it was not suspended."""

    @property
    def listing(self) -> Source:
        """The list of what is suspended, to be looked at again and again."""

    async def unattended(self) -> bool:
        """Whether there is mail that no gateway works on."""


class OperatedSpool(Spool, Protocol):
    """A spool that the postmaster may lay hands on."""

    @property
    def postmaster(self) -> Hands:
        """The hands."""
