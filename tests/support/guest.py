"""`gatepost delegate` and `gatepost milter` as an operator starts them, and a policy that does as the test says."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import smtplib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.gatepost import PROGRAM, GatepostProcess, configuration, write_configuration
from tests.support.process import Process, children, free_port, new_directory

# Installed as anybody's policy is: a module and its entry point on the path.
_POLICY = '''
"""A policy that says what its options say, by the local part of the sender."""

from __future__ import annotations

from typing import Any

from gateway.sdk import (
    PROCEED, Action, AddHeader, AddRecipient, Address, BodyContent, ChangeHeader, ChangeSender, DeleteHeader,
    DeleteRecipient, END, Message, Policy, Redirect, PolicyOptions, Recipient, ReplaceBody, Reroute, Session,
    Transaction, Verdict, accept, annotate, defer, discard, disconnect, quarantine, reject,
)


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain)


EDITS = {
    "add": lambda name, value, index=0: AddHeader(name, value, END if index == "end" else index),
    "change": lambda name, nth, value: ChangeHeader(name, nth, value),
    "delete": lambda name, nth=0: DeleteHeader(name, nth),
    "body": lambda text: ReplaceBody(BodyContent(text.encode("utf-8", "surrogateescape"))),
    "sender": lambda text: ChangeSender(address(text)),
    "to": lambda text: AddRecipient(Recipient(address(text))),
    "not-to": lambda text: DeleteRecipient(address(text)),
    "redirect": lambda text: Redirect(Recipient(address(text))),
    "reroute": lambda text: Reroute(text),
}


class Script(Policy):
    """Says what it is told to say."""

    name = "script"

    class Options(PolicyOptions):
        rules: dict[str, Any] = {}

    options: Any

    def on_connect(self, session: Session) -> Verdict:
        return self._say("connect", session.name.partition(".")[0])

    def on_helo(self, session: Session) -> Verdict:
        return self._say("helo", session.helo.partition(".")[0])

    def on_mail(self, txn: Transaction) -> Verdict:
        return self._of(txn, "mail")

    def on_rcpt(self, txn: Transaction, recipient: Recipient) -> Verdict:
        return self._say("rcpt", recipient.address.local, getattr(txn.sender, "local", "null"))

    def on_data(self, txn: Transaction) -> Verdict:
        return self._of(txn, "data")

    def on_message(self, txn: Transaction, message: Message) -> Verdict:
        return self._of(txn, "message")

    def _of(self, txn: Transaction, stage: str) -> Verdict:
        verdict = self._say(stage, getattr(txn.sender, "local", "null"))
        only = [r for r in txn.recipients if r.address.local == "only" and stage == "message"]
        return verdict.only(only) if only else verdict

    def _say(self, stage: str, *keys: str) -> Verdict:
        rule = next((self.options.rules[k][stage] for k in keys if stage in self.options.rules.get(k, {})), None)
        if rule is None:
            return PROCEED
        verdict, *edits = rule
        made = [EDITS[name](*arguments) for name, *arguments in edits]
        word, _, rest = verdict.partition(" ")
        match word:
            case "proceed":
                return annotate(*made) if made else PROCEED
            case "accept":
                return accept("", *made)
            case "quarantine":
                return quarantine(rest, *made)
            case "discard":
                return discard(rest)
            case "raise":
                raise RuntimeError(rest)
        code, detail, text = rest.split(" ", 2)
        return {"reject": reject, "defer": defer, "disconnect": disconnect}[word](detail, text, code=int(code))
'''


def install_policy(directory: Path) -> dict[str, str]:
    """Put the policy ``script`` there; gives the environment in which it is installed."""
    site = directory / "site"
    info = site / "gatepost_test_script-1.dist-info"
    info.mkdir(parents=True)
    (site / "gatepost_test_script.py").write_text(_POLICY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gatepost-test-script\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gatepost.policies]\nscript = gatepost_test_script:Script\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))}


class Guest(GatepostProcess):
    """A running `gatepost delegate` or `gatepost milter`."""

    def __init__(
        self, command: str, pipeline: list[Any], *arguments: str, listen: str | None = None, **options: Any
    ) -> None:
        self.directory = new_directory("guest")
        self.listen_port = free_port()
        self.listen = listen or f"inet:{self.listen_port}@127.0.0.1"
        self.options = configuration(self.directory, {"pipeline": pipeline, **options})
        self.config = write_configuration(self.directory, self.options)
        self._arguments = [str(PROGRAM), command, "-c", str(self.config), "--listen", self.listen, *arguments]
        self._environment = install_policy(self.directory)
        self.start()

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        log = self.directory / "log"
        self.process = Process(self._arguments, log, cwd=self.directory, env=self._environment, warm=True)
        self.process.wait_ready(lambda: self.http("GET", "/readyz")[0] == 200)

    @property
    def worker(self) -> int:
        """The process that talks to the MTA."""
        (pid,) = self.workers
        return pid

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of this name."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def rewrite(self, **options: Any) -> None:
        """Another configuration, for a reload or the next start."""
        self.options.update(options)
        write_configuration(self.directory, self.options)

    def stop(self) -> None:
        if self.process.status is None or children(self.process.pid):
            super().stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class PosingClient(smtplib.SMTP):
    """smtplib against a Postfix that lets us say, by XCLIENT, whom we are. Each comes from a port of its own."""

    _ports = itertools.count(40001)

    def __init__(self, port: int, client: str, name: str = "[UNAVAILABLE]", helo: str = "client.test") -> None:
        super().__init__("127.0.0.1", port, local_hostname=helo, timeout=60)
        self.ehlo()
        code, text = self.docmd(
            "XCLIENT", f"ADDR={'IPV6:' if ':' in client else ''}{client} NAME={name} PORT={next(self._ports)}"
        )
        assert code in (220, 421, 521, 554), (code, text)
        self.banner = (code, text.decode())
        if code == 220:
            self.ehlo()


def ask_policy(sock: socket.socket, **attributes: str) -> str:
    """One request to a policy server on an open connection; gives the action, empty when it closed instead."""
    request = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": "192.0.2.9",
        "client_port": "40001",
        "client_name": "unknown",
        "helo_name": "client.test",
        "instance": "1.1.1",
        "sender": "ann@sender.test",
        "recipient": "ben@example.test",
        "size": "1000",
        **attributes,
    }
    sock.sendall("".join(f"{name}={value}\n" for name, value in request.items()).encode() + b"\n")
    return read_action(sock)


def read_action(sock: socket.socket) -> str:
    """The next answer of a policy server, empty when it closed the connection."""
    got = b""
    while not got.endswith(b"\n\n"):
        block = sock.recv(4096)
        if not block:
            return ""
        got += block
    return got.decode().removeprefix("action=").rstrip("\n")


def rules(**by_sender: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the policy ``script``."""
    return {"script": {"rules": by_sender}}
