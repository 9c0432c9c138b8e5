"""Whole sessions of nonsense: every reply is well formed, and 250 for a message means that it is in the spool."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.smtp.data import Newlines
from gateway.smtp.options import Limits, Timeouts
from tests.smtp.door import door, run

LINES = st.sampled_from(
    [
        b"EHLO client.test",
        b"HELO client.test",
        b"MAIL FROM:<a@sender.test>",
        b"MAIL FROM:<> SIZE=10 BODY=8BITMIME",
        b"RCPT TO:<b@example.org>",
        b"RCPT TO:<c@elsewhere.test>",
        b"RCPT TO:<Postmaster> NOTIFY=NEVER",
        b"DATA",
        b"BDAT 4",
        b"BDAT 0 LAST",
        b"BDAT 10 LAST",
        b"BDAT x",
        b"RSET",
        b"NOOP",
        b"VRFY x",
        b"STARTTLS",
        b"XCLIENT ADDR=192.0.2.1",
        b"Subject: x",
        b"",
        b".",
        b"..",
        b"QUIT",
        b"\xff\xfe",
        b"a" * 600,
    ]
)
TALK = st.lists(st.one_of(LINES.map(lambda line: line + b"\r\n"), st.binary(max_size=20)), max_size=25)
WHOLE = [
    b"MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n",
    b"MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.org>\r\nBDAT 10 LAST\r\n",
]
SESSIONS = st.lists(
    st.one_of(
        TALK.map(b"".join), st.sampled_from(WHOLE), st.just(b"\r\n.\r\n"), LINES.map(lambda line: line + b"\r\n")
    ),
    min_size=1,
    max_size=6,
)
REPLY = re.compile(
    r"(?:220|214|221|250|252|354|421|45[0-9]|5[0-5][0-9])(?: (?P<status>[245]\.\d{1,3}\.\d{1,3}))? [ -~]{1,480}"
    r"|250-[ -~]{1,80}"
)


@settings(max_examples=60)
@given(st.lists(st.tuples(SESSIONS, st.sampled_from(list(Newlines))), min_size=1, max_size=4))
def test_every_reply_is_well_formed_and_250_for_a_message_is_a_message_in_the_spool(talks):
    async def test() -> None:
        for newlines in Newlines:
            async with door(
                newlines=newlines, limits=Limits(command_line=512), timeouts=Timeouts(command=0.05, data_block=0.05)
            ) as opened:
                heard: list[str] = []
                for packets, kind in talks:
                    if kind is not newlines:
                        continue
                    client = await opened.connect()
                    await client.hello()
                    for packet in packets:
                        client.send(packet)
                    if not client.writer.is_closing() and client.writer.can_write_eof():
                        client.writer.write_eof()
                    heard += (await client.last_words()).splitlines()
                for line in heard:
                    match = REPLY.fullmatch(line)
                    assert match, line
                    assert match["status"] is None or match["status"][0] == line[0], line
                accepted = {line.split()[-1] for line in heard if line.startswith("250 2.0.0 queued as ")}
                stored = {found.message.id for found in await opened.stored()}
                # A reply may be lost with its connection; a message that was promised may not.
                assert accepted <= stored
                for content in await opened.contents():
                    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", content)

    run(test)
