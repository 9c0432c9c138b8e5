"""Where a client is: country and autonomous system by its address, from database files in the MaxMind DB format.

The files are read into memory, and read again when they change. They are not mapped: a file that is written over in
place would take the process with it.

*Fails by*: refusing to start when the package `maxminddb` or a file is missing. Later, a file that is gone or broken
leaves what was read before in force.
"""

from __future__ import annotations

import io
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Gauge
from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    Geo,
    LocalParts,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Session,
    Stage,
    Verdict,
    WatchedFile,
    defer,
    finds,
    reject,
)

_COUNTRY: Final = re.compile(r"[A-Z]{2}\Z")
_MAX_ASN: Final = (1 << 32) - 1
_ORGANIZATION_CHARACTERS: Final = 200
_PROBES: Final = tuple(ipaddress.IPv4Address(first << 24 | 1) for first in range(256))
"""Addresses that are looked up to see whether a new file can be used."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BUILT = Gauge(
    "gatepost_geoip_built_timestamp_seconds",
    "When the database in use was built, in seconds since 1970.",
    ["database"],
    multiprocess_mode="livemin",
)


class GeoipOptions(PluginOptions):
    """Options of `geoip`."""

    country: str | None = Field(None, min_length=1, description="Path of a database with countries (or cities).")
    asn: str | None = Field(None, min_length=1, description="Path of a database with autonomous systems.")
    reject_countries: tuple[str, ...] = Field((), description="Countries whose clients are refused for good.")
    defer_countries: tuple[str, ...] = Field((), description="Countries whose clients are refused for now.")
    allow_countries: tuple[str, ...] = Field(
        (), description="If not empty: clients of all other known countries are refused for good."
    )
    reject_asns: tuple[int, ...] = Field((), description="Autonomous systems whose clients are refused for good.")
    exempt: LocalParts = Field(
        frozenset({"postmaster"}), description="Local parts that any client may write to (RFC 5321 section 4.5.1)."
    )

    @field_validator("reject_countries", "defer_countries", "allow_countries", mode="before")
    @classmethod
    def _codes(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        out = []
        for code in value:
            if code is False:
                raise ValueError('YAML reads NO as "false"; write Norway\'s code in quotes: "NO"')
            if not isinstance(code, str) or not _COUNTRY.match(code.upper()):
                raise ValueError(f"{code!r} is no country code of two letters (ISO 3166), such as DE")
            out.append(code.upper())
        return out

    @field_validator("reject_asns")
    @classmethod
    def _numbers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for number in value:
            if not 0 < number <= _MAX_ASN:
                raise ValueError(f"{number} is no AS number; they go from 1 to {_MAX_ASN}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> GeoipOptions:
        if not self.country and not self.asn:
            raise ValueError("give the path of a database: country, asn or both")
        if not self.country and (self.reject_countries or self.defer_countries or self.allow_countries):
            raise ValueError("rules about countries need the path of a database: country")
        if not self.asn and self.reject_asns:
            raise ValueError("reject_asns needs the path of a database: asn")
        lists = (self.reject_countries, self.defer_countries, self.allow_countries)
        twice = {code for one in lists for other in lists if one is not other for code in set(one) & set(other)}
        if twice - (set(self.defer_countries) & set(self.allow_countries)):
            raise ValueError(f"{', '.join(sorted(twice))} stands in more than one list of countries")
        return self


class GeoipPolicy(Policy):
    """Refuse clients by where they are. Where that is not known, nothing is held against them."""

    name = "geoip"
    Options = GeoipOptions
    options: GeoipOptions

    def on_rcpt(self, session: Session, recipient: Recipient, geo: Geo) -> Verdict:
        options = self.options
        if session.trusted or recipient.address.has_local(options.exempt):
            return PROCEED
        if geo.asn in options.reject_asns:
            return reject("7.1", "not accepted from your network", reason=f"AS{geo.asn} {geo.organization}".strip())
        unwanted = bool(options.allow_countries) and geo.country not in options.allow_countries
        if geo.country and (unwanted or geo.country in options.reject_countries):
            return reject("7.1", "not accepted from your network", reason=f"country {geo.country}")
        if geo.country in options.defer_countries:
            reason = f"country {geo.country}"
            return defer("7.1", "not accepted from your network now, try again later", code=450, reason=reason)
        return PROCEED


class GeoipPlugin(Plugin):
    """Looks the client's address up in the files."""

    name = "geoip"
    Options = GeoipOptions
    policy = GeoipPolicy
    options: GeoipOptions

    async def start(self) -> None:
        parse = _parser()
        self._country = await self._open(self.options.country, parse)
        self._asn = await self._open(self.options.asn, parse)

    async def _open(self, path: str | None, parse: Callable[[bytes], Database]) -> WatchedFile[Database] | None:
        if path is None:
            return None
        file = WatchedFile(path, parse, self.services.clock)
        await file.start()
        return file

    @finds(Stage.CONNECT)
    async def located(self, session: Session) -> Geo:
        """Country and autonomous system; what is not known is empty."""
        client: IPAddress = getattr(session.client, "ipv4_mapped", None) or session.client
        countries, systems = await self._find(self._country, client), await self._find(self._asn, client)
        return Geo(_country(countries), _number(systems), _organization(systems))

    async def _find(self, file: WatchedFile[Database] | None, client: IPAddress) -> dict[str, Any]:
        if file is None:
            return {}
        database = await file.current()
        BUILT.labels(database.kind).set(database.built)
        return database.find(client)


@dataclass(frozen=True, slots=True)
class Database:
    """A file that has been read. `kind` is its own name for what it holds, `built` in seconds since 1970."""

    kind: str
    built: int
    reader: Any

    def find(self, client: IPAddress) -> dict[str, Any]:
        """The address's record, empty when there is none; a file for IPv4 only has none for IPv6."""
        if client.version == 6 and self.reader.metadata().ip_version == 4:
            return {}
        record = self.reader.get(client)
        return record if isinstance(record, dict) else {}


def _parser() -> Callable[[bytes], Database]:
    """What makes a database of a file's octets. Raises RuntimeError when the package for it is missing."""
    try:
        import maxminddb
    except ImportError as error:
        raise RuntimeError("geoip needs the package maxminddb: install gatepost[geoip]") from error

    def parse(data: bytes) -> Database:
        try:
            reader = maxminddb.open_database(io.BytesIO(data), maxminddb.MODE_FD)
            metadata = reader.metadata()
            database = Database(str(metadata.database_type)[:100], int(metadata.build_epoch), reader)
            for probe in _PROBES:
                database.find(probe)
        except Exception as error:  # a broken file makes the reader raise whatever it stumbles over
            raise ValueError(f"no usable MaxMind DB file ({type(error).__name__}: {error})"[:300]) from error
        return database

    return parse


def _country(record: dict[str, Any]) -> str:
    """ISO code of where the address is used, else of where it is registered."""
    for name in ("country", "registered_country"):
        found = record.get(name)
        code = found.get("iso_code") if isinstance(found, dict) else None
        if isinstance(code, str) and _COUNTRY.match(code):
            return code
    return ""


def _number(record: dict[str, Any]) -> int:
    number = record.get("autonomous_system_number")
    return number if isinstance(number, int) and 0 < number <= _MAX_ASN else 0


def _organization(record: dict[str, Any]) -> str:
    name = record.get("autonomous_system_organization")
    return name[:_ORGANIZATION_CHARACTERS] if isinstance(name, str) else ""
