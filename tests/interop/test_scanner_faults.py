"""Scanners that die, hang, babble, drip, or answer by half: `on_error` decides, and breakers open and close again."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.scanned import Met, Scanned, message
from tests.support.clamav import Clamd
from tests.support.process import free_port, wait_until
from tests.support.rspamd import Rspamd
from tests.support.scripted import Scripted, read_http, read_instream, read_spamc, until_closed
from tests.support.spamassassin import Spamd

pytestmark = pytest.mark.slow

ON_ERROR = {"defer": "451 4.3.0", "proceed": "250 2.0.0", "reject": "554 5.3.0"}
PAUSE = 1.0
"""Seconds that the breakers of these tests stay open at first."""
FORGED = b"X-Virus-Status: Clean\r\nX-Spam-Status: No\r\nX-Spam: No\r\n"


@dataclass(frozen=True)
class Kind:
    """A scanner as these tests see it: how it reads a message, and a good answer of its."""

    plugin: str
    read: Callable[[socket.socket], object]
    answer: bytes
    real: Callable[[], Any]
    on_error: str
    """What its entry in front of the real one says."""
    forged: str
    """A field that the sender must not have said the last word about."""


_RSPAMD = b'{"action":"no action","score":0.5,"required_score":15.0,"symbols":{},"messages":{}}'

KINDS = {
    kind.plugin: kind
    for kind in (
        Kind("clamd", read_instream, b"stream: OK\0", Clamd, "reject", "X-Virus-Status"),
        Kind(
            "spamd",
            read_spamc,
            b"SPAMD/1.1 0 EX_OK\r\nContent-length: 4\r\nSpam: False ; 0.5 / 5.0\r\n\r\nTEST",
            Spamd,
            "proceed",
            "X-Spam-Status",
        ),
        Kind(
            "rspamd",
            read_http,
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_RSPAMD), _RSPAMD),
            Rspamd,
            "defer",
            "X-Spam",
        ),
    )
}

Answering = Callable[[Kind, Scripted, socket.socket], None]


def well(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    link.sendall(kind.answer)


def slow_but_in_time(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    server.done.wait(0.2)
    link.sendall(kind.answer)


def in_octets(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in kind.answer:
        link.sendall(bytes([octet]))


def hangs(kind: Kind, server: Scripted, link: socket.socket) -> None:
    until_closed(link)


def reads_nothing(kind: Kind, server: Scripted, link: socket.socket) -> None:
    server.done.wait(20)


def drips(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    for octet in kind.answer:
        link.sendall(bytes([octet]))
        if server.done.wait(0.3):
            return


def garbage(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    link.sendall(b"220 mx.example.test ESMTP\r\n\0\r\n\r\n")


def half(kind: Kind, server: Scripted, link: socket.socket) -> None:
    kind.read(link)
    link.sendall(kind.answer[:-3])


def hangs_up(kind: Kind, server: Scripted, link: socket.socket) -> None:
    link.recv(1)


BEARABLE: dict[str, Answering] = {"it is slow": slow_but_in_time, "it answers in single octets": in_octets}
UNBEARABLE: dict[str, tuple[Answering, str]] = {
    "it hangs": (hangs, "timeout"),
    "it talks garbage": (garbage, "error"),
    "it gives half an answer": (half, "error"),
    "it reads nothing": (reads_nothing, "timeout"),
    "it hangs up": (hangs_up, "error"),
    "nobody is there": (well, "error"),
    "its answer drips": (drips, "timeout"),
}
FAULTS_TO_OPEN = 5


def expect(scanned: Scanned, met: Met, kind: Kind, on_error: str, fault: str, when: str) -> None:
    assert met.reply == ON_ERROR[on_error], f"{kind.plugin}, when {when}: {met}"
    note = met.note(kind.plugin)
    assert (note["fault"], "value" in note) == (fault, False), when
    decided = met.verdict(kind.plugin)
    # Where the message is to pass, the policy is still asked: it removes what the sender made up.
    by = kind.plugin if on_error == "proceed" else "on_error"
    assert (decided["action"], decided["policy"]) == (on_error, by), when
    for name in ("127.0.0.1", "Error", kind.plugin):
        assert name not in met.text, "the wire is bland"


# Scripted servers: every kind of trouble, every `on_error`


@dataclass(frozen=True)
class Rig:
    scanned: Scanned
    ports: dict[str, int]

    def meet(self, pipeline: str, answering: Answering | None, content: bytes | None = None) -> tuple[Met, int]:
        """One message, while the scanner behind this pipeline answers so; and how often it was asked."""
        kind = KINDS[pipeline.split("-")[0]]
        content = content or message("hello", fields=FORGED)
        if answering is None:
            return self.scanned.send(pipeline, content), 0
        with Scripted(lambda link: answering(kind, server, link), port=self.ports[pipeline]) as server:
            try:
                return self.scanned.send(pipeline, content), server.connections
            finally:
                server.done.set()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """An entry for each scanner and `on_error`. Breakers stay open for `PAUSE` seconds at first."""
    ports = {f"{plugin}-{on_error}": free_port() for plugin in KINDS for on_error in ON_ERROR}
    pipelines = {
        name: [
            {
                name.split("-")[0]: {"connect": f"127.0.0.1:{port}", "max_size": "40MiB"},
                "timeout": "700ms",
                "on_error": name.split("-")[1],
            }
        ]
        for name, port in ports.items()
    }
    scanned = Scanned(pipelines, breaker_pause=PAUSE)
    yield Rig(scanned, ports)
    scanned.stop()


@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("plugin", KINDS)
def test_the_clients_answer_is_on_error_and_the_breaker_opens_after_five_faults_and_closes_again(rig, plugin, on_error):
    kind, pipeline, gate = KINDS[plugin], f"{plugin}-{on_error}", rig.scanned.gate
    for when, answering in BEARABLE.items():
        met, _ = rig.meet(pipeline, answering)
        assert met.reply == "250 2.0.0", when
        assert rig.scanned.findings(plugin, "ok") >= 1

    opened, closed = gate.log.count("breaker.opened"), gate.log.count("breaker.closed")
    # Each test has another five of them, so that every trouble meets every `on_error` of some scanner.
    troubles = list(UNBEARABLE.items())
    start = (list(KINDS).index(plugin) + 2 * list(ON_ERROR).index(on_error)) % len(troubles)
    for faults, (when, (answering, fault)) in enumerate((troubles * 2)[start : start + FAULTS_TO_OPEN], 1):
        before = rig.scanned.findings(plugin, fault)
        assert rig.scanned.breaker(plugin) == 0, when
        # A server that reads nothing is noticed when the kernel's buffers are full.
        content = message("large", (b"x" * 76 + b"\r\n") * 200_000) if answering is reads_nothing else None
        met, asked = rig.meet(pipeline, None if answering is well else answering, content)
        expect(rig.scanned, met, kind, on_error, fault, when)
        assert asked == (answering is not well), when
        assert rig.scanned.findings(plugin, fault) == before + 1
        assert rig.scanned.breaker(plugin) == (faults == FAULTS_TO_OPEN), when
        if met.code == 250:
            assert kind.forged not in [name for name, _ in rig.scanned.fields(met)], "nor is the sender believed"

    met, asked = rig.meet(pipeline, well)
    expect(rig.scanned, met, kind, on_error, "breaker", "the breaker is open")
    assert asked == 0, "nobody is asked while it is open"
    assert gate.log.count("breaker.opened") == opened + 1

    def well_again() -> bool:
        return bool(rig.meet(pipeline, well)[0].note(plugin).get("value"))

    wait_until(well_again, f"the breaker of {pipeline} closes")
    assert rig.scanned.breaker(plugin) == 0
    assert gate.log.count("breaker.closed") == closed + 1
    assert "exception" not in gate.log, "trouble of others is no bug of ours"


# The real servers


@pytest.mark.parametrize("plugin", KINDS)
def test_the_scanner_itself_hangs_is_killed_and_comes_back(plugin, running):
    kind = KINDS[plugin]
    server = running(kind.real())
    entry = {plugin: {"connect": server.endpoint}, "timeout": "2s", "on_error": kind.on_error}
    scanned = running(Scanned({plugin: [entry]}, breaker_pause=PAUSE))

    def meet() -> Met:
        return scanned.send(plugin, message("hello"))

    def works() -> bool:
        return bool(meet().note(plugin).get("value"))

    wait_until(works, f"{plugin} answers in time")
    with server.hung():
        expect(scanned, meet(), kind, kind.on_error, "timeout", "it hangs")
    wait_until(works, f"{plugin} has woken up")
    server.kill()
    for _ in range(FAULTS_TO_OPEN):
        expect(scanned, meet(), kind, kind.on_error, "error", "it was killed")
    assert scanned.breaker(plugin) == 1
    expect(scanned, meet(), kind, kind.on_error, "breaker", "the breaker is open")
    server.start()
    wait_until(works, f"{plugin} is asked again")
    assert scanned.breaker(plugin) == 0
    assert scanned.gate.log.count("breaker.closed") == 1
