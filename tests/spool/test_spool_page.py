"""docs/spool.md says what is so: its queries run, and it names every state and every step."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path

from gateway.spool.spool import RecipientStatus, State, Step
from gateway.spool.sqlite import SqliteSpool
from tests.spool.rig import NOW, database, defer, deliver, options, put, take

PAGE = (Path(__file__).parents[2] / "docs/spool.md").read_text()


def test_every_state_and_every_step_is_explained():
    for value in (*State, *RecipientStatus, *Step):
        assert f"`{value}`" in PAGE
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \|", PAGE)
    assert [row for row in rows if row in set(Step)] == list(Step), "one row for each, in their order"


def test_the_queries_run_and_answer(tmp_path):
    async def fill() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        waiting, gone = [await put(spool, recipients=("ben", "col")) for _ in range(2)]
        claimed = await take(spool)
        await deliver(spool, claimed[gone].message)
        await defer(spool, claimed[waiting].message, NOW + 60)
        spool.note({"id": "1", "outcome": "rejected", "reply": "550 5.7.1 no"})
        await spool.close()

    asyncio.run(fill())
    answers = []
    connection = sqlite3.connect(f"file:{database(options(tmp_path))}?mode=ro", uri=True)
    for query in re.findall(r"(?s)```sql\n(.*?)```", PAGE):
        answers.append(connection.execute(query.replace("example.com", "example.test")).fetchall())
    connection.close()
    waiting, states, tried, refused = answers
    assert [row[6:8] for row in waiting] == [("ben@example.test", "deferred"), ("col@example.test", "deferred")]
    assert states[0][:2] == ("queued", 1)
    assert sorted(row[2] for row in tried) == ["deferred", "delivered"]
    assert refused == [("1", "rejected", "550 5.7.1 no")]
