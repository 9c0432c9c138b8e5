"""MAIL and RCPT commands: an envelope in the words that the next hop offers.

*RFCs*: 5321 section 4.1.1.2 and 4.1.1.3, 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 3461 (RET, ENVID, NOTIFY, ORCPT),
6533 section 3 (UTF-8 in ORCPT), 8689 (REQUIRETLS).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from gateway.mail.address import Address, AddressError, Sender
from gateway.mail.envelope import Body, MailParameters, Recipient

_ORCPT: Final = 500
"""Characters of its value (RFC 3461 section 4.2)."""


def mail(
    sender: Sender, parameters: MailParameters, *, size: int, eight_bit: bool, offered: Container[str]
) -> bytes | None:
    """The MAIL command, CRLF included; None when the sender cannot be written without SMTPUTF8.

    `size` is the content's in octets, `eight_bit` says that it holds octets over 127; `offered` holds the EHLO
    keywords, in capitals.
    """
    utf8 = parameters.smtputf8 and "SMTPUTF8" in offered
    path = _path(sender, utf8=utf8) if isinstance(sender, Address) else ""
    if path is None:
        return None
    command = f"MAIL FROM:<{path}>"
    if size and "SIZE" in offered:
        command += f" SIZE={size}"
    if (eight_bit or parameters.body is Body.EIGHT_BIT) and "8BITMIME" in offered:
        command += " BODY=8BITMIME"
    if utf8:
        command += " SMTPUTF8"
    if parameters.requiretls and "REQUIRETLS" in offered:
        command += " REQUIRETLS"
    if "DSN" in offered:
        if parameters.ret:
            command += f" RET={parameters.ret}"
        if parameters.envid:
            command += f" ENVID={parameters.envid}"
    return _line(command)


def rcpt(recipient: Recipient, *, smtputf8: bool, offered: Container[str]) -> bytes | None:
    """The RCPT command, CRLF included; None when the recipient cannot be written without SMTPUTF8.

    `smtputf8` says that the message asked for it (it is only used where it is offered).
    """
    utf8 = smtputf8 and "SMTPUTF8" in offered
    path = _path(recipient.address, utf8=utf8)
    if path is None:
        return None
    command = f"RCPT TO:<{path}>"
    if (recipient.notify or recipient.orcpt) and "DSN" in offered:
        if recipient.notify:
            command += f" NOTIFY={','.join(sorted(recipient.notify))}"
        orcpt = recipient.orcpt if utf8 else _seven_bit(recipient.orcpt)
        if len(orcpt) > _ORCPT:
            # Who asked is told of the recipient by the address that it has now.
            orcpt = ""
        if orcpt:
            command += f" ORCPT={orcpt}"
    return _line(command)


def _seven_bit(orcpt: str) -> str:
    """The form for a host without SMTPUTF8, which takes other octets for a mistake (RFC 6533 section 3)."""
    return "".join(c if c.isascii() else f"\\x{{{ord(c):02X}}}" for c in orcpt)


def _path(address: Address, *, utf8: bool) -> str | None:
    if not utf8 and not (address.domain.isascii() and address.local.isascii()):
        if address.needs_smtputf8:
            return None
        try:
            address = Address(address.local, address.ascii_domain)
        except AddressError:
            return None
    return str(address)


def _line(command: str) -> bytes:
    if "\r" in command or "\n" in command:
        # The grammar lets no line end into an envelope, so this is a bug and must never reach the wire.
        raise ValueError("a line end inside a command")
    return command.encode() + b"\r\n"
