"""How a next hop is spoken to by SMTP or LMTP, beyond where it is and how TLS protects the way."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.config.values import Flag, ReadableFile, Section, refuse
from gateway.transport.options import Credentials, EightBit, HopOptions, Proxy
from gateway.transport.sasl import MechanismName, prepare
from gateway.transport.transport import Destination, Security

_PRIVATE: Final = (Security.REQUIRE, Security.VERIFY, Security.DANE_ONLY)


def _user(value: str) -> str:
    prepared = prepare(value)
    if len(prepared.encode()) > 255:
        raise ValueError("is longer than 255 octets")
    return prepared


class Auth(Section):
    """A login at a next hop. The password is never written here."""

    user: Annotated[str, AfterValidator(_user)]
    """The name."""
    password_file: ReadableFile | None = None
    """A file with the password in its first line; read for each connection."""
    password_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")] | None = None
    """An environment variable that holds it, instead of a file."""
    mechanisms: Annotated[tuple[MechanismName, ...], Field(min_length=1)] = tuple(MechanismName)
    """Which may be used; of those that are offered, the first of SCRAM-SHA-256, CRAM-MD5, PLAIN and LOGIN is."""
    without_tls: Flag = False
    """Log in without TLS, too, so that everybody on the way can read the password or guess it at leisure."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password_file is None) == (self.password_env is None):
            raise refuse(("password_file",), "give one of password_file and password_env")
        return self

    def options(self) -> Credentials:
        return Credentials(
            self.user, self.password_file or "", self.password_env or "", self.mechanisms, self.without_tls
        )


class SmtpHop(Section):
    """What is said to a server, and what becomes of content that it cannot take."""

    eight_bit: Literal["convert", "bounce", "send"] = "convert"
    """8-bit content for a server without 8BITMIME: written in 7 bits, bounced with 5.6.3, or sent all the same."""

    chunking: Flag = True
    """Send content by BDAT where CHUNKING is offered."""

    xclient: Flag = False
    """Say whom a message came from by XCLIENT, where that is offered."""
    xforward: Flag = False
    """Say whom a message came from by XFORWARD, for the log, where that is offered."""
    proxy: Literal["none", "v1", "v2"] = "none"
    """Begin connections with a PROXY header of this version that says whom the message came from."""

    auth: Auth | None = None
    """A login, for a smarthost. Default: none."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.xclient and self.proxy != "none":
            raise refuse(("proxy",), "says the same as xclient; give one of them")
        return self

    def problem(self, destination: Destination) -> tuple[str, str] | None:
        """What does not fit where it goes: the key and a text."""
        if self.auth is not None and destination.mx:
            return "auth", "is for a next hop of ours, and not for whatever hosts a domain's MX records name"
        if self.auth is not None and not self.auth.without_tls and destination.security not in _PRIVATE:
            return "auth", "needs tls: verify, dane-only or require, so that nobody on the way gets the password"
        telling = "xclient" if self.xclient else "xforward" if self.xforward else "proxy"
        if destination.mx and (self.xclient or self.xforward or self.proxy != "none"):
            return telling, "is for a next hop that trusts us, which the hosts of a domain's MX records do not"
        if any(server.path for server in destination.servers) and self.proxy != "none":
            return "proxy", "a unix socket has no addresses for a PROXY header"
        return None

    def options(self) -> HopOptions:
        return HopOptions(
            EightBit(self.eight_bit),
            self.chunking,
            self.xclient,
            self.xforward,
            Proxy(self.proxy),
            self.auth.options() if self.auth else None,
        )
