"""The pytest plugin in test runs of somebody else's, with and without use of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gateway.kit.pytest_plugin as plugin

pytest_plugins = ["pytester"]

ROOT = Path(plugin.__file__).parents[2]

POLICY = """
    from gateway.sdk import PROCEED, Action, Message, Outcome, Policy, PolicyOptions, Verdict, reject

    class NoCats(Policy):
        "Refuse cats."
        name = "no-cats"

        class Options(PolicyOptions):
            word: str = "cat"

        def on_message(self, message: Message) -> Verdict:
            subject = message.first("Subject") or ""
            return reject("7.1", "no", reason="cats") if self.options.word in subject else PROCEED
"""

TESTS = """
    from gateway.sdk import Action, Outcome
    from policy import NoCats

    def test_judged(gatepost_pipeline, message_factory):
        judged = gatepost_pipeline("- no-cats: {word: dog}", NoCats).judge(message_factory(subject="a dog"))
        assert judged.outcome is Outcome.REJECTED and judged.verdict.reason == "cats"

    def test_told(smtp_session, message_factory):
        session = smtp_session("- no-cats", NoCats)
        assert session.message(message_factory(subject="a dog")).positive
        assert session.message(message_factory(subject="a cat")).status == "5.7.1"
        assert [queued.message.first("Subject") for queued in session.queued] == ["a dog"]
"""

BYSTANDER = """
    import sys

    def test_nothing_of_gatepost_is_there():
        here = {name for name in sys.modules if name.split(".")[0] in ("gateway", "plugins", "policies")}
        assert here <= {"gateway", "gateway.kit", "gateway.kit.pytest_plugin"}
        assert "hypothesis" not in sys.modules and "yaml" not in sys.modules
"""

FAILING = """
    import threading

    def test_fails(smtp_session):
        smtp_session("[]").hello()
        assert False

    def test_no_door_is_left_open():
        assert "gatepost-door" not in {thread.name for thread in threading.enumerate()}
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """A run of its own, as strict as can be."""
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:xdist", "--strict-config", "--strict-markers", "-W", "error", *arguments
    )


@pytest.mark.slow
def test_an_author_has_the_fixtures_without_another_step(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(policy=POLICY, test_policy=TESTS)
    run(pytester).assert_outcomes(passed=2)


@pytest.mark.slow
def test_who_does_not_use_it_does_not_pay_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_bystander=BYSTANDER)
    run(pytester, "-p", "no:hypothesispytest").assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_test_that_fails_leaves_nothing_behind(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_failing=FAILING)
    run(pytester).assert_outcomes(passed=1, failed=1)


@pytest.mark.slow
def test_it_can_be_switched_off_by_its_name(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_gone="def test_gone(message_factory): pass")
    result = run(pytester, "-p", "no:gatepost")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'message_factory' not found*"])


def test_gatepost_itself_runs_without_pytest_and_hypothesis() -> None:
    outside = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "gateway").rglob("*.py"))
        if not path.is_relative_to(ROOT / "gateway/kit")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name.split(".")[0] in ("pytest", "hypothesis") or name.startswith("gateway.kit")
    ]
    assert outside == []
    code = "import sys, gateway.kit.pipeline, gateway.kit.door, gateway.kit.messages; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pytest", "_pytest", "hypothesis"} & set(loaded)
