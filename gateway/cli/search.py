"""The options by which commands choose decision records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from gateway.cli.options import NETWORK
from gateway.ops.redaction import Redactor
from gateway.ops.search import Search
from gateway.sdk.ending import Outcome
from gateway.sdk.verdict import Action

_OPTIONS: Final = (
    click.option("--sender", default="", metavar="ADDRESS", help="Search: this sender, or this domain."),
    click.option("--recipient", default="", metavar="ADDRESS", help="Search: this recipient, or this domain."),
    click.option("--client", type=NETWORK, metavar="NETWORK", help="Search: a client in this network."),
    click.option("--outcome", type=click.Choice([o.value for o in Outcome]), help="Search: ended like this."),
    click.option("--plugin", default="", metavar="ENTRY", help="Search: this entry had something to say."),
    click.option("--verdict", "action", type=click.Choice([a.value for a in Action]), help="Search: somebody said so."),
    click.option("--queue-id", default="", metavar="ID", help="Search: this queue id of another MTA."),
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to search for; `make_search` takes them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_search(wanted: Mapping[str, Any], redactor: Redactor | None) -> Search:
    """The search that the options ask for, by which redacted records are found too."""
    search = Search(**{name: value for name, value in wanted.items() if value is not None})
    return search.through(redactor.address) if redactor else search
