"""A pymilter class inside Gatepost: what it is called with, and what comes of its codes and changes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk import (
    END,
    AddHeader,
    AddRecipient,
    Body,
    BodyContent,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    MailParameters,
    Message,
    MilterAction,
    MilterReply,
    Notify,
    ReplaceBody,
    Ret,
    Stage,
    Tls,
)
from gateway.sdk.testing import make_message, make_recipient, make_transaction
from plugins.milter.packets import MilterError
from tests.plugins.hosting import MESSAGE, MILTERS, Guest, calls_of, recorded, visit, written


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "record"
    path.touch()
    monkeypatch.setenv("MILTER_RECORD", str(path))
    return path


def milter(name: str) -> dict[str, Any]:
    return {"class": name, "file": str(MILTERS)}


# Callbacks and their arguments


@pytest.mark.parametrize("threads", [0, 8])
def test_callbacks_come_in_the_order_and_with_the_arguments_that_libmilter_gives_them(record, threads):
    reply = visit(milter("Recording") | {"threads": threads})
    assert reply == MilterReply(MilterAction.CONTINUE, "Recording")
    assert recorded(record) == [
        ["connect", "[192.0.2.1]", "AF_INET", ["192.0.2.1", 40000]],
        ["hello", "client.example"],
        ["envfrom", "<ben@sender.example>"],
        ["envrcpt", "<anna@example.org>"],
        ["data"],
        ["header", "Subject", "test"],
        ["header", "X-Two", "a"],
        ["header", "X-Two", "b"],
        ["eoh"],
        ["body", 7, {"bytes": "Hello\r\n"}, {"bytes": "Hello\r\n"}],
        ["eom"],
        ["close"],
    ]


def test_an_address_of_version_6_comes_with_flow_and_scope(record):
    visit(milter("Recording"), client="2001:db8::1")
    assert recorded(record)[0] == ["connect", "[IPv6:2001:db8::1]", "AF_INET6", ["2001:db8::1", 40000, 0, 0]]


def test_parameters_of_mail_and_rcpt_come_behind_the_path(record):
    async def script(guest: Guest) -> None:
        parameters = MailParameters(100, Body.EIGHT_BIT, True, Ret.HEADERS, "ab")
        await guest.mail("", parameters=parameters)
        recipient = make_recipient()
        recipient = type(recipient)(recipient.address, frozenset({Notify.NEVER}), "rfc822;a@b")
        await guest.plugin.on_rcpt(guest.transaction, recipient, None)

    visit(milter("Recording"), script)
    assert recorded(record)[2:4] == [
        ["envfrom", "<>", "SIZE=100", "BODY=8BITMIME", "SMTPUTF8", "RET=HDRS", "ENVID=ab"],
        ["envrcpt", "<anna@example.org>", "NOTIFY=NEVER", "ORCPT=rfc822;a@b"],
    ]


def test_header_values_keep_all_but_one_leading_space_and_folds_are_line_feeds(record):
    content = b"A:  two\r\nB:\ttab\r\nC:none\r\nD:\r\nE: one\r\n\tand two \r\nF: \xff\xc3\xa4\r\n\r\n"
    visit(milter("Recording"), lambda guest: guest.send(content))
    assert [call[1:] for call in recorded(record) if call[0] == "header"] == [
        ["A", " two"],
        ["B", "\ttab"],
        ["C", "none"],
        ["D", ""],
        ["E", "one\n\tand two "],
        ["F", "\\xffä"],
    ]


def test_with_leading_space_values_are_as_they_stand_and_so_are_those_it_adds(record):
    reply = visit(milter("Spaced"), lambda guest: guest.send(b"A:  two\r\nC:none\r\n\r\n"))
    assert [call[1:] for call in recorded(record) if call[0] == "header"] == [["A", "  two"], ["C", "none"]]
    assert reply.edits == (AddHeader("X-Spaced", "two", END, "  "), AddHeader("X-Close", "none", END, ""))


def test_a_body_comes_in_pieces_of_65535_octets_however_it_is_stored(record):
    body = (b"x" * 70 + b"\r\n") * 40_000
    visit(milter("Recording"), lambda guest: guest.send(b"A: 1\r\n\r\n" + body))
    sizes = [call[1] for call in recorded(record) if call[0] == "body"]
    assert set(sizes[:-1]) == {65535}
    assert sum(sizes) == len(body)
    assert len(body) > 2 << 20, "more than one hop"


def test_an_empty_body_is_no_piece(record):
    visit(milter("Recording"), lambda guest: guest.send(b"A: 1\r\n\r\n"))
    assert [call[0] for call in recorded(record)][-4:] == ["header", "eoh", "eom", "close"]


def test_declined_callbacks_are_not_called_and_their_stages_not_asked_for(record):
    guest = Guest(milter("Sparing"))
    assert guest.wanted == {Stage.CONNECT, Stage.MAIL, Stage.RCPT, Stage.MESSAGE}
    reply = visit(milter("Sparing"))
    assert reply.edits == (AddHeader("X-Sparing", "yes", END),)
    assert [call[0] for call in recorded(record)] == (
        ["connect", "envfrom", "envrcpt", "header", "header", "header", "body", "eom", "close"]
    )


def test_octets_are_given_to_those_who_want_octets(record):
    visit(milter("Sparing"), lambda guest: guest.send(b"A: \xff\r\n\r\n"))
    assert ["header", "A", {"bytes": "ÿ"}] in recorded(record)
    assert ["envfrom", {"bytes": "<ben@sender.example>"}] in recorded(record)


def test_calls_without_an_answer_wait_for_the_next_with_one_and_keep_their_order(record):
    async def script(guest: Guest) -> None:
        assert recorded(record) == []
        assert (await guest.mail()).action is MilterAction.SKIPPED
        assert recorded(record) == []
        await guest.rcpt()
        assert [call[0] for call in recorded(record)] == ["connect", "envfrom", "envrcpt"]

    visit(milter("Sparing"), script)
    assert [call[0] for call in recorded(record)][3:] == ["abort", "close"]


def test_what_waits_is_called_at_the_end_of_the_session_at_the_latest(record):
    async def script(guest: Guest) -> None:
        await guest.mail()

    visit(milter("Sparing"), script)
    assert [call[0] for call in recorded(record)] == ["connect", "envfrom", "abort", "close"]


def test_calls_do_not_wait_in_any_number(record):
    async def script(guest: Guest) -> None:
        for _ in range(200):
            await guest.mail()
        assert len(recorded(record)) > 100
        assert len(guest.plugin._visits[guest.session.id]._waiting) <= 64

    visit(milter("Sparing"), script)


def test_plain_milter_runs_too(tmp_path, capsys):
    path = tmp_path / "plain.py"
    path.write_text("import Milter\nclass Plain(Milter.Milter):\n    def log(self, *msg):\n        print(*msg)\n")
    assert visit({"class": "Plain", "file": str(path)}).action is MilterAction.CONTINUE
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "connect from [192.0.2.1] at ('192.0.2.1', 40000)"
    assert said[-2:] == ["eom", "close"]


def test_every_macro_that_is_known_can_be_had_at_once_and_fixed_ones_come_first(tmp_path):
    options = written(
        tmp_path,
        """
        def envrcpt(self, recipient, *parameters):
            names = ("j", "{client_addr}", "{daemon_name}", "{tls_version}", "{rcpt_addr}", "i", "{nobody}", "")
            calls.append([self.getsymval(name) for name in names])
            return Milter.CONTINUE
        """,
    )
    visit(options | {"macros": {"daemon_name": "EDGE"}}, tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    (values,) = _calls(options)
    assert values[:5] == ["mx.example.org", "192.0.2.1", "EDGE", "TLSv1.3", "anna@example.org"]
    assert values[5].startswith("TEST")
    assert values[6:] == [None, None]


def _calls(options: dict[str, str]) -> list:
    path = Path(options["file"]).absolute()
    return next(m.calls for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(path))


# Transactions and sessions


def test_a_message_that_comes_to_nothing_is_aborted_before_the_next(record):
    async def script(guest: Guest) -> None:
        await guest.mail()
        await guest.rcpt()
        await guest.helo("again.example")
        await guest.mail()
        await guest.mail()

    visit(milter("Recording"), script)
    assert [call[0] for call in recorded(record)] == (
        ["connect", "hello", "envfrom", "envrcpt", "abort", "hello", "envfrom", "abort", "envfrom", "abort", "close"]
    )


def test_after_connect_came_again_there_is_a_new_instance(record):
    async def script(guest: Guest) -> None:
        await guest.connect()
        await guest.helo()

    visit(milter("Recording"), script)
    assert [call[0] for call in recorded(record)] == ["connect", "hello", "close", "connect", "hello", "close"]


def test_what_it_was_not_asked_at_it_hears_later_and_has_no_say_in_recipients_of_others(tmp_path):
    options = written(
        tmp_path,
        """
        def connect(self, *arguments):
            calls.append("connect")
            return Milter.CONTINUE

        def envfrom(self, sender, *parameters):
            calls.append(sender)
            return Milter.CONTINUE

        def envrcpt(self, recipient, *parameters):
            calls.append(recipient)
            return Milter.REJECT
        """,
    )

    async def run() -> MilterReply:
        guest = Guest(options, helo="client.example")
        guest.transaction = make_transaction(guest.session, recipients=["a@example.org", "b@example.org"])
        return await guest.message()

    assert asyncio.run(run()).action is MilterAction.CONTINUE
    assert _calls(options) == ["connect", "<ben@sender.example>", "<a@example.org>", "<b@example.org>"]


def test_sessions_have_instances_of_their_own(tmp_path):
    options = written(
        tmp_path,
        """
        def __init__(self, word="none"):
            self.word = word
            self.names = []

        def hello(self, name):
            self.names.append(name)
            calls.append((self.word, tuple(self.names)))
            return Milter.CONTINUE
        """,
    )

    async def run() -> None:
        first = Guest(options | {"options": {"word": "w"}})
        guests = [first, Guest({}, first), Guest({}, first)]
        await asyncio.gather(*(guest.helo(f"h{n}.example") for n, guest in enumerate(guests)))

    asyncio.run(run())
    assert sorted(_calls(options)) == [("w", ("h0.example",)), ("w", ("h1.example",)), ("w", ("h2.example",))]


# Codes


@pytest.mark.parametrize("where", ["hello", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"])
@pytest.mark.parametrize("word", ["accept", "reject", "tempfail", "discard"])
def test_a_code_settles_what_it_settles_and_no_callback_comes_after_it(record, word, where):
    asked = f"{word}.{where}"
    content = b"A: 1\r\nB: " + asked.encode() + b"\r\nC: 2\r\n\r\n" + b"x" * 70_000 if where == "header" else MESSAGE

    async def script(guest: Guest) -> list[MilterAction]:
        replies = [await guest.helo(f"{asked}.example" if where == "hello" else "client.example")]
        replies.append(await guest.mail(f"{asked}@x.example" if where == "envfrom" else "ben@sender.example"))
        late = where in ("data", "eoh", "body", "eom", "envrcpt")
        replies.append(await guest.rcpt(f"{asked}@example.org" if late else "anna@example.org"))
        replies.append(await guest.data())
        replies.append(await guest.message(content))
        return [reply.action for reply in replies]

    actions = visit(milter("Obedient"), script)
    calls = [call for call in recorded(record) if call[0] not in ("abort", "close")][2:]
    said, skipped = MilterAction(word), MilterAction.SKIPPED
    assert calls[-1][0] == where or (where == "envrcpt" and word in ("reject", "tempfail"))
    if where == "hello":
        assert actions == [said] + [skipped if word == "accept" else said] * 4, "it stands for the whole session"
    elif where == "envrcpt" and word in ("reject", "tempfail"):
        assert actions == [MilterAction.CONTINUE] * 2 + [said] + [MilterAction.CONTINUE] * 2, "for this recipient only"
    else:
        stage = ["hello", "envfrom", "envrcpt", "data"].index(where) if where in ("envfrom", "envrcpt", "data") else 4
        assert actions == [MilterAction.CONTINUE] * stage + [said] + [skipped] * (4 - stage)


@pytest.mark.parametrize(("where", "seen"), [("header", ["A", "B"]), ("body", ["A", "B", "C"])])
def test_skip_ends_a_row_of_callbacks_and_nothing_else(record, where, seen):
    content = b"A: 1\r\nB: skip.%s\r\nC: 2\r\n\r\n" % where.encode() + b"x" * 3_000_000
    reply = visit(milter("Obedient"), lambda guest: guest.send(content))
    calls = recorded(record)
    assert reply.action is MilterAction.CONTINUE
    assert [call[1] for call in calls if call[0] == "header"] == seen
    assert len([call for call in calls if call[0] == "body"]) == (1 if where == "body" else 46)
    assert calls[-2][0] == "eom"


def test_after_a_message_that_was_settled_there_is_another(record):
    async def script(guest: Guest) -> list[MilterAction]:
        first = await guest.send(MESSAGE, "reject.data@example.org")
        second = await guest.send()
        return [first.action, second.action]

    assert visit(milter("Obedient"), script) == [MilterAction.SKIPPED, MilterAction.CONTINUE]


@pytest.mark.parametrize(
    ("word", "reply"),
    [
        ("plain", (MilterAction.REJECT, 550, "", "no status")),
        ("status", (MilterAction.REJECT, 550, "7.13", "a status")),
        ("lines", (MilterAction.REJECT, 550, "7.13", "line one\nline two\nline three")),
        ("percent", (MilterAction.REJECT, 550, "7.13", "100% sure")),
        ("later", (MilterAction.TEMPFAIL, 450, "7.13", "later")),
        ("contrary", (MilterAction.REJECT, 0, "", "")),
        ("closing", (MilterAction.CONNECTION_FAIL, 421, "7.0", "closing")),
    ],
)
def test_a_reply_of_its_own_is_used_where_its_class_agrees_with_the_code(record, word, reply):
    found = visit(milter("Replying"), lambda guest: guest.send(MESSAGE, f"{word}@example.org"))
    assert (found.action, found.code, found.detail, found.text) == reply


# Changes


@pytest.mark.parametrize("threads", [0, 8])
def test_every_kind_of_change_becomes_an_edit_in_its_order(record, threads):
    content = b"Subject: a\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Gone: a\r\nX-Gone-Too: b\r\n\r\nold\r\n"
    options = milter("Editing") | {"threads": threads}
    reply = visit(options, lambda guest: guest.send(content, "anna@example.org", "gone@example.org"))
    *edits, body = reply.edits
    assert edits == [
        AddHeader("X-Last", "last", END),
        AddHeader("X-First", "first", 0),
        AddHeader("X-Second", "second", 1),
        AddHeader("X-Folded", "one\n\ttwo", END),
        ChangeHeader("Subject", 1, "changed"),
        ChangeHeader("X-Twice", 2, "second of two"),
        DeleteHeader("X-Gone", 1),
        DeleteHeader("X-Gone-Too", 1),
        AddHeader("X-New", "was not there", END),
        AddHeader("X-Twice", "beyond", END),
        ChangeSender(make_recipient("changed@sender.example").address),
        AddRecipient(make_recipient("added@example.org")),
        DeleteRecipient(make_recipient("gone@example.org").address),
    ]
    assert isinstance(body, ReplaceBody)
    assert body.body.size == len(b"replaced\r\nin two\r\n")


def test_calls_are_made_by_threads_or_on_the_event_loop(tmp_path):
    body = "def hello(self, name):\n    calls.append(threading.current_thread().name)\n    return Milter.CONTINUE"

    async def script(guest: Guest) -> list[Any]:
        return calls_of(guest)

    (threaded,) = visit(written(tmp_path, body), script)
    (on_the_loop,) = visit(written(tmp_path, body) | {"threads": 0}, script)
    assert (threaded, on_the_loop) == ("milter-Mine-1", "MainThread")


class Slow(BodyContent):
    """Content that comes from somewhere else than memory."""

    async def blocks(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        async for block in super().blocks():
            yield block


def test_on_the_event_loop_content_that_has_to_be_waited_for_is_told_once(record):
    async def script(guest: Guest) -> list[MilterReply]:
        kept = make_message(MESSAGE)
        slow = Message(kept.fields, Slow(MESSAGE))
        return [await guest.send(MESSAGE), await guest.send(slow)]

    first, second = visit(milter("Recording") | {"threads": 0}, script)
    assert first == second == MilterReply(MilterAction.CONTINUE, "Recording")
    told = [call for call in recorded(record) if call[0] not in ("connect", "hello", "close")]
    assert told[: len(told) // 2] == told[len(told) // 2 :]


def test_on_the_event_loop_a_new_body_may_be_as_large_as_body_size_says(tmp_path):
    options = written(
        tmp_path,
        """
        def eom(self):
            for _ in range(20):
                self.replacebody(b"x" * 50_000)
            return Milter.CONTINUE
        """,
    )
    reply = visit(options | {"threads": 0, "body_size": 1_000_000})
    (body,) = reply.edits
    assert isinstance(body, ReplaceBody) and body.body.size == 1_000_000
    with pytest.raises(MilterError, match="more than 999999 octets"):
        visit(options | {"threads": 0, "body_size": 999_999})


def test_quarantine_stands_beside_the_answer(record):
    reply = visit(milter("Quarantining"))
    assert (reply.action, reply.quarantine) == (MilterAction.CONTINUE, "it is odd")
    assert reply.edits == (AddHeader("X-Odd", "yes", END),)


def test_changes_of_a_message_that_is_refused_are_not_made(tmp_path):
    options = written(
        tmp_path,
        """
        def eom(self):
            self.addheader("X-A", "b")
            return Milter.REJECT
        """,
    )
    assert visit(options) == MilterReply(MilterAction.REJECT, "Mine")


# Loading


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"class": "no_such_module_at_all:Mine"}, "there is no module no_such_module_at_all"),
        ({"class": "json:Mine"}, "json has no Mine"),
        ({"class": "json:JSONDecoder"}, "JSONDecoder in json is no subclass of Milter.Base"),
        ({"class": "json:loads"}, "loads in json is no subclass of Milter.Base"),
        ({"class": "Mine"}, "expected package.module:Class, or a file beside the class"),
        ({"class": "Mine", "file": "/nowhere/mine.py"}, "there is no file /nowhere/mine.py"),
        ({"class": "a:Mine", "file": "/nowhere/mine.py"}, "with a file, class is the name of the class alone"),
        ({"class": "Milter:Base", "options": {"word": 1}}, "Base does not take these options"),
    ],
)
def test_a_class_that_cannot_be_had_is_refused_when_it_is_loaded(options, problem):
    with pytest.raises(ValueError, match=problem):
        Guest(options)


@pytest.mark.parametrize(
    ("text", "problem"), [("1/0", "ZeroDivisionError"), ("(", "SyntaxError"), ("exit(3)", "SystemExit: 3")]
)
def test_what_importing_raises_is_in_the_error(tmp_path, text, problem):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=rf"importing .*bad\.py failed: {problem}"):
        Guest({"class": "Mine", "file": str(tmp_path / "bad.py")})


def test_without_pymilter_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "Milter", None)
    with pytest.raises(ValueError, match=r"install gatepost\[milter\]"):
        Guest({"class": "json:Mine"})


def test_an_installed_class_is_named_by_its_module():
    assert visit({"class": "Milter:Base"}) == MilterReply(MilterAction.CONTINUE, "Base")
    assert Guest({"class": "Milter:Base"}).wanted == {Stage.MESSAGE}, "it declines everything else"


def test_what_a_class_declines_says_nothing_of_those_derived_from_it(tmp_path):
    visit({"class": "Milter:Base"})
    visit({"class": "Milter:Milter"})
    path = tmp_path / "derived.py"
    path.write_text("import Milter\nclass Derived(Milter.Milter):\n    def data(self):\n        return Milter.REJECT\n")
    assert Stage.DATA in Guest({"class": "Derived", "file": str(path)}).wanted


def test_a_file_is_read_again_for_each_pipeline_that_is_loaded(tmp_path):
    for word in ("one", "two"):
        options = written(
            tmp_path, f"def eom(self):\n    self.addheader('X-Word', '{word}')\n    return Milter.CONTINUE"
        )
        assert visit(options).edits == (AddHeader("X-Word", word, END),)
