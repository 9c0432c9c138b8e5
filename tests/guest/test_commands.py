"""`gatepost delegate` and `gatepost milter` as commands: what they refuse to begin with."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.app import guest as app
from gateway.app.guest import bind_endpoint
from gateway.app.supervisor import StartError
from gateway.cli import main
from gateway.guest.actions import TROUBLE
from gateway.sdk.endpoint import Endpoint


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gatepost.yaml"
    options = {
        "listeners": [{"address": "127.0.0.1:0"}],
        "spool": {"path": str(tmp_path / "spool")},
        "state": {"path": str(tmp_path / "state")},
        "pipelines": {"strict": []},
    }
    path.write_text(json.dumps(options))
    return path


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands would lend."""
    calls: list[Any] = []
    monkeypatch.setattr("gateway.app.lend", lambda config, lending: calls.append(lending) or 0)
    return calls


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_the_operator_says_is_what_is_lent(config: Path, lent: list[Any]) -> None:
    assert (
        run("delegate", "-c", config, "--listen", "inet:10040@127.0.0.1", "--ok", "--trouble", "450 later").exit_code
        == 0
    )
    assert (
        run("milter", "-c", config, "--listen", "unix:/run/m", "--pipeline", "strict", "--mode", "600").exit_code == 0
    )
    delegate, milter = lent
    assert (delegate.listen, delegate.ok, delegate.trouble) == (Endpoint("127.0.0.1", 10040), "OK", "450 later")
    assert (delegate.milter, delegate.pipeline, delegate.mode) == (False, "default", 0o660)
    assert (milter.milter, milter.listen, milter.pipeline, milter.mode) == (
        True,
        Endpoint(path="/run/m"),
        "strict",
        0o600,
    )
    assert (milter.ok, milter.trouble) == ("DUNNO", TROUBLE)


@pytest.mark.parametrize(
    ("command", "first"), [("run", False), ("delegate", False), ("milter", False), ("delegate", True), ("run", True)]
)
def test_signals_that_come_during_the_start_wait_for_the_supervisor(
    config: Path, monkeypatch: pytest.MonkeyPatch, command: str, first: bool
) -> None:
    waiting: list[set[int]] = []

    def begin(*_: object) -> int:
        waiting.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return 0

    monkeypatch.setattr("gateway.app.run", begin)
    monkeypatch.setattr("gateway.app.lend", begin)
    if first:
        monkeypatch.setattr("os.getpid", lambda: 1)
    listen = [] if command == "run" else ["--listen", "inet:10040@127.0.0.1"]
    assert run(command, "-c", config, *listen).exit_code == 0
    # As the first process of a container it would not even be ended by the others.
    wanted = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT} if first else {signal.SIGHUP}
    assert waiting == [wanted]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["delegate"], "Missing option '--listen'"),
        (["delegate", "--listen", "localhost:10040"], "write an IP address"),
        (["delegate", "--listen", "127.0.0.1"], "write host:port"),
        (["milter", "--listen", "127.0.0.1:99999"], "is no port"),
        (["milter", "--listen", "unix:/run/m", "--mode", "999"], "octal"),
        (["delegate", "--listen", "127.0.0.1:10040", "--trouble", "550 no"], "4xx"),
    ],
)
def test_wrong_usage_is_status_2(config: Path, lent: list[Any], arguments: list[str], text: str) -> None:
    result = run(*arguments, "-c", config)
    assert (result.exit_code, text in result.output, lent) == (2, True, []), result.output


def test_without_pymilter_the_milter_says_what_to_install(
    config: Path, lent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "milter" else real(name))
    result = run("milter", "-c", config, "--listen", "127.0.0.1:8891")
    assert (result.exit_code, result.output, lent) == (
        2,
        "gatepost milter needs pymilter: install gatepost[milter]\n",
        [],
    )


def test_a_pipeline_that_is_not_there_is_status_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("delegate", "-c", config, "--listen", "127.0.0.1:10040", "--pipeline", "lax")
    assert (result.exit_code, "no pipeline lax; there are default, strict" in result.output) == (2, True), result.output


def test_a_socket_left_behind_is_taken_over_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    endpoint = Endpoint(path=str(path))
    first = bind_endpoint(endpoint, 0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(StartError, match="listens there already"):
        bind_endpoint(endpoint, 0o640)
    first.close()
    bind_endpoint(endpoint, 0o600).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(StartError, match="cannot listen on"):
        bind_endpoint(endpoint, 0o600)
    assert path.read_text() == "mine"
    with pytest.raises(StartError, match="No such file"):
        bind_endpoint(Endpoint(path=str(tmp_path / "none" / "s")), 0o600)


def test_a_port_in_use_is_told_before_anything_is_started(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in ("delegate", "milter"):
            result = run(command, "-c", config, "--listen", f"127.0.0.1:{port}")
            assert (result.exit_code, "something listens there already" in result.output) == (2, True), result.output


def test_the_umask_is_as_before(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        bind_endpoint(Endpoint(path=str(tmp_path / "s")), 0o600).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert app.__doc__
