"""Which hosts are found in texts, in all their disguises, and what lists and the policy make of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import Action, AddHeader, MimeText, UriHit, UriHits
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session, make_transaction
from plugins.content.hosts import has_known_suffix, host_of, is_address, registered
from plugins.content.mime import MimePlugin
from plugins.content.uribl import UriblOptions, UriblPlugin, UriblPolicy
from plugins.content.urilists import parse_range
from plugins.content.uris import choose, find_hosts


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("Evil.Example/path", "evil.example"),
        ("evil.example:8080?x", "evil.example"),
        ("good.example@evil.example/", "evil.example"),
        ("good.example:x@evil.example", "evil.example"),
        ("good.example%2f@evil.example", "evil.example"),
        ("good.example\\@evil.example", "good.example"),
        ("good.example#@evil.example", "good.example"),
        ("%65vil.example", "evil.example"),
        ("evil.example.", "evil.example"),
        ("ev\u00adil.exa\u200bmple", "evil.example"),
        ("\uff45\uff56\uff49\uff4c\uff0eexample", "evil.example"),
        ("evil。example", "evil.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("192.0.2.7", "192.0.2.7"),
        ("3221225991", "192.0.2.7"),
        ("0xc0000207", "192.0.2.7"),
        ("0300.0.2.7", "192.0.2.7"),
        ("0xc0.0x0.0x2.0x7", "192.0.2.7"),
        ("192.0.519", "192.0.2.7"),
        ("192.0.2.7.", "192.0.2.7"),
        ("[2001:DB8::1]:80/", "2001:db8::1"),
        ("[::ffff:192.0.2.7]", "192.0.2.7"),
        ("256.1.1.1", ""),
        ("1.2.3.4.5", ""),
        ("localhost", ""),
        ("a..example", ""),
        ("-a.example", ""),
        ("a" * 64 + ".example", ""),
        ("", ""),
        ("[::1", "::1"),
        ("0x", "0.0.0.0"),
        ("09.1.1.1", ""),
    ],
)
def test_the_host_of_a_url_is_what_a_browser_goes_to(authority, host):
    assert host_of(authority) == host


def links(text: str, kind: str = "text/plain", *, bare: bool = True) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = find_hosts([MimeText("1", kind, text)], bare=bare)
    return found.links, found.words


@pytest.mark.parametrize(
    "text",
    [
        "see http://evil.example/x",
        "see HTTPS:\\\\evil.example",
        "see hxxp://evil.example",
        "see (http://evil.example)",
        "see http:///evil.example",
        "http://evil.example\u3000next",
    ],
)
def test_links_in_plain_text_are_found(text):
    assert links(text)[0] == ("evil.example",)


@pytest.mark.parametrize(
    "markup",
    [
        '<a href="http://evil.example/">x</a>',
        "<a href='//evil.example/'>x</a>",
        "<a href=http://evil.example>x</a>",
        "<a href = ' \n http:\n//evil.example'>x</a>",
        '<a href="h&#116;tp://evil&#46;example">x</a>',
        '<a href="https:evil.example">x</a>',
        '<a href="/\\evil.example">x</a>',
        '<img/src="http://evil.example/a.png">',
        '<form action="http://evil.example/">',
        '<body background="http://evil.example/">',
        '<meta http-equiv="refresh" content="0;url=http://evil.example/">',
        '<div style="background:url(http://evil.example/x)">',
        '<a href="ht\ttp://ev\til.example/">x</a>',
    ],
)
def test_links_in_html_are_found(markup):
    assert links(markup, "text/html")[0] == ("evil.example",)


@pytest.mark.parametrize("markup", ['<a href="mailto:a@evil.example">', '<a href="#x">', '<img src="cid:1@x.example">'])
def test_what_leads_nowhere_is_no_link(markup):
    assert links(markup, "text/html") == ((), ())


def test_a_redirectors_target_is_found_behind_it():
    text = "http://good.example/?u=http%3A%2F%2Fmiddle.example/%3Fv=https://evil.example/"
    assert links(text)[0] == ("good.example", "middle.example", "evil.example")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("visit evil.com now", ("evil.com",)),
        ("visit www.evil.co.uk.", ("www.evil.co.uk",)),
        ("visit EVIL.COM, or else.com!", ("evil.com", "else.com")),
        ("ben@evil.com", ()),
        ("a.b and e.g. and 1.2.3", ()),
        ("version 2.10.3", ()),
        ("file.nosuchsuffix", ()),
        ("bücher.com", ("xn--bcher-kva.com",)),
    ],
)
def test_words_that_are_domain_names_are_found(text, words):
    assert links(text) == ((), words)
    assert links(text, bare=False) == ((), ())


def test_words_in_html_are_found_although_tags_cut_them():
    assert links("<p>vis<b>it</b> ev<i></i>il.com</p>", "text/html")[1] == ("evil.com",)


def test_a_host_that_is_linked_is_no_word_too():
    assert links("http://evil.com/ and evil.com") == (("evil.com",), ())


def test_texts_of_other_types_are_not_looked_at():
    assert links("http://evil.example/", "text/calendar") == ((), ())


def test_registered_domains_are_those_of_the_public_suffix_list():
    assert registered("a.b.evil.co.uk") == "evil.co.uk"
    assert registered("a.b.evil.test") == "evil.test"
    assert registered("co.uk") == "co.uk"
    assert has_known_suffix("a.com")
    assert not has_known_suffix("a.test")
    assert is_address("192.0.2.7")
    assert is_address("::1")
    assert not is_address("1a.example")


def test_the_choice_of_hosts_is_the_same_for_any_order_and_cannot_be_filled_with_one_domain():
    many = [f"h{n}.example" for n in range(50)]
    assert set(choose(many, 10)) == set(choose(many[::-1], 10))
    assert len(choose(many, 10)) == 10
    assert choose(many[:5], 10) == tuple(many[:5])
    flood = [f"h{n}.good.example" for n in range(1000)]
    assert "evil.test" in choose([*flood, "evil.test"], 10)


LISTS = {"multi.test": {"weight": 2}}


def found(text: str, dns: FakeDns, options=None, **more) -> UriHits:
    content = b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + text.encode()
    hits = Bench(dns=dns).find(UriblPlugin, options or {"lists": LISTS}, message=make_message(content), **more)
    assert isinstance(hits, UriHits)
    return hits


def test_a_list_is_asked_for_the_registered_domain_once():
    dns = FakeDns(a={"evil.test.multi.test": ["127.0.0.2"]})
    hits = found("http://a.evil.test/ http://b.evil.test/ http://good.test/", dns)
    assert hits == UriHits(2.0, (UriHit("a.evil.test", "multi.test", ("127.0.0.2",), 2.0),), (), 3, 0)
    assert dns.asked == [("evil.test.multi.test", "A"), ("good.test.multi.test", "A")]


def test_a_list_of_hosts_is_asked_for_the_whole_name_and_one_of_addresses_for_them_in_reverse():
    dns = FakeDns()
    options = {"lists": {"h.test": {"ask": "host"}, "i.test": {"addresses": True}}}
    found("http://a.evil.test/ http://192.0.2.7/ http://[2001:db8::1]/", dns, options)
    assert [name for name, _ in dns.asked] == ["a.evil.test.h.test", "evil.test.i.test", "7.2.0.192.i.test"]


@pytest.mark.parametrize(
    "code", ["127.255.255.254", "127.255.255.1", "127.0.0.1", "127.0.1.255", "192.0.2.1", "128.0.0.2"]
)
def test_error_codes_and_strange_answers_never_count_and_name_the_list_as_failed(code):
    hits = found("http://evil.test/", FakeDns(a={"evil.test.multi.test": [code]}))
    assert hits == UriHits(0.0, (), ("multi.test",), 1, 0)


def test_a_list_that_fails_does_not_count_and_the_others_do():
    dns = FakeDns(a={"evil.test.one.test": ["127.0.0.2"]}, fails=["evil.test.two.test"])
    hits = found("http://evil.test/", dns, {"lists": {"one.test": 1, "two.test": 5}})
    assert (hits.score, hits.failed) == (1.0, ("two.test",))


def test_a_list_counts_once_by_its_heaviest_host_and_lists_add_up():
    dns = FakeDns(a={"a.test.m.test": ["127.0.0.2"], "b.test.m.test": ["127.0.0.8"], "b.test.n.test": ["127.0.1.4"]})
    options = {"lists": {"m.test": {"bits": {2: 3, 8: 1}}, "n.test": {"codes": {"127.0.1.4-6": 0.5}}}}
    hits = found("http://a.test/ http://b.test/", dns, options)
    assert hits.score == 3.5
    assert [(hit.host, hit.weight) for hit in hits.hits] == [("a.test", 3.0), ("b.test", 1.0), ("b.test", 0.5)]


def test_codes_and_bits_that_have_no_weight_do_not_count():
    dns = FakeDns(a={"a.test.m.test": ["127.0.0.4"], "a.test.n.test": ["127.0.1.9"]})
    options = {"lists": {"m.test": {"bits": {2: 3}}, "n.test": {"codes": {"127.0.1.4-6": 1}}}}
    hits = found("http://a.test/", dns, options)
    assert (hits.score, hits.hits, hits.failed) == (0.0, (), ())


def test_allowed_domains_and_all_below_them_are_not_asked_for():
    dns = FakeDns()
    hits = found("http://a.good.test/ http://notgood.test/", dns, {"lists": LISTS, "allow": ["Good.test"]})
    assert [name for name, _ in dns.asked] == ["notgood.test.multi.test"]
    assert hits.asked == 1


def test_only_so_many_hosts_are_asked_for_those_of_links_first():
    dns = FakeDns()
    text = " ".join(f"word{n}.com" for n in range(30)) + "".join(f" http://link{n}.test/" for n in range(5))
    hits = found(text, dns, {"lists": LISTS, "names": 8})
    asked = [name for name, _ in dns.asked]
    assert len(asked) == 8
    assert sum(name.startswith("link") for name in asked) == 5
    assert (hits.asked, hits.left_out) == (8, 27)


def test_messages_of_our_own_clients_and_those_without_hosts_ask_nobody():
    dns = FakeDns()
    assert found("http://evil.test/", dns, session=make_session(trusted=True)).idle()
    assert found("no links here", dns).idle()
    assert dns.asked == []


def test_it_uses_what_mime_read():
    dns = FakeDns()
    mime = Bench().find(MimePlugin, message=make_message(b"\r\nhttp://other.test/"))
    found("nothing", dns, findings=[mime])
    assert [name for name, _ in dns.asked] == ["other.test.multi.test"]


def test_a_paid_lists_key_is_asked_with_and_not_shown(tmp_path):
    (tmp_path / "key").write_text("S3cretKey\n")
    dns = FakeDns(a={"evil.test.s3cretkey.dbl.test": ["127.0.1.2"]})
    hits = found("http://evil.test/", dns, {"lists": {"dbl.test": {"key_file": str(tmp_path / "key")}}})
    assert hits.score == 1.0
    assert "s3cret" not in str(hits.to_json())


def judged(score: float, options: dict[str, object], recipients=("anna@example.org",)):
    hits = UriHits(score, (UriHit("evil.test", "multi.test", ("127.0.0.2",), score),))
    transaction = make_transaction(recipients=recipients)
    return Bench().judge(UriblPolicy, {"lists": LISTS, **options}, transaction=transaction, findings=[hits])


def test_a_listed_host_sets_the_message_aside_by_default():
    verdict = judged(1, {})
    assert verdict.action is Action.QUARANTINE
    assert verdict.reason == "score 1 from evil.test (multi.test)"
    assert not judged(0.5, {}).decisive


@pytest.mark.parametrize(
    ("score", "action"),
    [(8, Action.REJECT), (4, Action.DEFER), (2, Action.QUARANTINE), (0.5, Action.PROCEED)],
)
def test_the_score_decides(score, action):
    options = {"reject_at": 8, "defer_at": 4, "quarantine_at": 2, "tag_at": 1}
    assert judged(score, options).action is action


def test_a_tag_says_the_score():
    assert judged(1.5, {"quarantine_at": None, "tag_at": 1}).edits == (AddHeader("X-Uri-Score", "1.5"),)


def test_who_takes_complaints_gets_the_message_whatever_it_names():
    both = judged(1, {}, ("anna@example.org", "Abuse@example.org"))
    assert [str(r.address) for r in both.recipients] == ["anna@example.org"]
    assert not judged(1, {}, ("abuse@example.org",)).decisive


@pytest.mark.parametrize(
    "options",
    [
        {"lists": {}},
        {"lists": {"nodot": 1}},
        {"lists": {"m.test": {"codes": {"128.0.0.1": 1}}}},
        {"lists": {"m.test": {"bits": {3: 1}}}},
        {"lists": LISTS, "allow": ["no name"]},
        {"lists": {"m.test": float("nan")}},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        UriblOptions.model_validate(options)


def test_ranges_of_codes_are_read():
    assert parse_range("127.0.1.4-7") == (0x7F000104, 0x7F000107)
    for wrong in ("127.0.1.7-4", "127.0.1.256", "127.0.1", "10.0.0.1", ""):
        with pytest.raises(ValueError, match="return code"):
            parse_range(wrong)
