"""What the transports that write into mailboxes share."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.address import NULL_SENDER, Address, parse_mailbox
from gateway.transport.storage import SMALL, from_line, in_thread, mailbox_path, safe_name, scratch
from tests.transport.peer import run


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("anna", "anna"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("a b", "a%20b"),
        ("\u00e9", "%C3%A9"),
        ("a%2Fb", "a%252Fb"),
        ("a\0", "a%00"),
    ],
)
def test_local_parts_cannot_leave_the_maildir(text: str, name: str):
    assert safe_name(text) == name


@given(st.text(min_size=1), st.text(min_size=1))
def test_safe_names_are_one_path_component_and_never_the_same_for_two(one: str, two: str):
    one, two = (text.encode("utf-8", "replace").decode() for text in (one, two))
    name = safe_name(one)
    assert name.isascii() and "/" not in name and not name.startswith(".") and name
    assert (name == safe_name(two)) == (one == two)


def test_a_bare_postmaster_has_a_mailbox_at_this_gateway():
    assert str(mailbox_path("/m/{domain}/{local}", Address("Postmaster", ""), "gate.test")) == "/m/gate.test/postmaster"


def test_a_from_line_is_one_line_of_three_parts():
    when = "Sun Sep  9 01:46:40 2001"
    assert from_line(NULL_SENDER, when) == b"From MAILER-DAEMON Sun Sep  9 01:46:40 2001\n"
    odd = parse_mailbox('"a b"@example.org')
    assert from_line(odd, when) == b'From "a-b"@example.org Sun Sep  9 01:46:40 2001\n'


def test_who_is_cancelled_goes_on_when_the_thread_has_ended():
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        ended.set()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(in_thread(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(main())


@pytest.mark.parametrize("size", [10, SMALL + 1])
def test_a_scratch_file_has_no_name(size: int):
    with scratch(size) as file:
        file.write(b"x")
        assert file.seek(0) == 0 and file.read() == b"x"
