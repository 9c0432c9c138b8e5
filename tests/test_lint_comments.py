"""Comments that ignore remarks: where they hold, what they must say, and what is no comment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app.lint import lint
from gateway.app.lint.disk import Disk
from gateway.app.lint.ignoring import ignores
from gateway.app.wiring import load_pipelines
from gateway.config import load
from gateway.config.document import read
from gateway.sdk.lint import Severity

BASE = """\
hostname: mx.example.org
listeners: [{address: "127.0.0.1:25"}]
"""


def lines(text: str) -> list[tuple[int, tuple[str, ...], str, str]]:
    return [(found.target, found.codes, found.reason, found.problem) for found in ignores(read(text, "gatepost.yaml"))]


def test_a_comment_behind_a_key_is_about_its_line() -> None:
    assert lines("a: 1\nb: 2  # lint: ignore GP203 the store takes all\n") == [
        (2, ("GP203",), "the store takes all", "")
    ]


def test_a_comment_on_a_line_of_its_own_is_about_the_next_line_with_something_on_it() -> None:
    text = "a: 1\n# lint: ignore GP203, access/hidden-line: known\n# and more\n\nb: 2\n"
    assert lines(text) == [(5, ("GP203", "access/hidden-line"), "known", "")]


def test_a_comment_above_the_first_key_is_about_the_whole_file() -> None:
    assert lines("# lint: ignore GP706 a test machine\na: 1\n") == [(0, ("GP706",), "a test machine", "")]


@pytest.mark.parametrize("comment", ["# lint: ignore GP203", "# lint: ignore GP203,GP204 "])
def test_a_comment_without_a_reason_ignores_nothing(comment: str) -> None:
    ((_, _, reason, problem),) = lines(f"a: 1 {comment}\n")
    assert not reason and problem.startswith("say why")


@pytest.mark.parametrize("comment", ["# lint: ignore", "# lint: ignore everything here", "# lint: ignore GP1 why"])
def test_a_comment_without_a_code_ignores_nothing(comment: str) -> None:
    ((_, _, _, problem),) = lines(f"a: 1 {comment}\n")
    assert problem.startswith("name a code")


@pytest.mark.parametrize(
    "text",
    [
        'a: "x # lint: ignore GP203 no"\n',
        "a: 'x # lint: ignore GP203 no'\n",
        "a: |\n  x\n  # lint: ignore GP203 no\nb: 1\n",
        'a: >-\n  x\n  # lint: ignore GP203 no\n  y\nb: "c"\n',
        "a: 1 # a lint: ignore GP203 no\n",
    ],
)
def test_what_stands_within_a_value_is_no_comment(text: str) -> None:
    assert lines(text) == []


def test_a_comment_after_a_quoted_value_is_one() -> None:
    assert lines('a: "# b" # lint: ignore GP203 yes\n') == [(1, ("GP203",), "yes", "")]


@given(st.text(alphabet="# lint:ignoreGP203,/\n\"'|-ab", max_size=200))
def test_any_comment_is_read_without_trouble(text: str) -> None:
    # A comment wherever it stands is bounded by its line, so each is about a line of the file.
    document = read(f"a: 1 # {text.splitlines()[0] if text.splitlines() else ''}\n", "gatepost.yaml")
    for found in ignores(document):
        assert found.target in (0, 1) and bool(found.problem) != bool(found.reason and found.codes)


def report(tmp_path, text):
    file = tmp_path / "gatepost.yaml"
    file.write_text(text)
    config = load(str(file))
    plans = {name: made.plan for name, made in load_pipelines(config).items()}
    return lint(config, plans, 0.0, disk=lambda path: Disk("ext4", 1 << 40))


def test_an_ignored_remark_is_kept_apart_with_its_reason(tmp_path) -> None:
    found = report(tmp_path, BASE + "split_refused: discard # lint: ignore GP804 nobody asks for them\n")
    assert found.remarks == ()
    (ignored,) = found.ignored
    assert (ignored.code, ignored.line, ignored.reason) == ("GP804", 3, "nobody asks for them")
    assert ignored.to_json()["ignored"] == "nobody asks for them"


def test_a_comment_for_the_whole_file_ignores_all_remarks_of_its_code(tmp_path) -> None:
    both = 'relay_from:\n  - "17.0.0.0/8"\n  - "18.0.0.0/8"\n'
    assert [p.code for p in report(tmp_path, BASE + both).remarks] == ["GP102", "GP102"]
    found = report(tmp_path, "# lint: ignore GP102 all of them are ours\n" + BASE + both)
    assert found.remarks == () and len(found.ignored) == 2


def test_a_comment_ignores_its_own_code_only_and_one_that_ignores_nothing_is_a_remark(tmp_path) -> None:
    found = report(tmp_path, BASE + "split_refused: discard # lint: ignore GP801 wrong code\n")
    assert {placed.code for placed in found.remarks} == {"GP804", "GP002"}
    assert not found.reaches(Severity.ERROR) and found.reaches(Severity.WARNING)


def test_a_comment_without_a_reason_is_a_remark_of_its_own(tmp_path) -> None:
    found = report(tmp_path, BASE + "split_refused: discard # lint: ignore GP804\n")
    assert {(placed.code, placed.line) for placed in found.remarks} == {("GP804", 3), ("GP001", 3)}
