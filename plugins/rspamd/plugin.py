"""The plugin `rspamd`, and its default policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

from prometheus_client import Counter, Histogram
from pydantic import Field, SecretStr

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    AddHeader,
    DeleteHeader,
    Edit,
    Endpoint,
    EndpointOption,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    ReverseName,
    Session,
    Size,
    SpamScore,
    Stage,
    Transaction,
    Verdict,
    annotate,
    defer,
    discard,
    finds,
    quarantine,
    reject,
)
from plugins.rspamd.client import Client
from plugins.rspamd.milter import edits_of
from plugins.rspamd.reply import Reply, RspamdError, read_reply

_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")
_TEXT_LENGTH: Final = 200

CHECKS = Counter("gatepost_rspamd_checks", "Messages that rspamd was to look at.", ["action"])
CHECK_SECONDS = Histogram("gatepost_rspamd_check_seconds", "Time of a check.", buckets=_SECONDS)


class Response(StrEnum):
    """What is done about a message."""

    PROCEED = "proceed"
    TAG = "tag"
    DEFER = "defer"
    REJECT = "reject"
    QUARANTINE = "quarantine"
    DISCARD = "discard"


ACTIONS: Final = {
    "no action": Response.PROCEED,
    "greylist": Response.PROCEED,
    "add header": Response.TAG,
    "rewrite subject": Response.PROCEED,
    "soft reject": Response.DEFER,
    "reject": Response.REJECT,
    "quarantine": Response.QUARANTINE,
    "discard": Response.DISCARD,
}
"""rspamd's actions, and what is done about each where the options do not say. The new subject is an edit."""

_HAM: Final = ("no action", "greylist", "soft reject")
_INSTEAD_OF_REJECT: Final = ("discard", "quarantine")


class RspamdOptions(PluginOptions):
    """Options of `rspamd`."""

    connect: EndpointOption = Field(
        Endpoint("127.0.0.1", 11333),
        description="Where an rspamd worker listens for HTTP: `host:port` or `unix:/path`.",
    )
    password: SecretStr | None = Field(None, description="Password, where the worker asks for one.")
    max_size: Size = Field(25 << 20, gt=0, description="Messages larger than this are not checked.")
    actions: dict[Annotated[str, Field(min_length=1, max_length=100)], Response] = Field(
        {},
        max_length=100,
        description="What to do for an action of rspamd, where it is to be another than in the table below: `proceed`,"
        " `tag`, `defer`, `reject`, `quarantine` or `discard`.",
    )
    spam_header: str = Field(
        "X-Spam",
        pattern=r"^[A-Za-z0-9-]{1,77}$",
        description="Field that `tag` adds, with the value `Yes`; the sender's own ones are always removed.",
    )
    messages: bool = Field(
        False, description="Say to the client what rspamd would have it told, instead of bland words."
    )
    pass_all: bool = Field(False, description="Have rspamd run all its rules, however high the score is already.")
    settings_id: str = Field("", pattern=r"^[\x21-\x7e]{0,100}$", description="Id of the rspamd settings to use.")
    mta_tag: str = Field("", pattern=r"^[\x21-\x7e]{0,100}$", description="Tag that rspamd's rules may ask for.")

    def response(self, action: str) -> Response | None:
        """What to do for an action; None for one that nobody knows."""
        return self.actions.get(action) or ACTIONS.get(action)


class RspamdPolicy(Policy):
    """Do what rspamd advises, or what the options say instead."""

    name = "rspamd"
    Options = RspamdOptions
    options: RspamdOptions

    def changes(self) -> bool:
        return True

    def on_message(self, message: Message, found: SpamScore | None) -> Verdict:
        options = self.options
        # A field that the sender made up is removed even where nobody has checked.
        edits: list[Edit] = []
        if message.first(options.spam_header) is not None:
            edits.append(DeleteHeader(options.spam_header))
        if found is None or found.skipped:
            return annotate(*edits) if edits else PROCEED
        edits += (edit for edit in found.edits if edit not in edits)
        reason = f"{found.action}, score {found.score:g} of {found.threshold:g}: {found.text}".rstrip(": ")
        text = found.text if options.messages else ""
        match options.response(found.action):
            case Response.REJECT:
                return reject("7.1", text or "message looks like spam", reason=reason)
            case Response.DEFER:
                return defer("7.1", text or "try again later", reason=reason)
            case Response.DISCARD:
                return discard(reason)
            case Response.QUARANTINE:
                return quarantine(reason, *edits)
            case Response.TAG:
                edits.append(AddHeader(options.spam_header, "Yes"))
        return annotate(*edits) if edits else PROCEED


class RspamdPlugin(Plugin):
    """Streams each message to rspamd, with what is known of its session and envelope."""

    name = "rspamd"
    Options = RspamdOptions
    policy = RspamdPolicy
    options: RspamdOptions
    timeout = 60.0

    async def start(self) -> None:
        self._client = Client(self.options.connect, self.services.dns)

    async def close(self) -> None:
        await self._client.close()

    def looks_up_to(self) -> int | None:
        return self.options.max_size

    @finds(Stage.MESSAGE)
    async def checked(self, transaction: Transaction, message: Message, reverse: ReverseName | None) -> SpamScore:
        """What rspamd says of the message as it was received."""
        if message.content.size > self.options.max_size:
            CHECKS.labels("skipped").inc()
            return SpamScore(0.0, 0.0, False, self.name, skipped=f"larger than {self.options.max_size} octets")
        clock = self.services.clock
        begun = clock.monotonic()
        fields = [*self._envelope(transaction), *self._session(transaction.session, reverse), *self._wishes()]
        reply = read_reply(await self._client.check(fields, message.content))
        if self.options.response(reply.action) is None:
            raise RspamdError(f"rspamd wants an unknown action: {reply.action[:100]!r}")
        found = _finding(reply, message)
        CHECK_SECONDS.observe(clock.monotonic() - begun)
        CHECKS.labels(found.action).inc()
        return found

    def _envelope(self, transaction: Transaction) -> Iterator[tuple[str, str]]:
        yield "Queue-ID", transaction.id
        yield "From", "<>" if transaction.sender is NULL_SENDER else f"<{transaction.sender}>"
        for recipient in transaction.recipients:
            yield "Rcpt", f"<{recipient.address}>"

    def _session(self, session: Session, reverse: ReverseName | None) -> Iterator[tuple[str, str]]:
        yield "IP", str(session.client)
        if session.helo:
            yield "Helo", session.helo
        if name := (reverse.name if reverse else "") or session.name:
            yield "Hostname", name
        if session.tls:
            yield "TLS-Version", session.tls.version
            yield "TLS-Cipher", session.tls.cipher
        yield "MTA-Name", self.services.hostname

    def _wishes(self) -> Iterator[tuple[str, str]]:
        options = self.options
        if options.pass_all:
            yield "Pass", "all"
        if options.settings_id:
            yield "Settings-ID", options.settings_id
        if options.mta_tag:
            yield "MTA-Tag", options.mta_tag
        if options.password:
            yield "Password", options.password.get_secret_value()


def _finding(reply: Reply, message: Message) -> SpamScore:
    action = reply.action
    if action == "reject" and reply.milter.reject in _INSTEAD_OF_REJECT:
        action = reply.milter.reject
    return SpamScore(
        score=reply.score,
        threshold=reply.required_score or 0.0,
        spam=action not in _HAM,
        scanner="rspamd",
        action="no action" if reply.milter.no_action else action,
        symbols=reply.rules(),
        edits=edits_of(reply, message.fields),
        text=_UNPRINTABLE.sub(" ", reply.messages.smtp_message).strip()[:_TEXT_LENGTH],
    )
