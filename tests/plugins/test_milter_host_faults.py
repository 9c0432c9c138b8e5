"""A milter class that misbehaves inside Gatepost costs its entry a failure, and nobody anything else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gateway.sdk import MilterAction
from gateway.services.tasks import Tasks
from plugins.milter import host_plugin
from plugins.milter.crew import Crew
from plugins.milter.packets import MilterError
from tests.plugins.hosting import CALLBACKS, Guest, calls_of, one, visit, written

GATES: dict[str, threading.Event] = {}
"""What hanging milters wait for, by name."""


def fails(options: dict[str, Any], kind: type[BaseException], words: str | None = None) -> None:
    with pytest.raises(kind, match=words):
        visit(options)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("threads", [0, 8])
def test_what_a_callback_raises_is_the_entrys_failure(tmp_path, callback, threads):
    options = written(tmp_path, one(callback, "raise KeyError('oops')")) | {"threads": threads}
    fails(options, KeyError, "oops")


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("answer", ["None", "'x'", "42", "-1", "1.0", "Milter.ALL_OPTS"])
def test_what_is_no_code_is_garbage(tmp_path, callback, answer):
    fails(written(tmp_path, one(callback, f"return {answer}")), MilterError, f"{callback}.* answered")


def test_an_answer_to_which_nobody_listens_may_be_anything(tmp_path):
    options = written(
        tmp_path,
        """
        def hello(self, name):
            return "garbage"

        hello.milter_protocol = Milter.P_NR_HELO
        """,
    )
    assert visit(options).action is MilterAction.CONTINUE


@pytest.mark.parametrize("threads", [0, 8])
def test_exiting_the_interpreter_exits_nothing(tmp_path, threads):
    options = written(tmp_path, one("hello", "raise SystemExit(3)")) | {"threads": threads}
    fails(options, MilterError, "it raised SystemExit")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def __init__(self):\n    1 / 0", ZeroDivisionError),
        ("def negotiate(self, opts):\n    return Milter.REJECT", MilterError),
        ("def negotiate(self, opts):\n    raise OSError", OSError),
        ("def negotiate(self, opts):\n    opts[0] = 'x'\n    return Milter.CONTINUE", ValueError),
    ],
)
def test_an_instance_that_cannot_be_made_is_a_failure(tmp_path, body, problem):
    fails(written(tmp_path, body), problem)


def test_an_instance_can_decline_what_its_class_does_not(tmp_path):
    options = written(
        tmp_path,
        """
        def negotiate(self, opts):
            opts[0] = Milter.ADDHDRS
            opts[1] = Milter.P_NOHELO | Milter.P_NODATA
            return Milter.CONTINUE

        def hello(self, name):
            1 / 0

        def data(self):
            1 / 0

        def eom(self):
            self.addheader("X-A", "b")
            try:
                self.delrcpt("<a@example.org>")
            except Milter.error:
                self.addheader("X-Error", "yes")
            return Milter.CONTINUE
        """,
    )
    assert [edit.name for edit in visit(options).edits] == ["X-A", "X-Error"]


def test_after_a_failure_there_is_a_new_instance_that_hears_what_it_missed(tmp_path):
    options = written(
        tmp_path,
        """
        def note(self, *what):
            calls.append((id(self) % 1000003, *what))

        def connect(self, *arguments):
            self.note("connect")
            return Milter.CONTINUE

        def hello(self, name):
            self.note("hello")
            return Milter.CONTINUE

        def envfrom(self, sender, *parameters):
            self.note(sender)
            if sender == "<bad@sender.example>":
                raise ValueError("bad")
            return Milter.CONTINUE

        def close(self):
            self.note("close")
            return Milter.CONTINUE
        """,
    )

    async def script(guest: Guest) -> None:
        with pytest.raises(ValueError, match="bad"):
            await guest.mail("bad@sender.example")
        await guest.mail("good@sender.example")
        names = [call[1] for call in calls_of(guest)]
        assert names == [
            "connect",
            "hello",
            "<bad@sender.example>",
            "close",
            "connect",
            "hello",
            "<good@sender.example>",
        ]

    visit(options, script)


# Hanging


def hanging(callback: str) -> str:
    return one(callback, f"from {__name__} import GATES; GATES['{callback}'].wait(30); return Milter.CONTINUE")


async def given_up(guest: Guest, what: Any) -> None:
    """Ask, and give up when the milter hangs."""
    begun = len(calls_of(guest))
    task = Tasks().start(what, name="ask")
    while len(calls_of(guest)) == begun and not task.done():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_thread_that_hangs_is_given_up_and_its_instance_never_used_again(tmp_path):
    GATES["hello"] = gate = threading.Event()
    options = written(tmp_path, hanging("hello")) | {"threads": 2}

    async def run() -> None:
        guest = Guest(options)
        await guest.connect()
        await given_up(guest, guest.helo())
        crew, calls = guest.plugin._host.crew, calls_of(guest)
        assert crew.stuck == 1
        gate.set()
        await guest.helo("again.example")
        while crew.stuck:
            await asyncio.sleep(0)
        await guest.hang_up()
        assert calls == ["hello", "hello", "close"], "of the instance that came back nothing more is called"

    asyncio.run(run())


def test_when_all_threads_hang_others_fail_at_once_and_go_on_when_one_is_back(tmp_path):
    GATES["hello"] = gate = threading.Event()
    options = written(tmp_path, hanging("hello")) | {"threads": 2, "name": "all-hang"}

    def stuck() -> float:
        return host_plugin.STUCK.labels("all-hang")._value.get()

    async def run() -> None:
        first = Guest(options)
        for guest in (first, Guest(options, first)):
            await given_up(guest, guest.helo())
        third = Guest(options, first)
        with pytest.raises(MilterError, match="all 2 threads are stuck"):
            await third.helo()
        assert stuck() == 2
        gate.set()
        while first.plugin._host.crew.stuck:
            await asyncio.sleep(0)
        assert (await third.helo()).action is MilterAction.CONTINUE
        assert stuck() == 0

    asyncio.run(run())


def test_one_that_hangs_keeps_nobody_else_waiting(tmp_path):
    GATES["hello"] = gate = threading.Event()
    options = written(
        tmp_path,
        one("hello", f"from {__name__} import GATES; 'slow' in arguments[0] and GATES['hello'].wait(30); return 0"),
    )

    async def run() -> None:
        slow = Guest(options)
        task = Tasks().start(slow.helo("slow.example"), name="slow")
        while not slow.plugin._host.crew._busy:
            await asyncio.sleep(0)
        quick = [Guest(options, slow) for _ in range(20)]
        assert {r.action for r in await asyncio.gather(*(g.helo() for g in quick))} == {MilterAction.CONTINUE}
        assert not task.done()
        gate.set()
        await task

    asyncio.run(run())


def test_no_two_threads_are_in_one_instance_even_after_somebody_gave_up(tmp_path):
    GATES["envrcpt"] = gate = threading.Event()
    options = written(
        tmp_path,
        f"""
        def __init__(self):
            self.inside = 0

        def envrcpt(self, recipient, *parameters):
            from {__name__} import GATES
            self.inside += 1
            calls.append(self.inside)
            GATES["envrcpt"].wait(30)
            self.inside -= 1
            return Milter.CONTINUE
        """,
    )

    async def run() -> None:
        guest = Guest(options)
        await guest.mail()
        await given_up(guest, guest.rcpt())
        again = Tasks().start(guest.rcpt("other@example.org"), name="again")
        while guest.plugin._host.crew._busy < 2:
            await asyncio.sleep(0)
        gate.set()
        await again
        assert set(calls_of(guest)) == {1}

    asyncio.run(run())


def test_calls_that_find_no_free_thread_wait_for_one(tmp_path):
    options = written(tmp_path, one("hello", "time.sleep(0.001); return Milter.CONTINUE")) | {"threads": 1}

    async def run() -> None:
        first = Guest(options)
        guests = [first, *(Guest(options, first) for _ in range(10))]
        await asyncio.gather(*(guest.helo() for guest in guests))
        assert first.plugin._host.crew._threads == 1

    asyncio.run(run())


def test_threads_end_when_the_crew_is_closed():
    async def run() -> list[threading.Thread]:
        crew = Crew(3, "ending")
        await asyncio.gather(*(crew.run(lambda: None) for _ in range(9)))
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("ending")]
        assert 1 <= len(threads) <= 3
        crew.close()
        return threads

    for thread in asyncio.run(run()):
        thread.join(10)
        assert not thread.is_alive()


def test_where_the_system_had_no_thread_to_give_the_work_is_done_when_it_has_one(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> int:
        crew = Crew(2, "late")
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                with pytest.raises(MilterError, match="no thread"):
                    await asyncio.wait_for(crew.run(lambda: 1), 10)
        try:
            return await asyncio.wait_for(crew.run(lambda: 1), 10)
        finally:
            crew.close()

    assert asyncio.run(run()) == 1
