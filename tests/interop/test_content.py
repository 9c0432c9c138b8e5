"""What is inside of messages, through a running Gatepost: real archives, lists of rbldnsd, messages of swaks."""

from __future__ import annotations

import base64
import bz2
import io
import json
import os
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest

from tests.interop.explained import found
from tests.interop.settings import delivered, maildir
from tests.support.clients import connect, queue_id, reference, swaks, transact
from tests.support.gatepost import GatepostProcess
from tests.support.process import binary, free_port, wait_until
from tests.support.rbldnsd import Rbldnsd

pytestmark = pytest.mark.slow

PROGRAM = b"MZ\x90\x00" + b"\0" * 60 + b"PE\0\0"
SEND = ("--from", "ann@sender.test", "--to", "ben@example.org", "--suppress-data")


def message(*files: tuple[str, bytes], text: str = "see attached\n", kind: str = "plain") -> bytes:
    made = EmailMessage()
    made["From"] = "ann@sender.test"
    made["To"] = "ben@example.org"
    made["Date"] = "Sun, 01 Nov 2026 10:00:00 +0000"
    made["Message-ID"] = "<1@sender.test>"
    made.set_content(text, subtype=kind)
    for name, octets in files:
        made.add_attachment(octets, "application", "octet-stream", filename=name)
    return made.as_bytes(policy=SMTP)


def send(gate: GatepostProcess, content: bytes, port: int = 0) -> tuple[tuple[int, str], Any]:
    """The reply, and the decision record."""
    with connect(port or gate.port) as client:
        reply = transact(client, "ann@sender.test", ["ben@example.org"], content)
    return reply, record(gate, queue_id(reply) if reply[0] == 250 else reference(reply[1]))


def record(gate: GatepostProcess, id: str) -> Any:
    """The decision record; that of a refusal is written a moment after the reply."""

    def written() -> Any:
        status, body = gate.http("GET", f"/api/v1/explain/{id}")
        return json.loads(body) if status == 200 else None

    return wait_until(written, f"the record of {id} is written")


def made_by_zip(directory: Path, name: str, *arguments: str, **files: bytes) -> Path:
    for stem, octets in files.items():
        (directory / stem.replace("_", ".")).write_bytes(octets)
    archive = directory / name
    argv = [binary("zip"), "-q", *arguments, str(archive), *(stem.replace("_", ".") for stem in files)]
    subprocess.run(argv, cwd=directory, check=True, timeout=30)
    return archive


def items(explained: Any) -> dict[str, dict[str, Any]]:
    (finding,) = found(explained, "Attachments")
    return {item["name"]: item for item in finding["items"]}


def test_a_program_in_an_archive_made_by_zip_and_sent_by_swaks_is_refused_and_a_text_is_not(gatepost, directory):
    gate = gatepost(domains=maildir(directory), pipeline=[{"mime": {}}, {"attachments": {}}])
    bad = made_by_zip(directory, "photos.zip", photo_jpg=PROGRAM, notes_txt=b"some notes\n" * 100)
    heard = swaks(gate.port, *SEND, "--attach-type", "application/zip", "--attach", f"@{bad}")
    assert "550 5.7.1 attachment not accepted" in heard.text
    good = made_by_zip(directory, "notes.zip", notes_txt=b"some notes\n" * 100)
    heard = swaks(gate.port, *SEND, "--attach-type", "application/zip", "--attach", f"@{good}")
    assert heard.status == 0, heard.text
    seen = items(record(gate, heard.queue_id))
    assert (seen["notes.zip"]["type"], seen["notes.zip"].get("flaws")) == ("application/zip", None)
    assert (seen["notes.txt"]["inside"], seen["notes.txt"]["size"]) == (["notes.zip"], 1100)
    wait_until(lambda: len(delivered(directory)) == 1, "the good one is delivered")
    assert gate.metric("gatepost_attachments_files_total", kind="executable") == 1


def test_an_archive_with_a_password_is_set_aside_where_the_operator_says_so(gatepost, directory):
    deny = [{"encrypted": True, "inside": True, "action": "quarantine"}]
    gate = gatepost(domains=maildir(directory), pipeline=[{"attachments": {"deny": deny}}])
    archive = made_by_zip(directory, "secret.zip", "-P", "infected", plan_txt=b"the plan\n" * 50)
    reply, explained = send(gate, message(("secret.zip", archive.read_bytes())))
    assert reply[0] == 250
    seen = items(explained)
    assert (seen["secret.zip"]["encrypted"], seen["plan.txt"]["encrypted"]) == (True, True)
    assert [entry["state"] for entry in gate.queue()] == ["quarantine"]


def test_bombs_are_set_aside_and_cost_little(gatepost, directory):
    gate = gatepost(domains=maildir(directory), pipeline=[{"attachments": {"max_unpacked": "20MiB", "time": "20s"}}])
    layer = b"\0" * 2_000_000
    for _ in range(3):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for n in range(16):
                archive.writestr(f"{n}.zip", layer)
        layer = out.getvalue()
    assert len(layer) < 200_000, "it would unpack to 8 GB"
    reply, explained = send(gate, message(("bomb.zip", layer)))
    assert reply[0] == 250
    assert [entry["state"] for entry in gate.queue()] == ["quarantine"]
    (finding,) = found(explained, "Attachments")
    assert not finding["complete"]
    assert "too-large" in items(explained)["bomb.zip"]["flaws"]
    assert gate.metric("gatepost_attachments_flaws_total", flaw="too-large") == 1


def looked(explained: Any) -> dict[str, Any]:
    """The record's note of the look-up."""
    (note,) = [f for f in explained[0]["record"]["findings"] if f["plugin"] == "attachments"]
    return note


def test_a_look_into_archives_that_takes_too_long_takes_the_way_of_on_error_and_the_breaker_opens_and_closes(
    gatepost, directory
):
    on_errors = {"proceed": "250 2.0.0", "defer": "451 4.3.0", "reject": "554 5.3.0"}
    ports = {name: free_port() for name in on_errors}
    slow = {"max_unpacked": "2GiB", "max_ratio": 1_000_000, "time": "60s"}
    gate = gatepost(
        breaker_pause=1.0,
        domains=maildir(directory),
        listeners=[{"address": f"127.0.0.1:{port}", "role": "edge", "pipeline": n} for n, port in ports.items()],
        pipelines={n: [{"attachments": slow, "timeout": "300ms", "on_error": n}] for n in on_errors},
    )
    # Half a minute's work in some kilobytes.
    content = message(("zeros.bz2", bz2.compress(b"\0" * 50_000_000) * 40))
    for name, wanted in on_errors.items():
        reply, explained = send(gate, content, ports[name])
        assert f"{reply[0]} {reply[1].split()[0]}" == wanted
        assert (looked(explained)["fault"], "value" in looked(explained)) == ("timeout", False)
    assert gate.metric("gatepost_findings_total", plugin="attachments", outcome="timeout") == 3

    # Nobody waits for what the threads were at: they stop, and the next message has them.
    harmless = message(("a.txt", b"x"))
    assert items(send(gate, harmless, ports["defer"])[1])["a.txt"]["size"] == 1

    for _ in range(4):
        assert gate.metric("gatepost_breaker_open", plugin="attachments") == 0
        send(gate, content, ports["proceed"])
    assert gate.metric("gatepost_breaker_open", plugin="attachments") == 1
    reply, explained = send(gate, harmless, ports["proceed"])
    assert (reply[0], looked(explained)["fault"]) == (250, "breaker")
    wait_until(lambda: "value" in looked(send(gate, harmless, ports["proceed"])[1]), "the breaker closes")
    assert gate.metric("gatepost_breaker_open", plugin="attachments") == 0


def test_a_large_message_does_not_hold_up_the_others(gatepost, directory):
    gate = gatepost(
        domains=maildir(directory), workers=1, pipeline=[{"mime": {}}, {"attachments": {}}, {"uribl": URIBL}]
    )
    large = message(("noise.bin", os.urandom(20 << 20)))
    small = message(text="hello\n")
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send, gate, large)
        others = []
        while not sending.done():
            begun = time.monotonic()
            assert send(gate, small)[0][0] == 250
            others.append(time.monotonic() - begun)
        began_to_end = sending.result()
    assert began_to_end[0][0] == 250
    (finding,) = found(began_to_end[1], "Attachments")
    assert finding["items"][0]["size"] == 20 << 20
    assert len(others) >= 2


URIBL = {"lists": {"uri.test": 1}}


def test_defects_are_in_the_record_and_are_refused_where_the_operator_says_so(gatepost, directory):
    gate = gatepost(
        domains=maildir(directory), pipeline=[{"mime": {"refuse_defects": {"duplicate-content-type": "reject"}}}]
    )
    nested = message(("a.txt", b"x")).replace(b"--\r\n", b"\r\n")
    reply, explained = send(gate, nested)
    assert reply[0] == 250
    (finding,) = found(explained, "Mime")
    assert "missing-end-boundary" in finding["defects"]
    assert [part["type"] for part in finding["parts"]][:2] == ["multipart/mixed", "text/plain"]
    reply, _ = send(gate, b"Content-Type: text/plain\r\n" + message())
    assert (reply[0], reply[1].startswith("5.6.0 message is malformed")) == (554, True)
    assert gate.metric("gatepost_mime_defects_total", defect="missing-end-boundary") == 1


def test_messages_that_lead_to_listed_domains_are_judged_by_rbldnsds_answers(gatepost, running, directory):
    lists = running(
        Rbldnsd(
            {},
            {
                "multi.test": [".evil.test :127.0.0.8:spam", ".grey.test :127.0.0.4:grey"],
                "dbl.test": ["bad.host.test :127.0.1.2:spam"],
                "broken.test": [".evil.test :127.255.255.254:public resolver"],
            },
        )
    )
    options = {
        "lists": {
            "multi.test": {"bits": {8: 3, 4: 0.5}},
            "dbl.test": {"ask": "host", "weight": 4},
            "broken.test": 50,
        },
        "reject_at": 3,
        "quarantine_at": None,
        "tag_at": 0.5,
        "wait": "2s",
    }
    gate = gatepost(
        domains=maildir(directory),
        dns={"nameservers": [lists.address], "timeout": "2s"},
        pipeline=[{"mime": {}}, {"uribl": options}],
    )
    page = base64.b64encode(b'<p>see <a href="https://www.Evil.test:443/x">this</a>')
    html = message().replace(b"text/plain", b"text/html").replace(b"7bit", b"base64").replace(b"see attached", page)
    reply, explained = send(gate, html)
    assert reply[0] == 550
    (finding,) = found(explained, "UriHits")
    assert finding["hits"] == [{"host": "www.evil.test", "list": "multi.test", "codes": ["127.0.0.8"], "weight": 3}]
    assert (finding["score"], finding["failed"]) == (3, ["broken.test"])

    reply, explained = send(gate, message(text="http://bad.host.test/ and http://good.host.test/\n"))
    assert reply[0] == 550
    assert send(gate, message(text="http://good.host.test/\n"))[0][0] == 250

    assert send(gate, message(text="http://shop.grey.test/?id=1\n"))[0][0] == 250
    wait_until(lambda: len(delivered(directory)) == 2, "both are delivered")
    texts = [path.read_bytes() for path in delivered(directory)]
    assert sorted(b"X-Uri-Score: 0.5" in text for text in texts) == [False, True]
    assert gate.metric("gatepost_uribl_hits_total", list="multi.test") == 2
    assert gate.metric("gatepost_uribl_failures_total", list="broken.test") == 1
