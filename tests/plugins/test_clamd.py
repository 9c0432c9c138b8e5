"""The plugin `clamd` on the bench, with a scripted clamd."""

from __future__ import annotations

import socket
import struct

import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AddHeader, DeleteHeader, Verdict, VirusScan
from gateway.sdk.testing import Bench, FakeDns, make_message
from plugins.clamd import ClamdPlugin
from plugins.clamd.codec import CHUNK_OCTETS, ClamdError, Instream, Outcome, Reply, read_reply
from tests.support.process import free_port
from tests.support.scripted import Scripted, read_instream, read_to, until_closed

CONTENT = b"From: ann@sender.test\r\nSubject: x\r\n\r\nHello.\r\n"


class Clamd(Scripted):
    """Reads a message and answers with `reply`."""

    def __init__(self, reply: bytes, **where) -> None:
        self.reply = reply
        self.contents: list[bytes] = []
        super().__init__(self._answer, **where)

    def _answer(self, link: socket.socket) -> None:
        self.contents.append(read_instream(link))
        link.sendall(self.reply)


def scan(endpoint: str, content: bytes = CONTENT, bench: Bench | None = None, **options) -> VirusScan:
    found = (bench or Bench()).find(ClamdPlugin, {"connect": endpoint, **options}, message=make_message(content))
    assert isinstance(found, VirusScan)
    return found


def judge(found: VirusScan | None, content: bytes = CONTENT, **options) -> Verdict:
    findings = [found] if found else []
    return Bench().judge(ClamdPlugin, options, message=make_message(content), findings=findings)


def infected(*names: str) -> VirusScan:
    return VirusScan(True, "clamd", names)


def test_a_clean_message_reaches_clamd_whole():
    content = CONTENT + b"x" * (3 * CHUNK_OCTETS)
    with Clamd(b"stream: OK\0") as clamd:
        assert scan(clamd.endpoint, content) == VirusScan(False, "clamd")
        assert clamd.contents == [content]


def test_over_a_unix_socket_too(directory):
    with Clamd(b"stream: OK\0", path=directory / "socket") as clamd:
        assert scan(clamd.endpoint) == VirusScan(False, "clamd")


def test_a_host_name_is_looked_up_with_our_own_resolver():
    with Clamd(b"stream: OK\0") as clamd:
        bench = Bench(dns=FakeDns(a={"scanner.test": ["127.0.0.1"]}))
        assert not scan(f"scanner.test:{clamd.port}", bench=bench).infected
    with pytest.raises(OSError, match=r"no address of elsewhere\.test"):
        scan("elsewhere.test:3310")


def test_what_clamd_found_is_named():
    with Clamd(b"stream: Win.Test.EICAR_HDB-1 FOUND\0") as clamd:
        assert scan(clamd.endpoint) == infected("Win.Test.EICAR_HDB-1")


def test_each_message_has_a_connection_of_its_own():
    with Clamd(b"stream: OK\0") as clamd:
        scan(clamd.endpoint)
        scan(clamd.endpoint)
        assert clamd.connections == 2


def test_a_message_over_max_size_is_not_sent_and_says_so():
    with Clamd(b"stream: OK\0") as clamd:
        found = scan(clamd.endpoint, max_size=10)
        assert found == VirusScan(False, "clamd", skipped="larger than 10 octets")
        assert found.idle()
        assert clamd.connections == 0


def test_what_is_larger_than_clamd_takes_was_not_scanned_either():
    with Clamd(b"INSTREAM size limit exceeded. ERROR\0") as clamd:
        assert scan(clamd.endpoint) == VirusScan(False, "clamd", skipped="larger than clamd takes")


def test_clamd_may_answer_before_the_end_and_stop_reading():
    def impatient(link: socket.socket) -> None:
        read_to(link, b"\0")
        link.sendall(b"INSTREAM size limit exceeded. ERROR\0")
        # Nothing more is read until the client goes away.
        assert server.done.wait(20)

    with Scripted(impatient) as server:
        found = scan(server.endpoint, CONTENT + b"x" * (16 << 20))
        assert found.skipped == "larger than clamd takes"
        server.done.set()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"stream: Can't allocate memory ERROR\0", "clamd says: stream: Can't allocate memory ERROR"),
        (b"UNKNOWN COMMAND\0", "clamd says: UNKNOWN COMMAND"),
        (b"220 mx.example.test ESMTP\r\n\0", "garbage"),
        (b"stream: \xff\xfe FOUND\0", "garbage"),
        (b"stream:  FOUND\0", "garbage"),
        (b"\0", "garbage"),
        (b"stream: OK\0stream: OK\0", "more than one reply"),
        (b"x" * 5000, "longer than 4096 octets"),
    ],
)
def test_an_error_and_garbage_are_faults(reply, error):
    with Clamd(reply) as clamd, pytest.raises(ClamdError, match=error):
        scan(clamd.endpoint)


@pytest.mark.parametrize(
    ("reply", "error"), [(b"", "closed the connection without a reply"), (b"stream: O", "in the midst of its reply")]
)
def test_a_reply_that_does_not_come_or_only_half_is_a_fault(reply, error):
    with Clamd(reply) as clamd, pytest.raises(ConnectionError, match=error):
        scan(clamd.endpoint)


def test_a_clamd_that_hangs_up_in_the_midst_of_the_message_is_a_fault():
    with Scripted(lambda link: None) as server, pytest.raises(ConnectionError, match=r"hung up|closed the connection"):
        scan(server.endpoint, CONTENT + b"x" * (16 << 20))


def test_a_clamd_that_is_not_there_is_a_fault():
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        scan(f"127.0.0.1:{free_port()}")


class Unreadable:
    """Content whose file is gone in the midst of it."""

    size = 1 << 20
    eight_bit = False

    async def blocks(self):
        yield b"x" * 1000
        raise FileNotFoundError("content is gone")


def test_content_that_cannot_be_read_is_not_called_clean():
    message = type(make_message())((), Unreadable())
    with Scripted(until_closed) as server, pytest.raises(FileNotFoundError, match="content is gone"):
        Bench().find(ClamdPlugin, {"connect": server.endpoint}, message=message)


def test_a_clean_message_says_so():
    assert judge(VirusScan(False, "clamd")).edits == (AddHeader("X-Virus-Status", "Clean"),)
    assert judge(VirusScan(False, "clamd"), header="") is PROCEED


@pytest.mark.parametrize("found", [None, VirusScan(False, "clamd"), VirusScan(False, "clamd", skipped="too large")])
def test_the_senders_own_word_for_it_is_removed_whatever_was_found(found):
    forged = b"x-virus-status: Clean, really\r\n" + CONTENT
    assert judge(found, forged).edits[0] == DeleteHeader("X-Virus-Status")
    assert all(isinstance(edit, AddHeader) for edit in judge(found).edits)


def test_malware_is_refused_and_its_name_stays_here():
    verdict = judge(infected("Win.Test"))
    assert str(verdict.reply) == "550 5.7.1 malware is not accepted here"
    assert verdict.reason == "infected: Win.Test"


@pytest.mark.parametrize(
    ("on_infected", "action", "marked"),
    [
        ("quarantine", Action.QUARANTINE, True),
        ("discard", Action.DISCARD, False),
        ("tag", Action.PROCEED, True),
        ("ignore", Action.PROCEED, True),
    ],
)
def test_or_what_the_options_say(on_infected, action, marked):
    verdict = judge(infected("Win.Test"), on_infected=on_infected)
    assert verdict.action is action
    assert verdict.edits == ((AddHeader("X-Virus-Status", "Infected (Win.Test)"),) if marked else ())


def test_names_are_treated_by_the_first_pattern_that_fits():
    names = {"PUA.Win.*": "quarantine", "PUA.*": "tag", "Heuristics.*": "ignore"}
    assert judge(infected("PUA.Win.Tool"), names=names).action is Action.QUARANTINE
    assert judge(infected("PUA.Doc.Tool"), names=names).action is Action.PROCEED
    assert judge(infected("Win.Test"), names=names).action is Action.REJECT
    assert judge(infected("pua.win.tool"), names=names).action is Action.REJECT, "case counts"


def test_of_several_names_the_worst_decides():
    names = {"PUA.*": "tag", "Heuristics.*": "quarantine"}
    assert judge(infected("PUA.x", "Heuristics.y"), names=names).action is Action.QUARANTINE
    assert judge(infected("Win.z", "PUA.x"), names=names).action is Action.REJECT


@pytest.mark.parametrize(
    ("too_large", "action", "reply"),
    [
        ("skip", Action.PROCEED, "None"),
        ("quarantine", Action.QUARANTINE, "None"),
        ("defer", Action.DEFER, "452 4.3.4 message is too large to be scanned now"),
        ("reject", Action.REJECT, "552 5.3.4 message is too large to be scanned"),
    ],
)
def test_what_was_not_scanned_is_never_called_clean(too_large, action, reply):
    verdict = judge(VirusScan(False, "clamd", skipped="larger than 10 octets"), too_large=too_large)
    assert (verdict.action, str(verdict.reply)) == (action, reply)
    if not verdict.reply:
        assert verdict.edits == (AddHeader("X-Virus-Status", "Not scanned (larger than 10 octets)"),)


@pytest.mark.parametrize(
    "options",
    [
        {"on_infected": "tag", "header": ""},
        {"names": {"PUA.*": "tag"}, "header": ""},
        {"header": "X Virus"},
        {"connect": "nowhere"},
        {"max_size": 0},
        {"on_infected": "burn"},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        ClamdPlugin.Options.model_validate(options)


def test_the_exchange_in_octets():
    exchange = Instream()
    assert exchange.begin() == b"zINSTREAM\0"
    assert list(exchange.chunks(b"abc")) == [struct.pack(">I", 3) + b"abc"]
    assert list(exchange.chunks(b"")) == []
    assert exchange.end() == b"\0\0\0\0"
    for octet in b"stream: OK":
        exchange.receive(bytes([octet]))
        assert exchange.reply is None
    exchange.receive(b"\0")
    assert exchange.reply == Reply(Outcome.CLEAN)


@pytest.mark.parametrize("steps", ["b b", "c", "e", "b e e", "b e c"])
def test_steps_out_of_order_are_a_bug(steps):
    exchange = Instream()
    do = {"b": exchange.begin, "c": lambda: list(exchange.chunks(b"x")), "e": exchange.end}
    with pytest.raises(RuntimeError):
        for step in steps.split():
            do[step]()


def test_what_clamd_adds_to_a_name_is_not_part_of_it():
    line = b"stream: Test.Eicar.UNOFFICIAL(44d88612fea8a8f36de82e1278abb02f:68) FOUND"
    assert read_reply(line) == Reply(Outcome.FOUND, "Test.Eicar.UNOFFICIAL")


def test_an_infection_without_a_name_is_one_all_the_same():
    found = VirusScan(True, "clamd")
    assert Bench().judge("clamd", message=make_message(), findings=[found]).action is Action.REJECT
