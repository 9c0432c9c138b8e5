"""The grammar of command lines."""

from __future__ import annotations

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Body, Notify, Ret
from gateway.smtp.command import Bdat, CommandError, parse_bdat, parse_helo, parse_mail, parse_rcpt, split_line


def code(call, *args, **kwargs) -> tuple[int, str]:
    with pytest.raises(CommandError) as caught:
        call(*args, **kwargs)
    return caught.value.reply.code, caught.value.reply.status


def mail(argument: str):
    return parse_mail(argument, True)


def rcpt(argument: str, smtputf8: bool = False):
    return parse_rcpt(argument, esmtp=True, smtputf8=smtputf8)


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"quit\r\n", ("QUIT", "")),
        (b"NOOP  a b \r\n", ("NOOP", "a b")),
        (b"MAIL FROM:<a@b>\r\n", ("MAIL", "FROM:<a@b>")),
        ("MAIL FROM:<ä@b> SMTPUTF8\r\n".encode(), ("MAIL", "FROM:<ä@b> SMTPUTF8")),
    ],
)
def test_a_line_is_split_into_verb_and_argument(line, parsed):
    assert split_line(line, strict=True) == parsed


def test_a_line_that_ends_in_a_bare_line_feed_is_decided_by_policy():
    assert split_line(b"NOOP\n", strict=False) == ("NOOP", "")
    assert code(split_line, b"NOOP\n", strict=True) == (500, "5.5.2")


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b" NOOP\r\n",
        b"MAIL\tFROM:<a@b>\r\n",
        b"NO\rOP\r\n",
        b"NOOP\0\r\n",
        b"NOOP \xff\r\n",
        b"NOOP \xed\xa0\x80\r\n",
        b"\x16\x03\x01\r\n",
        b"A" * 17 + b"\r\n",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_command_line_is_a_syntax_error(line, strict):
    assert code(split_line, line, strict=strict)[0] == 500


@pytest.mark.parametrize(
    "name", ["client.test", "win_pc", "localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]", "bücher.test"]
)
def test_names_that_honest_clients_give_are_taken(name):
    assert parse_helo(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a" * 256, "a\x1b[31m", "[192.0.2.300]", "[", "[nonsense]"])
def test_a_malformed_name_is_refused(name):
    assert code(parse_helo, name) == (501, "5.5.4")


def test_the_null_sender_is_a_value_of_its_own():
    assert mail("FROM:<>").sender is NULL_SENDER


def test_the_keyword_and_a_space_after_it_are_forgiven():
    assert mail("from: <a@b>").sender == Address("a", "b")
    assert rcpt("tO:<a@b>").address == Address("a", "b")


def test_all_parameters_of_mail_are_read():
    parsed = mail("FROM:<a@b> SIZE=1000 BODY=8bitmime SMTPUTF8 RET=hdrs ENVID=QQ+2BaBc")
    assert parsed.parameters.size == 1000
    assert parsed.parameters.body is Body.EIGHT_BIT
    assert parsed.parameters.smtputf8
    assert parsed.parameters.ret is Ret.HEADERS
    assert parsed.parameters.envid == "QQ+2BaBc"


def test_all_parameters_of_rcpt_are_read_and_keep_their_case():
    parsed = rcpt("TO:<a@b> NOTIFY=success,DELAY ORCPT=rfc822;Anna+40Example.ORG")
    assert parsed.notify == {Notify.SUCCESS, Notify.DELAY}
    assert parsed.orcpt == "rfc822;Anna+40Example.ORG"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("", 501),
        ("FROM", 501),
        ("FROM:", 501),
        ("FROM:a@b", 501),
        ("FROM:<a@b", 501),
        ("FROM:<a@b>x", 501),
        ("FROM:<a>", 501),
        ("FROM:<a@>", 501),
        ("FROM:<a@b@c>", 501),
        ("FROM:<a b@c>", 501),
        ("FROM:<.a@c>", 501),
        ("FROM:<a..b@c>", 501),
        ("FROM:<a@-c>", 501),
        ("FROM:<" + "a" * 65 + "@b>", 501),
        ("FROM:<a@" + "b" * 64 + ">", 501),
        ("FROM:<a@b> SIZE=x", 501),
        ("FROM:<a@b> SIZE=-1", 501),
        ("FROM:<a@b> SIZE=" + "1" * 21, 501),
        ("FROM:<a@b> SIZE=1 size=2", 501),
        ("FROM:<a@b> SIZE", 501),
        ("FROM:<a@b> BODY=BINARYMIME", 501),
        ("FROM:<a@b> RET=SOME", 501),
        ("FROM:<a@b> ENVID=a+zz", 501),
        ("FROM:<a@b> ENVID=" + "a" * 101, 501),
        ("FROM:<a@b> SMTPUTF8=yes", 501),
        ("FROM:<a@b> =x", 501),
        ("FROM:<a@b> AUTH=<>", 555),
        ("FROM:<a@b> XYZ=1", 555),
        ("FROM:<a@b> NOTIFY=NEVER", 555),
        ("FROM:<ä@b>", 553),
    ],
)
def test_a_bad_mail_command_is_refused_for_what_is_wrong(argument, expected):
    got, status = code(mail, argument)
    assert got == expected
    assert status.startswith("5.")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("TO:<>", 501),
        ("TO:<anna>", 501),
        ("TO:a@b", 501),
        ("TO:<a@b> NOTIFY=NEVER,SUCCESS", 501),
        ("TO:<a@b> NOTIFY=SUCCESS,SUCCESS", 501),
        ("TO:<a@b> NOTIFY=", 501),
        ("TO:<a@b> NOTIFY=SOMETIMES", 501),
        ("TO:<a@b> ORCPT=rfc822", 501),
        ("TO:<a@b> ORCPT=;a@b", 501),
        ("TO:<a@b> ORCPT=rfc822;a+4", 501),
        ("TO:<a@b> ORCPT=rfc822;" + "a" * 500, 501),
        ("TO:<a@b> ORCPT=utf-8;a\x85b", 501),
        ("TO:<a@b> SIZE=1", 555),
        ("TO:<ä@b>", 553),
    ],
)
def test_a_bad_rcpt_command_is_refused_for_what_is_wrong(argument, expected):
    assert code(rcpt, argument)[0] == expected


def test_parameters_need_ehlo():
    assert code(parse_mail, "FROM:<a@b> SIZE=1", False) == (555, "5.5.4")
    assert code(parse_rcpt, "TO:<a@b> NOTIFY=NEVER", esmtp=False, smtputf8=False) == (555, "5.5.4")


def test_a_source_route_is_read_and_dropped():
    assert rcpt("TO:<@one.test,@two.test:a@b>").address == Address("a", "b")


def test_a_quoted_local_part_may_hold_a_closing_bracket():
    assert rcpt('TO:<"a>b"@c>').address == Address("a>b", "c")


@pytest.mark.parametrize("name", ["postmaster", "Postmaster", "POSTMASTER"])
def test_postmaster_needs_no_domain(name):
    assert rcpt(f"TO:<{name}>").address == Address(name, "")


def test_utf8_addresses_are_read_when_they_were_asked_for():
    assert rcpt("TO:<ä@bücher.test>", smtputf8=True).address == Address("ä", "bücher.test")


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [("0", Bdat(0, False)), ("10 LAST", Bdat(10, True)), ("0 last", Bdat(0, True)), ("86", Bdat(86, False))],
)
def test_bdat_is_read(argument, parsed):
    assert parse_bdat(argument) == parsed


@pytest.mark.parametrize("argument", ["", "x", "-1", "1 FIRST", "1 LAST LAST", "٣", "1" * 21, "LAST"])
def test_a_malformed_bdat_is_refused(argument):
    assert code(parse_bdat, argument) == (501, "5.5.4")
