"""The codec's dialogues, octet by octet."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.transport.client import Codec
from gateway.transport.events import Broken, Event, Finished, Phase, Refused, Signal

PIPELINING = b"250-peer\r\n250 PIPELINING\r\n"
MAIL, RCPT = b"MAIL FROM:<a@a.test>\r\n", b"RCPT TO:<b@b.test>\r\n"


def talk(codec: Codec, *replies: bytes) -> list[Event]:
    return [event for reply in replies for event in codec.receive(reply)]


def ready(ehlo: bytes = PIPELINING, **options: Any) -> Codec:
    codec = Codec("gate.test", **options)
    assert talk(codec, b"220 hi\r\n", ehlo) == [Signal.READY]
    codec.outgoing()
    return codec


def begun(rcpts: int = 1, ehlo: bytes = PIPELINING, **options: Any) -> Codec:
    codec = ready(ehlo, **options)
    codec.begin(MAIL, [RCPT] * rcpts)
    return codec


def finished(events: list[Event]) -> Finished:
    (event,) = events
    assert isinstance(event, Finished)
    return event


def codes(event: Finished) -> list[int | None]:
    return [reply.code if reply else None for reply in event.replies]


def test_ehlo_follows_the_greeting_and_its_keywords_are_kept():
    codec = Codec("gate.test")
    assert codec.outgoing() == b""
    assert talk(codec, b"220-welcome\r\n220 to peer\r\n") == []
    assert codec.outgoing() == b"EHLO gate.test\r\n"
    assert talk(codec, b"250-peer\r\n250-size 1000\r\n250 8BITMIME\r\n") == [Signal.READY]
    assert codec.extensions == {"SIZE": "1000", "8BITMIME": ""}


def test_replies_may_come_octet_by_octet():
    codec = Codec("gate.test")
    wire = b"220 hi\r\n" + PIPELINING
    assert talk(codec, *[wire[i : i + 1] for i in range(len(wire))]) == [Signal.READY]


def test_helo_follows_when_ehlo_is_not_known():
    codec = Codec("gate.test")
    talk(codec, b"220 hi\r\n", b"502 what?\r\n")
    assert codec.outgoing() == b"EHLO gate.test\r\nHELO gate.test\r\n"
    assert talk(codec, b"250 peer\r\n") == [Signal.READY]


def test_lhlo_has_no_fallback():
    codec = Codec("gate.test", lmtp=True)
    codec.receive(b"220 hi\r\n")
    assert codec.outgoing() == b"LHLO gate.test\r\n"
    (event,) = codec.receive(b"500 what?\r\n")
    assert isinstance(event, Refused) and event.reply.code == 500


@pytest.mark.parametrize("greeting", [b"554 no mail here\r\n", b"450 later\r\n", b"421 busy\r\n"])
def test_a_refusing_greeting_ends_the_connection(greeting: bytes):
    codec = Codec("gate.test")
    (event,) = codec.receive(greeting)
    assert isinstance(event, Refused) and event.reply.code == int(greeting[:3])
    assert codec.phase is Phase.CLOSED


def test_a_pipelining_peer_gets_the_whole_envelope_at_once():
    codec = begun(rcpts=2)
    assert codec.outgoing() == MAIL + RCPT + RCPT + b"DATA\r\n"
    assert talk(codec, b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n") == [Signal.SEND_CONTENT]
    codec.content_sent()
    done = finished(talk(codec, b"250 2.0.0 queued\r\n"))
    assert codes(done) == [250, 250] and done.open
    assert codec.outgoing() == b"", "no RSET after a message that was sent"


def test_without_pipelining_each_command_waits_for_its_reply():
    codec = begun(ehlo=b"250 peer\r\n")
    said = [codec.outgoing()]
    for reply in (b"250 ok\r\n", b"250 ok\r\n"):
        codec.receive(reply)
        said.append(codec.outgoing())
    assert said == [MAIL, RCPT, b"DATA\r\n"]


def test_a_long_envelope_is_sent_in_bounded_bursts():
    codec = begun(rcpts=250)
    assert codec.outgoing().count(b"\r\n") == 100
    codec.receive(b"250 ok\r\n" * 100)
    assert codec.outgoing().count(b"\r\n") == 100
    codec.receive(b"250 ok\r\n" * 100)
    last = codec.outgoing()
    assert last.count(b"RCPT") == 51 and last.endswith(b"DATA\r\n")


def test_recipients_are_refused_one_by_one():
    codec = begun(rcpts=3)
    talk(codec, b"250 ok\r\n550 5.1.1 who?\r\n250 ok\r\n450 4.2.1 later\r\n354 go\r\n")
    codec.content_sent()
    assert codes(finished(talk(codec, b"250 ok\r\n"))) == [550, 250, 450]


def test_a_refused_mail_answers_for_all_recipients_and_is_reset():
    codec = begun(rcpts=2)
    codec.outgoing()
    done = finished(talk(codec, b"550 5.7.1 no\r\n503 no mail\r\n503 no mail\r\n503 no rcpt\r\n"))
    assert codes(done) == [550, 550] and done.mail_refused and done.open
    assert codec.outgoing() == b"RSET\r\n"


def test_a_refused_mail_in_lockstep_ends_it_at_once():
    codec = begun(rcpts=2, ehlo=b"250 peer\r\n")
    codec.outgoing()
    assert codes(finished(talk(codec, b"450 later\r\n"))) == [450, 450]
    assert codec.outgoing() == b"RSET\r\n"


def test_no_data_in_lockstep_when_nobody_is_left():
    codec = begun(rcpts=2, ehlo=b"250 peer\r\n")
    done = finished(talk(codec, b"250 ok\r\n", b"550 no\r\n", b"550 no\r\n"))
    assert codes(done) == [550, 550]
    assert b"DATA" not in codec.outgoing()


def test_data_accepted_for_nobody_gets_a_lone_dot():
    codec = begun()
    codec.outgoing()
    assert talk(codec, b"250 ok\r\n550 no\r\n354 go\r\n") == []
    assert codec.outgoing() == b".\r\n"
    done = finished(talk(codec, b"250 what was that?\r\n"))
    assert codes(done) == [550] and done.open


def test_a_dot_is_never_sent_to_a_peer_that_took_recipients_of_a_refused_sender():
    codec = begun()
    codec.outgoing()
    done = finished(talk(codec, b"550 no\r\n250 ok\r\n354 go\r\n"))
    assert codes(done) == [550] and not done.open
    assert codec.outgoing() == b""


def test_a_refused_data_answers_for_the_accepted_recipients_only():
    codec = begun(rcpts=2)
    assert codes(finished(talk(codec, b"250 ok\r\n550 no\r\n250 ok\r\n451 later\r\n"))) == [550, 451]


def test_the_next_transaction_may_follow_a_reset_at_once():
    codec = begun()
    talk(codec, b"250 ok\r\n550 no\r\n554 no valid recipients\r\n")
    codec.begin(MAIL, [RCPT])
    codec.outgoing()
    assert talk(codec, b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n") == [Signal.SEND_CONTENT]


def test_lmtp_answers_once_per_accepted_recipient():
    codec = begun(rcpts=3, lmtp=True)
    talk(codec, b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
    codec.content_sent()
    assert talk(codec, b"250 2.1.5 stored\r\n") == []
    done = finished(talk(codec, b"452 4.2.2 full\r\n"))
    assert codes(done) == [250, 550, 452] and done.open


def test_an_lmtp_answer_that_came_before_the_loss_counts():
    codec = begun(rcpts=2, lmtp=True)
    talk(codec, b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    codec.content_sent()
    talk(codec, b"250 stored\r\n")
    assert codes(finished(codec.lost("gone"))) == [250, None]


def test_asking_without_data_ends_with_a_reset():
    codec = ready()
    codec.begin(MAIL, [RCPT], data=False)
    assert codec.outgoing() == MAIL + RCPT
    done = finished(talk(codec, b"250 ok\r\n250 ok\r\n"))
    assert codes(done) == [None] and done.open
    assert codec.outgoing() == b"RSET\r\n"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (b"", [421, 421, 421]),
        (b"250 ok\r\n550 5.1.1 who?\r\n", [550, 421, 421]),
        (b"250 ok\r\n550 no\r\n250 ok\r\n450 hm\r\n", [550, 421, 450]),
    ],
)
def test_421_in_the_envelope_answers_for_whoever_has_no_answer(before: bytes, expected: list[int]):
    codec = begun(rcpts=3)
    done = finished(talk(codec, before + b"421 4.3.2 closing\r\n"))
    assert codes(done) == expected and not done.open
    assert done.mail_answered is bool(before)


def test_421_after_the_dot_defers():
    codec = begun()
    talk(codec, b"250 ok\r\n250 ok\r\n354 go\r\n")
    codec.content_sent()
    done = finished(talk(codec, b"421 closing\r\n"))
    assert codes(done) == [421] and not done.open


def test_421_on_an_idle_connection_breaks_it():
    codec = ready()
    assert talk(codec, b"421 too long idle\r\n") == [Broken("the peer closes the connection")]


def test_a_refusal_while_the_content_is_sent_is_the_answer_to_it():
    codec = begun()
    talk(codec, b"250 ok\r\n250 ok\r\n354 go\r\n")
    done = finished(talk(codec, b"552 5.3.4 too big\r\n"))
    assert codes(done) == [552] and not done.open


def test_success_before_the_dot_is_garbage():
    codec = begun()
    talk(codec, b"250 ok\r\n250 ok\r\n354 go\r\n")
    done = finished(talk(codec, b"250 queued\r\n"))
    assert codes(done) == [None] and not done.open


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"552 too many recipients\r\n", 452),
        (b"552 5.5.3 too many recipients\r\n", 452),
        (b"552 5.2.2 mailbox full\r\n", 552),
        (b"550 5.1.1 who?\r\n", 550),
    ],
)
def test_552_after_rcpt_means_too_many_recipients_unless_it_says_otherwise(reply: bytes, code: int):
    codec = begun(ehlo=b"250 peer\r\n")
    assert codes(finished(talk(codec, b"250 ok\r\n", reply))) == [code]


def test_552_after_the_dot_stays_552():
    codec = begun()
    talk(codec, b"250 ok\r\n250 ok\r\n354 go\r\n")
    codec.content_sent()
    assert codes(finished(talk(codec, b"552 no room\r\n"))) == [552]


def test_starttls_drops_what_came_before_the_handshake_and_says_ehlo_again():
    codec = Codec("gate.test", wants_tls=True)
    assert talk(codec, b"220 hi\r\n250-peer\r\n250-EVIL\r\n250 STARTTLS\r\n") == []
    assert codec.outgoing().endswith(b"STARTTLS\r\n")
    assert talk(codec, b"220 go\r\n250-injected\r\n250 EVIL\r\n", b"250 more\r\n") == [Signal.START_TLS]
    codec.tls_established()
    assert codec.outgoing() == b"EHLO gate.test\r\n"
    assert codec.extensions == {}
    assert talk(codec, b"250-peer\r\n250-STARTTLS\r\n250 SIZE\r\n") == [Signal.READY]
    assert codec.extensions == {"STARTTLS": "", "SIZE": ""}


def test_a_refused_starttls_leaves_the_session_in_the_clear():
    codec = Codec("gate.test", wants_tls=True)
    assert talk(codec, b"220 hi\r\n250-peer\r\n250 STARTTLS\r\n454 not now\r\n") == [Signal.READY]
    assert not codec.secure


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"25\r\n",
        b"250_ok\r\n",
        b"\r\n",
        b"150 what\r\n",
        b"650 what\r\n",
        b"250-a\r\n251 b\r\n",
        b"354 go on\r\n",
        b"250 " + b"x" * 5000 + b"\r\n",
        b"x" * 5000,
        b"250-more\r\n" * 101,
        "\u0662\u0665\u0660 ok\r\n".encode(),
    ],
)
def test_garbage_ends_the_connection_and_defers(garbage: bytes):
    codec = begun()
    done = finished(talk(codec, garbage))
    assert codes(done) == [None] and not done.open
    assert done.problem.startswith("the reply")
    assert codec.receive(b"250 ok\r\n") == []


def test_a_reply_that_nobody_asked_for_breaks_an_idle_connection():
    codec = ready()
    assert talk(codec, b"250 hello?\r\n") == [Broken("the reply 250 answers nothing")]


def test_a_long_but_bounded_reply_is_taken():
    codec = begun()
    long = b"550-" + b"x" * 4000 + b"\r\n"
    done = finished(talk(codec, long * 99 + b"550 no\r\n", b"503 no\r\n", b"503 no\r\n"))
    assert codes(done) == [550]
    assert done.replies[0] is not None and len(done.replies[0].text) <= 400


def test_a_reply_of_several_lines_keeps_one_enhanced_status():
    codec = begun(ehlo=b"250 peer\r\n")
    done = finished(talk(codec, b"550-5.7.1 not\r\n550 5.7.1 today\r\n"))
    assert str(done.replies[0]) == "550 5.7.1 not today"


def test_a_bare_line_feed_ends_a_reply_line_too():
    codec = Codec("gate.test")
    assert talk(codec, b"220 hi\n250 peer\n") == [Signal.READY]


def test_losing_the_connection_before_mail_was_answered_is_told_apart():
    codec = begun()
    assert not finished(codec.lost("gone")).mail_answered
    codec = begun()
    codec.receive(b"250 ok\r\n")
    assert finished(codec.lost("gone")).mail_answered


def test_no_transaction_begins_inside_another():
    codec = begun()
    with pytest.raises(ValueError, match="no transaction can begin"):
        codec.begin(MAIL, [RCPT])


CHUNKING = b"250-peer\r\n250-PIPELINING\r\n250 CHUNKING\r\n"


def chunked(rcpts: int = 1, ehlo: bytes = CHUNKING, whole: bytes = b"", **options: Any) -> Codec:
    codec = ready(ehlo, **options)
    codec.begin(MAIL, [RCPT] * rcpts, chunking=True, whole=whole)
    return codec


def test_a_whole_content_goes_along_with_the_envelope_by_bdat():
    codec = chunked(2, whole=b"x\r\n.\r\n")
    assert codec.outgoing() == MAIL + RCPT + RCPT + b"BDAT 6 LAST\r\nx\r\n.\r\n"
    event = finished(talk(codec, b"250 ok\r\n550 no\r\n250 ok\r\n", b"250 taken\r\n"))
    assert codes(event) == [550, 250] and event.open and codec.outgoing() == b""


def test_without_pipelining_the_content_waits_for_a_recipient_who_is_accepted():
    codec = chunked(2, b"250-peer\r\n250 CHUNKING\r\n", whole=b"x\r\n")
    talk(codec, b"250 ok\r\n", b"550 no\r\n")
    assert b"BDAT" not in codec.outgoing()
    assert codes(finished(talk(codec, b"550 no\r\n"))) == [550, 550]
    assert codec.outgoing() == b"RSET\r\n"


@pytest.mark.parametrize("reply", [b"503 nobody\r\n", b"250 taken, by nobody\r\n"])
def test_a_content_for_nobody_is_answered_for_nobody(reply: bytes):
    event = finished(talk(chunked(2, whole=b"x"), b"250 ok\r\n550 no\r\n450 later\r\n", reply))
    assert codes(event) == [550, 450] and event.open


def test_a_refused_sender_is_the_answer_though_the_content_went_along():
    codec = chunked(whole=b"x")
    event = finished(talk(codec, b"550 no\r\n503 no\r\n503 no\r\n"))
    assert codes(event) == [550] and event.mail_refused and event.open


def test_a_refused_last_chunk_is_followed_by_rset():
    codec = chunked(whole=b"x")
    codec.outgoing()
    event = finished(talk(codec, b"250 ok\r\n250 ok\r\n", b"452 4.3.1 full\r\n"))
    assert codes(event) == [452] and event.open and codec.outgoing() == b"RSET\r\n"


def test_the_end_after_the_last_chunk_leaves_the_fate_open():
    codec = chunked(whole=b"x")
    talk(codec, b"250 ok\r\n250 ok\r\n")
    event = finished(codec.lost("gone"))
    assert codes(event) == [None] and event.mail_answered and not event.open


def test_chunks_wait_for_the_recipients_and_each_has_a_reply():
    codec = chunked(2)
    assert codec.outgoing() == MAIL + RCPT + RCPT
    assert talk(codec, b"250 ok\r\n250 ok\r\n", b"250 ok\r\n") == [Signal.SEND_CONTENT]
    assert codec.chunk(5, last=False) == b"BDAT 5\r\n"
    assert codec.chunk(0, last=True) == b"BDAT 0 LAST\r\n"
    assert talk(codec, b"250 five\r\n") == []
    assert codes(finished(talk(codec, b"250 taken\r\n"))) == [250, 250]


def test_without_pipelining_each_chunk_is_asked_for():
    codec = chunked(1, b"250-peer\r\n250 CHUNKING\r\n")
    assert talk(codec, b"250 ok\r\n", b"250 ok\r\n") == [Signal.SEND_CONTENT]
    codec.chunk(5, last=False)
    assert talk(codec, b"250 five\r\n") == [Signal.NEXT_CHUNK]


def test_a_refused_chunk_is_the_answer_whatever_follows():
    codec = chunked(1)
    talk(codec, b"250 ok\r\n250 ok\r\n")
    codec.chunk(5, last=False)
    event = finished(talk(codec, b"552 5.3.4 too big\r\n250 taken\r\n"))
    assert codes(event) == [552] and not event.open
    assert codec.chunk(5, last=True) == b""


def test_a_reply_that_no_chunk_awaits_is_no_success():
    codec = chunked(1)
    event = finished(talk(codec, b"250 ok\r\n250 ok\r\n", b"250 taken\r\n")[1:])
    assert codes(event) == [None] and not event.open


@pytest.mark.parametrize("code", [b"500", b"502"])
def test_a_peer_that_does_not_know_bdat_has_taken_nothing(code: bytes):
    event = finished(talk(chunked(whole=b"x"), b"250 ok\r\n250 ok\r\n", code + b" what?\r\n"))
    assert event.no_chunks and not event.open and codes(event) == [None]


def test_lmtp_answers_the_last_chunk_for_each_recipient():
    codec = ready(CHUNKING, lmtp=True)
    codec.begin(MAIL, [RCPT] * 3, chunking=True, whole=b"x")
    assert b"BDAT" not in codec.outgoing()
    assert talk(codec, b"250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n") == [Signal.SEND_CONTENT]
    codec.chunk(1, last=True)
    assert talk(codec, b"250 taken\r\n") == []
    event = finished(talk(codec, b"500 5.2.2 full\r\n"))
    assert codes(event) == [250, 550, 500] and event.open and not event.no_chunks
