"""Options for those who operate the gateway: the HTTP side, log events, reloads."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from gateway.config.cross import ADMIN_ADDRESS
from gateway.config.values import (
    Duration,
    DurationOrNone,
    Endpoint,
    ReadableFile,
    Secret,
    Section,
    parse_host_port,
    refuse,
)
from gateway.transport.peer import URLS_MAX, PeersError, check_url, read_token


class Admin(Section):
    """The HTTP side: health, metrics, API."""

    address: Endpoint = parse_host_port(ADMIN_ADDRESS)
    """Where it listens."""
    token: Secret | None = None
    """Bearer token of at least 16 characters; required when the address is not a loopback one."""
    token_file: ReadableFile | None = None
    """A file with the token in its first line; it counts in place of `token`. Default: none."""
    health: Endpoint | None = None
    """Another address, with a port of its own, that answers the probes and `/metrics` only, and needs no token.
    Default: none."""
    handover: Endpoint | None = None
    """Another address, with a port of its own, that answers other gateways which hand their mail over, and nothing
    else; they need the token. Default: none, so that they ask at `address`."""

    _secret: str = PrivateAttr("")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token_file is not None:
            self._secret = _token_in(self.token_file)
        elif self.token is not None:
            self._secret = self.token.get_secret_value()
            if not self._secret.isascii() or not self._secret.isprintable() or self._secret != self._secret.strip():
                # Nobody could send it: HTTP has no way to carry another one in a header.
                raise refuse(("token",), "must be printable ASCII, without blanks at its ends")
        if not self._secret and not self.address.ip.is_loopback:
            raise refuse(("address",), "an address that is not a loopback one needs admin.token")
        if not self._secret and self.handover is not None:
            raise refuse(("handover",), "needs admin.token, too")
        # By its port a request is known to have come in there.
        ports = {"address": self.address.port}
        for name, endpoint in (("health", self.health), ("handover", self.handover)):
            if endpoint is None:
                continue
            for other, port in ports.items():
                if endpoint.port and endpoint.port == port:
                    raise refuse((name,), f"needs another port than admin.{other} has")
            ports[name] = endpoint.port
        return self

    @property
    def secret(self) -> str:
        """The token, wherever it stands; empty for none."""
        return self._secret


def _peer(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Evacuate(Section):
    """Mail that other gateways take over when this one stops."""

    when: Literal["never", "drain"] = "never"
    """`drain`: what is left in the spool is handed over to `peers` whenever the gateway stops."""
    peers: Annotated[
        tuple[Annotated[str, AfterValidator(check_url)], ...],
        BeforeValidator(_peer, json_schema_input_type=str | tuple[str, ...]),
        Field(max_length=URLS_MAX),
    ] = ()
    """The others: `http://HOST:PORT` of their `admin.handover` or `admin.address`, one or a list; a name that has
    several addresses leads to as many gateways. A gateway knows itself among them."""
    token_file: ReadableFile | None = None
    """A file with their token in its first line. Default: they have the one of `admin`."""
    time: Duration = 60.0
    """How long it may take when the gateway stops, once sessions and deliveries have ended. What is left then stays."""

    _secret: str = PrivateAttr("")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.when == "drain" and not self.peers:
            raise refuse(("peers",), "evacuate.when is drain, and no peers are named")
        if self.token_file is not None:
            self._secret = _token_in(self.token_file)
        return self

    @property
    def secret(self) -> str:
        """The token for them, where they have one of their own; else empty."""
        return self._secret


def _token_in(path: str) -> str:
    """The token in a file of that key."""
    try:
        with open(path, "rb") as file:
            return read_token(file.read(4096))
    except PeersError as error:
        raise refuse(("token_file",), str(error)) from error


class Log(Section):
    """Log events on standard error."""

    format: Literal["auto", "json", "console"] = "auto"
    """`json` for machines, `console` for people; `auto` is console on a terminal and JSON everywhere else."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important level that is written."""


class ReloadOptions(Section):
    """Reloading without being asked."""

    watch: DurationOrNone = 0.0
    """How often to look whether this file, certificates, keys and CAs of the listeners, or policies in `policy_folder`
    have changed, and to reload then; 0 for never."""
