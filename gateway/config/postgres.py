"""Options of the spool that several machines share."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.config.state import Variable
from gateway.config.values import CaFile, Duration, ReadableFile, Section, key_pair_problem, refuse
from gateway.spool.postgres.options import PostgresOptions, check_library, parse_url, password

_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]*\Z")


def _url(value: str) -> str:
    parse_url(value)
    return value


def _schema(value: str) -> str:
    if not _SCHEMA.match(value) or value.startswith("pg_"):
        raise ValueError("expected lower-case letters, digits and _, and no pg_ in front")
    return value


def short_postgres(value: Any) -> Any:
    """The short form: the URL by itself."""
    return {"url": value} if isinstance(value, str) else value


class Postgres(Section):
    """A PostgreSQL database that all gateways share. Short form: `postgres: "postgresql://..."`."""

    url: Annotated[str, AfterValidator(_url)]
    """`postgresql://USER@HOST:PORT/DATABASE`, no password. Several `HOST:PORT` with commas: the first that takes
    writes. A Unix socket's directory stands in place of the host, with `%2F` for `/`."""
    password_file: ReadableFile | None = None
    """A file with the password in its first line; read at each new connection."""
    password_env: Variable | None = None
    """An environment variable with the password; where it is not set, `password_file` counts."""
    tls: Literal["none", "prefer", "require", "verify"] = "prefer"
    """`verify` also checks the server's certificate and name; `prefer` goes on without TLS where there is none."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust, with `tls: verify`. Default: the system's."""
    tls_certificate: ReadableFile | None = None
    """PEM file of our own certificate, for a server that asks for one."""
    tls_key: ReadableFile | None = None
    """PEM file of its key, without a passphrase; nobody else may read it."""
    # Fully named, since "schema" is a method of every model.
    namespace: Annotated[str, AfterValidator(_schema), Field(max_length=48)] = "gatepost"
    """The schema in the database that holds the tables; made when it is missing. One spool is one schema."""
    timeout: Annotated[Duration, Field(ge=1.0, le=300.0)] = 10.0
    """For one statement, and for connecting; beyond it the database counts as down."""
    lease: Annotated[Duration, Field(ge=5.0, le=3600.0)] = 30.0
    """A worker that has not been heard of for so long loses what it was delivering to the others."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_library()
        server = parse_url(self.url)
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            raise refuse((given,), f"needs {missing}, too")
        if self.tls_ca and self.tls != "verify":
            raise refuse(("tls_ca",), "means nothing without tls: verify")
        if self.tls_certificate and self.tls == "none":
            raise refuse(("tls_certificate",), "means nothing with tls: none")
        if self.tls_certificate and self.tls_key:
            if problem := key_pair_problem(self.tls_certificate, self.tls_key):
                raise refuse(("tls_certificate",), problem)
        if self.lease < 2 * self.timeout:
            raise refuse(("lease",), "must be at least twice the timeout, or a slow answer costs a worker its lease")
        named = "password_file" if self.password_file else "password_env"
        try:
            known = password(self.options())
        except OSError as error:
            raise refuse((named,), f"cannot read {self.password_file}: {os.strerror(error.errno or 0)}") from error
        except ValueError as error:
            raise refuse((named,), str(error)) from error
        if known and not server.user:
            raise refuse(("url",), f"names no user, and {named} holds a password; write postgresql://USER@HOST")
        return self

    def options(self) -> PostgresOptions:
        """As the spool takes it."""
        return PostgresOptions(
            parse_url(self.url),
            self.password_file or "",
            self.password_env or "",
            self.tls,
            self.tls_ca or "",
            self.tls_certificate or "",
            self.tls_key or "",
            self.timeout,
            self.lease,
            self.namespace,
        )
