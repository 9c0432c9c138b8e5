"""Sessions with a real front door: commands in, replies out, and what was queued and recorded."""

from __future__ import annotations

import smtplib
import threading
from pathlib import Path

import pytest

from gateway.kit.door import Door
from gateway.kit.messages import MessageFactory
from gateway.kit.pytest_plugin import OpenSession
from gateway.pipeline.plan import PipelineError
from gateway.sdk import (
    PROCEED,
    AddHeader,
    Ending,
    Finding,
    Outcome,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Reply,
    Session,
    Stage,
    Verdict,
    annotate,
    disconnect,
    finds,
    quarantine,
    reject,
)
from gateway.spool.spool import State


class Words(Policy):
    """Looks at clients and recipients."""

    name = "words"

    def on_helo(self, session: Session) -> Verdict:
        return disconnect("7.1", "bye", code=554) if session.helo == "spammer.example" else PROCEED

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("1.1", "not here") if recipient.address.local == "nobody" else PROCEED

    def on_message(self, session: Session) -> Verdict:
        if session.client.version == 6:
            return quarantine("who uses that")
        return annotate(AddHeader("X-Client", str(session.client)))


class Heard(Finding):
    """Nothing but that it was found."""


class Learner(Plugin):
    """Hears what became of things, on the loop it was started on."""

    name = "learner"
    Options = PluginOptions
    heard: list[object] = []

    async def start(self) -> None:
        self.heard.append("start")

    async def close(self) -> None:
        self.heard.append("close")

    @finds(Stage.CONNECT)
    async def find(self, session: Session) -> Heard:
        return Heard()

    async def ended(self, ending: Ending) -> None:
        self.heard.append(ending.outcome)


def test_commands_go_in_and_replies_come_out(smtp_session: OpenSession) -> None:
    session = smtp_session("- words", Words)
    assert session.greeting.code == 220
    assert "PIPELINING" in session.hello().text.split("\n")
    assert session.say("MAIL FROM:<ben@sender.example>") == Reply(250, "1.0", "sender ok")
    refused = session.say("RCPT TO:<nobody@example.org>")
    assert refused.status == "5.1.1" and refused.text.startswith("not here (ref ")
    assert session.say("NONSENSE").code == 500
    assert [reply.code for reply in session.heard] == [220, 250, 250, 550, 500]
    assert session.record(refused).outcome is Outcome.REJECTED


def test_commands_can_be_pipelined(smtp_session: OpenSession) -> None:
    session = smtp_session("- words", Words)
    session.hello()
    commands = ["MAIL FROM:<>", "RCPT TO:<nobody@example.org>", "RCPT TO:<anna@example.org>", "DATA"]
    assert [reply.code for reply in session.say_all(*commands)] == [250, 550, 250, 354]
    session.send(b"Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n")
    queued, bye = session.reply(), session.reply()
    assert (queued.code, bye.code) == (250, 221)
    assert session.hung_up
    (message,) = session.queued
    assert message.content.endswith(b"Subject: x\r\n\r\n.dot\r\n")
    assert message.recipients == ("anna@example.org",)


def test_what_was_taken_is_in_the_queue_with_its_record(
    smtp_session: OpenSession, message_factory: MessageFactory
) -> None:
    session = smtp_session("- words", Words)
    reply = session.message(message_factory("Gr\xfc\xdfe\n.dot\n", eight_bit=True), recipients=["a@example.org"])
    record = session.record(reply)
    (queued,) = session.queued
    assert queued.id == record.id and reply.text == f"queued as {record.id}"
    assert queued.message.first("X-Client") == "192.0.2.1" == record.json["client"]["ip"]
    assert queued.content.endswith("Gr\xfc\xdfe\r\n.dot\r\n".encode())
    assert record.edits == (AddHeader("X-Client", "192.0.2.1"),)


def test_a_client_can_come_from_anywhere(smtp_session: OpenSession, message_factory: MessageFactory) -> None:
    session = smtp_session("- words", Words, client="2001:db8::25")
    reply = session.message(message_factory())
    assert session.record(reply).outcome is Outcome.QUARANTINED
    assert [(q.state, q.reason) for q in session.queued] == [(State.QUARANTINE, "who uses that")]
    other = session.door.connect("198.51.100.7")
    assert other.message(message_factory()).positive
    assert [q.state for q in session.queued] == [State.QUARANTINE, State.QUEUED]


def test_any_other_client_can_talk_to_it(smtp_session: OpenSession) -> None:
    door = smtp_session("- words", Words).door
    with smtplib.SMTP(*door.address, timeout=10) as client:
        client.sendmail("ben@sender.example", ["anna@example.org"], b"Subject: x\r\n\r\nHello\r\n")
    assert door.queued[0].message.first("X-Client") == "127.0.0.1"


def test_a_session_that_is_cut_off_has_a_record_too(smtp_session: OpenSession) -> None:
    session = smtp_session("- words", Words)
    refused = session.hello("spammer.example")
    assert refused.code == 554 and session.hung_up
    assert session.record(refused).decided is not None
    assert [record.outcome for record in session.door.records()] == [Outcome.REJECTED]
    with pytest.raises(LookupError, match="no record"):
        session.record("0123456789ABC1")
    with pytest.raises(LookupError, match="refers to nothing"):
        session.record(session.greeting)
    with pytest.raises(ConnectionError):
        session.reply()


def test_a_message_that_was_refused_on_its_way_gives_the_reply_that_did_it(smtp_session: OpenSession) -> None:
    session = smtp_session("- words", Words)
    content = b"Subject: x\r\n\r\nHello\r\n"
    assert session.message(content, recipients=["nobody@example.org", "nobody@example.org"]).code == 550
    assert session.message(content, sender="no address").code == 501
    assert session.message(content, recipients=["anna@elsewhere.example"]).text.startswith("relaying denied")
    assert session.message(content, recipients=["nobody@example.org", "j\xf6rg@example.org"]).code == 250
    assert session.door.connect().message(content, sender="").positive


def test_a_large_message_and_time_that_passes(smtp_session: OpenSession) -> None:
    session = smtp_session([{"greylist": {"when": "always", "delay": "5m"}}])
    content = b"Subject: x\r\n\r\n" + b"0123456789abcdef" * 60 * 16_384 + b"\r\n"
    assert session.message(content).code == 451
    session.door.bench.clock.advance(301)
    assert session.message(content).code == 250
    assert session.queued[0].content.endswith(content)


def test_nothing_is_left_when_it_closes(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    Learner.heard.clear()
    with Door(tmp_path / "spool", "- learner", Learner) as door:
        session = door.connect()
        reply = session.message(b"Subject: x\r\n\r\nHello\r\n")
        session.record(reply)
        half = door.connect()
        half.hello()
        half.say_all("MAIL FROM:<ben@sender.example>", "RCPT TO:<anna@example.org>", "DATA")
        half.send(b"Subject: half")
    assert Learner.heard == ["start", Outcome.ACCEPTED, Outcome.ABORTED, "close"]
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= before
    with pytest.raises(OSError, match=r"."):
        door.connect()


def test_a_pipeline_that_cannot_be_made_leaves_nothing_either(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(PipelineError, match="nonsense"):
        Door(tmp_path / "spool", "- nonsense")
    assert set(threading.enumerate()) <= before
