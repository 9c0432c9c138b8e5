"""What a pipeline on trial stands in: its domains, the fakes behind its plugins, the front door's options."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.config import ConfigError
from gateway.config.document import read
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.sdk.fakes import FakeDirectory
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy
from gateway.sdk.services import RecipientRule, Services
from gateway.sdk.testing import Bench
from gateway.smtp.domains import Domain, Domains
from gateway.smtp.options import Networks, SmtpOptions, Split

Entries = str | Sequence[Any]
"""A pipeline as the configuration has it: YAML text, or the list itself."""

OURS: Final = "example.org"
"""The domain that mail is taken for when a test names none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One or several pipelines with all that they need, not started. See `make_setting`."""

    bench: Bench
    pipelines: Mapping[str, Pipeline]
    domains: Domains
    options: SmtpOptions = field(repr=False)

    async def start(self) -> None:
        """Start all plugins. Raises `gateway.pipeline.plan.PipelineError`."""
        for pipeline in self.pipelines.values():
            await pipeline.start()

    async def told(self) -> None:
        """Wait until the plugins have heard of all that has ended."""
        for pipeline in self.pipelines.values():
            await pipeline.told()

    async def close(self) -> None:
        """Close all plugins; sessions must have ended before."""
        for pipeline in self.pipelines.values():
            await pipeline.close()


async def start_setting(pipeline: Entries, *things: type[Plugin] | type[Policy], **more: Any) -> Setting:
    """As `make_setting`, on the event loop that the plugins are to live on, and started."""
    made = make_setting(pipeline, *things, **more)
    await made.start()
    return made


def make_setting(
    pipeline: Entries,
    *things: type[Plugin] | type[Policy],
    pipelines: Mapping[str, Entries] | None = None,
    domains: Mapping[str, str] | Sequence[str] = (OURS,),
    relay_from: Sequence[str] = (),
    split: str = "defer",
    **services: Any,
) -> Setting:
    """Load the pipeline with the real loader.

    `things` are plugins and policies that need not be installed; they are known by their `name`. `domains` are those
    mail is taken for, as a mapping with the name of one of `pipelines` for each (empty: the first one). `relay_from`
    and `split` are as in the configuration. `services` are those of `gateway.sdk.testing.Bench`: dns, state, clock and
    so on; a fake stands for each that is not given.

    Raises `gateway.config.ConfigError` for text that is no YAML, `gateway.pipeline.plan.PipelineError` for what is no
    pipeline, and KeyError for a domain whose pipeline there is not.
    """
    named = dict(domains) if isinstance(domains, Mapping) else dict.fromkeys(domains, "")
    services.setdefault("directory", FakeDirectory(dict.fromkeys(named, RecipientRule.ANY)))
    bench = Bench(**services)
    known = Catalog.installed().having(*things)
    given = {"default": pipeline, **(pipelines or {})}
    made = {name: _load(name, entries, bench.services, known) for name, entries in given.items()}
    for name in filter(None, named.values()):
        made[name]
    hostname = bench.services.hostname
    relays = Networks(tuple(ipaddress.ip_network(network) for network in relay_from))
    return Setting(
        bench,
        made,
        Domains({name: Domain(name, judged_by) for name, judged_by in named.items()}),
        SmtpOptions(hostname, hostname, relay_from=relays, split=Split(split)),
    )


def _load(name: str, entries: Entries, services: Services, known: Catalog) -> Pipeline:
    return load(name, _read(entries) if isinstance(entries, str) else entries, services, known=known)


def _read(text: str) -> list[Any]:
    """The list that the text is, or has under ``pipeline``: with the configuration's own reader, and as strict."""
    document = read(text, "pipeline")
    if document.problems:
        raise ConfigError(document.problems)
    values = document.values
    if isinstance(values, dict) and set(values) == {"pipeline"}:
        values = values["pipeline"]
    if values is None:
        return []
    if not isinstance(values, list):
        document.refuse((), "expected a list of plugins and policies")
        raise ConfigError(document.problems)
    return values
