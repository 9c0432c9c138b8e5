"""A running Gatepost and the files of its ``policy_folder``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.clients import connect
from tests.support.process import wait_until
from tests.test_policy_folder import ODD

pytestmark = pytest.mark.slow


def test_a_reload_takes_the_changed_file_and_a_broken_one_keeps_the_old(gatepost, directory: Path):
    folder = directory / "policies"
    folder.mkdir(mode=0o755)

    def put(text: str) -> None:
        (folder / "odd.py").write_text(text)
        (folder / "odd.py").chmod(0o644)

    put(ODD)
    domains = {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}}
    gate = gatepost(workers=2, domains=domains, policy_folder=str(folder), pipeline=["odd"])

    def reply(client) -> int:
        client.rset()
        return client.mail("odd@sender.test")[0]

    with connect(gate.port) as before:
        assert reply(before) == 550
        put(ODD.replace('words: tuple[str, ...] = ("odd",)', 'words: tuple[str, ...] = ("queer",)'))
        os.kill(gate.process.pid, signal.SIGHUP)
        wait_until(lambda: gate.log.count("reload.done") == 2, "both workers have reloaded")
        assert reply(before) == 550
        with connect(gate.port) as after:
            assert reply(after) == 250
    put("import sys\nsys.exit(1)\n")
    os.kill(gate.process.pid, signal.SIGHUP)
    wait_until(lambda: "reload.refused" in gate.log, "the reload was refused")
    assert "odd.py:2" in gate.log and "calls sys.exit" in gate.log
    with connect(gate.port) as after:
        assert reply(after) == 250
