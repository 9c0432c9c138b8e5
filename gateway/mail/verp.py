"""Variable envelope return paths: a sender that names the recipient.

Whatever is bounced to ``owner+user=example.net@lists.example.org`` is about user@example.net, however unreadable the
bounce itself is. So whoever keeps a list knows which member to strike off.

*RFCs*: 5321 section 4.5.3.1.1 (local parts of 64 octets).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.mail.address import LOCAL_PART_OCTETS, PATH_OCTETS, Address


@dataclass(frozen=True, slots=True)
class Verp:
    """`senders` are keys of addresses (`Address.key`), or ``@`` and a domain in A-labels for all of its senders.

    Of the two `delimiters`, one stands before the recipient and one in place of its ``@``.
    """

    senders: frozenset[str]
    delimiters: str = "+="

    def __post_init__(self) -> None:
        if len(self.delimiters) != 2:
            raise ValueError("VERP has two delimiters")

    def encode(self, sender: Address, recipient: Address) -> Address | None:
        """The sender that names the recipient; None when it would be longer than an address may be.

        The sender itself when it is none that the option names. Raises `AddressError`.
        """
        if sender.key not in self.senders and f"@{sender.ascii_domain}" not in self.senders:
            return sender
        before, at = self.delimiters[0], self.delimiters[1]
        local = f"{sender.local}{before}{recipient.local}{at}{recipient.ascii_domain}"
        octets = len(local.encode())
        if octets > LOCAL_PART_OCTETS or octets + len(sender.domain.encode()) + 3 > PATH_OCTETS:
            return None
        return Address(local, sender.domain)
