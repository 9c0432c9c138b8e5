"""The callbacks as pymilter calls them: each has an answer, whatever happens, and replies fit libmilter."""

from __future__ import annotations

from typing import Any

import milter
import pytest

from gateway.guest.dialogue import PROCEED, Answer, Word
from gateway.guest.milter import MilterSession, connection
from gateway.mail.reply import Reply
from gateway.sdk.endpoint import parse_endpoint


class Context:
    """libmilter's side of a connection."""

    def __init__(self, macros: dict[str, str] | None = None) -> None:
        self.replies: list[tuple[Any, ...]] = []
        self.macros = macros or {}

    def setpriv(self, session: Any) -> None:
        pass

    def setreply(self, *reply: Any) -> None:
        self.replies.append(reply)

    def getsymval(self, name: str) -> str | None:
        if self.macros.get(name) == "broken":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")
        return self.macros.get(name)


class Server:
    """As `MilterServer`, as far as a session needs it."""

    def __init__(self, dialogue: Any, *, room: bool = True) -> None:
        self.made, self.room, self.left = dialogue, room, 0

    def dialogue(self) -> Any:
        return self.made

    def enter(self, session: Any) -> bool:
        return self.room

    def leave(self, session: Any) -> None:
        self.left += 1


class Saying:
    """A dialogue that answers everything alike, or raises."""

    def __init__(self, answer: Answer | Exception) -> None:
        self.answer = answer
        self.heard: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def say(*given: Any, **more: Any) -> Answer:
            self.heard.append((name, given))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return say


def session(
    answer: Answer | Exception, *, room: bool = True, macros: dict[str, str] | None = None
) -> tuple[Any, Context, Server]:
    server = Server(Saying(answer), room=room)
    made = MilterSession(server)  # type: ignore[arg-type]
    context = Context(macros)
    made._setctx(context)
    return made, context, server


CALLBACKS = {
    "connect": ("host", 2, ("192.0.2.1", 25)),
    "hello": ("client",),
    "envfrom": ("<a@b.test>", "SIZE=1"),
    "envrcpt": ("<a@b.test>",),
    "data": (),
    "header": ("Subject", b"x"),
    "body": (b"x",),
    "eom": (),
    "abort": (),
    "close": (),
}


@pytest.mark.parametrize("callback", CALLBACKS)
def test_an_exception_in_any_callback_is_a_tempfail(callback: str) -> None:
    made, context, server = session(RuntimeError("a bug"))
    assert getattr(made, callback)(*CALLBACKS[callback]) == milter.TEMPFAIL
    assert context.replies == [("451", "4.3.0", "local trouble, try again later")]
    assert server.left == (1 if callback == "close" else 0)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_answers_are_handed_on(callback: str) -> None:
    for word, code in ((Word.CONTINUE, milter.CONTINUE), (Word.DISCARD, milter.DISCARD), (Word.REJECT, milter.REJECT)):
        made, _, _ = session(Answer(word))
        assert getattr(made, callback)(*CALLBACKS[callback]) == code


def test_replies_have_their_percent_signs_doubled_and_their_lines_apart() -> None:
    made, context, _ = session(Answer(Word.REJECT, Reply(550, "7.1", "100% \x1b\u00fc\nsecond\n")))
    assert made.data() == milter.REJECT
    assert context.replies == [("550", "5.7.1", "100%% ??", "second", " ")]
    made, context, _ = session(Answer(Word.TEMPFAIL, Reply(451, "", "x" * 5000 + "\n" * 100)))
    made.data()
    ((code, status, *lines),) = context.replies
    assert (code, status, len(lines), len(lines[0])) == ("451", None, 32, 900)


def test_a_reply_that_libmilter_does_not_take_is_done_without() -> None:
    made, context, _ = session(Answer(Word.REJECT, Reply(550, "7.1", "no")))

    def refuse(*reply: Any) -> None:
        raise milter.error("cannot set reply")

    context.setreply = refuse  # type: ignore[method-assign]
    assert made.data() == milter.REJECT


def test_without_room_the_mta_is_told_to_try_again() -> None:
    made, context, server = session(PROCEED, room=False)
    assert made.connect("host", 2, ("192.0.2.1", 25)) == milter.TEMPFAIL
    assert context.replies[0][0] == "421"
    assert server.made.heard == []


def test_macros_that_cannot_be_read_are_left_out() -> None:
    made, _, server = session(PROCEED, macros={"i": "QUEUED", "{cipher}": "broken", "{tls_version}": "TLSv1.3"})
    made.data()
    assert server.made.heard == [("data", ({"i": "QUEUED", "{tls_version}": "TLSv1.3"},))]


def test_addresses_of_any_family_are_understood() -> None:
    made, _, server = session(PROCEED)
    made.connect("host", 10, ("2001:db8::1", 25, 0, 0))
    made.connect("localhost", 1, "/run/socket")
    assert [given[:3] for _, given in server.made.heard] == [
        ("host", "2001:db8::1", 25),
        ("localhost", "/run/socket", 0),
    ]


def test_where_to_listen_is_written_as_libmilter_wants_it() -> None:
    written = {
        "inet:8891@127.0.0.1": "inet:8891@127.0.0.1",
        "[::1]:8891": "inet6:8891@::1",
        "unix:/run/m": "unix:/run/m",
    }
    for endpoint, text in written.items():
        assert connection(parse_endpoint(endpoint)) == text
