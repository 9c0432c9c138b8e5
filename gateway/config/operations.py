"""Options for those who operate the gateway: the HTTP side, log events, reloads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from gateway.config.cross import ADMIN_ADDRESS
from gateway.config.values import DurationOrNone, Endpoint, Secret, Section, parse_host_port, refuse


class Admin(Section):
    """The HTTP side: health, metrics, API."""

    address: Endpoint = parse_host_port(ADMIN_ADDRESS)
    """Where it listens."""
    token: Secret | None = None
    """Bearer token of at least 16 characters; required when the address is not a loopback one."""
    health: Endpoint | None = None
    """Another address, with a port of its own, that answers the probes and `/metrics` only, and needs no token.
    Default: none."""

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not self.address.ip.is_loopback:
            raise refuse(("address",), "an address that is not a loopback one needs admin.token")
        # By its port a request is known to have come in there.
        if self.health is not None and self.health.port and self.health.port == self.address.port:
            raise refuse(("health",), "needs another port than admin.address has")
        return self


class Log(Section):
    """Log events on standard error."""

    format: Literal["auto", "json", "console"] = "auto"
    """`json` for machines, `console` for people; `auto` is console on a terminal and JSON everywhere else."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important level that is written."""


class ReloadOptions(Section):
    """Reloading without being asked."""

    watch: DurationOrNone = 0.0
    """How often to look whether this file, the listeners' certificates and keys, or policies in `policy_folder` have
    changed, and to reload then; 0 for never."""
