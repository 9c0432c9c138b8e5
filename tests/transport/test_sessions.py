"""TLS sessions that later connections take up, and those that they must not."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

import tests.transport.peer
from gateway.ops import metrics
from gateway.sdk.testing import FakeDns
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.rule import OPPORTUNISTIC, REQUIRE
from gateway.transport.sessions import LIFETIME, MOST, Resumable, Sessions
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Outcome, Security
from tests.support.certificates import Issued, make_ca
from tests.transport.peer import Link, Peer, Script, delivery, peer, run, statuses

CA = make_ca()
HOST = "mx.example.net"
LEAF = CA.issue(HOST)


@pytest.fixture(autouse=True, params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds on both event loops."""
    monkeypatch.setattr(tests.transport.peer, "LOOP", request.param)


def taking(context: ssl.SSLContext, reused: list[bool]) -> Script:
    async def script(link: Link) -> None:
        await link.greet("STARTTLS")
        await link.start_tls(context)
        reused.append(link.writer.get_extra_info("ssl_object").session_reused)
        await link.hello()
        await link.take()
        await link.end()

    return script


def attempt(
    tmp_path: Path,
    *contexts: ssl.SSLContext,
    security: Security = Security.VERIFY,
    names: tuple[str, ...] = (),
    times: int = 2,
) -> tuple[list[Outcome], list[bool], Peer]:
    """Deliveries on connections of their own; whether each was resumed, as the server sees it."""
    ca, _ = CA.write(tmp_path, "ca")
    reused: list[bool] = []

    async def main() -> tuple[list[Outcome], Peer]:
        async with peer(*[taking(context, reused) for context in contexts]) as it:
            dns = FakeDns(
                a={HOST: ["127.0.0.1"]}, tlsa={f"_{it.port}._tcp.{HOST}": [LEAF.tlsa()]}, authentic=["example.net"]
            )
            destination = Destination(Kind.SMTP, HOST, it.port, security=security, tls_ca=str(ca), tls_names=names)
            options = SmtpOptions("gate.test", Timeouts(quit=1.0), messages_per_connection=1)
            t = SmtpTransport(destination, options, dns)
            outcomes = []
            for _ in range(times):
                outcomes += await t.deliver(delivery())
            await t.close()
        return outcomes, it

    outcomes, it = run(main())
    return outcomes, reused, it


@pytest.mark.parametrize(
    ("security", "names"),
    [
        (Security.OPPORTUNISTIC, ()),
        (Security.REQUIRE, ()),
        (Security.VERIFY, ()),
        (Security.VERIFY, (".example.net",)),
        (Security.DANE, ()),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_next_connection_takes_the_session_up_and_the_peer_is_known_as_before(
    tmp_path: Path, security: Security, names: tuple[str, ...], version: ssl.TLSVersion
):
    context = LEAF.server(tmp_path)
    context.maximum_version = version
    before = metrics.TLS_RESUMED.labels(security.value)._value.get()
    outcomes, reused, _ = attempt(tmp_path, context, security=security, names=names, times=3)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 3 and reused == [False, True, True]
    assert len({outcome.tls_peer for outcome in outcomes}) == 1
    assert metrics.TLS_RESUMED.labels(security.value)._value.get() == before + 2


def test_a_server_that_has_forgotten_it_shakes_hands_anew_and_is_checked_anew(tmp_path: Path):
    stranger: Issued = CA.issue("elsewhere.test")
    good, other = LEAF.server(tmp_path), stranger.server(tmp_path)
    outcomes, reused, it = attempt(tmp_path, good, LEAF.server(tmp_path))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2 and reused == [False, False]
    outcomes, _, it = attempt(tmp_path, good, other)
    assert statuses(outcomes) == ["delivered 2.0.0", "deferred 4.7.5"] and it.count("MAIL") == 1


def test_sessions_are_kept_by_rule_and_host_for_an_hour_and_not_in_any_number():
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    ticket, renewed = Resumable(object(), "a"), Resumable(object(), "b")  # type: ignore[arg-type]
    key = (REQUIRE, HOST, "192.0.2.1")
    sessions.keep(key, ticket, resumed=False)
    assert sessions.find(key) is ticket
    others = [(OPPORTUNISTIC, HOST, "192.0.2.1"), (REQUIRE, "b.test", "192.0.2.1"), (REQUIRE, HOST, "192.0.2.2")]
    assert all(sessions.find(other) is None for other in others)
    now[0] = LIFETIME - 1
    sessions.keep(key, renewed, resumed=True)
    assert sessions.find(key) is renewed
    now[0] = LIFETIME
    assert sessions.find(key) is None
    for number in range(MOST + 1):
        sessions.keep((REQUIRE, HOST, str(number)), ticket, resumed=False)
    assert sessions.find((REQUIRE, HOST, "0")) is None and sessions.forget((REQUIRE, HOST, "1"))
