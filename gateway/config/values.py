"""Types of single configuration values: addresses, networks, names, files, and units with bounds."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from gateway.config.problems import Path
from gateway.mail.address import AddressError, ascii_domain, parse_domain, parse_mailbox
from gateway.mail.session import IPAddress
from gateway.sdk import options
from gateway.sdk.options import OptionsModel

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BASE: Final = "base"
"""Key of the validation context: the directory that relative paths start from."""

REFUSED: Final = "refused"
"""Type of the errors that `refuse` makes."""

_PORT = re.compile(r"[0-9]{1,5}\Z")


@dataclass(frozen=True, slots=True)
class HostPort:
    """An IP address and a TCP or UDP port, as ``127.0.0.1:25`` or ``[::1]:25``."""

    host: str
    port: int

    @property
    def ip(self) -> IPAddress:
        return ipaddress.ip_address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(value: Any, default_port: int | None = None) -> HostPort:
    """Read ``host:port`` or ``[v6]:port``; raises ValueError. `host` is an IP address, or localhost (127.0.0.1).

    Without a default, the port must be given; 0 means any free one.
    """
    if isinstance(value, HostPort):
        return value
    wanted = "an IP address and port such as 127.0.0.1:25 or [::1]:25"
    if not isinstance(value, str):
        raise ValueError(f"expected {wanted}")
    if default_port is not None and (ip := _ip(value)):
        return HostPort(str(ip), default_port)
    host, colon, port = value.rpartition(":")
    if not colon or not _PORT.match(port):
        raise ValueError(f"expected {wanted}: there is no port")
    if int(port) > 65535:
        raise ValueError(f"expected {wanted}: ports end at 65535")
    if not host or host == "*":
        raise ValueError(f"expected {wanted}; for all addresses write 0.0.0.0:{port} or [::]:{port}")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = _ip("127.0.0.1" if host.lower() == "localhost" else host[1:-1] if bracketed else host)
    if ip is None or (ip.version == 6) != bracketed:
        raise ValueError(f"expected {wanted}")
    return HostPort(str(ip), int(port))


def _ip(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _parse_network(value: Any) -> Network:
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a network such as 10.0.0.0/8 or 2001:db8::/32")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError("expected a network such as 10.0.0.0/8 or 2001:db8::/32") from error
        raise ValueError(f"has bits beyond its mask; write {network}") from error


def _parse_address(value: Any) -> IPAddress:
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return value
    ip = _ip(value) if isinstance(value, str) and "%" not in value else None
    if ip is None:
        raise ValueError("expected an IP address such as 192.0.2.1 or 2001:db8::1")
    return ip


def parse_domain_name(value: Any) -> str:
    """A domain name as lower-case A-labels; raises ValueError for anything else, address literals included."""
    if not isinstance(value, str):
        raise ValueError("expected a domain name")
    try:
        name = ascii_domain(parse_domain(value, utf8=True))
    except AddressError as error:
        raise ValueError(str(error)) from error
    if name.startswith("["):
        raise ValueError("expected a domain name, not an address")
    return name


def parse_domain_key(value: Any) -> str:
    """As `parse_domain_name`; a dot before the name stands for all its subdomains."""
    dot = "." if isinstance(value, str) and value.startswith(".") else ""
    return dot + parse_domain_name(value[len(dot) :] if dot else value)


def parse_sender_key(value: Any) -> str:
    """A sender or those of a domain: an address's key, what `parse_domain_key` takes, ``<>`` for the null sender."""
    if not isinstance(value, str):
        raise ValueError("expected an address, a domain or <>")
    if value == "<>":
        return value
    if "@" not in value:
        return parse_domain_key(value)
    try:
        return parse_mailbox(value, utf8=True).key
    except AddressError as error:
        raise ValueError(f"expected an address, a domain or <>: {error}") from error


def resolve_path(value: Any, info: ValidationInfo) -> str:
    """An absolute path; relative ones start from the directory of the configuration file."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a path")
    base = (info.context or {}).get(BASE, ".")
    return os.path.abspath(os.path.join(base, value))


def _readable_file(value: Any, info: ValidationInfo) -> str:
    path = resolve_path(value, info)
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return path


def refuse(at: Path, message: str) -> PydanticCustomError:
    """An error for a part of the value under validation: `at` is the way there from the value."""
    return PydanticCustomError(REFUSED, "{message}", {"message": message, "at": at})


def _ca_file(value: Any, info: ValidationInfo) -> str:
    path = resolve_path(value, info)
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else None
        raise ValueError(f"cannot read CA certificates from {path}: {reason or 'no PEM certificates'}") from error
    return path


def key_pair_problem(certificate: str, key: str) -> str:
    """What is wrong with the two PEM files as a pair; empty when nothing is."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        return f"certificate and key cannot be used together: {reason}"
    return ""


def authorities_problem(path: str) -> str:
    """What is wrong with a PEM file of CAs; empty when nothing is."""
    # Its X.509 library takes a while to import, and most gateways never need it.
    from gateway.smtp.certificate import read_authorities

    try:
        read_authorities(path)
    except (OSError, ValueError) as error:
        return f"{path} cannot be used: {error}"
    return ""


class Section(OptionsModel):
    """A part of the configuration. The text under each field is its description in schema and reference.

    See `gateway.config.described`, for those who need it.
    """

    # Each section is built as a part of the whole that holds it, and not on its own before.
    model_config = ConfigDict(defer_build=True)


def section() -> Any:
    """Default of a part that need not be given: as if it were given empty."""
    return Field(default_factory=dict, validate_default=True)


def between(low: str, high: str) -> AfterValidator:
    """Bounds of a size, as the operator would write them."""

    def check(value: int) -> int:
        if not options.parse_size(low) <= value <= options.parse_size(high):
            raise ValueError(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


_DURATION_SCHEMA = WithJsonSchema(
    {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)$", "maximum": 0, "minimum": 0}
)
_SIZE_SCHEMA = WithJsonSchema({"type": ["string", "integer"], "pattern": r"^[0-9]+\s*(B|KiB|MiB|GiB|kB|MB|GB)$"})

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Duration = Annotated[options.Duration, Field(gt=0, le=366 * 86400.0, allow_inf_nan=False), _DURATION_SCHEMA]
DurationOrNone = Annotated[options.Duration, Field(ge=0, le=366 * 86400.0, allow_inf_nan=False), _DURATION_SCHEMA]
Size = Annotated[options.Size, Field(ge=1, le=1 << 50), _SIZE_SCHEMA]
SizeOrNone = Annotated[options.Size, Field(ge=0, le=1 << 50), _SIZE_SCHEMA]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Secret = Annotated[SecretStr, Field(min_length=16, max_length=1000)]

Endpoint = Annotated[
    HostPort,
    BeforeValidator(parse_host_port),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$"}),
]
Nameserver = Annotated[
    HostPort,
    BeforeValidator(lambda value: parse_host_port(value, 53)),
    PlainSerializer(str),
    WithJsonSchema({"type": "string"}),
]
Cidr = Annotated[Network, BeforeValidator(_parse_network), PlainSerializer(str), WithJsonSchema({"type": "string"})]
IpAddress = Annotated[
    IPAddress, BeforeValidator(_parse_address), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
DomainName = Annotated[str, BeforeValidator(parse_domain_name)]
DomainKey = Annotated[str, BeforeValidator(parse_domain_key)]
FilePath = Annotated[str, BeforeValidator(resolve_path)]
ReadableFile = Annotated[str, BeforeValidator(_readable_file)]
CaFile = Annotated[str, BeforeValidator(_ca_file)]
