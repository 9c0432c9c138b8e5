"""Full disks, locks and signals around mailboxes: nothing lost, nothing half, nothing untrue."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.interop.transports import LARGE, again, deferred, mails, send, to
from tests.support.disk import free, read_only, small_disk
from tests.support.process import binary, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
def test_a_full_disk_defers_and_what_was_stored_stays_as_it_was(gatepost, directory: Path, kind: str):
    with small_disk(directory, "size=6m") as disk:
        gate = gatepost(**to({kind: {"path": f"{disk}/mail/{{local}}"}}))
        send(gate)
        gate.wait_empty()
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        assert len(before) == 1
        (disk / "filler").write_bytes(bytes(free(disk) - (1 << 20)))
        send(gate, content=LARGE)
        assert deferred(gate).startswith("452 4.2.2 no room in the ")
        after = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file() and path.name != "filler"}
        assert after == before
        (disk / "filler").unlink()
        again(gate)
        stored = b"".join(path.read_bytes() for path in (disk / "mail").rglob("*") if path.is_file())
        assert stored.count(LARGE.replace(b"\r\n", b"\n")) == 1
        gate.stop()


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
def test_a_read_only_disk_defers(gatepost, directory: Path, kind: str):
    with small_disk(directory, "size=6m") as disk:
        gate = gatepost(**to({kind: {"path": f"{disk}/mail/{{local}}"}}))
        send(gate)
        gate.wait_empty()
        read_only(disk, on=True)
        send(gate)
        assert deferred(gate).startswith("451 4.3.0 ") and "Read-only file system" in deferred(gate)
        read_only(disk, on=False)
        again(gate)
        gate.stop()


def test_a_locked_mailbox_defers_until_it_is_free(gatepost, directory: Path):
    path = directory / "mail" / "anna"
    gate = gatepost(**to({"mbox": {"path": f"{directory}/mail/{{local}}", "lock_timeout": "500ms"}}))
    path.parent.mkdir()
    subprocess.run([binary("lockfile"), f"{path}.lock"], check=True)
    send(gate)
    assert deferred(gate) == "451 4.2.0 the mailbox is locked"
    Path(f"{path}.lock").unlink()
    again(gate)
    assert len(mails(path)) == 1 and not Path(f"{path}.lock").exists()


def test_a_worker_killed_while_it_writes_an_mbox_leaves_no_half_message(gatepost, directory: Path):
    path = directory / "mail" / "anna"
    gate = gatepost(**to({"mbox": {"path": f"{directory}/mail/{{local}}"}}))
    send(gate, content=b"Subject: first\r\n\r\nfirst\r\n")
    gate.wait_empty()
    (worker,) = gate.workers
    # strace makes each write into the mailbox slow, so that the signal comes in the middle of one.
    log = directory / "strace"
    inject = ["-e", "trace=pwrite64,fdatasync", "-e", "inject=fdatasync:delay_enter=5000000"]
    tracer = subprocess.Popen([binary("strace"), "-f", "-p", str(worker), *inject, "-o", str(log), "-P", str(path)])
    wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{worker}/status").read_text(), "it is traced")
    send(gate, content=LARGE)
    wait_until(lambda: path.stat().st_size > len(LARGE) // 2, "the message is being written")
    os.kill(worker, signal.SIGKILL)
    tracer.wait(30)
    assert len(mails(path)) == 1, "what is there is no message"
    wait_until(lambda: gate.workers and gate.workers != [worker], "another worker is there")
    again(gate)
    first, second = mails(path)
    assert first.endswith(b"\n\nfirst\n") or first.endswith(b"\n\nfirst\n\n")
    assert second.rstrip(b"\n").endswith(LARGE.replace(b"\r\n", b"\n").rstrip(b"\n"))
    assert b"\0" not in path.read_bytes() and '"mbox.half_message_removed"' in gate.log
