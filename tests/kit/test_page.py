"""docs/testing.md: its examples are one module, and its tests pass."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

import gateway.kit.pytest_plugin as plugin

pytest_plugins = ["pytester"]

PAGE = Path(plugin.__file__).parents[2].joinpath("docs/testing.md").read_text()
BLOCKS = re.findall(r"(?m)^```python\n(.*?)^```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_examples_are_a_module_whose_tests_pass(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("test_the_page.py").write_text("\n\n".join(BLOCKS))
    # How quickly examples are made is nothing to judge on a busy machine.
    pytester.makeconftest(
        "from hypothesis import HealthCheck, settings\n"
        "settings.register_profile('busy', deadline=None, suppress_health_check=[HealthCheck.too_slow])\n"
        "settings.load_profile('busy')\n"
    )
    # Of the spool's contract, which tests/contract runs on the same spool, a few.
    chosen = ["-k", "not TestMySpool or committed or claimed or beside_a_worker"]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", *chosen)
    outcomes = result.parseoutcomes()
    assert outcomes.keys() == {"passed", "deselected"}, result.stdout.str()
    assert outcomes["passed"] > 50, "the contracts' tests are among them"


def test_the_page_names_each_fixture_and_each_module_it_names_exists() -> None:
    for fixture in ("gatepost_pipeline", "smtp_session", "message_factory"):
        assert f"`{fixture}`" in PAGE and hasattr(plugin, fixture)
    for module, listed in re.findall(r"(?m)^from (gateway[\w.]+) import (\([^)]*\)|.+)$", PAGE):
        loaded = importlib.import_module(module)
        for name in re.findall(r"(\w+)(?: as \w+)?", listed):
            if name != "as":
                assert hasattr(loaded, name) or f"as {name}" in listed, f"{module}.{name}"


def test_the_extra_that_it_tells_to_install_has_what_it_says() -> None:
    assert "gatepost[testing]" in PAGE
    extras = [
        line
        for line in metadata("gatepost").get_all("Requires-Dist") or ()
        if "extra == 'testing'" in line.replace('"', "'")
    ]
    assert {re.match(r"[a-z]+", line)[0] for line in extras} == {"pytest", "hypothesis"}
