"""Enforcing an entry for a part of the traffic: always the same part, so that a client hears the same every time.

The part grows with the share and never loses anybody: who is in at 10 % is in at 20 %.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from gateway.mail.address import Address
from gateway.mail.session import IPAddress, Session
from gateway.sdk.stage import Transaction

_SHARE: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)\s*%\Z")
_PREFIX: Final = {4: 24, 6: 64}
_PARTS: Final = 1 << 32


class By(StrEnum):
    """What decides who is in."""

    CLIENT = "client"
    """The client's network: /24, or /64 of IPv6."""
    SENDER = "sender"
    """The domain of the sender; before MAIL, and for the null sender, the client's network."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """`share` of the traffic, from 0 to 1, in which an entry is enforced."""

    share: float
    by: By = By.CLIENT

    def covers(self, entry: str, session: Session, txn: Transaction | None) -> bool:
        """Whether the entry of this name is enforced here."""
        return _place(entry, self._key(session, txn)) < self.share * _PARTS

    def _key(self, session: Session, txn: Transaction | None) -> str:
        if self.by is By.SENDER and txn is not None and isinstance(txn.sender, Address):
            return txn.sender.ascii_domain
        return _network(session.client)

    def __str__(self) -> str:
        return f"{100 * self.share:g}%"


@functools.lru_cache(maxsize=10_000)
def _network(client: IPAddress) -> str:
    return str(ipaddress.ip_network((client, _PREFIX[client.version]), strict=False))


@functools.lru_cache(maxsize=10_000)
def _place(entry: str, key: str) -> int:
    digest = hashlib.blake2b(f"{entry} {key}".encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest)


def parse_rollout(value: Any) -> Rollout:
    """A rollout from ``10%``, or ``{share: 10%, by: sender}``. Raises ValueError with what to write."""
    by: Any = By.CLIENT
    if isinstance(value, Mapping):
        if not {"share"} <= value.keys() <= {"share", "by"}:
            raise ValueError("write 10%, or {share: 10%, by: client}")
        by, value = value.get("by", By.CLIENT), value["share"]
    match = _SHARE.match(value) if isinstance(value, str) else None
    if not match or float(match[1]) > 100:
        raise ValueError("expected a share of the traffic, such as 10%")
    if by not in list(By):
        raise ValueError(f"by is one of {', '.join(By)}")
    return Rollout(float(match[1]) / 100, By(by))
