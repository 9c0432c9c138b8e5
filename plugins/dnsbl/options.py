"""What the operator writes about DNS lists, and what of it nobody else may read: the key of a paid list.

Such a key is part of the zone's name, and so of a key of the configuration file. It stays out of error texts and
representations; `shown` is the name by which everything else knows the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pydantic import ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from gateway.sdk import Duration, LocalParts, OptionsModel, PluginOptions
from plugins.dnsbl.codes import parse_code
from plugins.dnsbl.tables import KEYED, TABLES, Kind, Table, gone

_ZONE: Final = re.compile(r"(?=.{1,180}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)+[A-Za-z0-9-]{1,63}\Z")
_DIGIT: Final = re.compile(r"[0-9]")
_LETTER: Final = re.compile(r"[a-z]")
# Longer than any list's name, or shorter and a mix of letters and digits.
_KEY_LENGTH: Final = 24
_MIXED_KEY_LENGTH: Final = 16
LEAST_PROBE: Final = 1.0


def split_key(zone: str) -> tuple[str, str]:
    """A paid list's key and the zone without it; the key is empty where there is none.

    Of lists that are known to have keys it is what stands in front of the list's name; of others a first label that
    looks like one.
    """
    zone = zone.lower().removesuffix(".")
    for suffix in KEYED:
        if zone.endswith("." + suffix):
            *key, name = zone.removesuffix("." + suffix).split(".")
            return ".".join(key), f"{name}.{suffix}"
    first, _, rest = zone.partition(".")
    mixed = _DIGIT.search(first) and _LETTER.search(first)
    if "." in rest and (len(first) >= _KEY_LENGTH or (mixed and len(first) >= _MIXED_KEY_LENGTH)):
        return first, rest
    return "", zone


def shown(zone: str, name: str = "") -> str:
    """The list's name in records, logs and metrics."""
    return name or split_key(zone)[1]


class ZoneOptions(OptionsModel):
    """One list. Written as a bare number, it is the weight."""

    model_config = ConfigDict(hide_input_in_errors=True)

    weight: FiniteFloat | None = Field(
        None,
        description="Weight of any code that `codes` does not name; where a table is known, of its strongest code. "
        "Default 1 (allow lists: -1) without `codes`; with them, none.",
    )
    codes: dict[str, FiniteFloat] = Field(
        {}, description="Return code or range -> weight; the narrowest range decides. They win over a table."
    )
    name: str = Field("", max_length=100, description="Name in records and logs. Default: the zone, without its key.")
    table: str = Field("", description="Known list whose return codes this zone has, such as a mirror of your own.")
    key_file: str = Field("", description="File with the key of a paid list, which is asked with in front of the zone.")
    probe: bool = Field(True, description="Probe it. Turn it off for lists without the test entries.")
    ipv6: bool | None = Field(
        None,
        description="Whether it lists IPv6 clients: false asks it for none, true probes its IPv6 test entries, too.",
    )

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
            parse_code(text)
        return value

    @field_validator("table")
    @classmethod
    def _known(cls, value: str) -> str:
        if value and value not in TABLES:
            raise ValueError(f"there are tables for {', '.join(sorted(TABLES))}")
        return value

    def known(self, zone: str) -> Table | None:
        """The table that this zone's codes are read by, None when its lists' codes are not known."""
        return TABLES.get(self.table or split_key(zone)[1])


class DnsblOptions(PluginOptions):
    """Options of `dnsbl`."""

    model_config = ConfigDict(hide_input_in_errors=True)

    zones: dict[str, ZoneOptions] = Field(
        min_length=1, max_length=50, description="Lists to ask: zone -> weight. Allow lists weigh less than 0."
    )
    reject_at: FiniteFloat | None = Field(1.0, description="Refuse for good from this score on; null never does.")
    defer_at: FiniteFloat | None = Field(None, description="Refuse for now from this score on; null never does.")
    allow_at: FiniteFloat | None = Field(
        None, lt=0, description="Refuse nobody whose allow lists together weigh this or less, whatever the score."
    )
    wait: Duration = Field(3.0, gt=0, description="Time for one list; after it the list counts as failed.")
    probe: Duration = Field(
        600.0, description="How often lists are probed; those that fail are bypassed until they pass. 0 never does."
    )
    private: bool = Field(True, description="Ask for private and loopback client addresses, too.")
    exempt: LocalParts = Field(
        frozenset({"postmaster"}), description="Local parts that listed clients may write to (RFC 5321 section 4.5.1)."
    )

    @field_validator("zones", mode="before")
    @classmethod
    def _keep_keys(cls, value: Any) -> Any:
        """What is wrong with a keyed zone is said here: pydantic would name the zone, and so the key."""
        for zone, options in value.items() if isinstance(value, dict) else ():
            if isinstance(zone, str) and split_key(zone)[0]:
                try:
                    ZoneOptions.model_validate(options)
                except ValidationError as error:
                    wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
                    where = ".".join(str(part) for part in wrong["loc"])
                    raise ValueError(f"{shown(zone)}: {where}: {wrong['msg']}") from None
        return value

    @field_validator("zones")
    @classmethod
    def _usable(cls, value: dict[str, ZoneOptions]) -> dict[str, ZoneOptions]:
        for zone, options in value.items():
            if not _ZONE.match(zone):
                raise ValueError("a zone is a domain name of at most 180 characters")
            _check(zone, options)
        return value

    @field_validator("probe")
    @classmethod
    def _not_all_the_time(cls, value: float) -> float:
        if 0 < value < LEAST_PROBE:
            raise ValueError("probe at most once a second, or never: 0")
        return value

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield (
                name,
                [shown(zone, options.name) for zone, options in self.zones.items()] if name == "zones" else value,
            )


def _check(zone: str, options: ZoneOptions) -> None:
    """Raises ValueError for a list that was shut down, one without its key, and a weight of the wrong sign."""
    key, bare = split_key(zone)
    if dead := gone(bare):
        raise ValueError(f"{dead[0]} was shut down ({dead[1].since}): {dead[1].advice}")
    if not key and not options.key_file and any(bare.endswith("." + suffix) for suffix in KEYED):
        raise ValueError(f"{bare} needs your key: name a key_file, or write KEY.{bare}")
    table = options.known(zone)
    if table and options.weight:
        if table.kind is Kind.ALLOW and options.weight > 0:
            raise ValueError(f"{bare} is an allow list: its weight must be less than 0")
        if table.kind is Kind.BLOCK and options.weight < 0:
            raise ValueError(f"{bare} is a block list: its weight must be more than 0")
