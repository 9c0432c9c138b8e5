"""Policies that are told what their pipeline gives, and options that are wrong in a place inside of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.config import load as load_config
from gateway.pipeline.loader import Catalog, PipelineError, load
from gateway.sdk import (
    PROCEED,
    Given,
    Message,
    OptionError,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Session,
    Stage,
    Transaction,
    Verdict,
)
from tests.pipeline.setting import A, B, C, finder, plugin, services


class Told(Policy):
    """Keeps what it was told, and asks for A wherever it can."""

    name = "told"
    known: ClassVar[dict[type, tuple[Stage, ...]]] = {}

    class Options(PolicyOptions):
        sole = "words"

        words: tuple[str, ...] = ()

    def wire(self, given: Given) -> None:
        Told.known = dict(given.stages)
        problems = OptionError()
        for number, word in enumerate(self.options.words):
            if (at := word.find("!")) >= 0:
                problems.add(("words", number), "is loud", at)
        problems.raise_if_any()
        for stage in given.stages.get(A, ()):
            self.ask(stage, self.judge, {A: False, B: True, Session: False})

    def judge(self, a: A, b: B | None, session: Session) -> Verdict:
        return PROCEED


class Picky(Plugin):
    name = "picky"

    class Options(PluginOptions):
        sole = "words"

        words: tuple[str, ...] = ()

    def __init__(self, options: Any, services: Any) -> None:
        super().__init__(options, services)
        problems = OptionError()
        problems.add(("words", 1), "is odd", 2)
        problems.raise_if_any()


FINDERS = {
    "a": plugin("a", finder(Stage.HELO, A, ())),
    "b": plugin("b", finder(Stage.MAIL, B, ())),
    "c": plugin("c", finder(Stage.MAIL, C, (Transaction,), does=True)),
}


def loaded(*entries: Any) -> Any:
    known = Catalog({**FINDERS, "picky": Picky}, {"told": Told})
    return load("default", entries, services(), known=known)


def test_a_policy_is_told_at_which_stages_it_can_have_each_finding_at_its_place_in_the_list() -> None:
    loaded("a", "c", "told", "b")
    stages = tuple(Stage)
    assert Told.known == {A: stages[1:], B: stages[3:], C: stages[3:]}
    loaded("told", "c")
    assert Told.known == {C: stages[4:]}


def test_its_hooks_are_wired_to_what_it_asks_for() -> None:
    rows = [row for row in loaded("a", "told").table() if row.kind == "policy"]
    assert [row.stage for row in rows] == list(Stage)[1:]
    assert {row.needs for row in rows} == {("A from a",)}
    assert loaded("told").empty


def test_hooks_that_cannot_be_asked_are_a_bug_of_the_policy() -> None:
    with pytest.raises(TypeError, match="is not known at stage"):
        Told(Told.Options()).ask(Stage.CONNECT, lambda: PROCEED, {Message: False})


@pytest.mark.parametrize(
    ("options", "path"), [(["x", "so!"], (1, "told", 1)), ({"words": ["x", "so!"]}, (1, "told", "words", 1))]
)
def test_a_wrong_option_is_named_by_its_place_in_the_list_as_it_stands_in_the_file(options: Any, path: Any) -> None:
    with pytest.raises(PipelineError) as caught:
        loaded("a", {"told": options})
    (problem,) = caught.value.problems
    assert (problem.message, problem.path, problem.offset) == ("is loud", path, 2)


def test_so_is_one_of_a_plugin_and_of_the_policy_beside_it() -> None:
    with pytest.raises(PipelineError) as caught:
        loaded({"picky": ["a", "bcd"]}, {"a": {}, "policy": {"told": ["!"]}})
    assert [(p.path, p.offset) for p in caught.value.problems] == [((0, "picky", 1), 2)]
    with pytest.raises(PipelineError) as caught:
        loaded({"a": {}, "policy": {"told": ["!"]}})
    assert [(p.path, p.offset) for p in caught.value.problems] == [((0, "policy", "told", 0), 0)]


def test_a_list_is_refused_where_no_option_stands_for_it() -> None:
    with pytest.raises(PipelineError, match="expected options: a mapping, or nothing"):
        loaded({"a": []})
    with pytest.raises(PipelineError, match="expected options: a mapping, a list, or nothing"):
        loaded({"told": "x"})


def test_the_configuration_names_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.yaml"
    file.write_text(
        'listeners: [{address: "127.0.0.1:2525"}]\npipeline:\n  - a\n  - told:\n      - quiet\n      - >-\n'
        "        first\n        so loud!\n"
    )
    config = load_config(str(file))
    with pytest.raises(PipelineError) as caught:
        loaded(*config.pipeline)
    (problem,) = config.pipeline_problems("default", caught.value)
    assert str(problem) == f"{file}:8:16: pipeline[1].told[1]: is loud"
