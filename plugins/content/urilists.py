"""What the operator writes about URI lists, and what their answers weigh.

*RFCs*: 5782 section 2.3 (answers in 127.0.0.0/8).
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, Field, FiniteFloat, field_validator, model_validator

from gateway.sdk import Answer, DnsStatus, OptionsModel
from plugins.content.hosts import is_address, registered

ZONE: Final = re.compile(r"(?=.{1,120}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)+[A-Za-z0-9-]{1,63}\Z")
_CODE: Final = re.compile(r"127\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?:-([0-9]{1,3}))?\Z")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
_LOOPBACK: Final = ipaddress.IPv4Network("127.0.0.0/8")
_ERRORS: Final = (
    # The list does not serve us, or did not understand; 127.0.0.1 also says so at SURBL and URIBL, and 127.0.1.255
    # at Spamhaus' DBL that it was asked for an address.
    ipaddress.IPv4Network("127.255.255.0/24"),
    ipaddress.IPv4Network("127.0.0.1/32"),
    ipaddress.IPv4Network("127.0.1.255/32"),
)


class Ask(StrEnum):
    """What a list is asked for."""

    DOMAIN = "domain"
    """The registered domain."""
    HOST = "host"
    """The whole name."""


class UriListOptions(OptionsModel):
    """One list. Written as a bare number, it is the weight."""

    model_config = ConfigDict(hide_input_in_errors=True)

    weight: FiniteFloat | None = Field(
        None,
        description="Weight of any answer that `codes` and `bits` do not name. Default 1 without these, else none.",
    )
    codes: dict[str, FiniteFloat] = Field(
        {}, description="Return code or range of its last number -> weight; the first that fits."
    )
    bits: dict[int, FiniteFloat] = Field(
        {}, description="Bit of the last number (1, 2, 4, ...) -> weight; the heaviest that is set."
    )
    ask: Ask = Field(Ask.DOMAIN, description="What it is asked for: the registered `domain`, or the whole `host` name.")
    addresses: bool = Field(False, description="Whether it is asked for IPv4 addresses, too.")
    name: str = Field("", max_length=100, description="Name in records and logs. Default: the zone.")
    key_file: str = Field("", description="File with the key of a paid list, which is asked with in front of the zone.")

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @field_validator("codes")
    @classmethod
    def _readable(cls, value: dict[str, float]) -> dict[str, float]:
        for text in value:
            parse_range(text)
        return value

    @field_validator("bits")
    @classmethod
    def _single(cls, value: dict[int, float]) -> dict[int, float]:
        for bit in value:
            if bit not in (1, 2, 4, 8, 16, 32, 64, 128):
                raise ValueError("a bit is 1, 2, 4, 8, 16, 32, 64 or 128")
        return value


def parse_range(text: str) -> tuple[int, int]:
    """First and last code of ``127.0.1.2`` or ``127.0.1.4-7``. Raises ValueError."""
    match = _CODE.match(text)
    if match:
        numbers = [int(match[n]) for n in (1, 2, 3)]
        last = int(match[4] or match[3])
        if max(*numbers, last) <= 255 and numbers[2] <= last:
            first = (127 << 24) + (numbers[0] << 16) + (numbers[1] << 8)
            return first + numbers[2], first + last
    raise ValueError("expected a return code such as 127.0.1.2 or 127.0.1.4-7")


class UriList:
    """A list as it is asked: `zone` with its key, which is for the DNS only, and `shown` for everybody else."""

    def __init__(self, zone: str, options: UriListOptions, key: str = "") -> None:
        bare = zone.lower().removesuffix(".")
        self.zone = f"{key}.{bare}" if key else bare
        self.shown = options.name or bare
        self._options = options
        self._ranges = [(*parse_range(text), weight) for text, weight in options.codes.items()]
        plain = not options.codes and not options.bits
        self._default = 1.0 if options.weight is None and plain else options.weight

    def question(self, host: str) -> str:
        """What stands in front of the zone for this host; empty when the list is not asked for it."""
        if is_address(host):
            if not self._options.addresses or ":" in host:
                return ""
            return ".".join(reversed(host.split(".")))
        return registered(host) if self._options.ask is Ask.DOMAIN else host

    def usable(self, answer: Answer) -> tuple[str, ...] | None:
        """The codes of an answer that may be listings; None when it is no usable answer at all."""
        if answer.status is DnsStatus.FAILED:
            return None
        found = sorted({ipaddress.IPv4Address(r) for r in answer.records if isinstance(r, str)})
        good = [c for c in found if c in _LOOPBACK and not any(c in error for error in _ERRORS)]
        return None if found and not good else tuple(map(str, good))

    def weigh(self, codes: tuple[str, ...]) -> tuple[tuple[str, ...], float]:
        """The codes that count, and the weight of the heaviest."""
        counted = []
        heaviest = 0.0
        for code in codes:
            weight = self._weight(int(ipaddress.IPv4Address(code)))
            if weight is not None:
                counted.append(code)
                heaviest = max(heaviest, weight, key=abs)
        return tuple(counted), heaviest

    def _weight(self, code: int) -> float | None:
        for first, last, weight in self._ranges:
            if first <= code <= last:
                return weight
        set_bits = [weight for bit, weight in self._options.bits.items() if code & bit]
        return max(set_bits, key=abs) if set_bits else self._default


def read_key(path: str) -> str:
    """A paid list's key. Raises ValueError, which never holds what the file does."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(256).decode("ascii", "replace").strip()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not _KEY.match(text):
        raise ValueError(f"{path} holds no key: expected letters and digits, at most 63")
    return text.lower()
