"""The supervisor, where the system does not give it what it needs."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from gateway.app.supervisor import Child, Supervisor
from gateway.config import parse


def test_a_worker_that_the_system_gives_no_process_for_is_tried_again_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(
        b"hostname: mx.example.org\nlisteners: [{address: '127.0.0.1:0'}]\n", str(tmp_path / "gatepost.yaml")
    )
    supervisor, child = Supervisor(config), Child("worker 0", 0, lambda: 0)

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    pauses = []
    for _ in range(7):
        supervisor._start(child)
        assert child.pid == 0
        assert child.due > time.monotonic()
        pauses.append(child.pause)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    monkeypatch.setattr(os, "fork", lambda: 4321)
    supervisor._start(child)
    assert child.pid == 4321
