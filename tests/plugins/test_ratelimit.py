"""The ratelimit plugin on the bench."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.pipeline.loader import load
from gateway.sdk import (
    PROCEED,
    Action,
    Geo,
    MailParameters,
    Outcome,
    Plugin,
    Rate,
    Reply,
    Session,
    Stage,
    StateError,
    finds,
)
from gateway.sdk.testing import (
    Bench,
    FakeState,
    ManualClock,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
)
from plugins.ratelimit import RateLimitOptions, RateLimitPlugin, parse_rate
from tests.pipeline.quick import run
from tests.pipeline.setting import catalog, services


def at_connect(bench: Bench, options, client: str = "192.0.2.1", geo: Geo | None = None) -> Rate:
    found = [geo] if geo else []
    return bench.find(RateLimitPlugin, options, Stage.CONNECT, session=make_session(client), findings=found)


def at_mail(bench: Bench, options, **kwargs) -> Rate:
    helo = kwargs.pop("helo", "client.example")
    session = make_session(kwargs.pop("client", "192.0.2.1"), trusted=kwargs.pop("trusted", False), helo=helo)
    return bench.find(RateLimitPlugin, options, Stage.MAIL, transaction=make_transaction(session, **kwargs))


def at_message(bench: Bench, options, octets: int, **kwargs) -> Rate:
    message = make_message(b"X: " + b"x" * (octets - 5) + b"\r\n")
    assert message.content.size == octets
    return bench.find(RateLimitPlugin, options, Stage.MESSAGE, transaction=make_transaction(**kwargs), message=message)


def at_rcpt(bench: Bench, options, recipient: str, **kwargs) -> Rate:
    transaction = make_transaction(make_session(kwargs.pop("client", "192.0.2.1")), **kwargs)
    return bench.find(
        RateLimitPlugin, options, Stage.RCPT, transaction=transaction, recipient=make_recipient(recipient)
    )


def test_a_client_has_its_number_of_messages_and_then_waits():
    bench = Bench()
    options = {"rate": "3/1h"}
    assert [at_mail(bench, options).remaining for _ in range(3)] == [2, 1, 0]
    assert at_mail(bench, options) == Rate(False, "client 192.0.2.1", 0, 1200, "messages", "3/1h messages")
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
    with pytest.raises(LookupError):
        at_mail(bench, options)
    assert [at_rcpt(bench, options, f"r{i}@example.org").allowed for i in range(3)] == [True, True, False]


def test_a_recipients_bucket_is_shared_by_all_who_write_to_it():
    bench = Bench()
    options = {"key": "recipient", "rate": "1/1h"}
    assert at_rcpt(bench, options, "anna@example.org").allowed
    assert not at_rcpt(bench, options, "Anna@example.org", client="198.51.100.1").allowed
    assert at_rcpt(bench, options, "ben@example.org").allowed
    assert at_rcpt(bench, {"key": "recipient_domain"}, "ben@example.org").key == "recipient_domain example.org"


def test_nothing_is_asked_at_stages_where_nothing_is_counted():
    with pytest.raises(LookupError, match="runs nothing at rcpt"):
        at_rcpt(Bench(), {"rate": "1/1h"}, "anna@example.org")
    with pytest.raises(LookupError, match="no hook at connect"):
        Bench().judge("ratelimit", {"rate": "1/1h"}, Stage.CONNECT, findings=[Rate(True, "", 0, 0)])


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


def test_trouble_with_the_store_is_raised_wherever_it_is_asked():
    bench = Bench()
    bench.state.broken = True
    options = {"limits": [{"count": "errors"}, {"count": "bytes"}]}
    for ask in (
        lambda: at_connect(bench, options),
        lambda: at_rcpt(bench, options, "anna@example.org"),
        lambda: at_message(bench, options, 100),
        lambda: refuse(bench, options),
    ):
        with pytest.raises(StateError):
            ask()


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{0,10} ?([kMG]i?B)?/[0-9.]{0,5}[smhdx]?", fullmatch=True))
def test_any_text_is_a_rate_or_says_what_one_looks_like(text):
    for sized in (False, True):
        try:
            count, per_second = parse_rate(text, sized=sized)
        except ValueError as error:
            assert "expected a" in str(error)
        else:
            assert count > 0 and 0 < per_second < float("inf")


def test_too_much_is_deferred_and_never_refused():
    bench = Bench()
    allowed, refused = Rate(True, "client x", 1, 0), Rate(False, "client x", 0, 9)
    assert bench.judge("ratelimit", {}, Stage.MAIL, findings=[allowed]) == PROCEED
    verdict = bench.judge("ratelimit", {}, Stage.MAIL, findings=[refused])
    assert str(verdict.reply) == "451 4.7.1 too many messages, try again later"
    assert verdict.reason == "over 100/1h for client x"
    verdict = bench.judge("ratelimit", {"count": "recipients"}, Stage.RCPT, findings=[refused])
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
        {"key": []},
        {"key": ["client", "client"]},
        {"burst": 0},
        {"count": "octets"},
        {"rate": "5MiB/1h"},
        {"rate": "5MiBs/1h", "count": "bytes"},
        {"key": "sender", "count": "connections"},
        {"key": "helo", "count": "connections"},
        {"limits": []},
        {"limits": [{"rate": "1/1h"}], "rate": "2/1h"},
        {"limits": [{"rate": "1/1h"}, {"rate": "1/1h"}]},
        {"limits": [{"limits": [{"rate": "1/1h"}]}]},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        RateLimitOptions.model_validate(options)


def test_connections_are_counted_at_connect_and_cut_with_421():
    bench = Bench()
    options = {"count": "connections", "rate": "2/1m"}
    rates = [at_connect(bench, options) for _ in range(3)]
    assert [rate.allowed for rate in rates] == [True, True, False]
    assert at_connect(bench, options, client="192.0.2.2").allowed
    verdict = bench.judge("ratelimit", options, findings=[rates[-1]])
    assert verdict.action is Action.DISCONNECT
    assert str(verdict.reply) == "421 4.7.0 too many connections, try again later"
    assert verdict.reason == "over 2/1m connections for client 192.0.2.1"


def test_an_autonomous_system_shares_a_bucket_and_unknown_ones_are_counted_by_network():
    bench = Bench()
    options = {"count": "connections", "key": "asn", "rate": "1/1h"}
    assert at_connect(bench, options, "192.0.2.1", Geo("NL", 64500)).key == "asn AS64500"
    assert not at_connect(bench, options, "203.0.113.9", Geo("DE", 64500)).allowed
    assert at_connect(bench, options, "192.0.2.1", Geo("NL")).key == "asn 192.0.2.0/24"
    assert not at_connect(bench, options, "192.0.2.2").allowed


def test_where_a_client_is_matters_only_to_limits_by_autonomous_system():
    services = Bench().services
    for key, wanted in (("network", False), ("asn", True)):
        made = RateLimitPlugin(RateLimitOptions.model_validate({"key": key}), services)
        assert all((Geo in finder.inputs) is wanted for finder in made.finders)


def test_helo_names_are_counted_without_case():
    bench = Bench()
    options = {"key": "helo", "rate": "1/1h"}
    assert at_mail(bench, options, helo="Bulk.example").allowed
    assert not at_mail(bench, options, helo="bulk.EXAMPLE", client="198.51.100.1").allowed
    assert at_mail(bench, options, helo="other.example").allowed


def test_octets_are_taken_when_the_message_is_there():
    bench = Bench()
    options = {"count": "bytes", "rate": "1000B/1s"}
    assert at_message(bench, options, 600).remaining == 400
    refused = at_message(bench, options, 600)
    assert (refused.allowed, refused.remaining, refused.wait) == (False, 400, 0.2)
    assert at_message(bench, options, 400).allowed, "a refused message has taken nothing"
    verdict = bench.judge("ratelimit", options, Stage.MESSAGE, findings=[refused])
    assert str(verdict.reply) == "451 4.7.1 too much data, try again later"
    assert verdict.reason == "over 1000B/1s bytes for client 192.0.2.1"


def test_a_declared_size_that_would_not_fit_is_deferred_before_the_octets_come():
    bench = Bench()
    options = {"count": "bytes", "rate": "1000B/1s"}
    assert at_mail(bench, options, parameters=MailParameters(size=900)).remaining == 1000, "MAIL takes nothing"
    at_message(bench, options, 600)
    assert not at_mail(bench, options, parameters=MailParameters(size=900)).allowed
    assert at_mail(bench, options, parameters=MailParameters(size=400)).allowed
    assert at_mail(bench, options).allowed, "nothing declared, and something is left"
    at_message(bench, options, 400)
    assert not at_mail(bench, options).allowed


def test_a_message_larger_than_the_bucket_passes_when_the_bucket_is_full():
    bench = Bench()
    options = {"count": "bytes", "rate": "1000B/1s"}
    assert at_mail(bench, options, parameters=MailParameters(size=5000)).allowed
    assert at_message(bench, options, 5000).remaining == 0
    bench.clock.advance(0.5)
    assert not at_message(bench, options, 5000).allowed


def test_octets_for_several_recipients_are_taken_from_all_of_them_or_from_none():
    bench = Bench()
    options = {"count": "bytes", "rate": "1000B/1s", "key": "recipient"}
    assert at_message(bench, options, 800, recipients=["anna@example.org"]).allowed
    both = ["ben@example.org", "anna@example.org"]
    refused = at_message(bench, options, 500, recipients=both)
    assert (refused.allowed, refused.key) == (False, "recipient anna@example.org")
    assert at_message(bench, options, 1000, recipients=["ben@example.org"]).allowed, "his are all there still"
    assert not at_rcpt(bench, options, "ben@example.org").allowed


UNKNOWN = Reply(550, "1.1", "no such user")


def refuse(bench: Bench, options, reply: Reply = UNKNOWN, *, entry: str = "recipient", stage=Stage.RCPT, **kwargs):
    transaction = make_transaction(make_session(kwargs.pop("client", "192.0.2.1"), **kwargs))
    recipient = make_recipient("nobody@example.org") if stage is Stage.RCPT else None
    outcome = Outcome.REJECTED if reply.permanent else Outcome.DEFERRED
    bench.end(
        RateLimitPlugin,
        options,
        outcome=outcome,
        stage=stage,
        transaction=transaction,
        recipient=recipient,
        reply=reply,
        entry=entry,
    )


def test_unknown_recipients_are_counted_and_then_their_source_is_deferred_at_every_stage():
    bench = Bench()
    options = {"count": "invalid_recipients", "key": "network", "rate": "2/1h"}
    assert at_rcpt(bench, options, "anna@example.org").remaining == 2
    refuse(bench, options)
    assert at_rcpt(bench, options, "anna@example.org").remaining == 1, "looking takes nothing"
    refuse(bench, options, client="192.0.2.99")
    rates = [at_connect(bench, options), at_mail(bench, options), at_rcpt(bench, options, "anna@example.org")]
    assert rates == [Rate(False, "network 192.0.2.0/24", 0, 1800, "invalid_recipients", "2/1h invalid_recipients")] * 3
    assert at_connect(bench, options, "198.51.100.1").allowed
    replies = [
        str(bench.judge("ratelimit", options, stage, findings=rates[:1]).reply)
        for stage in (Stage.CONNECT, Stage.MAIL, Stage.RCPT)
    ]
    assert replies == [
        "421 4.7.0 too many unknown recipients, try again later",
        "451 4.7.1 too many unknown recipients, try again later",
        "450 4.7.1 too many unknown recipients, try again later",
    ]
    refuse(bench, options)
    bench.clock.advance(1800)
    assert at_connect(bench, options).allowed, "what was refused meanwhile puts nothing off"


@pytest.mark.parametrize(
    ("reply", "entry", "counts"),
    [
        (UNKNOWN, "recipient", True),
        (Reply(550, "2.1", "mailbox disabled"), "recipient", True),
        (Reply(550, "", "unknown user"), "delegation", True),
        (Reply(550, "7.1", "relaying denied"), "", True),
        (Reply(550, "7.1", "client is listed"), "dnsbl", False),
        (Reply(451, "1.1", "try again later"), "recipient", False),
        (Reply(450, "7.1", "too many recipients"), "ratelimit", False),
    ],
)
def test_what_makes_a_recipient_invalid(reply, entry, counts):
    bench = Bench()
    options = {"count": "invalid_recipients", "rate": "1/1h"}
    refuse(bench, options, reply, entry=entry)
    assert at_connect(bench, options).allowed is not counts


def test_errors_are_a_clients_own_and_whatever_was_refused_for_good():
    bench = Bench()
    options = {"count": "errors", "rate": "3/1h"}
    refuse(bench, options, Reply(500, "5.2", "no such command"), stage=None, entry="")
    refuse(bench, options, Reply(550, "7.1", "client is listed"), entry="dnsbl")
    refuse(bench, options, Reply(554, "7.1", "spam"), stage=Stage.MESSAGE, entry="scan")
    refuse(bench, options, Reply(451, "7.1", "greylisted"), entry="greylist")
    bench.end(RateLimitPlugin, options, outcome=Outcome.ACCEPTED, reply=Reply(250, "0.0", "queued"))
    assert at_connect(bench, options).remaining == 0
    assert not at_connect(bench, options).allowed


def test_an_error_before_mail_counts_for_no_sender():
    bench = Bench()
    options = {"count": "errors", "key": "sender", "rate": "1/1h"}
    bench.end(RateLimitPlugin, options, stage=None, session=make_session(), outcome=Outcome.REJECTED)
    assert at_mail(bench, options).allowed
    refuse(bench, options, stage=Stage.MAIL, entry="spf")
    assert not at_mail(bench, options).allowed


def test_errors_of_trusted_clients_are_not_counted():
    bench = Bench()
    options = {"count": "errors", "rate": "1/1h"}
    refuse(bench, options, trusted=True)
    assert at_connect(bench, options).remaining == 1


def test_several_limits_are_asked_in_order_and_the_first_exceeded_one_is_told():
    bench = Bench()
    options = """
    limits:
      - {rate: 2/1h}
      - {rate: 3/1h, key: network}
      - {rate: 1/1h, count: connections}
    """
    assert [at_connect(bench, options).allowed for _ in range(2)] == [True, False]
    assert at_mail(bench, options).limit == "2/1h messages", "the one with the least left"
    assert at_mail(bench, options).allowed
    assert at_mail(bench, options).limit == "2/1h messages"
    assert at_mail(bench, options, client="192.0.2.2").allowed
    refused = at_mail(bench, options, client="192.0.2.3")
    assert (refused.allowed, refused.limit) == (False, "3/1h messages")


def test_limits_that_count_different_things_have_buckets_of_their_own():
    bench = Bench()
    for count in ("messages", "invalid_recipients", "errors"):
        assert at_mail(bench, {"rate": "1/1h", "count": count}).remaining == (0 if count == "messages" else 1)
    assert at_mail(bench, {"rate": "1/1h", "key": "network", "ipv4_prefix": 32}).allowed
    assert not at_mail(bench, {"rate": "1/1h"}).allowed


def test_parts_of_a_key_cannot_be_mistaken_for_each_other():
    bench = Bench()
    options = {"key": ["sender", "recipient"], "rate": "1/1h"}
    assert at_rcpt(bench, options, '"c recipient d"@e.example', sender='"a"@b.example').allowed
    assert at_rcpt(bench, options, "d@e.example", sender='"a@b.example recipient c"@b.example').allowed


@pytest.mark.parametrize(
    ("text", "rate"), [("50MiB/1h", (50 << 20, (50 << 20) / 3600)), ("500 kB / m", (500_000, 500_000 / 60))]
)
def test_rates_of_octets_are_read(text, rate):
    assert parse_rate(text, sized=True) == pytest.approx(rate)


def test_what_was_limited_is_counted_by_what_and_for_whom():
    from plugins.ratelimit.plugin import LIMITED

    def count() -> float:
        return LIMITED.labels("messages", "client+sender")._value.get()

    bench, before = Bench(), count()
    options = {"key": ["client", "sender"], "rate": "1/1h"}
    assert at_mail(bench, options).allowed
    assert count() == before
    assert not at_mail(bench, options).allowed
    assert count() == before + 1


TAKER = """
import asyncio, sys
from pathlib import Path
from gateway.sdk import Stage
from gateway.sdk.testing import Bench, ManualClock, make_message, make_recipient, make_session, make_transaction
from gateway.services.state import SqliteState
from plugins.ratelimit import RateLimitOptions, RateLimitPlugin

async def work():
    state = SqliteState(Path(sys.argv[1]), ManualClock())
    await state.start()
    services = Bench(state=state).services
    by_number = RateLimitPlugin(RateLimitOptions.model_validate({"rate": "150/1h"}), services)
    by_octets = RateLimitPlugin(RateLimitOptions.model_validate({"rate": "1000B/1h", "count": "bytes"}), services)
    transaction = make_transaction(make_session("192.0.2.1"))
    print("ready", flush=True)
    sys.stdin.readline()
    mails = await asyncio.gather(*(by_number.at_mail(transaction, None) for _ in range(200)))
    message = make_message(b"X: " + b"x" * 15 + b"\\r\\n")
    octets = await asyncio.gather(*(by_octets.at_message(transaction, message, None) for _ in range(100)))
    await state.close()
    print(sum(rate.allowed for rate in mails), sum(rate.allowed for rate in octets))

asyncio.run(work())
"""


def test_many_takers_in_two_processes_get_no_more_than_a_bucket_holds(tmp_path):
    command = [sys.executable, "-c", TAKER, str(tmp_path / "state")]
    takers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [taker.stdout.readline() for taker in takers] == ["ready\n"] * 2
    for taker in takers:
        taker.stdin.write("go\n")
        taker.stdin.flush()
    counts = [[int(n) for n in taker.communicate(timeout=60)[0].split()] for taker in takers]
    assert sum(mails for mails, _ in counts) == 150
    assert sum(octets for _, octets in counts) == 50, "messages of 20 octets, of 1000"


class Map(Plugin):
    """Knows where clients are, or cannot say."""

    name = "map"
    broken = False

    @finds(Stage.CONNECT)
    async def place(self, session: Session) -> Geo:
        if self.broken:
            raise RuntimeError("no map")
        return Geo("NL", 64500)


class TornMap(Map):
    name = "torn-map"
    broken = True


@pytest.mark.parametrize(
    ("entries", "reply", "key"),
    [
        (["map", {"ratelimit": {"key": "asn", "count": "errors"}}], "", "asn AS64500"),
        ([{"ratelimit": {"key": "asn", "count": "errors"}}, "map"], "", "asn AS64500"),
        ([{"ratelimit": {"key": "asn", "count": "errors"}}], "", "asn 192.0.2.0/24"),
        (["torn-map", {"ratelimit": {"key": "asn", "count": "errors"}}], "451 4.3.0 try again later", None),
        (
            [{"torn-map": {}, "on_error": "proceed"}, {"ratelimit": {"key": "asn", "count": "errors"}}],
            "",
            "asn 192.0.2",
        ),
        (["torn-map", {"ratelimit": {"key": "network", "count": "errors"}}], "", "network 192.0.2.0/24"),
    ],
)
def test_in_a_pipeline_only_limits_by_autonomous_system_wait_for_who_finds_it(entries, reply, key):
    async def connected() -> tuple[str, list[str]]:
        clock = ManualClock()
        known = catalog(RateLimitPlugin, Map, TornMap)
        pipeline = load("default", entries, services(state=FakeState(clock)), known=known)
        await pipeline.start()
        session = pipeline.open()
        decision = await session.connect(make_session("192.0.2.1"))
        keys = [finding.key for finding in session.found if isinstance(finding, Rate)]
        await session.close()
        await pipeline.close()
        return str(decision.verdict.reply or ""), keys

    said, keys = run(connected())
    assert said == reply
    assert [found[: len(key)] for found in keys] == [key] if key else keys == []
