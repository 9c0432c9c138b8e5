"""Domains whose recipients somebody must be asked for, and what RCPT and the record say."""

from __future__ import annotations

import smtplib
from pathlib import Path
from typing import Any

from tests.interop.explained import found
from tests.support.clients import connect, reference
from tests.support.gatepost import GatepostProcess
from tests.support.slapd import PEOPLE, READER, password_file

DOMAIN = "example.test"
SENDER = "ann@sender.test"


def ldap_domain(directory: Path, uri: Any, *, more: dict[str, Any] | None = None, **ldap: Any) -> dict[str, Any]:
    """A domain whose recipients are in the directory at `uri`."""
    secret = {"bind_dn": READER, "password_file": password_file(directory)}
    options = {"uri": uri, "base": PEOPLE, **secret, **ldap}
    return {"next_hop": f"maildir:{directory}/mail", "recipients": {"ldap": options, **(more or {})}}


def entry(**options: Any) -> list[Any]:
    """The recipient plugin, quick to try again."""
    return [{"recipient": {"unavailable_ttl": "2s", **options}}]


def rcpt(client: smtplib.SMTP, address: str) -> tuple[int, str]:
    """What RCPT says, in a transaction of its own."""
    assert client.docmd("MAIL", f"FROM:<{SENDER}>")[0] == 250
    code, text = client.docmd("RCPT", f"TO:<{address}>")
    client.rset()
    return code, text.decode()


def status(gate: GatepostProcess, text: str) -> dict[str, Any]:
    """What the record says of a recipient that was refused with this text."""
    (finding, *_) = found(gate.cli("explain", reference(text)), "RecipientStatus")
    return finding


def taken(gate: GatepostProcess, address: str) -> bool:
    """Whether RCPT is taken, in a session of its own."""
    with connect(gate.port) as client:
        return rcpt(client, address)[0] == 250
