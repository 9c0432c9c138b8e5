"""Next hops that need more than a line: commands, mailboxes with a quota, webhooks. A domain names one of them."""

from __future__ import annotations

import grp
import os
import pwd
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from gateway.config.problems import Path
from gateway.config.values import (
    CaFile,
    Count,
    Duration,
    Flag,
    ReadableFile,
    Section,
    Size,
    Text,
    refuse,
    resolve_path,
)
from gateway.sdk.options import parse_duration as seconds
from gateway.transport.arguments import OF_THE_RECIPIENT, check_word, uses
from gateway.transport.options import (
    PERMANENT_EXITS,
    LineEnds,
    MaildirOptions,
    MboxOptions,
    OverQuota,
    PipeOptions,
    RunAs,
    WebhookFormat,
    WebhookOptions,
)
from gateway.transport.routing import check_path, check_url
from gateway.transport.transport import Destination, Kind

_KINDS: Final = ("pipe", "maildir", "mbox", "http")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    for number in range(len(words)):
        try:
            check_word(number, words)
        except ValueError as error:
            raise refuse((number,), str(error)) from None
    return words


def _variable(name: str) -> str:
    if not _VARIABLE.match(name):
        raise ValueError("is no name of an environment variable")
    return name


def _value(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL cannot stand in an environment variable")
    return text


def _mailboxes(value: Any, info: ValidationInfo) -> str:
    path = resolve_path(value, info)
    try:
        check_path(path, "path")
    except ValueError as error:
        raise ValueError(str(error).removeprefix("path: ")) from None
    return path


MailboxPath = Annotated[str, BeforeValidator(_mailboxes)]
ExitStatus = Annotated[int, Field(strict=True, ge=1, le=255)]
Words = Annotated[tuple[Text, ...], Field(min_length=1, max_length=100), AfterValidator(_command)]


class Pipe(Section):
    """A command that gets each message on its standard input."""

    command: Words
    """Its words; the first is an absolute path. Placeholders: `{sender}`, `{recipient}`, `{local}`, `{domain}` and
    `{id}`."""
    user: Text | None = None
    """Whom it runs as; needs root. Required when Gatepost runs as root. Default: as Gatepost."""
    group: Text | None = None
    """Its group. Default: the user's."""
    timeout: Duration = seconds("5m")
    """After this it is killed, with all that it started, and the recipient is deferred."""
    recipients_per_run: Annotated[Count, Field(le=1000)] = 1
    """With more than one, a word that names the recipient is repeated for each, and all share one result."""
    line_ends: Literal["lf", "crlf"] = "lf"
    """Line ends of the message."""
    from_line: Flag = False
    """A `From ` line on top, as an mbox has it."""
    return_path: Flag = True
    """A Return-Path field on top."""
    delivered_to: Flag = True
    """A Delivered-To field on top; there is none for several recipients."""
    fail_on: tuple[ExitStatus, ...] = PERMANENT_EXITS
    """Exit statuses that fail the recipient for good; all others but 0 defer it."""
    environment: dict[Annotated[str, AfterValidator(_variable)], Annotated[str, AfterValidator(_value)]] = {}
    """Variables besides PATH, LC_ALL, TZ and, with a user, HOME, USER and LOGNAME."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.user is None and self.group is not None:
            raise refuse(("group",), "means nothing without a user")
        if self.recipients_per_run > 1 and not uses(self.command, OF_THE_RECIPIENT):
            raise refuse(("recipients_per_run",), "the command names no recipient, so it could not tell them apart")
        return self

    def options(self) -> PipeOptions:
        return PipeOptions(
            self.command,
            RunAs(self.user, self.group or "") if self.user else None,
            self.timeout,
            self.recipients_per_run,
            LineEnds(self.line_ends),
            self.from_line,
            self.return_path,
            self.delivered_to,
            self.fail_on,
            tuple(self.environment.items()),
        )

    def problems_here(self) -> list[tuple[Path, str]]:
        """What this machine lacks, with the key that asks for it. Looked at when Gatepost starts, and not before.

        Who wants to see the queue need not have all that delivery needs.
        """
        out: list[tuple[Path, str]] = []
        program = self.command[0]
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            why = "it is not executable" if os.path.exists(program) else "it is not there"
            out.append((("command", 0), f"{program} cannot be run: {why}"))
        if self.user is None and os.geteuid() == 0:
            out.append((("user",), "this runs as root: say whom the command runs as"))
        for key, name, known in (("user", self.user, pwd.getpwnam), ("group", self.group, grp.getgrnam)):
            try:
                if name is not None:
                    known(name)
            except KeyError:
                out.append(((key,), f"there is no {key} {name!r}"))
        return out


class Maildir(Section):
    """Maildirs, one for each recipient or one for all."""

    path: MailboxPath
    """Directory; `{domain}` and `{local}` stand for the recipient's, in lower case."""
    quota: Size | None = None
    """Largest size of a Maildir, as Maildir++ counts. Default: what its `maildirsize` says, if it has one."""
    quota_messages: Count | None = None
    """Most messages in a Maildir. Default: as for `quota`."""
    over_quota: Literal["defer", "fail"] = "defer"
    """A full Maildir: `defer` (452 4.2.2) or `fail` (552 5.2.2)."""

    def options(self) -> MaildirOptions:
        return MaildirOptions(self.quota or 0, self.quota_messages or 0, OverQuota(self.over_quota))


class Mbox(Section):
    """Mailboxes that are one file each."""

    path: MailboxPath
    """File; `{domain}` and `{local}` stand for the recipient's, in lower case."""
    lock_timeout: Duration = seconds("30s")
    """How long a mailbox may be locked by others before the recipient is deferred."""
    stale_lock: Annotated[Duration, Field(ge=60)] = seconds("5m")
    """Age of a dotlock that counts as left behind; 1m at least."""

    def options(self) -> MboxOptions:
        return MboxOptions(self.lock_timeout, self.stale_lock)


class Http(Section):
    """A URL that each message is posted to."""

    url: Annotated[Text, AfterValidator(check_url)]
    """`https://HOST/PATH`, or `http://` for a server on a network that is trusted."""
    format: Literal["message", "multipart"] = "message"
    """`message`: the body is the message, the envelope stands in header fields; `multipart`: a form with `envelope` as
    JSON and `message`."""
    token_file: ReadableFile | None = None
    """A file with a bearer token in its first line; read for each message."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust. Default: the system's."""
    timeout: Duration = seconds("1m")
    """For one request as a whole."""
    recipients_per_request: Annotated[Count, Field(le=100)] = 20
    """More recipients of a message make more requests."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tls_ca is not None and not self.url.startswith("https:"):
            raise refuse(("tls_ca",), "means nothing without https://")
        return self

    def options(self) -> WebhookOptions:
        return WebhookOptions(
            self.url,
            WebhookFormat(self.format),
            self.token_file or "",
            self.tls_ca or "",
            self.timeout,
            self.recipients_per_request,
        )


class TransportEntry(Section):
    """One next hop with options of its own: exactly one of its keys is given."""

    pipe: Pipe | None = None
    """A command."""
    maildir: Maildir | None = None
    """Maildirs."""
    mbox: Mbox | None = None
    """mbox files."""
    http: Http | None = None
    """A webhook."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len([kind for kind in _KINDS if getattr(self, kind) is not None]) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}")
        return self

    def destination(self, name: str) -> Destination:
        """What `transport:NAME` stands for."""
        if self.pipe is not None:
            return Destination(Kind.PIPE, name=name, options=self.pipe.options())
        if self.http is not None:
            return Destination(Kind.HTTP, name=name, options=self.http.options())
        if self.mbox is not None:
            return Destination(Kind.MBOX, path=self.mbox.path, name=name, options=self.mbox.options())
        assert self.maildir is not None
        return Destination(Kind.MAILDIR, path=self.maildir.path, name=name, options=self.maildir.options())


TransportName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
