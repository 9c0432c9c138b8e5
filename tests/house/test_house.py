"""Rules of the house that no tool knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LONGEST = 450
ROOMS = ("mail", "sdk", "smtp", "guest", "pipeline", "spool", "queue", "transport", "services", "ops", "specs", "kit")
SKIPPED = {".git", ".venv", "var", "build", "dist", "__pycache__"}


def files() -> Iterator[Path]:
    """Every file of the project, without what tools leave behind."""
    pending = [ROOT]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name in SKIPPED or path.name.endswith((".egg-info", "_cache")) or path.name == ".hypothesis":
                continue
            if path.is_dir():
                pending.append(path)
            else:
                yield path


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules("gateway", "plugins", "policies")
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}


def test_only_the_front_door_imports_aiosmtpd() -> None:
    found = set()
    for path in modules("gateway", "plugins", "policies"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "aiosmtpd" for name in names):
                found.add(str(path.relative_to(ROOT)))
    assert found == {"gateway/smtp/server.py"}


def test_no_path_of_somebodys_machine_stands_in_the_tree() -> None:
    pattern = re.compile(rb"(?<![\w.~-])/(?:wo" rb"rk|ro" rb"ot|ho" rb"me)/[\w.-]")
    assert [str(path.relative_to(ROOT)) for path in files() if pattern.search(path.read_bytes())] == []


def test_every_test_of_a_room_tests_that_room() -> None:
    strangers = []
    for room in [*ROOMS, "plugins", "policies"]:
        package = room if room in ("plugins", "policies") else f"gateway.{room}"
        for test in sorted((ROOT / "tests" / room).glob("test_*.py")):
            if not re.search(rf"(?m)^ *(?:from|import) (?:{re.escape(package)}|tests\.{room})\b", test.read_text()):
                strangers.append(str(test.relative_to(ROOT)))
    assert strangers == []


def test_every_room_has_tests() -> None:
    assert [
        room for room in [*ROOMS, "plugins", "policies"] if not list((ROOT / "tests" / room).glob("test_*.py"))
    ] == []


def test_every_ready_made_policy_has_a_spec_beside_it() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["gatepost.policies"]
    specs = {}
    for name, target in offered.items():
        beside = ROOT / f"{target.partition(':')[0].replace('.', '/')}.spec.yaml"
        specs[name] = yaml.safe_load(beside.read_text()) if beside.exists() else {}
    tested = {
        name: {spec.get("policy"), *(key for entry in spec.get("pipeline", ()) for key in entry)}
        for name, spec in specs.items()
    }
    assert offered and {name for name in offered if name not in tested[name]} == set()


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules("gateway", "plugins", "policies")
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_nothing_is_left_to_be_done_later() -> None:
    words = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    left = [
        str(path.relative_to(ROOT))
        for path in modules("gateway", "plugins", "policies", "tests", "tools")
        if words.search(path.read_text())
    ]
    assert left == []


def test_no_test_is_skipped() -> None:
    words = re.compile(r"pytest\.(?:skip|mark\.skip|mark\.xfail|importor" r"skip)")
    assert [
        str(p.relative_to(ROOT)) for p in modules("tests") if p != Path(__file__) and words.search(p.read_text())
    ] == []


def test_reading_a_configuration_does_not_load_the_metrics() -> None:
    # The library asks once, when it is imported, where processes share their counts; the command line says so later.
    code = "import sys, gateway.config, gateway.cli; sys.exit('gateway.ops.metrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
