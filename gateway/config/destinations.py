"""Queue and retries: how mail shares the machine, and what is different for single destinations."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from gateway.config.values import Count, Duration, DurationOrNone, Section, parse_domain_key, refuse
from gateway.queue.options import OwnOptions, PaceOptions
from gateway.queue.retry import RetryOptions
from gateway.sdk.options import parse_duration as seconds
from gateway.transport.routing import parse_next_hop

_RATE: Final = re.compile(r"([0-9]{1,6})\s*/\s*([0-9.]+\s*[a-z]+)\Z")
_SLOWEST: Final = 86400.0
_FASTEST: Final = 0.001


class Retry(Section):
    """When a deferred recipient is tried again, and until when."""

    first: Duration = seconds("5m")
    """After the first failed attempt; doubled each time."""
    max: Duration = seconds("1h")
    """The longest pause between attempts."""
    give_up: Duration = seconds("5d")
    """After this the recipient has expired (RFC 5321 section 4.5.4.1)."""
    warn_after: DurationOrNone = seconds("4h")
    """When the sender is told that it is delayed; 0 for never."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.max < self.first:
            raise refuse(("max",), "is shorter than retry.first")
        if self.give_up < self.first:
            raise refuse(("give_up",), "is shorter than retry.first")
        return self

    def options(self) -> RetryOptions:
        return RetryOptions(**self.model_dump())


class QueueOptions(Section):
    """How deliveries share the machine."""

    active: Count = 1000
    """Messages from the disk in memory at once, per worker. Besides them there is what came in a moment ago: 2000
    messages and 32 MiB at most."""
    destination_concurrency: Count = 20
    """Deliveries to one destination at once, per worker, when all goes well."""
    destination_concurrency_start: Count = 5
    """So many at first; one more for each round that goes well, half as many after one that fails."""
    dead_after: Count = 5
    """Rounds in a row without a connection after which a destination is left alone."""
    dead_for: Duration = seconds("60s")
    """How long it is left alone before one message probes it; doubled each time."""
    dead_max: Duration = seconds("15m")
    """The longest time between two probes."""
    connection_messages: Count = 100
    """Messages over one connection before it is closed."""
    connection_idle: Duration = seconds("10s")
    """How long an idle connection is kept."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.dead_max < self.dead_for:
            raise refuse(("dead_max",), "is shorter than queue.dead_for")
        return self

    def pace(self) -> PaceOptions:
        return PaceOptions(
            self.destination_concurrency_start,
            self.destination_concurrency,
            self.dead_after,
            self.dead_for,
            self.dead_max,
        )


def _gap(value: Any) -> float:
    """Seconds from one message to the next, of a rate as it is written."""
    if isinstance(value, float):
        return value
    match = _RATE.match(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected messages and a time, such as 100/1m or 5/1s")
    count, time = int(match[1]), seconds(match[2])
    if not count or not _FASTEST <= time / count <= _SLOWEST:
        raise ValueError("expected from one message a day to 1000 a second")
    return time / count


def _destination(value: Any) -> str:
    """A destination as log lines write it, or a host or domain, or a dot and a domain."""
    if not isinstance(value, str):
        raise ValueError("expected a destination")
    text = value.strip()
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    if ":" not in text:
        return parse_domain_key(text)
    if text.startswith("mx:"):
        return f"mx:{parse_domain_key(text.removeprefix('mx:'))}"
    return str(parse_next_hop(text))


DestinationKey = Annotated[str, BeforeValidator(_destination)]
Rate = Annotated[float, BeforeValidator(_gap), WithJsonSchema({"type": "string", "pattern": r"^[0-9]+\s*/\s*[0-9.]+"})]


class OwnRetry(Section):
    """Another schedule for one destination."""

    first: Duration | None = None
    """After the first failed attempt; doubled each time. Default: `retry.first`."""
    max: Duration | None = None
    """The longest pause between attempts. Default: `retry.max`."""
    give_up: Duration | None = None
    """After this the recipient has expired. Default: `retry.give_up`."""
    warn_after: DurationOrNone | None = None
    """When the sender is told that it is delayed; 0 for never. Default: `retry.warn_after`."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.first and self.max and self.max < self.first:
            raise refuse(("max",), "is shorter than first")
        if self.first and self.give_up and self.give_up < self.first:
            raise refuse(("give_up",), "is shorter than first")
        return self


class DestinationOptions(Section):
    """What is different for one destination."""

    concurrency: Count | None = None
    """Deliveries at once, per worker, when all goes well. Default: `queue.destination_concurrency`."""
    concurrency_start: Count | None = None
    """So many at first. Default: `queue.destination_concurrency_start`."""
    rate: Rate | None = None
    """Messages in a time, all workers together, spaced out evenly: `100/1m`. Default: no bound."""
    dead_after: Count | None = None
    """Rounds without a connection after which it is left alone. Default: `queue.dead_after`."""
    dead_for: Duration | None = None
    """How long it is left alone at first. Default: `queue.dead_for`."""
    dead_max: Duration | None = None
    """The longest time between two probes. Default: `queue.dead_max`."""
    retry: OwnRetry | None = None
    """Another schedule than that of `retry`."""

    def options(self, queue: QueueOptions, retry: Retry, workers: int) -> OwnOptions:
        """With what is not given here as it is for all. Raises ValueError for a schedule that does not rise."""
        common = queue.pace()
        pace = PaceOptions(
            self.concurrency_start or common.start,
            self.concurrency or common.most,
            self.dead_after or common.dead_after,
            self.dead_for or common.dead_for,
            max(self.dead_max or common.dead_max, self.dead_for or common.dead_for),
            # Nobody knows what the other workers send, so each may send its part.
            (self.rate or 0.0) * workers,
        )
        if self.retry is None:
            return OwnOptions(pace)
        given = {name: value for name, value in self.retry.model_dump().items() if value is not None}
        own = {**retry.model_dump(), **given}
        # What is given counts; what is not gives way.
        if "max" not in given:
            own["max"] = max(own["max"], own["first"])
        elif "first" not in given:
            own["first"] = min(own["first"], own["max"])
        return OwnOptions(pace, RetryOptions(**own))


Destinations = Annotated[dict[DestinationKey, DestinationOptions], Field(max_length=10_000)]
