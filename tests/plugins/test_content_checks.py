"""Content checks: tables, where they look, what their actions come to."""

from __future__ import annotations

import asyncio
import base64

import pytest

from gateway.sdk import (
    Action,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ContentChecks,
    DeleteHeader,
    Message,
    Mime,
    MimePart,
    MimeText,
    Redirect,
    Reroute,
    Verdict,
)
from gateway.sdk.testing import Bench, make_message, make_transaction
from plugins.content.checks import TableOptions
from plugins.content.markup import plain_text
from plugins.content.table import Act
from tests.plugins.test_cards import card, table

HEAD = b"From: a@b.test\r\nTo: c@d.test\r\nSubject: buy this\r\n"
FILED = b"Content-Type: application/x; name=x.exe\r\n"


def check(
    content: bytes | Message, *entries: str, mime: Mime | None = None, more: dict | None = None, **table
) -> tuple[ContentChecks, Verdict]:
    options = {"tables": [{"entries": list(entries), **table}], **(more or {})}
    message = content if isinstance(content, Message) else make_message(content)
    transaction = make_transaction(recipients=["c@d.test", "e@d.test"])
    bench = Bench()
    found = bench.find(
        "content-checks", options, message=message, transaction=transaction, findings=[mime] if mime else []
    )
    assert isinstance(found, ContentChecks)
    return found, bench.judge("content-checks", options, findings=[found])


def edited(content: bytes, *entries: str, **table) -> bytes:
    message = make_message(content)
    _, verdict = check(message, *entries, **table)
    assert verdict.action is Action.PROCEED
    return asyncio.run(message.edited(verdict.edits).octets(1 << 30))


def text_of(text: str, kind: str = "text/plain", *, truncated: bool = False) -> Mime:
    return Mime((MimePart("1", kind),), texts=(MimeText("1", kind, text, truncated),))


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        ("REJECT", "550 5.7.1 message content rejected"),
        ("reject no $1, please", "550 5.7.1 no this, please"),
        ("REJECT 5.6.0 not like that", "550 5.6.0 not like that"),
        ("REJECT 4.7.0 not now", "451 4.7.0 not now"),
        ("DEFER", "451 4.7.1 try again later"),
        ("DEFER 4.3.2 busy", "451 4.3.2 busy"),
    ],
)
def test_a_refusal_has_the_text_and_the_status_of_its_line(action, reply):
    found, verdict = check(HEAD + b"\r\n", rf"/^Subject: buy (\w+)/ {action}")
    assert str(verdict.reply) == reply
    assert verdict.reason == f"table 1, entry 1: {found.action}"
    assert found.matches[0].rule == "table 1, entry 1" and found.matches[0].name == "Subject"


def test_what_matched_cannot_break_a_reply():
    _, verdict = check(b"Subject: a\x07\xff\xc3\xa9 " + b"x" * 900 + b"\r\n\r\n", "/^Subject: (.*)/ REJECT about $1")
    assert verdict.reply is not None and verdict.reply.text.isascii() and verdict.reply.text.isprintable()
    assert len(verdict.reply.text) == 200


def test_the_first_rule_that_matches_decides_and_the_next_field_is_looked_at():
    rules = ("/^Subject:/ DUNNO", "/^Subject:/ REJECT", "/^To:/ HOLD look")
    found, verdict = check(HEAD + b"\r\n", *rules)
    assert verdict.action is Action.QUARANTINE and verdict.reason.endswith("look")
    assert [m.action for m in found.matches] == ["hold", "dunno"]


@pytest.mark.parametrize("last", ["REJECT", "DISCARD", "PASS", "DEFER"])
def test_nothing_is_looked_at_after_a_final_action(last):
    found, _ = check(HEAD + b"\r\nbody\r\n", "/^From:/ HOLD", f"/^To:/ {last}", "/^Subject:/ DISCARD")
    assert [m.action for m in found.matches] == ["hold", last.lower()]
    assert found.action == ("hold" if last == "PASS" else last.lower())


def test_pass_ends_the_matter_and_keeps_what_was_changed_before():
    found, verdict = check(HEAD + b"\r\n", "/^From:/ IGNORE", "/^To:/ PASS", "/^Subject:/ REJECT")
    assert (found.action, verdict.action) == ("pass", Action.PROCEED)
    assert verdict.edits == (DeleteHeader("From", 1),)


def test_fields_are_changed_where_they_stand():
    content = b"X: 1\r\nSubject: one\r\nx: 2\r\nX: 3\r\nSubject: two\r\n\r\nbody\r\n"
    rules = ("/^X: [13]/ IGNORE", "/^Subject: (one)/ REPLACE Topic: $1!", "/^Subject: two/ PREPEND X: new")
    assert edited(content, *rules) == b"Topic: one!\r\nx: 2\r\nX: new\r\nSubject: two\r\n\r\nbody\r\n"


def test_a_replacement_of_the_same_name_is_a_change_and_keeps_folds():
    content = b"Subject: one\r\n two\r\n\r\n"
    _, verdict = check(content, r"/^Subject: (.*)/ REPLACE Subject: [x] $1")
    assert verdict.edits == (ChangeHeader("Subject", 1, "[x] one\n two"),)


def test_a_text_that_is_no_field_changes_nothing_and_one_with_control_characters_is_cleaned():
    assert edited(b"X: (no field\r\n\r\n", r"/^X: (.*)/ REPLACE $1") == b"X: (no field\r\n\r\n"
    assert edited(b"X: a\x00b\r\n\r\n", r"/^X: (.*)/ REPLACE Y: $1") == b"Y: a?b\r\n\r\n"


def test_lines_of_the_body_are_changed_where_they_stand():
    content = HEAD + b"\r\none\r\ntwo\r\nthree\r\n\r\nfour"
    rules = ("/two/ IGNORE", "/(one|four)/ REPLACE <$1>", "/three/ PREPEND before")
    assert edited(content, *rules, match=["body"]) == HEAD + b"\r\n<one>\r\nbefore\r\nthree\r\n\r\n<four>"


def test_only_the_begin_of_each_part_is_looked_at_in_lines():
    content = HEAD + b"\r\n" + b"x" * 70 + b"\r\nsecret\r\n"
    assert check(content, "/secret/ REJECT", match=["body"], more={"segment": 10})[1].action is Action.PROCEED
    assert check(content, "/secret/ REJECT", match=["body"], more={"segment": 100})[1].action is Action.REJECT


def test_a_message_longer_than_the_limit_is_not_looked_at_to_its_end_and_the_finding_says_so():
    content = HEAD + b"\r\n" + b"x\r\n" * 10_000 + b"secret\r\n"
    found, _ = check(content, "/secret/ REJECT", match=["body"], more={"octets": "1KiB", "segment": "1MiB"})
    assert (found.action, found.complete) == ("", False)
    found, _ = check(content, "/secret/ REJECT", match=["body"], more={"segment": "1MiB"})
    assert (found.action, found.complete) == ("reject", True)


@pytest.mark.parametrize("place", ["header", "mime-header", "nested-header", "body"])
def test_a_table_sees_its_own_place_only(place):
    content = (
        b"Subject: outer\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nX-Part: p\r\n\r\nline\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nlast\r\n--b--\r\n"
    )
    found, _ = check(content, "/./ WARN", match=[place])
    assert {m.place for m in found.matches} == {place}
    named = {m.name for m in found.matches}
    expected = {
        "header": {"Subject"},
        "mime-header": {"Content-Type", "X-Part"},
        "nested-header": {"Subject"},
        "body": {""},
    }
    assert named == expected[place]


def test_fields_can_be_named_and_then_the_value_alone_is_matched():
    found, _ = check(HEAD + b"\r\n", "/^buy this$/ REJECT", names=["SUBJECT"])
    assert found.action == "reject"
    assert check(HEAD + b"\r\n", "/./ REJECT", names=["x-none"])[0].action == ""


def test_encoded_words_are_decoded_on_demand():
    content = b"Subject: =?utf-8?q?V=C3=AFagra_?=\r\n =?iso-8859-1?b?4m5k?= more\r\n\r\n"
    assert check(content, "/vïagra ând/ REJECT")[0].action == ""
    found, _ = check(content, "/^Subject: vïagra ând more$/ REJECT", decode=True)
    assert found.action == "reject"
    assert check(content, "/^VÏAGRA/ REJECT", decode=True, names=["subject"])[0].action == "reject"


def test_text_parts_are_seen_decoded_and_html_without_its_tags():
    mime = text_of("<p>Buy&nbsp;v<b>ia</b>gra<br>now</p>", "text/html")
    found, _ = check(HEAD + b"\r\n", "/buy viagra.now/ REJECT", match=["text"], mime=mime)
    assert found.action == "reject"
    assert check(HEAD + b"\r\n", "/grüße/ REJECT", match=["text"], mime=text_of("GRÜSSE GRÜßE"))[0].action == "reject"
    found, _ = check(HEAD + b"\r\n", "/x/ REJECT", match=["text"], mime=text_of("y", truncated=True))
    assert not found.complete


def test_a_table_on_text_needs_the_finding_of_mime():
    with pytest.raises(RuntimeError, match="`mime`"):
        check(HEAD + b"\r\n", "/x/ REJECT", match=["text"])


def test_scores_add_up_and_decide_at_their_limits():
    rules = ("/^From:/ SCORE 1.5 a sender", "/^To:/ SCORE 2", "/^Subject:/ SCORE -0.5")
    found, verdict = check(HEAD + b"\r\n", *rules)
    assert (found.score, verdict.action) == (3.0, Action.PROCEED)
    limits = {"quarantine_at": 3, "reject_at": 3.5}
    assert check(HEAD + b"\r\n", *rules, more=limits)[1].action is Action.QUARANTINE
    assert check(HEAD + b"\r\n", *rules[:2], more=limits)[1].action is Action.REJECT


def test_envelopes_are_changed():
    _, verdict = check(HEAD + b"\r\n", "/^To:/ BCC archive@example.org", "/^From:/ FILTER smtp:[127.0.0.1]:10025")
    reroute, copy = verdict.edits
    assert reroute == Reroute("smtp:127.0.0.1:10025")
    assert isinstance(copy, AddRecipient) and str(copy.recipient.address) == "archive@example.org"
    assert copy.recipient.notify == {"NEVER"}
    _, verdict = check(HEAD + b"\r\n", "/^To:/ BCC x@y.test", "/^F/ FILTER lmtp:h:24", "/^Sub/ REDIRECT z@d.test")
    assert [str(e.recipient.address) for e in verdict.edits if isinstance(e, Redirect)] == ["z@d.test"]
    assert len(verdict.edits) == 1


def test_a_condition_is_about_the_lines_up_to_its_endif():
    rules = (
        "if /^X-/",
        "!/^X-Ok:/ PREPEND X-Odd: yes",
        "if !/: [0-9]/",
        "/$/ IGNORE",
        "endif",
        "endif",
        "/^X-Ok: (2)/ REPLACE X-Two: $1",
    )
    content = b"X-Ok: a\r\nX-Ok: 2\r\nX-Other: 1\r\nFrom: a@b.test\r\n\r\n"
    expected = b"X-Two: 2\r\nX-Odd: yes\r\nX-Other: 1\r\nFrom: a@b.test\r\n\r\n"
    assert edited(content, *rules) == expected


def test_many_rules_are_asked_in_order_whatever_blocks_they_are_asked_in():
    rules = [f"/^n{n}: / REPLACE m{n}: x" for n in range(300)]
    rules[100:100] = ["if /7/", "/^n17[0-9]:/ REPLACE seventeen: x", "endif"]
    content = b"".join(b"n%d: v\r\n" % n for n in (3, 99, 170, 177, 199, 299)) + b"\r\n"
    out = edited(content, *rules)
    assert out == b"m3: x\r\nm99: x\r\nseventeen: x\r\nseventeen: x\r\nm199: x\r\nm299: x\r\n\r\n"


@pytest.mark.parametrize(
    ("entry", "problem", "more"),
    [
        ("no pattern", "between two delimiters", {}),
        ("/a REJECT", "has no / at its end", {}),
        ("/a/", "names no action", {}),
        ("/a/ REFUSE", "'REFUSE' is no action", {}),
        ("/a/z REJECT", "'z' is no flag of a pcre pattern", {}),
        ("/a/s REJECT", "'s' is no flag of a regexp pattern", {"kind": "regexp"}),
        ("/a(?=b)/ REJECT", "RE2 does not take this pattern", {}),
        (r"/(a)\1/ REJECT", "RE2 does not take this pattern", {}),
        ("/a)(b/ REJECT", "RE2 does not take this pattern", {}),
        (r"/\d/ REJECT", r"\\d is nothing", {"kind": "regexp"}),
        ("/a(?:b)/ REJECT", "belongs to pcre", {"kind": "regexp"}),
        ("/a/ REJECT $1", "the pattern has 0 groups", {}),
        ("!/(a)/ REJECT $1", "the pattern has 0 groups", {}),
        ("/(a)/ REJECT $name", "a dollar sign is written", {}),
        ("/(a)/ REDIRECT $1@example.org", "write it out", {}),
        ("/a/ BCC archive", "no domain", {}),
        ("/a/ FILTER smtp:", "no next hop", {}),
        ("/a/ FILTER smtp:[::1:25", "no next hop", {}),
        ("/a/ PREPEND", "wants a text", {}),
        ("/a/ PREPEND no field", "wants a field", {}),
        ("/a/ SCORE many", "wants a number", {}),
        ("/a/ REJECT 2.0.0 fine", "does not go with REJECT", {}),
        ("endif", "endif without an if", {}),
        ("if /a/", "has no endif", {}),
        ("if /a/ REJECT", "nothing is expected", {}),
        ("/a/ REPLACE b", "decoded text cannot be edited", {"match": ["text"]}),
        ("/a/ REJECT", "a table of its own", {"match": ["text", "body"]}),
        ("/a/ REJECT", "not on any", {"match": ["body"], "names": ["x"]}),
        ("/a/ REJECT", "no header field name", {"names": ["x:"]}),
        ("/a/ REJECT", "give them a table of their own", {"match": ["header", "body"], "decode": True}),
    ],
)
def test_a_wrong_line_is_refused_and_named(entry, problem, more):
    with pytest.raises(ValueError, match=problem):
        check(HEAD + b"\r\n", entry, **more)


def test_a_wrong_line_of_a_file_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "checks"
    path.write_text("# one\n/a/ REJECT\n\n/b(/\n  REJECT\n")
    with pytest.raises(ValueError, match=rf"{path}: line 4: RE2"):
        check(HEAD + b"\r\n", more={"tables": [{"file": str(path)}]})
    path.write_bytes(b"/a/ REJECT\n/\xff/ REJECT\n")
    with pytest.raises(ValueError, match="line 2: is not UTF-8"):
        check(HEAD + b"\r\n", more={"tables": [{"file": str(path)}]})


def test_a_file_names_its_lines_in_the_record(tmp_path):
    path = tmp_path / "checks"
    path.write_text("# one\n/^nothing/ REJECT\n/^Subject:\n   \\ (.*)/x\n  REJECT found $1\n")
    found, verdict = check(HEAD + b"\r\n", more={"tables": [{"file": str(path)}]})
    assert (found.rule, found.text) == (f"{path}:3", "found buy this")
    assert verdict.reason == f"{path}:3: reject"


def test_matches_are_counted_and_only_some_are_kept():
    content = b"".join(b"X: %d\r\n" % n for n in range(100)) + b"\r\n"
    found, _ = check(content, "/^X/ WARN", more={"matches": 5})
    assert (len(found.matches), found.matched) == (5, 100)


def test_a_pattern_that_would_take_a_backtracking_engine_for_ever_takes_no_time():
    content = b"Subject: " + b"a" * 50_000 + b"!\r\n\r\n"
    assert check(content, r"/^Subject: (a+)+$/ REJECT", "/(a|a|aa)*x/ REJECT")[0].action == ""


def test_large_messages_are_read_in_pieces_and_in_a_thread():
    body = base64.encodebytes(bytes(range(256)) * 20_000).replace(b"\n", b"\r\n")
    content = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + FILED + b"\r\n" + body
        + b"--b\r\nContent-Type: application/x; name=last.exe\r\n\r\n\r\n--b--\r\n"
    )  # fmt: skip
    found, _ = check(content, "/name=last/ REJECT", "/name=/ WARN")
    assert [m.action for m in found.matches] == ["warn", "reject"]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a<b>c</b>d", "acd"),
        ("<p>a</p><p>b<br/>c", "a\nb\nc"),
        ("<!-- hidden <b> -->x<style>p{}</style>y<script>z</script >!", "xy!"),
        ("1 &lt; 2 &amp; 3&#8203;4", "1 < 2 & 34"),
        ("a < b and c > d", "a < b and c > d"),
        ("<!-- never ends", "<!-- never ends"),
        ("<td>4111</td> <td>1111</td>", "4111\n1111"),
    ],
)
def test_html_is_shown_as_a_reader_sees_it(source, shown):
    assert plain_text(source) == shown


def test_a_message_whose_fields_are_not_ended_by_an_empty_line_is_read_as_postfix_reads_it():
    out = edited(b"Subject: x\r\nno field\r\nmore\r\n", "/more/ IGNORE", match=["body"])
    assert out == b"Subject: x\r\n\r\nno field\r\n"


def test_edits_come_as_values_that_the_record_can_keep():
    found, verdict = check(HEAD + b"\r\nx\r\n", "/^To:/ PREPEND X: y")
    assert verdict.edits == (AddHeader("X", "y", 1),)
    assert found.to_json()["edits"] == [{"edit": "AddHeader", "name": "X", "index": 1, "value": "y"}]


def test_the_options_of_a_table_are_on_the_card():
    assert table(TableOptions) in card("content-checks")
    for act in Act:
        assert f"`{act.value.upper()}" in card("content-checks"), act
