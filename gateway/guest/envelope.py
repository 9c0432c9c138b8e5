"""Addresses and ESMTP parameters in the forms in which MTAs hand them to filters.

An MTA may be more lenient than our own grammar: Postfix hands policy servers local parts without their quotes, and
takes recipients without a domain. What even so is no address is refused, since what no filter can judge must not pass
all of them.

*RFCs*: 5321 section 4.1.2 (paths), 1870 (SIZE), 6152 (BODY), 6531 (SMTPUTF8), 3461 (RET, ENVID, NOTIFY, ORCPT).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.mail.address import (
    LOCAL_PART_OCTETS,
    NULL_SENDER,
    Address,
    AddressError,
    Sender,
    parse_domain,
    parse_forward_path,
    parse_mailbox,
)
from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret

_PARAMETERS: Final = 32
_VALUE: Final = 512
_DIGITS: Final = 19


def parse_sender(text: str, hostname: str) -> Sender:
    """The sender, in brackets or not; nothing is the null sender. Raises `AddressError`."""
    inner = _unbracketed(text)
    return _address(inner, hostname) if inner else NULL_SENDER


def parse_recipient(text: str, hostname: str) -> Address:
    """The recipient, in brackets or not; one without a domain is `hostname`'s. Raises `AddressError`."""
    return _address(_unbracketed(text), hostname)


def _unbracketed(text: str) -> str:
    text = text.strip(" ")
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text


def _address(text: str, hostname: str) -> Address:
    if "@" not in text:
        return parse_mailbox(f"{text}@{hostname}", utf8=True)
    try:
        return parse_forward_path(text, utf8=True)
    except AddressError:
        local, _, domain = text.rpartition("@")
        octets = len(local.encode("utf-8", "surrogateescape"))
        if not 0 < octets <= LOCAL_PART_OCTETS or not local.isprintable() or local.startswith("@"):
            raise
        return Address(local, parse_domain(domain, utf8=True))


def mail_parameters(parameters: Iterable[str]) -> MailParameters:
    """What MAIL carried besides the path; what is not known, or malformed, is the MTA's business and left out."""
    given = _by_name(parameters)
    size = given.get("SIZE", "")
    ret = given.get("RET", "").upper()
    return MailParameters(
        size=parse_size(size),
        body=Body.EIGHT_BIT if given.get("BODY", "").upper() != Body.SEVEN_BIT and "BODY" in given else Body.SEVEN_BIT,
        smtputf8="SMTPUTF8" in given,
        ret=Ret(ret) if ret in set(Ret) else None,
        envid=given.get("ENVID", ""),
    )


def recipient_parameters(address: Address, parameters: Iterable[str]) -> Recipient:
    """A recipient with what RCPT carried besides the path."""
    given = _by_name(parameters)
    words = [word.strip() for word in given.get("NOTIFY", "").upper().split(",")]
    return Recipient(address, frozenset(Notify(word) for word in words if word in set(Notify)), given.get("ORCPT", ""))


def parse_size(text: str) -> int:
    """A number of octets; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0


def _by_name(parameters: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for parameter in list(parameters)[:_PARAMETERS]:
        name, _, value = parameter.partition("=")
        if len(value) <= _VALUE and value.isprintable():
            found[name.upper()] = value
    return found
