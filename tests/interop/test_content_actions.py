"""Content checks, DLP and disclaimers in a running Gatepost: what real programs make, and what arrives of it."""

from __future__ import annotations

import email
import json
import shutil
import subprocess
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.interop.explained import found
from tests.support.clients import connect, queue_id, reference, swaks, transact
from tests.support.gatepost import GatepostProcess, refused_start
from tests.support.postfix import SmtpSink
from tests.support.process import binary, wait_until

pytestmark = pytest.mark.slow

CARD = "4111 1111 1111 1111"
TEXT = "Vertraulich: für Sie?\nGrüße aus Köln."
HTML = '<div class="legal">Vertraulich: für Sie?</div>'


def boxes(directory: Path) -> dict[str, Any]:
    return {"example.org": {"next_hop": f"maildir:{directory}/mail/{{local}}", "recipients": "any"}}


def arrived(directory: Path, user: str = "anna") -> list[bytes]:
    paths = sorted((directory / "mail" / user / "new").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    return [path.read_bytes() for path in paths]


def send(gate: GatepostProcess, content: bytes, to: str = "anna@example.org", parameters: str = "") -> str:
    content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    with connect(gate.port) as smtp:
        return queue_id(transact(smtp, "ann@in.test", [to], content, parameters=parameters))


def message(body: str = "Guten Tag,\nGrüße\n", **how: str) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "ann@in.test", "anna@example.org", "x"
    made.set_content(body, **how)
    return made


def alternative(**how: str) -> EmailMessage:
    made = message(**how)
    made.add_alternative("<html><body><p>Guten Tag, Grüße</p></body></html>\n", subtype="html", **how)
    return made


def with_files() -> EmailMessage:
    made = alternative()
    made.add_attachment(bytes(range(256)) * 4000, maintype="application", subtype="octet-stream", filename="a.bin")
    made.add_attachment("a note: Grüße\n", filename="note.txt")
    return made


MESSAGES = {
    "8bit": message(cte="8bit"),
    "quoted-printable": message(cte="quoted-printable"),
    "base64": message(cte="base64"),
    "latin 1": message(charset="iso-8859-1", cte="8bit"),
    "ASCII": message("Guten Tag,\n", charset="us-ascii", cte="7bit"),
    "alternative": alternative(),
    "alternative in base64": alternative(cte="base64"),
    "HTML only": message("<p>Guten Tag, Grüße</p>\n", subtype="html"),
    "with attachments": with_files(),
}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatepostProcess, Path]]:
    directory = tmp_path_factory.mktemp("disclaimers")
    options = {"text": TEXT, "html": HTML, "senders": ["in.test"]}
    process = GatepostProcess({"domains": boxes(directory), "pipeline": [{"disclaimer": options}]})
    yield process, directory
    process.stop()
    shutil.rmtree(process.directory)


def delivered(gate: tuple[GatepostProcess, Path], content: bytes) -> EmailMessage:
    """The message as it arrived, which Python's email package finds nothing wrong with."""
    process, directory = gate
    before = len(arrived(directory))
    send(process, content, parameters=" BODY=8BITMIME")
    wait_until(lambda: len(arrived(directory)) > before, "the message is delivered")
    parsed = email.message_from_bytes(arrived(directory)[-1], policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    for part in parsed.walk():
        assert part.defects == []
    return parsed


@pytest.mark.parametrize("name", MESSAGES)
def test_a_disclaimer_arrives_in_every_kind_of_message_and_the_rest_is_untouched(gate, name):
    original = MESSAGES[name]
    parsed = delivered(gate, bytes(original))
    assert [p.get_content_type() for p in parsed.walk()] == [p.get_content_type() for p in original.walk()]
    assert parsed["x-disclaimer"]
    for before, after in zip(original.walk(), parsed.walk(), strict=True):
        if before.is_multipart():
            continue
        if before.get_content_disposition() == "attachment" or before.get_content_maintype() != "text":
            assert after.get_content() == before.get_content()
            continue
        text = after.get_content().replace("\r\n", "\n")
        if before.get_content_subtype() == "html":
            assert "für Sie?</div>" in text.replace("&#252;", "ü")
            assert text.replace("\n", "").startswith(before.get_content().replace("\n", "").partition("</body>")[0])
        else:
            assert text == f"{before.get_content()}\n{TEXT}\n"


def test_a_signature_of_openssl_still_holds_and_one_over_a_changed_message_would_not(gate, certificate, directory):
    plain = directory / "plain"
    plain.write_bytes(b"Content-Type: text/plain\r\n\r\nGuten Tag\r\n")
    signed = directory / "signed"
    key = ("-signer", str(certificate.certificate), "-inkey", str(certificate.key))
    argv = [binary("openssl"), "smime", "-sign", "-in", str(plain), "-out", str(signed), *key]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    process, box = gate
    before = len(arrived(box))
    id = send(process, b"From: ann@in.test\nSubject: signed\n" + signed.read_bytes())
    wait_until(lambda: len(arrived(box)) > before, "the message is delivered")
    (finding,) = found(process.cli("explain", id), "Disclaimer")
    assert finding == {"state": "signed", "parts": [], "edits": []}

    def verifies(octets: bytes) -> bool:
        path = directory / "received"
        path.write_bytes(octets)
        verify = [binary("openssl"), "smime", "-verify", "-noverify", "-in", str(path), "-out", "/dev/null"]
        return subprocess.run(verify, capture_output=True, timeout=60).returncode == 0

    assert verifies(arrived(box)[-1])
    assert not verifies(arrived(box)[-1].replace(b"Guten Tag", b"Guten Morgen"))


def test_what_swaks_makes_gets_a_disclaimer_once_and_strangers_get_none(gate, directory):
    process, box = gate
    path = directory / "file.bin"
    path.write_bytes(b"\x00\xff" * 5000)
    before = len(arrived(box))
    for sender in ("ann@in.test", "eve@out.test"):
        argv = ("--to", "anna@example.org", "--from", sender, "--body", "Hello there", "--attach", f"@{path}")
        assert swaks(process.port, *argv).status == 0
    wait_until(lambda: len(arrived(box)) == before + 2, "both are delivered")
    ours, theirs = sorted(arrived(box)[-2:], key=len, reverse=True)
    assert b"x-disclaimer" not in theirs.lower()
    assert ours.lower().count(b"x-disclaimer:") == 1
    again = ours.partition(b"X-Disclaimer")
    send(process, b"X-Disclaimer" + again[2])
    wait_until(lambda: len(arrived(box)) == before + 3, "the third is delivered")
    assert arrived(box)[-1].lower().count(b"x-disclaimer:") == 1


def test_a_large_message_gets_it_while_it_is_stored(gate):
    made = message("".join(f"line {n} Grüße\n" for n in range(150_000)), cte="8bit")
    made.add_attachment(bytes(range(256)) * 60_000, maintype="application", subtype="octet-stream", filename="a.bin")
    parsed = delivered(gate, bytes(made))
    text, attached = parsed.iter_parts()
    lines = "".join(f"line {n} Grüße\n" for n in range(150_000))
    assert text.get_content().replace("\r\n", "\n") == f"{lines}\n{TEXT}\n"
    assert attached.get_content() == bytes(range(256)) * 60_000


def test_a_card_number_sets_a_message_aside_and_stands_nowhere_in_record_or_log(gatepost, directory):
    pipeline = [{"mime": {}}, {"dlp": {"detect": {"payment-card": {}, "iban": {"action": "reject"}}}}]
    gate = gatepost(domains=boxes(directory), pipeline=pipeline)
    id = send(gate, bytes(message(f"die Karte: {CARD}\n", cte="base64")))
    (queued,) = gate.queue()
    assert (queued["id"], queued["state"]) == (id, "quarantine")
    explained = json.dumps(gate.cli("explain", id))
    assert "************1111" in explained
    for text in (explained, gate.run("explain", id), gate.log):
        assert CARD not in text and CARD.replace(" ", "") not in text
    content = bytes(message("IBAN DE89 3704 0044 0532 0130 00\n", subtype="html"))
    with connect(gate.port) as smtp:
        code, text = transact(smtp, "ann@in.test", ["anna@example.org"], content.replace(b"\n", b"\r\n"))
    assert (code, text.partition(" (ref ")[0]) == (550, "5.7.1 message holds data that must not be sent")
    assert "iban (1)" in gate.run("explain", reference(text))
    assert gate.metric("gatepost_dlp_messages_total", detector="payment-card") == 1
    gate.run("queue", "release", id)
    wait_until(lambda: len(arrived(directory)) == 1, "released, it is delivered")


def test_dlp_needs_mime_before_it_and_a_start_without_says_so(directory):
    status, said = refused_start({"domains": boxes(directory), "pipeline": [{"dlp": {"detect": {"iban": {}}}}]})
    assert status != 0 and "Mime" in said


def test_copies_redirects_and_filters_go_where_the_rules_say(gatepost, running, directory):
    sink = running(SmtpSink(dump=True))
    table = directory / "checks"
    table.write_text(
        "/^Subject: copy/ BCC archive@example.org\n"
        "/^Subject: other/ REDIRECT carl@example.org\n"
        f"/^Subject: filter/ FILTER smtp:[127.0.0.1]:{sink.port}\n"
        "/^Subject: hold/ HOLD to be looked at\n"
        "/^Subject: gone/ DISCARD as agreed\n"
        "/^Subject: (warn)/ WARN about $1\n"
    )
    gate = gatepost(domains=boxes(directory), pipeline=[{"content-checks": {"tables": [{"file": str(table)}]}}])
    ids = {}
    for subject in ("copy", "other", "filter", "hold", "gone", "warn"):
        ids[subject] = send(gate, f"From: ann@in.test\nSubject: {subject}\n\nHello\n".encode())
    wait_until(lambda: [m["id"] for m in gate.queue()] == [ids["hold"]], "all others are delivered")

    def subjects(user: str) -> list[str]:
        return [email.message_from_bytes(octets)["subject"] for octets in arrived(directory, user)]

    assert subjects("anna") == ["copy", "warn"]
    assert subjects("archive") == ["copy"] and subjects("carl") == ["other"]
    (filtered,) = sink.messages()
    assert "Subject: filter" in filtered and "anna@example.org" in filtered
    assert "content.matched" in gate.log and "about warn" in gate.log
    assert f"{table}:4" in gate.run("explain", ids["hold"])
    assert gate.metric("gatepost_content_checks_matches_total", place="header", action="redirect") == 1

    gate.run("queue", "release", ids["hold"])
    wait_until(lambda: subjects("anna") == ["copy", "warn", "hold"], "released, it is delivered")


def test_a_changed_table_is_in_force_and_a_broken_one_is_not(gatepost, directory):
    table = directory / "checks"
    table.write_text("/^Subject: one/ REJECT\n")
    tables = [{"file": str(table), "kind": "regexp"}]
    gate = gatepost(domains=boxes(directory), pipeline=[{"content-checks": {"tables": tables}}])

    def code(subject: str) -> int:
        with connect(gate.port) as smtp:
            content = f"From: ann@in.test\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()
            return transact(smtp, "ann@in.test", ["anna@example.org"], content)[0]

    assert (code("one"), code("two")) == (550, 250)
    table.write_text("/^Subject: two/ REJECT\n")
    wait_until(lambda: code("two") == 550, "the table is read again")
    table.write_text("/^Subject: two/ REJECT\n/(?=one)/ REJECT\n")
    wait_until(lambda: code("two") == 550 and "file.unusable" in gate.log, "the broken table is seen")
    assert f"{table}" in gate.log and "line 2: (? belongs to pcre" in gate.log
    status, said = refused_start({"domains": boxes(directory), "pipeline": [{"content-checks": {"tables": tables}}]})
    assert status != 0 and f"{table}: line 2: (? belongs to pcre" in said


@pytest.mark.parametrize(
    ("on_error", "reply"), [("proceed", 250), ("defer", 451), ("reject", 554)]
)  # fmt: skip
def test_a_message_that_takes_longer_than_it_may_is_for_on_error_to_decide(gatepost, directory, on_error, reply):
    tables = [{"match": ["body"], "entries": ["!/[a-z]/ WARN"]}]
    options = {"tables": tables, "segment": "20MiB"}
    entry = {"content-checks": options, "timeout": "20ms", "on_error": on_error}
    gate = gatepost(domains=boxes(directory), pipeline=[entry], limits={"message_size": "20MiB"})
    content = b"From: ann@in.test\r\nSubject: many lines\r\n\r\n" + b"1\r\n" * 2_000_000
    with connect(gate.port) as smtp:
        code, text = transact(smtp, "ann@in.test", ["anna@example.org"], content)
    assert code == reply, text
    id = queue_id((code, text)) if code == 250 else reference(text)
    assert "timeout" in gate.run("explain", id)
    assert gate.metric("gatepost_findings_total", plugin="content-checks", outcome="timeout") == 1


def test_what_one_entry_changes_the_next_one_builds_on(gatepost, directory):
    fields = {"entries": ["/^Subject: (.*)/ REPLACE Subject: [checked] $1", "/^From:/ PREPEND X-First: yes"]}
    lines = {"match": ["body"], "entries": ["/^Guten Tag/ REPLACE Guten Abend", "/^Gr/ IGNORE"]}
    pipeline = [
        {"content-checks": {"tables": [fields, lines]}},
        {"disclaimer": {"text": TEXT}},
        {"content-checks": {"tables": [{"match": ["body"], "entries": ["/^Vertraulich/ PREPEND ---"]}]}},
        {"disclaimer": {"text": "again", "position": "top"}},
    ]
    gate = gatepost(domains=boxes(directory), pipeline=pipeline)
    send(gate, bytes(message(cte="8bit")), parameters=" BODY=8BITMIME")
    wait_until(lambda: arrived(directory), "the message is delivered")
    parsed = email.message_from_bytes(arrived(directory)[0], policy=policy.default)
    assert parsed["subject"] == "[checked] x" and parsed["x-first"] == "yes"
    assert len(parsed.get_all("x-disclaimer")) == 2
    assert parsed.get_content().replace("\r\n", "\n") == f"again\n\nGuten Abend\n\n---\n{TEXT}\n"


def test_an_archive_gets_a_copy_with_the_envelope_and_nobody_learns_of_blind_copies(gatepost, directory):
    archive = {"to": ["archive@example.org"], "header": "X-Envelope-To"}
    gate = gatepost(domains=boxes(directory), pipeline=[{"archive": archive}])
    for to in (["anna@example.org"], ["anna@example.org", "blind@example.org"]):
        with connect(gate.port) as smtp:
            queue_id(transact(smtp, "ann@in.test", to, b"To: anna@example.org\r\nSubject: x\r\n\r\nHello\r\n"))
        gate.wait_empty()
    copies = [email.message_from_bytes(octets) for octets in arrived(directory, "archive")]
    assert [copy["x-envelope-to"] for copy in copies] == ["anna@example.org", None]
    assert len(arrived(directory, "anna")) == 2 and len(arrived(directory, "blind")) == 1
    assert all(b"blind@example.org" not in octets for octets in arrived(directory, "anna"))
