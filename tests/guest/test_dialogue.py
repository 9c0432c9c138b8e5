"""A milter's callbacks and what becomes of them, without libmilter: a thread of the test's plays its part."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.guest import dialogue as module
from gateway.guest.changes import Changes
from gateway.guest.content import SPILL, MailBuffer, TooBig
from gateway.guest.dialogue import PROCEED, TROUBLE, Answer, Dialogue, Options, Word
from gateway.guest.ruling import SplitRefused
from gateway.mail.edit import AddHeader, BodyContent, DeleteRecipient, ReplaceBody
from gateway.sdk import PROCEED as GO_ON
from gateway.sdk import Stage
from gateway.sdk.testing import make_recipient
from gateway.sdk.verdict import annotate, discard, disconnect, quarantine, reject
from tests.guest.setting import Setting

DEADLINES = dict.fromkeys(Stage, 10.0)
BEN = make_recipient("ben@example.test")


class FakeMta:
    """The MTA's side: takes notes, and does not let us do what `forbids` names."""

    leads = True

    def __init__(self, *, forbids: str = "", breaks: bool = False) -> None:
        self.forbids, self.breaks = forbids, breaks
        self.changes: list[Changes] = []
        self.bodies: list[bytes] = []
        self.aside: list[str] = []
        self.progressed = 0

    def missing(self, changes: Changes, *, quarantine: bool) -> str:
        return self.forbids

    def make(self, changes: Changes, body: Callable[[], bytes | None]) -> None:
        if self.breaks:
            raise OSError("the MTA has gone")
        self.changes.append(changes)
        while changes.body is not None and (block := body()) is not None:
            self.bodies.append(block)

    def quarantine(self, reason: str) -> None:
        self.aside.append(reason)

    def progress(self) -> None:
        self.progressed += 1


def converse(setting: Setting, talk: Callable[[Dialogue], Any], **options: Any) -> Any:
    """Have `talk` in a thread of its own, as libmilter would; the dialogue is closed at the end."""

    async def main() -> Any:
        given = {"deadlines": DEADLINES, "message_size": 1 << 20, "header_size": 4096, **options}
        dialogue = Dialogue(setting.host, Options("inet:1", "mx.test", **given), asyncio.get_running_loop())
        try:
            return await asyncio.to_thread(talk, dialogue)
        finally:
            await asyncio.to_thread(dialogue.close)
            await setting.pipeline.close()

    return asyncio.run(main())


def hand_in(
    dialogue: Dialogue, mta: FakeMta, *, body: bytes = b"Hello.\r\n", to: tuple[str, ...] = ("<ben@example.test>",)
) -> Answer:
    dialogue.connect("host.test", "192.0.2.9", 40001, {"{daemon_name}": "smtpd"})
    dialogue.hello("client.test", {"{tls_version}": "TLSv1.3", "{cipher}": "TLS_AES"})
    dialogue.envfrom("<ann@sender.test>", ("SIZE=100",), {})
    for recipient in to:
        dialogue.envrcpt(recipient, (), {"i": "QUEUED1"})
    dialogue.data({"i": "QUEUED1"})
    dialogue.header("Subject", b" a\n b", leads=True)
    dialogue.body(body)
    return dialogue.eom(mta, {"i": "QUEUED1"})


def record(setting: Setting) -> dict[str, Any]:
    (found,) = setting.records.by_id.values()
    return found


def test_what_the_mta_says_is_what_policies_see() -> None:
    seen: dict[str, Any] = {}

    def look(txn: Any, message: Any) -> Any:
        seen["session"] = txn.session
        seen["fields"] = [field.raw for field in message.fields]
        return GO_ON

    setting = Setting(message=look)
    assert converse(setting, lambda d: hand_in(d, FakeMta())) == PROCEED
    session = seen["session"]
    assert (str(session.client), session.client_port, session.name, session.listener) == (
        "192.0.2.9",
        40001,
        "host.test",
        "smtpd",
    )
    assert (session.helo, session.tls.version, session.trusted) == ("client.test", "TLSv1.3", False)
    assert seen["fields"] == [b"Subject: a\r\n b\r\n"]
    assert record(setting)["mta"] == {"through": "milter", "queue_id": "QUEUED1"}
    assert record(setting)["size"] == len(b"Subject: a\r\n b\r\n\r\nHello.\r\n")


def test_who_logged_in_or_may_relay_is_trusted_and_a_forged_name_is_none() -> None:
    seen: list[tuple[bool, str]] = []
    setting = Setting(mail=lambda txn: seen.append((txn.session.trusted, txn.session.name)) or GO_ON)

    def talk(d: Dialogue) -> None:
        d.connect("forged.test", "192.0.2.9", 1, {"{client_resolve}": "FORGED"})
        d.envfrom("<>", (), {"{auth_authen}": "ann"})
        d.connect("[192.0.2.1]", "192.0.2.1", 1, {})
        d.envfrom("<>", (), {})
        d.connect("localhost", "/run/socket", 0, {})
        d.envfrom("<>", (), {})
        d.connect("unknown", "inet6:unknown", 0, {})
        d.envfrom("<>", (), {})
        d.connect("a.test", "IPv6:::ffff:192.0.2.1", 1, {})
        d.envfrom("<>", (), {})

    converse(setting, talk)
    assert seen == [(True, ""), (True, ""), (False, "localhost"), (False, ""), (True, "a.test")]
    assert [r["client"]["ip"] for r in setting.records.by_id.values()] == [
        "192.0.2.9",
        "192.0.2.1",
        "127.0.0.1",
        "0.0.0.0",
        "192.0.2.1",
    ]


def test_edits_are_handed_over_and_recorded_and_a_body_comes_in_blocks() -> None:
    body = BodyContent(b"x" * (3 << 20))
    setting = Setting(message=lambda txn, message: annotate(AddHeader("X-A", "1"), ReplaceBody(body)))
    mta = FakeMta()
    assert converse(setting, lambda d: hand_in(d, mta)) == PROCEED
    assert b"".join(mta.bodies) == b"x" * (3 << 20)
    assert [edit["edit"] for edit in record(setting)["edits"]] == ["AddHeader", "ReplaceBody"]


def test_recipients_are_taken_off_by_the_name_that_the_mta_gave_them() -> None:
    setting = Setting(
        refused=SplitRefused.DISCARD,
        message=lambda txn, message: reject("7.1", "no").only(txn.recipients[:1]),
    )
    mta = FakeMta()
    assert converse(setting, lambda d: hand_in(d, mta, to=("<Ben@Example.test>", "<eva@example.test>"))) == PROCEED
    assert mta.changes[0].deleted == ("<Ben@Example.test>",)
    setting = Setting(message=lambda txn, message: annotate(DeleteRecipient(BEN.address)))
    mta = FakeMta()
    converse(setting, lambda d: hand_in(d, mta))
    assert mta.changes[0].deleted == ("<ben@example.test>",)


def test_a_recipient_who_was_given_in_other_letters_too_is_taken_off_by_all_names_of_his() -> None:
    """Postfix and Sendmail compare names octet by octet: what is not named to them gets the message all the same."""

    def refuse_once(txn: Any, recipient: Any) -> Any:
        return reject("7.1", "no") if recipient.address.local == "bEn" else GO_ON

    setting = Setting(rcpt=refuse_once, message=lambda txn, message: annotate(DeleteRecipient(BEN.address)))
    mta = FakeMta()
    to = ("<bEn@example.test>", "<Ben@Example.test>", "<ben@example.test>", "<eva@example.test>", "<ben@example.test>")
    assert converse(setting, lambda d: hand_in(d, mta, to=to)) == PROCEED
    assert mta.changes[0].deleted == ("<Ben@Example.test>", "<ben@example.test>")


def test_discard_and_quarantine_are_the_mtas_to_do() -> None:
    setting = Setting(message=lambda txn, message: discard("gone"))
    assert converse(setting, lambda d: hand_in(d, FakeMta())) == Answer(Word.DISCARD)
    assert record(setting)["outcome"] == "discarded"
    setting = Setting(rcpt=lambda txn, recipient: quarantine("odd"))
    mta = FakeMta()
    assert converse(setting, lambda d: hand_in(d, mta)) == PROCEED
    assert mta.aside == ["odd"]
    assert record(setting)["outcome"] == "quarantined"


def test_what_the_mta_does_not_allow_defers_the_message_and_nothing_was_begun() -> None:
    setting = Setting(message=lambda txn, message: annotate(AddHeader("X-A", "1")))
    mta = FakeMta(forbids="add header fields")
    answer = converse(setting, lambda d: hand_in(d, mta))
    assert (answer.word, answer.reply.code) == (Word.TEMPFAIL, 451)
    assert mta.changes == []
    assert (record(setting)["outcome"], record(setting)["edits"]) == ("deferred", [])


def test_an_mta_that_goes_in_the_middle_of_edits_leaves_a_deferred_message() -> None:
    setting = Setting(message=lambda txn, message: annotate(AddHeader("X-A", "1")))

    def talk(d: Dialogue) -> None:
        with pytest.raises(OSError, match="gone"):
            hand_in(d, FakeMta(breaks=True))
        assert not d.busy

    converse(setting, talk)
    assert (record(setting)["outcome"], record(setting)["reply"]) == ("deferred", str(TROUBLE))


def test_sizes_are_bounded_and_the_client_hears_of_it_at_the_end() -> None:
    for options, text in (
        ({"message_size": 9000}, "message is too big"),
        ({"header_size": 10}, "header section is too big"),
    ):
        setting = Setting(message=lambda txn, message: 1 / 0)
        answer = converse(setting, lambda d: hand_in(d, FakeMta(), body=b"x" * 10_000), **options)
        assert (answer.word, answer.reply.code) == (Word.REJECT, 552)
        assert answer.reply.text.startswith(f"{text} (ref ")
        assert record(setting)["outcome"] == "rejected"


def test_a_full_disk_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MailBuffer, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MailBuffer, "add_body", full)
    setting = Setting()
    answer = converse(setting, lambda d: hand_in(d, FakeMta()))
    assert (answer.word, answer.reply.code) == (Word.TEMPFAIL, 451)
    assert record(setting)["outcome"] == "deferred"


def test_malformed_addresses_are_refused_and_the_session_goes_on() -> None:
    def talk(d: Dialogue) -> None:
        d.connect("host.test", "192.0.2.9", 1, {})
        assert d.envfrom("<a@-b->", (), {}).reply.code == 501
        assert d.envfrom("<ann@sender.test>", (), {}) == PROCEED
        assert d.envrcpt("<a@-b->", (), {}).reply.code == 501
        assert d.envrcpt("<ben@example.test>", (), {}) == PROCEED

    setting = Setting()
    converse(setting, talk)
    assert [r["address"] for r in record(setting)["recipients"]] == ["ben@example.test"]


def test_hanging_up_is_421_or_521_and_other_refusals_are_neither() -> None:
    verdicts = iter([disconnect("7.0", "go"), disconnect("7.0", "go", code=554), reject("7.0", "no", code=521)])
    setting = Setting(mail=lambda txn: next(verdicts))

    def talk(d: Dialogue) -> list[tuple[Word, int]]:
        d.connect("host.test", "192.0.2.9", 1, {})
        answers = [d.envfrom("<>", (), {}) for _ in range(3)]
        return [(answer.word, answer.reply.code) for answer in answers if answer.reply]

    assert converse(setting, talk) == [(Word.TEMPFAIL, 421), (Word.REJECT, 521), (Word.REJECT, 550)]


def test_callbacks_out_of_order_are_errors_and_leave_nothing_behind() -> None:
    def talk(d: Dialogue) -> None:
        for callback in (
            lambda: d.hello("x", {}),
            lambda: d.envfrom("<>", (), {}),
            lambda: d.envrcpt("<a@b.test>", (), {}),
            lambda: d.data({}),
            lambda: d.body(b"x"),
            lambda: d.eom(FakeMta(), {}),
        ):
            with pytest.raises(RuntimeError):
                callback()
        d.abort()
        d.close()
        d.close()

    setting = Setting()
    converse(setting, talk)
    assert setting.records.by_id == {}


def test_a_pipeline_that_hangs_is_not_waited_for_and_the_mta_hears_that_we_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PROGRESS", 0.01)
    monkeypatch.setattr(module, "_MARGIN", 0.0)
    free = threading.Event()

    def hang(txn: Any, message: Any) -> Any:
        free.wait(20)
        return GO_ON

    setting = Setting(message=hang)
    mta = FakeMta()

    def talk(d: Dialogue) -> None:
        monkeypatch.setattr(module, "_END", 20.0)
        timer = threading.Timer(0.2, free.set)
        timer.start()
        with pytest.raises(TimeoutError):
            hand_in(d, mta)
        timer.join()
        assert not d.busy
        assert d.envfrom("<ann@sender.test>", (), {}) == PROCEED, "the session goes on"

    converse(setting, talk, deadlines={**DEADLINES, Stage.MESSAGE: 0.1})
    assert mta.progressed >= 5
    assert next(r["outcome"] for r in setting.records.by_id.values()) == "deferred"


def test_a_large_body_is_in_a_file_without_a_name_and_read_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer = MailBuffer(1 << 30, 1000)
    buffer.add_field("Subject", b"caf\xe9", lead=b" ")
    whole = b"Subject: caf\xe9\r\n\r\n"
    for n in range(20):
        chunk = bytes([n]) * 65_535
        buffer.add_body(chunk)
        whole += chunk
    assert list(tmp_path.iterdir()) == []
    assert len(buffer._memory) <= SPILL

    async def read() -> bytes:
        return b"".join([block async for block in buffer.blocks()])

    assert asyncio.run(read()) == whole == asyncio.run(read())
    assert (buffer.size, buffer.eight_bit) == (len(whole), True)
    fd = buffer._file.fileno()
    assert os.fstat(fd).st_size > SPILL
    buffer.close()
    with pytest.raises(OSError, match="gone"):
        buffer._read(0)
    buffer.add_body(b"late")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_what_is_too_big_is_not_taken() -> None:
    buffer = MailBuffer(100, 50)
    buffer.add_field("A", b"x" * 30, lead=b"")
    with pytest.raises(TooBig, match="header section"):
        buffer.add_field("B", b"x" * 30, lead=b"")
    buffer.add_body(b"x" * 60)
    with pytest.raises(TooBig, match="message"):
        buffer.add_body(b"x" * 10)
    assert buffer.size <= 100
    buffer.close()
