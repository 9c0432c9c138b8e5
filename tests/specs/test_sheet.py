"""Spec files as they are read: merged, bounded, and with a place for every problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import ConfigError
from gateway.specs import run
from gateway.specs import sheet as module
from gateway.specs.layers import Layer
from gateway.specs.sheet import load
from tests.specs.desk import INSTALLED, Desk

HEAD = "policy: helo-identity\n"
GOOD = HEAD + "cases: [{expect: proceed}]\n"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_a_case_says_lies_over_its_table_and_that_over_the_file() -> None:
    file = Layer.of({"a": {"b": 1, "c": 2}, "d": [1]}, ())
    table = Layer.of({"a": {"b": 10}, "d": [2, 3]}, ("tables", 0))
    row = Layer.at(("a", "e"), {"f": 5}, ("tables", 0, "rows", 0, 1))
    merged = row.over(table.over(file))
    assert merged.plain() == {"a": {"b": 10, "c": 2, "e": {"f": 5}}, "d": [2, 3]}
    assert merged.place(("a", "b")) == ("tables", 0, "a", "b")
    assert merged.place(("a", "c", "anything")) == ("a", "c", "anything")
    assert merged.place(("a", "e", "f")) == ("tables", 0, "rows", 0, 1, "f")
    assert merged.place(("tagged-union", "d", 1)) == ("tables", 0, "d", 1)


def test_an_empty_cell_says_nothing_and_null_in_a_case_takes_back_what_is_shared(desk: Desk) -> None:
    path = desk.put(
        "x.spec.yaml",
        HEAD
        + """
expect: {stage: rcpt, action: reject}
tables: [{columns: [given.session.helo, expect.stage], rows: [[a.example, ~], [~, message]]}]
cases: [{expect: {stage: ~}}]
""",
    )
    case, first, second = load(str(path)).cases
    assert case.expected.stage is None and case.expected.action == "reject"
    assert (first.given.session.helo, first.expected.stage) == ("a.example", "rcpt")
    assert (second.given.session.helo, second.expected.stage) == ("client.example", "message")
    assert [c.name for c in (case, first, second)] == ["case 1", "table 1, row 1", "table 1, row 2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: must be a mapping with policy or pipeline, and cases or tables"),
        ("[]", "1: must be a mapping with policy or pipeline, and cases or tables"),
        ("cases: [{expect: proceed}]", "1: give policy, or pipeline, and not both"),
        (GOOD + "pipeline: []", "1: give policy, or pipeline, and not both"),
        (HEAD, "1: has no case: give cases or tables"),
        (GOOD + "polcy: x", "3:1: polcy: unknown key; did you mean policy?"),
        (HEAD + "cases: {a: 1}", "2:1: cases: must be a list"),
        (HEAD + "cases: [3]", "2:9: cases[0]: must be a mapping with given and expect"),
        (HEAD + "cases: [{}]", "2:9: cases[0]: expects nothing"),
        (HEAD + "cases: [{expect: {}}]", "2:9: cases[0]: expects nothing"),
        (
            HEAD + "cases: [{expekt: proceed, expect: proceed}]",
            "2:10: cases[0].expekt: unknown key; did you mean expect?",
        ),
        (HEAD + "cases: [{expect: refuse}]", "2:10: cases[0].expect: must be 'proceed', 'accept', 'reject', 'defer'"),
        (HEAD + "cases: [{expect: {code: x}}]", "2:19: cases[0].expect.code: must be a whole number"),
        (HEAD + "cases: [{expect: {cod: 1}}]", "2:19: cases[0].expect.cod: unknown key; did you mean code?"),
        (HEAD + "cases: [{expect: {status: 5.7}}]", "2:19: cases[0].expect.status: must be text"),
        (
            HEAD + "cases: [{given: {session: {client: 1.2.3}}, expect: proceed}]",
            "2:28: cases[0].given.session.client: must be an IP address",
        ),
        (
            HEAD + "given: {session: {hello: x}}\ncases: [{expect: proceed}]",
            "2:19: given.session.hello: unknown key; did you mean helo?",
        ),
        (HEAD + "cases: [{given: {sender: a b}, expect: proceed}]", "2:18: cases[0].given.sender: "),
        (HEAD + "cases: [{given: {recipients: [a@b, c]}, expect: proceed}]", "2:36: cases[0].given.recipients[1]: "),
        (HEAD + "cases: [{given: {recipients: []}, expect: proceed}]", "2:18: cases[0].given.recipients: must have at"),
        (
            HEAD + 'cases: [{given: {message: {headers: {"A B": x}}}, expect: proceed}]',
            "2:28: cases[0].given.message.headers: ",
        ),
        (HEAD + "cases: [{name: 3, expect: proceed}]", "2:10: cases[0].name: must be a text of at most 200"),
        (HEAD + "tables: [{columns: [x], rows: []}]", "2:21: tables[0].columns[0]: must be the way to a value"),
        (HEAD + "tables: [{columns: [given..x], rows: []}]", "2:21: tables[0].columns[0]: must be the way"),
        (HEAD + f"tables: [{{columns: [given{'.x' * 500}], rows: []}}]", "2:21: tables[0].columns[0]: must be the way"),
        (HEAD + "tables: [{columns: [name, name], rows: []}]", "2:27: tables[0].columns[1]: is there twice"),
        (
            HEAD + "tables: [{columns: [expect], rows: [[proceed], [a, b]]}]",
            "2:48: tables[0].rows[1]: must be a list of 1 values, one for each column",
        ),
        (
            HEAD + "tables: [{columns: [expect.code], rows: [[x]]}]",
            "2:43: tables[0].rows[0][0]: must be a whole number",
        ),
        (GOOD + "run: [x]", "3:1: run: is for a pipeline: a policy alone has no plugins"),
        ("pipeline: 3\ncases: [{expect: proceed}]", "1:1: pipeline: must be a list of entries, or {file: "),
        (
            "pipeline: []\noptions: {}\ncases: [{expect: proceed}]",
            "2:1: options: is for a single policy; entries of a pipeline have their own",
        ),
        (
            "pipeline: []\ncases: [{options: {a: 1}, expect: proceed}]",
            "2:10: cases[0].options: is for a single policy; entries of a pipeline have their own",
        ),
        (
            HEAD + "cases: [{expect: {problem: x, action: reject}}]",
            "2:10: cases[0].expect: nothing else comes of options that are refused",
        ),
        (
            HEAD + 'cases: [{expect: {problem: ""}}]',
            "2:19: cases[0].expect.problem: String should have at least",
        ),
        (
            "pipeline: []\ncases: [{expect: {problem: x}}]",
            "2:19: cases[0].expect.problem: is for a single policy: there is nothing to test in a pipeline",
        ),
        (GOOD + "x: &a [1]\ny: *a", "4: aliases (*a) are not allowed here; write the value out"),
        (GOOD + "policy: x", "3: policy: key given twice; first on line 1"),
        (GOOD + "given: " + "[" * 100, "3: nested deeper than 24 levels"),
        (GOOD + "given: !!python/object:os.system {}", "3: given: the tag tag:yaml.org,2002:python/object:os.system"),
    ],
    ids=range(39),
)
def test_what_is_wrong_is_said_with_its_line_column_and_key(desk: Desk, text: str, said: str) -> None:
    first = desk.problems(text)[0]
    assert first.startswith(f"x.spec.yaml:{said}"), first


def test_a_problem_of_what_is_shared_is_said_once_where_it_stands(desk: Desk) -> None:
    rows = ", ".join("[proceed]" for _ in range(50))
    text = HEAD + f"given: {{sender: 'a b'}}\ntables: [{{columns: [expect], rows: [{rows}]}}]"
    (problem,) = desk.problems(text)
    assert problem.startswith("x.spec.yaml:2:9: given.sender: ")


def test_cases_and_what_is_laid_under_them_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ", ".join("[proceed]" for _ in range(50))
    table = f"tables: [{{columns: [expect], rows: [{rows}]}}]"
    monkeypatch.setattr(module, "CASES", 49)
    assert "there are more than 49 cases in this file" in desk.problems(HEAD + table)[0]
    monkeypatch.setattr(module, "CASES", 50)
    assert load(str(desk.put("x.spec.yaml", HEAD + table)))
    long = f"given: {{message: {{body: '{'x' * 64_000}'}}}}\n"
    monkeypatch.setattr(module, "VALUES", 20_000)
    assert "what is shared is too much for so many cases" in desk.problems(HEAD + long + table)[0]


def test_a_file_that_is_too_large_is_not_read(desk: Desk) -> None:
    assert desk.problems("#" * (1 << 20) + "\n" + GOOD) == ["x.spec.yaml:1: larger than 1 MiB"]


words = st.sampled_from(
    ["policy", "pipeline", "cases", "tables", "given", "expect", "options", "columns", "rows", "name", "run", "session",
     "findings", "Spf", "message", "headers", "recipients", "sender", "edits", "parts", "action", "file", "size", "~"]
)  # fmt: skip
leaves = words | st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=12
)
givens = st.fixed_dictionaries(
    {},
    optional={
        "session": st.dictionaries(
            st.sampled_from(["helo", "name", "tls", "trusted"]), words | st.booleans(), max_size=2
        ),
        "sender": st.sampled_from(["<>", "", "a@example.org", "a@b@c", "\x1b@x.example"]),
        "recipients": st.lists(st.text(max_size=3) | st.just("anna@example.org"), min_size=1, max_size=2),
        "message": st.dictionaries(st.sampled_from(["headers", "body", "file", "size"]), leaves | values),
        "findings": st.dictionaries(
            st.sampled_from(["Spf", "Dnsbl"]),
            st.sampled_from(["missing", "failed", {"score": 1}, {"score": float("inf")}]) | values,
            max_size=1,
        ),
    },
)
expects = st.sampled_from(["proceed", "reject", {"problem": "x"}]) | st.dictionaries(
    st.sampled_from(["action", "stage", "code", "text", "edits", "parts", "recipients"]), leaves | values, max_size=2
)
likely = st.fixed_dictionaries(
    {"cases": st.lists(st.fixed_dictionaries({"expect": expects}, optional={"given": givens}), min_size=1, max_size=2)}
).flatmap(
    lambda document: st.sampled_from(
        [
            {"policy": "own-domain-sender", "options": {"own_domains": ["example.org"]}},
            {"pipeline": ["spf", {"dnsbl": {"zones": {"bl.test": 1}}}]},
        ]
    ).map(lambda head: {**head, **document})
)
documents = likely | st.fixed_dictionaries(
    {},
    optional={
        "policy": st.just("helo-identity") | values,
        "pipeline": values,
        "options": values,
        "given": givens | values,
        "expect": expects | values,
        "run": values,
        "cases": st.lists(st.fixed_dictionaries({"given": givens, "expect": expects}) | values, max_size=3) | values,
        "tables": st.lists(
            st.fixed_dictionaries({"columns": values, "rows": st.lists(st.lists(leaves, max_size=2), max_size=2)})
        ),
    },
)


@settings(deadline=None, max_examples=150)
@given(documents)
def test_whatever_a_file_holds_it_is_run_or_refused(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.spec.yaml"
    path.write_text(json.dumps(document))
    try:
        report = run([str(path)], INSTALLED)
    except ConfigError as error:
        assert error.problems and all(p.file for p in error.problems)
    else:
        assert report.cases >= len(report.failed) and report.cases > 0


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="{}[]&*!|>-:#'\",\n \t%@`abc0~<", max_size=60))
def test_whatever_text_follows_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.spec.yaml"
    path.write_text(GOOD + text)
    try:
        assert load(str(path)).cases
    except ConfigError as error:
        assert error.problems
