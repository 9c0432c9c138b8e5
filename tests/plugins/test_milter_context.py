"""What a milter class can change, when, and how much; and what its context refuses as libmilter's does."""

from __future__ import annotations

import asyncio
from typing import Any

import Milter
import pytest

from gateway.sdk import AddHeader, MilterAction, MilterReply
from gateway.sdk.running import RUNNING
from plugins.milter.context import Context, Limits
from plugins.milter.packets import MilterError
from tests.plugins.hosting import CALLBACKS, MESSAGE, Guest, calls_of, one, visit, written


def fails(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Milter.error, match=words):
        visit(options)


class Told:
    """Stands for the look-up that runs."""

    def __init__(self) -> None:
        self.begun = self.gets_on = 0

    def progress(self) -> None:
        self.gets_on += 1

    def edit_begun(self) -> None:
        self.begun += 1


def run_eom(options: dict[str, Any]) -> tuple[Told, Any]:
    told = Told()

    async def run() -> Any:
        RUNNING.set(told)
        guest = Guest(options)
        try:
            return await guest.send()
        except Exception as error:
            return error

    return told, asyncio.run(run())


def eom(body: str) -> str:
    return one("eom", body.replace("\n", "\n    "))


def test_the_first_change_is_made_known_at_once_and_only_once(tmp_path):
    told, reply = run_eom(written(tmp_path, eom("self.addheader('A', 'b')\nself.addheader('C', 'd')\nreturn 0")))
    assert (told.begun, len(reply.edits)) == (1, 2)


def test_without_a_change_nothing_has_begun(tmp_path):
    told, reply = run_eom(written(tmp_path, eom("return Milter.ACCEPT")))
    assert (told.begun, reply) == (0, MilterReply(MilterAction.ACCEPT, "Mine"))


def test_a_change_and_then_a_failure_is_known_to_have_begun(tmp_path):
    told, error = run_eom(written(tmp_path, eom("self.quarantine('odd')\n1 / 0")))
    assert told.begun == 1
    assert isinstance(error, ZeroDivisionError)


def test_progress_said_a_million_times_floods_nobody(tmp_path):
    told, reply = run_eom(written(tmp_path, eom("for _ in range(100_000): self.progress()\nreturn 0")))
    assert 1 <= told.gets_on < 20_000
    assert reply.action is MilterAction.CONTINUE


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("for n in range(10**9): self.addheader('A', str(n))", "too many changes"),
        ("for n in range(10**9): self.chgheader('Subject', 1, '')", "too many changes"),
        ("for n in range(10**9): self.addrcpt('<a@example.org>')", "too many changes"),
        ("self.addheader('A', 'b' * (1 << 21))", "octets of header fields"),
        ("self.replacebody(b'x' * 2000)", "by more than 1000 octets"),
        ("for n in range(10**9): self.replacebody(b'x')", "by more than 1000 octets"),
    ],
)
@pytest.mark.parametrize("wrap", ["{}", "try:\n    {}\nexcept Exception: pass"])
def test_changes_beyond_the_limits_are_a_failure_even_if_it_catches_that(tmp_path, wrap, body, problem):
    options = written(tmp_path, eom(wrap.format(body) + "\nreturn Milter.CONTINUE")) | {"body_size": 1000}
    _, error = run_eom(options)
    assert isinstance(error, MilterError)
    assert problem in str(error)


def test_empty_pieces_of_a_body_in_any_number_are_an_empty_body(tmp_path):
    _, reply = run_eom(written(tmp_path, eom("for _ in range(100_000): self.replacebody(b'')\nreturn 0")))
    assert reply.edits[0].body.size == 0


@pytest.mark.parametrize(
    "body",
    ["self.addrcpt('no address at all')", "self.chgfrom('<a@b')", "self.addheader('no name', 'x')", "self.delrcpt('')"],
)
def test_a_change_that_makes_no_sense_is_a_failure_and_nothing_is_made_of_the_others(tmp_path, body):
    told, error = run_eom(written(tmp_path, eom(f"self.addheader('A', 'b')\n{body}\nreturn 0")))
    assert isinstance(error, MilterError)
    assert told.begun == 1


def test_a_value_cannot_break_out_of_its_field(tmp_path):
    _, reply = run_eom(written(tmp_path, eom(r"self.addheader('A', 'b\r\nBcc: x\r\n\r\nbody\x01')" + "\nreturn 0")))
    (edit,) = reply.edits
    assert isinstance(edit, AddHeader)
    assert edit.value == "b\n\tBcc: x\n\tbody?"


CHANGES = (
    "addheader('A', 'b')",
    "chgheader('Subject', 1, 'b')",
    "addrcpt('<a@example.org>')",
    "delrcpt('<a@example.org>')",
    "chgfrom('<a@example.org>')",
    "replacebody(b'x')",
    "quarantine('odd')",
)


@pytest.mark.parametrize("callback", [name for name in CALLBACKS if name != "eom"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_for_the_end_of_the_message_only(tmp_path, callback, change):
    fails(written(tmp_path, one(callback, f"self.{change}; return 0")), "cannot ")


def test_a_change_from_a_thread_of_its_own_comes_too_late(tmp_path):
    options = written(
        tmp_path,
        """
        def eom(self):
            mine = self
            calls.append(lambda: mine.addheader("A", "b"))
            return Milter.CONTINUE
        """,
    )

    async def script(guest: Guest) -> None:
        assert (await guest.send()).edits == ()
        with pytest.raises(Milter.error, match="cannot add header"):
            calls_of(guest)[0]()

    visit(options, script)


def context() -> Context:
    made = Context(Milter.error, Limits(10, 100), {})
    made.setpriv("mine")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ("250", "2.0.0", "ok"),
        ("55", "5.0.0", "x"),
        ("5500", None, "x"),
        ("\N{ARABIC-INDIC DIGIT FIVE}50", None, "x"),
        ("550", "4.0.0", "x"),
        ("550", "5.0", "x"),
        ("550", "5.0.0000", "x"),
        ("550", "5.7.1", "a\r\nb"),
        ("550", "5.7.1", "a", "b\n250 ok"),
        ("550", "5.7.1", "x" * 981),
        ("550", "5.7.1", *["x"] * 33),
    ],
)
def test_a_reply_that_libmilter_would_not_take_is_refused(arguments):
    with pytest.raises(Milter.error, match="cannot set reply"):
        context().setreply(*arguments)


@pytest.mark.parametrize("arguments", [(550, "5.7.1", "x"), ("550", 5, "x"), ("550", "5.7.1", b"x"), (None, None, "x")])
def test_arguments_of_the_wrong_type_are_type_errors_as_in_pymilter(arguments):
    with pytest.raises(TypeError):
        context().setreply(*arguments)


def test_text_with_a_nul_is_a_value_error_as_in_pymilter():
    with pytest.raises(ValueError, match="embedded null"):
        context().setreply("550", None, "a\0b")


def test_several_lines_without_a_status_get_one_as_in_libmilter():
    made = context()
    made.setreply("450", None, "a", "b")
    assert made.take_reply("5") is None
    assert made.take_reply("4").detail == "0.0"
    assert made.take_reply("4") is None


def test_a_milter_keeps_its_own_things_in_the_context():
    made = context()
    assert made.setpriv("other") == "mine"
    assert made.getpriv() == "other"


def test_message_is_left_alone_by_a_milter_that_only_looks(tmp_path):
    assert visit(written(tmp_path, one("eom", "return Milter.CONTINUE")), lambda g: g.send(MESSAGE)).edits == ()
