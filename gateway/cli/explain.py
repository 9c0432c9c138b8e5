"""``gatepost explain``: why a message, or a session, ended as it did; and the search for it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AGO, NETWORK, AnswerNo, config_option, json_option, read_config, with_spool
from gateway.cli.output import when
from gateway.cli.tree import tree
from gateway.config import Config
from gateway.mail.session import SESSION_ID_LENGTH, ids_from
from gateway.ops.search import Network, Search, client, recipients, spoken
from gateway.ops.view import explained_json
from gateway.sdk.ending import Outcome
from gateway.spool.spool import Explained, Spool

_REFERENCE: Final = re.compile(r"\(?(?:ref\s+)?([0-9A-Za-z]{1,64})\)?\Z")
_PAGE: Final = 1000
_LOOKED_AT: Final = 1_000_000


@click.command()
@click.argument("id", required=False)
@click.option("--sender", default="", metavar="ADDRESS", help="Search: this sender, or this domain.")
@click.option("--recipient", default="", metavar="ADDRESS", help="Search: this recipient, or this domain.")
@click.option("--client", "client_", type=NETWORK, metavar="NETWORK", help="Search: a client in this network.")
@click.option("--outcome", type=click.Choice([o.value for o in Outcome]), help="Search: ended like this.")
@click.option("--plugin", default="", metavar="ENTRY", help="Search: this entry had something to say.")
@click.option("--queue-id", default="", metavar="ID", help="Search: this queue id of another MTA.")
@click.option("--since", type=AGO, metavar="DURATION", help="Search: not older than this, such as 2h or 3d.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Search: at most so many.")
@config_option
@json_option
def explain(
    id: str | None,
    sender: str,
    recipient: str,
    client_: Network | None,
    outcome: str | None,
    plugin: str,
    queue_id: str,
    since: float | None,
    limit: int,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Explain a message or a session, or search for it.

    ID is a queue id, a session id, or the reference that ends a refusal. Without one the newest transactions that
    match are listed.
    """
    search = Search(sender, recipient, client_, outcome or "", plugin, queue_id)
    if id is None:
        _search(read_config(config_file), search, since, limit, as_json)
        return
    if search != Search() or since is not None:
        raise click.UsageError("give an ID, or something to search for")
    _explain(id, read_config(config_file), as_json)


def _explain(id: str, config: Config, as_json: bool) -> None:
    match = _REFERENCE.match(id.strip())
    if not match or len(match[1]) < SESSION_ID_LENGTH:
        raise AnswerNo(f"{output.safe(id)} is no id: expected {SESSION_ID_LENGTH} or more letters and digits")

    async def work(spool: Spool) -> Sequence[Explained]:
        return await spool.explain(match[1].upper())

    found = [explained_json(explained) for explained in with_spool(config, work)]
    if not found:
        raise AnswerNo(f"no record of {output.safe(id)}")
    if as_json:
        output.as_json(found)
        return
    for explained in found:
        output.show(tree(explained))


def _search(config: Config, search: Search, since: float | None, limit: int, as_json: bool) -> None:
    async def work(spool: Spool) -> list[dict[str, Any]]:
        return await newest(spool, search.matches, since, limit)

    found = with_spool(config, work)
    if as_json:
        output.as_json(found)
    elif found:
        columns = ("TIME", "ID", "CLIENT", "SENDER", "TO", "OUTCOME", "REPLY", "WHO")
        output.show(output.table(columns, [_row(record) for record in found]))
    if not found:
        raise AnswerNo("no record matches")


async def newest(
    spool: Spool, matches: Callable[[dict[str, Any]], bool], since: float | None, limit: int
) -> list[dict[str, Any]]:
    """The newest records that match, the newest first; `since` is in seconds ago. Looks at a million at most."""
    after = ids_from(time.time_ns() / 1e9 - since) if since is not None else ""
    found: list[dict[str, Any]] = []
    before = ""
    for _ in range(_LOOKED_AT // _PAGE):
        page = await spool.records(after=after, before=before, limit=_PAGE, newest=True)
        found += [record for record in page if matches(record)][: limit - len(found)]
        if len(page) < _PAGE or len(found) >= limit:
            break
        before = str(page[-1]["id"])
    return found


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    named = recipients(record)
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    to = (named[0] if named else "-") + more
    who = ", ".join(dict.fromkeys(str(v.get("plugin", "?")) for v in spoken(record) if not v.get("shadow")))
    return (
        when(record.get("time", 0)),
        record.get("id", "?"),
        client(record),
        record.get("sender") or "-",
        to,
        record.get("outcome", "?"),
        record.get("reply", ""),
        who or "-",
    )
