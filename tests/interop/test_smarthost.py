"""Logging in at a real smarthost, Postfix with Dovecot's SASL, over real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.ops import metrics
from gateway.sdk.testing import FakeDns
from gateway.transport.options import Credentials, HopOptions, SmtpOptions
from gateway.transport.sasl import MechanismName
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Fault, Kind, Outcome, Security
from tests.support.process import new_directory, wait_until
from tests.support.servers import Certificate, make_certificate
from tests.support.smarthost import PASSWORD, USER, Smarthost, password_file
from tests.transport.peer import delivery, statuses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return make_certificate(new_directory("smarthost"))


@pytest.fixture(scope="module")
def smarthost(certificate: Certificate) -> Iterator[Smarthost]:
    it = Smarthost(certificate)
    yield it
    it.stop()


def deliver(
    smarthost: Smarthost, certificate: Certificate, auth: Credentials | None, *, times: int = 1
) -> list[Outcome]:
    """So many deliveries, on a connection each."""

    async def main() -> list[Outcome]:
        destination = Destination(
            Kind.SMTP,
            "localhost",
            smarthost.port,
            security=Security.VERIFY,
            tls_ca=str(certificate.certificate),
            hop=HopOptions(auth=auth),
        )
        t = SmtpTransport(destination, SmtpOptions("gate.test", messages_per_connection=1), FakeDns())
        outcomes = []
        for _ in range(times):
            outcomes += await t.deliver(delivery("anna@store.test"))
        await t.close()
        return outcomes

    return asyncio.run(main())


def logins(result: str) -> float:
    return metrics.AUTH_OUT.labels(result)._value.get()


@pytest.mark.parametrize("mechanism", MechanismName)
def test_each_mechanism_lets_us_in(
    smarthost: Smarthost, certificate: Certificate, tmp_path: Path, mechanism: MechanismName
):
    before = len(smarthost.postfix.mails("anna"))
    auth = Credentials(USER, password_file(tmp_path), mechanisms=(mechanism,))
    assert statuses(deliver(smarthost, certificate, auth)) == ["delivered 2.0.0"]
    smarthost.postfix.wait_logged(f"sasl_method={mechanism}, sasl_username={USER}")
    found = wait_until(lambda: smarthost.postfix.mails("anna")[before:], "it is in the mailbox")
    assert f"(Authenticated sender: {USER})".encode() in found[0]


def test_the_best_mechanism_that_it_offers_is_used(smarthost: Smarthost, certificate: Certificate, tmp_path: Path):
    before = smarthost.postfix.log.count("sasl_method=SCRAM-SHA-256")
    deliver(smarthost, certificate, Credentials(USER, password_file(tmp_path)))
    wait_until(lambda: smarthost.postfix.log.count("sasl_method=SCRAM-SHA-256") > before, "it was SCRAM")


@pytest.mark.parametrize("mechanism", MechanismName)
def test_a_wrong_password_defers_with_a_loud_log_and_a_metric(
    smarthost: Smarthost, certificate: Certificate, tmp_path: Path, mechanism: MechanismName
):
    before = logins("refused")
    auth = Credentials(USER, password_file(tmp_path, "n0t-this-one"), mechanisms=(mechanism,))
    with capture_logs() as logged:
        (outcome,) = deliver(smarthost, certificate, auth)
    assert statuses([outcome]) == ["deferred 4.7.0"] and outcome.fault is Fault.CONNECT
    assert "535 5.7.8" in outcome.reply.text and logins("refused") == before + 1
    assert [entry["log_level"] for entry in logged if entry["event"] == "auth.failed"] == ["error"]
    assert "n0t-this-one" not in repr(logged) + repr(outcome)


def test_without_a_login_it_takes_nothing(smarthost: Smarthost, certificate: Certificate):
    assert statuses(deliver(smarthost, certificate, None)) == ["failed 5.7.1"]


def test_postfix_takes_up_the_session_of_an_earlier_connection(
    smarthost: Smarthost, certificate: Certificate, tmp_path: Path
):
    before = metrics.TLS_RESUMED.labels("verify")._value.get()
    auth = Credentials(USER, password_file(tmp_path))
    outcomes = deliver(smarthost, certificate, auth, times=3)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 3 and {o.tls_peer for o in outcomes} == {"CA"}
    assert metrics.TLS_RESUMED.labels("verify")._value.get() == before + 2


# The last one: Postfix recovers from this in a minute.


def test_a_login_service_that_is_down_defers(smarthost: Smarthost, certificate: Certificate, tmp_path: Path):
    with smarthost.without_logins():
        (outcome,) = deliver(smarthost, certificate, Credentials(USER, password_file(tmp_path)))
    assert outcome.result == "deferred" and PASSWORD not in repr(outcome)
