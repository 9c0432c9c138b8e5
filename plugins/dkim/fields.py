"""The header section as signatures see it: fields found by name from the bottom up, in canonical form.

*RFCs*: 6376 section 5.4.2 (which instance is signed).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gateway.sdk import HeaderField
from plugins.dkim.canonical import relaxed_field, simple_field


class Fields:
    """The fields of a message, top down, each one's relaxed form made once."""

    def __init__(self, fields: Sequence[HeaderField]) -> None:
        self._fields = fields
        self._relaxed: dict[int, bytes] = {}
        self._named: dict[str, list[int]] = {}
        for at, field in enumerate(fields):
            self._named.setdefault(field.name.lower(), []).append(at)

    def named(self, name: str) -> Sequence[int]:
        """The places of all fields of this name (in lower case), top down."""
        return self._named.get(name, ())

    def raw(self, place: int) -> bytes:
        """All octets of a field."""
        return self._fields[place].raw

    def form(self, place: int, *, relaxed: bool) -> bytes:
        """A field's canonical form, with its CRLF."""
        if not relaxed:
            return simple_field(self._fields[place].raw)
        if (form := self._relaxed.get(place)) is None:
            form = self._relaxed[place] = relaxed_field(self._fields[place].raw)
        return form

    def signed(self, names: Iterable[str], *, relaxed: bool, leave_out: int | None = None) -> Iterator[bytes]:
        """The canonical forms of the fields that h= names: the bottom one first, a name again means the next above it.

        A name beyond the last field of that name stands for nothing. `leave_out` is the place of the signature that is
        looked at, which never signs itself.
        """
        left: dict[str, list[int]] = {}
        for name in names:
            if name not in left:
                left[name] = [place for place in self._named.get(name, ()) if place != leave_out]
            if left[name]:
                yield self.form(left[name].pop(), relaxed=relaxed)
