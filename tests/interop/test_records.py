"""Decision records of a running Gatepost: how much is kept of them, and that nobody's name stands in them."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import connect, queue_id, transact
from tests.support.process import free_port, wait_until

pytestmark = pytest.mark.slow

# Words that stand nowhere else, and that no hash can hold: those have no "0", "1", "8" or "9".
NAMES = SENDER, KNOWN, UNKNOWN, ELSEWHERE, COPY, THIRD = "qann8", "qben8", "qcarl8", "qdora8", "qeve8", "qfred8"
MAIL = (
    f"From: Ann <{SENDER}@sender.test>\r\nTo: Ben <{KNOWN}@example.org>, {THIRD}@third.test\r\n"
    f"Subject: For {KNOWN.upper()} and {THIRD}\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello.\r\n"
).encode()


def rows(gate: Any, table: str) -> list[str]:
    """The bodies of a table, as somebody reads them who has the files."""
    out: list[str] = []
    for shard in sorted((Path(gate.options["spool"]["path"])).glob("shard-*")):
        with sqlite3.connect(f"file:{shard / 'spool.db'}?mode=ro", uri=True) as database:
            out += [body for (body,) in database.execute(f"SELECT body FROM {table} ORDER BY id")]
    return out


def queued(gate: Any) -> list[dict[str, Any]]:
    """What the admin API says is in the queue."""
    messages: list[dict[str, Any]] = json.loads(gate.http("GET", "/api/v1/queue")[1])["messages"]
    return messages


def test_no_local_part_stands_in_the_records_of_real_mail(gatepost, directory):
    rules = [
        {
            "name": "tagged",
            "when": "message.size > 0",
            "then": {"tag_subject": f"[{KNOWN}]", "bcc": f"{COPY}@example.org"},
        },
        {"when": f'sender.local == "{THIRD}"', "then": {"quarantine": f"mail of {THIRD}@sender.test"}},
    ]
    lists = directory / "access"
    lists.write_text(f"{UNKNOWN}@sender.test reject 5.7.1 not from {UNKNOWN}\n")
    gate = gatepost(
        spool={"path": str(directory / "spool"), "redact": "local-parts"},
        domains={
            "example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": [KNOWN, COPY]}},
            "dead.test": {"next_hop": f"smtp:127.0.0.1:{free_port()}", "recipients": "any"},
        },
        pipeline=[
            {"access": {"lists": [{"match": "sender", "file": str(lists)}]}},
            "recipient",
            {"rules": rules},
        ],
        split="copies",
    )
    with connect(gate.port) as client:
        taken = queue_id(transact(client, f"{SENDER}@sender.test", [f"{KNOWN}@example.org"], MAIL))
        assert transact(client, f"{SENDER}@sender.test", [f"{UNKNOWN}@example.org"], MAIL)[0] == 550
        assert transact(client, f"{UNKNOWN}@sender.test", [f"{KNOWN}@example.org"], MAIL)[0] == 550
        waiting = queue_id(transact(client, f"{SENDER}@sender.test", [f"{ELSEWHERE}+x@dead.test"], MAIL))
        jailed = queue_id(transact(client, f"{THIRD}@sender.test", [f"{KNOWN}@example.org"], MAIL))
    release = {"to": [f"{COPY}@example.org"], "by": "the postmaster"}
    assert gate.http("POST", f"/api/v1/quarantine/{jailed}/release", release)[0] == 200
    wait_until(lambda: len(rows(gate, "attempt")) >= 4, "everything was tried")
    wait_until(lambda: [m["id"] for m in queued(gate)] == [waiting], "all but one have left")

    records, attempts = rows(gate, "record"), rows(gate, "attempt")
    assert len(records) == 5
    for body in (*records, *attempts):
        for name in NAMES:
            assert name not in body.lower(), body
    assert all("@sender.test" in body and '"redacted":[' in body for body in records)
    key = directory / "spool/redact.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600

    # Who knows an address finds its mail; the envelope is there for as long as it is needed.
    assert [r["id"] for r in gate.cli("explain", "--recipient", f"{KNOWN.upper()}@example.org")][-1] == taken
    assert queued(gate)[0]["recipients"][0]["address"] == f"{ELSEWHERE}+x@dead.test"
    explained = gate.run("explain", taken)
    assert SENDER not in explained and "+ Subject: (redacted)" in explained
    asked = gate.cli("whatif", f'sender.domain == "sender.test" && sender.local != "{SENDER}"')
    assert asked["unknown_because"] == {"the local part of an address was redacted": 5}


def test_the_oldest_records_go_when_there_are_too_many_and_mail_goes_on(gatepost, directory):
    gate = gatepost(
        spool={"path": str(directory / "spool"), "keep_records_size": "100KiB"},
        limits={"errors": 1000},
        domains={
            "example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": ["anna"]}},
            "dead.test": {"next_hop": f"smtp:127.0.0.1:{free_port()}", "recipients": "any"},
        },
    )
    with connect(gate.port) as client:
        waiting = queue_id(transact(client, "ann@sender.test", ["ben@dead.test"]))
        first = queue_id(transact(client, "ann@sender.test", ["anna@example.org"]))
    for _ in range(4):
        with connect(gate.port) as client:
            for number in range(75):
                client.docmd("MAIL", f"FROM:<ann{number}@sender.test>")
                code = client.docmd("RCPT", "TO:<nobody@example.org>")[0]
                assert code == 550, "the record of each goes to the spool"
                client.rset()
            last = queue_id(transact(client, "ann@sender.test", ["anna@example.org"]))

    def octets() -> int:
        return sum(len(body.encode()) for table in ("record", "attempt") for body in rows(gate, table))

    def dropped() -> float:
        return gate.metric("gatepost_records_dropped_total", reason="size")

    wait_until(lambda: dropped() > 0 and octets() <= 100 << 10, "records are within their bound")
    wait_until(lambda: gate.metric("gatepost_records_octets") == octets(), "the metrics say how much there is")
    kept = [json.loads(body)["id"] for body in rows(gate, "record")]
    assert gate.metric("gatepost_records_kept") == len(kept)
    assert first not in kept and {waiting, last} <= set(kept)
    assert kept[0] == waiting, "it is still queued, so its record stays though it is the oldest"
    assert kept[1:] == sorted(kept)[1:] and "records.dropped" in gate.log
    assert [m["id"] for m in queued(gate)] == [waiting]

    exported = gate.run("records", "export", "--outcome", "accepted").splitlines()
    told = {line["record"]["id"]: line for line in map(json.loads, exported)}
    assert told[last]["attempts"][0]["outcome"] == "delivered" and waiting in told
    (gate.directory / "export.jsonl").write_text("\n".join(exported))
    found = gate.cli("whatif", "size(recipients) == 1", "--records", str(gate.directory / "export.jsonl"))
    assert (found["records"], found["matched"]) == (len(told), len(told))
