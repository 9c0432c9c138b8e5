"""Macros: what an MTA tells a milter of a session and a message beside the commands themselves.

Names, times and values are those of Postfix 3.7 (its MILTER_README and ``milter_*_macros``), so that a milter which
works behind Postfix finds here what it looks for; the client's address, port and names are told by default too, since
most milters look for them. A macro that is not known has no value, and is not sent.

Where Gatepost knows more or less than Postfix: the queue id ``i`` is there from MAIL on and not only after the first
recipient; mailers are always ``smtp`` and their hosts the domains of the addresses, since where a message goes is
decided later; macros of AUTH have no values of their own. ``{verify}`` is Sendmail's, and told where it is asked for.
`MacroOptions.values` gives any macro a fixed value.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.metadata import version
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, Field

from gateway.sdk import (
    NULL_SENDER,
    AuthResult,
    ClientCertificate,
    OptionsModel,
    Recipient,
    ReverseName,
    Sender,
    Session,
    Transaction,
)

UNKNOWN: Final = "unknown"
"""Stands for the name of a client that has none (as in Postfix)."""

_NAME: Final = re.compile(r"[A-Za-z_]\Z|\{[A-Za-z_][A-Za-z0-9_]{0,60}\}\Z")


class MacroStage(IntEnum):
    """When macros are sent: before which command. The numbers are libmilter's (``SMFIM_...``)."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    EOM = 5
    EOH = 6


def canonical(name: str) -> str:
    """A macro's name with braces where it has several letters and without where it has one: ``{j}`` is ``j``.

    Raises ValueError for what is no macro's name.
    """
    bare = name[1:-1] if name.startswith("{") and name.endswith("}") else name
    name = bare if len(bare) == 1 else f"{{{bare}}}"
    if not _NAME.match(name):
        raise ValueError("expected a macro's name, such as i or {client_addr}")
    return name


MacroName = Annotated[str, AfterValidator(canonical)]
"""Option type: a macro's name, in canonical form."""

_DEFAULTS: Final[dict[MacroStage, str]] = {
    MacroStage.CONNECT: "j {daemon_name} {daemon_addr} {daemon_port} v _"
    " {client_addr} {client_name} {client_port} {client_ptr}",
    MacroStage.HELO: "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}",
    MacroStage.MAIL: "i {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer}",
    MacroStage.RCPT: "i {rcpt_addr} {rcpt_host} {rcpt_mailer}",
    MacroStage.DATA: "i",
    MacroStage.EOM: "i",
    MacroStage.EOH: "i",
}


def _told(stage: MacroStage, when: str) -> Any:
    names = tuple(_DEFAULTS[stage].split())
    return Field(names, max_length=40, description=f"Macros told {when}.")


class MacroOptions(OptionsModel):
    """Which macros a milter is told and when, unless it says itself which it wants."""

    connect: tuple[MacroName, ...] = _told(MacroStage.CONNECT, "at connect")
    helo: tuple[MacroName, ...] = _told(MacroStage.HELO, "at HELO")
    mail: tuple[MacroName, ...] = _told(MacroStage.MAIL, "at MAIL")
    rcpt: tuple[MacroName, ...] = _told(MacroStage.RCPT, "at each RCPT")
    data: tuple[MacroName, ...] = _told(MacroStage.DATA, "at DATA")
    eoh: tuple[MacroName, ...] = _told(MacroStage.EOH, "after the header section")
    eom: tuple[MacroName, ...] = _told(MacroStage.EOM, "at the end of the message")
    values: dict[MacroName, str] = Field(
        default={}, max_length=40, description="Fixed values, such as `{daemon_name}: ORIGINATING`."
    )

    def names(self, stage: MacroStage) -> tuple[str, ...]:
        """The names of this stage's macros."""
        names: tuple[str, ...] = getattr(self, stage.name.lower())
        return names


@dataclass(frozen=True, slots=True)
class ClientName:
    """How the client is called: `name` as confirmed, `ptr` as PTR says; ``unknown`` where there is none.

    `resolve` is what Sendmail says of that: OK, FAIL, FORGED (the name does not lead back) or TEMP.
    """

    name: str = UNKNOWN
    ptr: str = UNKNOWN
    resolve: str = "FAIL"


_NAMELESS: Final = ClientName()
_RESOLVE: Final = {AuthResult.FAIL: "FORGED", AuthResult.TEMPERROR: "TEMP"}


def client_name(session: Session, reverse: ReverseName | None) -> ClientName:
    """The client's names: as a trusted XCLIENT gave them, else as `rdns` found them, where it is in the pipeline."""
    if session.name:
        return ClientName(session.name, session.name, "OK")
    if reverse is None:
        return _NAMELESS
    if reverse.name:
        return ClientName(reverse.name, reverse.name, "OK")
    return ClientName(UNKNOWN, reverse.names[0] if reverse.names else UNKNOWN, _RESOLVE.get(reverse.result, "FAIL"))


class Facts(NamedTuple):
    """What the values of macros are made of: all that is known at a stage. `recipient` is the last one given."""

    hostname: str
    session: Session
    client: ClientName = _NAMELESS
    transaction: Transaction | None = None
    recipient: Recipient | None = None


def macro(name: str, facts: Facts, values: Mapping[str, str] | None = None) -> str | None:
    """The value of a macro by its canonical name, None when it has none. `values` are fixed ones and come first."""
    if values and name in values:
        return values[name]
    value = _VALUES.get(name)
    return value(facts) if value else None


def macros(names: Iterable[str], facts: Facts, values: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of the named macros that have a value, in their order."""
    return {name: value for name in names if (value := macro(name, facts, values)) is not None}


def client_host(facts: Facts) -> str:
    """What a milter is told at connect as the client's name: its address in brackets, where it has none."""
    return facts.client.name if facts.client.name != UNKNOWN else f"[{client_literal(facts.session)}]"


def client_literal(session: Session) -> str:
    """The client's address as it stands in an address literal: ``IPv6:`` in front of one of version 6."""
    return str(session.client) if session.client.version == 4 else f"IPv6:{session.client}"


@cache
def _software() -> str:
    return f"Gatepost {version('gatepost')}"


@cache
def _strengths() -> dict[str, int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL")
    return {cipher["name"]: cipher["strength_bits"] for cipher in context.get_ciphers()}


def _cipher_bits(facts: Facts) -> str | None:
    tls = facts.session.tls
    bits = _strengths().get(tls.cipher) if tls else None
    return str(bits) if bits else None


def _vouched_for(facts: Facts) -> ClientCertificate | None:
    """The client's certificate, where a CA of the listener's vouches for it."""
    client = facts.session.tls.client if facts.session.tls else None
    return client if client and client.verified else None


def _cert_subject(facts: Facts) -> str | None:
    return client.subject if (client := _vouched_for(facts)) else None


def _cert_issuer(facts: Facts) -> str | None:
    return client.issuer if (client := _vouched_for(facts)) else None


def _verify(facts: Facts) -> str:
    tls = facts.session.tls
    if tls is None:
        return "NONE"
    if tls.client is None:
        return "NO"
    return "OK" if tls.client.verified else "FAIL"


def _resolved(facts: Facts) -> str:
    client = facts.client
    forged = "" if client.name.lower() == client.ptr.lower() else " (may be forged)"
    return f"{client.ptr} [{facts.session.client}]{forged}"


def _listener(facts: Facts, part: int) -> str:
    return facts.session.listener.rpartition(":")[part].strip("[]")


def _sender(facts: Facts, text: Callable[[Sender], str]) -> str | None:
    return text(facts.transaction.sender) if facts.transaction else None


def _domain(sender: Sender) -> str:
    return "" if sender is NULL_SENDER else sender.domain


def _recipient(facts: Facts, text: Callable[[Recipient], str]) -> str | None:
    return text(facts.recipient) if facts.recipient else None


_VALUES: Final[dict[str, Callable[[Facts], str | None]]] = {
    "j": lambda facts: facts.hostname,
    "v": lambda _: _software(),
    "{daemon_name}": lambda facts: facts.hostname,
    "{daemon_addr}": lambda facts: _listener(facts, 0),
    "{daemon_port}": lambda facts: _listener(facts, 2),
    "_": _resolved,
    "{client_addr}": lambda facts: client_literal(facts.session),
    "{client_name}": lambda facts: facts.client.name,
    "{client_ptr}": lambda facts: facts.client.ptr,
    "{client_resolve}": lambda facts: facts.client.resolve,
    "{client_port}": lambda facts: str(facts.session.client_port),
    "{tls_version}": lambda facts: facts.session.tls.version if facts.session.tls else None,
    "{cipher}": lambda facts: facts.session.tls.cipher if facts.session.tls else None,
    "{cipher_bits}": _cipher_bits,
    "{cert_subject}": _cert_subject,
    "{cert_issuer}": _cert_issuer,
    "{verify}": _verify,
    "i": lambda facts: facts.transaction.id if facts.transaction else None,
    "{mail_addr}": lambda facts: _sender(facts, str),
    "{mail_host}": lambda facts: _sender(facts, _domain),
    "{mail_mailer}": lambda facts: _sender(facts, lambda _: "smtp"),
    "{rcpt_addr}": lambda facts: _recipient(facts, lambda recipient: str(recipient.address)),
    "{rcpt_host}": lambda facts: _recipient(facts, lambda recipient: recipient.address.domain),
    "{rcpt_mailer}": lambda facts: _recipient(facts, lambda _: "smtp"),
}
