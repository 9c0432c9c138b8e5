"""What type checkers say to authors: nothing where they are right, and something where they are not.

The code of docs/plugin-guide.md is checked by the guide's own commands, in `test_guide`.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import gateway.sdk
import gateway.sdk.testing
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.slow, pytest.mark.first]

TYPED = Path(__file__).parent / "typed"

Complaints = set[tuple[str, int]]
"""File and line of each."""


def mypy(workshop: Workshop, folder: Path) -> tuple[Complaints, str]:
    done = workshop.run("mypy", "--strict", "--no-incremental", "--no-error-summary", "--no-pretty", ".", cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"(?m)^([\w./-]+):(\d+): error:", done.stdout)
    return {(path, int(line)) for path, line in found}, done.stdout


def pyright(workshop: Workshop, folder: Path) -> tuple[Complaints, str]:
    # Lines of the file of mistakes may be wrong in a way that only one of them sees.
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    done = workshop.run("pyright", "--outputjson", cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = [one for one in json.loads(done.stdout)["generalDiagnostics"] if one["severity"] == "error"]
    places = {(str(Path(o["file"]).relative_to(folder)), o["range"]["start"]["line"] + 1) for o in said}
    return places, "\n".join(f"{o['file']}:{o['range']['start']['line'] + 1}: {o['message']}" for o in said)


CHECKERS: dict[str, Callable[[Workshop, Path], tuple[Complaints, str]]] = {"mypy": mypy, "pyright": pyright}


@pytest.fixture(scope="module")
def authored(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package that `gatepost plugin new` makes, and the files of this folder."""
    folder = tmp_path_factory.mktemp("authored")
    made = workshop.run("gatepost", "plugin", "new", "mail-age", "--directory", str(folder / "made"), cwd=folder)
    assert made.returncode == 0, made.stderr
    for part in ("gatepost_mail_age", "tests"):
        shutil.move(folder / "made" / part, folder / part)
    shutil.rmtree(folder / "made")
    for file in TYPED.glob("*.py"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_code_is_clean_and_every_mistake_is_seen(checker, workshop, authored):
    found, said = CHECKERS[checker](workshop, authored)
    marks = {
        ("mistakes.py", number)
        for number, line in enumerate((TYPED / "mistakes.py").read_text().splitlines(), 1)
        if re.search(rf"# wrong(?:: {checker})?$", line)
    }
    assert len(marks) > 15
    assert found - marks == set(), f"{checker} objects to right code:\n{said}"
    assert marks - found == set(), f"{checker} does not see these mistakes; it says\n{said}"


def test_the_file_of_uses_has_every_public_name():
    imported = {
        (node.module, alias.name)
        for node in ast.walk(ast.parse((TYPED / "uses.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for module in (gateway.sdk, gateway.sdk.testing):
        assert {name for origin, name in imported if origin == module.__name__} == set(module.__all__)


def test_every_public_symbol_has_a_declared_type(workshop, tmp_path):
    done = workshop.run(
        "pyright",
        "--pythonpath",
        str(workshop.python),
        "--verifytypes",
        "gateway.sdk",
        "--ignoreexternal",
        cwd=tmp_path,
    )
    (score,) = re.findall(r"Type completeness score: ([\d.]+)%", done.stdout)
    (number,) = re.findall(r'Symbols exported by "gateway.sdk": (\d+)', done.stdout)
    assert float(score) == 100 and int(number) > 1000, done.stdout
