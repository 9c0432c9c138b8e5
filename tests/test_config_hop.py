"""How servers are spoken to, in the configuration file: what is taken, and that every problem names file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.transport.options import Credentials, EightBit, HopOptions, Proxy
from gateway.transport.sasl import MechanismName
from tests.test_config import LISTEN, good, problems


def test_each_option_reaches_its_destination(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sesame\n")
    config = good(
        tmp_path,
        LISTEN
        + """
domains:
  a.example:
    next_hop: "lmtp:127.0.0.1:24"
    smtp: {eight_bit: send, chunking: false, xclient: true, xforward: true}
  b.example:
    next_hop: "smtp:127.0.0.1:25"
    tls: require
    smtp: {proxy: v2, auth: {user: gate, password_file: secret, mechanisms: [PLAIN]}}
routes:
  default: {next_hop: mx, smtp: {eight_bit: bounce}}
""",
    )
    told = HopOptions(EightBit.SEND, chunking=False, xclient=True, xforward=True)
    assert config.domains["a.example"].destination.hop == told
    auth = Credentials("gate", str(tmp_path / "secret"), mechanisms=(MechanismName.PLAIN,))
    assert config.domains["b.example"].destination.hop == HopOptions(proxy=Proxy.V2, auth=auth)
    assert config.routes.default.destination.hop == HopOptions(EightBit.BOUNCE)


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("next_hop: discard, smtp: {chunking: false}", "smtp: means nothing for discard"),
        ("next_hop: mx, smtp: {xclient: true}", "smtp.xclient: is for a next hop that trusts us"),
        ("next_hop: mx, smtp: {proxy: v1}", "smtp.proxy: is for a next hop that trusts us"),
        ("next_hop: 'lmtp:unix:/s', smtp: {proxy: v1}", "smtp.proxy: a unix socket has no addresses"),
        ("next_hop: 'smtp:x:25', smtp: {proxy: v1, xclient: true}", "smtp.proxy: says the same as xclient"),
        (
            "next_hop: mx, tls: require, smtp: {auth: {user: a, password_env: P}}",
            "smtp.auth: is for a next hop of ours",
        ),
        ("next_hop: 'smtp:x:25', smtp: {auth: {user: a, password_env: P}}", "smtp.auth: needs tls: verify"),
        ("next_hop: 'smtp:x:25', tls: dane, smtp: {auth: {user: a, password_env: P}}", "smtp.auth: needs tls: verify"),
        ("next_hop: 'smtp:x:25', tls: verify, smtp: {auth: {user: a}}", "smtp.auth.password_file: give one of"),
        ("next_hop: 'smtp:x:25', tls: verify, smtp: {auth: {user: '', password_env: P}}", "smtp.auth.user: is empty"),
        ("next_hop: 'smtp:x:25', tls: verify, smtp: {auth: {user: a, password_env: 'A=B'}}", "smtp.auth.password_env"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(tmp_path: Path, domain: str, told: str) -> None:
    found = problems(tmp_path, LISTEN + f"domains: {{a.example: {{{domain}}}}}\n")
    assert any(f"domains.a.example.{told}" in problem for problem in found), found


def test_a_login_without_tls_must_be_asked_for(tmp_path: Path) -> None:
    domain = "next_hop: 'smtp:127.0.0.1:25', smtp: {auth: {user: a, password_env: P, without_tls: true}}"
    config = good(tmp_path, LISTEN + f"domains: {{a.example: {{{domain}}}}}\n")
    auth = config.domains["a.example"].destination.hop.auth
    assert auth is not None and auth.without_tls
