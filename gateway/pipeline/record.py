"""The decision record: what was asked, what was found, what was decided, and how it ended.

A record is a JSON object with these keys:

``v``           1, the version of this format
``id``          queue id or transaction id; the session id when no transaction was begun
``session``     session id
``time``        when the transaction (or the session) began, epoch seconds
``listener``    name of the listener
``client``      ``ip``, ``port``, ``peer`` (the TCP peer, where it is another), ``name`` (as a trusted XCLIENT gave it)
``tls``         ``version``, ``cipher``, ``sni``; null in the clear. Where the client showed a certificate, ``client``
                has ``verified``, ``fingerprint``, and either ``problem`` or ``subject``, ``names``, ``issuer`` and
                ``serial`` (see `gateway.mail.session.ClientCertificate`)
``helo``        the HELO or EHLO name, ``""`` before it
``sender``      the sender; ``"<>"`` for the null sender; null before MAIL
``recipients``  one object per RCPT: ``address`` and the ``reply`` it got
``size``        octets of content, 0 when none came
``findings``    ``stage``, ``plugin``, ``finding``, ``ms`` and ``value``; or ``fault`` and ``detail``; or ``pending``
                true when it was not waited for, or ``missing`` true when an action that it needs had no turn, or
                ``given`` true beside the value in a simulation that was told what to find;
                ``recipient`` where it was found for one
``verdicts``    ``stage``, ``plugin``, ``policy``, ``version``, ``action``, ``shadow``; where there are: ``reply``,
                ``reason``, ``edits``, ``recipient``. ``policy`` is ``on_error`` where a fault decided
``edits``       the patch list that was applied to the message, with what was there before (``was``, ``old_size``)
``outcome``     one of `gateway.sdk.ending.Outcome`
``reply``       the reply that ended it
``pipeline``    name of the pipeline, or of several
``config``      by which configuration: the first 12 hexadecimal digits of the file's SHA-256
``copies``      ids of all copies of the message, where it was queued in several
``mta``         where another MTA asked: ``through`` (``delegate`` or ``milter``), its ``queue_id`` as far as it told
                it, and ``left_out``, what of the decision it could not be told
``redacted``    where local parts of addresses were replaced: what of the session was changed by that; findings have one
                too, of their fields (see `gateway.ops.redaction`)

Both lists begin with the session's own (connect, helo). Where a stage had too many for a list, ``{"truncated": true}``
stands for those after the first 500.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Sender
from gateway.mail.edit import Edit, edits_json
from gateway.mail.session import Session
from gateway.sdk.ending import Outcome

__all__ = ["LIMIT", "VERSION", "Outcome", "Trace", "build"]

VERSION: Final = 1
LIMIT: Final = 500
"""Findings, and verdicts, that one trace keeps of a stage: many recipients leave room for the message."""

_TRUNCATED: Final[dict[str, Any]] = {"truncated": True}


class Trace:
    """Findings and verdicts of a session or a transaction, as the record keeps them, in the order they began.

    A finding's entry is put in when its look-up begins and completed in place when it ends.
    """

    __slots__ = ("_found", "_said", "findings", "verdicts")

    def __init__(self) -> None:
        self.findings: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []
        # How many there are of each stage.
        self._found: dict[str, int] = {}
        self._said: dict[str, int] = {}

    def finding(self, note: dict[str, Any]) -> None:
        _append(self.findings, self._found, note)

    def verdict(self, note: dict[str, Any]) -> None:
        _append(self.verdicts, self._said, note)

    def forget(self, note: dict[str, Any]) -> None:
        """Take a finding's entry out: it is going to be looked up again."""
        before = len(self.findings)
        self.findings[:] = [kept for kept in self.findings if kept is not note]
        if len(self.findings) < before:
            self._found[note.get("stage", "")] -= 1


def _append(notes: list[dict[str, Any]], counts: dict[str, int], note: dict[str, Any]) -> None:
    stage = note.get("stage", "")
    count = counts.get(stage, 0)
    if count > LIMIT:
        return
    notes.append(note if count < LIMIT else _TRUNCATED)
    counts[stage] = count + 1


def build(
    *,
    session: Session,
    id: str,
    started: float,
    pipeline: str,
    traces: Iterable[Trace],
    outcome: Outcome | str,
    reply: str,
    sender: Sender | None = None,
    recipients: Sequence[tuple[str, str]] = (),
    size: int = 0,
    edits: Sequence[Edit] = (),
    section: bytes = b"",
    copies: Sequence[str] = (),
    config: str = "",
) -> dict[str, Any]:
    """The record of a transaction, or of a session that had none. See the module's docstring for the format.

    `sender` is None before MAIL; `recipients` are pairs of address and reply; `traces` come session first
    (`traces` of a pipeline's session or transaction); `section` is the header section that `edits` change. The record
    is a copy: what ends later does not change it.
    """
    traces = tuple(traces)
    out = {
        "v": VERSION,
        "id": id,
        "session": session.id,
        "time": round(started, 3),
        "listener": session.listener,
        "client": _client(session),
        "tls": _tls(session),
        "helo": session.helo,
        "sender": "<>" if sender is NULL_SENDER else str(sender) if sender is not None else None,
        "recipients": [{"address": address, "reply": answer} for address, answer in recipients],
        "size": size,
        "findings": [_ended(note) for trace in traces for note in trace.findings],
        "verdicts": [dict(note) for trace in traces for note in trace.verdicts],
        "edits": edits_json(edits, section, max(0, size - len(section) - 2)) if edits else [],
        "outcome": Outcome(outcome).value,
        "reply": reply,
        "pipeline": pipeline,
    }
    if config:
        out["config"] = config
    if copies:
        out["copies"] = list(copies)
    return out


def _client(session: Session) -> dict[str, Any]:
    out: dict[str, Any] = {"ip": str(session.client), "port": session.client_port}
    if session.peer != session.client:
        out["peer"] = str(session.peer)
    if session.name:
        out["name"] = session.name
    return out


def _tls(session: Session) -> dict[str, Any] | None:
    tls = session.tls
    if tls is None:
        return None
    out: dict[str, Any] = {"version": tls.version, "cipher": tls.cipher, "sni": tls.sni}
    if (client := tls.client) is not None:
        out["client"] = {"verified": client.verified, "fingerprint": client.fingerprint}
        if client.verified:
            names = list(client.names)
            out["client"] |= {"subject": client.subject, "names": names, "issuer": client.issuer}
            out["client"] |= {"serial": client.serial}
        else:
            out["client"] |= {"problem": client.problem}
    return out


def _ended(note: dict[str, Any]) -> dict[str, Any]:
    out = dict(note)
    if "ms" not in out and note is not _TRUNCATED:
        out["pending"] = True
    return out
