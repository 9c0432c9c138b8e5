"""What a decision record does not tell, in place of it: whatever looks at it hears that it is not told.

So a policy that never looks at a local part, or at a text that was changed, is asked as usual, and no other is ever
asked about a hash that it would take for the truth.

*Fails by*: `NotTold`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, NoReturn

from gateway.mail.address import Address, parse_mailbox
from gateway.ops.redaction import ROLES, Redactor, is_hidden


class NotTold(Exception):
    """The record does not tell. ``str(error)`` says what, in words that are the same for the same cause."""


class Hidden:
    """Stands for a value that was redacted, or never recorded. It is no text on purpose, so that nothing can mistake it
    for one."""

    __slots__ = ("_what", "_why")

    def __init__(self, what: str, why: str = "was redacted") -> None:
        self._what = what
        self._why = why

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotTold(f"{self._what} {self._why}")

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()

    __str__ = __repr__ = __format__ = __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __add__ = __radd__ = __mod__ = _refuse


class HiddenAddress(Address):
    """An address whose local part was redacted; `recorded` is how it stands in the record. The domain is told.

    Whether the local part is one of some names can be told with the key, or where those are never redacted.
    """

    __slots__ = ("_redactor", "recorded")

    recorded: str
    _redactor: Redactor | None

    def __init__(self, recorded: str, redactor: Redactor | None) -> None:
        """Raises `gateway.mail.address.AddressError`."""
        object.__setattr__(self, "domain", parse_mailbox(recorded, utf8=True).domain)
        object.__setattr__(self, "recorded", recorded)
        object.__setattr__(self, "_redactor", redactor)

    @property
    def local(self) -> str:
        raise NotTold("the local part of an address was redacted")

    def has_local(self, names: Collection[str]) -> bool:
        others = [name for name in names if name not in ROLES]
        if not others:
            return False
        redactor = self._redactor
        if redactor is None:
            raise NotTold("the local part of an address was redacted")
        local = self.recorded.rpartition("@")[0]
        return any(redactor.local(name, self.domain) == local for name in others)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HiddenAddress) and other.recorded == self.recorded

    def __hash__(self) -> int:
        return hash(self.recorded)

    def __repr__(self) -> str:
        return f"HiddenAddress({self.recorded!r})"


@functools.lru_cache(maxsize=10_000)
def read_address(text: str) -> Address:
    """An address of a record: who got mail once got more of it, and who sends wrote before.

    Raises `gateway.mail.address.AddressError`.
    """
    return parse_mailbox(text, utf8=True)


def read_hidden(text: str, *, redactor: Redactor | None) -> Address:
    """An address of a record in which some are redacted. Raises `gateway.mail.address.AddressError`."""
    return HiddenAddress(text, redactor) if is_hidden(text) else read_address(text)


def recorded(address: Address) -> str:
    """The address as it stands in the record."""
    return address.recorded if isinstance(address, HiddenAddress) else str(address)
