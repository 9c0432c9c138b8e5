"""The spool against random values, random rows, and random histories with restarts and crashes in them."""

from __future__ import annotations

import asyncio
import os
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient, Ret
from gateway.ops.operations import Amended, Selection
from gateway.spool import schema
from gateway.spool.spool import RecipientStatus, Slot, State, Stored
from gateway.spool.sqlite import SqliteSpool
from tests.spool.rig import HEAD, LARGE, NOW, SMALL, content_files, defer, deliver, octets, options, put, take

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
ADDRESSES = st.builds(Address, TEXT, TEXT)
RECIPIENTS = st.builds(Recipient, ADDRESSES, st.frozensets(st.sampled_from(Notify)), st.text(string.printable))
SLOTS = st.builds(
    Slot,
    RECIPIENTS,
    st.sampled_from(RecipientStatus),
    st.floats(0, 1e12),
    st.integers(0, 1000),
    st.text(st.characters(exclude_categories=("Cs",))),
)
PARAMETERS = st.builds(
    MailParameters,
    st.just(0),
    st.sampled_from(Body),
    st.booleans(),
    st.none() | st.sampled_from(Ret),
    st.text(string.printable),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
CELLS = st.none() | st.integers() | st.floats() | st.text() | st.binary() | JSON.map(schema.dumps)


CONTENTS = {"empty": b"", "small": SMALL, "large": LARGE}


def columns(stored: Stored, envelope: str, slots: str) -> tuple[Any, ...]:
    start = (stored.id, stored.state.value, stored.received, stored.size, envelope, slots)
    return (*start, stored.owed, stored.trusted, stored.warned, stored.reason, 1, 0, 0, 0)


@given(st.lists(SLOTS, min_size=1, max_size=5), ADDRESSES | st.just(NULL_SENDER), PARAMETERS)
def test_what_was_stored_is_what_is_read(slots, sender, parameters):
    slots = tuple(slots)
    envelope = Envelope(sender, tuple(slot.recipient for slot in slots), parameters)
    stored = Stored("0123", State.QUEUED, envelope, slots, NOW, 10, True, False, reason="why")
    row = columns(stored, schema.dumps(envelope.to_json()), schema.slots_json(slots))
    assert schema.read_row(row) == stored


@given(st.lists(CELLS, min_size=14, max_size=14))
def test_any_row_is_read_or_unreadable_and_can_be_listed(cells):
    row = tuple(cells)
    try:
        stored = schema.read_row(row)
    except schema.Unreadable:
        assert schema.lenient(row).state is State.CORRUPT
    else:
        assert stored.slots and stored == schema.lenient(row)


@given(JSON)
def test_any_json_for_slots_and_envelope_is_read_or_unreadable(value):
    text = schema.dumps(value)
    good = schema.slots_json((Slot(Recipient(Address("ben", "example.test"))),))
    stored = Stored("0123", State.QUEUED, Envelope(NULL_SENDER, ()), (), NOW, 10, True, False)
    for row in (columns(stored, text, good), columns(stored, "{}", text)):
        try:
            read = schema.read_row(row)
        except schema.Unreadable:
            continue
        assert read.slots and read == schema.lenient(row)


@given(JSON)
def test_anything_can_be_kept_as_a_note(value):
    text = schema.dumps({"note": value})
    (read,) = schema.read_notes([text])
    assert read.keys() == {"note"} and text.encode("utf-8")


@given(st.text(st.characters()))
def test_a_note_of_text_comes_back_but_for_what_is_no_character(value):
    (read,) = schema.read_notes([schema.dumps({"note": value})])
    assert read == {"note": value.encode("utf-8", "replace").decode("utf-8")}


class History(RuleBasedStateMachine):
    """What happens to mail, on a real spool and in a dictionary: both must agree after each step."""

    ids: Bundle[str] = Bundle("ids")
    claims: Bundle[str] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        # In memory where that can be had: the syncs are not what is tested here.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.home = Path(tempfile.mkdtemp(prefix="gatepost-fuzz-", dir=memory))
        self.lives = 0
        self.clock = NOW
        self.state: dict[str, State] = {}
        self.due: dict[str, float] = {}
        self.content: dict[str, bytes] = {}
        self.claimed: dict[str, Stored] = {}

    @property
    def place(self) -> Path:
        return self.home / str(self.lives)

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    def open(self) -> None:
        self.spool = self.run(SqliteSpool.open(options(self.place)))
        self.claimed.clear()

    @initialize()
    def begin(self) -> None:
        self.open()

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.run(self.spool.close())
        self.runner.close()
        shutil.rmtree(self.home)

    @rule(target=ids, kind=st.sampled_from(list(CONTENTS)), quarantine=st.booleans())
    def commit(self, kind: str, quarantine: bool) -> str:
        content = CONTENTS[kind]
        state = State.QUARANTINE if quarantine else State.QUEUED
        id: str = self.run(put(self.spool, content, state=state))
        self.state[id], self.due[id], self.content[id] = state, NOW, HEAD + content
        return id

    @rule(kind=st.sampled_from(list(CONTENTS)))
    def abandon(self, kind: str) -> None:
        draft = self.spool.draft("ABANDONED")
        self.run(draft.write(CONTENTS[kind]))
        self.run(draft.abandon())

    @rule(target=claims, limit=st.integers(1, 5), later=st.sampled_from([0, 10, 100]))
    def claim(self, limit: int, later: int) -> Any:
        self.clock += later
        found = self.run(take(self.spool, self.clock, limit))
        ready = {
            id
            for id, state in self.state.items()
            if state is State.QUEUED and self.due[id] <= self.clock and id not in self.claimed
        }
        assert set(found) <= ready and len(found) <= limit
        assert found or not ready, "something is due and is not handed out"
        for id, claimed in found.items():
            assert self.run(octets(claimed)) == self.content[id]
            self.claimed[id] = claimed.message
        return multiple(*found)

    @rule(id=consumes(claims))
    def deliver(self, id: str) -> None:
        if id in self.claimed:
            self.run(deliver(self.spool, self.claimed.pop(id)))
            self.state.pop(id, None)

    @rule(id=consumes(claims), seconds=st.sampled_from([5, 50]))
    def defer(self, id: str, seconds: int) -> None:
        if id in self.claimed:
            self.due[id] = self.clock + seconds
            self.run(defer(self.spool, self.claimed.pop(id), self.due[id]))

    @rule(id=ids)
    def hold(self, id: str) -> None:
        changed = self.state.get(id) is State.QUEUED
        assert self.run(self.spool.hold([id], "why")) == changed
        if changed:
            self.state[id] = State.HOLD

    @rule(id=ids)
    def release(self, id: str) -> None:
        changed = self.state.get(id) in (State.HOLD, State.QUARANTINE)
        assert self.run(self.spool.release([id])) == changed
        if changed:
            self.state[id], self.due[id] = State.QUEUED, 0.0

    @rule()
    def flush(self) -> None:
        queued = [id for id, state in self.state.items() if state is State.QUEUED]
        results = self.run(self.spool.postmaster.hasten(Selection(), lambda *_: "", by="anna"))
        assert sorted(results) == sorted(queued)
        done = {id for id, result in results.items() if result is Amended.DONE}
        assert not done & self.claimed.keys(), "who has a message in hand keeps it"
        assert done >= {id for id in queued if self.due[id] > self.clock and id not in self.claimed}
        assert {results[id] for id in results.keys() - done} <= {Amended.CLAIMED}
        self.due.update(dict.fromkeys(done, 0.0))

    @rule(id=ids)
    def drop(self, id: str) -> None:
        assert self.run(self.spool.drop([id])) == (self.state.pop(id, None) is not None)

    @rule()
    def restart(self) -> None:
        self.run(self.spool.close())
        self.open()

    @rule()
    def crash(self) -> None:
        """What is on disk now is all that the next life has; the shared memory of SQLite dies with the process."""
        before = self.place
        self.lives += 1
        shutil.copytree(before, self.place, ignore=shutil.ignore_patterns("*-shm"))
        self.run(self.spool.close())
        shutil.rmtree(before)
        self.open()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "spool"):
            return
        listed = self.run(self.spool.list())
        assert {m.id: m.state for m in listed} == self.state
        large = {id for id in self.state if len(self.content[id]) > len(HEAD + SMALL)}
        assert content_files(options(self.place)) == large


TestHistory = pytest.mark.slow(History.TestCase)
TestHistory.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
