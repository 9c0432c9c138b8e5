"""Gatepost itself, started as an operator starts it: a configuration file and ``gatepost run -c FILE``."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import warm
from tests.support.process import Process, alive, banner, children, free_port, new_directory, wait_until

PROGRAM = Path(sys.executable).with_name("gatepost")
ROOT = Path(__file__).parents[2]
IMPATIENT = Path(__file__).with_name("impatient.py")


def configuration(directory: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` over what every test needs: ports of its own, files under `directory`, nothing off this machine.

    The name server is a port where nobody listens, so a test that needs DNS must bring one.
    """
    return {
        "hostname": "mx.example.org",
        "workers": 1,
        "listeners": [{"address": f"127.0.0.1:{free_port()}", "role": "edge"}],
        "admin": {"address": f"127.0.0.1:{free_port()}"},
        "spool": {"path": str(directory / "spool")},
        "state": {"path": str(directory / "state")},
        "dns": {"nameservers": [f"127.0.0.1:{free_port()}"], "timeout": "1s"},
        "pipeline": [],
        **options,
    }


def write_configuration(directory: Path, options: Mapping[str, Any]) -> Path:
    """Write a configuration file; JSON is YAML."""
    path = directory / "gatepost.yaml"
    path.write_text(json.dumps(options, indent=2))
    return path


class GatepostProcess:
    """A running Gatepost."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        prepare: Callable[[], None] | None = None,
        run: Sequence[str] = (str(PROGRAM), "run", "-c"),
    ) -> None:
        """`run` is the command that runs it, without the configuration file's name at its end."""
        self.directory = new_directory("run")
        self.options = configuration(self.directory, options)
        self.config = write_configuration(self.directory, self.options)
        self._prepare = prepare
        self._run = run
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it takes mail on every listener."""
        self.process = Process(
            [*self._run, str(self.config)],
            self.directory / "log",
            cwd=self.directory,
            prepare=self._prepare,
            warm=self._prepare is None and self._run[0] in (str(PROGRAM), sys.executable),
        )
        self.process.wait_ready(self._ready)

    def _ready(self) -> bool:
        """All workers have read their spool, and every listener greets (ready is when the first worker is)."""
        return all(self.http("GET", path)[0] == 200 for path in ("/startupz", "/readyz")) and all(
            banner(self._port(listener), address=listener["address"].rpartition(":")[0])
            for listener in self.options["listeners"]
            if self._speaks_first(listener)
        )

    @staticmethod
    def _speaks_first(listener: Mapping[str, Any]) -> bool:
        return "proxy_protocol" not in listener and listener.get("tls", {}).get("mode") != "implicit"

    @staticmethod
    def _port(listener: Mapping[str, Any]) -> int:
        return int(listener["address"].rpartition(":")[2])

    @property
    def port(self) -> int:
        """The first listener's port."""
        return self._port(self.options["listeners"][0])

    @property
    def ports(self) -> list[int]:
        return [self._port(listener) for listener in self.options["listeners"]]

    @property
    def admin_port(self) -> int:
        return int(self.options["admin"]["address"].rpartition(":")[2])

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers that are there now."""
        pids = [int(worker["pid"]) for worker in json.loads(self.http("GET", "/readyz")[1])["workers"]]
        return [pid for pid in pids if pid and alive(pid)]

    @property
    def log(self) -> str:
        return self.process.log

    def http(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Ask the admin API, with a body in JSON where there is one; gives status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry these labels, as Prometheus would scrape them."""
        total = 0.0
        for line in self.http("GET", "/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{text}"' in sample for key, text in labels.items()):
                total += float(value)
        return total

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run a ``gatepost`` command with this configuration; gives what it prints."""
        result = warm.run([str(PROGRAM), *arguments, "-c", str(self.config)], cwd=self.directory)
        assert result.returncode == status, f"gatepost {' '.join(arguments)}: {result.stdout}{result.stderr}{self.log}"
        return result.stdout

    def refused(self, *arguments: str, status: int = 2, config: Path | None = None) -> str:
        """As `run`, of a command that ends with this status; gives what it says on standard error."""
        command = [str(PROGRAM), *arguments, "-c", str(config or self.config)]
        result = warm.run(command, cwd=self.directory)
        assert result.returncode == status, f"{command}: {result.stdout}{result.stderr}"
        return result.stderr

    def cli(self, *arguments: str, status: int = 0) -> Any:
        """As `run` with ``--json``, read back."""
        return json.loads(self.run(*arguments, "--json", status=status))

    def queue(self) -> list[dict[str, Any]]:
        """What ``gatepost queue list --json`` says."""
        listed: list[dict[str, Any]] = self.cli("queue", "list")
        return listed

    def wait_empty(self) -> None:
        """Wait until nothing is in the queue."""
        wait_until(lambda: not self.queue(), "the queue is empty")

    def stop(self) -> None:
        """SIGTERM: it must finish its work, end with status 0 and leave neither a traceback nor a process."""
        below = children(self.process.pid)
        if self.process.status is None:
            self.process.signal(signal.SIGTERM)
        assert self.process.wait() == 0, self.log[-4000:]
        left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
        assert not left, f"workers {left} outlived their supervisor"
        assert "Traceback" not in self.log, self.log[-8000:]

    def kill(self) -> None:
        """SIGKILL for all of it."""
        self.process.kill()


def refused_start(options: Mapping[str, Any], *, text: str | None = None) -> tuple[int, str]:
    """Exit status and output of a Gatepost that is expected not to start; `text` replaces the whole file."""
    directory = new_directory("refused")
    path = write_configuration(directory, configuration(directory, options))
    if text is not None:
        path.write_text(text)
    process = Process([str(PROGRAM), "run", "-c", str(path)], directory / "log", cwd=directory, warm=True)
    status, said = process.wait(30), process.log
    shutil.rmtree(directory)
    return status, said
