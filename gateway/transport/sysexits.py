"""What the end of a command means for the recipients of a message. Pure.

Exit statuses are those of sysexits.h. A command fails a recipient for good only by a status that speaks of the message
or the recipient; all others may be a mistake on this machine, and then the message waits.

*RFCs*: 3463 section 3 (status codes).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from gateway.mail.reply import Reply, clean
from gateway.transport.transport import Fault, Outcome, Result

_NAMES: Final = {
    64: "EX_USAGE",
    65: "EX_DATAERR",
    66: "EX_NOINPUT",
    67: "EX_NOUSER",
    68: "EX_NOHOST",
    69: "EX_UNAVAILABLE",
    70: "EX_SOFTWARE",
    71: "EX_OSERR",
    72: "EX_OSFILE",
    73: "EX_CANTCREAT",
    74: "EX_IOERR",
    75: "EX_TEMPFAIL",
    76: "EX_PROTOCOL",
    77: "EX_NOPERM",
    78: "EX_CONFIG",
    126: "cannot be run",
    127: "not found",
}
_DETAILS: Final = {
    64: "3.5",
    65: "6.0",
    67: "1.1",
    68: "1.2",
    73: "2.0",
    76: "5.0",
    77: "7.0",
    78: "3.5",
    126: "3.5",
    127: "3.5",
}
_CODES: Final = {67: 550, 68: 550, 77: 550}
_OURS: Final = frozenset({64, 78, 126, 127})
"""Statuses that say that the configuration is wrong."""

_LINES: Final = 3
_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit status, or the negative number of a signal. `output` is the beginning of it."""

    status: int
    output: bytes = b""
    late: bool = False
    """It was ended since its time was over."""


def judge(ended: Ended, program: str, fail_on: frozenset[int] | tuple[int, ...]) -> Outcome:
    """The outcome for the recipients of one run. `program` is the name that the reply shows.

    Output that begins with an enhanced status of the right class gives the status.
    """
    said = first_lines(ended.output)
    if ended.status == 0 and not ended.late:
        return Outcome(Result.DELIVERED, _reply(250, "0.0", said, f"{program} took it"))
    how = _how(ended)
    if ended.late or ended.status < 0:
        reply = Reply(451, "3.0", clean(f"{program} {how}" + (f": {said}" if said else "")))
        return Outcome(Result.DEFERRED, reply, fault=Fault.OURS)
    permanent = ended.status in fail_on
    code = _CODES.get(ended.status, 554) if permanent else 451
    reply = _reply(code, _DETAILS.get(ended.status, "3.0"), said, f"{program} {how}")
    if permanent:
        return Outcome(Result.FAILED, reply, fault=Fault.PEER)
    return Outcome(Result.DEFERRED, reply, fault=Fault.OURS if ended.status in _OURS else Fault.PEER)


def first_lines(output: bytes) -> str:
    """The first lines that are not empty, as one line that is safe in a reply."""
    lines = (" ".join(line.split()) for line in output.decode("utf-8", "replace").splitlines())
    return clean(" / ".join([line for line in lines if line][:_LINES])[:_TEXT])


def _reply(code: int, detail: str, said: str, before: str) -> Reply:
    found = Reply.parse(code, said)
    if found.detail:
        return Reply(code, found.detail, clean(f"{before}: {found.text}"))
    return Reply(code, detail, clean(f"{before}: {said}" if said else before))


def _how(ended: Ended) -> str:
    if ended.late:
        return "did not end in time and was killed"
    if ended.status < 0:
        try:
            name = signal.Signals(-ended.status).name
        except ValueError:
            name = f"signal {-ended.status}"
        return f"was ended by {name}"
    name = _NAMES.get(ended.status, "")
    return f"ended with status {ended.status}" + (f" ({name})" if name else "")
