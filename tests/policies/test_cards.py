"""Every policy's card has a configuration that `gatepost check` takes, and says when to use it and what it can hit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from gateway.cli import main
from policies import display_name, external_tag
from policies.rules import Rules
from tests.plugins.test_cards import POLICIES, card

SETTING = {
    "hostname": "mx.example.org",
    "listeners": [{"address": "127.0.0.1:2525"}],
    "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": "any"}},
}
FIRST = {"archive", "client-score", "helo-identity", "own-domain-sender", Rules.name}


def examples(name: str) -> list[str]:
    return re.findall(r"(?ms)^```yaml\n(.*?)^```", card(name))


def check(folder: Path, block: str) -> str:
    """What `gatepost check` says of this pipeline, empty when it is good."""
    file = folder / "gatepost.yaml"
    file.write_text(yaml.safe_dump(SETTING) + block)
    result = CliRunner().invoke(main, ["check", "-c", str(file)])
    return "" if result.exit_code == 0 else result.output


@pytest.mark.parametrize("name", POLICIES)
def test_the_example_on_a_card_is_a_good_configuration_that_uses_the_policy(name, tmp_path):
    blocks = examples(name)
    assert blocks and all(check(tmp_path, block) == "" for block in blocks)
    assert any(name in entry for block in blocks for entry in yaml.safe_load(block)["pipeline"])


def test_a_wrong_example_would_be_noticed(tmp_path):
    (block,) = examples(display_name.DisplayName.name)
    assert "nams" in check(tmp_path, block.replace("names:", "nams:"))
    (block,) = examples(external_tag.ExternalTag.name)
    assert "unproved" in check(tmp_path, block.replace('"[EXT, unverified]"', "[1]"))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - FIRST))
def test_a_card_says_what_an_operator_wants_to_know_first(name):
    parts = ["Asks", "Costs", "When it fails", "Decides", "When to use it", "What it can hit"]
    found = re.findall(r"(?m)^\*\*(.+?)\.\*\*", card(name))
    assert found == parts


def test_there_are_at_least_ten_ready_made_policies_beside_rules():
    assert len(set(POLICIES) - {Rules.name}) >= 10
