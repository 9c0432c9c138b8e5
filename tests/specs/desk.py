"""A folder with spec files, and ``gatepost test`` on it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.config import ConfigError
from gateway.pipeline.catalog import Catalog
from gateway.specs import Report, run

INSTALLED = Catalog.installed()


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def run(self, text: str, name: str = "x.spec.yaml") -> Report:
        """What comes of one spec file."""
        return run([str(self.put(name, text))], INSTALLED)

    def differences(self, text: str) -> list[str]:
        """What is not as the spec's cases expect it."""
        return [f"{d.what}: {d.expected} / {d.came}" for failed in self.run(text).failed for d in failed.differences]

    def problems(self, text: str, name: str = "x.spec.yaml") -> list[str]:
        """What is wrong with one spec file, without the folder in front."""
        try:
            self.run(text, name)
        except ConfigError as error:
            return [str(problem).removeprefix(f"{self.folder}/") for problem in error.problems]
        raise AssertionError("nothing is wrong with it")

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["test", *arguments])

    def json(self, *arguments: str, status: int = 0) -> Any:
        result = self.command(*arguments, "--json")
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)
