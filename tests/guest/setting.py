"""What the tests of this room share: a pipeline made of functions, a place for records, and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.guest.request import Request, read_request
from gateway.guest.ruling import SplitRefused
from gateway.guest.visit import Host, Visit
from gateway.mail.session import Session
from gateway.sdk import PROCEED, Message, Plugin, Recipient, Stage, Transaction
from gateway.sdk.ending import Ending
from gateway.sdk.testing import make_session
from gateway.services.clock import SystemClock
from tests.pipeline.setting import hook, make, policy

INPUTS: Mapping[Stage, tuple[type, ...]] = {
    Stage.CONNECT: (Session,),
    Stage.HELO: (Session,),
    Stage.MAIL: (Transaction,),
    Stage.RCPT: (Transaction, Recipient),
    Stage.DATA: (Transaction,),
    Stage.MESSAGE: (Transaction, Message),
}


class Records:
    """Keeps decision records in memory, the last one of each id."""

    def __init__(self) -> None:
        self.by_id: dict[str, dict[str, Any]] = {}

    def note(self, record: dict[str, Any]) -> None:
        self.by_id[record["id"]] = record


class Learner(Plugin):
    """Remembers what it is told. To be made anew for each test with `learner`."""

    name = "learner"
    told: list[Ending]
    gone: list[Session]

    async def ended(self, ending: Ending) -> None:
        self.told.append(ending)

    async def hung_up(self, session: Session) -> None:
        self.gone.append(session)


def learner() -> type[Learner]:
    return type("Fresh", (Learner,), {"told": [], "gone": []})


class Setting:
    """A host whose policy says at each stage what the functions say; they get what the stage's hook gets."""

    def __init__(self, *, refused: SplitRefused = SplitRefused.QUARANTINE, **judges: Callable[..., Any]) -> None:
        hooks = [hook(Stage(stage), INPUTS[Stage(stage)], judge) for stage, judge in judges.items()]
        self.learner = learner()
        self.pipeline = make(["learner", "words"], self.learner, policy("words", *(hooks or [_silent()])))
        self.records = Records()
        self.host = Host(self.pipeline, self.records, SystemClock(), lambda client: str(client) == "192.0.2.1", refused)

    def visit(self) -> Visit:
        return Visit(self.host, make_session(), "milter")


def _silent() -> Any:
    return hook(Stage.CONNECT, (Session,), lambda session: PROCEED)


def attributes(**more: str) -> dict[str, str]:
    """A request of Postfix's at RCPT."""
    return {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": "192.0.2.9",
        "client_port": "40001",
        "client_name": "unknown",
        "helo_name": "client.test",
        "instance": "1.1.1",
        "sender": "ann@sender.test",
        "recipient": "ben@example.test",
        "size": "1000",
        **more,
    }


def request(**more: str) -> Request:
    return read_request(attributes(**more))
