"""Rounds over the lanes on the disk: fair, bounded, and never a scan."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.envelope import Priority
from gateway.spool import rounds, schema
from gateway.spool.rounds import Rounds, Taken
from gateway.spool.spool import Room, State

NOW = 1000.0


def shard() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(schema.SCHEMA)
    return db


def put(db: sqlite3.Connection, lane: str, *, due: float = NOW, rank: int = 1, deadline: float = 1e18) -> str:
    (count,) = db.execute("SELECT coalesce(max(rowid), 0) + 1 FROM content").fetchone()
    db.execute("INSERT INTO content VALUES (?, '', '')", (count,))
    id = f"M{count:06}"
    values = (id, "queued", 0, due, due, 1, "{}", "[]", 0, 0, 0, "", count, 0, 0, 0, lane, rank, deadline)
    db.execute(f"INSERT INTO message VALUES ({', '.join('?' * len(values))})", values)
    return id


def lanes(taken: Taken) -> Counter[str]:
    return Counter(row[14] for row in taken.rows)


def room(total: int = 100, share: int = 3, **values: Any) -> Room:
    return Room(**{"total": total, "unfiled": total, "filed": total, "share": share, **values})


@pytest.mark.parametrize(
    "query",
    [rounds.TAKE, rounds.OVERDUE, rounds.CLASS, rounds.LANE, rounds.LATER, rounds.DEADLINE, schema.ASIDE],
)
def test_no_question_of_a_claim_scans_or_sorts(query: str) -> None:
    db = shard()
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", [""] * query.count("?"))]
    # The first entry of an index is found without a condition.
    wanted = ("SCAN message USING COVERING INDEX",) if query is rounds.DEADLINE else ("SEARCH message USING INDEX",)
    content = "SEARCH content USING INTEGER PRIMARY KEY"
    assert plan and [step for step in plan if not step.startswith((*wanted, content))] == []


def test_counting_reads_indexes_only() -> None:
    plan = [row[3] for row in shard().execute(f"EXPLAIN QUERY PLAN {schema.COUNT_KNOWN}")]
    assert [step for step in plan if step.startswith(("SCAN", "SEARCH")) and "COVERING INDEX" not in step] == []


def test_the_oldest_is_looked_up_however_much_there_is() -> None:
    db = shard()
    for n in range(3000):
        state, claimed = ("queued", "quarantine", "queued")[n % 3], int(n % 3 == 2)
        db.execute("UPDATE message SET state = ?, claimed = ? WHERE id = ?", (state, claimed, put(db, "", due=NOW + n)))
    steps = []
    db.set_progress_handler(lambda: steps.append(1), 1)
    found = db.execute(schema.OLDEST).fetchall()
    db.set_progress_handler(None, 0)
    assert schema.oldest(found) == {State.QUEUED: NOW, State.QUARANTINE: NOW + 1}
    assert 0 < len(steps) < 300, "steps of SQLite's machine"
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {schema.OLDEST}")]
    looks = [step for step in plan if "message" in step]
    assert len(looks) == len(State) and all("USING COVERING INDEX" in step for step in looks), plan


def test_a_time_that_is_none_says_nothing_of_the_oldest() -> None:
    db = shard()
    db.execute("UPDATE message SET received = 'long ago' WHERE id = ?", (put(db, ""),))
    assert schema.oldest(db.execute(schema.OLDEST).fetchall()) == {}
    db.execute("UPDATE message SET received = ? WHERE id = ?", (NOW + 5, put(db, "")))
    assert schema.oldest(db.execute(schema.OLDEST).fetchall()) == {State.QUEUED: NOW + 5}


def test_every_lane_gets_its_share_and_the_round_goes_on_where_it_stopped() -> None:
    db, walk = shard(), Rounds()
    for lane in "abcdef":
        for _ in range(10):
            put(db, lane)
    first = walk.take(db, NOW, room(total=8))
    assert lanes(first) == {"a": 3, "b": 3, "c": 2} and first.short
    second = walk.take(db, NOW, room(total=8))
    assert lanes(second) == {"d": 3, "e": 3, "f": 2}
    third = walk.take(db, NOW, room(total=8))
    assert lanes(third) == {"a": 3, "b": 3, "c": 2}


def test_a_lane_without_room_is_left_and_is_no_reason_to_look_again() -> None:
    db, walk = shard(), Rounds()
    for _ in range(5):
        put(db, "dead", due=NOW - 500)
    put(db, "open")
    put(db, "later", due=NOW + 50)
    taken = walk.take(db, NOW, room(lanes={"dead": (0, 0, 0)}))
    assert lanes(taken) == {"open": 1}
    assert (taken.due, taken.short) == (NOW + 50, True)
    assert lanes(walk.take(db, NOW, room(lanes={"dead": (1, 1, 1)}))) == {"dead": 1}


def test_the_next_due_time_is_that_of_the_rest() -> None:
    db, walk = shard(), Rounds()
    put(db, "a")
    put(db, "a", due=NOW + 7)
    put(db, "", due=NOW + 9)
    assert walk.take(db, NOW, room()).due == NOW + 7
    assert walk.take(db, NOW + 7, room()).due == NOW + 9
    assert walk.take(db, NOW + 9, room()).due == 1e18


def test_a_deadline_counts_whatever_room_the_lane_has() -> None:
    db, walk = shard(), Rounds()
    late = put(db, "dead", due=NOW + 500, deadline=NOW - 1)
    put(db, "dead", deadline=NOW + 5)
    taken = walk.take(db, NOW, room(lanes={"dead": (0, 0, 0)}))
    assert [row[0] for row in taken.rows] == [late] and taken.due == NOW + 5


def test_mail_of_no_lane_and_lanes_have_places_of_their_own() -> None:
    db, walk = shard(), Rounds()
    for _ in range(20):
        put(db, "")
        put(db, "a", due=NOW - 100)
    taken = walk.take(db, NOW, room(total=10, unfiled=6, filed=7, share=100))
    assert lanes(taken) == {"": 6, "a": 4}
    taken = walk.take(db, NOW, room(total=10, unfiled=0, filed=7, share=100))
    assert lanes(taken) == {"a": 7}


@given(st.integers(1, 40), st.lists(st.integers(0, 2), max_size=60))
@settings(deadline=None, max_examples=40)
def test_mail_of_no_lane_leaves_by_priority_and_none_starves(limit: int, ranks: list[int]) -> None:
    db, walk = shard(), Rounds()
    for rank in ranks:
        put(db, "", rank=rank)
    waiting = Counter(ranks)
    most = max(waiting.values(), default=0)
    steps = 0
    while waiting.total():
        taken = walk.take(db, NOW, room(total=limit))
        assert len(taken.rows) == min(limit, waiting.total())
        waiting -= Counter(ranks[int(row[0][1:]) - 1] for row in taken.rows)
        steps += 1
    assert steps <= len(ranks) // limit + 1 and most <= len(ranks)


@given(
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.lists(st.integers(0, 2), min_size=1, max_size=9)),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sets(st.text("abcdefgh", min_size=1, max_size=2)),
)
@settings(deadline=None, max_examples=60)
def test_a_lane_with_due_mail_and_room_gets_its_turn_within_one_round(
    mail: dict[str, list[int]], total: int, share: int, closed: set[str]
) -> None:
    db, walk = shard(), Rounds()
    for lane, ranks in mail.items():
        for rank in ranks:
            put(db, lane, rank=rank)
    classes = {(lane, rank) for lane, ranks in mail.items() if lane not in closed for rank in ranks}
    given_room = room(total=total, share=share, lanes={lane: (0, 0, 0) for lane in closed})
    served: set[tuple[str, int]] = set()
    ids: list[str] = []
    ranks_of = {row[0]: (row[1], row[2]) for row in db.execute("SELECT id, lane, priority FROM message")}
    for turn in range(1000):
        taken = walk.take(db, NOW, given_room)
        assert len(taken.rows) <= total
        got = Counter(ranks_of[row[0]] for row in taken.rows)
        assert all(count <= share for count in got.values())
        assert not closed & {lane for lane, _ in got}
        ids += [row[0] for row in taken.rows]
        served |= set(got)
        # Nobody gets a second share before everybody had a first one.
        if turn * total >= len(classes) * share:
            assert served == classes
        if not taken.rows:
            break
    assert sorted(ids) == sorted(id for id, (lane, _) in ranks_of.items() if lane not in closed)


def test_one_step_looks_at_so_many_lanes_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LOOKS", 10)
    db, walk = shard(), Rounds()
    for number in range(35):
        put(db, f"dead{number:02}")
    put(db, "open")
    closed = {f"dead{number:02}": (0, 0, 0) for number in range(35)}
    steps = 1
    while not (taken := walk.take(db, NOW, room(lanes=closed))).rows:
        assert taken.due <= NOW
        steps += 1
    assert steps == 4


def test_priorities_are_counted_as_they_are_ranked() -> None:
    assert [schema.RANKS[priority] for priority in Priority] == [0, 1, 2]
    assert State.QUEUED == "queued"


def test_a_lane_that_works_fast_is_fed_before_the_round_but_never_all_of_it() -> None:
    db, walk = shard(), Rounds()
    for lane in "abcdef":
        for _ in range(30):
            put(db, lane)
    full = room(total=20, share=5, lanes={"f": (20, 20, 20)}, hungry=("f",))
    assert lanes(walk.take(db, NOW, full)) == {"f": 10, "a": 5, "b": 5}
    assert lanes(walk.take(db, NOW, full)) == {"f": 10, "c": 5, "d": 5}
    # What it was fed counts when the round comes by.
    taken = walk.take(db, NOW, room(total=40, share=5, lanes={"f": (12, 12, 12)}, hungry=("f",)))
    assert lanes(taken) == {"f": 10, "e": 5, "a": 5, "b": 5, "c": 5, "d": 5}


def test_lanes_where_nothing_got_through_lately_share_a_part_of_the_places() -> None:
    db, walk = shard(), Rounds()
    for lane in "abcdef":
        for _ in range(10):
            put(db, lane)
    taken = walk.take(db, NOW, room(total=100, share=5, suspect=12, proven=frozenset("ef")))
    assert lanes(taken) == {"a": 5, "b": 5, "c": 2, "e": 5, "f": 5} and taken.short


@pytest.mark.parametrize("closed", [True, False])
def test_a_claim_takes_no_more_steps_from_a_long_queue_than_from_a_short_one(closed: bool) -> None:
    def steps(messages: int) -> int:
        db, walk = shard(), Rounds()
        db.execute("BEGIN")
        for number in range(messages):
            put(db, "big" if number % 4 else "", due=NOW - number, rank=number % 3)
        db.execute("COMMIT")
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        db.set_progress_handler(tick, 1)
        given = room(total=20, share=5, lanes={"big": (0, 0, 0)} if closed else {}, unfiled=5)
        for _ in range(4):
            walk.take(db, NOW, given)
        return count

    short, long = steps(400), steps(8000)
    assert long <= short * 1.1
