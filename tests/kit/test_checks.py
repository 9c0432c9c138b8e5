"""What holds for every policy: ours keep it, and whoever does not keep it fails."""

from __future__ import annotations

import datetime
import random
import re
import socket
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from gateway.kit.checks import check_policy
from gateway.kit.purity import watched
from gateway.kit.strategies import findings
from gateway.sdk import (
    PROCEED,
    Access,
    AddHeader,
    BodyContent,
    DelegatedAction,
    Dkim,
    Dmarc,
    Dnsbl,
    Geo,
    Message,
    Policy,
    PolicyOptions,
    Rate,
    Recipient,
    RecipientStatus,
    ReplaceBody,
    ReverseName,
    Session,
    SpamScore,
    Spf,
    Transaction,
    Verdict,
    annotate,
    reject,
)
from gateway.sdk.testing import policy_class
from plugins.delegation.actions import Word
from plugins.dkim.seal import ArcSealed
from plugins.dkim.sign import DkimSigned
from plugins.ratelimit import Counted

RULES = [
    {"name": "spam", "when": "spam_score.score >= 5.0 || dnsbl.score > 2.0", "then": {"quarantine": "spam"}},
    {"name": "forged", "when": 'spf.result == "fail"', "then": {"reject": "7.23 no"}},
]
OPTIONS: dict[str, Any] = {
    "access": {"lists": [{"match": "client", "entries": ["192.0.2.1 reject"]}]},
    "arc-seal": {"domain": "example.org", "selector": "s", "key_file": "arc.pem"},
    "archive": {"to": ["journal@archive.example.org"], "header": "X-Envelope-To"},
    "content-checks": {"tables": [{"match": ["text"], "entries": ["/cat/ SCORE 3"]}]},
    "delegation": {"connect": "127.0.0.1:10023"},
    "disclaimer": {"text": "For its recipient only."},
    "dkim-sign": {"domains": {"example.org": [{"selector": "s", "key_file": "s.pem"}]}},
    "dlp": {"detect": {"iban": {"threshold": 1, "action": "reject"}}},
    "dnsbl": {"zones": {"bl.test": 2}, "reject_at": 2},
    "geoip": {"country": "country.mmdb", "defer_countries": ["XK"]},
    "display-name": {"own_domains": ["example.org"], "names": {"Anna Muster": ["anna.muster@home.example"]}},
    "helo-identity": {"own_names": ["mx.example.org"]},
    "lookalike-domain": {"protect": ["example.org", "bank.example"], "known": ["example.net"]},
    "own-domain-sender": {"own_domains": ["example.org"], "strict": True},
    "partner-authentication": {"partners": ["bank.example", "example.org"]},
    "restricted-recipients": {"lists": {"all@example.org": [], "anna@example.org": ["partner.example"]}},
    "rules": RULES,
    "tls-required": {"senders": ["bank.example"], "recipients": ["anna@example.org"]},
    "uribl": {"lists": {"dbl.test": 3}, "reject_at": 3},
}
# What their plugins never say, their policies need not understand.
WORDS = {
    "code": st.just(0),
    "detail": st.sampled_from(["", "7.1"]),
    "text": st.sampled_from(["", "not here"]),
}
SIGNATURES = st.sampled_from(["", "v=1; a=rsa-sha256;\n\tb=abc", "i=1; cv=none"])
FOUND: dict[str, Any] = {
    "arc-seal": {ArcSealed: findings(ArcSealed, **dict.fromkeys(["seal", "message_signature", "results"], SIGNATURES))},
    "dkim-sign": {DkimSigned: findings(DkimSigned, signatures=st.lists(SIGNATURES, max_size=2).map(tuple))},
    "access": {Access: findings(Access, **WORDS)},
    "delegation": {
        DelegatedAction: findings(DelegatedAction, action=st.sampled_from([w.value for w in Word]), **WORDS)
    },
    "client-score": [Dnsbl, Spf, ReverseName, Geo],
    "own-domain-sender": [Spf, Dkim, Dmarc],
    "ratelimit": {Rate: findings(Rate, counted=st.sampled_from([counted.value for counted in Counted]))},
    "rules": [Spf, Dnsbl, SpamScore, RecipientStatus],
}
NAMES = sorted(
    point.name
    for group in ("gatepost.policies", "gatepost.plugins")
    for point in entry_points(group=group)
    if point.module.split(".")[0] in ("policies", "plugins")
)
WITHOUT_A_POLICY = {"tarpit"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_A_POLICY])
def test_our_policies_are_pure_and_never_raise(name: str) -> None:
    check_policy(name, OPTIONS.get(name), found=FOUND.get(name, ()), examples=6)


class Options(PolicyOptions):
    limit: int = 3


class Asking(Policy):
    """Base of the policies below; those that are made of it do one thing wrong."""

    Options = Options
    options: Options


class Good(Asking):
    name = "good"

    def on_rcpt(self, recipient: Recipient, spf: Spf | None) -> Verdict:
        if spf is None or len(recipient.address.local) > self.options.limit:
            return PROCEED
        return reject("7.1", "no", reason=f"{recipient.address} {spf.explanation}")

    def on_message(self, message: Message, transaction: Transaction) -> Verdict:
        body = ReplaceBody(BodyContent(str(transaction.sender).encode()))
        return annotate(AddHeader("X-Fields", str(len(message.fields))), body).only(transaction.recipients)


class Explodes(Asking):
    name = "explodes"

    def on_helo(self, session: Session) -> Verdict:
        session.helo.encode("ascii").decode().split(".")[1]
        return PROCEED


class Remembers(Asking):
    name = "remembers"
    seen = 0

    def on_helo(self, session: Session) -> Verdict:
        self.seen += 1
        return reject("7.1", "enough") if self.seen > 4 else PROCEED


class Gossips(Asking):
    """Takes a stranger's words into the reply."""

    name = "gossips"

    def on_mail(self, spf: Spf) -> Verdict:
        return reject("7.1", f"no {spf.explanation}")


class Talks(Asking):
    name = "talks"

    def on_helo(self, session: Session) -> Verdict:
        return reject("7.1", "no " * 200)


class Names(Asking):
    name = "names"

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("7.1", "no").only([recipient])


class Silent(Asking):
    name = "silent"

    def on_helo(self, session: Session) -> Verdict:
        return None  # type: ignore[return-value]


class LooksAtTheClock(Asking):
    name = "clock"

    def on_helo(self, session: Session) -> Verdict:
        now = time.time()  # noqa: TID251 - what is not to be done
        return reject("7.1", "no") if now < session.started - 4e9 else PROCEED


class LooksAtTheDate(Asking):
    name = "date"

    def on_helo(self, session: Session) -> Verdict:
        return reject("7.1", "no") if datetime.datetime.now(datetime.UTC).year < 2000 else PROCEED


class RollsDice(Asking):
    name = "dice"

    def on_helo(self, session: Session) -> Verdict:
        return reject("7.1", "no") if random.random() < 0 else PROCEED


class ReadsFiles(Asking):
    name = "files"

    def on_helo(self, session: Session) -> Verdict:
        return PROCEED if Path(__file__).read_text() else reject("7.1", "no")


class AsksTheNetwork(Asking):
    name = "network"

    def on_helo(self, session: Session) -> Verdict:
        with socket.socket() as sock:
            return PROCEED if sock.fileno() else reject("7.1", "no")


@pytest.fixture
def in_one_go() -> Iterator[None]:
    """Without a search for the simplest case, which takes long and is not what is tested."""
    settings.register_profile("in one go", settings.get_profile("gatepost"), phases=[Phase.generate])
    settings.load_profile("in one go")
    yield
    settings.load_profile("gatepost")


def test_a_good_policy_passes() -> None:
    check_policy(Good, examples=20)
    check_policy(Good, "limit: 5", examples=5)


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (Explodes, r"Explodes.on_helo raised (IndexError|UnicodeEncodeError)"),
        (Remembers, r"asked (the same again|nothing before)"),
        (Gossips, r"is not printable ASCII|has a line of"),
        (Talks, r"has a line of 6\d\d octets"),
        (Names, r"Names.on_rcpt names recipients"),
        (Silent, r"gave None and no verdict"),
        (LooksAtTheClock, r"called time.time"),
        (LooksAtTheDate, r"called datetime.now"),
        (RollsDice, r"called random.random"),
        (ReadsFiles, r"called .*open"),
        (AsksTheNetwork, r"called socket\.\w+"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_policy_that_is_none_fails_and_is_told_why(policy: type[Policy], problem: str, in_one_go: None) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)) as failure:
        check_policy(policy, examples=50)
    assert any(isinstance(e, AssertionError) and re.search(problem, str(e)) for e in leaves(failure.value))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What failed; what does not fail again when it is asked again comes as a group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def test_a_policy_that_is_asked_nothing_is_no_test() -> None:
    with pytest.raises(AssertionError, match="name in `found` what its pipeline finds"):
        check_policy("rules", [{"name": "never", "when": "true", "then": "proceed", "at": "message"}][:0])


def test_options_are_checked_as_those_of_the_configuration_are() -> None:
    with pytest.raises(ValueError, match="limit"):
        check_policy(Good, {"limit": "many"})


@pytest.mark.parametrize(
    "work",
    [
        lambda: sorted("policy"),
        lambda: b"a-b".decode().split("-"),
        lambda: datetime.datetime.fromtimestamp(1e9, datetime.UTC).isoformat(),
        lambda: random.Random(7).random(),
        lambda: time.strftime("%Y", (2025, 1, 1, 0, 0, 0, 0, 1, 0)),
    ],
)
def test_what_gives_the_same_every_time_is_pure(work: Any) -> None:
    work()
    assert watched(work)[1] == []


def test_every_name_that_has_no_policy_has_none() -> None:
    for name in WITHOUT_A_POLICY:
        with pytest.raises(LookupError):
            policy_class(name)
