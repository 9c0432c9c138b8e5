"""``gatepost explain``: why a message, or a session, ended as it did; and the search for it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, config_option, json_option, read_config, with_spool
from gateway.cli.output import when
from gateway.cli.search import make_search, search_options
from gateway.cli.source import Window, find_redactor, read_records, records_option, window_options
from gateway.cli.tree import tree
from gateway.config import Config, ConfigError
from gateway.mail.session import SESSION_ID_LENGTH
from gateway.ops.archive import Kept
from gateway.ops.deciding import decided
from gateway.ops.search import Search, client, recipients, spoken
from gateway.ops.view import explained_json
from gateway.spool.spool import Explained, Spool

_REFERENCE: Final = re.compile(r"\(?(?:ref\s+)?([0-9A-Za-z]{1,64})\)?\Z")
_PAGE: Final = 1000
_LOOKED_AT: Final = 1_000_000
_OF_A_FILE: Final = 1000
_DECIDERS: Final = 10


@click.command()
@click.argument("id", required=False)
@search_options
@window_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Search: at most so many.")
@records_option
@config_option
@json_option
def explain(
    id: str | None,
    since: float | None,
    until: float | None,
    limit: int,
    file: str | None,
    config_file: str | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Explain a message or a session, or search for it.

    ID is a queue id, a session id, or the reference that ends a refusal. Without one the newest transactions that
    match are listed.
    """
    search, window = make_search(wanted, None), Window(since, until)
    if id is not None and (search != Search() or window != Window()):
        raise click.UsageError("give an ID, or something to search for")
    # A file can be read on a machine that has no configuration.
    config = None if file is not None and config_file is None else read_config(config_file)
    if id is not None:
        _explain(id, config, file, as_json)
        return
    _search(config, make_search(wanted, find_redactor(config)), window, limit, file, as_json)


def _explain(id: str, config: Config | None, file: str | None, as_json: bool) -> None:
    match = _REFERENCE.match(id.strip())
    if not match or len(match[1]) < SESSION_ID_LENGTH:
        raise AnswerNo(f"{output.safe(id)} is no id: expected {SESSION_ID_LENGTH} or more letters and digits")
    found = _of_file(file, match[1].upper()) if file is not None else _of_spool(config, match[1].upper())
    if not found:
        raise AnswerNo(f"no record of {output.safe(id)}")
    _add_without(found, config)
    if as_json:
        output.as_json(found)
        return
    for explained in found:
        output.show(tree(explained))


def _of_spool(config: Config | None, id: str) -> list[dict[str, Any]]:
    async def work(spool: Spool) -> Sequence[Explained]:
        return await spool.explain(id)

    return [] if config is None else [explained_json(explained) for explained in with_spool(config, work)]


def _of_file(file: str, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def use(kept: Kept) -> None:
        if str(kept.record["id"]).startswith(id) and len(found) < _OF_A_FILE:
            attempts = list(kept.attempts)
            found.append({"record": kept.record, "decided": decided(kept.record), "attempts": attempts})

    read_records(None, file, Window(), use)
    return found


def _add_without(found: list[dict[str, Any]], config: Config | None) -> None:
    """Add to each what would have become of it without those who decided: ``without``, one for each of them."""
    if not any(explained["decided"] for explained in found):
        for explained in found:
            explained["without"] = []
        return
    judge = _judge(config)
    for explained in found:
        entries = dict.fromkeys(str(told.get("plugin")) for told in explained["decided"])
        explained["without"] = [judge(explained["record"], entry) for entry in list(entries)[:_DECIDERS]]


def _judge(config: Config | None) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    """Says what would have become of a transaction without an entry, by the configuration in force."""
    if config is None:
        return lambda _, entry: {"plugin": entry, "unknown": "without a configuration it cannot be judged again"}
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway import app
    from gateway.pipeline.past import NotTold, Past
    from gateway.pipeline.without import without

    try:
        pipelines = app.load_pipelines(config)
    except ConfigError:
        return lambda _, entry: {"plugin": entry, "unknown": "the configuration in force has problems"}
    # They are taken for what they were; whether they say what was said then is looked at.
    replays = {name: pipeline.replay({e.name for e in pipeline.entries}) for name, pipeline in pipelines.items()}
    redactor = find_redactor(config)

    def judge(record: dict[str, Any], entry: str) -> dict[str, Any]:
        try:
            past = Past(record, lambda client: any(client in network for network in config.relay_from), redactor)
        except NotTold as error:
            return {"plugin": entry, "unknown": str(error)}
        return without(replays, past, entry).to_json()

    return judge


def _search(config: Config | None, search: Search, window: Window, limit: int, file: str | None, as_json: bool) -> None:
    found: Sequence[dict[str, Any]]
    if config is None or file is not None:
        newest_of_file: deque[dict[str, Any]] = deque(maxlen=limit)

        def use(kept: Kept) -> None:
            if search.matches(kept.record):
                newest_of_file.appendleft(kept.record)

        read_records(None, file, window, use)
        found = list(newest_of_file)
    else:

        async def work(spool: Spool) -> list[dict[str, Any]]:
            return await newest(spool, search.matches, window, limit)

        found = with_spool(config, work)
    if as_json:
        output.as_json(found)
    elif found:
        columns = ("TIME", "ID", "CLIENT", "SENDER", "TO", "OUTCOME", "REPLY", "WHO")
        output.show(output.table(columns, [_row(record) for record in found]))
    if not found:
        raise AnswerNo("no record matches")


async def newest(
    spool: Spool, matches: Callable[[dict[str, Any]], bool], window: Window, limit: int
) -> list[dict[str, Any]]:
    """The newest records that match, the newest first. Looks at a million at most."""
    after, before = window.after, window.before
    found: list[dict[str, Any]] = []
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
