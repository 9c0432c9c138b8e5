"""What a check of a spool finds, as values; see `gateway.spool.fsck` and `gateway.spool.postgres.fsck`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What may be wrong."""

    DATABASE = "database"
    """It is none, or damaged."""
    VERSION = "version"
    """Another version of Gatepost wrote it; that is left alone."""
    ROW = "row"
    """A message's row cannot be read, or its state is none."""
    CONTENT = "content"
    """A message's content is missing, of the wrong size, or another message's too."""
    SCHEDULE = "schedule"
    """A queued message would never be tried again, or much later than its recipients are due."""
    ORPHAN = "orphan"
    """Content, or a file, that belongs to no message."""
    COUNT = "count"
    """The count of records is wrong."""
    LEFTOVER = "leftover"
    """What a repair or a command has left that was stopped."""
    SUSPENSIONS = "suspensions"
    """The list of suspended destinations cannot be read."""
    LEASE = "lease"
    """A worker is gone and has mail in hand; in PostgreSQL only."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and what a repair does about it; `name` is a queue id or a file."""

    kind: Kind
    shard: str
    name: str
    text: str
    repair: str

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "shard": self.shard,
            "name": self.name,
            "text": self.text,
            "repair": self.repair,
        }


@dataclass(slots=True)
class Report:
    """All that was found. `running` says that a gateway works on the spool; `aside` are shards set aside before."""

    findings: list[Finding] = field(default_factory=list)
    messages: int = 0
    corrupt: int = 0
    running: bool = False
    aside: list[str] = field(default_factory=list)
