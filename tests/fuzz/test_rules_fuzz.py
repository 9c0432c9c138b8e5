"""Whatever stands in a rule, reading it ends in a program or in a problem with a place; and what was taken, answers."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.sdk import (
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Dnsbl,
    HeloName,
    ListHit,
    Spf,
    SpfResult,
    Stage,
)
from gateway.sdk.testing import make_message, make_recipient, make_session, make_transaction
from policies.rules.inputs import INPUTS, finding_type
from policies.rules.program import Contexts, Program, Unanswered, check_syntax, compile
from policies.rules.syntax import ExpressionError

FINDINGS = {"spf": Spf, "dkim": Dkim, "dmarc": Dmarc, "dnsbl": Dnsbl, "helo_name": HeloName}
TYPES = {**{name: kind.type for name, kind in INPUTS.items()}, **{n: finding_type(k) for n, k in FINDINGS.items()}}

PIECES = st.sampled_from(
    """( ) [ ] { } . , : ? ! - + * / % < <= > >= == != && || in true false null 1 0 2.5 0x1f "fail" 'x' r'\\d' "" '''
    \\ b"x" 1u spf dkim dmarc dnsbl helo_name session sender recipient recipients message parameters result domain
    score hits zone signatures passed client helo tls version policy resolves subject size first all exists filter map
    has matches contains startsWith cidr containsIP string int double lowerAscii x y spf.result dkim.passed
    session.tls.version dnsbl.hits.exists(x, message.all("X") 9223372036854775807 // for Foo{ ö \x00""".split()
)
TEXTS = st.lists(PIECES, max_size=25).map(" ".join) | st.text(max_size=40)

STRINGS = st.sampled_from(
    """spf.domain|session.helo|session.client|sender.domain|message.subject|message.first("X")|"a"|''|dkim.passed[0]
    |session.tls.version|dmarc.policy|recipients[0].local|spf.domain + session.helo""".split("|")
)
INTS = st.sampled_from(
    """1|-7|spf.lookups|message.size|dkim.unchecked|dkim.passed.size()|session.helo.size()|(message.size - 14)
    |9223372036854775807|dnsbl.hits.map(h, h.codes.size())[0]|int(dnsbl.score)""".split("|")
)
DOUBLES = st.sampled_from("2.5|dnsbl.score|-0.0|double(spf.lookups)|dnsbl.hits[0].weight|1.0e100 * 1.0e100".split("|"))
LISTS = st.sampled_from(["dkim.passed", "dnsbl.failed", '["a", "b"]', 'message.all("X")', "dkim.passed + dnsbl.failed"])


@st.composite
def questions(draw: st.DrawFn, depth: int = 3) -> str:
    """Expressions that are mostly well typed."""
    if depth == 0:
        kind = draw(st.integers(0, 5))
        if kind == 0:
            return f"{draw(STRINGS)} {draw(st.sampled_from(['==', '!=', '<', '>=']))} {draw(STRINGS)}"
        if kind == 1:
            method = draw(st.sampled_from(["contains", "startsWith", "endsWith"]))
            return f"{draw(STRINGS)}.{method}({draw(STRINGS)})"
        if kind == 2:
            number = f"{draw(INTS)} {draw(st.sampled_from('+-*/%'))} {draw(INTS)}"
            return f"{number} {draw(st.sampled_from(['==', '<', '>=']))} {draw(INTS | DOUBLES)}"
        if kind == 3:
            return f"{draw(DOUBLES)} {draw(st.sampled_from('+-*/'))} {draw(DOUBLES)} > {draw(INTS | DOUBLES)}"
        if kind == 4:
            return f"{draw(STRINGS)} in {draw(LISTS)}"
        return draw(st.sampled_from(["session.tls == null", "dmarc == null", "helo_name.resolves", "true"]))
    inner = questions(depth - 1)
    shape = draw(st.integers(0, 4))
    if shape == 0:
        return f"({draw(inner)} && {draw(inner)})"
    if shape == 1:
        return f"({draw(inner)} || {draw(inner)})"
    if shape == 2:
        return f"!({draw(inner)})"
    if shape == 3:
        macro = draw(st.sampled_from(["all", "exists", "exists_one"]))
        return f"{draw(LISTS)}.{macro}(v{depth}, v{depth} == {draw(STRINGS)} || {draw(inner)})"
    return f"({draw(inner)} ? {draw(inner)} : {draw(inner)})"


SESSION = make_session()
TXN = make_transaction(SESSION, recipients=["anna@example.org"])
MESSAGE = make_message()
FOUND = {
    "spf": st.sampled_from([None, Spf(SpfResult.FAIL, "a", SpfResult.NONE, "b")]),
    "dkim": st.sampled_from([None, Dkim(), Dkim((DkimSignature(AuthResult.PASS, "a"),))]),
    "dmarc": st.sampled_from(
        [None, Dmarc(AuthResult.NONE, ""), Dmarc(AuthResult.FAIL, "a", policy=DmarcPolicy.REJECT)]
    ),
    "dnsbl": st.sampled_from([None, Dnsbl(0.0), Dnsbl(1.5, (ListHit("z", ("1",), 1e99),), ("\udcff",))]),
    "helo_name": st.sampled_from([None, HeloName("a"), HeloName("a", ("x",), True)]),
}


def ask(program: Program, data: st.DataObject) -> bool:
    given = {type(v): v for v in (SESSION, TXN, MESSAGE, make_recipient())}
    uses = program.checked.uses
    sources = {
        name: INPUTS[name].source(given[INPUTS[name].kind]) if name in INPUTS else data.draw(FOUND[name], name)
        for name in uses
    }
    if program.needs_missing(sources):
        return False
    return program.holds(Contexts(uses).make(sources, given), sources)


@given(TEXTS, st.data())
@example("(" * 4000, None)
@example("!" * 4000, None)
@example("-" * 4000, None)
@example("a" + ".b" * 1999, None)
@example("+".join("1" * 2000), None)
@example("[" * 2000 + "]" * 2000, None)
@example("true?1:" * 500 + "2", None)
@example("{" * 4000, None)
@example("x.map(x," * 400, None)
@settings(max_examples=150)
def test_any_text_is_a_question_or_a_problem_with_a_place(text: str, data: st.DataObject | None) -> None:
    try:
        check_syntax(text)
        program = compile(text, TYPES)
    except ExpressionError as error:
        assert 0 <= error.offset <= len(text)
        return
    if data is not None:
        try:
            assert ask(program, data) in (True, False)
        except Unanswered as error:
            assert "TypeError" not in str(error), text


@given(questions(), st.data())
@settings(max_examples=150)
def test_what_is_found_well_typed_never_fails_by_its_types(text: str, data: st.DataObject) -> None:
    try:
        program = compile(text, TYPES)
    except ExpressionError:
        return
    try:
        assert ask(program, data) in (True, False)
    except Unanswered as error:
        assert "TypeError" not in str(error) and "Undefined" not in str(error), text


def test_stages_of_inputs_are_stages() -> None:
    assert {stage for kind in INPUTS.values() for stage in kind.stages()} <= set(Stage)
