"""Messages as the standard input of commands."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.testing import BytesContent, ManualClock
from gateway.transport import command, storage
from gateway.transport.options import LineEnds, PipeOptions, RunAs
from gateway.transport.pipe import PipeTransport
from gateway.transport.transport import Delivery, Fault, Outcome, Result
from tests.support.process import alive, children, wait_until
from tests.transport.peer import delivery, run, statuses

SMALL = b"Subject: x\r\n\r\n.\r\nHi\r\n"


def shell(script: str, *words: str, **options: Any) -> PipeOptions:
    return PipeOptions(("/bin/sh", "-c", script, "sh", *words), **options)


def deliver(options: PipeOptions, what: Delivery) -> list[Outcome]:
    return run(PipeTransport(options, "gate.test", ManualClock()).deliver(what))


def test_the_command_gets_the_message_with_unix_line_ends_and_trace_fields(tmp_path: Path):
    options = shell('cat > "$1"', f"{tmp_path}/{{local}}")
    outcomes = deliver(options, delivery("Anna@example.net", "ben@example.net", content=SMALL))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2
    assert (tmp_path / "anna").read_bytes() == (
        b"Return-Path: <ben@example.org>\nDelivered-To: Anna@example.net\nSubject: x\n\n.\nHi\n"
    )
    assert b"Delivered-To: ben@example.net\n" in (tmp_path / "ben").read_bytes()


def test_what_stands_on_top_and_the_line_ends_are_options(tmp_path: Path):
    file = tmp_path / "out"
    plain = shell(f"cat > {file}", return_path=False, delivered_to=False, line_ends=LineEnds.CRLF)
    deliver(plain, delivery(content=SMALL))
    assert file.read_bytes() == SMALL
    deliver(shell(f"cat > {file}", from_line=True), delivery(sender="", content=SMALL))
    assert file.read_bytes().startswith(b"From MAILER-DAEMON Sun Sep  9 01:46:40 2001\nReturn-Path: <>\nDelivered-To: ")
    deliver(shell(f"cat > {file}", from_line=True, line_ends=LineEnds.CRLF), delivery(content=SMALL))
    assert file.read_bytes().replace(b"\r\n", b"").count(b"\n") == 0


def test_large_content_arrives_whole(tmp_path: Path):
    data = b"".join(b"%d\r\n" % i for i in range(400_000))
    options = shell(f"cat > {tmp_path}/out", return_path=False, delivered_to=False)
    assert statuses(deliver(options, delivery(content=data))) == ["delivered 2.0.0"]
    assert (tmp_path / "out").read_bytes() == data.replace(b"\r\n", b"\n")


def test_each_recipient_has_its_own_run_and_result():
    options = shell('case "$1" in anna) exit 67;; ben) echo 4.2.2 full; exit 75;; esac', "{local}")
    outcomes = deliver(options, delivery("anna@x.test", "ben@x.test", "carl@x.test"))
    assert statuses(outcomes) == ["failed 5.1.1", "deferred 4.2.2", "delivered 2.0.0"]


def test_several_recipients_may_share_a_run(tmp_path: Path):
    options = shell(f'echo "$@" >> {tmp_path}/out; cat >> {tmp_path}/out', "{recipient}", recipients_per_run=2)
    outcomes = deliver(options, delivery("a@x.test", "b@x.test", "c@x.test", content=b"x\r\n"))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 3
    top = "Return-Path: <ben@example.org>\n"
    assert (tmp_path / "out").read_text() == (f"a@x.test b@x.test\n{top}x\nc@x.test\n{top}Delivered-To: c@x.test\nx\n")


def test_the_environment_is_what_is_documented_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_OURS", "hush")
    monkeypatch.setenv("TZ", "UTC")
    deliver(PipeOptions(("/usr/bin/env", "-0"), environment=(("FOLDER", "in box"),)), delivery())
    (outcome,) = deliver(PipeOptions(("/usr/bin/env",), environment=(("FOLDER", "in box"),)), delivery())
    said = outcome.reply.text
    assert "PATH=/usr/local/bin:/usr/bin:/bin / LC_ALL=C.UTF-8 / TZ=UTC" in said and "hush" not in said
    options = shell(f"env > {tmp_path}/env", environment=(("FOLDER", "in box"),))
    deliver(options, delivery())
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {"PATH", "LC_ALL", "TZ", "FOLDER"}


def test_it_runs_as_the_user_it_should():
    script = "id -u; id -G; echo $HOME $USER $LOGNAME; cat /dev/stdin"
    (outcome,) = deliver(shell(script, run_as=RunAs("nobody")), delivery())
    assert outcome.reply.text.endswith("65534 / 65534 / /nonexistent nobody nobody"), outcome.reply.text
    (outcome,) = deliver(shell(script, run_as=RunAs("nobody", "mail"), environment=(("HOME", "/x"),)), delivery())
    assert outcome.reply.text.endswith("65534 / 8 / /x nobody nobody"), outcome.reply.text


@pytest.mark.parametrize("run_as", [RunAs("no-such-user"), RunAs("nobody", "no-such-group")])
def test_a_user_that_is_not_there_is_our_fault_and_temporary(run_as: RunAs):
    (outcome,) = deliver(shell("exit 0", run_as=run_as), delivery())
    assert statuses([outcome]) == ["deferred 4.3.5"] and outcome.fault is Fault.OURS and "no-such" in outcome.reply.text


def test_the_message_cannot_be_changed_by_the_command():
    (outcome,) = deliver(shell("echo x >&0"), delivery())
    assert outcome.result is not Result.DELIVERED


def test_nothing_of_ours_is_open_in_the_command():
    (outcome,) = deliver(shell("echo $(ls /proc/self/fd)"), delivery())
    # The directory that ls itself reads is the last.
    assert outcome.reply.text == "sh took it: 0 1 2 3"


@pytest.mark.parametrize(
    ("program", "says"),
    [("/nonexistent/lda", "No such file"), ("/etc/passwd", "Permission denied"), ("/etc", "Permission denied")],
)
def test_a_command_that_cannot_be_run_is_our_fault_and_temporary(program: str, says: str):
    (outcome,) = deliver(PipeOptions((program,)), delivery())
    assert statuses([outcome]) == ["deferred 4.3.5"] and outcome.fault is Fault.OURS
    assert says in outcome.reply.text


def test_an_unsafe_address_fails_and_nothing_is_run(tmp_path: Path):
    options = shell(f"touch {tmp_path}/ran", "{local}")
    assert statuses(deliver(options, delivery("-x@example.net"))) == ["failed 5.1.3"]
    options = shell(f"touch {tmp_path}/ran", "{sender}")
    assert statuses(deliver(options, delivery(sender="-x@example.net"))) == ["failed 5.1.7"]
    assert not (tmp_path / "ran").exists()


def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "GRACE", 0.2)
    script = f"trap '' TERM; (trap '' TERM; sleep 1000) & echo $$ $! > {tmp_path}/pids; echo busy; wait; sleep 1000"
    started = time.monotonic()
    (outcome,) = deliver(shell(script, timeout=0.5), delivery())
    assert time.monotonic() - started < 15
    assert statuses([outcome]) == ["deferred 4.3.0"] and outcome.fault is Fault.OURS
    assert outcome.reply.text == "sh did not end in time and was killed: busy"
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_until(lambda pid=pid: not alive(pid), "it is dead")


def test_a_command_may_clean_up_when_its_time_is_over(tmp_path: Path):
    script = f"trap 'rm {tmp_path}/lock; exit 0' TERM; touch {tmp_path}/lock; sleep 1000 & wait"
    assert statuses(deliver(shell(script, timeout=0.5), delivery())) == ["deferred 4.3.0"]
    assert not (tmp_path / "lock").exists()


def test_a_command_that_is_killed_defers():
    (outcome,) = deliver(shell("kill -9 $$"), delivery())
    assert str(outcome.reply) == "451 4.3.0 sh was ended by SIGKILL"


def test_endless_output_is_cut_off():
    (outcome,) = deliver(shell("exec yes"), delivery())
    assert outcome.result is Result.DEFERRED and len(outcome.reply.text) <= 400


def test_what_a_command_leaves_running_does_not_hold_us_up(tmp_path: Path):
    started = time.monotonic()
    (outcome,) = deliver(shell(f"sleep 1000 & echo $! > {tmp_path}/pid; echo done"), delivery())
    assert outcome.result is Result.DELIVERED and time.monotonic() - started < 15
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_command_need_not_read_what_it_does_not_want():
    assert statuses(deliver(shell("exit 0"), delivery(content=b"x" * 3_000_000))) == ["delivered 2.0.0"]


class Unreadable(BytesContent):
    async def blocks(self) -> AsyncIterator[bytes]:
        yield self.data[:1000]
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("size", [5000, storage.SMALL + 1])
def test_content_that_cannot_be_read_is_never_half_handed_over(tmp_path: Path, size: int):
    with pytest.raises(OSError, match="Input/output"):
        deliver(shell(f"cat > {tmp_path}/out"), delivery(content=Unreadable(b"x" * size)))
    assert not (tmp_path / "out").exists()


def test_no_room_for_the_temporary_file_defers(monkeypatch: pytest.MonkeyPatch):
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "write", full)
    (outcome,) = deliver(shell("exit 0"), delivery())
    assert statuses([outcome]) == ["deferred 4.2.2"] and outcome.fault is Fault.OURS


def test_a_delivery_that_is_cut_off_takes_the_command_with_it(tmp_path: Path):
    async def main() -> None:
        transport = PipeTransport(shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"), "gate.test", ManualClock())
        task = asyncio.get_running_loop().create_task(transport.deliver(delivery()))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert not alive(int((tmp_path / "pid").read_text()))


def test_many_runs_leave_no_descriptor_and_no_process_behind():
    async def main() -> None:
        transport = PipeTransport(shell("cat > /dev/null; echo ok"), "gate.test", ManualClock())
        await transport.deliver(delivery())
        before = sorted(os.listdir("/proc/self/fd"))
        await asyncio.gather(*(transport.deliver(delivery()) for _ in range(30)))
        assert sorted(os.listdir("/proc/self/fd")) == before

    before = children(os.getpid())
    run(main())
    assert children(os.getpid()) == before
