"""A rule on trial: the rule of a command line, at the end of every pipeline of a configuration, for recorded mail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gateway.app import wiring
from gateway.config import Config, ConfigError
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.plan import PipelineError
from gateway.pipeline.replay import Inquiry
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState

NAME: Final = "whatif"
_RULES: Final = "rules"
_REPLIES: Final = {"reject": "5.7.1 what if", "defer": "4.7.1 what if"}


class RuleError(Exception):
    """The expression makes no sense in any pipeline. `line` and `column` count from 1, and are 0 for all of it."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{line}:{column}: {message}" if line else message)
        self.line = line
        self.column = column


def load_inquiries(config: Config, expression: str, then: str) -> Mapping[str, Inquiry | str]:
    """The rule in each pipeline by name, or why it cannot be asked there. `then` is an action, or empty for none.

    Raises `RuleError`, and `gateway.config.ConfigError` for what is wrong with the configuration itself.
    """
    action: Any = {then: _REPLIES[then]} if then in _REPLIES else then or "proceed"
    entry = {_RULES: [{"name": NAME, "when": expression, "then": action}]}
    clock = SystemClock()
    problems: dict[str, PipelineError] = {}

    def build(config: Config, foundations: wiring.Foundations) -> dict[str, Pipeline]:
        made: dict[str, Pipeline] = {}
        broken = []
        for name, given in config.all_pipelines.items():
            entries = wiring.implied(config, given)
            try:
                made[name] = foundations.load(name, (*entries, entry))
            except PipelineError as error:
                own = [problem for problem in error.problems if problem.path[:1] != (len(entries),)]
                if own:
                    before = len(entries) - len(given)
                    broken += config.pipeline_problems(name, PipelineError("", (), own), before=before)
                problems[name] = error
        if broken:
            raise ConfigError(broken)
        return made

    made = wiring.make_parts(config, SqliteState(Path(config.state.path), clock), clock, build=build).pipelines
    if not made:
        first = next(iter(problems.values())).problems[0]
        raise RuleError(first.message, *_place(expression, first.offset))
    inquiries: dict[str, Inquiry | str] = {name: pipeline.inquiry() for name, pipeline in made.items()}
    return inquiries | {name: f"in pipeline {name}: {error.problems[0].message}" for name, error in problems.items()}


def _place(text: str, offset: int | None) -> tuple[int, int]:
    if offset is None:
        return 0, 0
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1
