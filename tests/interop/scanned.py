"""A running Gatepost with a pipeline for each way to use a scanner, and what clients and mailboxes get from it."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.interop.settings import maildir
from tests.support.clients import ProxiedClient, transact
from tests.support.gatepost import IMPATIENT, GatepostProcess
from tests.support.process import free_port, new_directory, wait_until

CLIENT = "198.51.100.7"
RECIPIENTS = ("anna@example.org", "ben@example.org")
_number = itertools.count(1)


def message(subject: str, body: bytes = b"Hello.", fields: bytes = b"") -> bytes:
    """A message with a Message-ID of its own. `fields` stand at its top, each with CRLF."""
    head = (
        f"From: Ann <ann@sender.test>\r\nTo: Anna <anna@example.org>\r\nSubject: {subject}\r\n"
        f"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{next(_number)}.scanned@sender.test>\r\n\r\n"
    )
    return fields + head.encode() + body + b"\r\n"


@dataclass(frozen=True)
class Met:
    """What a client met: its reply, and the decision record."""

    code: int
    text: str
    record: dict[str, Any]

    @property
    def reply(self) -> str:
        """Code and enhanced status."""
        return f"{self.code} {self.text.split()[0]}"

    @property
    def id(self) -> str:
        """The queue id, or the reference of a refusal."""
        return self.text.rstrip(")").split()[-1]

    def note(self, plugin: str) -> dict[str, Any]:
        """The record's note of what this plugin found, or how it failed."""
        (note,) = [f for f in self.record["findings"] if f["plugin"] == plugin]
        return dict(note)

    def value(self, plugin: str) -> dict[str, Any]:
        return dict(self.note(plugin)["value"])

    def verdict(self, plugin: str) -> dict[str, Any]:
        (verdict,) = [v for v in self.record["verdicts"] if v["plugin"] == plugin]
        return dict(verdict)


class Scanned:
    """A Gatepost with a listener for each pipeline. Clients are `CLIENT`, and mail goes into a Maildir.

    With `breaker_pause`, breakers stay open for so many seconds at first.
    """

    def __init__(
        self, pipelines: Mapping[str, Sequence[Any]], *, breaker_pause: float | None = None, **options: Any
    ) -> None:
        self.directory = new_directory("scanned")
        self.ports = {name: free_port() for name in pipelines}
        listeners = [
            {
                "address": f"127.0.0.1:{port}",
                "role": "edge",
                "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
                "pipeline": name,
            }
            for name, port in self.ports.items()
        ]
        configuration = {
            "domains": maildir(self.directory),
            "listeners": listeners,
            "pipelines": {name: list(entries) for name, entries in pipelines.items()},
            **options,
        }
        if breaker_pause is None:
            self.gate = GatepostProcess(configuration)
        else:
            self.gate = GatepostProcess(configuration, run=(sys.executable, str(IMPATIENT), f"{breaker_pause:g}"))

    def stop(self) -> None:
        try:
            self.gate.stop()
        except BaseException:
            print(self.gate.log[-6000:], file=sys.stderr)
            self.gate.kill()
            raise
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.rmtree(self.gate.directory, ignore_errors=True)

    def send(self, pipeline: str, content: bytes, recipients: Sequence[str] = RECIPIENTS[:1]) -> Met:
        with ProxiedClient(self.ports[pipeline], CLIENT) as client:
            client.ehlo("relay.sender.test")
            code, text = transact(client, "ann@sender.test", list(recipients), content)
        return Met(code, text, self.record(text.rstrip(")").split()[-1]))

    def record(self, id: str) -> dict[str, Any]:
        """The decision record; that of a refusal is written a moment after the reply."""

        def written() -> dict[str, Any] | None:
            status, body = self.gate.http("GET", f"/api/v1/explain/{id}")
            return json.loads(body)[0]["record"] if status == 200 else None

        return wait_until(written, f"the record of {id} is written")

    def stored(self, met: Met) -> bytes:
        """The message as it came into the mailbox."""
        assert met.reply == "250 2.0.0", met

        def arrived() -> bytes | None:
            for path in (self.directory / "mail").rglob("new/*"):
                if met.id.encode() in (octets := path.read_bytes())[:8192]:
                    return octets
            return None

        return wait_until(arrived, f"{met.id} is delivered")

    def fields(self, met: Met) -> list[tuple[str, str]]:
        """The header fields of the message as it came into the mailbox, unfolded."""
        head = self.stored(met).replace(b"\r\n", b"\n").partition(b"\n\n")[0].replace(b"\n\t", b" ")
        lines = head.replace(b"\n ", b" ").decode().split("\n")
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def values(self, met: Met, name: str) -> list[str]:
        """The values of the stored message's fields of this name."""
        return [value for field, value in self.fields(met) if field.lower() == name.lower()]

    def held(self, met: Met) -> bool:
        """Whether it is in quarantine."""
        return any(entry["id"] == met.id and entry["state"] == "quarantine" for entry in self.gate.queue())

    def release(self, met: Met) -> None:
        self.gate.run("queue", "release", met.id)

    def findings(self, plugin: str, outcome: str) -> float:
        return self.gate.metric("gatepost_findings_total", plugin=plugin, outcome=outcome)

    def breaker(self, plugin: str) -> float:
        return self.gate.metric("gatepost_breaker_open", plugin=plugin)
