"""Addresses as words of a command: never more words, never options, never other files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.address import NULL_SENDER, Address, parse_mailbox
from gateway.transport.arguments import Unsafe, build, check_word

ANNA = parse_mailbox("Anna@Example.NET")
BEN = parse_mailbox("ben@example.org")


def words(*command: str, sender: object = BEN, to: tuple[Address, ...] = (ANNA,)) -> list[str]:
    return [word.decode() for word in build(("/bin/x", *command), "ID", sender, to, "gate.test")][1:]  # type: ignore[arg-type]


def test_placeholders_are_put_in():
    command = ("-f", "{sender}", "-d", "{local}", "--domain={domain}", "{recipient}", "{id}", "plain")
    assert words(*command) == [
        *("-f", "ben@example.org", "-d", "anna", "--domain=example.net", "Anna@Example.NET", "ID", "plain")
    ]


def test_the_null_sender_is_an_empty_word():
    assert words("-f", "{sender}", "x", sender=NULL_SENDER) == ["-f", "", "x"]


def test_the_bare_postmaster_is_at_this_gateway():
    assert words("{recipient}", "{domain}", to=(Address("Postmaster", ""),)) == ["Postmaster", "gate.test"]


def test_what_a_shell_would_obey_stays_one_word():
    nasty = parse_mailbox('"; rm -rf $(x) `y` | z > w & \' \\" *"@example.net')
    assert words("{local}", "end", to=(nasty,)) == ["; rm -rf $(x) `y` | z > w & ' \" *", "end"]
    assert words("{recipient}", to=(nasty,)) == [str(nasty)]


def test_words_that_name_the_recipient_are_repeated_for_each():
    assert words("-f", "{sender}", "--", "{recipient}", "{id}", to=(ANNA, BEN)) == [
        *("-f", "ben@example.org", "--", "Anna@Example.NET", "ben@example.org", "ID")
    ]


@pytest.mark.parametrize("word", ["{local}", "{recipient}", "{local}x"])
def test_an_address_never_becomes_an_option(word: str):
    with pytest.raises(Unsafe, match="taken for an option") as caught:
        words(word, to=(parse_mailbox("-oQ/tmp@example.net"),))
    assert not caught.value.sender


def test_an_address_may_begin_with_a_dash_where_no_option_can_stand():
    quoted = parse_mailbox('"-x y"@example.net')
    assert words("--user={local}", "{recipient}", "--", "{local}", to=(quoted,)) == [
        *("--user=-x y", '"-x y"@example.net', "--", "-x y")
    ]


def test_a_sender_that_begins_with_a_dash_is_told_apart():
    with pytest.raises(Unsafe) as caught:
        words("-f", "{sender}", sender=parse_mailbox("-x@example.org"))
    assert caught.value.sender


@pytest.mark.parametrize("local", ["../../etc/passwd", "/etc/passwd", "..", "."])
def test_an_address_never_leads_out_of_a_path(local: str):
    with pytest.raises(Unsafe, match="lead elsewhere"):
        words("/var/mail/{local}", to=(Address(local, "example.net"),))
    assert words("{local}", to=(Address(local, "example.net"),)) == [local]


def test_control_characters_are_refused():
    for local in ("a\0b", "a\nb", "a\x7f"):
        with pytest.raises(Unsafe, match="control"):
            words("{local}", to=(Address(local, "example.net"),))


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_an_address_holds_there_are_as_many_words_and_none_is_an_option(local: str, domain: str):
    local, domain = (text.encode("utf-8", "replace").decode() for text in (local, domain))
    try:
        got = words("{local}", "{recipient}", "x{local}", to=(Address(local, "d.test"),), sender=Address(local, domain))
    except Unsafe:
        return
    assert len(got) == 3 and not any(word.startswith("-") or "\0" in word for word in got)


@pytest.mark.parametrize(
    ("command", "number", "says"),
    [
        (("procmail",), 0, "absolute path"),
        (("/bin/{local}",), 0, "absolute path"),
        (("/bin/x", "{user}"), 1, "no placeholder"),
        (("/bin/x", "{local"), 1, "no placeholder"),
        (("/bin/x", "local}"), 1, "no placeholder"),
        (("/bin/x", "a\0b"), 1, "NUL"),
        (("/bin/sh", "-c", "echo {local}"), 2, "run as code"),
        (("/bin/sh", "-c", "{local}"), 2, "run as code"),
        (("/bin/x", "$({local})"), 1, "beside a placeholder"),
        (("/bin/x", "mail for {local}"), 1, "beside a placeholder"),
    ],
)
def test_wrong_commands_are_refused_with_a_reason(command: tuple[str, ...], number: int, says: str):
    with pytest.raises(ValueError, match=says):
        check_word(number, command)


def test_good_commands_are_taken():
    command = ("/bin/sh", "-c", 'cat > "$1"', "sh", "/m/{domain}/{local}", "a=%{id}", "--", "{recipient}")
    for number in range(len(command)):
        check_word(number, command)
