"""TLS sessions of earlier connections, to take up again: a resumed handshake costs no certificate and one round less.

*Promises*: a session is only taken up by the rule, at the host and address, with which it was made. The peer of the
full handshake was checked by that rule; after an hour there is another one, so that an expired certificate is noticed.
Bounded in number.

*RFCs*: 8446 section 2.2 and 5077 (resumption).
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.transport.rule import Rule

LIFETIME: Final = 3600.0
MOST: Final = 100

Key = tuple[Rule, str, str]
"""A rule, a host's name and one of its addresses."""


@dataclass(frozen=True, slots=True)
class Resumable:
    """A TLS session, and how its peer was authenticated."""

    session: ssl.SSLSession
    peer: str = ""


class Sessions:
    """The sessions of one destination. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: OrderedDict[Key, tuple[Resumable, float]] = OrderedDict()

    def find(self, key: Key) -> Resumable | None:
        """One to take up."""
        session, until = self._kept.get(key, (None, 0.0))
        if session is not None and self._monotonic() >= until:
            del self._kept[key]
            return None
        return session

    def keep(self, key: Key, session: Resumable | None, *, resumed: bool) -> None:
        """Keep it for the next connection; a `resumed` one as long as that which it goes back to."""
        _, until = self._kept.pop(key, (None, 0.0))
        if session is None or (resumed and not until):
            return
        self._kept[key] = session, until if resumed else self._monotonic() + LIFETIME
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def forget(self, key: Key) -> bool:
        """Whether there was one."""
        return self._kept.pop(key, None) is not None
