"""`queue`, `retry` and `destinations` in the configuration: what is read, what is refused, whom it holds for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.app.wiring import retry_options, scheduler_options
from gateway.config import ConfigError, parse
from gateway.queue.options import OwnOptions, PaceOptions, SchedulerOptions
from gateway.queue.retry import RetryOptions
from gateway.transport.routing import parse_next_hop
from gateway.transport.transport import Destination, Kind

START = "listeners: [{address: '127.0.0.1:2525'}]\nworkers: 4\n"
MX = Destination(Kind.SMTP, "mail.example.net", 25, mx=True)


def read(text: str) -> SchedulerOptions:
    return scheduler_options(parse((START + text).encode(), "gatepost.yaml"))


def test_without_a_word_the_defaults_of_the_code_hold() -> None:
    config = parse(START.encode(), "gatepost.yaml")
    assert scheduler_options(config) == SchedulerOptions()
    assert retry_options(config) == RetryOptions()


def test_what_is_not_said_of_a_destination_is_as_for_all() -> None:
    options = read(
        "queue: {destination_concurrency: 8, destination_concurrency_start: 2, dead_for: 30s}\n"
        "retry: {first: 1m}\n"
        "destinations: {example.net: {concurrency: 3, rate: 60/1m, retry: {give_up: 1d}}}\n"
    )
    assert options.pace == PaceOptions(2, 8, 5, 30.0, 900.0)
    # Four workers, one message a second: each of them one in four seconds.
    assert options.own(Destination(Kind.SMTP, "example.net", 25, mx=True)) == OwnOptions(
        PaceOptions(2, 3, 5, 30.0, 900.0, 4.0), RetryOptions(first=60.0, give_up=86400.0)
    )


@pytest.mark.parametrize(
    ("key", "holds"),
    [
        ("mail.example.net", True),
        ("mx:mail.example.net", True),
        (".example.net", True),
        (".net", True),
        ("example.net", False),
        ("smtp:mail.example.net:25", False),
    ],
)
def test_a_destination_is_named_by_host_domain_or_as_the_log_writes_it(key: str, holds: bool) -> None:
    options = read(f'destinations: {{"{key}": {{concurrency: 1}}}}\n')
    assert (options.own(MX).pace.most == 1) is holds


@pytest.mark.parametrize("hop", ["lmtp:unix:/run/x", "smtp:127.0.0.1:2525", "maildir:/var/mail", "smtp:[::1]:25"])
def test_every_next_hop_can_be_named_as_it_is_written(hop: str) -> None:
    assert read(f'destinations: {{"{hop}": {{concurrency: 1}}}}\n').own(parse_next_hop(hop)).pace.most == 1


def test_the_nearest_name_counts() -> None:
    options = read("destinations: {.example.net: {concurrency: 2}, mail.example.net: {concurrency: 1}, .net: {}}\n")
    assert options.own(MX).pace.most == 1
    assert options.own(Destination(Kind.SMTP, "other.example.net", 25, mx=True)).pace.most == 2
    assert options.own(Destination(Kind.SMTP, "127.0.0.1", 25)).pace == options.pace


def test_a_schedule_gives_way_where_only_half_of_it_is_said() -> None:
    options = read("destinations: {a.test: {retry: {first: 2h}}, b.test: {retry: {max: 1m}}}\n")
    a, b = (options.own(Destination(Kind.SMTP, f"{name}.test", 25, mx=True)).retry for name in "ab")
    assert a is not None and (a.first, a.max) == (7200.0, 7200.0)
    assert b is not None and (b.first, b.max) == (60.0, 60.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("destinations: {a.test: {rate: 100}}", "expected messages and a time"),
        ("destinations: {a.test: {rate: 0/1m}}", "from one message a day"),
        ("destinations: {a.test: {rate: 999999/1ms}}", "from one message a day"),
        ("destinations: {a.test: {rate: 1/7d}}", "from one message a day"),
        ("destinations: {a.test: {concurrency: 0}}", "greater than or equal to 1"),
        ("destinations: {a.test: {speed: 1}}", "destinations.a.test.speed"),
        ("destinations: {a.test: {retry: {first: 2h, max: 1h}}}", "is shorter than first"),
        ("destinations: {'smtp:': {}}", "is no next hop"),
        ("queue: {dead_for: 1h}", "is shorter than queue.dead_for"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text + "\n")
    (problem,) = caught.value.problems
    assert said in str(problem) and "gatepost.yaml:3" in str(problem)


def test_a_new_configuration_changes_what_is_known_of_a_destination(tmp_path: Path) -> None:
    from gateway.queue.lane import Lane

    lane = Lane(MX, OwnOptions(PaceOptions(5, 20)), 0.0)
    changed: Any = read("destinations: {.net: {concurrency: 2, rate: 1/4s}}\n").own(MX)
    lane.renew(changed)
    assert (lane.pace.window, lane.pace.options.gap) == (2, 16.0)
