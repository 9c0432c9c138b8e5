"""What stands in a case: who sends what to whom, what was found, and what is expected of it."""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gateway.mail.address import NULL_SENDER, AddressError, Sender, parse_forward_path, parse_reverse_path
from gateway.mail.edit import check_field
from gateway.mail.envelope import Body, MailParameters, Recipient, Ret
from gateway.mail.session import ClientCertificate, Session, Tls
from gateway.sdk.options import OptionsModel, Size
from gateway.sdk.stage import Message, Stage
from gateway.sdk.testing import make_message, make_session
from gateway.sdk.verdict import Action
from gateway.smtp.certificate import NAMES

MESSAGE_OCTETS: Final = 10 << 20
RECIPIENTS: Final = 1000
_FILLING: Final = b"." * 70 + b"\r\n"


def _client(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("must be an IP address") from None


def _sender(value: Any) -> Sender:
    if not isinstance(value, str):
        raise ValueError("must be an address, or <> for the null sender")
    if value in ("", "<>"):
        return NULL_SENDER
    try:
        return parse_reverse_path(value, utf8=True)
    except AddressError as error:
        raise ValueError(str(error)) from error


def _recipient(value: Any) -> Recipient:
    if not isinstance(value, str):
        raise ValueError("must be an address")
    try:
        return Recipient(parse_forward_path(value, utf8=True))
    except AddressError as error:
        raise ValueError(str(error)) from error


class ClientCertificateGiven(OptionsModel):
    """A certificate that the client showed; with a `problem` no CA of the listener's vouched for it."""

    subject: str = ""
    names: tuple[str, ...] = Field((), max_length=NAMES)
    issuer: str = ""
    serial: str = ""
    fingerprint: str = ":".join(["00"] * 32)
    problem: str = ""

    @model_validator(mode="after")
    def _told(self) -> Self:
        if self.problem and (self.subject or self.names or self.issuer or self.serial):
            raise ValueError("of a certificate with a problem nothing but its fingerprint is told")
        return self

    def make(self) -> ClientCertificate:
        return ClientCertificate(
            not self.problem, self.fingerprint, self.problem, self.subject, self.names, self.issuer, self.serial
        )


class TlsGiven(OptionsModel):
    """What TLS came to; ``true`` in its place means the defaults."""

    version: str = "TLSv1.3"
    cipher: str = "TLS_AES_256_GCM_SHA384"
    sni: str = ""
    client: ClientCertificateGiven | None = None

    def make(self) -> Tls:
        return Tls(self.version, self.cipher, self.sni, self.client.make() if self.client else None)


class SessionGiven(OptionsModel):
    """The client's session."""

    client: Annotated[str, BeforeValidator(_client)] = "192.0.2.1"
    helo: str = "client.example"
    name: str = ""
    tls: TlsGiven | bool = False
    trusted: bool | None = None
    listener: str = "127.0.0.1:25"

    def make(self, trusted: bool) -> Session:
        """The session; `trusted` where the case does not say."""
        tls = TlsGiven() if self.tls is True else self.tls or None
        made = make_session(
            self.client,
            helo=self.helo,
            name=self.name,
            tls=tls.make() if tls else None,
            trusted=trusted if self.trusted is None else self.trusted,
        )
        return Session(**{**{name: getattr(made, name) for name in Session.__slots__}, "listener": self.listener})


class ParametersGiven(OptionsModel):
    """What MAIL carries beside the sender."""

    size: Annotated[int, Field(ge=0)] = 0
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str = ""
    requiretls: bool = False

    def make(self) -> MailParameters:
        return MailParameters(self.size, self.body, self.smtputf8, self.ret, self.envid, self.requiretls)


class MessageGiven(OptionsModel):
    """The message: its header fields, each with its value or a list of them, and its body; or a file with all of it.

    A body is filled up until the message has `size` octets.
    """

    headers: dict[str, str | list[str]] = {"Subject": "test"}
    body: str = "Hello\n"
    file: Annotated[str, Field(min_length=1)] | None = None
    size: Annotated[Size, Field(le=MESSAGE_OCTETS)] = 0

    @field_validator("headers")
    @classmethod
    def _fields(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for name, text in value.items():
            for one in [text] if isinstance(text, str) else text:
                check_field(name, one)
        return value

    def make(self, directory: str) -> Message:
        """The message, with line ends made CRLF; a file's path starts from `directory`. Raises OSError, ValueError."""
        if self.file is not None:
            with open(os.path.join(directory, self.file), "rb") as file:
                octets = file.read(MESSAGE_OCTETS + 1)
            if len(octets) > MESSAGE_OCTETS:
                raise ValueError(f"is larger than {MESSAGE_OCTETS >> 20} MiB")
        else:
            fields = {name: [text] if isinstance(text, str) else text for name, text in self.headers.items()}
            head = "".join(f"{name}: {value}\n" for name, values in fields.items() for value in values)
            octets = f"{head}\n{self.body}".encode("utf-8", "replace")
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        lacking = self.size - len(octets)
        return make_message(octets + (_FILLING * (lacking // len(_FILLING) + 1))[: max(0, lacking)])


class Given(OptionsModel):
    """All that a case gives. `findings` are read when it is known which kinds there are."""

    session: SessionGiven = SessionGiven()
    sender: Annotated[Sender, BeforeValidator(_sender)] = Field("ben@sender.example", validate_default=True)
    recipients: tuple[Annotated[Recipient, BeforeValidator(_recipient)], ...] = Field(
        ("anna@example.org",), validate_default=True, min_length=1, max_length=RECIPIENTS
    )
    parameters: ParametersGiven = ParametersGiven()
    message: MessageGiven = MessageGiven()
    findings: dict[str, Any] = {}


class PartExpected(OptionsModel):
    """What is expected for some of the recipients, of whom a verdict at `message` said something of their own."""

    recipients: tuple[str, ...] | None = None
    action: Action | None = None
    code: int | None = None
    status: str | None = None
    text: str | None = None
    reason: str | None = None
    by: str | None = None
    edits: tuple[dict[str, Any], ...] | None = None


class Expected(PartExpected):
    """What is expected of the whole. What is not said may be anything.

    `problem` is what is wrong with the policy's options, where these are to be refused.
    """

    stage: Stage | None = None
    parts: tuple[PartExpected, ...] | None = None
    problem: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _nothing_else(self) -> Self:
        others = (getattr(self, name) for name in type(self).model_fields if name != "problem")
        if self.problem is not None and any(other is not None for other in others):
            raise ValueError("nothing else comes of options that are refused")
        return self
