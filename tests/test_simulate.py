"""``gatepost simulate``: the dialogue and the records of a message that nobody sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from tests.support.certificates import make_ca

MESSAGE = b"From: anna@sender.example\nSubject: x\n\nHello\n"
CONFIG = {
    "hostname": "mx.example.org",
    "listeners": [{"address": "127.0.0.1:2525"}],
    # Nobody listens there, and nobody is asked: what is found is given.
    "dns": {"nameservers": ["127.0.0.1:9"], "timeout": "1s"},
    "pipeline": [{"dnsbl": {"zones": {"bl.test": 2}, "reject_at": 2}}, {"greylist": {"when": "always"}}],
    "pipelines": {"relaxed": []},
    "relay_from": ["198.51.100.0/24"],
    "domains": {
        "example.org": {"next_hop": "maildir:mail", "recipients": {"list": ["ben"]}},
        "relaxed.example": {"next_hop": "maildir:mail", "recipients": "any", "pipeline": "relaxed"},
    },
}
CLEAN = {"Dnsbl": {"score": 0}, "Greylist": {"state": "known", "key": "x"}}


class Stage:
    """A folder with a configuration, a message and findings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gatepost.yaml"
        self.message = folder / "message.eml"
        self.config.write_text(json.dumps({**CONFIG, "state": {"path": "state"}, "spool": {"path": "spool"}}))
        self.message.write_bytes(MESSAGE)

    def play(self, *arguments: str, findings: Any = CLEAN, to: str = "ben@example.org", **run: Any) -> Result:
        file = self.folder / "findings.yaml"
        file.write_text(json.dumps(findings))
        fixed = ["--client", "192.0.2.1", "--from", "anna@sender.example", "--to", to, "--findings", str(file)]
        where = [] if "-" in arguments else [str(self.message)]
        return CliRunner().invoke(main, ["simulate", "-c", str(self.config), *fixed, *arguments, *where], **run)

    def json(self, *arguments: str, status: int = 0, **more: Any) -> Any:
        result = self.play(*arguments, "--json", **more)
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    yield Stage(tmp_path)
    # The command has set up logging, as a process of its own may.
    structlog.reset_defaults()


def test_a_session_can_be_protected_and_the_client_show_a_certificate(stage: Stage) -> None:
    config = json.loads(stage.config.read_text())
    vouched = 'session.tls.client != null && session.tls.client.subject == "partner.example"'
    rules = [{"when": vouched, "then": {"reject": "5.7.1 known"}, "at": "mail"}]
    stage.config.write_text(json.dumps({**config, "pipeline": [{"rules": rules}]}))
    assert stage.json(findings={})["records"][0]["tls"] is None
    protected = stage.json("--tls", "TLSv1.2", findings={})["records"][0]
    assert protected["tls"] == {"version": "TLSv1.2", "cipher": "ECDHE-RSA-AES256-GCM-SHA384", "sni": ""}
    file, _ = make_ca().issue("partner.example").write(stage.folder)
    shown = stage.json("--tls", "TLSv1.3", "--client-certificate", str(file), status=1, findings={})["records"][0]
    assert shown["tls"]["client"]["names"] == ["DNS:partner.example"] and shown["reply"].startswith("550 5.7.1 known")


def test_a_certificate_needs_tls_and_must_be_one(stage: Stage) -> None:
    message = str(stage.message)
    for arguments, said in (((), "say --tls"), (("--tls", "TLSv1.3"), "no certificate")):
        result = stage.play(*arguments, "--client-certificate", message)
        assert result.exit_code == 2 and said in result.stderr, result.stderr


def test_a_message_that_is_taken_shows_its_dialogue_and_its_record(stage: Stage) -> None:
    played = stage.json()
    assert played["taken"]
    commands = [line["command"] for line in played["dialogue"]]
    assert commands == [
        "",
        "EHLO client.example",
        f"MAIL FROM:<anna@sender.example> SIZE={len(MESSAGE)} BODY=7BIT",
        "RCPT TO:<ben@example.org>",
        "DATA",
        ".",
    ]
    (record,) = played["records"]
    assert played["dialogue"][-1]["reply"] == record["reply"] == f"250 2.0.0 queued as {record['id']}"
    assert record["outcome"] == "accepted" and record["size"] == len(MESSAGE.replace(b"\n", b"\r\n"))
    assert {f["finding"]: f.get("given") for f in record["findings"]} == {
        "Dnsbl": True,
        "Greylist": True,
        "RecipientStatus": None,
    }


def test_a_client_with_an_ipv4_address_is_the_same_however_it_is_written(stage: Stage) -> None:
    played = stage.json("--client", "::ffff:198.51.100.7", to="somebody@elsewhere.example")
    (record,) = played["records"]
    assert played["taken"] and record["client"]["ip"] == "198.51.100.7"


def test_smtputf8_is_said_where_an_address_needs_it(stage: Stage) -> None:
    config = json.loads(stage.config.read_text())
    rules = [{"when": "parameters.smtputf8", "then": {"reject": "5.7.1 needs it"}}]
    stage.config.write_text(json.dumps({**config, "pipeline": [{"rules": rules}]}))
    for to in ("ben@example.org", "b\u00e9n@relaxed.example"):
        played = stage.json(to=to, findings={}, status=0 if to.isascii() else 1)
        command = next(line["command"] for line in played["dialogue"] if line["command"].startswith("MAIL"))
        assert command.endswith(" SMTPUTF8") is not to.isascii()


def test_a_state_that_cannot_be_read_is_said(stage: Stage) -> None:
    (stage.folder / "state").mkdir()
    (stage.folder / "state" / "state.db").write_bytes(b"no database " * 100)
    result = stage.play()
    assert result.exit_code == 2 and "state cannot be read: file is not a database" in result.stderr


def test_nothing_is_queued_and_nothing_is_learnt(stage: Stage) -> None:
    async def known() -> Any:
        state = SqliteState(stage.folder / "state", SystemClock())
        await state.start()
        try:
            await state.put("known", b"1", 3600)
            return await state.tally("x")
        finally:
            await state.close()

    asyncio.run(known())
    before = (stage.folder / "state/state.db").read_bytes()
    stage.json(findings={"Dnsbl": {"score": 0}}, status=1)
    assert (stage.folder / "state/state.db").read_bytes() == before
    assert not (stage.folder / "spool").exists() and not (stage.folder / "mail").exists()


def test_a_real_plugin_finds_what_is_not_given(stage: Stage) -> None:
    played = stage.json(findings={"Dnsbl": {"score": 0}}, status=1)
    assert not played["taken"]
    replies = {line["command"]: line["reply"] for line in played["dialogue"]}
    assert replies["RCPT TO:<ben@example.org>"].startswith("451 4.7.1 ")
    assert replies["DATA"].startswith("503 ")
    record = played["records"][-1]
    assert [f["value"]["state"] for f in record["findings"] if f["finding"] == "Greylist"] == ["new"]


def test_a_finding_that_is_given_refuses_as_a_real_one_would(stage: Stage) -> None:
    result = stage.play(findings={**CLEAN, "Dnsbl": {"score": 3, "hits": [{"zone": "b", "codes": [], "weight": 3}]}})
    assert result.exit_code == 1
    assert "> RCPT TO:<ben@example.org>\n< 5" in result.stdout
    assert "dnsbl: Dnsbl score=3.0" in result.stdout and "given" in result.stdout
    assert "dnsbl v2 says reject" in result.stdout


def test_relay_control_and_recipient_lists_are_real(stage: Stage) -> None:
    played = stage.json("--to", "ben@elsewhere.example", "--to", "zoe@example.org")
    replies = {line["command"]: line["reply"] for line in played["dialogue"]}
    assert replies["RCPT TO:<ben@elsewhere.example>"].startswith("550 5.7.1 relaying denied")
    assert replies["RCPT TO:<zoe@example.org>"].startswith("550 5.1.1 ")
    assert played["taken"]
    ours = stage.json("--client", "198.51.100.7", to="ben@elsewhere.example")
    assert ours["taken"]


def test_recipients_with_another_pipeline_come_in_another_transaction(stage: Stage) -> None:
    played = stage.json("--to", "x@relaxed.example")
    assert [r["pipeline"] for r in played["records"]] == ["default", "relaxed"]
    assert sum(line["command"].startswith("MAIL") for line in played["dialogue"]) == 2


def test_the_message_is_written_as_it_would_be_queued(stage: Stage) -> None:
    out = stage.folder / "out.eml"
    stage.json("--output", str(out))
    written = out.read_bytes()
    assert written.startswith(b"Received: from client.example ([192.0.2.1])\r\n")
    assert written.endswith(MESSAGE.replace(b"\n", b"\r\n"))


def test_the_message_may_come_from_standard_input(stage: Stage) -> None:
    assert stage.json("-", input=MESSAGE)["taken"]


def test_a_message_that_is_too_big_is_refused(stage: Stage) -> None:
    text = json.loads(stage.config.read_text())
    stage.config.write_text(json.dumps({**text, "limits": {"message_size": "64KiB"}}))
    stage.message.write_bytes(MESSAGE + b"x" * 70_000)
    played = stage.json(status=1)
    assert played["dialogue"][-1]["reply"].startswith("552 5.3.4")


@pytest.mark.parametrize(
    ("arguments", "findings", "says"),
    [
        (["--client", "nonsense"], CLEAN, "nonsense"),
        (["--to", "no address"], CLEAN, ""),
        (["--pipeline", "none"], CLEAN, "default, relaxed"),
        ([], {"Dnsbl": {"sc0re": 1}}, "sc0re"),
        ([], {"Dnsbl": {"score": "high"}}, "Dnsbl"),
        ([], {"Weather": {}}, "Dnsbl, Greylist, RecipientStatus"),
        ([], ["Dnsbl"], "findings.yaml"),
    ],
)
def test_what_makes_no_sense_is_said_with_status_2(
    stage: Stage, arguments: list[str], findings: Any, says: str
) -> None:
    result = stage.play(*arguments, findings=findings)
    assert result.exit_code == 2 and says in result.stderr
