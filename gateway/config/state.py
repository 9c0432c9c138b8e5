"""Options of the small shared state: where it is, and the Redis server that replicas share it in."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.config.values import CaFile, Duration, FilePath, ReadableFile, Section, key_pair_problem, refuse
from gateway.services.redis_options import RedisOptions, check_library, parse_url, password

_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]+\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _url(value: str) -> str:
    parse_url(value)
    return value


def _prefix(value: str) -> str:
    if not _PREFIX.match(value):
        raise ValueError("expected letters, digits, and . _ -")
    return value


def _variable(value: str) -> str:
    if not _VARIABLE.match(value):
        raise ValueError("expected the name of an environment variable")
    return value


Variable = Annotated[str, AfterValidator(_variable), Field(max_length=128)]


class Redis(Section):
    """A Redis or Valkey server that all replicas share."""

    url: Annotated[str, AfterValidator(_url)]
    """`redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; `USER@` before the host for a user, no password."""
    password_file: ReadableFile | None = None
    """A file with the password in its first line; read at each new connection."""
    password_env: Variable | None = None
    """An environment variable with the password; where it is not set, `password_file` counts."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust. Default: the system's."""
    tls_certificate: ReadableFile | None = None
    """PEM file of our own certificate, for a server that asks for one."""
    tls_key: ReadableFile | None = None
    """PEM file of its key, without a passphrase."""
    prefix: Annotated[str, AfterValidator(_prefix), Field(max_length=64)] = "gatepost"
    """What all keys begin with. Gateways with the same prefix share their state."""
    timeout: Annotated[Duration, Field(ge=0.01, le=60.0)] = 1.0
    """For one call, connecting included."""
    connections: Annotated[int, Field(strict=True, ge=1, le=256)] = 8
    """At once, per worker."""
    fallback: Literal["local", "none"] = "local"
    """While it is down: `local` goes on with what is in `state.path`; `none` lets each plugin's `on_error` decide."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_library()
        server = parse_url(self.url)
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            raise refuse((given,), f"needs {missing}, too")
        for name in ("tls_ca", "tls_certificate"):
            if getattr(self, name) and not server.tls:
                raise refuse((name,), "means nothing without rediss://")
        if self.tls_certificate and self.tls_key:
            if problem := key_pair_problem(self.tls_certificate, self.tls_key):
                raise refuse(("tls_certificate",), problem)
        named = "password_file" if self.password_file else "password_env"
        try:
            known = password(self.options())
        except OSError as error:
            raise refuse((named,), f"cannot read {self.password_file}: {os.strerror(error.errno or 0)}") from error
        except ValueError as error:
            raise refuse((named,), str(error)) from error
        if server.user and not known:
            raise refuse(("url",), "names a user; give password_file or password_env, too")
        return self

    def options(self) -> RedisOptions:
        """As the state store takes it."""
        return RedisOptions(
            parse_url(self.url),
            self.password_file or "",
            self.password_env or "",
            self.tls_ca or "",
            self.tls_certificate or "",
            self.tls_key or "",
            self.timeout,
            self.connections,
            self.prefix,
        )


class StateStore(Section):
    """Small shared state: rates, verified recipients, greylist."""

    path: FilePath = "./var/state"
    """Directory; made when it is missing."""
    redis: Redis | None = None
    """Shares it with other gateways; `path` is then what is left while the server is down. Default: not shared."""
