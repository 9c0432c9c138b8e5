"""The scenes of the proof on the spool that several gateways share, in PostgreSQL.

Workers die at the durable steps as on SQLite; then one of two gateways, or the database itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from gateway.spool.spool import Step
from tests.crash.count import Load, Result, Victim, count, numbers_in
from tests.crash.victim import SOUND
from tests.support.postgres_server import PostgresServer
from tests.support.process import descendants, free_port, new_directory, wait_until

STEPS = (
    Step.FILE_WRITTEN,
    Step.COMMIT_BEGUN,
    Step.COMMIT_DONE,
    Step.CLAIM_DONE,
    Step.SETTLE_BEGUN,
    Step.SETTLE_DONE,
    Step.FILE_REMOVED,
)
"""Those that there are: content is synced by the server, with the row."""
_RECOVERING = ("commit-done:30", "recovery-begun:1", "recovery-done:1", "settle-begun:20", "recovery-begun:1")
_ENOUGH = 100
"""Messages acknowledged before and after a death."""
_DOMAINS = ("example.com", "example.net")
_LEASE = 5.0
_LATE = ("synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=1GB")


class House:
    """A database, and gateways that share it. What comes in at each is for a domain and a Maildir of its own."""

    def __init__(
        self, stack: ExitStack, gateways: int, *deaths: str, settings: Sequence[str] = (), fault: str = SOUND
    ) -> None:
        self.server = PostgresServer(*settings)
        stack.callback(self.server.stop)
        self._mail = new_directory("mail")
        stack.callback(shutil.rmtree, self._mail, ignore_errors=True)
        domains = self.domains()
        postgres = {"url": self.server.url, "timeout": "2s", "lease": f"{_LEASE:.0f}s"}
        options: dict[str, Any] = {"domains": domains, "spool": {"path": "./spool", "postgres": postgres}}
        self.gateways: list[Victim] = []
        for _ in range(gateways):
            self.gateways.append(Victim(options, deaths, fault=fault))
            stack.callback(self._end, self.gateways[-1])
        self.loads = [Load(one.port, (f"ben@{to}",)) for one, to in zip(self.gateways, _DOMAINS, strict=False)]

    def domains(self, down: str = "") -> dict[str, Any]:
        """Where mail goes: into Maildirs, or to a next hop that is down."""
        hops = {domain: down or f"maildir:{self._mail / domain}" for domain in _DOMAINS}
        return {domain: {"next_hop": hop, "recipients": "any"} for domain, hop in hops.items()}

    @staticmethod
    def _end(gatepost: Victim) -> None:
        print(f"--- log of {gatepost.config}:\n{gatepost.log[-6000:]}", file=sys.stderr)
        gatepost.kill()
        shutil.rmtree(gatepost.directory, ignore_errors=True)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Under load inside the block."""
        with ExitStack() as stack:
            for load in self.loads:
                stack.enter_context(load.running())
            yield

    def go_on(self, messages: int = _ENOUGH) -> None:
        """Wait until each gateway has taken so many more."""
        for load in self.loads:
            load.goes_on(messages)

    def finish(self, name: str, deaths: int, by: Victim) -> Result:
        """Wait until nothing is left in the spool, of which a gateway that runs knows, and count."""
        by.wait_empty()
        assert not by.corrupt(), "the crash left a corrupt message"
        for table in ("content", "chunk"):
            assert self.server.query(f"SELECT count(*) FROM {table}") == [(0,)], f"{table} of no message is left"
        results = [
            count(name, 0 if n else deaths, load, [numbers_in(self._mail / domain)])
            for n, (load, domain) in enumerate(zip(self.loads, _DOMAINS, strict=False))
        ]
        return sum(results[1:], results[0])


@contextmanager
def _house(gateways: int, *deaths: str, **options: Any) -> Iterator[House]:
    """Whatever happens, nothing of it is left."""
    with ExitStack() as stack:
        yield House(stack, gateways, *deaths, **options)


def _die(name: str, *deaths: str) -> Result:
    """Workers of one gateway die, one after the other."""
    with _house(1, *deaths) as house:
        (gatepost,) = house.gateways
        with house.loaded():
            gatepost.wait_deaths()
            house.go_on()
        result = house.finish(name, len(deaths), gatepost)
        gatepost.stop()
        assert not gatepost.content_files()
        return result


def step(at: Step) -> Result:
    """Three workers die at this step."""
    return _die(at.value, f"{at}:1", f"{at}:6", f"{at}:3")


def recovery() -> Result:
    """Workers die, and their successors die while they free what the dead had in hand."""
    return _die("while it recovers", *_RECOVERING)


def gateway() -> Result:
    """One of two gateways is killed, all of its processes at once, and never comes back."""
    with _house(2) as house:
        first, second = house.gateways
        with house.loaded():
            house.go_on()
            first.kill_tree()
            house.loads[1].goes_on(_ENOUGH)
        result = house.finish("one of two gateways, for good", 1, second)
        assert "spool.taken_over" in second.log
        return result


def _stop(gatepost: Victim, number: signal.Signals) -> None:
    for pid in [gatepost.process.pid, *descendants(gatepost.process.pid)]:
        # Whoever ended meanwhile needs no signal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def standstill() -> Result:
    """One of two gateways stands still until the other one has taken its mail over, and then goes on."""
    with _house(2) as house:
        first, second = house.gateways
        with house.loads[1].running(), house.loads[0].running():
            house.go_on()
            _stop(first, signal.SIGSTOP)
            try:
                wait_until(lambda: "spool.taken_over" in second.log, "the other one takes over")
            finally:
                _stop(first, signal.SIGCONT)
            house.go_on()
        return house.finish("one of two gateways stands still beyond its lease", 1, second)


def database() -> Result:
    """All of PostgreSQL is killed under two gateways, and started again, twice."""
    with _house(2) as house:
        with house.loaded():
            for _ in range(2):
                house.go_on()
                house.server.kill()
                for load, gatepost in zip(house.loads, house.gateways, strict=True):
                    load.is_refused(1)
                    _wait_ready(gatepost, ready=False)
                house.server.start()
            house.go_on()
        return house.finish("all of PostgreSQL, under two gateways", 2, house.gateways[0])


def database_that_may_forget(fault: str) -> Result:
    """PostgreSQL, whose own setting is to sync a commit some time later, is killed while the next hops are down."""
    with _house(1, settings=_LATE, fault=fault) as house:
        (gatepost,) = house.gateways
        gatepost.kill_tree()
        gatepost.configure(domains=house.domains(f"smtp:127.0.0.1:{free_port()}"))
        gatepost.start()
        with house.loaded():
            house.go_on()
            house.server.kill()
        gatepost.kill_tree()
        house.server.start()
        gatepost.configure(domains=house.domains())
        gatepost.start()
        gatepost.flush()
        return house.finish("", 1, gatepost)


def _wait_ready(gatepost: Victim, *, ready: bool) -> None:
    def said() -> bool:
        return (gatepost.http("GET", "/readyz")[0] == 200) is ready

    wait_until(said, "readiness is gone with the database")


SCENES: tuple[Callable[[], Result], ...] = (
    *(partial(step, at) for at in STEPS),
    recovery,
    gateway,
    standstill,
    database,
)
