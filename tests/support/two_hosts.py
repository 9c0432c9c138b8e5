"""The same milters behind a Postfix and behind a Gatepost, and the same messages sent to both."""

from __future__ import annotations

import re
import shutil
import smtplib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tests.support.clients import connect, transact
from tests.support.gatepost import GatepostProcess
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import free_port, wait_until

HOSTNAME = "mx.example.org"
_FIELD = re.compile(r"[^\n]+\n(?:[ \t][^\n]*\n)*")
_TRACE = re.compile(r"(?i)(?:received|return-path|delivered-to|x-(?:client|helo)-[a-z]+):")
_ENVELOPE = re.compile(r"(?i)x-(mail|rcpt)-args:[ ]*(.*)")
_SIGNED = re.compile(r"(?i)dkim-signature:")


class Server(Protocol):
    @property
    def milter(self) -> str: ...


@dataclass(frozen=True)
class Arrived:
    """One message at the next hop: envelope, header fields without trace fields, body."""

    sender: str
    recipients: tuple[str, ...]
    fields: tuple[str, ...]
    body: str

    def named(self, name: str) -> list[str]:
        """The fields of this name, on one line each."""
        return [" ".join(f.split()) for f in self.fields if f.lower().startswith(name.lower() + ":")]


@dataclass(frozen=True)
class Client:
    """Who sends, as XCLIENT says it."""

    address: str = "192.0.2.1"
    name: str = "mail.sender.test"
    helo: str = "mail.sender.test"


class TwoHosts:
    """A Postfix and a Gatepost with a port for each of the chains, and a sink behind either."""

    def __init__(self, chains: Mapping[str, Sequence[Server]]) -> None:
        self.sinks = SmtpSink(dump=True), SmtpSink(dump=True)
        self.postfix_ports = {name: free_port() for name in chains}
        self.gate_ports = {name: free_port() for name in chains}
        services = "".join(
            f"127.0.0.1:{self.postfix_ports[name]} inet n - n - - smtpd\n"
            f"  -o smtpd_milters={','.join(server.milter for server in chain)}\n"
            for name, chain in chains.items()
        )
        settings = {
            "myhostname": HOSTNAME,
            "relayhost": f"[127.0.0.1]:{self.sinks[0].port}",
            "relay_domains": "example.org",
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "milter_default_action": "tempfail",
        }
        self.postfix = Postfix(settings, services=services)
        try:
            self.gate = self._gatepost(chains)
        except BaseException:
            self._stop_others()
            raise
        self._numbers = iter(range(1, 10_000))

    def _gatepost(self, chains: Mapping[str, Sequence[Server]]) -> GatepostProcess:
        return GatepostProcess(
            {
                "domains": {"example.org": {"next_hop": f"smtp:127.0.0.1:{self.sinks[1].port}", "recipients": "any"}},
                "listeners": [
                    {
                        "address": f"127.0.0.1:{port}",
                        "role": "edge",
                        "pipeline": name,
                        "xclient": {"trusted": ["127.0.0.0/8"]},
                    }
                    for name, port in self.gate_ports.items()
                ],
                "pipelines": {
                    name: [{"milter": {"connect": server.milter}} for server in chain] for name, chain in chains.items()
                },
            }
        )

    def stop(self) -> None:
        try:
            self.gate.stop()
        finally:
            self._stop_others()
            shutil.rmtree(self.gate.directory, ignore_errors=True)

    def _stop_others(self) -> None:
        self.postfix.stop()
        for sink in self.sinks:
            sink.stop()

    def replies(
        self,
        chain: str,
        content: bytes,
        *,
        client: Client = Client(),
        sender: str = "ann@sender.test",
        recipients: Sequence[str] = ("ben@example.org",),
    ) -> tuple[tuple[int, str], tuple[int, str]]:
        """What Postfix and Gatepost say to a message, or to what came before it."""
        return (
            _converse(self.postfix_ports[chain], client, sender, recipients, content),
            _converse(self.gate_ports[chain], client, sender, recipients, content),
        )

    def arrivals(self, chain: str, content: bytes, **more: object) -> tuple[Arrived, Arrived]:
        """The message as it comes out behind Postfix and behind Gatepost."""
        mark = f"<{next(self._numbers)}.mark@sender.test>"
        content = b"Message-ID: " + mark.encode() + b"\r\n" + content
        replies = self.replies(chain, content, **more)  # type: ignore[arg-type]  # those of `replies`
        assert [code for code, _ in replies] == [250, 250], replies
        ids = [text.rpartition(" ")[2] for _, text in replies]

        def arrived(sink: SmtpSink, id: str) -> Arrived | None:
            found = next((text for text in sink.messages() if mark in text), None)
            return _read(found, id) if (found and found.endswith("\n\n")) or (found and ".\n" in found[-4:]) else None

        def awaited(sink: SmtpSink, id: str) -> Arrived:
            return wait_until(lambda: arrived(sink, id), f"the message of {chain} came out")

        first, second = map(awaited, self.sinks, ids)
        return first, second


def _converse(port: int, client: Client, sender: str, recipients: Sequence[str], content: bytes) -> tuple[int, str]:
    with connect(port) as connection:
        code, text = connection.docmd("XCLIENT", f"ADDR={client.address} NAME={client.name}")
        if code == 220:
            code, text = connection.ehlo(client.helo)
        if code != 250:
            return code, text.decode()
        try:
            return transact(connection, sender, list(recipients), content)
        except smtplib.SMTPServerDisconnected:
            return 0, "closed"


def _read(text: str, id: str) -> Arrived:
    """A dump of smtp-sink; `id` is the queue id, which some milters write into fields."""
    head, _, body = text.partition("\n\n")
    envelope: dict[str, list[str]] = {"mail": [], "rcpt": []}
    fields: list[str] = []
    for field in _FIELD.findall(head + "\n"):
        if match := _ENVELOPE.match(field):
            envelope[match[1].lower()].append(match[2].partition(">")[0] + ">")
        elif not _TRACE.match(field):
            fields.append(_normal(field, id))
    return Arrived(envelope["mail"][0], tuple(envelope["rcpt"]), tuple(fields), body)


def _normal(field: str, id: str) -> str:
    """The field without what differs from one message to the next: queue ids, and the time in signatures."""
    field = field.replace(id, "QUEUEID")
    if _SIGNED.match(field):
        field = re.sub(r"t=\d+;", "t=;", " ".join(field.split()))
        field = re.sub(r"\bb=[^;]*", "b=", field)
    return field


def same(both: tuple[Arrived, Arrived]) -> Arrived:
    """Assert that what came out is the same, and give it."""
    first, second = (replace(one, recipients=tuple(sorted(one.recipients))) for one in both)
    assert second == first, f"behind Postfix: {first}\nbehind Gatepost: {second}"
    return second
