"""What is found wrong with rules when the configuration is read: each problem, and the character that it is about."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    Dkim,
    Dmarc,
    Dnsbl,
    Geo,
    Given,
    HeloName,
    OptionError,
    RecipientStatus,
    Spf,
    Stage,
)
from policies.rules import Rules, RulesOptions
from policies.rules.check import COST
from policies.rules.functions import FUNCTIONS, MACROS
from policies.rules.syntax import DEPTH, HEIGHT, LENGTH

FROM_MAIL = tuple(Stage)[3:]
STAGES = {
    Dnsbl: tuple(Stage),
    HeloName: tuple(Stage)[1:],
    Spf: FROM_MAIL,
    RecipientStatus: (Stage.RCPT,),
    Dkim: (Stage.MESSAGE,),
    Dmarc: (Stage.MESSAGE,),
}


def made(*rules) -> Rules:
    policy = Rules(RulesOptions.model_validate({"rules": rules}))
    policy.wire(Given(STAGES, lambda kind: ("geoip",) if kind is Geo else ()))
    return policy


def stage_of(when: str, then="accept", **more) -> Stage:
    (stage,) = made({"when": when, "then": then, **more}).hooks
    return stage


def problem(when: str, then="accept", **more) -> tuple[str, int | None]:
    """What is wrong with a rule, and where in its expression."""
    with pytest.raises(OptionError) as caught:
        made({"when": when, "then": then, **more})
    (found,) = caught.value.problems
    assert found.path[:2] == ("rules", 0)
    return found.message, found.offset


@pytest.mark.parametrize(
    ("when", "message", "offset"),
    [
        ("", "", None),
        ("spf.result ==", "the end is not expected here", 13),
        ("(spf.lookups > 1", "expected ')' and not the end", 16),
        ("spf.lookups > 1)", ") is not expected here", 15),
        ('spf.domain == "x', "a text without its end is not understood here", 14),
        ("spf.domain = 1", "'=' is not understood here", 11),
        (r'spf.domain == "\d"', r"\d is no escape; write \\ for a backslash, or r'...'", 15),
        (r'spf.domain == "\uD800"', "is no character", 15),
        ("spf. > 1", "expected a name after the dot", 5),
        ("spf.lookups > 12a", "12a is no number", 14),
        ("spf.lookups > 1u", "there are no unsigned numbers here", 15),
        ("spf.lookups > 9223372036854775808", "the number does not fit into 64 bits", 14),
        ('spf.domain == b"x"', "octet strings are of no use here: all text is characters", 14),
        ("spf.lookups in for", "for is a reserved word", 15),
        ("Spf{result: 1}", "messages cannot be made here", 3),
        ("!!spf.lookups", "'!' twice says nothing", 1),
    ],
)
def test_syntax(when, message, offset):
    if not when:
        with pytest.raises(ValidationError, match="at least 1 character"):
            made({"when": when, "then": "accept"})
    else:
        assert problem(when) == (message, offset)


@pytest.mark.parametrize(
    ("when", "message", "offset"),
    [
        ('spff.result == "fail"', "there is no variable spff; did you mean spf?", 0),
        ('true && spf.resut == "fail"', "Spf has no field resut; did you mean result?", 12),
        ('session.ip == "x"', "session has no field ip; there are ", 8),
        ('spf.result == "fial"', "is never 'fial'; did you mean fail?", 14),
        ('spf.result in ["fail", "softfial"]', "is never 'softfial'; did you mean softfail?", 23),
        ('"fial" == spf.result', "is never 'fial'; did you mean fail?", 0),
        ('spf.domain.startWith("x")', "there is no function startWith; did you mean startsWith?", 11),
        ("siz(spf.domain) > 1", "there is no function siz; did you mean size?", 0),
        ('spf.domain.size("x") > 1', "there is no size(string) of a string", 11),
        ('spf.startsWith("x")', "there is no startsWith(string) of a Spf", 4),
        ('spf.domain.first("x") == ""', "there is no first(string) of a string", 11),
        ("spf.domain.endsWith(1)", "there is no endsWith(int) of a string", 11),
        ('dnsbl.score > "2"', "a double and a string have no order", 12),
        ('dnsbl.score == "2"', "a double never equals a string", 12),
        ('"a" in [1]', "a string is never in a list of int", 4),
        ('"a" in "abc"', "`in` is for lists; for texts there is .contains(...)", 4),
        ("1 in 1", "nothing is in an int", 2),
        ("dnsbl.score + 1 > 2", "whole numbers and others do not mix; write 1.0, or double(...)", 12),
        ('spf.lookups + "1" == "1"', "an int + a string has no meaning", 12),
        ("spf.lookups / 0 > 1", "a division by 0", 12),
        ("1.5 % 1.0 > 0.0", "a double % a double has no meaning", 4),
        ('-"a" == "a"', "a string has no negative", 0),
        ("spf.result", "the rule must be true or false, and this is a string", 0),
        ("spf.lookups && true", "what stands before && must be true or false, and this is an int", 0),
        ("true || spf", "what stands after || must be true or false, and this is a Spf", 8),
        ("!spf.domain", "what stands after ! must be true or false, and this is a string", 1),
        ("spf.lookups ? true : false", "what stands before ? must be true or false, and this is an int", 0),
        ('(true ? 1 : "a") == 1', "gives int or string; both sides of : must be alike", 6),
        ("spf.domain == null", "this is never null", 0),
        ("spf == dmarc", "only fields can be compared, not a thing as a whole (except with null)", 4),
        ("spf.domain.size == 1", "a string has no fields", 11),
        ('spf.domain[0] == "a"', "a string has no items", 10),
        ('dkim.passed["a"] == "a"', "items of a list of string are chosen by int, not by string", 12),
        ("has(spf.result)", "has() is for maps; whether something is there says `!= null`", 0),
        ("has(spf)", "invalid argument to has() macro", 4),
        ('spf.domain.matches("(")', "is no regular expression of RE2: missing ): (", 19),
        ('spf.domain.matches("(?=a)")', "is no regular expression of RE2: invalid perl operator: (?=", 19),
        ("spf.domain.matches(spf.domain)", "what matches takes must be written out", 19),
        ('cidr("10.0.0.1/8").containsIP(session.client)', "is no network: 10.0.0.1/8 has host bits set", 5),
        ("dkim.passed.exists(spf, spf > 1)", "a string and an int have no order", 28),
        ("dkim.passed.exists(d, d)", "what exists asks must be true or false, and this is a string", 22),
        ("spf.lookups.all(x, true)", "all is for lists, and this is an int", 12),
        ("{1: 2}.a == 2", "keys of a map are texts here", 1),
        ('geo.country == "DE"', "no plugin of this pipeline gives geo; geoip would, if listed", 0),
        ("true && milter_reply.code > 1", "no plugin of this pipeline gives milter_reply", 8),
    ],
)
def test_names_fields_functions_and_types(when, message, offset):
    said, place = problem(when)
    assert (said.startswith(message), place) == (True, offset), said


def test_all_wrong_rules_are_named_at_once():
    with pytest.raises(OptionError) as caught:
        made(*({"when": when, "then": "accept"} for when in ("spf.x == 1", "true", "dmarc.y == 1")))
    assert [p.path for p in caught.value.problems] == [("rules", 0, "when"), ("rules", 2, "when")]


class TestStages:
    @pytest.mark.parametrize(
        ("when", "stage"),
        [
            ("true", Stage.CONNECT),
            ('session.client == "192.0.2.1"', Stage.CONNECT),
            ("dnsbl.score > 1", Stage.CONNECT),
            ("dnsbl.score > 1 && session.esmtp", Stage.HELO),
            ('helo_name.name == "x"', Stage.HELO),
            ("session.tls == null", Stage.MAIL),
            ('sender.address == ""', Stage.MAIL),
            ('spf.result == "fail" && dnsbl.score > 1', Stage.MAIL),
            ('recipient.local == "anna"', Stage.RCPT),
            ('recipient_status.state == "unknown" && spf.result == "fail"', Stage.RCPT),
            ("recipients.size() > 5", Stage.DATA),
            ('dmarc.result == "fail"', Stage.MESSAGE),
            ('message.first("X") == ""', Stage.MESSAGE),
            ("geo == null", Stage.CONNECT),
        ],
    )
    def test_a_rule_is_asked_as_soon_as_all_that_it_names_is_known(self, when, stage):
        assert stage_of(when) is stage

    def test_a_later_stage_can_be_chosen_and_an_earlier_one_not(self):
        assert stage_of("dnsbl.score > 1", at="rcpt") is Stage.RCPT
        assert stage_of("session.tls == null", at="helo") is Stage.HELO
        assert stage_of("recipients.size() > 5", at="rcpt") is Stage.RCPT
        said, offset = problem('spf.result == "fail"', at="helo")
        assert (said, offset) == ("not everything is known at helo: spf at mail, rcpt, data, message", None)

    def test_what_is_never_known_together_is_no_question(self):
        said, _ = problem('recipient_status.state == "unknown" && dmarc.result == "fail"')
        assert said.startswith("there is no stage at which all of it is known: ")
        assert "recipient_status at rcpt" in said and "dmarc at message" in said

    def test_what_is_made_from_the_whole_message_waits_for_it(self):
        for then in ({"tag_subject": "[x]"}, {"redirect": "a@example.org"}):
            assert stage_of("dnsbl.score > 1", then) is Stage.MESSAGE
            assert problem("dnsbl.score > 1", then, at="mail")[0].startswith("not everything is known at mail: ")
        assert stage_of("dnsbl.score > 1", {"add_header": {"X-A": "b"}}) is Stage.CONNECT

    def test_only_stages_that_have_rules_are_hooked_with_what_their_rules_name(self):
        policy = made(
            {"when": "dnsbl.score > 1", "then": "accept"},
            {"when": 'dmarc.result == "fail" && spf.result == "fail"', "then": "discard"},
        )
        assert {stage: hook.inputs for stage, hook in policy.hooks.items()} == {
            Stage.CONNECT: (Dnsbl,),
            Stage.MESSAGE: (Dmarc, Spf),
        }


class TestThen:
    @pytest.mark.parametrize(
        ("then", "message"),
        [
            ("rejct", "rejct is no action; there are reject, "),
            ([], "says nothing to do"),
            ({}, "expected the name of an action"),
            (7, "expected the name of an action"),
            ("reject", "reject: expected the reply's text, in one line"),
            ({"reject": "4.7.1 no"}, "reject: the status 4.7.1 does not fit the code 550"),
            ({"reject": "450 no"}, "reject: reject needs a reply from 500 to 599"),
            ({"defer": "5.7.1 no"}, "defer: the status 5.7.1 does not fit the code 451"),
            ({"reject": "5.7.1"}, "reject: a reply has a text"),
            ({"reject": "5.7.1 nö"}, "reject: a reply's text has at most 400 printable ASCII characters"),
            ({"reject": "a\nb"}, "reject: expected the reply's text, in one line"),
            ({"discard": 1}, "discard: expected a note for the record, in one line"),
            (["accept", {"quarantine": "x"}], "decides twice: accept and quarantine"),
            ([{"reject": "5.7.1 no"}, {"tag_subject": "x"}], "reject leaves no message to change"),
            ({"tag_subject": "x" * 101}, "tag_subject: a tag of a subject has"),
            ({"add_header": {"Bad Name": "x"}}, "add_header: 'Bad Name' is no header field name"),
            ({"add_header": {"X": "a\x07"}}, "add_header: a header value holds control characters"),
            ({"add_header": "X"}, "add_header: expected a mapping of header fields"),
            ({"add_header": {"X": 1}}, "add_header: the value of X must be text"),
            ({"delete_header": "a b"}, "delete_header: 'a b' is no header field name"),
            ({"redirect": "nobody"}, "redirect: "),
            ({"redirect": "anna@-bad-"}, "redirect: "),
            ({"bcc": []}, "bcc: expected an address"),
            ({"reroute": "store:25"}, "reroute: expected a next hop"),
            ({"reroute": "smtp:store:70000"}, "reroute: expected a next hop"),
            ({"reroute": f"smtp:{'a' * 60}_:25"}, "reroute: expected a next hop"),
            ({"reroute": "smtp:[::g]:25"}, "reroute: "),
            ([{"add_header": {f"X-{n}": "a" for n in range(21)}}], "has more than 20 actions"),
        ],
    )
    def test_actions_are_read_when_the_configuration_is(self, then, message):
        with pytest.raises(ValidationError) as caught:
            made({"when": "true", "then": then})
        (error,) = caught.value.errors()
        assert error["loc"] == ("rules", 0, "then")
        assert error["msg"].removeprefix("Value error, ").startswith(message)

    def test_stages_and_names_are_options_like_others(self):
        for more in ({"at": "dat"}, {"name": "x" * 81}, {"name": "a\nb"}, {"of": 1}):
            with pytest.raises(ValidationError):
                made({"when": "true", "then": "accept", **more})


class TestBounds:
    def test_length_depth_and_number_of_parts(self):
        with pytest.raises(ValidationError, match=f"at most {LENGTH} characters"):
            made({"when": "true" + " " * LENGTH, "then": "accept"})
        deep = "(" * DEPTH + "true" + ")" * DEPTH
        assert problem(deep) == (f"nested deeper than {DEPTH} levels", DEPTH)
        assert stage_of(deep[1:-1]) is Stage.CONNECT
        chain = " || ".join(["true"] * HEIGHT)
        assert stage_of(chain) is Stage.CONNECT
        assert problem(chain + " || true")[0].startswith(f"a chain of more than {HEIGHT} parts")
        many = "[" + ", ".join(["1"] * 700) + "]"
        assert problem(f"1 in {many}")[0] == "has more than 600 parts"

    def test_what_would_take_long_on_a_large_message_is_refused(self):
        pairs = 'message.all("X").exists(x, message.all("Y").exists(y, x == y))'
        assert problem(pairs)[0] == f"would take more than {COST} steps on a large message"
        assert stage_of('message.all("X").exists(x, ["a", "b"].exists(y, x == y))') is Stage.MESSAGE

    def test_texts_cannot_be_made_to_grow_without_end(self):
        growing = "[message.subject]" + ".map(x, x + x)" * 40 + ".size() > 0"
        assert problem(growing)[0] == f"would take more than {COST} steps on a large message"


def test_every_function_and_macro_is_one_that_the_library_or_we_have():
    from policies.rules.functions import CALLABLES

    native = {"contains", "startsWith", "endsWith", "size", "string", "int", "double", "first", "all"}
    assert {way.native for ways in FUNCTIONS.values() for way in ways} - set(CALLABLES) == native
    assert set(MACROS) == {"all", "exists", "exists_one", "filter", "map"}
