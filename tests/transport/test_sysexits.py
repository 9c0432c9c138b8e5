"""What the end of a command means."""

from __future__ import annotations

import signal

import pytest

from gateway.transport.options import PERMANENT_EXITS
from gateway.transport.sysexits import Ended, first_lines, judge
from gateway.transport.transport import Fault, Result


def judged(status: int, output: bytes = b"", *, late: bool = False, fail_on: tuple[int, ...] = PERMANENT_EXITS) -> str:
    outcome = judge(Ended(status, output, late), "lda", fail_on)
    return f"{outcome.result} {outcome.reply}"


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (0, "delivered 250 2.0.0 lda took it"),
        (1, "deferred 451 4.3.0 lda ended with status 1"),
        (64, "deferred 451 4.3.5 lda ended with status 64 (EX_USAGE)"),
        (65, "failed 554 5.6.0 lda ended with status 65 (EX_DATAERR)"),
        (66, "deferred 451 4.3.0 lda ended with status 66 (EX_NOINPUT)"),
        (67, "failed 550 5.1.1 lda ended with status 67 (EX_NOUSER)"),
        (68, "failed 550 5.1.2 lda ended with status 68 (EX_NOHOST)"),
        (69, "failed 554 5.3.0 lda ended with status 69 (EX_UNAVAILABLE)"),
        (70, "deferred 451 4.3.0 lda ended with status 70 (EX_SOFTWARE)"),
        (71, "deferred 451 4.3.0 lda ended with status 71 (EX_OSERR)"),
        (72, "deferred 451 4.3.0 lda ended with status 72 (EX_OSFILE)"),
        (73, "deferred 451 4.2.0 lda ended with status 73 (EX_CANTCREAT)"),
        (74, "deferred 451 4.3.0 lda ended with status 74 (EX_IOERR)"),
        (75, "deferred 451 4.3.0 lda ended with status 75 (EX_TEMPFAIL)"),
        (76, "deferred 451 4.5.0 lda ended with status 76 (EX_PROTOCOL)"),
        (77, "failed 550 5.7.0 lda ended with status 77 (EX_NOPERM)"),
        (78, "deferred 451 4.3.5 lda ended with status 78 (EX_CONFIG)"),
        (126, "deferred 451 4.3.5 lda ended with status 126 (cannot be run)"),
        (127, "deferred 451 4.3.5 lda ended with status 127 (not found)"),
        (-signal.SIGSEGV, "deferred 451 4.3.0 lda was ended by SIGSEGV"),
        (-63, "deferred 451 4.3.0 lda was ended by signal 63"),
    ],
)
def test_each_exit_status_has_its_meaning(status: int, says: str):
    assert judged(status) == says


def test_the_operator_says_which_statuses_are_final():
    assert judged(73, fail_on=(73,)) == "failed 554 5.2.0 lda ended with status 73 (EX_CANTCREAT)"
    assert judged(67, fail_on=(73,)) == "deferred 451 4.1.1 lda ended with status 67 (EX_NOUSER)"


def test_output_is_shown_and_may_bring_the_status():
    assert judged(69, b"\n  no  such\tfolder\n") == (
        "failed 554 5.3.0 lda ended with status 69 (EX_UNAVAILABLE): no such folder"
    )
    assert judged(69, b"5.2.2 over quota\n") == (
        "failed 554 5.2.2 lda ended with status 69 (EX_UNAVAILABLE): over quota"
    )
    assert judged(75, b"4.2.2 over quota\nmore\n").startswith("deferred 451 4.2.2 ")


def test_output_of_the_other_class_cannot_turn_the_result():
    assert judged(75, b"5.1.1 nobody") == "deferred 451 4.3.0 lda ended with status 75 (EX_TEMPFAIL): 5.1.1 nobody"
    assert judged(67, b"2.0.0 fine").startswith("failed 550 5.1.1 ")


def test_a_command_whose_time_was_over_never_delivered_whatever_it_says():
    for status in (0, 67, -9):
        assert judged(status, b"x", late=True) == "deferred 451 4.3.0 lda did not end in time and was killed: x"


def test_what_is_wrong_here_is_our_fault_and_the_rest_the_commands():
    def fault(status: int) -> Fault:
        return judge(Ended(status), "lda", PERMANENT_EXITS).fault

    assert [fault(n) for n in (64, 78, 126, 127, -9)] == [Fault.OURS] * 5
    assert [fault(n) for n in (67, 75, 1)] == [Fault.PEER] * 3


def test_output_is_short_and_clean():
    assert first_lines(b"\x1b[31mred\x07\xff\r\n\r\n\x00two\nthree\nfour") == "?[31mred?\ufffd / ?two / three"
    assert len(first_lines(b"x" * 100_000)) == 300
    assert judge(Ended(75, b"y" * 9999), "lda", ()).result is Result.DEFERRED
