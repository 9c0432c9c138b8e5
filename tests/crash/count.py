"""Load on a gateway that dies, and the count afterwards: what was promised, and what arrived."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import smtplib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.spool.spool import SpoolError, SpoolOptions, State
from gateway.spool.sqlite import open_all
from tests.support.clients import connect, transact
from tests.support.gatepost import GatepostProcess
from tests.support.process import Process, alive, descendants, wait_until

_VICTIM = Path(__file__).with_name("victim.py")
THREADS = 6
SMALL, LARGE = 4_000, 300_000
_FILLER = ("0123456789abcdef" * 4 + "\r\n") * (LARGE // 66)
_MAIL = re.compile(r"X-Crash: (\d+) ([0-9a-f]{64})\n.*?\n\n(.*)\Z", re.DOTALL)


def mail(number: int) -> bytes:
    """A message that says who it is and what its body must be; every sixth is a large one."""
    body = f"{number}\r\n" + _FILLER[: (LARGE if number % 6 == 5 else SMALL) // 66 * 66]
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"X-Crash: {number} {digest}\r\nSubject: crash\r\n\r\n{body}".encode()


def number_of(text: str) -> int | None:
    """The number of a message as it arrived, None when it is not whole. Line ends are LF."""
    match = _MAIL.search(text)
    if match is None:
        return None
    number, digest, body = match.groups()
    whole = body.rstrip("\n") + "\n"
    return int(number) if hashlib.sha256(whole.replace("\n", "\r\n").encode()).hexdigest() == digest else None


class Load:
    """Clients that send one message after the other, each message once, and note which of them got 250."""

    def __init__(self, port: int) -> None:
        self.acknowledged: set[int] = set()
        self._port = port
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(THREADS)]

    def _send(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError, EOFError, smtplib.SMTPException):
                client = connect(self._port)
                with suppress(OSError), client:
                    while not self._ended.is_set():
                        number = next(self._numbers)
                        if transact(client, "ann@sender.test", ["ben@example.com"], mail(number))[0] == 250:
                            self.acknowledged.add(number)

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Under load inside the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join(60)

    def reaches(self, count: int) -> None:
        """Wait until so many messages were acknowledged."""
        wait_until(lambda: len(self.acknowledged) >= count, f"{count} messages are acknowledged")


class Victim(GatepostProcess):
    """A Gatepost whose workers die at these steps, one after the other (see victim.py)."""

    def __init__(self, options: dict[str, Any], deaths: Iterable[str] = ()) -> None:
        self._wishes = list(deaths)
        super().__init__(
            {
                "workers": 2,
                "log": {"format": "json"},
                "retry": {"first": "1s", "max": "2s"},
                "queue": {"connection_idle": "1s"},
                "domains": {"example.com": {"next_hop": "maildir:./mail", "recipients": "any"}},
                **options,
            }
        )

    @property
    def _marks(self) -> Path:
        return self.directory / "deaths"

    def start(self) -> None:
        for name in ("deaths", "metrics"):
            (self.directory / name).mkdir(exist_ok=True)
        self.process = Process(
            [str(_VICTIM), str(self.config), str(self._marks), *self._wishes],
            self.directory / "log",
            cwd=self.directory,
            env={"PROMETHEUS_MULTIPROC_DIR": str(self.directory / "metrics")},
            warm=True,
        )
        self.process.wait_ready(self._ready)

    def configure(self, **options: Any) -> None:
        """Options for the next start."""
        self.options.update(options)
        self.config.write_text(json.dumps(self.options))

    @property
    def deaths(self) -> int:
        """How many died as they wished."""
        return len(os.listdir(self._marks))

    def wait_deaths(self) -> None:
        wait_until(lambda: self.deaths == len(self._wishes), f"workers died at {self._wishes}", 30.0)

    def kill_tree(self) -> None:
        """SIGKILL for the supervisor and everything below it, at once."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(alive, pids)), "all of it is dead")

    async def waiting(self) -> int:
        """Messages in the spool, -1 while it can not be asked."""
        try:
            spool = await open_all(SpoolOptions(self.options["spool"]["path"]))
            try:
                counts = await spool.counts()
            finally:
                await spool.close()
        except SpoolError:
            return -1
        assert not counts[State.CORRUPT], "the crash left a corrupt message"
        return sum(counts.values())

    def content_files(self) -> list[str]:
        return [path.name for path in Path(self.options["spool"]["path"]).glob("shard-*/content/*")]

    def maildir(self) -> list[int | None]:
        return [number_of(path.read_text()) for path in (self.directory / "mail/new").iterdir()]


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    deaths: int
    acknowledged: int
    lost: int
    duplicated: int
    unanswered: int
    """Delivered though the client heard no 250: it may send them again."""


@dataclass
class Table:
    """All results, printed at the end."""

    results: list[Result] = field(default_factory=list)

    def add(self, name: str, deaths: int, load: Load, arrived: list[int | None], *, partial: bool = False) -> Result:
        """Count. With `partial`, the destination shows what it got in part too; otherwise that is a failure."""
        counts = Counter(number for number in arrived if number is not None)
        assert partial or None not in arrived, "half a message was delivered"
        result = Result(
            name,
            deaths,
            len(load.acknowledged),
            len(load.acknowledged - set(counts)),
            sum(count - 1 for count in counts.values()),
            len(set(counts) - load.acknowledged),
        )
        self.results.append(result)
        return result

    def __str__(self) -> str:
        lines = [f"{'killed':<44}{'deaths':>7}{'acked':>7}{'lost':>6}{'twice':>7}{'unanswered':>12}"]
        lines += [
            f"{r.name:<44}{r.deaths:>7}{r.acknowledged:>7}{r.lost:>6}{r.duplicated:>7}{r.unanswered:>12}"
            for r in self.results
        ]
        return "\n".join(lines)
