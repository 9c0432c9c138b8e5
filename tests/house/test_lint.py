"""The tools that read the code, run as tests so that one command tells everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gateway", "plugins", "policies", "tests", "tools")
IMPORTS = "from importlinter.cli import lint_imports_command as run; run()"


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "ruff", "check", *FOLDERS),
        ("-m", "ruff", "format", "--check", *FOLDERS),
        ("-m", "mypy"),
        ("-c", IMPORTS),
    ],
    ids=["ruff-check", "ruff-format", "mypy-strict", "import-layers"],
)
def test_the_tools_have_nothing_to_say(command: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
