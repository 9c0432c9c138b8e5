"""The same milter classes behind two front doors: libmilter over a socket behind Postfix, and inside Gatepost.

Each class has a port on either; a dialogue with it gives what the client heard, what the milter was called with, and
what was delivered.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.support.gatepost import GatepostProcess
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import Process, free_port, listens, new_directory, wait_until

MILTERS = Path(__file__).with_name("milters.py")
RUNNER = Path(__file__).with_name("run_milter.py")


@dataclass(frozen=True)
class Delivered:
    """One message at the next hop; `fields` without those of the hosts that it passed."""

    sender: str
    recipients: tuple[str, ...]
    fields: tuple[str, ...]
    body: str


@dataclass(frozen=True)
class Met:
    """What came of a dialogue: refusals as the client heard them, and the milter's callbacks."""

    refusals: tuple[str, ...]
    calls: tuple[Any, ...] = field(repr=False)


class Door(Protocol):
    ports: dict[str, int]
    records: Path

    def settle(self) -> None: ...

    def stop(self) -> None: ...


class PostfixDoor:
    """A Postfix with an smtpd for each class, and the class behind libmilter."""

    def __init__(self, classes: Sequence[str], sink: SmtpSink) -> None:
        self.records = new_directory("milters")
        self.ports = {name: free_port() for name in classes}
        self._milters: list[Process] = []
        services = ""
        for name, port in self.ports.items():
            milter = free_port()
            argv = [sys.executable, str(RUNNER), name, f"inet:{milter}@127.0.0.1"]
            env = {"MILTER_RECORD": str(self.records)}
            process = Process(argv, self.records / f"{name}.log", env=env)
            self._milters.append(process)
            process.wait_ready(partial(listens, milter))
            services += f"127.0.0.1:{port} inet n - n - - smtpd -o smtpd_milters=inet:127.0.0.1:{milter}\n"
        self.postfix = Postfix(
            {
                "relayhost": f"[127.0.0.1]:{sink.port}",
                "smtpd_recipient_restrictions": "permit_mynetworks,reject",
                "myhostname": "mx.example.org",
                "smtpd_peername_lookup": "no",
                "recipient_delimiter": "",
            },
            services=services,
        )

    def settle(self, held: int) -> None:
        """Wait until everything is delivered but what is held."""
        wait_until(lambda: self.postfix.queue_length() == held, "Postfix has delivered everything")

    def stop(self) -> None:
        self.postfix.stop()
        for process in self._milters:
            process.stop()
        shutil.rmtree(self.records, ignore_errors=True)


class GatepostDoor:
    """A Gatepost with a listener and a pipeline for each class, which runs in it."""

    def __init__(self, classes: Sequence[str], sink: SmtpSink, monkeypatch: Any) -> None:
        self.records = new_directory("milters")
        monkeypatch.setenv("MILTER_RECORD", str(self.records))
        self.ports = {name: free_port() for name in classes}
        self.gate = GatepostProcess(
            {
                "domains": {"example.org": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any"}},
                "listeners": [
                    {"address": f"127.0.0.1:{port}", "role": "edge", "pipeline": name.lower()}
                    for name, port in self.ports.items()
                ],
                "pipelines": {
                    name.lower(): [{"milter-host": {"class": name, "file": str(MILTERS)}}] for name in classes
                },
            }
        )

    def settle(self, held: int) -> None:
        """Wait until everything is delivered but what is held."""
        wait_until(lambda: len(self.gate.queue()) == held, "Gatepost has delivered everything")

    def stop(self) -> None:
        try:
            self.gate.stop()
        finally:
            shutil.rmtree(self.records, ignore_errors=True)


def talk(door: Door, name: str, lines: Sequence[bytes], source: str = "127.0.0.1") -> Met:
    """Say the lines, one at a time; after a refusal of anything but a recipient only QUIT.

    `source` is the client's address.
    """
    record = door.records / name
    record.write_text("")
    refusals: list[str] = []
    server = ("127.0.0.1", door.ports[name])
    with socket.create_connection(server, 30, (source, 0)) as sock, sock.makefile("rb") as file:
        refused = _hear(file, refusals)
        for line in lines:
            if refused:
                break
            sock.sendall(line + b"\r\n")
            refused = _hear(file, refusals) and (not line.startswith(b"RCPT") or refusals[-1].startswith("421"))
        if refused:
            # It may have closed already.
            with contextlib.suppress(OSError):
                sock.sendall(b"QUIT\r\n")
                file.read()
    return Met(tuple(refusals), tuple(wait_until(lambda: _closed(record), f"{name} is told of the end")))


def _hear(file: Any, refusals: list[str]) -> bool:
    """Whether the reply is a refusal, which is noted."""
    lines: list[str] = []
    while True:
        line = file.readline().decode().rstrip("\r\n")
        lines.append(line)
        if line[3:4] != "-":
            break
    if lines[-1][:1] not in ("4", "5"):
        return False
    refusals.append(re.sub(r" \(ref \w+\)$", "", "\n".join(lines)))
    return True


def _closed(record: Path) -> list[Any] | None:
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    return calls if calls and calls[-1][0] == "close" else None


def delivered(sink: SmtpSink) -> dict[str, Delivered]:
    """What arrived, by the word in its field X-Case."""
    found: dict[str, Delivered] = {}
    for text in sink.messages():
        head, _, body = text.partition("\n\n")
        fields = re.split(r"\n(?![ \t])", head)
        envelope = [line for line in fields if re.match(r"X-(Client|Helo|Mail|Rcpt)-", line)]
        left = [line for line in fields if line not in envelope and not _is_trace(line)]
        (case,) = [line.partition(":")[2].strip() for line in left if line.startswith("X-Case:")]
        sender = next(_path(line) for line in envelope if line.startswith("X-Mail-Args:"))
        recipients = tuple(sorted(_path(line) for line in envelope if line.startswith("X-Rcpt-Args:")))
        assert case not in found, case
        found[case] = Delivered(sender, recipients, tuple(left), body.rstrip("\n"))
    return found


def _is_trace(line: str) -> bool:
    return bool(re.match(r"Received:.*by (smtp-sink|mx\.example\.org|postfix\.test)", line, re.DOTALL)) or bool(
        re.match(r"(Return-Path|Delivered-To|Authentication-Results):", line)
    )


def _path(line: str) -> str:
    match = re.search(r"<([^>]*)>", line)
    assert match, line
    return match[1]
