"""``gatepost run``, ``check`` and ``pipeline``: the gateway itself and its configuration.

`gateway.app` is imported inside the commands: the metrics library decides at import, from the environment, whether
it counts for one process or for many.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import click

from gateway.cli import output
from gateway.cli.options import Failure, config_option, find_config, json_option, read_config
from gateway.config import Config, ConfigError, Problem, load

METRICS_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


@click.command()
@config_option
def run(config_file: str | None) -> None:
    """Run the gateway until SIGTERM. SIGHUP reads the configuration again."""
    keep_signals()
    config = read_config(config_file)
    with metrics_directory():
        from gateway import app

        try:
            status = app.run(config)
        except ConfigError as error:
            raise Failure(str(error)) from error
    sys.exit(status)


def keep_signals() -> None:
    """Have signals that come before the supervisor listens wait for it."""
    # A reload that is asked for during the start would end the process, with a status that systemd takes for success.
    signals = {signal.SIGHUP}
    if os.getpid() == 1:
        # The kernel drops signals that the first process of a container has no handler for, unless they are blocked.
        signals |= {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)


@contextmanager
def metrics_directory() -> Iterator[None]:
    """A fresh directory for all processes' counters, in the environment; removed by the process that made it.

    A directory that the environment names already is used, and emptied of counters left there.
    """
    owner = os.getpid()
    given = os.environ.get(METRICS_DIRECTORY)
    if given:
        os.makedirs(given, exist_ok=True)
        for name in os.listdir(given):
            if name.endswith(".db"):
                os.unlink(os.path.join(given, name))
        yield
        return
    made = tempfile.mkdtemp(prefix="gatepost-metrics-")
    os.environ[METRICS_DIRECTORY] = made
    try:
        yield
    finally:
        if os.getpid() == owner:
            del os.environ[METRICS_DIRECTORY]
            shutil.rmtree(made, ignore_errors=True)


@click.command()
@config_option
@json_option
def check(config_file: str | None, as_json: bool) -> None:
    """Check the configuration and its pipelines, and report every problem."""
    file = find_config(config_file)
    config, pipelines = load_checked(file, as_json)
    notices = _notices(config, pipelines)
    if as_json:
        output.as_json({"ok": True, "file": file, "problems": [], "deprecated": _listed(notices)})
        return
    for notice in notices:
        click.echo(output.safe(notice))
    entries = sum(len(pipeline) for pipeline in config.all_pipelines.values())
    click.echo(f"{file}: ok: {len(config.listeners)} listeners, {len(config.domains)} domains, {entries} entries")


def load_checked(file: str, as_json: bool) -> tuple[Config, dict[str, Any]]:
    """The configuration and its pipelines; ends the command with every problem, if there is one."""
    try:
        config = load(file)
        return config, _pipelines(config)
    except ConfigError as error:
        refuse(file, error, as_json=as_json)


def refuse(file: str, error: ConfigError, *, as_json: bool) -> NoReturn:
    """End the command with every problem of a configuration that cannot be used."""
    if not as_json:
        raise Failure(str(error)) from error
    output.as_json({"ok": False, "file": file, "problems": _listed(error.problems), "deprecated": []})
    sys.exit(2)


def _listed(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{"file": p.file, "line": p.line, "key": p.path, "message": p.message} for p in problems]


def _notices(config: Config, pipelines: dict[str, Any]) -> list[Problem]:
    """Options that are going."""
    from gateway import app

    return app.notices(config, pipelines)


def _pipelines(config: Config) -> dict[str, Any]:
    """All pipelines, made but not started. Raises `ConfigError`."""
    from gateway import app

    return dict(app.load_pipelines(config))


@click.command()
@config_option
@json_option
def pipeline(config_file: str | None, as_json: bool) -> None:
    """Print what every pipeline does at each stage, in the order of asking."""
    config = read_config(config_file)
    try:
        rows = {name: made.table() for name, made in _pipelines(config).items()}
    except ConfigError as error:
        raise Failure(str(error)) from error
    if as_json:
        output.as_json({name: [row.to_json() for row in table] for name, table in rows.items()})
        return
    for name, table in rows.items():
        click.echo(f"pipeline {name}" + ("" if table else ": empty"))
        if table:
            output.show(output.table(_COLUMNS, [_cells(row) for row in table]))


_COLUMNS: Final = ("STAGE", "#", "ENTRY", "KIND", "NAME", "NEEDS", "ON ERROR", "TIMEOUT", "")


def _cells(row: Any) -> tuple[object, ...]:
    timeout = f"{row.timeout:g} s" if row.timeout is not None else "-"
    needs = ", ".join(row.needs) or "-"
    shadow = "shadow" if row.shadow else "" if row.enforced == "100%" else f"enforced for {row.enforced}"
    return (row.stage, row.order, row.entry, row.kind, row.name, needs, row.on_error or "-", timeout, shadow)
