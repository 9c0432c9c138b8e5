"""``gatepost replay``: recorded transactions, judged again by another configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config
from gateway.cli.source import Window, find_redactor, last_day, read_texts, records_option, window_options
from gateway.config import Config, ConfigError, load
from gateway.mail.address import Address, AddressError

if TYPE_CHECKING:
    from gateway.pipeline.told import Told

_CONDITION: Final = re.compile(
    r"\s*(newly_refused|newly_accepted|changed|unknown)\s*(>=|>)\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(%?)\s*\Z"
)
_WORDS: Final = {
    "newly_refused": "newly refused",
    "newly_accepted": "newly accepted",
    "changed": "changed",
    "unknown": "cannot be judged again",
    "same": "the same",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound on a count, in transactions or in per cent of all; see `parse`."""

    text: str
    kind: str
    inclusive: bool
    number: float
    share: bool

    def holds(self, found: dict[str, Any]) -> bool:
        """Whether what was found is over the bound."""
        value = float(found[self.kind])
        if self.share:
            value = 100 * value / found["transactions"] if found["transactions"] else 0.0
        return value >= self.number if self.inclusive else value > self.number


class _ConditionParameter(click.ParamType[Condition]):
    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        match = _CONDITION.match(value)
        if not match:
            self.fail("write for example 'newly_refused > 0.1%' or 'changed >= 10'", param, ctx)
        return Condition(value.strip(), match[1], match[2] == ">=", float(match[3]), bool(match[4]))


@click.command()
@click.option("--with", "candidate", required=True, metavar="FILE", help="The other configuration.")
@window_options
@click.option("--fail-if", multiple=True, type=_ConditionParameter(), help="End with status 1 if, as 'changed > 1%'.")
@records_option
@config_option
@json_option
def replay(
    candidate: str,
    since: float | None,
    until: float | None,
    fail_if: tuple[Condition, ...],
    file: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Judge recorded transactions again with another configuration."""
    config = read_config(config_file)
    try:
        other = load(candidate)
    except ConfigError as error:
        raise Failure(str(error)) from error
    found = _replay(config, other, last_day(since, until, file), file)
    if as_json:
        output.as_json(found)
    else:
        _print(found)
    if failed := [condition.text for condition in fail_if if condition.holds(found)]:
        raise AnswerNo(f"too much: {', '.join(failed)}")


def _replay(config: Config, other: Config, window: Window, file: str | None) -> dict[str, Any]:
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway import app
    from gateway.pipeline.difference import difference, other_options

    try:
        then, now = app.load_pipelines(config), app.load_pipelines(other)
    except ConfigError as error:
        raise Failure(str(error)) from error
    found = difference(
        then,
        now,
        config.digest,
        lambda client: any(client in network for network in other.relay_from),
        find_redactor(config),
        _entrances(config),
        _moved(config, other),
    )
    read_texts(config, file, window, found.add)
    pairs = {name: (then[name].entries if name in then else (), pipeline.entries) for name, pipeline in now.items()}
    options = {f"{name}: {entry}" for name, pair in pairs.items() for entry in other_options(*pair)}
    return {**found.to_json(), "other_options": sorted(options)}


def _entrances(config: Config) -> dict[str, str]:
    return {str(listener.address): listener.pipeline for listener in config.listeners}


def _moved(config: Config, other: Config) -> Callable[[Told], str]:
    """Says which pipeline a listener or a recipient's domain has in the other configuration, where that is another."""
    from gateway.smtp.domains import Domain, Domains

    doors = {name: now for name, now in _entrances(other).items() if _entrances(config).get(name, now) != now}
    then, now = (Domains({n: Domain(n, d.pipeline or "") for n, d in c.domains.items()}) for c in (config, other))

    def moved(told: Told) -> str:
        if (pipeline := doors.get(told.listener)) is not None:
            return f"listener {told.listener} has pipeline {pipeline} now"
        for to in told.recipients:
            address = Address("", to.address.rpartition("@")[2])
            try:
                before, after = then.find(address), now.find(address)
            except AddressError:
                continue
            if before and after and before.pipeline != after.pipeline:
                own = f"pipeline {after.pipeline}" if after.pipeline else "no pipeline of its own"
                return f"domain {after.name} has {own} now"
        return ""

    return moved


def _print(found: dict[str, Any]) -> None:
    total = found["transactions"]
    click.echo(f"{total} transactions")
    for kind, words in _WORDS.items():
        share = f" ({100 * found[kind] / total:.2f} %)" if total else ""
        click.echo(f"{found[kind]:>9} {words}{share}")
    if found["not_judged_to_the_end"]:
        click.echo(f"{found['not_judged_to_the_end']:>9} of those newly accepted had been refused before their end")
    if found["unknown_because"]:
        click.echo("\nCannot be judged again:")
        for reason, count in found["unknown_because"].items():
            click.echo(f"{count:>9} {output.safe(reason)}")
    if found["other_options"]:
        click.echo("\nOptions differ, and findings are those of then: " + ", ".join(found["other_options"]))
    for kind, samples in found["samples"].items():
        if kind != "unknown":
            _print_samples(_WORDS[kind], samples)


def _print_samples(words: str, samples: Sequence[dict[str, str]]) -> None:
    click.echo(f"\n{words[0].upper()}{words[1:]}, for example:")
    rows = [(sample["id"], sample["then"], sample["now"], sample["why"]) for sample in samples]
    output.show(output.table(("ID", "THEN", "NOW", "WHO"), rows))
