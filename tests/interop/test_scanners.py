"""clamd, spamd and rspamd themselves, behind a running Gatepost: what clients hear, and what arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pytest

from tests.interop.scanned import RECIPIENTS, Met, Scanned, message
from tests.smtp.test_memory import memory
from tests.support import clamav
from tests.support.clamav import Clamd
from tests.support.rspamd import GTUBE, Rspamd
from tests.support.spamassassin import Spamd

pytestmark = pytest.mark.slow

PASSWORD = "a-secret-of-rspamd"
LARGE = 25 << 20
ALLOWED = 16 << 20
"""Octets of memory that large messages may cost a worker: less than one of them."""


@pytest.fixture(scope="module")
def clamd() -> Iterator[Clamd]:
    server = Clamd(StreamMaxLength="30M")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def spamd() -> Iterator[Spamd]:
    server = Spamd()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    server = Rspamd(controller=f'password = "{PASSWORD}"; secure_ip = [];')
    yield server
    server.stop()


@pytest.fixture(scope="module")
def scanned(clamd: Clamd, spamd: Spamd, rspamd: Rspamd) -> Iterator[Scanned]:
    """One Gatepost for all; a pipeline for each way to use them."""

    def entry(plugin: str, where: str, **options: Any) -> dict[str, Any]:
        return {plugin: {"connect": where, **options}}

    pua = {"PUA.*": "tag", "Heuristics.*": "quarantine"}
    made = Scanned(
        {
            "clamd": [entry("clamd", clamd.endpoint)],
            "clamd-socket": [entry("clamd", f"unix:{clamd.socket}", names=pua)],
            "clamd-large": [entry("clamd", clamd.endpoint, max_size="40MiB", too_large="reject")],
            "spamd": [entry("spamd", spamd.endpoint)],
            "spamd-report": [entry("spamd", spamd.endpoint, ask="report", reject_at=None, quarantine_at=10)],
            "spamd-headers": [entry("spamd", spamd.endpoint, ask="headers", reject_at=None)],
            "spamd-large": [entry("spamd", spamd.endpoint, ask="check", max_size="40MiB", reject_at=None)],
            "spamd-user": [entry("spamd", spamd.endpoint, recipient_user="address")],
            "rspamd": [entry("rspamd", rspamd.endpoint)],
            "rspamd-socket": [entry("rspamd", f"unix:{rspamd.socket}", actions={"reject": "quarantine"})],
            "rspamd-password": [entry("rspamd", f"localhost:{rspamd.controller_port}", password=PASSWORD)],
            "rspamd-wrong": [entry("rspamd", f"127.0.0.1:{rspamd.controller_port}", password="something-else")],
            "rspamd-messages": [entry("rspamd", rspamd.endpoint, messages=True)],
            "all": [
                entry("clamd", clamd.endpoint, max_size="40MiB"),
                entry("spamd", spamd.endpoint, reject_at=50),
                entry("rspamd", rspamd.endpoint, max_size="40MiB"),
            ],
        }
    )
    yield made
    made.stop()


# clamd


def test_a_clean_message_is_delivered_and_marked(scanned):
    met = scanned.send("clamd", message("clean", fields=b"X-Virus-Status: Clean, says the sender\r\n"))
    assert scanned.values(met, "X-Virus-Status") == ["Clean"]
    assert met.value("clamd") == {"infected": False, "scanner": "clamd", "names": [], "skipped": ""}


def attachment(octets: bytes) -> bytes:
    import base64

    return (
        b"--b\r\nContent-Type: text/plain\r\n\r\nHello\r\n--b\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(octets).replace(b"\n", b"\r\n") + b"--b--"
    )


MIME = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'


@pytest.mark.parametrize(
    ("octets", "name"), [(clamav.EICAR, clamav.EICAR_NAME), (clamav.MARKER, clamav.MARKER_NAME)], ids=["eicar", "word"]
)
def test_malware_in_an_attachment_is_refused_in_the_session(scanned, octets, name):
    met = scanned.send("clamd", message("malware", attachment(octets), MIME))
    assert met.reply == "550 5.7.1"
    assert met.text.startswith("5.7.1 malware is not accepted here (ref ")
    assert met.value("clamd")["names"] == [name]
    assert met.verdict("clamd")["reason"] == f"infected: {name}"
    assert '"clamd.found"' in scanned.gate.log


def test_names_are_treated_as_the_options_say(scanned):
    tagged = scanned.send("clamd-socket", message("tool", clamav.UNWANTED))
    assert scanned.values(tagged, "X-Virus-Status") == [f"Infected ({clamav.UNWANTED_NAME})"]
    guessed = scanned.send("clamd-socket", message("guess", clamav.HEURISTIC))
    assert scanned.held(guessed)
    assert scanned.send("clamd-socket", message("malware", clamav.MARKER)).reply == "550 5.7.1"
    scanned.release(guessed)
    assert scanned.values(guessed, "X-Virus-Status") == [f"Infected ({clamav.HEURISTIC_NAME})"]


def large(subject: str, size: int = LARGE, end: bytes = b"") -> bytes:
    line = b"x" * 76 + b"\r\n"
    return message(subject, line * (size // len(line)) + end)


def test_a_stream_that_is_longer_than_clamd_takes_is_not_called_clean(scanned):
    met = scanned.send("clamd-large", large("too long", 36 << 20))
    assert met.reply == "552 5.3.4"
    assert met.value("clamd")["skipped"] == "larger than clamd takes"


def test_what_stands_at_the_end_of_a_large_message_is_seen(scanned):
    met = scanned.send("clamd-large", large("malware", end=clamav.MARKER))
    assert met.value("clamd")["names"] == [clamav.MARKER_NAME]


# spamd

FORGED = b"X-Spam-Status: No, score=-100 required=5.0\r\nx-spam-flag: NO\r\nX-Spam-Evil: 1\r\n"


def spam_fields(scanned: Scanned, met: Met) -> dict[str, str]:
    fields = [(name, value) for name, value in scanned.fields(met) if name.lower().startswith("x-spam")]
    assert len(fields) == len({name.lower() for name, _ in fields}), fields
    return dict(fields)


def test_spam_gets_its_score_and_loses_what_the_sender_said(scanned):
    # GP_RELAY matches only where spamd was told of the true client.
    met = scanned.send("spamd", message("hello", fields=FORGED))
    found = met.value("spamd")
    assert found["spam"] is True
    assert 6 <= found["score"] < 15
    assert "GP_RELAY" in found["symbols"]
    fields = spam_fields(scanned, met)
    assert fields["X-Spam-Status"].startswith(f"Yes, score={found['score']:.1f} required=5.0 tests=")
    assert "GP_RELAY" in fields["X-Spam-Status"]
    assert fields["X-Spam-Score"] == f"{found['score']:.1f}"
    assert fields["X-Spam-Flag"] == "YES"
    assert fields["X-Spam-Level"] == "*" * int(found["score"])
    assert set(fields) == {"X-Spam-Status", "X-Spam-Score", "X-Spam-Flag", "X-Spam-Level"}


def test_gtube_is_refused_in_the_session(scanned):
    met = scanned.send("spamd", message("gtube", GTUBE))
    assert met.reply == "550 5.7.1"
    assert met.text.startswith("5.7.1 message looks like spam (ref ")
    assert met.value("spamd")["score"] >= 1000
    assert "GTUBE" in met.verdict("spamd")["reason"]


def test_spam_is_set_aside_with_spamds_report(scanned):
    met = scanned.send("spamd-report", message("twelve-points", fields=FORGED))
    assert scanned.held(met)
    assert {"GP_TWELVE", "GP_RELAY"} <= set(met.value("spamd")["symbols"])
    scanned.release(met)
    fields = spam_fields(scanned, met)
    assert "GP_TWELVE" in fields["X-Spam-Report"]
    assert fields["X-Spam-Flag"] == "YES"


def test_spamds_own_fields_and_subject(scanned):
    met = scanned.send("spamd-headers", message("=?utf-8?q?six-points_=C3=A9?=", fields=FORGED))
    fields = spam_fields(scanned, met)
    assert fields["X-Spam-Status"].startswith("Yes, score=")
    assert fields["X-Spam-Checker-Version"].startswith("SpamAssassin ")
    assert "X-Spam-Evil" not in fields
    parsed = message_from_bytes(scanned.stored(met), policy=policy.default)
    assert "***SPAM***" in parsed["Subject"]
    assert "six-points é" in parsed["Subject"]
    assert "GP_SIX" in met.value("spamd")["symbols"]


def test_spamd_uses_the_preferences_of_the_one_recipient(scanned, spamd):
    scanned.send("spamd-user", message("one"))
    assert f"for {RECIPIENTS[0]}:" in spamd.log
    before = spamd.log.count(RECIPIENTS[1])
    scanned.send("spamd-user", message("two"), RECIPIENTS)
    assert spamd.log.count(RECIPIENTS[1]) == before, "there is no one recipient"


# rspamd


def test_a_rule_of_rspamd_marks_the_message(scanned):
    met = scanned.send("rspamd", message("six-points", fields=b"X-Spam: no\r\nX-Spam-Status: No, really\r\n"))
    found = met.value("rspamd")
    assert found["action"] == "add header"
    assert "SIX_POINTS(6.00)" in found["symbols"]
    assert "X-Spam-Status" in json.dumps(found["edits"])
    assert scanned.values(met, "X-Spam") == ["Yes"]
    (status,) = scanned.values(met, "X-Spam-Status")
    assert status.startswith("Yes, score=")
    assert scanned.values(met, "X-Spam-Level") == ["*" * int(found["score"])]


def test_ham_has_rspamds_fields_and_no_mark(scanned):
    met = scanned.send("rspamd", message("hello"))
    assert met.value("rspamd")["action"] == "no action"
    assert scanned.values(met, "X-Spam") == []
    assert scanned.values(met, "X-Spam-Status")[0].startswith("No, score=")


def test_the_subject_is_rewritten(scanned):
    met = scanned.send("rspamd", message("eight-points"))
    assert met.value("rspamd")["action"] == "rewrite subject"
    assert scanned.values(met, "Subject") == ["[spam] eight-points"]


@pytest.mark.parametrize("pipeline", ["rspamd", "rspamd-password", "rspamd-messages"])
def test_gtube_is_refused_by_rspamd_too(scanned, pipeline):
    met = scanned.send(pipeline, message("gtube", GTUBE))
    assert met.reply == "550 5.7.1"
    words = "Gtube pattern" if pipeline == "rspamd-messages" else "message looks like spam"
    assert met.text.startswith(f"5.7.1 {words} (ref ")
    assert met.verdict("rspamd")["reason"] == "reject, score 15 of 15: Gtube pattern"


def test_or_set_aside_where_the_options_say_so(scanned):
    met = scanned.send("rspamd-socket", message("twenty-points"))
    assert scanned.held(met)


def test_rspamd_knows_session_and_envelope(scanned):
    symbols = " ".join(scanned.send("rspamd", message("hello"), RECIPIENTS).value("rspamd")["symbols"])
    assert "FROM_EQ_ENVFROM" in symbols
    assert "SEEN_CLIENT(0.00)[198.51.100.7, relay.sender.test, anna@example.org, ben@example.org]" in symbols


def test_a_wrong_password_is_a_fault_and_stands_nowhere(scanned):
    met = scanned.send("rspamd-wrong", message("hello"))
    assert met.reply == "451 4.3.0"
    assert met.note("rspamd")["fault"] == "error"
    assert "rspamd says 40" in json.dumps(met.record)
    for secret in ("something-else", PASSWORD):
        assert secret not in scanned.gate.log + json.dumps(met.record) + scanned.gate.run("pipeline")


# All of them


def test_all_three_look_at_once_and_the_first_in_the_list_decides(scanned):
    met = scanned.send("all", message("both", clamav.MARKER + b"\r\n" + GTUBE))
    assert met.value("clamd")["names"] == [clamav.MARKER_NAME]
    assert met.text.startswith("5.7.1 malware")


def test_each_of_two_spam_filters_judges_by_its_own_score(scanned):
    met = scanned.send("all", message("six-points"))
    ours, theirs = met.value("spamd"), met.value("rspamd")
    assert (ours["scanner"], theirs["scanner"], theirs["action"]) == ("spamd", "rspamd", "add header")
    assert ours["score"] != theirs["score"]
    assert scanned.values(met, "X-Spam-Score") == [f"{ours['score']:.1f}"]
    assert scanned.values(met, "X-Spam") == ["Yes"]
    assert scanned.values(met, "X-Virus-Status") == ["Clean"]
    assert len(scanned.values(met, "X-Spam-Status")) == 1


def test_large_messages_stream_through_all_three_without_staying_in_memory(scanned):
    (worker,) = scanned.gate.workers
    scanned.send("all", message("warm"))
    before = memory(worker, "VmRSS")
    met = scanned.send("all", large("large"))
    assert met.value("clamd")["skipped"] == "", "clamd had all of it"
    assert met.value("rspamd")["skipped"] == "", "and rspamd"
    assert met.value("spamd")["skipped"] == "larger than 524288 octets"
    spam = scanned.send("spamd-large", large("large"))
    assert spam.value("spamd")["skipped"] == "", "and spamd, where it is to"
    used = memory(worker, "VmHWM") - before
    assert used < ALLOWED, f"{used >> 10} KiB"
    for taken in (met, spam):
        assert scanned.stored(taken).count(b"x" * 76) == LARGE // 78, "and it arrived whole"


def test_what_the_metrics_say(scanned):
    gate = scanned.gate
    scanned.send("clamd", message("malware", clamav.MARKER))
    scanned.send("spamd", message("gtube", GTUBE))
    scanned.send("rspamd", message("gtube", GTUBE))
    assert gate.metric("gatepost_clamd_scans_total", result="infected") >= 1
    assert gate.metric("gatepost_spamd_checks_total", result="spam") >= 1
    assert gate.metric("gatepost_rspamd_checks_total", action="reject") >= 1
    for plugin in ("clamd", "spamd", "rspamd"):
        seconds = "scan" if plugin == "clamd" else "check"
        assert gate.metric(f"gatepost_{plugin}_{seconds}_seconds_count") >= 1
