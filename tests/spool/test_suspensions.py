"""The list of suspended destinations: durable, read by many, and harmless when it is none."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import cast

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app.destinations import hasten
from gateway.ops.operations import Selection, Suspension
from gateway.spool import suspensions
from gateway.spool.hands import Hands
from gateway.spool.spool import SpoolError
from gateway.spool.suspensions import NAME, ListFile, Watch, read, resume, suspend

ONE, TWO = (Suspension(f"smtp:{name}.test:25", "anna", 1.7e9, "moving") for name in ("one", "two"))


async def nothing(_: frozenset[str]) -> None:
    """Nobody is told."""


def test_what_is_suspended_is_so_until_it_is_resumed(tmp_path):
    assert read(tmp_path) == {}
    assert suspend(tmp_path, ONE) and suspend(tmp_path, TWO)
    assert not suspend(tmp_path, Suspension(ONE.destination, "bob", 1.8e9)), "who was first stays named"
    assert read(tmp_path) == {ONE.destination: ONE, TWO.destination: TWO}
    assert resume(tmp_path, ONE.destination, "bob") == ONE
    assert resume(tmp_path, ONE.destination, "bob") is None
    assert read(tmp_path) == {TWO.destination: TWO}
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    (ended,) = json.loads((tmp_path / NAME).read_text())["ended"]
    assert (ended["destination"], ended["by"]) == (ONE.destination, "bob")


def test_a_destination_of_as_many_servers_as_there_may_be_is_suspended_and_what_was_put_off_is_found(tmp_path):
    name = ".".join(["a" * 62] * 4)
    label = ",".join(f"smtp:{number:02}{name[2:]}:65535" for number in range(20))
    long = Suspension(label, "anna", 1.7e9)
    assert suspend(tmp_path, long) and read(tmp_path) == {label: long}
    assert resume(tmp_path, label, "anna") == long
    found: list[Selection] = []

    class Postmaster:
        async def hasten(self, wanted: Selection, *_: object, **__: object) -> None:
            found.append(wanted)

    asyncio.run(hasten(cast(Hands, Postmaster()), lambda *_: label, [label]))
    assert [wanted.next_hop for wanted in found] == [label]


def test_the_list_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("replace"), replace(*names)))
    suspend(tmp_path, ONE)
    assert steps == ["sync", "replace", "sync"]


def test_a_list_that_cannot_be_written_stays_what_it_was(tmp_path, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    suspend(tmp_path, ONE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SpoolError, match="No space left"):
            suspend(tmp_path, TWO)
        with pytest.raises(SpoolError, match="No space left"):
            resume(tmp_path, ONE.destination, "bob")
    assert read(tmp_path) == {ONE.destination: ONE}
    assert suspend(tmp_path, TWO) and len(read(tmp_path)) == 2


def test_many_at_once_lose_nothing_of_each_other(tmp_path):
    def one(n: int) -> None:
        suspend(tmp_path, Suspension(f"smtp:h{n}.test:25", "anna", 1.7e9))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(tmp_path)) == 12


def test_so_many_are_kept_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(suspensions, "COUNT_MAX", 1)
    suspend(tmp_path, ONE)
    with pytest.raises(SpoolError, match="1 destinations"):
        suspend(tmp_path, TWO)


def test_a_worker_knows_within_a_look_and_says_what_is_resumed(tmp_path):
    watch = Watch(ListFile(tmp_path), nothing)
    assert asyncio.run(watch.look()) == frozenset() and not watch.suspended(ONE.destination)
    suspend(tmp_path, ONE)
    assert asyncio.run(watch.look()) == frozenset() and watch.suspended(ONE.destination)
    resume(tmp_path, ONE.destination, "bob")
    assert watch.suspended(ONE.destination), "until it looks"
    with structlog.testing.capture_logs() as logs:
        assert asyncio.run(watch.look()) == {ONE.destination} and not watch.suspended(ONE.destination)
    assert [(log["event"], log["by"]) for log in logs] == [("destination.resumed", "bob")]


def test_while_the_list_cannot_be_read_what_it_said_last_holds(tmp_path):
    suspend(tmp_path, ONE)
    watch = Watch(ListFile(tmp_path), nothing)
    asyncio.run(watch.look())
    (tmp_path / NAME).write_text("{")
    assert asyncio.run(watch.look()) == frozenset() and watch.suspended(ONE.destination)
    with pytest.raises(SpoolError, match="cannot be read"):
        suspend(tmp_path, TWO)
    assert (tmp_path / NAME).read_text() == "{", "it is left for somebody to look at"


def test_who_waits_for_a_resumption_is_told_and_told_again_a_little_later(tmp_path, monkeypatch):
    monkeypatch.setattr(suspensions, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(suspensions, "_LATE_SECONDS", 0.001)

    async def check() -> None:
        told: list[frozenset[str]] = []
        twice = asyncio.Event()

        async def resumed(destinations: frozenset[str]) -> None:
            told.append(destinations)
            if len(told) == 2:
                twice.set()

        suspend(tmp_path, ONE)
        watch = Watch(ListFile(tmp_path), resumed)
        await watch.look()
        task = asyncio.get_running_loop().create_task(watch.run())
        resume(tmp_path, ONE.destination, "bob")
        async with asyncio.timeout(20):
            await twice.wait()
        task.cancel()
        assert told == [{ONE.destination}] * 2

    asyncio.run(check())


VALUE = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just([[]]) | st.just({"x": {}})
ENTRY = st.dictionaries(st.sampled_from(["destination", "by", "since", "reason"]), VALUE)
ENTRIES = st.lists(ENTRY | VALUE, max_size=4)


@settings(max_examples=60)
@given(
    st.binary(max_size=50)
    | st.fixed_dictionaries({"suspended": ENTRIES, "ended": ENTRIES}).map(lambda value: json.dumps(value).encode())
)
def test_whatever_the_file_holds_it_is_a_list_or_an_error(tmp_path_factory, octets):
    folder = tmp_path_factory.getbasetemp()
    Path(folder / NAME).write_bytes(octets)
    try:
        found = read(folder)
    except SpoolError:
        return
    assert all(isinstance(one, Suspension) and name == one.destination for name, one in found.items())
