"""The access plugin on the bench: what lists say of whom, which line decides, and what that means."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Access,
    AccessAction,
    Action,
    AuthResult,
    ReverseName,
    Stage,
)
from gateway.sdk.testing import Bench, make_recipient, make_session, make_transaction
from plugins.access import AccessOptions, AccessPlugin, ListOptions
from plugins.access.tables import Subject, client_subject
from tests.plugins.test_cards import card, table

CLIENT, SENDER, RECIPIENT = "192.0.2.1", "ben@sender.example", "anna@example.org"


def look(
    lists,
    *,
    client: str = CLIENT,
    helo: str = "client.example",
    name: str = "",
    sender: str = SENDER,
    recipient: str = RECIPIENT,
    findings=(),
    bench: Bench | None = None,
    **options,
) -> Access:
    session = make_session(client, helo=helo, name=name)
    return (bench or Bench()).find(
        AccessPlugin,
        {"lists": lists if isinstance(lists, list) else [lists], **options},
        session=session,
        transaction=make_transaction(session, sender=sender),
        recipient=make_recipient(recipient),
        findings=findings,
    )


def entries(match: str, *lines: str, kind: str = "exact", **more) -> dict:
    return {"match": match, "kind": kind, "entries": list(lines), **more}


def line(found: Access) -> int:
    """The entry that decided, 0 for none."""
    return int(found.where.rpartition(" ")[2]) if found.where else 0


# What matches


@pytest.mark.parametrize(
    ("client", "decides"),
    [
        ("192.0.2.1", 1),
        ("192.0.2.2", 2),
        ("::ffff:192.0.2.2", 2),
        ("198.51.100.7", 3),
        ("203.0.113.1", 4),
        ("10.20.30.40", 5),
        ("2001:db8::1", 6),
        ("2001:DB8:0:0::1", 6),
        ("2001:db8:1::1", 7),
        ("192.0.3.1", 0),
        ("2001:db9::1", 0),
    ],
)
def test_a_client_is_found_by_address_network_or_first_octets(client, decides):
    lines = ["192.0.2.1 ok", "192.0.2.0/24 reject", "::ffff:198.51.100.0/120 reject", "203.0.113 defer", "10. defer"]
    lines += ["2001:db8::1 ok", "2001:db8:1::/48 reject"]
    assert line(look(entries("client", *lines), client=client)) == decides


def test_the_first_line_decides_and_not_the_longest_prefix():
    lines = ["192.0.2.0/24 reject", "192.0.2.1 ok", "0.0.0.0/0 defer"]
    found = look(entries("client", *lines, kind="cidr"))
    assert found == Access(AccessAction.REJECT, "list 1, entry 1", "client", "192.0.2.0/24")
    assert line(look(entries("client", *reversed(lines), kind="cidr"))) == 1
    assert line(look(entries("client", "::/0 reject", "192.0.2.1 ok", kind="cidr"))) == 2, "::/0 holds no IPv4"


def test_a_negated_network_matches_every_other_address_of_its_family():
    lists = entries("client", "!192.0.2.0/24 reject", "::/0 defer", kind="cidr")
    assert [line(look(lists, client=c)) for c in ("192.0.2.1", "198.51.100.1", "2001:db8::1")] == [0, 1, 2]


def test_an_address_with_a_zone_is_looked_up_without_it():
    assert line(look(entries("client", "fe80::/10 reject", kind="cidr"), client="fe80::1%eth0")) == 1
    assert line(look(entries("client", "fe80::1 reject", kind="glob"), client="fe80::1%eth0")) == 1


@pytest.mark.parametrize(
    ("sender", "decides"),
    [
        ("ben@sender.example", 1),
        ("Ben@SENDER.example", 1),
        ("eva@sender.example", 2),
        ("eva@mail.sender.example", 3),
        ("eva@a.b.sender.example", 3),
        ("noreply@other.example", 4),
        ("x@b\u00fccher.example", 5),
        ("x@xn--bcher-kva.example", 5),
        ("", 6),
        ("x@[192.0.2.1]", 7),
        ("eva@notsender.example", 0),
        ("ben@other.example", 0),
    ],
)
def test_a_sender_is_found_by_address_domain_domain_below_or_local_part(sender, decides):
    lines = ["ben@Sender.Example ok", "sender.example reject", ".sender.example reject", "NoReply@ defer"]
    lines += ["b\u00fccher.example reject", "<> dunno", "[192.0.2.1] reject"]
    assert line(look(entries("sender", *lines), sender=sender)) == decides


def test_of_the_keys_of_one_address_the_first_line_decides():
    assert line(look(entries("sender", "sender.example reject", "ben@sender.example ok"))) == 1
    assert line(look(entries("sender", ".example reject", "ben@sender.example ok"))) == 1
    assert line(look(entries("sender", "ben@sender.example ok", "ben@sender.example reject"))) == 1


def test_an_extension_of_a_local_part_is_left_off_where_a_delimiter_is_set():
    lists = entries("recipient", "anna@example.org reject", "ben@ defer")
    assert line(look(lists, recipient="anna+list@example.org")) == 0
    assert line(look(lists, recipient="anna+list@example.org", delimiter="+")) == 1
    assert line(look(lists, recipient="ben+x+y@example.org", delimiter="+")) == 2
    assert line(look(lists, recipient="+x@example.org", delimiter="+")) == 0


@pytest.mark.parametrize(
    ("helo", "decides"),
    [("mx.example.org", 1), ("a.EXAMPLE.org.", 2), ("[192.0.2.1]", 3), ("localhost", 4), ("x" * 600, 0), ("\udcff", 0)],
)
def test_a_helo_name_is_found_by_name_domain_below_or_literal(helo, decides):
    lists = entries("helo", "mx.example.org reject", ".example.org reject", "[192.0.2.1] reject", "localhost reject")
    assert line(look(lists, helo=helo)) == decides
    assert line(look(entries("helo", "/\\.org$/ reject", kind="regexp"), helo="\udcff.org")) == 1


def reverse(result: AuthResult, name: str = "") -> ReverseName:
    return ReverseName(result, CLIENT, name, (name,) if name else ())


@pytest.mark.parametrize(
    ("given", "findings", "decides"),
    [
        ("mx.dial.example", [], 1),
        ("", [reverse(AuthResult.PASS, "mx.dial.example")], 1),
        ("mx.dial.example", [reverse(AuthResult.PASS, "other.example")], 1),
        ("", [reverse(AuthResult.FAIL)], 2),
        ("", [reverse(AuthResult.NONE)], 2),
        ("", [reverse(AuthResult.TEMPERROR)], 0),
        ("", [], 0),
    ],
)
def test_a_clients_name_counts_when_it_is_confirmed_and_unknown_is_not_the_same_as_dns_trouble(
    given, findings, decides
):
    lists = entries("name", ".dial.example reject", "unknown defer")
    assert line(look(lists, name=given, findings=findings)) == decides


def test_who_finds_names_matters_only_to_lists_of_names():
    services = Bench().services
    for match, wanted in (("client", False), ("name", True)):
        options = AccessOptions.model_validate({"lists": [entries(match, "192.0.2.1 ok", kind="glob")]})
        made = AccessPlugin(options, services)
        assert all((ReverseName in finder.inputs) is wanted for finder in made.finders)


@pytest.mark.parametrize(
    ("pattern", "sender", "matches"),
    [
        ("/^newsletter[0-9]+@/", "NewsLetter17@sender.example", True),
        ("/^newsletter[0-9]+@/", "newsletter@sender.example", False),
        ("/sender/", "ben@sender.example", True),
        ("!/@sender\\.example$/", "ben@sender.example", False),
        ("! /@sender\\.example$/", "ben@other.example", True),
        ("/^<>$/", "", True),
        ("|a/b|", "a/b@sender.example", True),
        ("/a\\/b/", "a/b@sender.example", True),
        ("/^[[:alpha:]]+@/", "ben@sender.example", True),
        ("/^\u00fc/", "\u00dc@sender.example", True),
    ],
)
def test_regular_expressions_match_anywhere_and_without_case(pattern, sender, matches):
    assert (line(look(entries("sender", f"{pattern} reject", kind="regexp"), sender=sender)) == 1) is matches


@pytest.mark.parametrize(
    ("pattern", "sender", "matches"),
    [
        ("*@sender.example", "ben@sender.example", True),
        ("*@sender.example", "ben@sender.example.org", False),
        ("b?n@*", "BEN@sender.example", True),
        ("b?n@*", "been@sender.example", False),
        ("[a-c]*@*", "ben@sender.example", True),
        ("[!a-c]*@*", "ben@sender.example", False),
        ("ben@sender.exampl[e.]", "ben@sender.example", True),
        ("be\\*@*", "ben@sender.example", False),
        ("be\\*@*", "be*@sender.example", True),
        ("!*@sender.example", "eva@other.example", True),
        ("ben", "ben@sender.example", False),
        ("a.b@*", "axb@sender.example", False),
        ("*(+)$^|{}*", "(+)$^|{}@sender.example", True),
    ],
)
def test_globs_match_all_of_a_subject_and_without_case(pattern, sender, matches):
    address = sender if "(" not in sender else f'"{sender.partition("@")[0]}"@sender.example'
    assert (line(look(entries("sender", f"{pattern} reject", kind="glob"), sender=address)) == 1) is matches


def test_many_patterns_are_asked_in_their_order():
    lines = [f"/^x{i}@/ reject" for i in range(120)] + ["/^x5/ ok", "/@sender/ defer"]
    lists = entries("sender", *lines, kind="regexp")
    found = {s: line(look(lists, sender=f"{s}@sender.example")) for s in ("x0", "x57", "x119", "x5555", "ben")}
    assert found == {"x0": 1, "x57": 58, "x119": 120, "x5555": 121, "ben": 122}
    quoting = entries("sender", "/\\Qa.b/ reject", "/zz/ reject", "/ben/ ok", kind="regexp")
    assert line(look(quoting)) == 3


def test_a_pattern_made_to_explode_takes_no_time():
    evil = "/^(([a-z])+.)+[A-Z]([a-z])+$/ reject"
    lists = entries("sender", evil, "/^(a|aa)+$/ reject", "/(.*)*x/ reject", kind="regexp")
    began = time.process_time()
    assert line(look(lists, sender="a" * 60 + "@" + "b" * 60 + ".example")) in (0, 1)
    assert line(look(entries("helo", "/^(a+)+$/ reject", kind="regexp"), helo="a" * 100_000 + "!")) == 1, "cut"
    assert time.process_time() - began < 5


# Order, actions, replies


def test_lists_are_asked_in_order_and_ok_ends_that():
    lists = [
        entries("recipient", "postmaster@ ok"),
        entries("client", "192.0.2.0/24 reject", kind="cidr"),
        entries("sender", "sender.example defer"),
    ]
    assert look(lists).where == "list 2, entry 1"
    assert look(lists, recipient="postmaster@example.org").action is AccessAction.OK
    assert look(lists, client="198.51.100.1").where == "list 3, entry 1"
    assert look(lists, client="198.51.100.1", sender="x@y.example") == Access(AccessAction.NONE)


def test_dunno_ends_its_list_and_the_next_is_asked():
    lists = [entries("client", "192.0.2.1 dunno", "192.0.2.0/24 reject"), entries("sender", "sender.example defer")]
    assert look(lists).where == "list 2, entry 1"
    assert look(lists, sender="x@y.example") == Access(AccessAction.DUNNO, "list 1, entry 1", "client", "192.0.2.1")


def judged(action: str, stage: Stage = Stage.RCPT):
    lists = {"lists": [entries("client", f"192.0.2.1 {action}")], "at": stage.value}
    found = Bench().find(AccessPlugin, lists, session=make_session(CLIENT))
    return Bench().judge("access", lists, findings=[found])


@pytest.mark.parametrize(
    ("action", "stage", "verdict", "reply"),
    [
        ("ok", Stage.RCPT, Action.PROCEED, None),
        ("OK", Stage.RCPT, Action.PROCEED, None),
        ("dunno", Stage.RCPT, Action.PROCEED, None),
        ("accept", Stage.RCPT, Action.ACCEPT, None),
        ("discard", Stage.MAIL, Action.DISCARD, None),
        ("quarantine", Stage.RCPT, Action.QUARANTINE, None),
        ("reject", Stage.RCPT, Action.REJECT, "550 5.7.1 access denied"),
        ("REJECT go away", Stage.RCPT, Action.REJECT, "550 5.7.1 go away"),
        ("reject\t5.1.8 no such  place", Stage.MAIL, Action.REJECT, "550 5.1.8 no such  place"),
        ("reject", Stage.HELO, Action.REJECT, "550 5.7.1 access denied"),
        ("reject", Stage.CONNECT, Action.REJECT, "554 5.7.1 access denied"),
        ("554 5.7.1 no", Stage.RCPT, Action.REJECT, "554 5.7.1 no"),
        ("521 5.7.1 no", Stage.RCPT, Action.DISCONNECT, "521 5.7.1 no"),
        ("defer", Stage.RCPT, Action.DEFER, "450 4.7.1 try again later"),
        ("defer", Stage.CONNECT, Action.DISCONNECT, "421 4.7.1 try again later"),
        ("451 4.3.0 later", Stage.HELO, Action.DEFER, "451 4.3.0 later"),
        ("421 bye", Stage.MAIL, Action.DISCONNECT, "421 4.7.1 bye"),
    ],
)
def test_an_action_becomes_a_verdict(action, stage, verdict, reply):
    made = judged(action, stage)
    assert made.action is verdict
    assert (str(made.reply) if made.reply else None) == reply
    assert made.reason.startswith("list 1, entry 1: client 192.0.2.1")


def test_a_text_is_for_the_client_where_it_is_refused_and_a_note_for_the_record_always():
    assert judged("quarantine seen in ticket 7").reason == "list 1, entry 1: client 192.0.2.1 (seen in ticket 7)"
    assert judged("OK gr\u00fcn").reason == "list 1, entry 1: client 192.0.2.1 (gr\u00fcn)"
    assert judged("reject go away").reason == "list 1, entry 1: client 192.0.2.1 (go away)"


def test_where_nothing_matched_the_policy_says_nothing():
    assert Bench().judge("access", {"lists": [entries("client", "::1 ok")]}, findings=[Access(AccessAction.NONE)]) == (
        PROCEED
    )


def test_an_entry_looks_at_its_own_stage_only():
    options = AccessOptions.model_validate({"lists": [entries("client", "::1 ok")], "at": "connect"})
    made = AccessPlugin(options, Bench().services)
    assert [finder.stage for finder in made.finders] == [Stage.CONNECT]


def test_lines_without_an_action_have_the_lists_own():
    lists = entries("client", "192.0.2.1", "192.0.2.2 ok", action="reject listed here")
    assert look(lists).text == "listed here"
    assert look(lists, client="192.0.2.2").action is AccessAction.OK


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lists": []}, "at least 1 item"),
        ({"lists": [{"match": "client"}]}, "either a file or entries"),
        ({"lists": [entries("client", "::1 ok", file="x")]}, "either a file or entries"),
        ({"lists": [entries("sender", "x@y.example ok", kind="cidr")]}, "cidr lists are of client addresses"),
        ({"lists": [entries("sender", "x@y.example ok")], "at": "helo"}, "list 1: sender is known at mail"),
        ({"lists": [entries("client", "::1 ok"), entries("helo", "x ok")], "at": "connect"}, "list 2: helo is known"),
        ({"lists": [entries("client", "::1 ok")], "at": "data"}, "'connect', 'helo', 'mail' or 'rcpt'"),
        ({"lists": [entries("client", "::1 ok", "::2")]}, "entry 2: names no action"),
        ({"lists": [entries("client", "::1 permit")]}, "entry 1: 'permit' is no action.*write ok"),
        ({"lists": [entries("client", "::1 PREPEND X: y")]}, "'PREPEND' is no action: ok, accept, reject"),
        ({"lists": [entries("client", "::1 ok " + "x" * 201)]}, "goes into the record"),
        ({"lists": [entries("client", "::1 250 fine")]}, "'250' is no action"),
        ({"lists": [entries("client", "::1 reject 4.7.1 x")]}, "4.7.1 does not go with reject: it must begin with 5"),
        ({"lists": [entries("client", "::1 450 5.7.1 x")]}, "5.7.1 does not go with 450"),
        ({"lists": [entries("client", "::1 reject \u00fcbel")]}, "printable ASCII"),
        ({"lists": [entries("client", "::1 reject " + "x" * 201)]}, "at most 200"),
        ({"lists": [entries("client", "::1", action="nothing")]}, "'nothing' is no action"),
        ({"lists": [entries("client", "192.0.2.300 ok")]}, "'192.0.2.300' is no address"),
        ({"lists": [entries("client", "300.1 ok")]}, "no address or network"),
        ({"lists": [entries("client", "192.0.2.010 ok")]}, "no address or network"),
        ({"lists": [entries("client", "mx.example ok")]}, "no address or network"),
        ({"lists": [entries("client", "192.0.2.1/24 ok", kind="cidr")]}, "host bits set: did you mean 192.0.2.0/24?"),
        ({"lists": [entries("client", "192.0.2 ok", kind="cidr")]}, "no address or network"),
        ({"lists": [entries("client", "192.0.2.0/33 ok")]}, "prefix length from 0 to 32"),
        ({"lists": [entries("client", "192.0.2.0/ ok")]}, "prefix length"),
        ({"lists": [entries("client", "fe80::1%eth0 ok")]}, "has no zone"),
        ({"lists": [entries("sender", "spammer ok")]}, "a local part is written spammer@"),
        ({"lists": [entries("sender", "@sender.example ok")]}, "a domain is written sender.example"),
        ({"lists": [entries("sender", "*@sender.example ok")]}, "there is kind: glob"),
        ({"lists": [entries("sender", "*.sender.example ok")]}, "domains below one are written .example.org"),
        ({"lists": [entries("sender", "x@a..example ok")]}, "no domain"),
        ({"lists": [entries("helo", "x@y.example ok")]}, "is an address"),
        ({"lists": [entries("sender", "!sender.example ok")]}, "exact list knows no !"),
        ({"lists": [entries("sender", "sender ok", kind="regexp")]}, "between two delimiters"),
        ({"lists": [entries("sender", "if /x/", kind="regexp")]}, "if is not understood"),
        ({"lists": [entries("sender", "/x ok", kind="regexp")]}, "no / at its end"),
        ({"lists": [entries("sender", "/x/i ok", kind="regexp")]}, "flags are not understood"),
        ({"lists": [entries("sender", "/(x)/ reject $1 is bad", kind="regexp")]}, "not put together"),
        ({"lists": [entries("sender", "/(x/ ok", kind="regexp")]}, "entry 1: '\\(x' is no regular expression of RE2: "),
        ({"lists": [entries("sender", "/(x)\\1/ ok", kind="regexp")]}, "invalid escape"),
        ({"lists": [entries("sender", "/\\pL{900}/ ok", kind="regexp")]}, "too large"),
        ({"lists": [entries("sender", f"/{'x' * 1001}/ ok", kind="regexp")]}, "longer than 1000"),
        ({"lists": [entries("sender", "[z-a] ok", kind="glob")]}, "character class range"),
        ({"lists": [entries("client", "")]}, "entry 1: is empty"),
        ({"lists": [entries("client", "::1 " + "x" * 2000)]}, "longer than 2000"),
    ],
)
def test_wrong_options_say_what_would_be_right(options, message):
    with pytest.raises(ValidationError, match=message):
        AccessOptions.model_validate(options)


def test_the_options_of_one_list_are_on_the_card():
    assert table(ListOptions) in card("access")


# Files


class Lists:
    """A plugin that reads a file, and time that goes on."""

    def __init__(self, path: Path, **options) -> None:
        self.bench = Bench()
        listed = {"file": str(path), "match": "client", "kind": "cidr", **options}
        self._made = AccessPlugin(AccessOptions.model_validate({"lists": [listed]}), self.bench.services)

    def __enter__(self) -> Lists:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._made.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()

    def find(self, client: str = CLIENT) -> Access:
        transaction = make_transaction(make_session(client))
        return self.loop.run_until_complete(self._made.at_rcpt(transaction, make_recipient(), None))


def test_a_files_line_stands_in_the_finding_with_its_number(tmp_path):
    path = tmp_path / "clients.cidr"
    path.write_bytes(
        b"\xef\xbb\xbf# ours\r\n\r\n192.0.2.1\r\n   reject\r\n\tgo away\n  # a comment\n"
        b"198.51.100.0/24 OK\n2001:db8::/32 ok"
    )
    with Lists(path) as lists:
        assert lists.find() == Access(AccessAction.REJECT, f"{path}:3", "client", "192.0.2.1", text="go away")
        assert lists.find("198.51.100.9").where == f"{path}:7"
        assert lists.find("2001:db8::9").where == f"{path}:8"


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path):
    path = tmp_path / "clients.cidr"
    path.write_text("192.0.2.0/24 reject\n")
    with Lists(path) as lists:
        assert lists.find().action is AccessAction.REJECT
        path.write_text("192.0.2.0/24 ok\n198.51.100.0/24 reject\n")
        assert lists.find().action is AccessAction.REJECT, "it was looked at just now"
        lists.bench.clock.advance(5)
        assert lists.find().action is AccessAction.OK
        path.write_text("192.0.2.0/24 reject\nrubbish\n")
        lists.bench.clock.advance(5)
        assert lists.find().action is AccessAction.OK, "what was read before stays in force"
        path.unlink()
        lists.bench.clock.advance(5)
        assert lists.find("198.51.100.1").action is AccessAction.REJECT
        path.write_text("192.0.2.1 defer\n")
        lists.bench.clock.advance(5)
        assert lists.find().action is AccessAction.DEFER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"192.0.2.1 ok\n# x\n192.0.2.2 okay\n", "line 3: 'okay' is no action"),
        (b"192.0.2.1 ok\n\n192.0.2.5/24 ok\n", "line 3: .* host bits"),
        (b"192.0.2.1\n ok\nbad ok\n", "line 3: 'bad' is no address"),
        (b"  192.0.2.1 ok\n", "line 1: begins with white space"),
        (b"192.0.2.1 ok\n\xff\n", "line 2: is not UTF-8"),
        (b"192.0.2.1\n" + b" xxxxxxxxx\n" * 500, "line 1: is longer than 2000"),
        (b"192.0.2.1\x00 ok\n", "line 1: .* is no address"),
    ],
)
def test_a_file_that_is_wrong_from_the_beginning_stops_the_start_and_says_where(tmp_path, content, message):
    path = tmp_path / "clients.cidr"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"), Lists(path):
        pass


def test_a_file_that_is_not_there_stops_the_start(tmp_path):
    with pytest.raises(ValueError, match="cannot read "), Lists(tmp_path / "nothing"):
        pass


def test_lists_of_every_kind_are_read_from_files(tmp_path):
    for kind, match, content in (
        ("exact", "sender", "sender.example reject\n"),
        ("regexp", "helo", "/client/ reject\n"),
        ("glob", "recipient", "an?a@* reject\n"),
        ("exact", "client", "192.0.2 reject\n"),
    ):
        path = tmp_path / kind
        path.write_text("# first\n" + content)
        assert look({"file": str(path), "match": match, "kind": kind}).where == f"{path}:2"


def test_a_table_of_many_lines_is_read_in_seconds_and_looked_up_in_microseconds(tmp_path):
    lines = [f"{10 + (i >> 16)}.{i >> 8 & 255}.{i & 255}.0/{24 + i % 9} reject" for i in range(100_000)]
    options = ListOptions.model_validate({"match": "client", "kind": "cidr", "file": "x"})
    began = time.process_time()
    table = options.from_file("\n".join(lines).encode())
    parsed = time.process_time() - began
    subject = client_subject(ipaddress.ip_address("11.134.159.0"))
    rounds = 2_000
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(rounds):
            rule = table.find(subject)
        best = min(best, (time.process_time() - began) / rounds)
    assert rule is not None and rule.line == 100_000
    # A walk through the lines takes 10 ms.
    assert (parsed < 20, best < 100e-6) == (True, True), (parsed, best)


# Against an oracle

addresses = st.one_of(
    st.integers(0, 15).map(lambda n: ipaddress.ip_address(0xC0000200 + n)),
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
    st.integers(0, 15).map(lambda n: ipaddress.ip_address(0x20010DB8 << 96 | n)),
    st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address),
    st.integers(0, 15).map(lambda n: ipaddress.IPv6Address(f"::ffff:192.0.2.{n}")),
)


@st.composite
def network_lines(draw):
    address = draw(addresses)
    prefix = draw(st.integers(0, address.max_prefixlen))
    network = ipaddress.ip_network((address, prefix), strict=False)
    return draw(st.booleans()) and draw(st.booleans()), network


def naive(lines, client) -> int:
    """Line by line, with nothing but the standard library."""
    client = getattr(client, "ipv4_mapped", None) or client
    for number, (negated, network) in enumerate(lines, 1):
        if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
            network = ipaddress.ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        if network.version == client.version and (client in network) is not negated:
            return number
    return 0


@given(st.lists(network_lines(), max_size=30), st.lists(addresses, min_size=1, max_size=20))
@settings(max_examples=500)
def test_networks_are_found_as_a_walk_through_the_lines_finds_them(lines, clients):
    if not lines:
        return
    table = ListOptions.model_validate(
        entries("client", *(f"{'!' * negated}{network} reject" for negated, network in lines), kind="cidr")
    ).from_entries()
    for client in clients:
        rule = table.find(client_subject(client))
        assert (rule.line if rule else 0) == naive(lines, client)


labels = st.sampled_from(["a", "b", "a.b", "b.a", "a.b.a", "b.b"])


@given(st.lists(st.tuples(st.sampled_from(["", ".", "x@", "y@"]), labels), min_size=1, max_size=12), labels)
def test_exact_keys_are_found_as_a_walk_through_the_lines_finds_them(lines, domain):
    def matches(kind: str, name: str) -> bool:
        if kind == ".":
            return domain.endswith("." + name)
        return kind in ("", "x@") and domain == name

    lists = entries("sender", *(f"{kind}{name}.example reject" for kind, name in lines))
    expected = next((i for i, (kind, name) in enumerate(lines, 1) if matches(kind, name)), 0)
    assert line(look(lists, sender=f"x@{domain}.example")) == expected


@given(
    st.binary(max_size=300), st.sampled_from(["exact", "regexp", "glob", "cidr"]), st.sampled_from(["client", "helo"])
)
@settings(max_examples=400)
def test_any_file_is_a_list_or_says_which_line_is_wrong(data, kind, match):
    if kind == "cidr":
        match = "client"
    options = ListOptions.model_validate({"match": match, "kind": kind, "file": "x", "action": "reject"})
    try:
        table = options.from_file(data)
    except ValueError as error:
        assert str(error).startswith("line "), error
        return
    for subject in (client_subject(ipaddress.ip_address("::1")), Subject("x" * 2000, ("x",), None)):
        table.find(subject)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_glob_is_taken_or_refused_and_matches_its_own_text_when_it_is_plain(pattern, subject):
    line_of = pattern.strip()
    if not line_of or line_of[0] == "!" or any(c.isspace() for c in line_of):
        return
    try:
        table = ListOptions.model_validate(entries("helo", f"{line_of} reject", kind="glob")).from_entries()
    except ValidationError:
        return
    table.find(Subject(subject))
    if not set(line_of) & set("*?[]\\"):
        assert table.find(Subject(line_of)) is not None


def test_the_file_keeps_its_place_when_only_its_time_changes(tmp_path):
    path = tmp_path / "clients.cidr"
    path.write_text("192.0.2.0/24 reject\n")
    with Lists(path) as lists:
        os.utime(path, (1, 1))
        lists.bench.clock.advance(5)
        assert lists.find().where == f"{path}:1"
