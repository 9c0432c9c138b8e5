"""Delivery into mbox files: what is appended, who is kept out, and what a crash leaves."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mailbox
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.testing import BytesContent, ManualClock
from gateway.transport import mbox, storage
from gateway.transport.mailboxlock import Mailbox
from gateway.transport.mbox import MboxTransport
from gateway.transport.options import MboxOptions
from gateway.transport.transport import Delivery, Destination, Fault, Kind, Outcome
from tests.transport.peer import delivery, run, statuses

TOP = b"From ben@example.org Sun Sep  9 01:46:40 2001\nReturn-Path: <ben@example.org>\nDelivered-To: %s\n"
ANNA = TOP % b"anna@example.net"
IMPATIENT = MboxOptions(lock_timeout=0.1)


def deliver(path: object, what: Delivery, options: MboxOptions | None = None, now: float = 1e9) -> list[Outcome]:
    destination = Destination(Kind.MBOX, path=str(path), options=options)
    return run(MboxTransport(destination, "gate.test", ManualClock(now)).deliver(what))


def read(path: Path) -> list[bytes]:
    """As Python's own reader sees the messages."""
    box = mailbox.mbox(path)
    try:
        return [box.get_bytes(key) for key in box.keys()]
    finally:
        box.close()


def locks(path: Path) -> bool:
    return path.with_name(path.name + ".lock").exists()


def test_each_message_is_appended_with_return_path_and_delivered_to(tmp_path: Path):
    box = tmp_path / "deep" / "box"
    content = b"Subject: x\r\n\r\nHi\r\nFrom me\r\n>From you\r\nFromage\r\n"
    assert statuses(deliver(box, delivery(content=content))) == ["delivered 2.0.0"]
    assert statuses(deliver(box, delivery("Ben@Example.net", sender=""))) == ["delivered 2.0.0"]
    one, two = read(box)
    assert box.read_bytes().startswith(ANNA + b"Subject: x\n\nHi\n>From me\n>>From you\nFromage\n\nFrom MAILER-DAEMON ")
    assert b"Return-Path: <ben@example.org>\nDelivered-To: anna@example.net\nSubject: x\n" in one
    assert two.startswith(b"Return-Path: <>\nDelivered-To: Ben@Example.net\n") and not locks(box)
    assert stat.S_IMODE(box.stat().st_mode) == 0o600 and stat.S_IMODE(box.parent.stat().st_mode) == 0o700


def test_each_recipient_has_a_mailbox_of_his_own(tmp_path: Path):
    (tmp_path / "ben").mkdir()
    outcomes = deliver(f"{tmp_path}/{{local}}", delivery("Anna@x.test", "ben@x.test", '"../carl"@x.test'))
    assert statuses(outcomes) == ["delivered 2.0.0", "deferred 4.3.0", "delivered 2.0.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["%2E.%2Fcarl", "anna", "ben"]


@pytest.mark.parametrize("before", [b"", b"\n", b"x", b"From x\n\nhello", b"From x\n\nhello\n", b"From x\n\nhello\n\n"])
def test_an_empty_line_stands_before_the_message_whatever_the_mailbox_ends_with(tmp_path: Path, before: bytes):
    box = tmp_path / "box"
    box.write_bytes(before)
    deliver(box, delivery())
    text = box.read_bytes()
    assert text.startswith(before) and text.endswith(b"Hello\n\n")
    assert not before or b"\n\n" + ANNA in text


def test_content_without_a_last_line_end_gets_one(tmp_path: Path):
    deliver(tmp_path / "box", delivery(content=b"Subject: x\r\n\r\nthe end"))
    assert (tmp_path / "box").read_bytes().endswith(b"the end\n\n")


def test_large_content_is_stored_whole(tmp_path: Path):
    data = b"".join(b"From %d\r\n" % i for i in range(200_000))
    deliver(tmp_path / "box", delivery("a@x.test", "b@x.test", content=data))
    text = (tmp_path / "box").read_bytes()
    assert text.count(b"\n>From ") == 400_000 and text.count(b"\nFrom ") == 1
    assert text.endswith(b">From 199999\n\n")


def fcntl_locked(path: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock as lockf(3) takes it, until its standard input ends."""
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(["python3", "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    return holder


def test_a_mailbox_that_another_process_locked_is_left_alone(tmp_path: Path):
    box = tmp_path / "box"
    box.touch()
    with fcntl_locked(box):
        (outcome,) = deliver(box, delivery(), IMPATIENT)
        assert statuses([outcome]) == ["deferred 4.2.0"] and outcome.fault is Fault.PEER
        assert box.read_bytes() == b"" and not locks(box)
    assert statuses(deliver(box, delivery(), IMPATIENT)) == ["delivered 2.0.0"]


def test_a_dotlock_is_kept_to_until_it_is_stale(tmp_path: Path):
    box, lock = tmp_path / "box", tmp_path / "box.lock"
    lock.write_bytes(b"12345\n")
    now = lock.stat().st_mtime
    assert statuses(deliver(box, delivery(), IMPATIENT, now=now + 299)) == ["deferred 4.2.0"]
    assert lock.exists() and box.read_bytes() == b""
    assert statuses(deliver(box, delivery(), IMPATIENT, now=now + 301)) == ["delivered 2.0.0"]
    assert not lock.exists()


def test_whoever_waits_gets_the_mailbox_when_it_is_free(tmp_path: Path):
    box, lock = tmp_path / "box", tmp_path / "box.lock"
    lock.touch()

    async def main() -> list[Outcome]:
        clock = ManualClock(time.time())  # noqa: TID251 - the lock's age is a real one
        transport = MboxTransport(Destination(Kind.MBOX, path=str(box)), "gate.test", clock)
        task = asyncio.get_running_loop().create_task(transport.deliver(delivery()))
        await asyncio.sleep(0.1)
        lock.unlink()
        return await task

    assert statuses(run(main())) == ["delivered 2.0.0"]


def test_our_own_dotlock_keeps_others_out(tmp_path: Path):
    box = Mailbox.lock(tmp_path / "box", 1e9, 300.0)
    assert box is not None and (tmp_path / "box.lock").read_bytes().startswith(b"%d\n" % os.getpid())
    with (tmp_path / "box").open("r+b") as other, pytest.raises(BlockingIOError):
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert Mailbox.lock(tmp_path / "box", 1e9, 300.0) is None, "nor another delivery of this process"
    box.release()
    again = Mailbox.lock(tmp_path / "box", 1e9, 300.0)
    assert again is not None
    again.release()


def test_a_lock_program_agrees_about_the_dotlock(tmp_path: Path):
    box = Mailbox.lock(tmp_path / "box", 1e9, 300.0)
    assert box is not None
    lockfile = ["lockfile", "-r0", str(tmp_path / "box.lock")]
    assert subprocess.run(lockfile, capture_output=True).returncode != 0
    box.release()
    assert subprocess.run(lockfile, capture_output=True).returncode == 0
    assert statuses(deliver(tmp_path / "box", delivery(), IMPATIENT)) == ["deferred 4.2.0"]


def process(function: Callable[..., None], *arguments: object) -> subprocess.Popen[bytes]:
    """A function of this module in a process of its own."""
    call = f"from {__name__} import {function.__name__} as f; f(*{arguments!r})"
    return subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parents[2])


def _many(path: str, name: str, count: int) -> None:
    for number in range(count):
        content = f"Subject: {name} {number}\r\n\r\n".encode() + b"From the heart\r\n" * 500 + b"end\r\n"
        assert statuses(deliver(path, delivery(content=content))) == ["delivered 2.0.0"]


def test_two_processes_and_many_deliveries_at_once_mix_nothing_up(tmp_path: Path):
    box = tmp_path / "box"
    writers = [process(_many, str(box), f"w{n}", 15) for n in range(2)]

    async def main() -> None:
        transport = MboxTransport(Destination(Kind.MBOX, path=str(box)), "gate.test", ManualClock())
        content = b"Subject: own\r\n\r\n" + b"From the heart\r\n" * 500 + b"end\r\n"
        for outcomes in await asyncio.gather(*(transport.deliver(delivery(content=content)) for _ in range(15))):
            assert statuses(outcomes) == ["delivered 2.0.0"]

    run(main())
    for writer in writers:
        assert writer.wait(60) == 0
    found = read(box)
    assert len(found) == 45 and all(text.count(b"\n>From the heart") == 500 for text in found)
    subjects = [text.partition(b"Subject: ")[2].partition(b"\n")[0] for text in found]
    assert sorted(subjects) == sorted([b"own"] * 15 + [b"w%d %d" % (w, n) for w in range(2) for n in range(15)])


def test_a_mailbox_that_was_replaced_while_we_locked_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    box = tmp_path / "box"
    box.write_bytes(b"old\n")
    real = fcntl.fcntl

    def replace(fd: int, *args: Any) -> Any:
        monkeypatch.setattr(fcntl, "fcntl", real)
        (tmp_path / "new").write_bytes(b"new\n")
        (tmp_path / "new").rename(box)
        return real(fd, *args)

    monkeypatch.setattr(fcntl, "fcntl", replace)
    assert statuses(deliver(box, delivery())) == ["delivered 2.0.0"]
    assert box.read_bytes().startswith(b"new\n\nFrom ")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "directory", "pipe"])
def test_only_a_plain_file_is_a_mailbox(tmp_path: Path, kind: str):
    box, other = tmp_path / "box", tmp_path / "other"
    other.write_bytes(b"precious\n")
    match kind:
        case "symlink":
            box.symlink_to(other)
        case "hard link":
            box.hardlink_to(other)
        case "directory":
            box.mkdir()
        case "pipe":
            os.mkfifo(box)
    (outcome,) = deliver(box, delivery())
    assert statuses([outcome]) == ["deferred 4.3.0"] and outcome.fault is Fault.OURS
    assert other.read_bytes() == b"precious\n"


def test_a_read_only_directory_defers_when_root_does_not_override_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"
    box.write_bytes(b"old\n\n")
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(storage.os, "open", refuse)
    assert statuses(deliver(box, delivery())) == ["deferred 4.3.0"]
    assert box.read_bytes() == b"old\n\n"


@pytest.mark.parametrize(
    ("function", "number", "status"),
    [
        ("pwrite", errno.ENOSPC, "4.2.2"),
        ("pwrite", errno.EDQUOT, "4.2.2"),
        ("fdatasync", errno.EIO, "4.3.0"),
    ],
)
def test_a_disk_that_fails_defers_and_the_mailbox_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, status: str
):
    box = tmp_path / "box"
    deliver(box, delivery())
    before = box.read_bytes()
    calls: list[int] = []
    real = getattr(os, function)

    def fail(fd: int, *args: Any) -> Any:
        calls.append(fd)
        if len(calls) > (2 if function == "pwrite" else 0):
            raise OSError(number, os.strerror(number))
        return real(fd, *args)

    monkeypatch.setattr(os, function, fail)
    (outcome,) = deliver(box, delivery(content=b"x" * 5000))
    monkeypatch.undo()
    assert statuses([outcome]) == [f"deferred {status}"] and outcome.fault is Fault.OURS
    assert box.read_bytes() == before and not locks(box) and calls


def test_the_message_counts_only_when_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"
    seen: list[int] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def spy(fd: int) -> None:
        fdatasync(fd)
        seen.append(len(read(box)))

    def spy_last(fd: int) -> None:
        fsync(fd)
        if os.path.isfile(f"/proc/self/fd/{fd}"):
            seen.append(len(read(box)))

    monkeypatch.setattr(os, "fdatasync", spy)
    monkeypatch.setattr(os, "fsync", spy_last)
    deliver(box, delivery())
    deliver(box, delivery())
    assert seen == [0, 1, 1, 2]


def _die(path: str, after: int) -> None:
    """Deliver, and be killed at a write."""
    count = [0]
    real = os.pwrite

    def dying(fd: int, data: Any, offset: int) -> int:
        count[0] += 1
        if count[0] > after:
            real(fd, bytes(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data, offset)

    os.pwrite = dying
    deliver(path, delivery(content=b"Subject: half\r\n\r\n" + b"half\r\n" * 1000))


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("before", [b"", b"From x\nSubject: old\n\nold\n", b"From x\nSubject: old\n\nold\n\n"])
def test_a_delivery_that_was_killed_leaves_no_message_and_the_next_one_cleans_up(
    tmp_path: Path, after: int, before: bytes
):
    box = tmp_path / "box"
    box.write_bytes(before)
    assert process(_die, str(box), after).wait(60) == -signal.SIGKILL and locks(box)
    assert len(read(box)) == (1 if before else 0)

    assert statuses(deliver(box, delivery(), IMPATIENT)) == ["delivered 2.0.0"]
    assert not locks(box) and b"half" not in box.read_bytes()
    assert box.read_bytes().startswith(before) and b"\0" not in box.read_bytes()
    assert len(read(box)) == (2 if before else 1)


def test_what_was_complete_when_its_writer_was_killed_stays(tmp_path: Path):
    box = tmp_path / "box"
    deliver(box, delivery())
    node = os.uname().nodename
    (tmp_path / "box.lock").write_text(f"1\ngatepost {node} 0 0\n")
    assert statuses(deliver(box, delivery(), IMPATIENT)) == ["delivered 2.0.0"]
    assert len(read(box)) == 2


def test_a_dotlock_that_somebody_else_made_cannot_have_a_mailbox_cut(tmp_path: Path):
    box, lock = tmp_path / "box", tmp_path / "box.lock"
    deliver(box, delivery())
    before = box.read_bytes()
    node = os.uname().nodename
    lock.write_text(f"1\ngatepost {node} 0 1\n")
    os.chown(lock, 65534, 65534)
    assert statuses(deliver(box, delivery(), IMPATIENT, now=lock.stat().st_mtime)) == ["deferred 4.2.0"]
    assert statuses(deliver(box, delivery(), IMPATIENT, now=lock.stat().st_mtime + 301)) == ["delivered 2.0.0"]
    assert box.read_bytes() != before and len(read(box)) == 2
    for places in ("0 99999999999", "5 3", f"{len(before)} 0"):
        lock.write_text(f"1\ngatepost {node} {places}\n")
        assert statuses(deliver(box, delivery(), IMPATIENT)) == ["delivered 2.0.0"]
    assert len(read(box)) == 5


def test_a_half_message_that_cannot_be_cut_off_keeps_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"
    deliver(box, delivery())
    before = box.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "ftruncate", fail)
        assert statuses(deliver(box, delivery())) == ["deferred 4.3.0"]
    assert locks(box) and len(read(box)) == 1
    assert statuses(deliver(box, delivery(), IMPATIENT)) == ["delivered 2.0.0"]
    assert box.read_bytes() == before * 2


def test_what_a_stranger_wrote_behind_us_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"

    def stranger(fd: int) -> None:
        with box.open("ab") as other:
            other.write(b"\nFrom stranger\n\nhello\n")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", stranger)
    assert statuses(deliver(box, delivery())) == ["deferred 4.3.0"]
    assert box.read_bytes().endswith(b"\nFrom stranger\n\nhello\n")


class Unreadable(BytesContent):
    async def blocks(self) -> AsyncIterator[bytes]:
        yield self.data[:1000]
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("size", [5000, storage.SMALL + 1])
def test_content_that_cannot_be_read_touches_no_mailbox(tmp_path: Path, size: int):
    with pytest.raises(OSError, match="Input/output"):
        deliver(tmp_path / "box", delivery(content=Unreadable(b"x" * size)))
    assert not (tmp_path / "box").exists()


def test_a_long_delivery_keeps_its_dotlock_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mbox, "_KEEP", -1.0)
    ages: list[float] = []
    keep = Mailbox.keep

    def spy(box: Mailbox) -> None:
        os.utime(tmp_path / "box.lock", (0, 0))
        keep(box)
        ages.append((tmp_path / "box.lock").stat().st_mtime)

    monkeypatch.setattr(Mailbox, "keep", spy)
    deliver(tmp_path / "box", delivery())
    assert len(ages) == 1 and ages[0] > 1e9
