"""The tls-required policy: who must use TLS, and which version will do."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, Tls
from gateway.sdk.testing import Bench, make_recipient, make_session, make_transaction
from policies.tls_required import TlsRequired, TlsRequiredOptions
from tests.policies.whole import send


def judge(
    used: str = "", *, client="192.0.2.1", sender="a@partner.test", to="anna@example.org", trusted=False, **options
):
    tls = Tls(used, "cipher") if used else None
    session = make_session(client, tls=tls, trusted=trusted)
    return Bench().judge(
        TlsRequired,
        options or {"everybody": True},
        transaction=make_transaction(session, sender=sender),
        recipient=make_recipient(to),
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"everybody": True}, "no TLS, required of everybody"),
        ({"senders": ["Partner.test"]}, "no TLS, required of senders in partner.test"),
        ({"networks": ["192.0.2.0/24"]}, "no TLS, required of this network"),
        ({"recipient_domains": ["example.org"]}, "no TLS, required for recipients in example.org"),
        ({"recipients": ["Anna@example.ORG"]}, "no TLS, required for anna@example.org"),
    ],
)
def test_mail_in_the_clear_is_refused_where_tls_is_required(options, why):
    verdict = judge(**options)
    assert str(verdict.reply) == "530 5.7.0 a secure connection is required"
    assert verdict.reason == why
    assert judge("TLSv1.2", **options) == judge("TLSv1.3", **options) == PROCEED


@pytest.mark.parametrize(
    "options",
    [
        {"senders": ["other.test"]},
        {"networks": ["198.51.100.0/24", "2001:db8::/32"]},
        {"recipient_domains": ["example.com"]},
        {"recipients": ["ben@example.org"]},
    ],
)
def test_others_may_send_in_the_clear(options):
    assert judge(**options) == PROCEED


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1.1", "SSLv3", "odd"])
def test_old_versions_are_refused_with_550_since_starttls_would_not_help(version):
    verdict = judge(version)
    assert str(verdict.reply).startswith("550 5.7.0") and verdict.reason.startswith(f"TLS is {version},")


def test_the_version_that_will_do_can_be_raised():
    assert judge("TLSv1.2", everybody=True, version="TLSv1.3").decisive
    assert judge("TLSv1.3", everybody=True, version="TLSv1.3") == PROCEED


def test_clients_that_may_learn_are_deferred():
    assert str(judge(everybody=True, action="defer").reply) == "450 4.7.0 a secure connection is required"


@pytest.mark.parametrize("to", ["postmaster", "Postmaster@example.org", "tlsrpt@example.org"])
def test_everybody_may_write_about_trouble_with_tls(to):
    assert judge(to=to) == PROCEED
    assert judge(to=to, everybody=True, exempt=[]).decisive


def test_our_own_machines_pass_unless_their_network_is_named():
    assert judge(trusted=True) == PROCEED
    assert judge(trusted=True, networks=["192.0.2.0/24"]).decisive


def test_the_null_sender_has_no_domain():
    assert judge(sender="", senders=["partner.test"]) == PROCEED
    assert judge(sender="").decisive


@pytest.mark.parametrize(
    "options",
    [{}, {"everybody": False}, {"senders": ["a b"]}, {"recipients": ["x"]}, {"everybody": True, "version": "1"}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        TlsRequiredOptions.model_validate(options)


def test_in_a_pipeline_the_session_says_what_was_negotiated():
    entries = [{"tls-required": {"senders": ["partner.test"]}}]
    decided, _ = send(entries, b"\r\n", sender="ben@partner.test")
    assert (decided.verdict.reply.code, decided.entry) == (530, "tls-required")
    assert not send(entries, b"\r\n")[0].verdict.decisive
    safe = make_session(tls=Tls("TLSv1.3", "cipher"))
    assert not send(entries, b"\r\n", sender="ben@partner.test", session=safe)[0].verdict.decisive
