"""What linters of YAML and of container files say of the files that people write."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.helm import CHART, EXAMPLES, ROOT

ACTION = re.compile(r'\{\{-?(?:"[^"\n]*"|[^"{}\n])*\}\}')
"""What Helm puts something else in place of."""


def linted(linter: str, *arguments: str, text: str = "") -> list[str]:
    """What a linter says of these files, or of this text; nothing when it is content."""
    program = Path(sys.executable).with_name(linter)
    if not program.exists():
        pytest.fail(f"{linter} is not there: run tools/setup.sh test, which installs it")
    ran = subprocess.run([program, *arguments], input=text, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode in (0, 1) and not ran.stderr, ran.stderr
    assert (ran.returncode == 1) is bool(ran.stdout), ran.stdout
    return ran.stdout.splitlines()


def yaml_of(*arguments: str, text: str = "") -> list[str]:
    return linted("yamllint", "--strict", "--format", "parsable", *arguments, text=text)


def container_of(text: str) -> list[str]:
    return linted("hadolint", "--no-color", "--failure-threshold", "style", "-", text=text)


def without_actions(template: str) -> str:
    """A template of YAML as YAML, line by line: an action is a comment, or within a line a word as long as it is."""
    lines = ["#" if ACTION.fullmatch(line) else line for line in template.splitlines()]
    return "\n".join(ACTION.sub(lambda action: "x" * len(action[0]), line) for line in lines) + "\n"


def test_yamllint_finds_nothing_in_what_people_write() -> None:
    files = [CHART / file for file in ("Chart.yaml", "values.yaml", *EXAMPLES)]
    assert yaml_of(*map(str, files)) == []


def test_yamllint_finds_nothing_in_the_alerts_beside_what_helm_fills_in() -> None:
    alerts = without_actions((CHART / "files/alerts.yaml").read_text())
    assert "{{" not in alerts and alerts.count("- alert: ") > 10
    assert yaml_of("-", text=alerts) == []


def test_yamllint_finds_a_key_that_stands_twice_and_a_line_that_is_too_long() -> None:
    template = "{{- if .a }}\na: {b: {{ .b }}, b: '{{ \"}}\" }}'}\n{{- end }}\n" + "c" * 150 + ": 4\n"
    twice, long = yaml_of("-", text=without_actions(template))
    assert "2:18:" in twice and "(key-duplicates)" in twice
    assert "4:141:" in long and "(line-length)" in long


def test_hadolint_finds_nothing_in_the_container_file() -> None:
    assert container_of((ROOT / "Containerfile").read_text()) == []


def test_hadolint_finds_a_base_of_no_version_and_a_shell_that_goes_wrong() -> None:
    found = container_of("FROM debian\nRUN rm -rf $dir/*\nENTRYPOINT gatepost run\n")
    assert [line.split()[:2] for line in found] == [["-:1", "DL3006"], ["-:2", "SC2086"], ["-:3", "DL3025"]]
