"""The queue over HTTP, on a real spool: what is found, what is changed, what is refused, and what is written down."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from gateway.ops.queue_api import LIMIT_MAX
from gateway.spool.spool import SpoolOptions
from tests.ops.test_admin import IDS, TOKEN, Bench, fill
from tests.spool.places import ON_FILES, Place

API = "/api/v1/queue"
DESTINATIONS = "/api/v1/destinations"
CONTENT = b"Subject: hello\r\n\r\nbody\r\n"
STORE = "smtp:store.example.org:25"
FIRST, HELD, NULL = IDS


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool to be copied."""
    directory = tmp_path_factory.mktemp("stock")
    asyncio.run(fill(SpoolOptions(str(directory), min_free=1)))
    return directory


@pytest.fixture
def bench(tmp_path: Path, stock: Path) -> Bench:
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    return Bench(tmp_path)


@pytest.fixture
def either(tmp_path: Path, place: Place) -> Bench:
    """With the spool in files, and then in PostgreSQL."""
    asyncio.run(fill(place.options))
    return Bench(tmp_path, spool=place.options)


def post(bench: Bench, path: str, **body: Any) -> tuple[int, Any]:
    return bench.ask(path, "POST", content=json.dumps(body).encode())


def found(bench: Bench, query: str) -> list[str]:
    status, answer = bench.ask(f"{API}?{query}")
    assert status == 200, answer
    return [message["id"] for message in answer["messages"]]


@ON_FILES
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("domain=EXAMPLE.org", IDS),
        ("domain=example.net", []),
        ("sender=%3C%3E", [NULL]),
        ("sender=sender.example&state=hold", [HELD]),
        ("recipient=ben@example.org&limit=1", [FIRST]),
        ("next_hop=smtp:store.example.org", IDS),
        ("next_hop=mx:example.org", []),
        ("before=1600000000", []),
        ("since=1600000000.5&larger=1&smaller=1e3", IDS),
        ("reason=nothing", []),
    ],
)
def test_messages_are_found_by_what_stands_in_them(either: Bench, query: str, expected: list[str]) -> None:
    assert found(either, query) == expected


@pytest.mark.parametrize(
    "query",
    [
        *("state=lost", "limit=0", f"limit={LIMIT_MAX + 1}", "after=%3B", "domain=a..b", "sender=a+b", "larger=x"),
        *("before=-1", "before=1e999", "since=NaN", "smaller=true", "next_hop=nonsense", f"reason={'x' * 321}"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(bench: Bench, query: str) -> None:
    status, answer = bench.ask(f"{API}?{query}")
    assert status == 400 and answer["error"]


def test_a_message_is_shown_with_its_header_its_attempts_and_why_it_is_here(either: Bench) -> None:
    status, shown = either.ask(f"{API}/{FIRST.lower()}")
    assert (status, shown["header"], shown["attempts"], shown["claimed"]) == (200, "Subject: hello\n", [], False)
    assert [why["code"] for why in shown["why"]] == ["unattended", "new"]
    assert either.ask(f"{API}/{FIRST}/content") == (200, CONTENT)
    assert either.ask(f"{API}/0NOSUCH")[0] == either.ask(f"{API}/0NOSUCH/content")[0] == 404


def test_messages_are_changed_and_it_is_logged_who_wanted_that(either: Bench) -> None:
    with structlog.testing.capture_logs() as logs:
        status, answer = post(either, f"{API}/hold", ids=[FIRST, NULL, "0NOSUCH"], reason="legal", by="anna")
    assert (status, answer) == (200, {"messages": 2, "others": {"0NOSUCH": "missing"}, "more": False})
    (logged,) = [log for log in logs if log["event"] == "queue.amended"]
    assert (logged["deed"], logged["messages"], logged["by"]) == ("held", 2, "anna by the API at 127.0.0.1")
    assert found(either, "state=hold&reason=legal") == [FIRST, NULL]
    assert post(either, f"{API}/release", select={"state": "hold", "sender": "<>"})[1]["messages"] == 1
    assert post(either, f"{API}/reroute", ids=[FIRST], to="lmtp:other.example")[1]["messages"] == 1
    assert found(either, "next_hop=lmtp:other.example:24") == [FIRST]
    assert post(either, f"{API}/redirect", ids=[FIRST], to=["eve@example.net"])[1]["messages"] == 1
    assert post(either, f"{API}/recipients", ids=[FIRST], add=["max@example.net"])[1]["messages"] == 1
    status, shown = either.ask(f"{API}/{FIRST}")
    assert [slot["address"] for slot in shown["recipients"]] == ["eve@example.net", "max@example.net"]
    assert {note["outcome"] for note in shown["attempts"]} == {"held", "rerouted", "redirected", "edited"}
    assert post(either, f"{API}/retry", ids=[NULL])[1]["messages"] == 1
    assert post(either, f"{API}/return", ids=[NULL])[1]["others"] == {NULL: "not-owed"}


def test_what_cannot_be_taken_back_has_to_be_meant(either: Bench) -> None:
    choice = {"domain": "example.org"}
    status, answer = post(either, f"{API}/drop", select=choice)
    assert status == 409 and "3 messages would be dropped" in answer["error"]
    assert post(either, f"{API}/drop", select=choice, dry_run=True)[1] == {"dry_run": True, "messages": 3, "ids": IDS}
    assert found(either, "") == IDS
    assert post(either, f"{API}/drop", select=choice, yes=True)[1]["messages"] == 3
    assert found(either, "") == []


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("nosuch", {"ids": [FIRST]}, 404),
        ("hold", {}, 400),
        ("hold", {"ids": [FIRST], "select": {}}, 400),
        ("hold", {"ids": FIRST}, 400),
        ("hold", {"ids": [5]}, 400),
        ("hold", {"ids": ["../x"]}, 400),
        ("hold", {"ids": [FIRST], "reason": "x" * 321}, 400),
        ("hold", {"ids": [FIRST], "to": "x"}, 400),
        ("hold", {"ids": [FIRST], "by": ""}, 400),
        ("hold", {"ids": [FIRST], "wait": 61}, 400),
        ("hold", {"ids": [FIRST], "wait": True}, 400),
        ("hold", {"ids": [FIRST], "dry_run": "yes"}, 400),
        ("hold", {"select": {"nosuch": 1}}, 400),
        ("hold", {"select": {"sender": 1}}, 400),
        ("hold", {"select": []}, 400),
        ("reroute", {"ids": [FIRST]}, 400),
        ("reroute", {"ids": [FIRST], "to": "mbox:/etc/passwd"}, 400),
        ("redirect", {"ids": [FIRST], "to": []}, 400),
        ("redirect", {"ids": [FIRST], "to": ["x"]}, 400),
        ("recipients", {"ids": [FIRST]}, 400),
        ("recipients", {"ids": [FIRST], "add": [5]}, 400),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(
    bench: Bench, operation: str, body: dict[str, Any], status: int
) -> None:
    before = bench.ask(API)
    answer = bench.ask(f"{API}/{operation}", "POST", content=json.dumps(body).encode())
    assert answer[0] == status and answer[1]["error"]
    assert bench.ask(API) == before


def test_a_message_is_exported_and_entered_again(either: Bench) -> None:
    status, described = either.ask(f"{API}/{HELD}/export")
    assert status == 200 and described["size"] == len(CONTENT)
    content = base64.b64encode(CONTENT).decode()
    assert post(either, f"{API}/import", message=described, content=content)[0] == 409, "it is there"
    before = either.ask(f"{API}/{HELD}")[1]
    post(either, f"{API}/drop", ids=[HELD])
    assert either.ask(f"{API}/{HELD}/export")[0] == 404
    assert post(either, f"{API}/import", message=described, content=content) == (201, {"imported": HELD})
    after = either.ask(f"{API}/{HELD}")[1]
    assert {**after, "attempts": []} == {**before, "attempts": []}
    for wrong in ({"message": described}, {"message": {}, "content": content}, {"message": described, "content": "%"}):
        assert post(either, f"{API}/import", **wrong)[0] == 400
    assert post(either, f"{API}/import", message={**described, "id": "0" * 14}, content="")[0] == 400


def test_a_destination_is_suspended_and_resumed(either: Bench) -> None:
    status, made = post(either, f"{DESTINATIONS}/suspend", destination="smtp:store.example.org", reason="moving")
    assert (status, made["destination"], made["by"]) == (200, STORE, "the API at 127.0.0.1")
    assert post(either, f"{DESTINATIONS}/suspend", destination=STORE)[0] == 409
    _, answer = either.ask(DESTINATIONS)
    assert answer["suspended"] == [made]
    ((name, waiting, suspended),) = [
        (one["destination"], one["recipients"], one["suspended"]) for one in answer["destinations"]
    ]
    assert (name, waiting, suspended) == (STORE, 2, True)
    assert either.ask(f"{API}/{FIRST}")[1]["why"][1]["code"] == "suspended"
    assert post(either, f"{DESTINATIONS}/resume", destination=STORE, by="anna") == (200, made)
    assert post(either, f"{DESTINATIONS}/resume", destination=STORE)[0] == 404
    for wrong in ({}, {"destination": 5}, {"destination": "nonsense"}, {"destination": STORE, "more": 1}):
        assert post(either, f"{DESTINATIONS}/suspend", **wrong)[0] == 400


@pytest.mark.parametrize("path", [f"{API}/drop", f"{API}/import", f"{DESTINATIONS}/suspend", f"{DESTINATIONS}/resume"])
def test_who_has_no_token_changes_nothing(bench: Bench, path: str) -> None:
    bench.token = TOKEN
    assert bench.ask(path, "POST", content=b'{"ids": []}')[0] == 401
    assert bench.ask(DESTINATIONS)[0] == 401
