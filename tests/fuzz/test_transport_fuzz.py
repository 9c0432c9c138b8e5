"""Next hops, URLs and dotlocks of any content: read, or refused with a reason; no mailbox suffers from them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transport.arguments import check_word
from gateway.transport.mailboxlock import Mailbox
from gateway.transport.routing import check_url, parse_next_hop

SCHEMES = ("", "smtp:", "lmtp:", "lmtp:unix:", "maildir:", "mbox:", "http:", "https://", "transport:", "pipe:", "mx")
NOTE = st.lists(st.sampled_from(["1", "0", " ", "\n", "gatepost", "node", "99", "-"]), max_size=12).map("".join)


@given(st.sampled_from(SCHEMES), st.text(max_size=60))
def test_any_next_hop_is_read_or_refused(scheme: str, rest: str):
    try:
        assert str(parse_next_hop(scheme + rest))
    except ValueError as error:
        assert str(error)


@given(st.text(alphabet="https:/[]@#?.-_0aZ %\u00e9\n", max_size=60))
def test_any_url_is_taken_as_it_is_or_refused(text: str):
    for url in (text, "https://" + text):
        try:
            assert check_url(url) == url and "@" not in url.split("/")[2]
        except ValueError as error:
            assert str(error)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_any_command_is_taken_or_refused(words: list[str]):
    for number in range(len(words)):
        try:
            check_word(number, words)
        except ValueError as error:
            assert str(error)


@settings(max_examples=50)
@given(st.binary(max_size=80) | NOTE.map(str.encode), st.sampled_from([b"", b"From x\n\nhello\n\n", b"\0rom x\n"]))
def test_whatever_stands_in_a_dotlock_no_complete_message_goes(note: bytes, content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder) / "box"
        box.write_bytes(content)
        (Path(folder) / "box.lock").write_bytes(note)
        locked = Mailbox.lock(box, 1e10, 300.0)
        assert locked is not None, "it is older than any lock"
        locked.release()
        assert box.read_bytes() == content or content.startswith(b"\0")
