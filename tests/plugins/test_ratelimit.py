"""The ratelimit plugin on the bench."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, Rate, Stage, StateError
from gateway.sdk.testing import Bench, make_recipient, make_session, make_transaction
from plugins.ratelimit import RateLimitOptions, RateLimitPlugin, RecipientRate, parse_rate


def at_mail(bench: Bench, options, **kwargs) -> Rate:
    session = make_session(kwargs.pop("client", "192.0.2.1"), trusted=kwargs.pop("trusted", False))
    return bench.find(RateLimitPlugin, options, Stage.MAIL, transaction=make_transaction(session, **kwargs))


def at_rcpt(bench: Bench, options, recipient: str, **kwargs) -> Rate:
    transaction = make_transaction(make_session(kwargs.pop("client", "192.0.2.1")), **kwargs)
    return bench.find(
        RateLimitPlugin, options, Stage.RCPT, transaction=transaction, recipient=make_recipient(recipient)
    )


def test_a_client_has_its_number_of_messages_and_then_waits():
    bench = Bench()
    options = {"rate": "3/1h"}
    assert [at_mail(bench, options).remaining for _ in range(3)] == [2, 1, 0]
    assert at_mail(bench, options) == Rate(False, "client 192.0.2.1", 0, 1200)
    assert at_mail(bench, options, client="192.0.2.2").allowed, "another client has a bucket of its own"
    bench.clock.advance(1200)
    assert at_mail(bench, options).allowed
    assert not at_mail(bench, options).allowed


def test_burst_is_what_a_bucket_holds():
    bench = Bench()
    options = {"rate": "60/1m", "burst": 2}
    assert [at_mail(bench, options).allowed for _ in range(3)] == [True, True, False]
    bench.clock.advance(1)
    assert at_mail(bench, options).allowed


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        ("192.0.2.77", "network 192.0.2.0/24"),
        ("::ffff:192.0.2.77", "network 192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "network 2001:db8:1:2::/64"),
    ],
)
def test_a_network_shares_a_bucket(client, shown):
    assert at_mail(Bench(), {"key": "network"}, client=client).key == shown


def test_a_client_with_ipv6_is_its_64():
    bench = Bench()
    assert at_mail(bench, {"rate": "1/1h"}, client="2001:db8::1").allowed
    assert not at_mail(bench, {"rate": "1/1h"}, client="2001:db8::ffff").allowed


def test_senders_are_counted_without_case_and_wherever_they_come_from():
    bench = Bench()
    options = {"key": "sender", "rate": "1/1h"}
    assert at_mail(bench, options, sender="Ben@Sender.example").allowed
    assert not at_mail(bench, options, sender="ben@sender.EXAMPLE", client="198.51.100.1").allowed
    assert at_mail(bench, options, sender="eva@sender.example").allowed


def test_a_sender_domain_shares_a_bucket():
    assert at_mail(Bench(), {"key": "sender_domain"}, sender="x@B\u00fccher.example").key == (
        "sender_domain xn--bcher-kva.example"
    )


def test_the_null_sender_is_counted_per_client():
    bench = Bench()
    options = {"key": "sender", "rate": "1/1h"}
    assert at_mail(bench, options, sender="").allowed
    assert not at_mail(bench, options, sender="").allowed
    assert at_mail(bench, options, sender="", client="198.51.100.1").allowed


def test_a_list_of_parts_combines_them():
    bench = Bench()
    options = {"key": ["client", "sender_domain"], "rate": "1/1h"}
    assert at_mail(bench, options).key == "client 192.0.2.1 sender_domain sender.example"
    assert at_mail(bench, options, client="192.0.2.2").allowed
    assert at_mail(bench, options, sender="x@other.example").allowed
    assert not at_mail(bench, options).allowed


def test_recipients_are_counted_one_by_one_when_they_are_what_counts():
    bench = Bench()
    options = {"count": "recipients", "rate": "2/1h"}
    assert at_mail(bench, options).key == "", "MAIL takes nothing"
    assert [at_rcpt(bench, options, f"r{i}@example.org").allowed for i in range(3)] == [True, True, False]


def test_a_recipients_bucket_is_shared_by_all_who_write_to_it():
    bench = Bench()
    options = {"key": "recipient", "rate": "1/1h"}
    assert at_rcpt(bench, options, "anna@example.org").allowed
    assert not at_rcpt(bench, options, "Anna@example.org", client="198.51.100.1").allowed
    assert at_rcpt(bench, options, "ben@example.org").allowed
    assert at_rcpt(bench, {"key": "recipient_domain"}, "ben@example.org").key == "recipient_domain example.org"


def test_messages_take_nothing_at_rcpt():
    bench = Bench()
    options = {"rate": "1/1h"}
    assert all(at_rcpt(bench, options, "anna@example.org").key == "" for _ in range(3))
    assert at_mail(bench, options).allowed


def test_trusted_clients_pass_uncounted_unless_told_otherwise():
    bench = Bench()
    assert all(at_mail(bench, {"rate": "1/1h"}, trusted=True).allowed for _ in range(3))
    options = {"rate": "1/1h", "exempt_trusted": False}
    assert [at_mail(bench, options, trusted=True).allowed for _ in range(2)] == [True, False]


def test_another_limit_has_a_bucket_of_its_own():
    bench = Bench()
    assert at_mail(bench, {"rate": "1/1h"}).allowed
    assert at_mail(bench, {"rate": "1/1d"}).allowed
    assert not at_mail(bench, {"rate": "1/1h"}).allowed


def test_long_and_strange_addresses_make_keys_that_the_store_takes():
    bench = Bench()
    long = "l" * 64 + "@" + "d" * 60 + "." + "e" * 60 + ".example"
    for sender in (long, "\u00fcml@b\u00fccher.example", '"a b\\"c"@sender.example'):
        options = {"key": ["sender", "recipient"], "rate": "1/1h"}
        assert at_rcpt(bench, options, long, sender=sender).allowed
        assert not at_rcpt(bench, options, long, sender=sender).allowed


def test_trouble_with_the_store_is_the_entrys_on_error_to_decide():
    bench = Bench()
    bench.state.broken = True
    with pytest.raises(StateError):
        at_mail(bench, {})


def test_too_much_is_deferred_and_never_refused():
    bench = Bench()
    allowed, refused = Rate(True, "client x", 1, 0), Rate(False, "client x", 0, 9)
    assert bench.judge("ratelimit", {}, Stage.MAIL, findings=[allowed]) == PROCEED
    verdict = bench.judge("ratelimit", {}, Stage.MAIL, findings=[refused])
    assert str(verdict.reply) == "451 4.7.1 too many messages, try again later"
    assert verdict.reason == "over 100/1h for client x"
    verdict = bench.judge("ratelimit", {}, Stage.RCPT, findings=[RecipientRate(False, "client x", 0, 9)])
    assert str(verdict.reply) == "450 4.7.1 too many messages, try again later"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("100/1h", (100, 100 / 3600)), ("5/s", (5, 5.0)), ("20 / 10m", (20, 20 / 600)), ("1/1.5s", (1, 1 / 1.5))],
)
def test_rates_are_read(text, rate):
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": "0/1h"},
        {"rate": "5/0s"},
        {"rate": "fast"},
        {"rate": "5"},
        {"rate": "-1/1h"},
        {"key": "helo"},
        {"key": []},
        {"key": ["client", "client"]},
        {"burst": 0},
        {"count": "bytes"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        RateLimitOptions.model_validate(options)
