"""The scenes of the proof: something dies, is cut or goes wrong under load, and then it is counted.

`make test` plays many of them once (`test_crash.py`, `test_power_loss.py`, `test_clock.py`), `make durability` all,
several times.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from gateway.spool.spool import HANDOVER_STEPS, Step
from tests.crash import shared
from tests.crash.count import MIDDLE, SMALL, Load, Result, Victim, count, number_of, numbers_in
from tests.crash.disk import Disk
from tests.crash.planted import Fault, Scene
from tests.crash.victim import SOUND
from tests.support.postfix import SmtpSink
from tests.support.process import binary, free_port, wait_until
from tests.support.wallclock import DAY, HOUR, WallClock

RECOVERY = (Step.RECOVERY_BEGUN, Step.RECOVERY_DONE)
STEPS = tuple(step for step in Step if step not in (*RECOVERY, *HANDOVER_STEPS))
HOP_STEPS = (Step.COMMIT_DONE, Step.SETTLE_BEGUN, Step.SETTLE_DONE)
BOUNCE_STEPS = (Step.SETTLE_BEGUN, Step.SETTLE_DONE)
WORKERS = (1, 2, 5)
CALLS = (("fdatasync", 1), ("fdatasync", 20), ("fsync", 2), ("pwrite64", 333), ("unlink", 2))
_ENOUGH = 150
"""Messages acknowledged after the last death: the survivors work on."""
_MANY = 110
"""Messages whose content overflows SQLite's log, so that it is written back and begun anew."""
_BOTH = ("ben@example.com", "col@example.net")


@contextlib.contextmanager
def victim(*deaths: str, fault: str = SOUND, clock: WallClock | None = None, **options: Any) -> Iterator[Victim]:
    """Start a `Victim`; whatever happens, nothing of it is left."""
    gatepost = Victim(options, deaths, fault=fault, clock=clock)
    try:
        yield gatepost
    finally:
        print(f"--- log of {gatepost.config}:\n{gatepost.log[-6000:]}", file=sys.stderr)
        gatepost.kill()
        shutil.rmtree(gatepost.directory, ignore_errors=True)


def _finish(gatepost: Victim) -> None:
    """Wait until everything is delivered; then it must end cleanly and leave no file behind."""
    gatepost.wait_empty()
    assert not gatepost.corrupt(), "the crash left a corrupt message"
    gatepost.stop()
    assert not gatepost.content_files()


def _died(gatepost: Victim) -> int:
    """How many workers the supervisor saw die by SIGKILL."""
    return sum(
        "worker.died" in line and bool(re.search(r'"status": ?-9\b', line)) for line in gatepost.log.splitlines()
    )


# Processes are killed.


def step(at: Step) -> Result:
    """Three workers die at this step, one after the other."""
    with victim(f"{at}:1", f"{at}:6", f"{at}:3") as gatepost:
        with Load(gatepost.port).running() as load:
            gatepost.wait_deaths()
            load.goes_on(_ENOUGH)
        _finish(gatepost)
        assert _died(gatepost) == 3
        return count(at.value, 3, load, [gatepost.maildir()])


def recovery() -> Result:
    """Workers die, and their successors die while they put in order what the dead have left."""
    wishes = ("commit-done:30", "recovery-begun:1", "recovery-done:1", "settle-begun:20", "recovery-begun:1")
    with victim(*wishes) as gatepost:
        with Load(gatepost.port).running() as load:
            gatepost.wait_deaths()
            load.goes_on(_ENOUGH)
        _finish(gatepost)
        assert _died(gatepost) == len(wishes)
        return count("while it recovers", len(wishes), load, [gatepost.maildir()])


def next_hop(at: Step) -> Result:
    """Two workers die at this step, on the way to an SMTP next hop whose connections are reused."""
    sink = SmtpSink(dump=True)
    domains = {"example.com": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}}
    try:
        with victim(f"{at}:10", f"{at}:25", domains=domains) as gatepost:
            with Load(gatepost.port).running() as load:
                gatepost.wait_deaths()
                load.goes_on(_ENOUGH)
            _finish(gatepost)
            assert _died(gatepost) == 2
            # What the sink got in part is there, too, and is no delivery.
            whole = [number for text in sink.messages() if (number := number_of(text)) is not None]
            return count(f"{at.value}, to an SMTP next hop", 2, load, [whole])
    finally:
        sink.stop()


def bounced(at: Step, *, fault: str = SOUND) -> Result:
    """Two workers die at this step, while the next hop refuses all mail for good: senders are told of each message."""
    sink = SmtpSink("-f", "RCPT")
    domains = {
        "example.com": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"},
        "sender.test": {"next_hop": "maildir:./mail", "recipients": "any"},
    }
    try:
        with victim(f"{at}:10", f"{at}:25", fault=fault, domains=domains, relay_from=["127.0.0.0/8"]) as gatepost:
            with Load(gatepost.port).running() as load:
                gatepost.wait_deaths()
                load.goes_on(_ENOUGH)
            _finish(gatepost)
            assert _died(gatepost) == 2
            return count(f"{at.value}, when all mail bounces", 2, load, [gatepost.bounces()])
    finally:
        sink.stop()


def all_processes(workers: int) -> Result:
    """The whole tree is killed at once, and started with another number of workers."""
    with victim(workers=3) as gatepost:
        with Load(gatepost.port).running() as load:
            load.reaches(_ENOUGH)
            gatepost.kill_tree()
            gatepost.configure(workers=workers)
            gatepost.start()
            load.goes_on(_ENOUGH)
        _finish(gatepost)
        return count(f"all processes; then 3 -> {workers} workers", 1, load, [gatepost.maildir()])


@contextlib.contextmanager
def _killing_at(pid: int, call: str, when: int) -> Iterator[None]:
    """Have the process killed in the `when`-th such system call of one of its threads."""
    inject = f"inject={call}:signal=KILL:when={when}"
    argv = [binary("strace"), "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.terminate()
        process.wait(30)


def system_call(call: str, when: int) -> Result:
    """The worker is killed inside a system call, wherever that is made."""
    with victim(workers=1) as gatepost:
        with Load(gatepost.port).running() as load:
            load.reaches(10)
            (pid,) = gatepost.workers
            with _killing_at(pid, call, when):
                wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the worker is killed in {call}", 30.0)
            load.goes_on(_ENOUGH)
        _finish(gatepost)
        assert _died(gatepost) == 1
        return count(f"inside {call}, number {when}", 1, load, [gatepost.maildir()])


# The power is cut.


def _domains(*next_hops: str) -> dict[str, Any]:
    """Where the two copies of each message go. Their pipelines differ, so that a large content has two names."""
    com, net = ({"next_hop": hop, "recipients": "any"} for hop in next_hops)
    return {"example.com": com, "example.net": {**net, "pipeline": "other"}}


def _on_disk(disk: Disk, *next_hops: str) -> dict[str, Any]:
    return {
        "spool": {"path": str(disk.path / "spool"), "min_free": "1MiB"},
        "domains": _domains(*next_hops),
        "split": "copies",
        "pipelines": {"other": []},
        "retry": {"first": "1h", "max": "1h"},
    }


@contextlib.contextmanager
def _disk(*, journal: bool) -> Iterator[Disk]:
    disk = Disk(journal=journal)
    try:
        yield disk
    finally:
        disk.stop()


def _down() -> str:
    return f"smtp:127.0.0.1:{free_port()}"


def _cut(disk: Disk, gatepost: Victim) -> None:
    disk.cut_power()
    gatepost.kill_tree()
    disk.power_on()


def _rest(gatepost: Victim) -> None:
    """Wait until no log of a database has changed for a while."""
    logs = list(Path(gatepost.options["spool"]["path"]).glob("shard-*/spool.db-wal"))

    def still() -> bool:
        now = time.time()  # noqa: TID251 - the times of files are the machine's
        return now - max(log.stat().st_mtime for log in logs) > 0.5

    wait_until(still, "the spool is at rest")


def _begun_anew(gatepost: Victim) -> bool:
    """Whether a database's log was written over: its header counts that (https://www.sqlite.org/fileformat2.html)."""
    logs = Path(gatepost.options["spool"]["path"]).glob("shard-*/spool.db-wal")
    return any(int.from_bytes(log.read_bytes()[12:16], "big") > 0 for log in logs)


class When(StrEnum):
    """When the power is cut."""

    LOAD = "under load"
    LAST = "after the last 250"
    """Nothing that comes later can have synced what that one stands for."""
    REST = "at rest after the last 250"
    """What the 250 has set going is done, too. Needed without a journal (`Disk`)."""


def _play(disk: Disk, gatepost: Victim, cuts: int, when: When, *, small: int = SMALL) -> Load:
    """Mail comes in, the power goes, and so on; at the end all processes are dead."""
    load = Load(gatepost.port, _BOTH, small=small)
    for number in range(cuts):
        if number:
            gatepost.start()
        with load.running():
            load.goes_on(_MANY if small == MIDDLE else 60)
            if small == MIDDLE:
                wait_until(lambda: _begun_anew(gatepost), "SQLite has begun a log anew")
            if when is When.LOAD:
                _cut(disk, gatepost)
        if when is When.REST:
            _rest(gatepost)
        if when is not When.LOAD:
            _cut(disk, gatepost)
    return load


def _deliver(gatepost: Victim) -> int:
    """Start it once more and wait until nothing is left; how many were set aside."""
    gatepost.start()
    gatepost.run("queue", "flush")
    gatepost.wait_empty()
    corrupt = gatepost.corrupt()
    gatepost.kill_tree()
    return corrupt


def power(
    when: When, *, cuts: int = 3, name: str = "", journal: bool = True, small: int = SMALL, fault: str = SOUND
) -> Result:
    """The next hops are down all the while, so that all mail is in the spool through all the cuts that follow."""
    with _disk(journal=journal) as disk, victim(fault=fault, **_on_disk(disk, _down(), _down())) as gatepost:
        load = _play(disk, gatepost, cuts, when, small=small)
        gatepost.configure(domains=_domains("maildir:./com", "maildir:./net"))
        corrupt = _deliver(gatepost)
        boxes = [gatepost.maildir("com"), gatepost.maildir("net")]
        return count(name or when.value, cuts, load, boxes, corrupt=corrupt)


def power_of_both(when: When, *, cuts: int = 3, name: str = "", journal: bool = True, fault: str = SOUND) -> Result:
    """Mail is delivered as it comes, into Maildirs on the disk whose power goes."""
    with _disk(journal=journal) as disk:
        folders = [disk.path / "com", disk.path / "net"]
        with victim(fault=fault, **_on_disk(disk, *(f"maildir:{folder}" for folder in folders))) as gatepost:
            load = _play(disk, gatepost, cuts, when)
            corrupt = _deliver(gatepost)
            boxes = [numbers_in(folder) for folder in folders]
            return count(name or when.value, cuts, load, boxes, corrupt=corrupt)


# The disk is in trouble.


def full() -> Result:
    """The disk fills up to the last octet under load, twice; somebody makes room, and the gateway goes on by itself."""
    with _disk(journal=True) as disk:
        options = _on_disk(disk, "maildir:./com", "maildir:./net")
        options["spool"]["min_free"] = "1B"
        with victim(**options) as gatepost:
            load = Load(gatepost.port, _BOTH)
            with load.running():
                for _ in range(2):
                    load.goes_on(60)
                    filler = disk.path / "filler"
                    _fill(filler)
                    load.is_refused(60)
                    filler.unlink()
                load.goes_on(60)
            _finish(gatepost)
            return count("full, twice; then room again", 2, load, [gatepost.maildir("com"), gatepost.maildir("net")])


def _fill(path: Path) -> None:
    """Write until there is no room, and again, since others give some back."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def failing() -> Result:
    """Every write fails for a while, so that ext4 turns itself read-only; then the machine is started anew."""
    with _disk(journal=True) as disk, victim(**_on_disk(disk, _down(), _down())) as gatepost:
        load = Load(gatepost.port, _BOTH)
        with load.running():
            load.goes_on(60)
            with disk.failing():
                load.is_refused(60)
                wait_until(disk.is_read_only, "ext4 has turned itself read-only")
            _cut(disk, gatepost)
            gatepost.start()
            load.goes_on(60)
        gatepost.kill_tree()
        gatepost.configure(domains=_domains("maildir:./com", "maildir:./net"))
        corrupt = _deliver(gatepost)
        boxes = [gatepost.maildir("com"), gatepost.maildir("net")]
        return count("write errors, then read-only; started anew", 1, load, boxes, corrupt=corrupt)


# The clock is set.

OVER = 7 * DAY
"""Later, whatever was accepted has had its time (`retry.give_up`, 5 days)."""
_SOME = 30


def _hops(net: str) -> dict[str, Any]:
    """One of the two mailboxes of each message is always there, and its sender's is."""
    hops = {"example.com": "maildir:./com", "example.net": net, "sender.test": "maildir:./mail"}
    return {domain: {"next_hop": hop, "recipients": "any"} for domain, hop in hops.items()}


def _goes_by(gatepost: Victim, clock: WallClock) -> bool:
    """Whether it has logged something by this clock."""
    *_, last = re.findall(r'"timestamp": ?"([^"]+)"', gatepost.log)
    return abs(datetime.fromisoformat(last).timestamp() - clock.now()) < HOUR / 2


def _arrived(gatepost: Victim) -> int:
    return len(list((gatepost.directory / "com/new").glob("*")))


def _more_arrives(gatepost: Victim, count: int) -> None:
    enough = _arrived(gatepost) + count
    wait_until(lambda: _arrived(gatepost) >= enough, "new mail arrives")


def clock(name: str, offsets: Sequence[int], *, flush: bool = False, fault: str = SOUND) -> Result:
    """The clock is set under load, new mail goes by it at once, and all processes are killed; and so on.

    One mailbox of each message is away all the while. It is back when the clock is set for the last time, which
    nobody sees: what is started then finds mail of all the times before. Mail of a time to come needs a `flush`.
    """
    *under_load, last = offsets
    wall = WallClock()
    options = {"relay_from": ["127.0.0.0/8"], "retry": {"first": "1h", "max": "1h"}}
    try:
        with victim(fault=fault, clock=wall, domains=_hops(_down()), **options) as gatepost:
            load = Load(gatepost.port, _BOTH)
            with load.running():
                for number, offset in enumerate(under_load):
                    if number:
                        gatepost.start()
                    load.goes_on(_SOME)
                    wall.set(offset)
                    wait_until(lambda: _goes_by(gatepost, wall), "Gatepost goes by the new time")
                    _more_arrives(gatepost, _SOME)
                    gatepost.kill_tree()
            wall.set(last)
            gatepost.configure(domains=_hops("maildir:./net"))
            gatepost.start()
            if flush:
                gatepost.flush()
            _finish(gatepost)
            return count(name, len(under_load), load, [gatepost.maildir("com"), gatepost.maildir("net")])
    finally:
        wall.stop()


# Planted faults.


@contextlib.contextmanager
def _lying_about(gatepost: Victim, name: str) -> Iterator[None]:
    """Inside the block, syncs of the files of this name in the shards do nothing and say that all is well."""
    found = Path(gatepost.options["spool"]["path"]).glob(f"shard-*/{name}")
    paths = [argument for path in found for argument in ("-P", str(path))]
    pids = [argument for pid in gatepost.workers for argument in ("-p", str(pid))]
    argv = [binary("strace"), "-f", *pids, "-o", "/dev/null", *paths]
    argv += ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:retval=0"]
    with (gatepost.directory / "strace").open("wb") as said:
        process = subprocess.Popen(argv, stderr=said)
    try:
        attached = gatepost.directory / "strace"
        wait_until(lambda: attached.read_text().count(" attached") >= len(gatepost.workers), "strace is attached")
        yield
    finally:
        process.terminate()
        process.wait(30)


def written_back(*, planted: bool) -> Result:
    """SQLite writes its log back into the database and begins it anew, and then the power goes."""
    with _disk(journal=True) as disk, victim(**_on_disk(disk, _down(), _down())) as gatepost:
        with _lying_about(gatepost, "spool.db") if planted else contextlib.nullcontext():
            load = _play(disk, gatepost, 1, When.LAST, small=MIDDLE)
        gatepost.configure(domains=_domains("maildir:./com", "maildir:./net"))
        corrupt = _deliver(gatepost)
        return count("", 1, load, [gatepost.maildir("com"), gatepost.maildir("net")], corrupt=corrupt)


def killed_with(fault: str) -> Result:
    """Workers die in a COMMIT, and with large content in hand: that alone is claimed from the database."""
    wishes = ("commit-begun:10", "claim-done:2", "commit-begun:20", "claim-done:3", "commit-begun:15")
    with victim(*wishes, fault=fault) as gatepost:
        with Load(gatepost.port).running() as load:
            gatepost.wait_deaths()
        gatepost.wait_empty()
        corrupt = gatepost.corrupt()
        return count("", gatepost.deaths, load, [gatepost.maildir()], corrupt=corrupt)


def play(fault: Fault, *, planted: bool) -> Result:
    """The scene that must find this fault, with and without it: the one must have lost something, the other nothing."""
    name = fault.name if planted else SOUND
    when = When.LAST if fault.journal else When.REST
    match fault.scene:
        case Scene.KILL:
            found = killed_with(name)
        case Scene.BOUNCE:
            found = bounced(Step.SETTLE_DONE, fault=name)
        case Scene.CUT:
            found = power(when, cuts=1, journal=fault.journal, fault=name)
        case Scene.MAILDIR_CUT:
            found = power_of_both(when, cuts=1, journal=fault.journal, fault=name)
        case Scene.WRITE_BACK_CUT:
            found = written_back(planted=planted)
        case Scene.DATABASE:
            found = shared.database_that_may_forget(name)
        case Scene.CLOCK:
            found = clock("", (-DAY, OVER), fault=name)
    return replace(found, name=fault.name)


KILLS: tuple[Callable[[], Result], ...] = (
    *(partial(step, at) for at in STEPS),
    recovery,
    *(partial(next_hop, at) for at in HOP_STEPS),
    *(partial(bounced, at) for at in BOUNCE_STEPS),
    *(partial(all_processes, workers) for workers in WORKERS),
    *(partial(system_call, *call) for call in CALLS),
)
CUTS: tuple[Callable[[], Result], ...] = (
    partial(power, When.LOAD),
    partial(power, When.LAST),
    partial(power, When.REST, cuts=2, journal=False, name="at rest after the last 250, no journal"),
    partial(power, When.LAST, cuts=1, small=MIDDLE, name="after SQLite has begun its log anew"),
    partial(power_of_both, When.LOAD, name="while it delivers into Maildirs on that disk"),
    partial(power_of_both, When.REST, cuts=2, journal=False, name="at rest after delivery there, no journal"),
)
TROUBLE: tuple[Callable[[], Result], ...] = (full, failing)
CLOCKS: tuple[Callable[[], Result], ...] = (
    partial(clock, "back 1 h, on to 1 d ahead, back to 1 d behind; then beyond `give_up`", (-HOUR, DAY, -DAY, OVER)),
    partial(clock, "on to 1 d ahead; then back to 1 d behind, and `queue flush`", (DAY, -DAY), flush=True),
)
