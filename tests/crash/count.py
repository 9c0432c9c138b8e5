"""Load on a gateway that dies, and the count afterwards: what was promised, and what arrived."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import re
import signal
import smtplib
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gateway.config import load
from gateway.kit.contracts.stock import hasten
from gateway.spool.opening import open_all
from gateway.spool.spool import SpoolError, State
from tests.crash.victim import SOUND
from tests.support import summary
from tests.support.clients import connect, transact
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.process import Process, alive, descendants, wait_until
from tests.support.wallclock import WallClock

_VICTIM = Path(__file__).with_name("victim.py")
THREADS = 6
SMALL, MIDDLE, LARGE = 4_000, 200_000, 300_000
"""Octets: the first two are stored in the database, the third in a file."""
_AGAIN = 0.03
"""Seconds before a client that had no luck tries again, so that it does not keep a processor busy meanwhile."""
_FILLER = ("0123456789abcdef" * 4 + "\r\n") * (LARGE // 66)
_ABOUT = re.compile(r"^Action: failed\n.*^X-Crash: (\d+) ", re.DOTALL | re.MULTILINE)
_MAIL = re.compile(r"X-Crash: (\d+) ([0-9a-f]{64})\n.*?\n\n(.*)\Z", re.DOTALL)


def mail(number: int, small: int = SMALL) -> bytes:
    """A message that says who it is and what its body must be; every sixth is a large one."""
    body = f"{number}\r\n" + _FILLER[: (LARGE if number % 6 == 5 else small) // 66 * 66]
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
    """Clients that send one message after the other, each message once, and note which of them got 250.

    `small` is the size of five messages of six. Several loads that share `numbers` send each
    message once among them. Each client pauses after a message.
    """

    def __init__(
        self,
        port: int,
        recipients: Sequence[str] = ("ben@example.com",),
        *,
        small: int = SMALL,
        numbers: Iterator[int] | None = None,
        threads: int = THREADS,
        pause: float = 0.0,
    ) -> None:
        self.acknowledged: set[int] = set()
        self.refused = 0
        """How many were refused in an open session."""
        self._port = port
        self._recipients = list(recipients)
        self._small = small
        self._numbers = numbers or itertools.count()
        self._count = threads
        self._pause = pause
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def _send(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError, EOFError, smtplib.SMTPException):
                client = connect(self._port)
                with suppress(OSError), client:
                    while not self._ended.is_set():
                        number = next(self._numbers)
                        content = mail(number, self._small)
                        if transact(client, "ann@sender.test", self._recipients, content)[0] == 250:
                            self.acknowledged.add(number)
                        else:
                            self.refused += 1
                            self._ended.wait(_AGAIN)
                        self._ended.wait(self._pause)
            self._ended.wait(_AGAIN)

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Under load inside the block; at its end the clients finish what they are at. There may be several."""
        self.begin()
        try:
            yield self
        finally:
            self.end()

    def begin(self) -> None:
        """Have the clients begin."""
        self._ended.clear()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(self._count)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Have the clients finish what they are at, and end."""
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def reaches(self, count: int) -> None:
        """Wait until so many messages were acknowledged."""
        wait_until(lambda: len(self.acknowledged) >= count, f"{count} messages are acknowledged")

    def goes_on(self, count: int) -> None:
        """Wait until so many more were."""
        self.reaches(len(self.acknowledged) + count)

    def is_refused(self, count: int) -> None:
        """Wait until so many more were refused."""
        wanted = self.refused + count
        wait_until(lambda: self.refused >= wanted, f"{count} messages are refused")


class Victim(GatepostProcess):
    """A Gatepost whose workers die at these steps, one after the other, with this fault planted (see victim.py).

    Its wall clock is the machine's or `clock`.
    """

    def __init__(
        self,
        options: dict[str, Any],
        deaths: Iterable[str] = (),
        *,
        fault: str = SOUND,
        clock: WallClock | None = None,
    ) -> None:
        self._wishes = list(deaths)
        self._fault = fault
        self._clock = clock
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
        env = {"PROMETHEUS_MULTIPROC_DIR": str(self.directory / "metrics")}
        if self._clock is not None:
            env |= {**self._clock.environ, "PYTHONPATH": str(ROOT)}
        self.process = Process(
            [sys.executable, str(_VICTIM), str(self.config), str(self._marks), self._fault, *self._wishes],
            self.directory / "log",
            cwd=self.directory,
            env=env,
            # A fork would have the clock of the process that forks.
            warm=self._clock is None,
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

    def counts(self) -> dict[State, int] | None:
        """Messages in the spool by state, None while it can not be asked."""
        try:
            return asyncio.run(self._counts())
        except SpoolError:
            return None

    def flush(self) -> None:
        """Have all mail tried now, beside the gateway that runs."""

        async def work() -> None:
            spool = await open_all(load(str(self.config)).spool.options())
            try:
                await hasten(spool)
            finally:
                await spool.close()

        asyncio.run(work())

    async def _counts(self) -> dict[State, int]:
        spool = await open_all(load(str(self.config)).spool.options())
        try:
            return await spool.counts()
        finally:
            await spool.close()

    def wait_empty(self) -> None:
        """Wait until nothing is left that could still be delivered."""

        def empty() -> bool:
            counts = self.counts()
            return counts is not None and sum(counts.values()) == counts[State.CORRUPT]

        wait_until(empty, "the queue is empty")

    def corrupt(self) -> int:
        """How many messages were set aside."""
        counts = self.counts()
        assert counts is not None, "the spool can not be asked"
        return counts[State.CORRUPT]

    def content_files(self) -> list[str]:
        spool = self.directory / self.options["spool"]["path"]
        return [path.name for kind in ("shard", "drafts") for path in spool.glob(f"{kind}-*/content/*")]

    def maildir(self, name: str = "mail") -> list[int | None]:
        """The numbers of what arrived in a Maildir, None for what is not whole."""
        return numbers_in(self.directory / name)

    def bounces(self) -> list[int | None]:
        """The numbers of the messages that the DSNs in the Maildir are about, None for what is no DSN."""
        texts = [path.read_text(errors="replace") for path in (self.directory / "mail/new").iterdir()]
        about = [_ABOUT.search(text) for text in texts]
        return [int(match[1]) if match else None for match in about]


def numbers_in(maildir: Path) -> list[int | None]:
    return [number_of(path.read_text(errors="replace")) for path in (maildir / "new").glob("*")]


@dataclass(frozen=True)
class Result:
    """One line of the table: counts."""

    name: str
    deaths: int
    """How often something was killed or cut."""
    acknowledged: int
    """Messages that got 250; one for two mailboxes counts as two."""
    delivered: int
    """Messages that arrived, each once."""
    duplicated: int
    """Arrivals beyond the first."""
    lost: int
    """Got 250 and did not arrive, whole."""
    unanswered: int
    """Delivered though the client heard no 250: it may send them again."""
    torn: int = 0
    """Arrived in part."""
    corrupt: int = 0
    """Still in the spool, set aside as not whole."""

    @property
    def whole(self) -> bool:
        """Whether all that got 250 arrived, and nothing in part."""
        return self.acknowledged > 0 and not self.lost and not self.torn

    def __add__(self, other: Result) -> Result:
        """Both, under the first's name."""
        sums = [getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[1:]]
        return Result(self.name, *sums)


def count(name: str, deaths: int, load: Load, boxes: Sequence[Sequence[int | None]], *, corrupt: int = 0) -> Result:
    """Compare what got 250 with what is in the mailboxes that each message was for."""
    arrived = [Counter(number for number in box if number is not None) for box in boxes]
    return Result(
        name,
        deaths,
        len(load.acknowledged) * len(boxes),
        sum(len(box) for box in arrived),
        sum(box.total() - len(box) for box in arrived),
        sum(len(load.acknowledged - set(box)) for box in arrived),
        sum(len(set(box) - load.acknowledged) for box in arrived),
        sum(list(box).count(None) for box in boxes),
        corrupt,
    )


@dataclass
class Table:
    """All results, printed at the end."""

    results: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> Result:
        self.results.append(result)
        return result

    def tell(self, part: str, heading: str = "") -> None:
        """Have them printed after the last test, and stand in this part of the report on this run of the tests."""
        summary.add(heading + str(self))
        summary.COUNTS.extend((part, asdict(result)) for result in self.results)

    def __str__(self) -> str:
        lines = [f"{'killed':<50}{'deaths':>7}{'acked':>7}{'delivered':>11}{'twice':>7}{'lost':>6}{'unanswered':>12}"]
        lines += [
            f"{r.name:<50}{r.deaths:>7}{r.acknowledged:>7}{r.delivered:>11}{r.duplicated:>7}{r.lost:>6}{r.unanswered:>12}"
            for r in self.results
        ]
        return "\n".join(lines)
