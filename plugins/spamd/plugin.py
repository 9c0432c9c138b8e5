"""The plugin `spamd`, and its default policy."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from prometheus_client import Counter, Histogram
from pydantic import Field as Option

from gateway.sdk import (
    PROCEED,
    Edit,
    Endpoint,
    EndpointOption,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    ReverseName,
    Size,
    SpamScore,
    Stage,
    Transaction,
    Verdict,
    annotate,
    finds,
    quarantine,
    reject,
)
from plugins.spamd.client import ask
from plugins.spamd.codec import Command, Response
from plugins.spamd.fields import FORGED, Field, forged, read_header, read_report, read_symbols, render
from plugins.spamd.trace import trace_fields

_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

CHECKS = Counter("gatepost_spamd_checks", "Messages that spamd was to look at.", ["result"])
CHECK_SECONDS = Histogram("gatepost_spamd_check_seconds", "Time of a check.", buckets=_SECONDS)


class RecipientUser(StrEnum):
    """Whose preferences spamd uses for a message with one recipient."""

    NONE = "none"
    LOCAL_PART = "local-part"
    ADDRESS = "address"


Score = Annotated[float, Option(allow_inf_nan=False)]


class SpamdOptions(PluginOptions):
    """Options of `spamd`."""

    connect: EndpointOption = Option(
        Endpoint("127.0.0.1", 783), description="Where spamd listens: `host:port` or `unix:/path`."
    )
    ask: Command = Option(
        Command.SYMBOLS,
        description="What spamd is asked for: `symbols`, only the score (`check`), a `report` in words, or the"
        " `headers` as its own configuration makes them.",
    )
    user: str = Option(
        "",
        pattern=r"^[\x21-\x7e]{0,320}$",
        description="Whose preferences spamd is to use; empty for those of the user that it runs as.",
    )
    recipient_user: RecipientUser = Option(
        RecipientUser.NONE,
        description="For a message with one recipient, use the preferences of its `address` or `local-part`.",
    )
    max_size: Size = Option(512 << 10, gt=0, description="Messages larger than this are not checked.")
    tag_at: Score | None = Option(
        None, description="Score from which a message is marked as spam; without one spamd's `required_score`."
    )
    quarantine_at: Score | None = Option(None, description="Score from which it is set aside.")
    reject_at: Score | None = Option(15.0, description="Score from which it is refused; `null` for never.")
    headers: tuple[Field, ...] = Option(
        tuple(Field),
        description="X-Spam-* fields to add: `status`, `score`, `flag` (spam only), `level`. With `ask: headers`"
        " they are spamd's.",
    )


class SpamdPolicy(Policy):
    """Refuse, set aside or mark by score; the sender's own X-Spam-* fields go first, whatever the score."""

    name = "spamd"
    Options = SpamdOptions
    options: SpamdOptions

    def changes(self) -> bool:
        return self.options.ask is Command.HEADERS

    def on_message(self, message: Message, found: SpamScore | None) -> Verdict:
        edits: list[Edit] = list(forged(message.fields))
        if len(edits) > FORGED:
            return reject("6.0", "too many X-Spam header fields", reason=f"{len(edits)} different ones")
        if found is not None and not found.skipped:
            return self._judge(found, edits)
        return annotate(*edits) if edits else PROCEED

    def _judge(self, found: SpamScore, edits: list[Edit]) -> Verdict:
        options = self.options
        reason = f"score {found.score:g}: {', '.join(found.symbols)}"[:1000]
        if options.reject_at is not None and found.score >= options.reject_at:
            return reject("7.1", "message looks like spam", reason=reason)
        if options.ask is not Command.HEADERS:
            spam, threshold = found.spam, found.threshold
            if options.tag_at is not None:
                spam, threshold = found.score >= options.tag_at, options.tag_at
            edits += render(options.headers, spam, found.score, threshold, found.symbols)
        edits += found.edits
        if options.quarantine_at is not None and found.score >= options.quarantine_at:
            return quarantine(reason, *edits)
        return annotate(*edits) if edits else PROCEED


class SpamdPlugin(Plugin):
    """Streams each message to spamd, with fields in front that say where it came from."""

    name = "spamd"
    Options = SpamdOptions
    policy = SpamdPolicy
    options: SpamdOptions
    timeout = 60.0

    def looks_up_to(self) -> int | None:
        return self.options.max_size

    @finds(Stage.MESSAGE)
    async def checked(self, transaction: Transaction, message: Message, reverse: ReverseName | None) -> SpamScore:
        """What spamd says of the message as it was received."""
        if message.content.size > self.options.max_size:
            CHECKS.labels("skipped").inc()
            return SpamScore(0.0, 0.0, False, self.name, skipped=f"larger than {self.options.max_size} octets")
        clock, services = self.services.clock, self.services
        begun = clock.monotonic()
        response = await ask(
            self.options.connect,
            services.dns,
            self.options.ask,
            message.content,
            head=trace_fields(transaction, reverse, services.hostname, clock.now()),
            user=self._user(transaction),
        )
        CHECK_SECONDS.observe(clock.monotonic() - begun)
        CHECKS.labels("spam" if response.spam else "ham").inc()
        return self._read(response, message)

    def _read(self, response: Response, message: Message) -> SpamScore:
        symbols: tuple[str, ...] = ()
        edits: tuple[Edit, ...] = ()
        match self.options.ask:
            case Command.SYMBOLS:
                symbols = read_symbols(response.body)
            case Command.REPORT:
                symbols, edits = read_report(response.body)
            case Command.HEADERS:
                symbols, edits = read_header(response.body, message.first("Subject"))
        return SpamScore(response.score, response.threshold, response.spam, self.name, symbols=symbols, edits=edits)

    def _user(self, transaction: Transaction) -> str:
        if len(transaction.recipients) == 1:
            address = transaction.recipients[0].address
            kind = self.options.recipient_user
            wanted = {RecipientUser.LOCAL_PART: address.local, RecipientUser.ADDRESS: str(address)}.get(kind, "")
            # What no line of the protocol can carry is nobody's name there.
            if wanted and wanted.isascii() and wanted.isprintable() and " " not in wanted:
                return wanted
        return self.options.user
