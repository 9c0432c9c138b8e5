"""The greylist plugin on the bench."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    Address,
    AuthResult,
    Dkim,
    DkimSignature,
    Dnsbl,
    Finding,
    Greylist,
    GreylistState,
    HeloName,
    Outcome,
    Recipient,
    ReverseName,
    Services,
    Spf,
    SpfResult,
    Stage,
    StateError,
)
from gateway.sdk.testing import Bench, FakeState, ManualClock, make_recipient, make_session, make_transaction
from gateway.services.state import SqliteState
from plugins.greylist import GreylistPlugin
from plugins.greylist.identity import stable_sender
from plugins.greylist.memory import Record
from plugins.greylist.options import GreylistOptions
from plugins.greylist.plugin import ATTEMPTS, DELAY

NEW, EARLY, PASSED, KNOWN, EXEMPT = GreylistState
RCPT, MESSAGE = Stage.RCPT, Stage.MESSAGE
ALWAYS = {"when": "always"}


def attempt(bench: Bench, options: Any = ALWAYS, *findings: Finding, stage: Stage = RCPT, **kwargs: Any) -> Greylist:
    """One attempt; `findings` are what other entries found."""
    recipient = kwargs.pop("recipient", "anna@example.org")
    session = make_session(
        kwargs.pop("client", "192.0.2.1"),
        trusted=kwargs.pop("trusted", False),
        helo=kwargs.pop("helo", "client.example"),
    )
    transaction = make_transaction(session, sender=kwargs.pop("sender", "ben@sender.example"), recipients=[recipient])
    assert not kwargs
    found = bench.find(
        GreylistPlugin,
        options,
        stage,
        transaction=transaction,
        recipient=make_recipient(recipient),
        findings=findings,
    )
    assert isinstance(found, Greylist)
    return found


def accepted(bench: Bench, options: Any = ALWAYS, *findings: Finding, **kwargs: Any) -> None:
    """The end of a message; by default it was accepted."""
    session = make_session(kwargs.pop("client", "192.0.2.1"), trusted=kwargs.pop("trusted", False))
    recipients = kwargs.pop("recipients", ["anna@example.org"])
    sender = kwargs.pop("sender", "ben@sender.example")
    transaction = make_transaction(session, sender=sender, recipients=recipients)
    bench.end(GreylistPlugin, options, transaction=transaction, findings=findings, **kwargs)


def spf(result: SpfResult, domain: str = "sender.example", helo: SpfResult = SpfResult.NONE, name: str = "") -> Spf:
    return Spf(result, domain, helo, name or "client.example")


def reverse(result: AuthResult, name: str = "") -> ReverseName:
    return ReverseName(result, "192.0.2.1", name, (name,) if name else ())


def dkim(*domains: str, result: AuthResult = AuthResult.PASS) -> Dkim:
    return Dkim(tuple(DkimSignature(result, domain) for domain in domains))


class WanderingClock(ManualClock):
    """A clock that can be set back."""

    def set_back(self, seconds: float) -> None:
        self._now -= seconds


# The life of an attempt


def test_a_first_attempt_waits_and_a_retry_in_time_passes_and_is_known_from_then_on():
    bench = Bench()
    assert attempt(bench) == Greylist(NEW, "network 192.0.2.0/24", 300, 0, "nothing is known")
    bench.clock.advance(100)
    assert attempt(bench) == Greylist(EARLY, "network 192.0.2.0/24", 200, 0, "nothing is known")
    bench.clock.advance(201)
    assert attempt(bench) == Greylist(PASSED, "network 192.0.2.0/24", 0, 301, "nothing is known")
    bench.clock.advance(1)
    assert attempt(bench).state is KNOWN


def test_a_retry_that_comes_too_early_does_not_begin_the_wait_anew():
    bench = Bench()
    attempt(bench)
    for _ in range(9):
        bench.clock.advance(30)
        assert attempt(bench).state is EARLY
    bench.clock.advance(30)
    assert attempt(bench).state is PASSED


def test_a_retry_after_the_window_is_a_first_attempt():
    bench = Bench()
    attempt(bench)
    bench.clock.advance(86_400)
    assert attempt(bench).state is NEW
    bench.clock.advance(300)
    assert attempt(bench).state is PASSED


def test_who_has_passed_is_known_as_long_as_they_come_again_in_time():
    bench = Bench()
    attempt(bench)
    bench.clock.advance(300)
    attempt(bench)
    for _ in range(4):
        bench.clock.advance(30 * 86_400)
        assert attempt(bench).state is KNOWN
    bench.clock.advance(36 * 86_400)
    assert attempt(bench).state is NEW


@pytest.mark.parametrize(
    "other",
    [{"client": "198.51.100.1"}, {"sender": "eva@sender.example"}, {"recipient": "carl@example.org"}],
    ids=["client", "sender", "recipient"],
)
def test_each_client_sender_and_recipient_waits_for_itself(other):
    bench = Bench()
    attempt(bench)
    bench.clock.advance(300)
    assert attempt(bench, **other).state is NEW
    assert attempt(bench).state is PASSED


def test_case_makes_no_other_sender_and_no_other_recipient():
    bench = Bench()
    attempt(bench)
    assert attempt(bench, sender="BEN@Sender.Example", recipient="Anna@EXAMPLE.org").state is EARLY


# Who the client is


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("192.0.2.1", "192.0.2.99", "network 192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.99", "network 192.0.2.0/24"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "network 2001:db8:0:1::/64"),
    ],
)
def test_a_network_is_one_client(first, second, key):
    bench = Bench()
    assert attempt(bench, client=first).key == key
    assert attempt(bench, client=second).state is EARLY


def test_the_size_of_a_network_is_an_option():
    bench = Bench()
    options = {**ALWAYS, "ipv4_prefix": 32, "ipv6_prefix": 48}
    assert attempt(bench, options).key == "network 192.0.2.1/32"
    assert attempt(bench, options, client="192.0.2.2").state is NEW
    assert attempt(bench, options, client="2001:db8:0:1::1").key == "network 2001:db8::/48"


def test_a_domain_that_spf_proves_is_one_client_wherever_it_comes_from():
    bench = Bench()
    proved = spf(SpfResult.PASS)
    assert attempt(bench, ALWAYS, proved).key == "domain sender.example"
    bench.clock.advance(300)
    found = attempt(bench, ALWAYS, proved, client="2001:db8::1")
    assert (found.state, found.delay) == (PASSED, 300)
    assert attempt(bench, ALWAYS, spf(SpfResult.SOFTFAIL), client="198.51.100.1").state is NEW, "and a forger is not it"


def test_a_domain_that_dkim_proves_is_one_client_after_data_only():
    options = {**ALWAYS, "at": "message"}
    bench = Bench()
    nothing = spf(SpfResult.NEUTRAL)
    assert attempt(bench, options, nothing, dkim("sender.example"), stage=MESSAGE).key == "domain sender.example"
    bench.clock.advance(300)
    found = attempt(bench, options, nothing, dkim("sender.example"), client="198.51.100.1", stage=MESSAGE)
    assert found.state is PASSED


@pytest.mark.parametrize(
    ("signed", "domain"),
    [
        (dkim("mail.sender.example"), "mail.sender.example"),
        (dkim("other.example", "sender.example"), "sender.example"),
        (dkim("other.example"), ""),
        (dkim("notsender.example"), ""),
        (dkim("example"), ""),
        (dkim("sender.example", result=AuthResult.FAIL), ""),
        (dkim("sender.example", result=AuthResult.POLICY), ""),
    ],
)
def test_only_a_valid_signature_of_the_senders_own_domain_proves_it(signed, domain):
    found = attempt(Bench(), {**ALWAYS, "at": "message"}, signed, stage=MESSAGE)
    assert found.key == (f"domain {domain}" if domain else "network 192.0.2.0/24")


@pytest.mark.parametrize("result", [SpfResult.FAIL, SpfResult.SOFTFAIL])
def test_a_signature_proves_nothing_of_a_client_that_may_not_send_for_the_domain(result):
    # Whoever once got a signed message can send it again, to anybody.
    found = attempt(Bench(), {**ALWAYS, "at": "message"}, spf(result), dkim("sender.example"), stage=MESSAGE)
    assert found.key == "network 192.0.2.0/24"


@pytest.mark.parametrize(
    "findings",
    [
        [reverse(AuthResult.PASS, "mail-wr1-f44.google.com"), spf(SpfResult.PASS, "customer.example")],
        [spf(SpfResult.PASS, "google.com")],
        [spf(SpfResult.NONE, "customer.example", SpfResult.PASS, "mail-wr1-f44.GOOGLE.com")],
    ],
    ids=["confirmed name", "proved sender", "proved HELO"],
)
def test_a_pool_is_one_client(findings):
    assert attempt(Bench(), ALWAYS, *findings).key == "pool google"


@pytest.mark.parametrize(
    "findings",
    [
        [reverse(AuthResult.FAIL, "mail-wr1-f44.google.com")],
        [reverse(AuthResult.PASS, "notgoogle.com")],
        [reverse(AuthResult.PASS, "google.com.forger.example")],
        [spf(SpfResult.SOFTFAIL, "google.com")],
        [spf(SpfResult.NONE, "customer.example", SpfResult.FAIL, "mail-wr1-f44.google.com")],
    ],
)
def test_who_only_claims_to_be_of_a_pool_is_not(findings):
    assert attempt(Bench(), ALWAYS, *findings).key == "network 192.0.2.0/24"


def test_pools_can_be_replaced_and_exempt():
    named = reverse(AuthResult.PASS, "out7.pool.example")
    options = {**ALWAYS, "pools": {"Ours": ["Pool.Example"]}}
    assert attempt(Bench(), options, named).key == "pool Ours"
    assert attempt(Bench(), options, reverse(AuthResult.PASS, "x.google.com")).key == "network 192.0.2.0/24"
    assert attempt(Bench(), {**options, "pooled": "exempt"}, named) == Greylist(EXEMPT, "pool Ours", reason="pool")
    assert attempt(Bench(), {**ALWAYS, "pools": {}}, named).state is NEW


# Which sender it is


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("list-return-123-anna=example.org@l.example", "list-return-99887-anna=example.org@l.example"),
        ("prvs=1234abcdef=ben@s.example", "prvs=5678fedcba=ben@s.example"),
        ("prvs=ben=1234abcdef@s.example", "ben@s.example"),
        ("btv1==0123456789ab==ben@s.example", "ben@s.example"),
        ("SRS0=abCD=7T=origin.example=ben@f.example", "SRS0=xyZW=8A=origin.example=ben@f.example"),
        (
            "SRS1=abCD=first.example==efGH=7T=origin.example=ben@f.example",
            "SRS1=xyZW=first.example==ijKL=8A=origin.example=ben@f.example",
        ),
        ("bounces+4711-abcd-anna=example.org@e.example", "bounces+4712-efgh-anna=example.org@e.example"),
        (
            "01000174979b0a52-3880fe53-829e-4de0-a316-e9507dd3b907-000000@amazonses.example",
            "010001712c18ec1e-e945dc7c-104a-abcd-9a69-dfce6e33ee17-000000@amazonses.example",
        ),
        ("msprvs1=19000aXbQkZ=bounces-123@s.example", "msprvs1=19001bYcRlA=bounces-456@s.example"),
        ("news.dGhpc0lzQVZlcnlMb25nVG9rZW4@s.example", "news.YW5vdGhlclZlcnlMb25nVG9rZW4@s.example"),
    ],
)
def test_a_sender_whose_address_changes_with_each_message_stays_the_same_sender(one, other):
    bench = Bench()
    attempt(bench, sender=one)
    assert attempt(bench, sender=other).state is EARLY


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ben@s.example", "ben@t.example"),
        ("ben.white@s.example", "ben.black@s.example"),
        ("prvs=1234abcdef=ben@s.example", "prvs=1234abcdef=eva@s.example"),
        ("SRS0=abCD=7T=origin.example=ben@f.example", "SRS0=abCD=7T=other.example=ben@f.example"),
        ("abe@s.example", "dee@s.example"),
        ("+ben@s.example", "+eva@s.example"),
        ("=@s.example", "-@s.example"),
    ],
)
def test_different_senders_stay_different(one, other):
    bench = Bench()
    attempt(bench, sender=one)
    assert attempt(bench, sender=other).state is NEW


@given(st.text(min_size=1, max_size=64))
def test_no_local_part_trips_the_normal_form_and_its_case_does_not_matter(local):
    found = stable_sender(Address(local, "sender.example"))
    assert found.endswith("@sender.example")
    assert len(found) <= 2 * len(local) + len("@sender.example") + 8


@given(st.from_regex(r"[a-z]{3,8}", fullmatch=True), st.integers(0, 10**12), st.integers(0, 10**12))
def test_numbers_never_tell_senders_apart(word, one, other):
    forms = {stable_sender(Address(f"{word}-{n}", "sender.example")) for n in (one, other)}
    assert len(forms) == 1


# Whom to leave alone


def test_trusted_clients_never_wait():
    assert attempt(Bench(), trusted=True) == Greylist(EXEMPT, "network 192.0.2.0/24", reason="client is trusted")


@pytest.mark.parametrize("recipient", ["postmaster", "Postmaster@example.org", "ABUSE@example.org"])
def test_postmaster_and_abuse_stay_reachable(recipient):
    assert attempt(Bench(), recipient=recipient).reason == "recipient is exempt"
    assert attempt(Bench(), {**ALWAYS, "exempt": []}, recipient=recipient).state is NEW


def test_the_null_sender_passes_rcpt_and_waits_after_data_so_that_callouts_work():
    bench = Bench()
    assert attempt(bench, sender="").state is EXEMPT
    assert attempt(bench, sender="", stage=MESSAGE).state is NEW
    bench.clock.advance(300)
    assert attempt(bench, sender="", stage=MESSAGE).state is PASSED
    assert attempt(bench, {**ALWAYS, "null_sender": "exempt"}, sender="", stage=MESSAGE).reason == "null sender"


def test_a_message_is_judged_at_one_stage_only():
    bench = Bench()
    assert attempt(bench, stage=MESSAGE) == Greylist(EXEMPT, "", reason="judged at RCPT")
    late = {**ALWAYS, "at": "message"}
    assert attempt(bench, late) == Greylist(EXEMPT, "", reason="judged after DATA")
    assert attempt(bench, late, stage=MESSAGE).state is NEW


def test_after_data_the_first_recipient_that_is_not_exempt_stands_for_all():
    bench = Bench()
    late = {**ALWAYS, "at": "message"}

    def message(*recipients: str) -> Greylist:
        transaction = make_transaction(recipients=recipients)
        found = bench.find(GreylistPlugin, late, MESSAGE, transaction=transaction)
        assert isinstance(found, Greylist)
        return found

    assert message("postmaster@example.org").reason == "recipient is exempt"
    assert message("postmaster@example.org", "anna@example.org", "carl@example.org").state is NEW
    assert message("anna@example.org", "dora@example.org").state is EARLY
    assert message("carl@example.org").state is NEW


@pytest.mark.parametrize(
    "evidence",
    [
        [spf(SpfResult.PASS)],
        [spf(SpfResult.PASS), Dnsbl(0.5), reverse(AuthResult.PASS, "client.example"), HeloName("client.example")],
        [Dnsbl(0.0)],
        [reverse(AuthResult.TEMPERROR)],
    ],
)
def test_a_client_against_which_nothing_speaks_does_not_wait_by_default(evidence):
    found = attempt(Bench(), None, *evidence)
    assert (found.state, found.reason) == (EXEMPT, "not suspicious")
    assert attempt(Bench(), ALWAYS, *evidence).state is NEW


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ([], "nothing is known"),
        ([spf(SpfResult.PASS), Dnsbl(1.0)], "dnsbl 1"),
        ([spf(SpfResult.NONE)], "spf none"),
        ([spf(SpfResult.TEMPERROR)], "spf temperror"),
        ([spf(SpfResult.PASS), reverse(AuthResult.NONE)], "reverse name none"),
        ([spf(SpfResult.PASS), reverse(AuthResult.FAIL)], "reverse name fail"),
        ([spf(SpfResult.PASS), HeloName("localhost", ("bare", "own"))], "helo bare"),
        ([spf(SpfResult.FAIL), Dnsbl(2.5), HeloName("x", ("bare",))], "dnsbl 2.5, spf fail, helo bare"),
    ],
)
def test_a_client_against_which_something_speaks_waits_and_the_finding_says_why(evidence, reason):
    found = attempt(Bench(), None, *evidence)
    assert (found.state, found.reason) == (NEW, reason)


def test_what_is_suspicious_are_options():
    listed, nameless = Dnsbl(5.0), reverse(AuthResult.NONE)
    odd, unknown = HeloName("x", ("bare",)), spf(SpfResult.NONE)
    for options, finding in (
        ({"suspicious_score": None}, listed),
        ({"suspicious_score": 5.5}, listed),
        ({"suspicious_reverse": ["fail"]}, nameless),
        ({"suspicious_helo": False}, odd),
        ({"suspicious_spf": ["fail", "softfail"]}, unknown),
    ):
        assert attempt(Bench(), options, finding).state is EXEMPT
        assert attempt(Bench(), {}, finding).state is NEW


def test_a_signature_of_the_senders_domain_makes_up_for_missing_spf_after_data():
    late = {"at": "message"}
    assert attempt(Bench(), late, spf(SpfResult.NONE), stage=MESSAGE).state is NEW
    assert attempt(Bench(), late, spf(SpfResult.NONE), dkim("sender.example"), stage=MESSAGE).state is EXEMPT


def test_clients_on_allow_lists_never_wait():
    found = attempt(Bench(), ALWAYS, Dnsbl(-1.0))
    assert (found.state, found.reason) == (EXEMPT, "allow list, score -1")
    assert attempt(Bench(), ALWAYS, Dnsbl(-0.5)).state is NEW
    assert attempt(Bench(), {**ALWAYS, "exempt_score": None}, Dnsbl(-3.0)).state is NEW


# Learning from success


def pass_once(bench: Bench, *findings: Finding, **kwargs: Any) -> None:
    attempt(bench, ALWAYS, *findings, **kwargs)
    bench.clock.advance(300)
    assert attempt(bench, ALWAYS, *findings, **kwargs).state is PASSED


def test_after_some_accepted_messages_all_mail_of_the_client_passes():
    bench = Bench()
    pass_once(bench)
    for _ in range(4):
        accepted(bench)
        assert attempt(bench, sender="eva@other.example", recipient="x@example.org").state in (NEW, EARLY)
    with structlog.testing.capture_logs() as logs:
        accepted(bench)
    found = attempt(bench, sender="new@third.example", recipient="y@example.org", client="192.0.2.200")
    assert found == Greylist(KNOWN, "network 192.0.2.0/24", reason="the client is known")
    assert [(log["event"], log["key"]) for log in logs] == [("greylist.learned", "network 192.0.2.0/24")]
    assert attempt(bench, client="198.51.100.1").state is NEW


def test_a_proved_domain_becomes_known_as_a_whole_with_all_its_addresses():
    bench = Bench()
    proved = spf(SpfResult.PASS)
    pass_once(bench, proved)
    for number in range(5):
        accepted(bench, ALWAYS, proved, client=f"198.51.100.{number}")
    assert attempt(bench, ALWAYS, proved, client="203.0.113.1", sender="x@sender.example").state is KNOWN
    assert attempt(bench, ALWAYS, client="203.0.113.1", sender="x@sender.example").state is NEW


def test_a_client_is_known_as_long_as_it_sends_in_time():
    bench = Bench()
    pass_once(bench)
    for _ in range(5):
        accepted(bench)
    for number in range(4):
        bench.clock.advance(30 * 86_400)
        assert attempt(bench, sender=f"s@s{number}.example").state is KNOWN
    bench.clock.advance(36 * 86_400)
    assert attempt(bench, sender="s@late.example").state is NEW


@pytest.mark.parametrize(
    "ending",
    [
        {"outcome": Outcome.REJECTED},
        {"outcome": Outcome.DEFERRED},
        {"outcome": Outcome.QUARANTINED},
        {"outcome": Outcome.DISCARDED},
        {"outcome": Outcome.ABORTED},
        {"stage": Stage.RCPT},
        {"stage": None},
        {"trusted": True},
        {"recipients": []},
        {"recipients": ["postmaster@example.org"]},
        {"sender": "other@sender.example"},
        {"client": "198.51.100.1"},
    ],
    ids=str,
)
def test_only_an_accepted_message_of_somebody_who_had_to_pass_counts(ending):
    bench = Bench()
    pass_once(bench)
    for _ in range(6):
        accepted(bench, ALWAYS, **ending)
    assert attempt(bench, sender="eva@other.example").state is NEW


def test_who_sent_to_exempt_recipients_only_has_passed_nothing():
    bench = Bench()
    for _ in range(6):
        assert attempt(bench, recipient="postmaster@example.org").state is EXEMPT
        accepted(bench, recipients=["postmaster@example.org"])
    assert attempt(bench).state is NEW


def test_a_message_counts_when_one_of_its_recipients_was_passed_for():
    bench = Bench()
    pass_once(bench)
    for _ in range(5):
        accepted(bench, recipients=["postmaster@example.org", "anna@example.org"])
    assert attempt(bench, sender="eva@other.example").state is KNOWN


def test_bounces_after_data_teach_too_and_dkim_counts_there():
    bench = Bench()
    late = {**ALWAYS, "at": "message"}
    signed = dkim("sender.example")
    attempt(bench, late, signed, stage=MESSAGE)
    bench.clock.advance(300)
    assert attempt(bench, late, signed, stage=MESSAGE).state is PASSED
    for _ in range(5):
        accepted(bench, late, signed)
    assert attempt(bench, late, signed, client="203.0.113.1", recipient="y@example.org", stage=MESSAGE).state is KNOWN


def test_learning_can_be_turned_off_or_made_quick():
    bench = Bench()
    pass_once(bench)
    for _ in range(20):
        accepted(bench, {**ALWAYS, "learn_after": 0})
    assert attempt(bench, sender="eva@other.example").state is NEW
    accepted(bench, {**ALWAYS, "learn_after": 1})
    assert attempt(bench, sender="eva@other.example").state is KNOWN


# Trouble


def test_a_clock_that_jumps_back_costs_one_more_delay_at_most():
    clock = WanderingClock()
    bench = Bench(clock=clock)
    attempt(bench)
    clock.set_back(7200)
    found = attempt(bench)
    assert (found.state, found.wait) == (EARLY, 300)
    clock.advance(300)
    assert attempt(bench).state is PASSED
    clock.set_back(7200)
    assert attempt(bench).state is KNOWN


def test_a_store_that_does_not_answer_raises_so_that_on_error_decides():
    bench = Bench()
    assert isinstance(bench.state, FakeState)
    bench.state.broken = True
    with pytest.raises(StateError):
        attempt(bench)
    with pytest.raises(StateError):
        attempt(bench, sender="", stage=MESSAGE)
    with pytest.raises(StateError):
        accepted(bench)
    assert attempt(bench, trusted=True).state is EXEMPT, "who is exempt needs no store"
    assert attempt(bench, None, spf(SpfResult.PASS)).state is EXEMPT


def test_one_client_cannot_fill_the_store_with_first_attempts():
    bench = Bench()
    options = {**ALWAYS, "pending": 10}
    for number in range(12):
        assert attempt(bench, options, recipient=f"{'x' * (number + 1)}@example.org").state is NEW
    remembered = [attempt(bench, options, recipient=f"{'x' * (number + 1)}@example.org").state for number in range(12)]
    assert remembered == [EARLY] * 10 + [NEW] * 2
    assert attempt(bench, options, client="198.51.100.1").state is NEW
    assert attempt(bench, options, client="198.51.100.1").state is EARLY


def test_keys_are_hashes_whatever_the_client_chose():
    bench = Bench()
    assert isinstance(bench.state, FakeState)
    attempt(bench, sender=f"{'s' * 64}@sender.example", recipient=f"{'r' * 64}@example.org")
    assert bench.state._entries
    for key in bench.state._entries:
        assert len(key) < 100
        assert "ssss" not in key
        assert "rrrr" not in key


@given(st.binary(max_size=200) | st.text(max_size=40).map(lambda text: f"1 {text}".encode("utf-8", "replace")))
def test_garbage_in_the_store_counts_as_nothing(value):
    record = Record.load(value)
    if record is not None:
        assert math.isfinite(record.first)
        assert math.isfinite(record.seen)
    bench = Bench()

    async def poisoned(key: str) -> bytes:
        return value

    async def poisoned_too(key: str, new: bytes, ttl: float) -> bytes:
        return value

    assert isinstance(bench.state, FakeState)
    original = bench.state.get, bench.state.put_new
    bench.state.get, bench.state.put_new = poisoned, poisoned_too  # type: ignore[method-assign]
    found = attempt(bench)
    if record is None:
        assert found.state is NEW
        bench.state.get, bench.state.put_new = original  # type: ignore[method-assign]
        assert attempt(bench).state is EARLY, "and what was there is overwritten"


@pytest.mark.parametrize(
    "value",
    [b"", b"1", b"2 passed 1.0 1.0", b"1 passed inf 1.0", b"1 passed nan nan", b"1 PASSED 1.0 1.0", b"\xff" * 20],
)
def test_a_record_of_another_version_counts_as_nothing(value):
    assert Record.load(value) is None


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
def test_a_record_comes_back_as_it_was_written(first, seen, passed):
    record = Record(first, seen, passed)
    assert Record.load(record.dump()) == record


def test_of_attempts_that_come_at_once_on_two_workers_one_is_the_first(tmp_path: Path):
    clock = ManualClock()

    async def run() -> list[GreylistState]:
        async with contextlib.AsyncExitStack() as stack:
            plugins = []
            for _ in range(2):
                state = SqliteState(tmp_path, clock)
                await state.start()
                stack.push_async_callback(state.close)
                services = Services(Bench().dns, state, clock, Bench().directory, "mx.example.org", "mx.example.org")
                plugin = GreylistPlugin(GreylistOptions(when="always"), services)
                await plugin.start()
                plugins.append(plugin)
            transaction, recipient = make_transaction(), make_recipient()
            found = await asyncio.gather(
                *(plugins[number % 2].at_rcpt(transaction, recipient, None, None, None, None) for number in range(40))
            )
            return [finding.state for finding in found]

    states = asyncio.run(run())
    assert sorted(states) == [EARLY] * 39 + [NEW]


# The policy, the numbers, the options


@pytest.mark.parametrize("stage", [RCPT, MESSAGE])
def test_first_attempts_and_early_retries_are_deferred_and_nobody_else(stage):
    bench = Bench()
    for state in (NEW, EARLY):
        verdict = bench.judge(GreylistPlugin, stage=stage, findings=[Greylist(state, "network 192.0.2.0/24", 299.2)])
        assert verdict.action is Action.DEFER
        assert str(verdict.reply) == "451 4.7.1 try again later"
        assert "network 192.0.2.0/24" in verdict.reason
    for state in (PASSED, KNOWN, EXEMPT):
        assert bench.judge(GreylistPlugin, stage=stage, findings=[Greylist(state, "k")]) == PROCEED


def test_the_reply_can_say_how_long_to_wait():
    for wait, said in ((299.2, "300"), (0.0, "1")):
        verdict = Bench().judge(GreylistPlugin, {"tell_wait": True}, RCPT, findings=[Greylist(EARLY, "k", wait)])
        assert str(verdict.reply) == f"451 4.7.1 try again in {said} seconds"


def test_who_passes_is_logged_and_the_wait_is_measured():
    bench = Bench()

    def measured() -> tuple[float, float]:
        samples = {s.name: s.value for s in next(iter(DELAY.collect())).samples if not s.labels}
        passed = ATTEMPTS.labels("passed", "network")._value.get()
        return samples["gatepost_greylist_delay_seconds_sum"], passed

    before = measured()
    with structlog.testing.capture_logs() as logs:
        attempt(bench)
        bench.clock.advance(700)
        attempt(bench)
        attempt(bench)
    after = measured()
    assert (after[0] - before[0], after[1] - before[1]) == (700, 1)
    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("greylist.deferred", "debug"),
        ("greylist.passed", "info"),
    ]
    assert logs[1]["seconds"] == 700
    assert logs[1]["key"] == "network 192.0.2.0/24"
    assert logs[1]["recipient"] == "anna@example.org"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": "5m"}, "window must be longer than delay"),
        ({"remember": "1h"}, "remember must not be shorter than window"),
        ({"delay": 0}, "greater than 0"),
        ({"delay": 300}, "with its unit"),
        ({"when": "sometimes"}, "'suspicious' or 'always'"),
        ({"suspicious_spf": ["bad"]}, "'softfail'"),
        ({"pools": {"x": []}}, "name the domains of its hosts"),
        ({"pools": {"x": ["*.example.org"]}}, "name the domains of its hosts"),
        ({"pools": {"": ["example.org"]}}, "printable name"),
        ({"learn_after": -1}, "greater than or equal to 0"),
        ({"ipv4_prefix": 4}, "greater than or equal to 8"),
    ],
)
def test_wrong_options_say_what_to_do(options, said):
    with pytest.raises(ValidationError, match=said):
        GreylistOptions.model_validate(options)


def test_no_recipients_and_odd_ones_trip_nothing():
    bench = Bench()
    nobody = make_transaction(recipients=[])
    found = bench.find(GreylistPlugin, {**ALWAYS, "at": "message"}, MESSAGE, transaction=nobody)
    assert isinstance(found, Greylist)
    assert found.state is EXEMPT
    odd = Recipient(Address("\ud800 \0", "example.org"))
    found = bench.find(GreylistPlugin, ALWAYS, RCPT, transaction=make_transaction(), recipient=odd)
    assert isinstance(found, Greylist)
    assert found.state is NEW
