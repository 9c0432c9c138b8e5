"""A decision record as it is read back: what is relied on of it, of the right types. The rest is passed over.

What findings say stays as the octets that were stored: most of it nobody asks for, and what is asked for was mostly
read before (`gateway.pipeline.recall`).

*Fails by*: `UnreadableRecord`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

import orjson
from msgspec import DecodeError, Meta, Raw, Struct
from msgspec.json import Decoder

ABSENT: Final = Raw()
"""What a finding says that says nothing."""


class UnreadableRecord(Exception):
    """It is no record."""


class Client(Struct, frozen=True, gc=False):
    """The client, and the peer where that is another."""

    ip: str
    port: int
    peer: str = ""
    name: str = ""


class ClientCertificateNote(Struct, frozen=True):
    """The certificate that the client showed."""

    verified: bool
    fingerprint: str
    problem: str = ""
    subject: str = ""
    names: list[str] = []
    issuer: str = ""
    serial: str = ""


class TlsNote(Struct, frozen=True):
    """TLS of the session."""

    version: str
    cipher: str
    sni: str
    client: ClientCertificateNote | None = None


class RecipientNote(Struct, frozen=True, gc=False):
    """One RCPT and its reply."""

    address: str
    reply: str

    @property
    def taken(self) -> bool:
        return self.reply.startswith("2")


class FindingNote(Struct, frozen=True, gc=False):
    """What was found, or why not. Empty where a list that grew too long was cut."""

    stage: str = ""
    plugin: str = ""
    finding: str = ""
    recipient: str = ""
    value: Raw = ABSENT
    fault: str = ""
    detail: str = ""
    missing: bool = False
    redacted: list[str] | None = None


class VerdictNote(Struct, frozen=True, gc=False):
    """What an entry said."""

    stage: str = ""
    plugin: str = ""
    policy: str = ""
    version: str = ""
    action: str = "proceed"
    shadow: bool = False
    recipient: str = ""
    recipients: list[str] | None = None
    reply: str = ""
    reason: str = ""
    when: str = ""
    edits: list[dict[str, Any]] | None = None

    @property
    def silent(self) -> bool:
        """Whether it has no part in how it ended."""
        return self.shadow or (self.action == "proceed" and not self.when and not self.recipients)

    def to_json(self) -> dict[str, Any]:
        """As `gateway.pipeline.recall.recall_verdict` reads it."""
        out: dict[str, Any] = {"action": self.action, "reason": self.reason}
        for name in ("reply", "when", "recipients", "edits"):
            if value := getattr(self, name):
                out[name] = value
        return out


class Told(Struct, frozen=True):
    """One record; `gateway.pipeline.record` says what each field is."""

    id: Annotated[str, Meta(pattern=r"^[0-9A-Za-z]{1,64}\Z")]
    session: str
    time: Annotated[float, Meta(ge=0, lt=1e11)]
    listener: str
    client: Client
    tls: TlsNote | None
    helo: str
    sender: str | None
    recipients: list[RecipientNote]
    size: int
    findings: list[FindingNote]
    verdicts: list[VerdictNote]
    outcome: str
    reply: str
    pipeline: str
    config: str = ""
    copies: list[str] | None = None
    redacted: list[str] | None = None


_decoder: Final = Decoder(Told)


def read_told(record: Mapping[str, Any] | bytes) -> Told:
    """The record, from its JSON or from what that is. Raises `UnreadableRecord`."""
    try:
        return _decoder.decode(record if isinstance(record, bytes) else _octets(record))
    except (DecodeError, UnicodeError, RecursionError, TypeError, ValueError) as error:
        raise UnreadableRecord("the record cannot be read") from error


def _octets(record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(record)
    except orjson.JSONEncodeError:
        # Numbers of more than 64 bits, which some reader of JSON made.
        return json.dumps(record).encode()
