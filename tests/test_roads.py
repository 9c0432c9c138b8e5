"""Parts of a configuration that a reload has replaced, and who still uses them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode

from gateway.app import wiring
from gateway.app.roads import Roads
from gateway.config import parse
from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import MailParameters, Recipient
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks
from gateway.spool.draft import MemoryContent
from gateway.transport.transport import Delivery, Outcome, Result


class Nameserver(asyncio.DatagramProtocol):
    """Says of no name that it is there, once it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.questions: list[tuple[bytes, Any]] = []
        self.answers = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.questions.append((data, addr))
        self.asked.set()
        if self.answers:
            self.answer()

    def answer(self) -> None:
        self.answers = True
        for data, addr in self.questions:
            response = dns.message.make_response(dns.message.from_wire(data))
            response.set_rcode(dns.rcode.NXDOMAIN)
            self.transport.sendto(response.to_wire(), addr)
        self.questions.clear()


def test_a_delivery_that_waits_for_dns_gets_its_answer_though_a_reload_replaces_what_it_began_with(
    tmp_path: Path,
) -> None:
    async def deliver() -> list[Outcome]:
        server, tasks = Nameserver(), Tasks()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: server, local_addr=("127.0.0.1", 0)
        )
        port = transport.get_extra_info("sockname")[1]
        text = f"""hostname: mx.example.org
listeners: [{{address: "127.0.0.1:0"}}]
dns: {{nameservers: ["127.0.0.1:{port}"]}}
"""
        clock = SystemClock()
        config = parse(text.encode(), str(tmp_path / "gatepost.yaml"))
        parts = wiring.make_parts(config, SqliteState(tmp_path, clock), clock)
        roads = Roads(parts)
        ann = parse_mailbox("ann@gone.example")
        road = roads.for_destination(roads.resolve(ann))
        content = MemoryContent(b"Subject: x\r\n\r\n", False)
        delivery = Delivery("ID", NULL_SENDER, MailParameters(), (Recipient(ann),), content)
        delivering = tasks.start(road.deliver(delivery), name="delivery")
        await server.asked.wait()

        async def retire() -> None:
            await parts.tenancy.empty()
            await parts.close()

        retiring = tasks.start(retire(), name="retire")
        await asyncio.sleep(0)
        server.answer()
        outcomes = await delivering
        await retiring
        transport.close()
        return outcomes

    (outcome,) = asyncio.run(deliver())
    assert outcome.result is Result.FAILED, outcome.reply
