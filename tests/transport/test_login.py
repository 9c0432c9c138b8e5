"""Logging in at next hops that want it, refuse it, or are after the password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.transport.options import Credentials, HopOptions
from gateway.transport.sasl import MechanismName
from gateway.transport.transport import Fault, Outcome, Result, Security
from tests.support.process import new_directory
from tests.support.servers import Certificate, make_certificate
from tests.transport.peer import Link, Peer, Script, delivery, peer, run, statuses, transport

SECRET = "sw0rdfish-in-the-pond"
SECRETS = [
    SECRET,
    base64.b64encode(SECRET.encode()).decode()[:20],
    base64.b64encode(b"\0user\0" + SECRET.encode()).decode(),
]
USER = base64.b64encode(b"user").decode()


@pytest.fixture(scope="module")
def certificate() -> Iterator[Certificate]:
    yield make_certificate(new_directory("login"))


@pytest.fixture
def server(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\nnot this\n")
    return path


def attempt(
    password: Path | str,
    *scripts: Script,
    without_tls: bool = True,
    security: Security = Security.NONE,
    mechanisms: tuple[MechanismName, ...] = tuple(MechanismName),
    times: int = 1,
) -> tuple[list[Outcome], Peer, str]:
    """Outcomes, the peer, and all that was logged."""
    where = {"password_file": str(password)} if isinstance(password, Path) else {"password_env": password}
    auth = Credentials("user", **where, mechanisms=mechanisms, without_tls=without_tls)

    async def main() -> tuple[list[Outcome], Peer]:
        async with peer(*scripts) as it:
            t = transport(it.port, security=security, hop=HopOptions(auth=auth))
            outcomes = []
            for _ in range(times):
                outcomes += await t.deliver(delivery())
            await t.close()
        return outcomes, it

    with capture_logs() as logged:
        outcomes, it = run(main())
    told = repr(logged) + repr(outcomes)
    assert not any(secret in told for secret in SECRETS)
    return outcomes, it, told


def letting_in(*dialogue: tuple[str, str], offer: str = "AUTH PLAIN LOGIN CRAM-MD5", then: bool = True) -> Script:
    """What is heard, and what is said to it, after EHLO; then mail is taken."""

    async def script(link: Link) -> None:
        await link.greet("PIPELINING", offer)
        for heard, said in dialogue:
            (line,) = await link.hear(heard)
            assert line == heard
            await link.say(said)
        while then:
            await link.take()
        await link.end()

    return script


PLAIN = "AUTH PLAIN " + base64.b64encode(b"\0user\0" + SECRET.encode()).decode()
ONLY_PLAIN = (MechanismName.PLAIN,)


def test_plain_goes_in_one_command_once_per_connection(password: Path):
    outcomes, it, _ = attempt(password, letting_in((PLAIN, "235 2.7.0 in")), mechanisms=ONLY_PLAIN, times=2)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2 and it.connections == 1


def test_the_password_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GATE_TEST_PASSWORD", SECRET)
    outcomes, _, _ = attempt("GATE_TEST_PASSWORD", letting_in((PLAIN, "235 in")), mechanisms=ONLY_PLAIN)
    assert statuses(outcomes) == ["delivered 2.0.0"]


def test_login_is_asked_for_name_and_password(password: Path):
    script = letting_in(
        ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
        (USER, "334 UGFzc3dvcmQ6"),
        (base64.b64encode(SECRET.encode()).decode(), "235 in"),
    )
    outcomes, _, _ = attempt(password, script, mechanisms=(MechanismName.LOGIN,))
    assert statuses(outcomes) == ["delivered 2.0.0"]


def test_cram_md5_answers_the_challenge(password: Path):
    digest = hmac.new(SECRET.encode(), b"<1@peer.test>", hashlib.md5).hexdigest()
    response = base64.b64encode(f"user {digest}".encode()).decode()
    challenge = base64.b64encode(b"<1@peer.test>").decode()
    outcomes, _, _ = attempt(password, letting_in(("AUTH CRAM-MD5", f"334 {challenge}"), (response, "235 in")))
    assert statuses(outcomes) == ["delivered 2.0.0"]


def test_a_long_password_waits_until_it_is_asked_for(tmp_path: Path):
    (tmp_path / "password").write_text("x" * 600)
    response = base64.b64encode(b"\0user\0" + b"x" * 600).decode()
    outcomes, _, _ = attempt(
        tmp_path / "password", letting_in(("AUTH PLAIN", "334 "), (response, "235 in")), mechanisms=ONLY_PLAIN
    )
    assert statuses(outcomes) == ["delivered 2.0.0"]


def test_with_tls_the_login_comes_after_the_handshake(password: Path, server: ssl.SSLContext):
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS", "AUTH PLAIN")
        await link.start_tls(server)
        await link.hello("PIPELINING", "AUTH PLAIN")
        await link.hear("AUTH PLAIN")
        await link.say("235 in")
        await link.take()
        await link.end()

    outcomes, it, _ = attempt(password, script, without_tls=False, security=Security.REQUIRE)
    assert statuses(outcomes) == ["delivered 2.0.0"] and it.heard[2].startswith("EHLO") and outcomes[0].tls


@pytest.mark.parametrize("security", [Security.NONE, Security.OPPORTUNISTIC, Security.REQUIRE])
def test_without_tls_the_password_stays_here(password: Path, security: Security):
    outcomes, it, _ = attempt(password, letting_in(), without_tls=False, security=security)
    assert outcomes[0].result is Result.DEFERRED
    assert it.count("AUTH") == 0 and it.count("MAIL") == 0


def test_what_is_injected_before_the_handshake_logs_nobody_in(password: Path, server: ssl.SSLContext):
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.hear("STARTTLS")
        await link.say("220 go ahead", "250-peer.test", "250 AUTH PLAIN", "235 in")
        await link.writer.start_tls(server)
        await link.hello("PIPELINING", "AUTH PLAIN")
        await link.hear("AUTH PLAIN")
        await link.say("535 5.7.8 no")
        await link.end()

    outcomes, it, _ = attempt(password, script, without_tls=False, security=Security.REQUIRE)
    assert statuses(outcomes) == ["deferred 4.7.0"] and it.count("MAIL") == 0


@pytest.mark.parametrize(
    ("replies", "result", "fault"),
    [
        (["535 5.7.8 bad password"], "refused", Fault.CONNECT),
        (["534 5.7.9 too weak"], "refused", Fault.CONNECT),
        (["500 5.5.2 what?"], "refused", Fault.CONNECT),
        (["454 4.7.0 directory is down"], "later", Fault.CONNECT),
        (["334 "], "impossible", Fault.CONNECT),
        (["334 !!"], "impossible", Fault.CONNECT),
        ([f"535 5.7.8 {SECRET} is wrong"], "refused", Fault.CONNECT),
    ],
)
def test_who_is_not_let_in_waits_and_is_loud(password: Path, replies: list[str], result: str, fault: Fault):
    outcomes, it, told = attempt(password, letting_in((PLAIN, replies[0]), then=False), mechanisms=ONLY_PLAIN)
    assert statuses(outcomes) == ["deferred 4.7.0"] and outcomes[0].fault is fault
    assert f"'result': '{result}'" in told and "auth.failed" in told
    assert ("'log_level': 'warning'" in told) is (result == "later")
    assert it.count("MAIL") == 0 and it.count("AUTH") == 1


@pytest.mark.parametrize("reply", ["421 4.3.2 bye", "999 what", "235-", ""])
def test_an_end_or_nonsense_in_the_middle_is_a_deferral(password: Path, reply: str):
    async def script(link: Link) -> None:
        await link.greet("AUTH PLAIN")
        await link.hear("AUTH PLAIN")
        if reply:
            await link.say(reply)
        link.drop()

    outcomes, it, _ = attempt(password, script, mechanisms=ONLY_PLAIN)
    assert outcomes[0].result is Result.DEFERRED and it.count("MAIL") == 0


def test_challenges_without_end_are_left(password: Path):
    async def script(link: Link) -> None:
        await link.greet("AUTH LOGIN")
        await link.hear("AUTH LOGIN")
        for _ in range(50):
            await link.say("334 bW9yZQ==")
            await link.reader.readline()
        raise AssertionError("it answers for ever")

    outcomes, _, told = attempt(password, script, mechanisms=(MechanismName.LOGIN,))
    assert statuses(outcomes) == ["deferred 4.7.0"] and "more than name and password" in told


def test_a_server_that_only_says_that_it_knows_the_password_is_not_believed(password: Path):
    outcomes, it, told = attempt(password, _content_at_once)
    assert statuses(outcomes) == ["deferred 4.7.0"] and it.count("MAIL") == 0 and "has not proved" in told


async def _content_at_once(link: Link) -> None:
    await link.greet("AUTH SCRAM-SHA-256")
    await link.hear("AUTH SCRAM-SHA-256")
    await link.say("235 2.7.0 in")
    await link.end()


def test_a_server_without_a_mechanism_of_ours_gets_no_mail(password: Path):
    outcomes, it, _ = attempt(password, letting_in(offer="AUTH GSSAPI", then=False))
    assert statuses(outcomes) == ["deferred 4.7.0"] and it.count("AUTH") == 0


@pytest.mark.parametrize("octets", [None, b"", b"\n", b"x" * 2000, b"\xff", b"\x07"])
def test_a_password_that_cannot_be_read_defers_before_anything_is_said(tmp_path: Path, octets: bytes | None):
    if octets is not None:
        (tmp_path / "password").write_bytes(octets)
    outcomes, it, told = attempt(tmp_path / "password", letting_in(then=False))
    assert statuses(outcomes) == ["deferred 4.7.0"] and outcomes[0].fault is Fault.OURS
    assert it.connections == 0 and "'result': 'impossible'" in told
