"""The quarantine over HTTP, on a real spool: who may, what is found, what is done, and what is written down."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import Envelope, Recipient
from gateway.ops.quarantine import Filter, search
from gateway.ops.quarantine_api import LIMIT_MAX
from gateway.spool.spool import NewMessage, SpoolOptions, State
from gateway.spool.sqlite import SqliteSpool
from tests.ops.test_admin import TOKEN, Bench

SESSION = "0ABCDEFGHJKMN"
FORGED, BOUNCE, HELD, LATE = (f"{SESSION}{n}" for n in "1234")
CONTENT = b"Subject: \x1b[2J win\r\nX: 1\r\n\r\n<script>body</script>\r\n"
API = "/api/v1/quarantine"


async def fill(folder: Path) -> None:
    spool = await SqliteSpool.open(SpoolOptions(str(folder), min_free=1))
    anna = parse_mailbox("anna@sender.example")
    for id, sender, to, state, reason, received in (
        (FORGED, anna, "ben@example.org", State.QUARANTINE, "forged-own-domain", 1.7e9),
        (BOUNCE, NULL_SENDER, "cem@example.org", State.QUARANTINE, "odd bounce", 1.7e9 + 100),
        (HELD, anna, "ben@example.org", State.HOLD, "", 1.7e9),
        (LATE, anna, "Cem@Example.ORG", State.QUARANTINE, "Forged again", 1.7e9 + 200),
    ):
        draft = spool.draft(id)
        await draft.write(CONTENT)
        envelope = Envelope(sender, (Recipient(parse_mailbox(to)),))
        record = {"id": id, "session": SESSION, "time": received, "outcome": "quarantined"}
        await spool.commit(draft, NewMessage(id, envelope, received, b"", state=state, reason=reason, record=record))
    await spool.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    asyncio.run(fill(tmp_path))
    return Bench(tmp_path)


def ids(answer: tuple[int, Any]) -> list[str]:
    assert answer[0] == 200, answer
    return [message["id"] for message in answer[1]["messages"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [FORGED, BOUNCE, LATE]),
        ("reason=FORGED", [FORGED, LATE]),
        ("sender=%3C%3E", [BOUNCE]),
        ("sender=anna@", [FORGED, LATE]),
        ("recipient=cem@example.org", [BOUNCE, LATE]),
        ("recipient=cem&reason=forged", [LATE]),
        ("before=1700000100", [FORGED]),
        ("since=1700000100", [BOUNCE, LATE]),
        ("since=1700000100&before=1700000150.5", [BOUNCE]),
        ("reason=nothing", []),
    ],
)
def test_messages_are_found_by_what_stands_in_them(bench: Bench, query: str, expected: list[str]) -> None:
    assert ids(bench.ask(f"{API}?{query}")) == expected


def test_the_list_comes_in_pages(bench: Bench) -> None:
    status, first = bench.ask(f"{API}?limit=2")
    assert (status, [m["id"] for m in first["messages"]], first["next"]) == (200, [FORGED, BOUNCE], BOUNCE)
    status, last = bench.ask(f"{API}?limit=2&after={first['next']}")
    assert ([m["id"] for m in last["messages"]], last["next"]) == ([LATE], None)


def test_a_question_looks_at_so_many_messages_and_says_where_to_go_on(tmp_path: Path) -> None:
    async def run() -> None:
        await fill(tmp_path)
        spool = await SqliteSpool.open(SpoolOptions(str(tmp_path), min_free=1))
        try:
            wanted = Filter(reason="again")
            assert await search(spool, State.QUARANTINE, wanted, limit=10, scan=2) == ([], BOUNCE)
            found, following = await search(spool, State.QUARANTINE, wanted, limit=10, after=BOUNCE, scan=2)
            assert ([m.id for m in found], following) == ([LATE], None)
        finally:
            await spool.close()

    asyncio.run(run())


def test_a_message_is_shown_with_its_header_section_and_given_out_as_it_is(bench: Bench) -> None:
    status, shown = bench.ask(f"{API}/{FORGED}")
    assert (status, shown["reason"], shown["header"]) == (200, "forged-own-domain", "Subject: \x1b[2J win\nX: 1\n")
    assert bench.ask(f"{API}/{FORGED.lower()}/content") == (200, CONTENT)


def test_a_message_is_released_to_its_recipients_and_the_record_says_by_whom(bench: Bench) -> None:
    assert bench.ask(f"{API}/{FORGED}/release", "POST") == (200, {"released": FORGED})
    assert ids(bench.ask(API)) == [BOUNCE, LATE]
    _, (explained,) = bench.ask(f"/api/v1/explain/{FORGED}")
    assert explained["stored"]["state"] == "queued"
    (note,) = explained["attempts"]
    assert (note["outcome"], note["host"]) == ("released", "the API at 127.0.0.1")
    assert note["reply"] == "quarantine: forged-own-domain"
    assert bench.ask(f"{API}/{FORGED}/release", "POST")[0] == 404


def test_a_message_is_released_to_others_in_somebodys_name(bench: Bench) -> None:
    body = json.dumps({"to": ["postmaster@example.org"], "by": "anna"}).encode()
    assert bench.ask(f"{API}/{FORGED}/release", "POST", content=body)[0] == 200
    _, (explained,) = bench.ask(f"/api/v1/explain/{FORGED}")
    assert [r["address"] for r in explained["stored"]["recipients"]] == ["postmaster@example.org"]
    assert explained["attempts"][0]["host"] == "anna by the API at 127.0.0.1"


def test_a_message_is_dropped_for_good(bench: Bench) -> None:
    assert bench.ask(f"{API}/{FORGED}?by=anna", "DELETE") == (200, {"dropped": FORGED})
    assert bench.ask(f"{API}/{FORGED}")[0] == 404
    _, (explained,) = bench.ask(f"/api/v1/explain/{FORGED}")
    assert (explained["stored"], explained["attempts"][0]["outcome"]) == (None, "dropped")


@pytest.mark.parametrize(("method", "end"), [("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/release")])
def test_what_is_not_in_quarantine_is_out_of_reach(bench: Bench, method: str, end: str) -> None:
    for id in (HELD, "0NOTHING"):
        assert bench.ask(f"{API}/{id}{end}", method)[0] == 404
    assert bench.ask(f"{API}/a-b{end}", method)[0] == 400
    assert bench.ask(f"/api/v1/queue/{HELD}")[1]["state"] == "hold"


@pytest.mark.parametrize(
    "query", [f"limit={LIMIT_MAX + 1}", "limit=x", "before=x", "since=-1", "after=%2F", "reason=" + "x" * 201]
)
def test_odd_questions_are_refused(bench: Bench, query: str) -> None:
    assert bench.ask(f"{API}?{query}")[0] == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        (b'{"of": 1}', 400),
        (b'{"to": "a@example.org"}', 400),
        (b'{"to": ["a"]}', 400),
        (b'{"to": ["postmaster"]}', 400),
        (b'{"to": [7]}', 400),
        (json.dumps({"to": ["a@example.org"] * 101}).encode(), 400),
        (b'{"by": ""}', 400),
        (b'{"by": "a\\u001b"}', 400),
        (b"[" * 10_000, 400),
        (b" " * 65_537, 413),
    ],
)
def test_odd_bodies_release_nothing(bench: Bench, body: bytes, status: int) -> None:
    assert bench.ask(f"{API}/{FORGED}/release", "POST", content=body)[0] == status
    assert FORGED in ids(bench.ask(API))


@pytest.mark.parametrize(("method", "end"), [("GET", ""), ("GET", f"/{FORGED}/content"), ("DELETE", f"/{FORGED}")])
def test_the_same_guard_stands_before_it_as_before_the_rest(bench: Bench, method: str, end: str) -> None:
    assert bench.ask(API + end, method, origin="https://evil.example")[0] == 403
    guarded = Bench(bench.folder, token=TOKEN)
    assert guarded.ask(API + end, method)[0] == 401
    assert guarded.ask(API + end, method, authorization=f"Bearer {TOKEN}")[0] == 200
