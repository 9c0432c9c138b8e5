"""The milter client against a milter that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret
from gateway.mail.session import Tls
from gateway.sdk import (
    END,
    NULL_SENDER,
    AddHeader,
    AddRecipient,
    Address,
    AuthResult,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    MilterAction,
    MilterReply,
    ReplaceBody,
    ReverseName,
    Session,
    Stage,
    Transaction,
)
from gateway.sdk.testing import Bench, Started, make_message, make_recipient, make_session, make_transaction
from gateway.services.tasks import Tasks
from plugins.milter.link import Link, MilterGone
from plugins.milter.packets import MilterError
from plugins.milter.plugin import MilterPlugin
from tests.support.scripted_milter import (
    ACCEPT,
    CLOSE,
    CONTINUE,
    DISCARD,
    PROGRESS,
    REJECT,
    SKIP,
    TEMPFAIL,
    Die,
    Hang,
    ScriptedMilter,
    added,
    changed,
    inserted,
    packet,
    reply,
)

CONTENT = b"Subject: a\r\n fold\r\nX-A:1\r\nX-B:\t2\r\nX-A:  3\r\n\r\nHello.\r\n"
QUIET_HEADERS, QUIET_BODY, ALL_QUIET = 0x80, 0x80000, 0xDF080
LEADING_SPACE = 0x100000


@contextlib.contextmanager
def asking(milter: ScriptedMilter, **options) -> Iterator[Started]:
    with Bench().started(MilterPlugin, {"connect": milter.address, "name": "m", **options}) as made:
        yield made


def found(made: Started, stage: Stage, **inputs) -> MilterReply:
    finding = made.find(stage, **inputs)
    assert isinstance(finding, MilterReply)
    return finding


def whole(made: Started, transaction: Transaction, content: bytes = CONTENT) -> list[MilterAction]:
    """All stages of a transaction with one recipient; the session has been connected."""
    anna = make_recipient()
    all_told = Transaction(transaction.id, transaction.session, transaction.sender, transaction.parameters, (anna,))
    return [
        found(made, Stage.MAIL, transaction=transaction).action,
        found(made, Stage.RCPT, transaction=transaction, recipient=anna).action,
        found(made, Stage.DATA, transaction=all_told).action,
        found(made, Stage.MESSAGE, transaction=all_told, message=make_message(content)).action,
    ]


def eom(milter: ScriptedMilter, content: bytes = CONTENT, **options) -> MilterReply:
    """What is found of a message of which the milter is told everything at once."""
    transaction = make_transaction(recipients=["anna@example.org"])
    finding = Bench().find(
        MilterPlugin,
        {"connect": milter.address, "name": "m", **options},
        Stage.MESSAGE,
        transaction=transaction,
        message=make_message(content),
    )
    assert isinstance(finding, MilterReply)
    return finding


def edits(milter: ScriptedMilter, content: bytes = CONTENT, **options) -> tuple[object, ...]:
    return eom(milter, content, **options).edits


# What it is told


def test_a_milter_is_told_each_stage_when_it_comes():
    session = make_session("192.0.2.7")
    transaction = make_transaction(session)
    with ScriptedMilter() as milter, asking(milter) as made:
        assert found(made, Stage.CONNECT, session=session) == MilterReply(MilterAction.CONTINUE, "m")
        assert milter.data("C") == [b"[192.0.2.7]\x004" + struct.pack(">H", 40000) + b"192.0.2.7\0"]
        assert found(made, Stage.HELO, session=session).action is MilterAction.CONTINUE
        assert milter.data("H") == [b"client.example\0"]
        assert whole(made, transaction) == [MilterAction.CONTINUE] * 4
        assert milter.data("M") == [b"<ben@sender.example>\0"]
        assert milter.data("R") == [b"<anna@example.org>\0"]
        made.hang_up(session)
        milter.wait_letters("CHMRTLLLLNBEK")
        assert milter.connections == 1


def test_fields_are_told_as_sendmail_does_and_the_body_without_the_header_section():
    with ScriptedMilter() as milter:
        eom(milter)
        assert milter.data("L") == [b"Subject\0a\n fold\0", b"X-A\x001\0", b"X-B\0\t2\0", b"X-A\0 3\0"]
        assert (milter.data("B"), milter.data("E")) == ([b"Hello.\r\n"], [b""])


def test_who_wants_the_space_before_values_gets_it():
    with ScriptedMilter(steps=LEADING_SPACE) as milter:
        eom(milter)
        assert milter.data("L") == [b"Subject\0 a\n fold\0", b"X-A\x001\0", b"X-B\0\t2\0", b"X-A\0  3\0"]


@pytest.mark.parametrize(
    ("content", "fields", "body"),
    [
        (b"\r\nno header\r\n", [], b"no header\r\n"),
        (b"no header\r\n", [], b"no header\r\n"),
        (b"A: b\r\n", [b"A\0b\0"], b""),
        (b"A: b\r\n\r\n", [b"A\0b\0"], b""),
        (b"A: b\r\nno field\r\n", [b"A\0b\0"], b"no field\r\n"),
        (b"A: b\0c\r\n\r\n\0\r\n", [b"A\0bc\0"], b"\0\r\n"),
        (b"A : b\r\n\r\n\r\n", [b"A\0b\0"], b"\r\n"),
    ],
)
def test_odd_messages_are_told_too(content, fields, body):
    with ScriptedMilter() as milter:
        eom(milter, content)
        assert (milter.data("L"), milter.data("B")) == (fields, [body] if body else [])


@pytest.mark.parametrize("octets", [65535 - 7, 65535 - 6, 200_000])
def test_a_field_larger_than_a_packet_is_cut_since_libmilter_would_close_the_connection(octets):
    with ScriptedMilter() as milter:
        eom(milter, b"X-Big: " + b"y" * octets + b"\r\nX-Next: 1\r\n\r\n")
        big, following = milter.data("L")
        assert big == b"X-Big\0" + b"y" * (65535 - 7) + b"\0"
        assert (len(big), following) == (65535, b"X-Next\x001\0")


def test_a_large_body_comes_in_pieces_of_65535_octets():
    body = bytes(range(128, 256)) * 2048
    with ScriptedMilter(steps=QUIET_BODY) as milter:
        eom(milter, b"A: b\r\n\r\n" + body)
        pieces = milter.data("B")
        assert [len(piece) for piece in pieces] == [65535] * 4 + [4]
        assert b"".join(pieces) == body


def test_parameters_of_the_envelope_are_told():
    parameters = MailParameters(1000, Body.EIGHT_BIT, True, Ret.HEADERS, "e1")
    transaction = make_transaction(sender="", parameters=parameters)
    recipient = Recipient(Address("a b", "example.org"), frozenset({Notify.DELAY, Notify.FAILURE}), "rfc822;a@b")
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.RCPT, transaction=transaction, recipient=recipient)
        assert milter.data("M") == [b"<>\0SIZE=1000\0BODY=8BITMIME\0SMTPUTF8\0RET=HDRS\0ENVID=e1\0"]
        assert milter.data("R") == [b'<"a b"@example.org>\0NOTIFY=DELAY,FAILURE\0ORCPT=rfc822;a@b\0']


def test_the_clients_name_is_the_one_that_the_pipeline_knows():
    reverse = ReverseName(AuthResult.PASS, "2001:db8::1", "mail.sender.example", ("mail.sender.example",))
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.CONNECT, session=make_session("2001:db8::1"), findings=[reverse])
        assert milter.data("C")[0].startswith(b"mail.sender.example\x006")
        assert milter.data("C")[0].endswith(b"2001:db8::1\0")
        assert milter.macros_of("C")["_"] == "mail.sender.example [2001:db8::1]"


def test_macros_are_those_of_postfix_unless_the_options_say_otherwise():
    session = make_session(tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"))
    transaction = make_transaction(session)
    macros = {"data": ["{client_addr}", "nowhere"], "values": {"daemon_name": "ORIGINATING"}}
    with ScriptedMilter() as milter, asking(milter, macros=macros) as made:
        whole(made, transaction)
        assert milter.macros_of("C")["{daemon_name}"] == "ORIGINATING"
        assert milter.macros_of("H")["{tls_version}"] == "TLSv1.3"
        assert milter.macros_of("M")["i"] == transaction.id
        assert milter.macros_of("R") == {
            "i": transaction.id,
            "{rcpt_addr}": "anna@example.org",
            "{rcpt_host}": "example.org",
            "{rcpt_mailer}": "smtp",
        }
        assert milter.macros_of("T") == {"{client_addr}": "192.0.2.1"}
        assert milter.macros_of("E") == {"i": transaction.id}


def test_a_milter_that_names_its_macros_gets_those():
    wanted = struct.pack(">I", 3) + b"{rcpt_addr}, i {no such}\0" + struct.pack(">I", 5) + b"\0"
    with ScriptedMilter(macros=wanted) as milter:
        eom(milter)
        assert list(milter.macros_of("R")) == ["{rcpt_addr}", "i"]
        assert milter.macros_of("E") == {}
        assert "i" in milter.macros_of("M")


def test_a_milter_that_does_not_want_a_stage_is_told_its_macros_only():
    steps = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40 | 0x200
    transaction = make_transaction(make_session())
    with ScriptedMilter(steps=steps) as milter, asking(milter) as made:
        assert whole(made, transaction) == [MilterAction.SKIPPED] * 3 + [MilterAction.CONTINUE]
        assert milter.letters == "E"
        assert milter.macros_of("R")["{rcpt_addr}"] == "anna@example.org"
        assert milter.data("E") == [b""]


def test_silence_is_not_waited_for_and_all_goes_out_in_one_write():
    transaction = make_transaction(make_session())
    with ScriptedMilter({"E": added("X", "y") + CONTINUE}, steps=ALL_QUIET) as milter, asking(milter) as made:
        assert whole(made, transaction) == [MilterAction.CONTINUE] * 4
        assert milter.letters == "CHMRTLLLLNBE"
        assert len(milter.writes) == 2, "the options, and the rest"


# Older versions


@pytest.mark.parametrize(("version", "actions", "steps"), [(2, 0x3F, 0x7F), (3, 0x3F, 0x17F), (4, 0x3F, 0x37F)])
def test_no_more_is_offered_than_the_version_has(version, actions, steps):
    with ScriptedMilter(version=version, actions=0) as milter:
        eom(milter, protocol=version)
        assert milter.offered == [(version, actions, steps)]


def test_an_old_milter_is_spoken_to_as_it_understands():
    session = make_session()
    with ScriptedMilter(version=2, actions=0x3F) as milter, asking(milter) as made:
        assert whole(made, make_transaction(session))[2] is MilterAction.SKIPPED
        made.hang_up(session)
        milter.wait_letters("CHMRLLLLNBEQ")
    assert milter.offered == [(6, 0x1FF, 0x1FF7FF)]


@pytest.mark.parametrize(
    "terms", [{"version": 1}, {"version": 7}, {"version": 6, "actions": 0x80}, {"version": 0}], ids=str
)
def test_terms_that_were_not_offered_are_refused(terms):
    with ScriptedMilter(**terms) as milter, pytest.raises(MilterError):
        eom(milter, protocol=4 if "actions" in terms else 6)


# What it says


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (REJECT, MilterReply(MilterAction.REJECT, "m")),
        (TEMPFAIL, MilterReply(MilterAction.TEMPFAIL, "m")),
        (DISCARD, MilterReply(MilterAction.DISCARD, "m")),
        (ACCEPT, MilterReply(MilterAction.ACCEPT, "m")),
        (CLOSE, MilterReply(MilterAction.CONNECTION_FAIL, "m")),
        (reply("550 5.7.1 no"), MilterReply(MilterAction.REJECT, "m", 550, "7.1", "no")),
        (reply("550 no status"), MilterReply(MilterAction.REJECT, "m", 550, "", "no status")),
        (reply("450 4.2.1 50%% later"), MilterReply(MilterAction.TEMPFAIL, "m", 450, "2.1", "50% later")),
        (reply("421 4.3.2 closing"), MilterReply(MilterAction.CONNECTION_FAIL, "m", 421, "3.2", "closing")),
        (
            reply("550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three"),
            MilterReply(MilterAction.REJECT, "m", 550, "7.1", "one\ntwo\nthree"),
        ),
    ],
)
@pytest.mark.parametrize("letter", "MTLNBE")
def test_an_answer_that_settles_the_message_is_found_and_nothing_more_is_told(letter, said, expected):
    session = make_session()
    with ScriptedMilter({letter: said}) as milter, asking(milter) as made:
        transaction = make_transaction(session, recipients=["anna@example.org"])
        assert found(made, Stage.MESSAGE, transaction=transaction, message=make_message()) == expected
        told = {"M": "CHM", "T": "CHMRT", "L": "CHMRTL", "N": "CHMRTLN", "B": "CHMRTLNB", "E": "CHMRTLNBE"}[letter]
        if letter in "MT":
            assert milter.letters == told
        else:
            # A small message's content is on its way at once, and may be heard as far as the connection lasts.
            assert milter.letters.startswith(told) and "CHMRTLNBE".startswith(milter.letters)


@pytest.mark.parametrize("letter", "LNB")
def test_who_settles_a_message_in_mid_content_gets_a_new_connection_for_the_next_one(letter):
    session = make_session()
    with ScriptedMilter({letter: [REJECT, CONTINUE]}) as milter, asking(milter) as made:
        for number, action in (("1", MilterAction.REJECT), ("2", MilterAction.CONTINUE)):
            first = make_transaction(session, recipients=["anna@example.org"])
            transaction = Transaction(session.id + number, session, first.sender, first.parameters, first.recipients)
            assert found(made, Stage.MESSAGE, transaction=transaction, message=make_message()).action is action
        assert milter.connections == 2
        assert milter.letters.endswith("CHMRTLNBE")


def test_what_was_settled_early_is_not_asked_again_but_the_next_message_is():
    session = make_session()
    with ScriptedMilter({"M": [ACCEPT, CONTINUE]}) as milter, asking(milter) as made:
        first, second = make_transaction(session), make_transaction(session)
        second = Transaction(session.id + "2", session, second.sender, second.parameters)
        assert whole(made, first) == [MilterAction.ACCEPT] + [MilterAction.SKIPPED] * 3
        assert whole(made, second) == [MilterAction.CONTINUE] * 4
        assert milter.letters == "CHMMRTLLLLNBE"


@pytest.mark.parametrize(("letter", "letters"), [("C", "C"), ("H", "CH")])
def test_who_accepts_a_session_hears_no_more_of_it(letter, letters):
    session = make_session()
    with ScriptedMilter({letter: ACCEPT}) as milter, asking(milter) as made:
        actions = [found(made, stage, session=session).action for stage in (Stage.CONNECT, Stage.HELO)]
        assert MilterAction.ACCEPT in actions
        assert whole(made, make_transaction(session)) == [MilterAction.SKIPPED] * 4
        assert milter.letters == letters
        made.hang_up(session)
        milter.wait_letters(letters + "Q")


def test_a_refused_recipient_says_nothing_of_the_others():
    session = make_session()
    transaction = make_transaction(session)
    with ScriptedMilter({"R": [reply("550 5.1.1 not him"), CONTINUE]}) as milter, asking(milter) as made:
        refused = found(made, Stage.RCPT, transaction=transaction, recipient=make_recipient("eve@example.org"))
        assert (refused.action, refused.text) == (MilterAction.REJECT, "not him")
        assert whole(made, transaction)[1:] == [MilterAction.CONTINUE] * 3
        assert milter.letters == "CHMRRTLLLLNBE"


def test_who_accepts_at_a_recipient_accepts_the_message():
    with ScriptedMilter({"R": ACCEPT}) as milter, asking(milter) as made:
        actions = whole(made, make_transaction(make_session()))
        assert actions == [MilterAction.CONTINUE, MilterAction.ACCEPT, MilterAction.SKIPPED, MilterAction.SKIPPED]
        assert milter.letters == "CHMR"


def test_who_has_seen_enough_of_a_body_gets_no_more():
    with ScriptedMilter({"B": [CONTINUE, SKIP]}) as milter:
        eom(milter, b"A: b\r\n\r\n" + b"x" * 1_000_000)
        milter.wait_letters("CHMRTLNBBEQ")
        assert milter.data("E") == [b""]


def test_progress_restarts_the_clock_of_an_answer():
    def slowly(data: bytes) -> bytes:
        return PROGRESS * 3 + CONTINUE

    with ScriptedMilter({"E": slowly}) as milter:
        assert eom(milter).action is MilterAction.CONTINUE


@pytest.mark.parametrize(
    ("letter", "said"),
    [
        ("C", DISCARD),
        ("H", SKIP),
        ("E", SKIP),
        ("M", added("X", "y") + CONTINUE),
        ("E", packet("?")),
        ("E", packet("c", b"more")),
        ("E", struct.pack(">I", 0)),
        ("E", struct.pack(">I", (1 << 20) + 1)),
        ("E", packet("h", b"X\0")),
        ("E", packet("i", b"\0\0")),
        ("E", packet("m", b"\xff\xff\xff\xffX\0y\0")),
        ("E", added("", "y")),
        ("E", added("X Y", "z")),
        ("E", packet("e", b"<no address\0")),
        ("E", packet("+", b"<a@b>\0NOTIFY=SOMETIMES\0")),
        ("E", packet("+", b"<a@b>\0ORCPT=<a@b>\0")),
        ("E", packet("e", b"<a@b>\0RET=HALF\0")),
        ("E", reply("250 2.0.0 fine")),
        ("E", reply("550 4.0.0 contrary")),
        ("E", packet("y", b"no NUL")),
        ("O", packet("O", b"\0\0")),
        ("O", packet("O", struct.pack(">III", 6, 0, 0) + b"\0\0\0\1no end")),
        ("O", CONTINUE),
        ("E", Die),
        ("O", Die),
    ],
)
def test_nonsense_is_a_failure(letter, said):
    with ScriptedMilter({letter: said}) as milter, pytest.raises(MilterError):
        eom(milter)


@pytest.mark.parametrize("letter", "OCHMRTLNE")
def test_who_does_not_answer_in_time_has_failed(letter):
    waits = {"connect_timeout": "20ms", "command_timeout": "20ms", "content_timeout": "20ms"}
    with ScriptedMilter({letter: Hang}) as milter, pytest.raises(MilterError, match=r"within 0\.02s"):
        eom(milter, **waits)


def test_nobody_there_is_a_failure():
    with ScriptedMilter() as milter:
        milter.stop()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            eom(milter)


# What it changes


def test_headers_are_changed_as_behind_postfix():
    changes = (
        added("X-Last", "l")
        + inserted(0, "X-Above", "a")  # above an MTA's Received
        + inserted(1, "X-Second", "s")  # still above it
        + inserted(3, "X-Below", "b")  # right below it
        + inserted(99, "X-Beyond", "z")
        + changed(2, "x-a", "four")
        + changed(0, "Subject", "new\r\n\tfolded\r\nforgotten")
        + changed(1, "X-B", "")
        + changed(1, "X-B", "")
        + changed(1, "X-B", "again")
    )
    with ScriptedMilter({"E": changes + CONTINUE}) as milter:
        assert edits(milter) == (
            AddHeader("X-Last", "l", END),
            AddHeader("X-Above", "a", 0),
            AddHeader("X-Second", "s", 1),
            AddHeader("X-Below", "b", 2),
            AddHeader("X-Beyond", "z", END),
            ChangeHeader("x-a", 2, "four"),
            ChangeHeader("Subject", 1, "new\n\tfolded\n\tforgotten"),
            DeleteHeader("X-B", 1),
            AddHeader("X-B", "again", END),
        )


def test_with_leading_space_values_stand_right_behind_the_colon():
    changes = added("X-None", "n") + added("X-Two", "  t") + changed(1, "X-A", "\t7")
    with ScriptedMilter({"E": changes + CONTINUE}, steps=LEADING_SPACE) as milter:
        assert edits(milter) == (
            AddHeader("X-None", "n", END, lead=""),
            AddHeader("X-Two", "t", END, lead="  "),
            ChangeHeader("X-A", 1, "7", lead="\t"),
        )


def test_a_value_keeps_its_octets_but_cannot_break_out_of_its_field():
    with ScriptedMilter({"E": added("X", "\udcff\x1b$B\rY: z\n\n \n") + CONTINUE}) as milter:
        assert edits(milter) == (AddHeader("X", "\udcff?$B\n\tY: z", END),)


def test_the_envelope_is_changed():
    changes = (
        packet("e", b"<new@sender.example>\0SIZE=1 RET=FULL ENVID=e+2B\0")
        + packet("e", b"<>\0")
        + packet("+", b"carl@example.org\0")
        + packet("2", b"<dora@example.org>\0NOTIFY=SUCCESS,DELAY ORCPT=rfc822;d@x\0")
        + packet("-", b"<Anna@example.org>\0")
    )
    with ScriptedMilter({"E": changes + CONTINUE}) as milter:
        assert edits(milter) == (
            ChangeSender(Address("new", "sender.example"), Ret.FULL, "e+2B"),
            ChangeSender(NULL_SENDER),
            AddRecipient(make_recipient("carl@example.org")),
            AddRecipient(
                Recipient(Address("dora", "example.org"), frozenset({Notify.SUCCESS, Notify.DELAY}), "rfc822;d@x")
            ),
            DeleteRecipient(Address("Anna", "example.org")),
        )


def octets(reply: MilterReply) -> bytes:
    (edit,) = reply.edits
    assert isinstance(edit, ReplaceBody)

    async def read() -> bytes:
        return b"".join([block async for block in edit.body.blocks()])

    first, again = asyncio.run(read()), asyncio.run(read())
    assert first == again
    assert len(first) == edit.body.size
    assert edit.body.eight_bit is not first.isascii()
    return first


@pytest.mark.parametrize("size", [0, 3, 65535, (256 << 10) + 1, 1_000_000])
def test_a_body_is_replaced_in_pieces_whether_it_fits_into_memory_or_not(size):
    body = (bytes(range(256)) * 4000)[:size]
    pieces = [body[at : at + 65535] for at in range(0, len(body), 65535)] or [b""]
    with ScriptedMilter({"E": b"".join(packet("b", piece) for piece in pieces) + CONTINUE}) as milter:
        assert octets(eom(milter)) == body


def test_quarantine_comes_with_its_reason_and_the_edits():
    with ScriptedMilter({"E": packet("q", b"odd\0") + added("X", "y") + ACCEPT}) as milter:
        found = eom(milter)
        assert found == MilterReply(MilterAction.ACCEPT, "m", quarantine="odd", edits=(AddHeader("X", "y", END),))


@pytest.mark.parametrize("said", [REJECT, TEMPFAIL, DISCARD, reply("550 5.7.1 no")])
def test_who_refuses_changes_nothing(said):
    with ScriptedMilter({"E": added("X", "y") + said}) as milter:
        assert edits(milter) == ()


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (added("X", "y") * 4, {"edits": 3}),
        (packet("b", b"x" * 60_000) * 2, {"body_size": 100_000}),
        (added("X", "y" * 65_000) * 17, {}),
    ],
)
def test_changes_are_bounded(script, options):
    with ScriptedMilter({"E": script + CONTINUE}) as milter, pytest.raises(MilterError):
        eom(milter, **options)


# Sessions and connections


@pytest.mark.parametrize("end", [reply("550 no"), packet("?")])
def test_what_was_to_be_changed_in_a_message_that_came_to_nothing_is_not_changed_in_the_next(end):
    session = make_session()
    following = Transaction(session.id + "2", session, NULL_SENDER, MailParameters())
    script = {"E": added("X-A", "1") + packet("q", b"odd\0") + end, "M": [CONTINUE, ACCEPT]}
    with ScriptedMilter(script) as milter, asking(milter) as made:
        with contextlib.suppress(MilterError):
            assert whole(made, make_transaction(session))[-1] is MilterAction.REJECT
        accepted = found(made, Stage.MAIL, transaction=following)
        assert accepted == MilterReply(MilterAction.ACCEPT, "m")


def test_a_connection_is_kept_for_the_next_session():
    with ScriptedMilter() as milter, asking(milter) as made:
        for _ in range(3):
            session = make_session()
            whole(made, make_transaction(session))
            made.hang_up(session)
        assert milter.connections == 1
        milter.wait_letters("CHMRTLLLLNBEK" * 3)


@pytest.mark.parametrize(("script", "letters"), [({"E": ACCEPT}, "CHMRTLLLLNBEQ"), ({"M": REJECT}, "CHMQ")])
def test_where_libmilter_would_not_understand_that_another_session_follows_the_connection_is_closed(script, letters):
    session = make_session()
    with ScriptedMilter(script) as milter, asking(milter) as made:
        whole(made, make_transaction(session))
        made.hang_up(session)
        milter.wait_letters(letters)


def test_a_milter_that_wants_nothing_of_the_envelope_is_not_told_of_its_end():
    session = make_session()
    with ScriptedMilter(steps=0x04 | 0x08) as milter, asking(milter) as made:
        for number in "12":
            transaction = Transaction(session.id + number, session, NULL_SENDER, MailParameters())
            found(made, Stage.RCPT, transaction=transaction, recipient=make_recipient())
        made.hang_up(session)
        milter.wait_letters("CHQ")


def test_a_milter_that_does_not_want_to_hear_of_clients_is_given_a_connection_for_each_session():
    with ScriptedMilter(steps=0x01) as milter, asking(milter) as made:
        for _ in range(2):
            session = make_session()
            whole(made, make_transaction(session))
            made.hang_up(session)
        assert milter.connections == 2
        milter.wait_letters("HMRTLLLLNBEQ" * 2)


def test_without_reuse_each_session_has_its_own():
    with ScriptedMilter() as milter, asking(milter, reuse=False) as made:
        for _ in range(2):
            session = make_session()
            whole(made, make_transaction(session))
            made.hang_up(session)
        assert milter.connections == 2
        milter.wait_letters("CHMRTLLLLNBEQ" * 2)


def test_a_kept_connection_that_died_is_replaced_without_anybody_noticing():
    with ScriptedMilter({"C": [CONTINUE, Die, CONTINUE]}) as milter, asking(milter) as made:
        first, second = make_session(), make_session()
        found(made, Stage.MAIL, transaction=make_transaction(first))
        made.hang_up(first)
        assert found(made, Stage.HELO, session=second).action is MilterAction.CONTINUE
        assert milter.letters == "CHMAKCCH"
        assert milter.connections == 2


async def until_dead(link: Link) -> None:
    async with asyncio.timeout(10):
        while not link.dead:
            await asyncio.sleep(0)


def test_a_connection_that_died_between_two_stages_is_replaced():
    session = make_session()
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.MAIL, transaction=make_transaction(session))
        milter.hang_up()
        made.run(until_dead(made.plugin._conversations[session.id]._link))
        second = Transaction(session.id + "2", session, NULL_SENDER, MailParameters())
        assert found(made, Stage.MAIL, transaction=second).action is MilterAction.CONTINUE
        assert milter.letters == "CHMCHM"


def test_who_answers_once_too_often_is_not_listened_to_any_more():
    session = make_session()
    with ScriptedMilter({"H": CONTINUE + REJECT}) as milter, asking(milter) as made:
        assert found(made, Stage.HELO, session=session).action is MilterAction.CONTINUE
        milter.script.clear()
        assert found(made, Stage.MAIL, transaction=make_transaction(session)).action is MilterAction.CONTINUE
        assert milter.letters == "CHCHM"


@pytest.mark.parametrize("letter", ["A", "K"])
def test_who_answers_what_is_never_answered_is_not_listened_to_any_more(letter):
    """Said to one session, it would be taken for the answer to the next one's first command, and shift all others."""
    session, following = make_session(), make_transaction()
    with ScriptedMilter({letter: CONTINUE, "E": [CONTINUE, REJECT]}) as milter, asking(milter) as made:
        whole(made, make_transaction(session))
        if letter == "A":
            given_up = Transaction(session.id + "2", session, NULL_SENDER, MailParameters())
            assert found(made, Stage.MAIL, transaction=given_up).action is MilterAction.CONTINUE
        link = made.plugin._conversations[session.id]._link
        made.hang_up(session)
        made.run(until_dead(link))
        assert whole(made, following)[-1] is MilterAction.REJECT
        assert milter.connections == 2


def test_a_new_connection_that_dies_is_a_failure():
    with ScriptedMilter({"C": Die}) as milter, asking(milter) as made:
        with pytest.raises(MilterGone):
            found(made, Stage.CONNECT, session=make_session())
        assert milter.connections == 1


def test_a_message_that_was_given_up_is_aborted_before_the_next():
    session = make_session()
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.MAIL, transaction=make_transaction(session))
        second = Transaction(session.id + "2", session, NULL_SENDER, MailParameters())
        found(made, Stage.MAIL, transaction=second)
        made.hang_up(session)
        milter.wait_letters("CHMAMAK")


def test_after_a_failure_the_next_stage_tells_a_new_connection_what_came_before():
    session = make_session()
    transaction = make_transaction(session, recipients=["anna@example.org", "carl@example.org"])
    with ScriptedMilter({"T": [Die, CONTINUE]}) as milter, asking(milter) as made:
        with pytest.raises(MilterGone):
            found(made, Stage.DATA, transaction=transaction)
        reply = found(made, Stage.MESSAGE, transaction=transaction, message=make_message())
        assert reply.action is MilterAction.CONTINUE
        assert milter.letters == "CHMRRT" + "CHMRRTLNBE"


def test_a_refusal_while_it_is_told_what_came_before_counts():
    transaction = make_transaction(make_session())
    with ScriptedMilter({"H": reply("550 5.7.1 not you")}) as milter, asking(milter) as made:
        assert found(made, Stage.MAIL, transaction=transaction).text == "not you"


def test_recipients_that_others_accepted_are_told_and_not_asked_about():
    transaction = make_transaction(make_session(), recipients=["anna@example.org", "carl@example.org"])
    with ScriptedMilter({"R": [REJECT, CONTINUE]}) as milter, asking(milter) as made:
        assert found(made, Stage.DATA, transaction=transaction).action is MilterAction.CONTINUE
        assert milter.letters == "CHMRRT"


def test_helo_again_is_told_again():
    session = make_session()
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.CONNECT, session=session)
        for _ in range(2):
            found(made, Stage.HELO, session=session)
        found(made, Stage.MAIL, transaction=make_transaction(session))
        found(made, Stage.HELO, session=session)
        assert milter.letters == "CHHMAH"


def test_a_session_that_connects_again_begins_anew():
    session = make_session()
    with ScriptedMilter() as milter, asking(milter) as made:
        found(made, Stage.HELO, session=session)
        found(made, Stage.CONNECT, session=session)
        milter.wait_letters("CHQC")
        assert milter.connections == 2


def test_who_was_called_off_leaves_no_answer_for_the_next():
    session = make_session()
    with ScriptedMilter({"H": [Hang, CONTINUE]}) as milter, asking(milter) as made:
        plugin = made.plugin
        assert isinstance(plugin, MilterPlugin)

        async def called_off() -> None:
            asked = Tasks().start(plugin.on_helo(session, None), name="asked")
            while "H" not in milter.letters:
                await asyncio.sleep(0.001)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

        made.run(called_off())
        assert found(made, Stage.HELO, session=session).action is MilterAction.CONTINUE
        assert milter.letters == "CHCH"


def test_while_one_still_ends_the_next_has_a_conversation_of_its_own():
    session = make_session()

    async def both(plugin: MilterPlugin) -> MilterReply:
        first = Tasks().start(plugin.on_helo(session, None), name="first")
        while "H" not in milter.letters:
            await asyncio.sleep(0.001)
        reply = await plugin.on_mail(make_transaction(session), None)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return reply

    with ScriptedMilter({"H": [Hang, CONTINUE]}) as milter, asking(milter) as made:
        assert isinstance(made.plugin, MilterPlugin)
        assert made.run(both(made.plugin)).action is MilterAction.CONTINUE
        assert milter.letters == "CHCHM"


def test_a_unix_socket_will_do(tmp_path: Path):
    with ScriptedMilter(path=tmp_path / "m") as milter:
        assert eom(milter).action is MilterAction.CONTINUE


def test_nothing_is_left_when_the_plugin_closes():
    session: Session = make_session()
    with ScriptedMilter() as milter:
        with asking(milter) as made:
            found(made, Stage.MAIL, transaction=make_transaction(session))
        milter.wait_letters("CHMAQ")
