"""`bounces`, `verp` and `srs` in the configuration file, and what the parts are told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.wiring import bounce_options, make_parts, return_paths, smtp_options
from gateway.config import Config
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Ret
from gateway.mail.srs import SrsError
from gateway.queue.settler import Double
from gateway.sdk.testing import ManualClock
from gateway.services.state import SqliteState
from gateway.smtp.domains import Domain, Domains
from tests.test_config import LISTEN, good, problems

SRS = "srs: {domain: srs.example.org, secrets_file: secrets"
NOW = 1_700_000_000.0
CLOCK = ManualClock(NOW)
OURS = Domains({"example.org": Domain("example.org"), ".example.edu": Domain(".example.edu")})
BEN, EVE = parse_mailbox("ben@example.net"), parse_mailbox("eve@example.com")


def secrets(folder: Path, text: str = "# the new one\nthe new secret of ours\n\nan old secret of ours\n") -> Path:
    path = folder / "secrets"
    path.write_text(text)
    path.chmod(0o600)
    return path


def parsed(folder: Path, text: str) -> Config:
    secrets(folder)
    return good(folder, LISTEN + "hostname: mx.example.org\n" + text)


def test_without_a_word_the_postmaster_of_our_own_domain_gets_what_nobody_else_can(tmp_path: Path) -> None:
    options = bounce_options(parsed(tmp_path, ""), OURS)
    assert (options.double, options.without_ret, options.address) == (Double.POSTMASTER, Ret.HEADERS, None)
    assert str(options.postmaster) == "postmaster@example.org"
    assert bounce_options(parsed(tmp_path, ""), Domains()).postmaster is None
    host = Domains({"example.org": Domain("example.org"), "mx.example.org": Domain("mx.example.org")})
    assert str(bounce_options(parsed(tmp_path, ""), host).postmaster) == "postmaster@mx.example.org"


def test_each_option_of_bounces_is_told(tmp_path: Path) -> None:
    text = "bounces: {to: never, address: Bounces@Bücher.example, returned: full, double: drop, postmaster: p@a.test}"
    config = parsed(tmp_path, text)
    options = bounce_options(config, OURS)
    assert str(options.address) == "Bounces@xn--bcher-kva.example" and str(options.postmaster) == "p@a.test"
    assert (options.double, options.without_ret) == (Double.DROP, Ret.FULL)
    assert not smtp_options(config).bounces


@pytest.mark.parametrize(("text", "bounces"), [("bounces: never", False), ("bounces: proven", True), ("", True)])
def test_the_short_form_says_who_gets_bounces(tmp_path: Path, text: str, bounces: bool) -> None:
    assert smtp_options(parsed(tmp_path, text)).bounces is bounces


def test_verp_is_for_addresses_and_whole_domains(tmp_path: Path) -> None:
    config = parsed(tmp_path, 'verp: {senders: [News@Example.org, "@Lists.example.org"], delimiters: "-="}')
    paths = return_paths(config, OURS, CLOCK)
    assert str(paths.sender("Q", parse_mailbox("news@example.org"), BEN)) == "news-ben=example.net@example.org"
    assert str(paths.sender("Q", parse_mailbox("x@lists.example.org"), BEN)) == "x-ben=example.net@lists.example.org"
    assert paths.sender("Q", EVE, BEN) == EVE


def test_srs_signs_with_the_first_secret_and_reads_with_all(tmp_path: Path) -> None:
    config = parsed(tmp_path, SRS + ", valid: 2d, hash_length: 4}")
    scheme = smtp_options(config).srs
    assert scheme is not None and scheme.secrets == (b"the new secret of ours", b"an old secret of ours")
    made = return_paths(config, OURS, CLOCK).sender("Q", BEN, EVE)
    assert made == scheme.rewrite(BEN, NOW)
    assert scheme.restore(scheme.rewrite(BEN, NOW - 2 * 86400), NOW) == BEN
    with pytest.raises(SrsError):
        scheme.restore(scheme.rewrite(BEN, NOW - 3 * 86400), NOW)


@pytest.mark.parametrize(
    "sender", ["anna@example.org", "a@sub.example.edu", "a@mx.example.org", "a@srs.example.org", "a@partner.test"]
)
def test_senders_of_ours_are_not_rewritten(tmp_path: Path, sender: str) -> None:
    paths = return_paths(parsed(tmp_path, SRS + ", keep: [partner.test]}"), OURS, CLOCK)
    ours = parse_mailbox(sender)
    assert paths.sender("Q", ours, EVE) == ours
    assert paths.sender("Q", BEN, ours) == BEN
    assert paths.sender("Q", BEN, EVE) != BEN


def test_a_reload_reads_the_secrets_anew(tmp_path: Path) -> None:
    path = secrets(tmp_path)
    config = good(tmp_path, LISTEN + SRS + "}\n")
    first = smtp_options(config).srs
    path.write_text("a secret of a later day\n")
    again = smtp_options(good(tmp_path, LISTEN + SRS + "}\n")).srs
    assert first is not None and again is not None and first.secrets != again.secrets
    parts = make_parts(config, SqliteState(tmp_path / "state", CLOCK), CLOCK)
    assert parts.paths.srs == first == parts.smtp.srs


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bounces: sometimes", "bounces: must be 'proven' or 'never'"),
        ("bounces: {address: nobody}", "bounces.address: expected an address such as postmaster@example.org"),
        ("bounces: {address: 7}", "bounces.address: expected an address"),
        ("bounces: {postmaster: büro@a.test}", "bounces.postmaster: not every mail host takes"),
        ("bounces: {postmaster: 'a@b.test\\n'}", "bounces.postmaster: expected an address"),
        ("verp: {senders: []}", "verp.senders: "),
        ("verp: {senders: [example.org]}", "verp.senders[0]: expected an address, or @ and a domain"),
        ('verp: {senders: ["@exa mple.org"]}', "verp.senders[0]: "),
        ('verp: {senders: [a@b.test], delimiters: "+"}', "verp.delimiters: "),
        ('verp: {senders: [a@b.test], delimiters: "@="}', "verp.delimiters: "),
        ("srs: {domain: srs.example.org}", "srs.secrets_file: "),
        ("srs: {domain: '[1.2.3.4]', secrets_file: secrets}", "srs.domain: "),
        (SRS + ", hash_length: 3}", "srs.hash_length: "),
        (SRS + ", hash_length: 28}", "srs.hash_length: "),
        (SRS + ", valid: 1h}", "srs.valid: "),
        (SRS + ", valid: 600d}", "srs.valid: "),
        (SRS.replace("secrets_file: secrets", "secrets_file: nothing") + "}", "srs.secrets_file: cannot read "),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(tmp_path: Path, text: str, problem: str) -> None:
    secrets(tmp_path)
    (found,) = problems(tmp_path, LISTEN + text + "\n")
    assert found.startswith(f"gatepost.yaml:2: {problem}"), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no secret"),
        ("# nothing\n\n", "holds no secret"),
        ("a secret of some length\nshort!!\n", "line 2: a secret has 16 characters at least"),
        ("a secret of some length\n" * 21, "more than 20 secrets"),
        ("x" * 70_000, "65536 octets"),
    ],
)
def test_a_file_of_secrets_that_protects_nobody_is_refused_and_never_shown(
    tmp_path: Path, text: str, problem: str
) -> None:
    secrets(tmp_path, text)
    (found,) = problems(tmp_path, LISTEN + SRS + "}\n")
    assert "srs.secrets_file: " in found and problem in found
    assert "short!!" not in found and "a secret of some length" not in found


def test_a_file_of_secrets_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    secrets(tmp_path).chmod(0o644)
    (found,) = problems(tmp_path, LISTEN + SRS + "}\n")
    assert "everybody can read or write it: chmod o= " in found
