"""``policy_folder``: single-file policies as the commands see them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from gateway.app.wiring import load_pipelines
from gateway.cli import main
from gateway.config import ConfigError, load
from gateway.spool.spool import SpoolOptions
from gateway.spool.sqlite import SqliteSpool

ODD = """
from gateway.sdk import PROCEED, Policy, PolicyOptions, Transaction, Verdict, reject


class Odd(Policy):
    \"\"\"Refuses senders that it finds odd.\"\"\"

    name = "odd"
    version = "3"

    class Options(PolicyOptions):
        words: tuple[str, ...] = ("odd",)

    def on_mail(self, transaction: Transaction) -> Verdict:
        if any(word in str(transaction.sender) for word in self.options.words):
            return reject("7.1", "not accepted", reason="odd")
        return PROCEED
"""


class Desk:
    """A folder with a configuration and a folder of policies beside it."""

    def __init__(self, folder: Path) -> None:
        self.policies = folder / "policies"
        self.policies.mkdir(mode=0o755)
        self.put("odd.py", ODD)
        self.config = folder / "gatepost.yaml"
        self.message = folder / "message.eml"
        self.message.write_bytes(b"Subject: x\n\nHello\n")
        self.write()

    def put(self, name: str, text: str) -> Path:
        path = self.policies / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def write(self, **more: Any) -> None:
        options = {
            "hostname": "mx.example.org",
            "listeners": [{"address": "127.0.0.1:2525"}],
            "spool": {"path": "spool"},
            "state": {"path": "state"},
            "policy_folder": "./policies",
            "pipeline": [{"odd": {"words": ["odd", "queer"]}}],
            "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": "any"}},
        }
        self.config.write_text(json.dumps({**options, **more}))

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "-c", str(self.config)])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_file_of_the_folder_stands_in_a_pipeline_like_what_is_installed(desk: Desk) -> None:
    assert desk.run("check").exit_code == 0
    (row,) = json.loads(desk.run("pipeline", "--json").stdout)["default"]
    assert (row["stage"], row["entry"], row["kind"]) == ("mail", "odd", "policy")


def test_plugin_list_shows_it_with_its_file_when_the_configuration_is_named(desk: Desk) -> None:
    listed = {one["name"]: one for one in json.loads(desk.run("plugin", "list", "--json").stdout)}
    assert listed["odd"]["kind"] == "policy" and listed["odd"]["module"] == str(desk.policies / "odd.py")
    assert listed["odd"]["summary"] == "Refuses senders that it finds odd." and "spf" in listed
    without = CliRunner().invoke(main, ["plugin", "list", "--json"])
    assert "odd" not in {one["name"] for one in json.loads(without.stdout)}


def test_simulate_judges_by_it_and_the_record_has_its_version(desk: Desk) -> None:
    who = ["--client", "192.0.2.1", "--to", "ben@example.org", "--from", "queer@sender.example"]
    result = desk.run("simulate", *who, "--json", str(desk.message))
    structlog.reset_defaults()
    assert result.exit_code == 1, result.output
    (record,) = json.loads(result.stdout)["records"]
    (verdict,) = record["verdicts"]
    assert (verdict["plugin"], verdict["version"], verdict["action"]) == ("odd", "3", "reject")


def test_replay_tells_whether_the_file_is_the_same_in_both_configurations(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    candidate = Desk(other)

    async def empty_spool() -> None:
        await (await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=1))).close()

    asyncio.run(empty_spool())
    result = desk.run("replay", "--with", str(candidate.config), "--json")
    assert result.exit_code == 0, result.output
    then, now = load_pipelines(load(str(desk.config))), load_pipelines(load(str(candidate.config)))
    assert type(then["default"].entries[0].policy) is type(now["default"].entries[0].policy)
    candidate.put("odd.py", ODD + "\n# changed\n")
    now = load_pipelines(load(str(candidate.config)))
    assert type(then["default"].entries[0].policy) is not type(now["default"].entries[0].policy)


def test_what_is_wrong_with_a_file_is_a_problem_of_the_configuration_with_its_line(desk: Desk) -> None:
    bad = desk.put("bad.py", "x = 1\nx = (\n")
    result = desk.run("check", "--json")
    assert result.exit_code == 2
    (problem,) = json.loads(result.stdout)["problems"]
    assert (problem["file"], problem["line"]) == (str(bad), 2)
    assert desk.run("check").stderr.startswith(f"{bad}:2:5: no Python: ")
    for command in (["pipeline"], ["plugin", "list"], ["replay", "--with", str(desk.config)]):
        assert desk.run(*command).exit_code == 2 and f"{bad}:2" in desk.run(*command).stderr


def test_a_file_that_changed_is_read_anew_and_old_pipelines_keep_what_they_had(desk: Desk) -> None:
    old = load_pipelines(load(str(desk.config)))["default"].entries[0].policy
    desk.put("odd.py", ODD.replace('"3"', '"4"'))
    new = load_pipelines(load(str(desk.config)))["default"].entries[0].policy
    assert old is not None and new is not None and (old.version, new.version) == ("3", "4")


def test_an_option_that_is_wrong_is_named_in_the_configuration(desk: Desk) -> None:
    desk.write(pipeline=[{"odd": {"word": ["x"]}}])
    with pytest.raises(ConfigError) as caught:
        load_pipelines(load(str(desk.config)))
    assert str(caught.value).endswith("pipeline[0].odd.word: unknown option; did you mean words?")


def test_a_folder_that_is_missing_or_open_to_others_is_named_at_its_key(desk: Desk, tmp_path: Path) -> None:
    desk.write(policy_folder="nowhere")
    said = desk.run("check").stderr
    assert said == f"{desk.config}:1: policy_folder: {tmp_path}/nowhere cannot be read: No such file or directory\n"
    desk.write()
    desk.policies.chmod(0o777)
    assert f"{desk.config}:1: policy_folder: {desk.policies} others than its owner" in desk.run("check").stderr
