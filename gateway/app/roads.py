"""What the scheduler asks of the configuration in force. Deliveries keep what they began with, as sessions do."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.app.wiring import Parts
from gateway.mail.address import Address, Sender
from gateway.services.tenancy import Tenancy
from gateway.transport.transport import Delivery, Destination, Outcome, Transport


@dataclass(frozen=True, slots=True)
class _Counted:
    """A transport whose deliveries count as tenants; implements `gateway.transport.transport.Transport`."""

    transport: Transport
    tenancy: Tenancy

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        # It asks the resolver, which a reload must not close under it.
        self.tenancy.enter()
        try:
            return await self.transport.deliver(delivery)
        finally:
            self.tenancy.leave()

    async def close(self) -> None:
        await self.transport.close()


class Roads:
    """What the scheduler asks of the configuration in force: routing, transports, return paths, signatures."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def resolve(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
        return self.parts.router.resolve(address, next_hop, sender)

    def for_destination(self, destination: Destination) -> Transport:
        return _Counted(self.parts.transports.for_destination(destination), self.parts.tenancy)

    def sender(self, id: str, sender: Sender, recipient: Address) -> Sender:
        return self.parts.paths.sender(id, sender, recipient)

    def reports_to(self, sender: Sender, recipient: Address) -> Sender:
        return self.parts.paths.reports_to(sender, recipient)

    async def sign(self, content: bytes) -> bytes:
        return await self.parts.signer.sign(content)
