"""What the front door is told: limits, timeouts, listeners. Frozen; a reload makes new ones."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.mail.session import IPAddress
from gateway.mail.srs import Srs
from gateway.smtp.data import Newlines

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks:
    """A set of networks; an IPv4 address mapped into IPv6 counts as the IPv4 address."""

    __slots__ = ("_networks",)

    def __init__(self, networks: tuple[Network, ...] = ()) -> None:
        self._networks = networks

    def __contains__(self, address: IPAddress) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)

    def __bool__(self) -> bool:
        return bool(self._networks)


NOWHERE: Final = Networks()


@dataclass(frozen=True, slots=True)
class Limits:
    """See `limits:` in gatepost.example.yaml. Sizes in octets."""

    message_size: int = 50 << 20
    header_size: int = 256 << 10
    recipients: int = 100
    sessions: int = 1000
    sessions_per_client: int = 50
    received_hops: int = 50
    errors: int = 20
    transactions: int = 1000
    command_line: int = 2048


@dataclass(frozen=True, slots=True)
class Timeouts:
    """See `timeouts:` in gatepost.example.yaml. Seconds; RFC 5321 section 4.5.3.2 asks for 5 minutes per command."""

    greeting: float = 30.0
    command: float = 300.0
    data_block: float = 180.0
    data_total: float = 1800.0
    session: float = 3600.0
    tls_handshake: float = 30.0
    drain: float = 30.0


class TlsMode(StrEnum):
    """When TLS begins."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """One listener. `proxy_trusted` empty means that PROXY headers are not spoken here at all."""

    address: str
    pipeline: str = "default"
    tls: ssl.SSLContext | None = None
    tls_mode: TlsMode = TlsMode.STARTTLS
    proxy_trusted: Networks = NOWHERE
    xclient_trusted: Networks = NOWHERE
    requiretls: bool = False


class Split(StrEnum):
    """What to do when recipients of one transaction have different pipelines (`split`)."""

    DEFER = "defer"
    """Answer 452 4.5.3, so that the client sends the message again, in a transaction of its own."""
    COPIES = "copies"
    """Take all, and queue one copy for each pipeline."""


class SplitRefused(StrEnum):
    """What becomes of a refused recipient's copy, when others of the same message were taken (`split_refused`)."""

    QUARANTINE = "quarantine"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """What all listeners share."""

    hostname: str
    authserv_id: str
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    newlines: Newlines = Newlines.NORMALIZE
    relay_from: Networks = NOWHERE
    bounces: bool = True
    srs: Srs | None = None
    split: Split = Split.DEFER
    split_refused: SplitRefused = SplitRefused.QUARANTINE
    address_literals: bool = False
    """Whether clients of ours may send to ``user@[192.0.2.1]``."""
