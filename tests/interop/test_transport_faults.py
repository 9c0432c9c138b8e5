"""What goes wrong between Gatepost and commands or webhooks: nothing lost, nothing half, nothing untrue."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.interop.transports import LARGE, again, deferred, send, to
from tests.support.clients import MESSAGE
from tests.support.disk import small_disk
from tests.support.hook import Hook
from tests.support.process import alive, free_port, wait_until

pytestmark = pytest.mark.slow


def shell(script: str, *words: str, **options: Any) -> dict[str, Any]:
    return {"pipe": {"command": ["/bin/sh", "-c", script, "sh", *words], "user": "nobody", **options}}


def open_folder(directory: Path) -> Path:
    """A folder that every user may write into."""
    folder = directory / "open"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_that_is_gone_defers_and_mail_flows_when_it_is_back(gatepost, directory: Path):
    folder = open_folder(directory)
    program = directory / "lda"
    shutil.copy("/bin/dd", program)
    program.chmod(0o755)
    gate = gatepost(**to({"pipe": {"command": [str(program), f"of={folder}/mail"], "user": "nobody"}}))
    program.rename(directory / "away")
    send(gate)
    assert deferred(gate) == "451 4.3.5 lda cannot be run: No such file or directory"
    (directory / "away").rename(program)
    program.chmod(0o600)
    gate.run("queue", "flush")
    assert deferred(gate, 2) == "451 4.3.5 lda cannot be run: Permission denied"
    program.chmod(0o755)
    again(gate)
    assert (folder / "mail").read_bytes().endswith(MESSAGE.replace(b"\r\n", b"\n"))
    assert gate.log.count('"pipe.cannot_run"') == 2
    assert gate.metric("gatepost_attempts_total", outcome="deferred", transport="pipe") == 2


def test_a_command_that_hangs_holds_up_nobody_else_and_is_killed(gatepost, directory: Path):
    folder = open_folder(directory)
    script = f"case $1 in slow) echo $$ > {folder}/pid; sleep 1000;; esac; cat > {folder}/$1"
    gate = gatepost(**to(shell(script, "{local}", timeout="4s")))
    send(gate, "slow")
    wait_until((folder / "pid").exists, "it hangs")
    send(gate, "ben")
    wait_until((folder / "ben").exists, "the other is delivered")
    assert not gate.metric("gatepost_attempts_total", outcome="deferred", transport="pipe"), "while the first hangs"
    assert deferred(gate) == "451 4.3.0 sh did not end in time and was killed"
    assert not (folder / "slow").exists() and not alive(int((folder / "pid").read_text()))
    assert '"pipe.killed"' in gate.log


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_when_we_are_killed_the_command_has_the_whole_message_and_it_comes_again(
    gatepost, directory: Path, large: bool
):
    folder = open_folder(directory)
    go = folder / "go"
    # It waits with half of the message read, until we are dead.
    script = f"head -c 100 > {folder}/$$; echo x > {folder}/begun; until [ -e {go} ]; do sleep 0.05; done"
    gate = gatepost(**to(shell(f"{script}; cat >> {folder}/$$; mv {folder}/$$ {folder}/done.$$")))
    content = LARGE if large else MESSAGE
    send(gate, content=content)
    wait_until((folder / "begun").exists, "the command reads")
    gate.kill()
    commands = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    assert len(commands) == 1
    # The test's own driver kills what was below us, too, unless the command was quicker to leave.
    go.touch()
    gate.start()
    again(gate)
    done = [path.read_bytes() for path in folder.glob("done.*")]
    assert done and all(text.endswith(content.replace(b"\r\n", b"\n")) for text in done)


def test_a_worker_killed_alone_leaves_its_command_to_end_by_itself(gatepost, directory: Path):
    folder = open_folder(directory)
    script = f"head -c 100 > {folder}/$$; until [ -e {folder}/go ]; do sleep 0.05; done"
    gate = gatepost(**to(shell(f"{script}; cat >> {folder}/$$; mv {folder}/$$ {folder}/done.$$")))
    send(gate, content=LARGE)
    wait_until(lambda: any(path.name.isdigit() for path in folder.iterdir()), "the command reads")
    (worker,) = gate.workers
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: gate.workers and gate.workers != [worker], "another worker is there")
    (folder / "go").touch()
    wait_until(lambda: list(folder.glob("done.*")), "the first command has ended")
    again(gate)
    done = [path.read_bytes() for path in folder.glob("done.*")]
    assert len(done) == 2, "twice, but whole"
    assert all(text.endswith(LARGE.replace(b"\r\n", b"\n")) for text in done)


def test_no_room_for_the_temporary_file_of_a_command_defers(gatepost, directory: Path, monkeypatch: pytest.MonkeyPatch):
    with small_disk(directory, "size=1m") as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        folder = open_folder(directory)
        gate = gatepost(**to(shell(f"cat > {folder}/$1", "{local}")))
        send(gate, content=LARGE)
        assert deferred(gate) == "452 4.2.2 no room in the directory for temporary files"
        assert list(folder.iterdir()) == []
        assert [path.name for path in disk.iterdir() if not path.name.startswith("gatepost-metrics-")] == []
        send(gate, "ben")
        wait_until(lambda: (folder / "ben").exists(), "a small message needs no disk")
        gate.stop()


# --- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_webhook_that_is_down_defers_and_mail_flows_when_it_is_up(gatepost, running):
    port = free_port()
    gate = gatepost(**to({"http": {"url": f"http://127.0.0.1:{port}/"}}))
    send(gate)
    assert deferred(gate).startswith("451 4.4.1 127.0.0.1: ")
    hook = running(Hook(None, port=port))
    again(gate)
    (posted,) = hook.posted
    assert posted.body.endswith(MESSAGE)


def test_a_worker_killed_in_the_middle_of_a_post_is_no_delivery_and_it_comes_again(gatepost, running):
    hook = running(Hook(None, hang=True))
    gate = gatepost(**to({"http": {"url": f"http://127.0.0.1:{hook.port}/"}}))
    send(gate, content=LARGE)
    wait_until(lambda: hook.begun, "the request has begun")
    (worker,) = gate.workers
    os.kill(worker, signal.SIGKILL)
    hook.go()
    wait_until(lambda: gate.workers and gate.workers != [worker], "another worker is there")
    again(gate)
    assert len(hook.posted) == 1 and hook.posted[0].body.endswith(LARGE)
