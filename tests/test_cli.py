"""The command line: what it prints, what it changes, and its exit status (0 done, 1 no, 2 wrong)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.cli.gateway import METRICS_DIRECTORY, metrics_directory
from gateway.cli.output import show
from gateway.cli.tree import tree
from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import Envelope, Recipient
from gateway.spool.opening import open_all, open_worker
from gateway.spool.spool import AttemptRecord, NewMessage, RecipientStatus, Settlement, SpoolOptions, State, Stored
from tests.spool.places import spool_section

SESSION = "0ABCDEFGHJKMN"
QUEUED, HELD, JAILED, REFUSED = (SESSION + n for n in "1234")
CONTENT = b"Subject: \x1b[2J hello\r\nX-Long: one\r\n two\r\n\r\nthe body\r\n"

RECORD: dict[str, Any] = {
    **{"v": 1, "session": SESSION, "time": 1.7e9, "listener": "127.0.0.1:25", "helo": "client.example"},
    **{"client": {"ip": "192.0.2.1", "port": 4321, "name": "client.example"}, "sender": "anna@sender.example"},
    **{"tls": {"version": "TLSv1.3", "cipher": "AES", "sni": ""}, "size": 40, "pipeline": "default"},
    "recipients": [{"address": "ben@example.org", "reply": "250 2.1.5 ok"}],
    "findings": [
        {"stage": "connect", "plugin": "dnsbl", "finding": "Dnsbl", "ms": 3.2, "value": {"score": 4.0, "hits": []}},
        {"stage": "mail", "plugin": "spf", "finding": "Spf", "ms": 9.5, "fault": "timeout", "detail": "took long"},
        {"stage": "rcpt", "plugin": "slow", "finding": "Slow", "pending": True},
    ],
    "verdicts": [
        {
            **{"stage": "connect", "plugin": "dnsbl", "policy": "dnsbl", "version": "2", "action": "reject"},
            **{"shadow": True, "reply": "550 5.7.1 no", "reason": "score 4 [bold]"},
        },
        {
            **{"stage": "mail", "plugin": "spf", "policy": "on_error", "version": "", "action": "proceed"},
            "shadow": False,
        },
    ],
    "edits": [
        {"edit": "AddHeader", "name": "X-Seen", "index": 0, "value": "yes"},
        {"edit": "ReplaceBody", "size": 4096, "old_size": 1000},
        {"edit": "AddRecipient", "recipient": "archive@example.net"},
        {"edit": "Reroute", "next_hop": "smtp:filter.example:10025"},
    ],
    "outcome": "accepted",
    "reply": "250 2.0.0 queued",
}


async def fill(options: SpoolOptions) -> None:
    spool = await open_worker(options)
    for id, state in ((QUEUED, State.QUEUED), (HELD, State.HOLD), (JAILED, State.QUARANTINE)):
        draft = spool.draft(id)
        await draft.write(CONTENT)
        sender = NULL_SENDER if id == HELD else parse_mailbox("anna@sender.example")
        envelope = Envelope(sender, (Recipient(parse_mailbox("ben@example.org")),))
        await spool.commit(draft, NewMessage(id, envelope, 1.7e9, b"", state=state, record={**RECORD, "id": id}))
    (claimed,) = await spool.claim(2e9, 10)
    slots = (replace(claimed.message.slots[0], status=RecipientStatus.DEFERRED, due=4e9, attempts=1, last="451 later"),)
    attempt = AttemptRecord(1.7e9 + 5, "ben@example.org", "deferred", "451 later", "store.example", 0.25)
    await spool.settle(Settlement(QUEUED, slots, (attempt,)))
    spool.note({**RECORD, "id": REFUSED, "outcome": "rejected", "reply": "550 5.7.1 no"})
    await spool.close()


class Bench:
    """A configuration and a spool with mail in it."""

    def __init__(self, folder: Path, options: SpoolOptions | None = None) -> None:
        """`options` are of the spool, which otherwise is files where they are by default."""
        self.file = folder / "gatepost.yaml"
        self.spool = folder / "var/spool"
        self.options = options or SpoolOptions(str(self.spool), min_free=1)
        self.write()

    def write(self, more: str = "") -> None:
        if self.options.path != str(self.spool):
            more += f"spool: {json.dumps(spool_section(self.options))}\n"
        self.file.write_text('hostname: mx.example.org\nlisteners: [{address: "127.0.0.1:2525"}]\n' + more)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "-c", str(self.file)])

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def states(self) -> dict[str, str]:
        return {m["id"]: m["state"] for m in self.json("queue", "list")}

    def stored(self, id: str) -> Stored:
        async def work() -> Stored:
            spool = await open_all(self.options)
            claimed = await spool.show(id)
            await spool.close()
            assert claimed is not None
            return claimed.message

        return asyncio.run(work())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    asyncio.run(fill(made.options))
    return made


def test_queue_list_shows_each_message_with_its_state_and_last_reply(bench: Bench) -> None:
    result = bench.run("queue", "list")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [[QUEUED, "queued"], [HELD, "hold"], [JAILED, "quarantine"]]
    assert "451 later" in result.stdout and " <> " in result.stdout


def test_queue_list_can_be_asked_for_one_state_and_for_pages(bench: Bench) -> None:
    assert [m["id"] for m in bench.json("queue", "list", "--state", "hold")] == [HELD]
    assert [m["id"] for m in bench.json("queue", "list", "--limit", "1", "--after", QUEUED)] == [HELD]


def test_queue_show_prints_envelope_and_header_without_control_characters(bench: Bench) -> None:
    result = bench.run("queue", "show", QUEUED.lower())
    assert result.exit_code == 0
    assert "sender:    anna@sender.example" in result.stdout
    assert "ben@example.org deferred, 1 attempts" in result.stdout
    assert "Subject: \\x1b[2J hello" in result.stdout and "\x1b" not in result.stdout
    assert "the body" not in result.stdout


def test_queue_show_as_json_has_the_header(bench: Bench) -> None:
    shown = bench.json("queue", "show", QUEUED)
    assert shown["header"] == "Subject: \x1b[2J hello\nX-Long: one\n two\n"
    assert shown["recipients"][0]["last"] == "451 later"


def test_queue_show_content_prints_the_octets_and_nothing_else(bench: Bench) -> None:
    result = bench.run("queue", "show", QUEUED, "--content")
    assert result.exit_code == 0 and result.stdout_bytes == CONTENT


def test_flush_makes_deferred_mail_due_and_leaves_held_mail(bench: Bench) -> None:
    assert bench.stored(QUEUED).slots[0].due == 4e9
    assert bench.json("queue", "flush") == {"messages": 1}
    assert bench.stored(QUEUED).slots[0].due == 0.0
    assert bench.states()[HELD] == "hold"


def test_retry_makes_the_named_message_due(bench: Bench) -> None:
    assert bench.run("queue", "retry", QUEUED).exit_code == 0
    assert bench.stored(QUEUED).slots[0].due == 0.0


def test_hold_sets_aside_with_a_reason_and_release_queues_again(bench: Bench) -> None:
    assert bench.run("queue", "hold", QUEUED, "--reason", "asked by legal").stdout == "1 message held\n"
    assert (bench.stored(QUEUED).state, bench.stored(QUEUED).reason) == (State.HOLD, "asked by legal")
    assert bench.run("queue", "release", "--state", "hold").stdout == "2 messages released\n"
    assert bench.states() == {QUEUED: "queued", HELD: "queued", JAILED: "quarantine"}


def test_drop_removes_the_message(bench: Bench) -> None:
    assert bench.json("queue", "drop", QUEUED, HELD) == {"messages": 2}
    assert bench.states() == {JAILED: "quarantine"}


@pytest.mark.parametrize("command", ["hold", "release", "drop", "retry", "flush"])
def test_a_message_that_is_not_there_gives_status_1(bench: Bench, command: str) -> None:
    before = bench.states()
    result = bench.run("queue", command, "0NOSUCH")
    assert result.exit_code == 1 and result.stderr
    assert bench.states() == before


@pytest.mark.parametrize("arguments", [("queue", "show", "0NOSUCH"), ("explain", SESSION + "Z"), ("explain", "nosuch")])
def test_no_answer_gives_status_1(bench: Bench, arguments: tuple[str, ...]) -> None:
    result = bench.run(*arguments)
    assert result.exit_code == 1 and result.stderr and not result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "drop"),
        ("queue", "list", "--state", "nosuch"),
        ("nosuch",),
        ("queue", "show", "x", "--content", "--json"),
    ],
)
def test_wrong_usage_gives_status_2(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (
            {
                **{"verified": True, "fingerprint": "AB:CD", "subject": "par\x1btner", "issuer": "Partners CA"},
                **{"names": ["DNS:mx.partner.example", "IP:192.0.2.1"], "serial": "1F"},
            },
            r"certificate verified par\x1btner DNS:mx.partner.example, IP:192.0.2.1 by Partners CA SHA-256 AB:CD",
        ),
        (
            {"verified": False, "fingerprint": "AB:CD", "problem": "cert has expired"},
            "certificate not verified: cert has expired SHA-256 AB:CD",
        ),
    ],
)
def test_the_certificate_that_the_client_showed_is_told(capsys: Any, shown: dict[str, Any], line: str) -> None:
    show(tree({"record": {**RECORD, "id": QUEUED, "tls": {**RECORD["tls"], "client": shown}}}))
    assert line in capsys.readouterr().out


def test_explain_tells_the_whole_story_of_a_message(bench: Bench) -> None:
    result = bench.run("explain", QUEUED)
    assert result.exit_code == 0
    for part in (
        f"{QUEUED} accepted 250 2.0.0 queued",
        "client client.example [192.0.2.1]:4321",
        "tls TLSv1.3 AES",
        "stage connect",
        "dnsbl: Dnsbl score=4.0 hits=[] 3.2 ms",
        "dnsbl v2 says reject (shadow: not applied) 550 5.7.1 no because score 4 [bold]",
        "spf: Spf timeout took long 9.5 ms",
        "spf says proceed (by on_error)",
        "slow: Slow not waited for",
        "ben@example.org 250 2.1.5 ok",
        "+ X-Seen: yes",
        "- body of 1000 octets",
        "+ body of 4096 octets (+3096)",
        "+ recipient archive@example.net",
        "+ next hop smtp:filter.example:10025",
        "decided by nobody in the pipeline",
        "2023-11-14 22:13:25Z ben@example.org deferred by store.example 451 later 0.25 s",
        "now queued",
    ):
        assert part in result.stdout


def test_explain_takes_the_reference_of_a_refusal_and_a_session_id(bench: Bench) -> None:
    (refused,) = bench.json("explain", f"(ref {REFUSED})")
    assert refused["record"]["outcome"] == "rejected" and refused["stored"] is None
    everything = bench.json("explain", SESSION)
    assert [e["record"]["id"] for e in everything] == [QUEUED, HELD, JAILED, REFUSED]
    assert everything[0]["attempts"][0]["host"] == "store.example"


def test_without_a_spool_the_queue_cannot_be_asked(tmp_path: Path) -> None:
    result = Bench(tmp_path).run("queue", "list")
    assert result.exit_code == 2 and "spool" in result.stderr


def test_check_accepts_a_good_configuration(bench: Bench) -> None:
    result = bench.run("check")
    assert result.exit_code == 0 and result.stdout.startswith(f"{bench.file}: ok")
    assert bench.json("check")["ok"] is True


def test_check_names_file_line_and_key_of_every_problem(bench: Bench) -> None:
    bench.write("workrs: 3\nlimits: {errors: none}\n")
    result = bench.run("check")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"{bench.file}:3: workrs: unknown key; did you mean workers?",
        f"{bench.file}:4: limits.errors: must be a whole number",
    ]
    result = bench.run("check", "--json")
    assert result.exit_code == 2
    assert [p["line"] for p in json.loads(result.stdout)["problems"]] == [3, 4]


def test_check_names_file_line_and_key_of_an_unknown_plugin(bench: Bench) -> None:
    bench.write("pipeline:\n  - spf: {}\n  - nosuch: {}\n")
    for command in ("check", "pipeline", "run"):
        result = bench.run(command)
        assert result.exit_code == 2
        assert f"{bench.file}:5: pipeline[1]" in result.stderr and "nosuch" in result.stderr


def test_pipeline_prints_what_happens_at_each_stage(bench: Bench) -> None:
    bench.write("pipeline:\n  - spf: {}\n    shadow: true\n")
    rows = bench.json("pipeline")["default"]
    assert ("mail", "spf", "finds", True) in [(r["stage"], r["entry"], r["kind"], r["shadow"]) for r in rows]
    assert "shadow" in bench.run("pipeline").stdout


def test_plugin_list_shows_what_is_installed() -> None:
    result = CliRunner().invoke(main, ["plugin", "list", "--json"])
    assert result.exit_code == 0
    found = {listed["name"]: listed for listed in json.loads(result.stdout)}
    assert {"dnsbl", "ratelimit", "recipient", "spf", "helo-identity", "own-domain-sender"} <= set(found)
    assert found["spf"]["kind"] == "plugin" and not found["spf"]["problem"]
    assert "spf" in CliRunner().invoke(main, ["plugin", "list"]).stdout


def test_the_configuration_is_looked_for_in_the_environment_and_then_in_the_folder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("GATEPOST_CONFIG", raising=False)
    result = CliRunner().invoke(main, ["queue", "list"])
    assert result.exit_code == 2 and "no configuration" in result.stderr
    monkeypatch.setenv("GATEPOST_CONFIG", str(bench.file))
    assert CliRunner().invoke(main, ["queue", "list"]).exit_code == 0
    monkeypatch.delenv("GATEPOST_CONFIG")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["queue", "list"]).exit_code == 0


def test_counting_for_many_processes_is_decided_before_the_metrics_library_is_imported() -> None:
    program = "import sys, gateway.cli; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_counters_directory_is_fresh_and_goes_with_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METRICS_DIRECTORY, raising=False)
    with metrics_directory():
        made = os.environ[METRICS_DIRECTORY]
        assert os.listdir(made) == []
    assert not os.path.exists(made) and METRICS_DIRECTORY not in os.environ


def test_a_counters_directory_that_is_given_is_emptied_of_old_counters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(METRICS_DIRECTORY, str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    (tmp_path / "notes").touch()
    with metrics_directory():
        assert os.listdir(tmp_path) == ["notes"]
    assert tmp_path.exists()


def test_explain_without_an_id_searches_the_newest_first(bench: Bench) -> None:
    found = bench.json("explain", "--since", "20000d")
    assert [record["id"] for record in found] == sorted((QUEUED, HELD, JAILED, REFUSED), reverse=True)
    assert [r["id"] for r in bench.json("explain", "--outcome", "rejected")] == [REFUSED]
    assert len(bench.json("explain", "--sender", "sender.example", "--recipient", "ben@example.org")) == 4
    assert len(bench.json("explain", "--client", "192.0.2.0/24", "--limit", "2")) == 2
    result = bench.run("explain", "--client", "192.0.2.1")
    assert result.exit_code == 0 and "CLIENT" in result.stdout and "anna@sender.example" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--client", "198.51.100.1"), ("--since", "1s"), ("--plugin", "nobody"), ("--sender", "zoe@sender.example")],
)
def test_a_search_that_finds_nothing_gives_status_1(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.run("explain", *arguments).exit_code == 1


@pytest.mark.parametrize(
    "arguments", [("--client", "nonsense"), ("--since", "soon"), (QUEUED, "--sender", "x@y.example")]
)
def test_a_search_that_makes_no_sense_gives_status_2(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.run("explain", *arguments).exit_code == 2


def test_the_shadow_report_counts_what_would_have_been_done(bench: Bench) -> None:
    found = bench.json("shadow", "report", "--since", "20000d")
    assert found["records"] == 4
    entry = found["entries"]["dnsbl"]
    assert entry["differences"] == {"reject": 3} and entry["agreements"] == {"reject": 1}
    assert entry["senders"] == {"sender.example": 3} and entry["samples"] == {"reject": [QUEUED, HELD, JAILED]}
    text = bench.run("shadow", "report", "--since", "20000d").stdout
    assert "dnsbl: judged 4" in text and "would have said reject in 3, which was not done: " + QUEUED in text
    assert bench.run("shadow", "report", "--since", "1s").exit_code == 1
