"""Replies: class digit derived, wire text safe."""

from __future__ import annotations

import pytest

from gateway.mail.reply import Reply, clean


@pytest.mark.parametrize(("code", "status"), [(250, "2.7.1"), (451, "4.7.1"), (550, "5.7.1")])
def test_the_class_digit_comes_from_the_code(code: int, status: str) -> None:
    assert Reply(code, "7.1", "text").status == status
    assert str(Reply(code, "7.1", "text")) == f"{code} {status} text"


@pytest.mark.parametrize(
    ("code", "detail"), [(199, "7.1"), (600, "7.1"), (550, "5.7.1"), (550, "7"), (550, "\u0667.1")]
)
def test_what_is_no_reply_cannot_be_made(code: int, detail: str) -> None:
    with pytest.raises(ValueError):
        Reply(code, detail, "text")


def test_the_wire_form_has_one_line_per_line_of_text() -> None:
    assert Reply(250, "", "one\ntwo").wire() == b"250-one\r\n250 two\r\n"
    assert Reply(550, "7.1", "one\ntwo").wire() == b"550-5.7.1 one\r\n550 5.7.1 two\r\n"


@pytest.mark.parametrize("text", ["a\r\n250 ok", "a\rb", "a\x00b", "bücher", "\udc80", "x" * 5000])
def test_nothing_breaks_out_of_a_reply_line(text: str) -> None:
    for line in Reply(550, "7.1", text).wire().split(b"\r\n")[:-1]:
        assert line.startswith(b"550")
        assert len(line) + 2 <= 512
        assert all(32 <= octet < 127 for octet in line)


@pytest.mark.parametrize("text", ["no", "x" * 1000, "first line\n" + "x" * 1000])
def test_the_reference_is_never_cut_off(text: str) -> None:
    assert Reply(550, "7.1", text).referring("0123456789ABC1").wire().endswith(b" (ref 0123456789ABC1)\r\n")


def test_a_peers_status_is_taken_when_its_class_agrees() -> None:
    assert Reply.parse(550, "5.1.1 no such user") == Reply(550, "1.1", "no such user")
    assert Reply.parse(550, "4.1.1 odd") == Reply(550, "", "4.1.1 odd")
    assert Reply.parse(250, "ok") == Reply(250, "", "ok")
    assert Reply.parse(451, "4.7.1") == Reply(451, "7.1", "")


def test_replies_sort_into_positive_temporary_and_permanent() -> None:
    kinds = [(r.positive, r.temporary, r.permanent) for r in (Reply(c, "", "") for c in (250, 354, 450, 550))]
    assert kinds == [(True, False, False), (True, False, False), (False, True, False), (False, False, True)]


def test_clean_text_stays_as_it_is() -> None:
    assert clean("a plain text") == "a plain text"
    assert clean("tab\tand bell\a") == "tab?and bell?"
