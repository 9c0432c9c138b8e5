"""The plugin `clamd`, and its default policy."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from prometheus_client import Counter, Histogram
from pydantic import Field, model_validator

from gateway.sdk import (
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
    Size,
    Stage,
    Transaction,
    Verdict,
    VirusScan,
    annotate,
    defer,
    discard,
    finds,
    get_logger,
    quarantine,
    reject,
)
from plugins.clamd.client import scan
from plugins.clamd.codec import ClamdError, Outcome

_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

SCANS = Counter("gatepost_clamd_scans", "Messages that clamd was to look at.", ["result"])
SCAN_SECONDS = Histogram("gatepost_clamd_scan_seconds", "Time of a scan.", buckets=_SECONDS)

_log = get_logger()


class TooLarge(StrEnum):
    """What to do with a message that is too large to be scanned."""

    SKIP = "skip"
    QUARANTINE = "quarantine"
    DEFER = "defer"
    REJECT = "reject"


class Infected(StrEnum):
    """What to do with an infected message, the mildest first."""

    IGNORE = "ignore"
    TAG = "tag"
    QUARANTINE = "quarantine"
    DISCARD = "discard"
    REJECT = "reject"


_SEVERITY: Final = tuple(Infected)


class ClamdOptions(PluginOptions):
    """Options of `clamd`."""

    connect: EndpointOption = Field(
        Endpoint(path="/run/clamav/clamd.ctl"), description="Where clamd listens: `host:port` or `unix:/path`."
    )
    max_size: Size = Field(
        50 << 20, gt=0, description="Messages larger than this are not scanned; keep it below clamd's StreamMaxLength."
    )
    too_large: TooLarge = Field(
        TooLarge.SKIP,
        description="A message that is too large: `skip` (take it unscanned), `quarantine`, `defer` or `reject`.",
    )
    on_infected: Infected = Field(
        Infected.REJECT, description="An infected message: `reject`, `discard`, `quarantine`, `tag` or `ignore`."
    )
    names: dict[str, Infected] = Field(
        {},
        max_length=1000,
        description="The same by patterns of signature names, such as `PUA.*`; the first that fits decides.",
    )
    header: str = Field(
        "X-Virus-Status",
        pattern=r"^(?:[A-Za-z0-9-]{1,77})?$",
        description="Field that says what was found; the sender's own ones are removed. Empty for none.",
    )

    @model_validator(mode="after")
    def _a_tag_needs_a_field(self) -> ClamdOptions:
        if not self.header and Infected.TAG in (self.on_infected, *self.names.values()):
            raise ValueError("tag needs a header")
        return self

    def wanted(self, name: str) -> Infected:
        """What to do about this signature."""
        return next((does for glob, does in self.names.items() if fnmatchcase(name, glob)), self.on_infected)


class ClamdPolicy(Policy):
    """Keep malware out, and say in a field of the message what was looked at."""

    name = "clamd"
    Options = ClamdOptions
    options: ClamdOptions

    def on_message(self, message: Message, scan: VirusScan | None) -> Verdict:
        # A field that the sender made up is removed even where nobody has scanned.
        edits: list[Edit] = []
        if self.options.header and message.first(self.options.header) is not None:
            edits.append(DeleteHeader(self.options.header))
        if scan is not None and self.options.header:
            edits.append(AddHeader(self.options.header, _status(scan)))
        if scan is not None and scan.infected:
            return self._infected(scan, edits)
        if scan is not None and scan.skipped and self.options.too_large is not TooLarge.SKIP:
            return self._unscanned(scan, edits)
        return annotate(*edits) if edits else PROCEED

    def _infected(self, scan: VirusScan, edits: list[Edit]) -> Verdict:
        reason = f"infected: {', '.join(scan.names)}"
        match max(map(self.options.wanted, scan.names or ("",)), key=_SEVERITY.index):
            case Infected.REJECT:
                return reject("7.1", "malware is not accepted here", reason=reason)
            case Infected.DISCARD:
                return discard(reason)
            case Infected.QUARANTINE:
                return quarantine(reason, *edits)
        return annotate(*edits) if edits else PROCEED

    def _unscanned(self, scan: VirusScan, edits: list[Edit]) -> Verdict:
        reason = f"not scanned: {scan.skipped}"
        match self.options.too_large:
            case TooLarge.REJECT:
                return reject("3.4", "message is too large to be scanned", code=552, reason=reason)
            case TooLarge.DEFER:
                return defer("3.4", "message is too large to be scanned now", code=452, reason=reason)
        return quarantine(reason, *edits)


def _status(scan: VirusScan) -> str:
    if scan.skipped:
        return f"Not scanned ({scan.skipped})"
    return f"Infected ({', '.join(scan.names)})" if scan.infected else "Clean"


class ClamdPlugin(Plugin):
    """Streams each message to clamd.

    A connection for each message: on loopback or a unix socket it costs nothing beside a scan, clamd closes it after
    every error anyway, and a session that is kept (IDSESSION) would make one scan's trouble another one's.
    """

    name = "clamd"
    Options = ClamdOptions
    policy = ClamdPolicy
    options: ClamdOptions
    timeout = 60.0

    def looks_up_to(self) -> int | None:
        return self.options.max_size if self.options.too_large is TooLarge.SKIP else None

    @finds(Stage.MESSAGE)
    async def scanned(self, transaction: Transaction, message: Message) -> VirusScan:
        """What clamd says of the message as it was received."""
        found = await self._scan(message)
        result = "infected" if found.infected else "skipped" if found.skipped else "clean"
        SCANS.labels(result).inc()
        if found.infected:
            _log.info("clamd.found", id=transaction.id, names=list(found.names))
        return found

    async def _scan(self, message: Message) -> VirusScan:
        if message.content.size > self.options.max_size:
            return VirusScan(False, self.name, skipped=f"larger than {self.options.max_size} octets")
        clock = self.services.clock
        begun = clock.monotonic()
        reply = await scan(self.options.connect, self.services.dns, message.content)
        SCAN_SECONDS.observe(clock.monotonic() - begun)
        match reply.outcome:
            case Outcome.CLEAN:
                return VirusScan(False, self.name)
            case Outcome.FOUND:
                return VirusScan(True, self.name, (reply.text,))
            case Outcome.TOO_LARGE:
                return VirusScan(False, self.name, skipped="larger than clamd takes")
            case Outcome.ERROR:
                raise ClamdError(f"clamd says: {reply.text[:200]}")
