"""Listeners that ask their clients for a certificate, with real handshakes by Python's own TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import ssl
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.mail.session import ClientCertificate
from gateway.smtp.certificate import NAME_LENGTH, NAMES, UNREADABLE, inspect, read_authorities
from gateway.smtp.listener import tls_context
from tests.smtp.door import MESSAGE, Client, Door, door, run, trusting_context
from tests.smtp.test_server import until
from tests.support.certificates import Issued, make_ca

BOTH = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
WAYS = pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])


class House(NamedTuple):
    """Our CA for clients, our own certificate, and where files may stand."""

    ca: Issued
    certificate: Path
    key: Path
    authorities: Path
    directory: Path

    def context(self, *, required: bool = False) -> ssl.SSLContext:
        return tls_context(str(self.certificate), str(self.key), str(self.authorities), required=required)

    def client(self, shown: Issued | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """TLS of a client that shows this certificate to everybody who asks."""
        context = trusting_context()
        context.minimum_version = context.maximum_version = version
        if shown is not None:
            context.load_cert_chain(*shown.write(self.directory, f"{shown.certificate.serial_number:x}"))
        return context


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    directory = tmp_path_factory.mktemp("certificates")
    ca = make_ca("Partners CA")
    certificate, key = make_ca().issue("mx.example.org").write(directory, "own")
    authorities = directory / "partners.pem"
    authorities.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    return House(ca, certificate, key, authorities, directory)


async def come_in(opened: Door, context: ssl.SSLContext, *, implicit: bool) -> Client:
    """A client in TLS that has said EHLO."""
    if implicit:
        client = await opened.connect_tls(context=context)
        await client.hello()
    else:
        client = await opened.session()
        await client.starttls(context)
        await client.expect("EHLO client.test", "250")
    return client


def shown_in(opened: Door) -> ClientCertificate | None:
    (server,) = opened.servers()
    shown: ClientCertificate | None = server.session.tls.client
    return shown


def told(house: House, shown: Issued | None, version: ssl.TLSVersion, *, implicit: bool, required: bool = False):
    """What is known of a client that came in, and delivered a message over it."""

    async def test() -> ClientCertificate | None:
        async with door(tls=house.context(required=required), implicit=implicit) as opened:
            client = await come_in(opened, house.client(shown, version), implicit=implicit)
            assert (await client.message()).startswith("250 ")
            return shown_in(opened)

    return run(test)


def colons(der: bytes) -> str:
    return hashlib.sha256(der).digest().hex(":").upper()


@WAYS
@BOTH
def test_a_certificate_by_the_listeners_ca_is_told_with_its_names(house: House, version, implicit):
    shown = house.ca.issue("mx.Partner.example", x509.RFC822Name("post@partner.example"), subject="partner")
    client = told(house, shown, version, implicit=implicit, required=True)
    assert client == ClientCertificate(
        True,
        colons(shown.der),
        "",
        "partner",
        ("DNS:mx.partner.example", "email:post@partner.example"),
        "Partners CA",
        f"{shown.certificate.serial_number:X}",
    )


@WAYS
@BOTH
def test_who_shows_none_comes_in_all_the_same(house: House, version, implicit):
    assert told(house, None, version, implicit=implicit) is None


@BOTH
@pytest.mark.parametrize("kind", ["expired", "of another CA", "by itself", "not yet"])
def test_mail_is_not_lost_for_a_certificate_that_nobody_vouches_for(house: House, version, kind):
    shown = {
        "expired": lambda: house.ca.issue("mx.partner.example", days=(-9, -1)),
        "not yet": lambda: house.ca.issue("mx.partner.example", days=(1, 9)),
        "of another CA": lambda: make_ca("Partners CA").issue("mx.partner.example"),
        "by itself": lambda: make_ca("mx.partner.example"),
    }[kind]()
    client = told(house, shown, version, implicit=False)
    assert client is not None and client.problem
    # Whatever name stands in it, nobody is told: it may be anybody's.
    assert client == ClientCertificate(False, colons(shown.der), client.problem)
    assert {"expired": "cert has expired", "not yet": "cert not yet valid"}.get(kind, client.problem) == client.problem


@WAYS
@BOTH
@pytest.mark.parametrize("kind", ["none", "expired", "of another CA"])
def test_where_one_is_required_nobody_comes_in_without(house: House, version, implicit, kind):
    shown = {
        "none": lambda: None,
        "expired": lambda: house.ca.issue("mx.partner.example", days=(-9, -1)),
        "of another CA": lambda: make_ca("Partners CA").issue("mx.partner.example"),
    }[kind]()

    async def test() -> None:
        async with door(tls=house.context(required=True), implicit=implicit) as opened:
            with capture_logs() as logs:
                # With TLS 1.3 the client takes the handshake for done before its certificate has been looked at.
                with pytest.raises((OSError, AssertionError)):
                    client = await come_in(opened, house.client(shown, version), implicit=implicit)
                    await client.message()
                await until(lambda: not opened.servers())
            assert not await opened.stored()
            (failed,) = [entry for entry in logs if entry["event"] == "session.tls_failed"]
            reason = {"none": "peer did not return a certificate", "expired": "cert has expired"}
            assert failed["reason"] == reason.get(kind, "self signed cert in chain")
            # And the door is open to others.
            client = await come_in(
                opened, house.client(house.ca.issue("mx.partner.example"), version), implicit=implicit
            )
            assert (await client.message()).startswith("250 ")

    run(test)


def test_what_was_shown_is_logged_recorded_and_written_into_the_message(house: House):
    shown = house.ca.issue("mx.partner.example", subject='Partner "(evil) \\ AG')

    async def test() -> None:
        async with door(tls=house.context()) as opened:
            with capture_logs() as logs:
                client = await come_in(opened, house.client(shown), implicit=False)
                id = (await client.message()).split()[-1]
            (logged,) = [entry for entry in logs if entry["event"] == "session.certificate"]
            assert (logged["verified"], logged["subject"]) == (True, 'Partner "(evil) \\ AG')
            assert logged["fingerprint"] == colons(shown.der)
            (content,) = await opened.contents()
            assert b'\r\n\t(Client CN "Partner ??evil? ? AG", Issuer "Partners CA" (verified OK))\r\n' in content
            record = await opened.record(id)
            assert record["tls"]["client"]["names"] == ["DNS:mx.partner.example"]
            # Who came in by a certificate of ours may send to our domains, and nowhere else.
            await client.expect("MAIL FROM:<a@partner.example>", "250")
            await client.expect("RCPT TO:<b@elsewhere.example>", "550")

    run(test)


def test_a_certificate_that_is_not_verified_leaves_no_name_in_message_or_record(house: House):
    shown = make_ca().issue("mx.partner.example", subject="Somebody Else")

    async def test() -> None:
        async with door(tls=house.context()) as opened:
            client = await come_in(opened, house.client(shown), implicit=False)
            id = (await client.message()).split()[-1]
            (content,) = await opened.contents()
            assert b"\r\n\t(Client certificate not verified)\r\n" in content
            found = await opened.record(id)
            assert found["tls"]["client"] == {
                "verified": False,
                "fingerprint": colons(shown.der),
                "problem": "self signed cert in chain",
            }
            assert b"Somebody" not in content and "Somebody" not in str(found)

    run(test)


def test_another_ca_holds_for_sessions_that_begin_after_a_reload(house: House):
    later = make_ca("Later CA")

    async def test() -> None:
        async with door(tls=house.context()) as opened:
            old, new = house.client(house.ca.issue("old.example")), house.client(later.issue("new.example"))
            before = await come_in(opened, old, implicit=False)
            (first,) = opened.servers()
            (options,) = opened.front._listeners
            authorities = house.directory / "later.pem"
            authorities.write_bytes(later.certificate.public_bytes(Encoding.PEM))
            context = tls_context(str(house.certificate), str(house.key), str(authorities))
            opened.front.renew(opened.front.desk, [replace(options, tls=context)])
            verified = []
            for one in (old, new):
                seen = set(opened.servers())
                await come_in(opened, one, implicit=False)
                (server,) = opened.servers() - seen
                verified.append(server.session.tls.client.verified)
            assert verified == [False, True]
            assert first.session.tls.client.verified
            assert (await before.message()).startswith("250 ")

    run(test)


@BOTH
def test_a_large_message_arrives_and_a_client_that_is_gone_is_let_go(house: House, version):
    content = MESSAGE + b"0123456789abcdef\r\n" * 200_000

    async def test() -> None:
        async with door(tls=house.context()) as opened:
            client = await come_in(opened, house.client(house.ca.issue("mx.partner.example"), version), implicit=False)
            assert (await client.message(content)).startswith("250 ")
            assert await opened.bodies() == [content]
            client.send(b"NOOP\r\n" * 90)
            for _ in range(90):
                assert (await client.reply()).startswith("250 ")
            await client.expect("QUIT", "221")
            assert await client.ended()
            rude = await come_in(opened, house.client(None, version), implicit=False)
            rude.writer.transport.abort()
            await until(lambda: not opened.servers())

    run(test)


def test_the_event_loop_of_python_itself_does_as_well(house: House):
    async def test() -> None:
        async with door(tls=house.context(required=True)) as opened:
            client = await come_in(opened, house.client(house.ca.issue("mx.partner.example")), implicit=False)
            assert (await client.message(MESSAGE + b"0123456789abcdef\r\n" * 20_000)).startswith("250 ")
            shown = shown_in(opened)
            assert shown and shown.verified
            await client.expect("QUIT", "221")
            assert await client.ended()

    asyncio.run(test())


# Handshakes without a network


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    session: ssl.SSLSession | None = None,
    bios: tuple[ssl.MemoryBIO, ssl.MemoryBIO] | None = None,
):
    """Both ends of a connection on which one line was sent each way."""
    up, down = bios or (ssl.MemoryBIO(), ssl.MemoryBIO())
    here = server.wrap_bio(up, down, server_side=True)
    there = client.wrap_bio(down, up, session=session)
    left = [there, here]
    while left:
        for one in list(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.do_handshake()
                left.remove(one)
    there.write(b"up")
    assert here.read(10) == b"up"
    here.write(b"down")
    assert there.read(10) == b"down"
    return here, there


@BOTH
def test_no_session_is_taken_up_again_so_that_every_certificate_is_looked_at_anew(house: House, version):
    context, client = house.context(), house.client(house.ca.issue("mx.partner.example"), version)
    _, there = shake(context, client)
    here, again = shake(context, client, there.session)
    assert not again.session_reused
    assert here.client.verified


def test_the_asking_listener_offers_the_same_tls_as_the_others(house: House):
    plain, asking = tls_context(str(house.certificate), str(house.key)), house.context()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        one, other = (shake(context, house.client(None, version)) for context in (plain, asking))
        assert one[0].version() == other[0].version()
        assert one[0].cipher() == other[0].cipher()
    old = house.client(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake(asking, old)


def test_a_ca_that_another_one_signed_is_trusted_for_itself(house: House):
    middle = make_ca("Root").issue(ca=True, subject="Middle CA")
    authorities = house.directory / "middle.pem"
    authorities.write_bytes(middle.certificate.public_bytes(Encoding.PEM))
    context = tls_context(str(house.certificate), str(house.key), str(authorities), required=True)
    leaf = middle.issue("mx.partner.example")
    for chain in (leaf.chain, ()):
        here, _ = shake(context, house.client(Issued(leaf.certificate, leaf.key, chain)))
        assert here.client.verified and here.client.issuer == "Middle CA"


def test_a_certificate_for_servers_only_proves_no_client(house: House):
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    here, _ = shake(house.context(), house.client(certify(house.ca, "partner", usage)))
    assert here.client.problem == "invalid purpose"


def test_a_certificate_that_only_says_so_is_not_by_our_ca_and_troubles_no_other_session(house: House):
    forger = Issued(house.ca.certificate, make_ca().key)
    context = house.context()
    here, _ = shake(context, house.client(certify(forger, "partner")))
    other, _ = shake(context, house.client(house.ca.issue("mx.partner.example")))
    assert here.client.problem == "cert signature failure" and here.client.subject == ""
    assert other.client.verified
    for one in (here, other):
        with pytest.raises(ssl.SSLWantReadError):
            one.read(1)
    with pytest.raises(ssl.SSLError, match="cert signature failure"):
        shake(house.context(required=True), house.client(certify(forger, "partner")))
    with pytest.raises(ssl.SSLWantReadError):
        other.read(1)


def test_a_weak_key_is_no_reason_to_break_off(house: House):
    key = rsa.generate_private_key(65537, 1024)
    client = house.client(None, ssl.TLSVersion.TLSv1_2)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.load_cert_chain(*certify(house.ca, "partner", key=key).write(house.directory, "weak"))
    here, _ = shake(house.context(), client)
    assert here.client.problem == "ee key too small"


def certify(ca: Issued, subject: str | list[str], *extensions: x509.ExtensionType, key: Any = None) -> Issued:
    """A certificate that is checked by nobody when it is made."""
    made = ca.issue("mx.partner.example")
    key = key or made.key
    texts = [subject] if isinstance(subject, str) else subject
    names = [x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False) for text in texts]
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Issued(builder.sign(ca.key, hashes.SHA256()), key, made.chain)


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize(
    "subject",
    [
        "a\r\nBcc: x@y.example",
        "a\rb",
        "a\x00.partner.example",
        "\x1b[2J",
        "a\u202eb",
        "x" * (NAME_LENGTH + 1),
        ["a", "b"],
    ],
)
def test_a_name_that_may_not_stand_on_a_line_of_its_own_is_not_told(house: House, subject):
    here, _ = shake(house.context(), house.client(certify(house.ca, subject)))
    assert here.client.verified and here.client.subject == ""
    assert here.client.fingerprint


def test_alternative_names_are_bounded_in_number_and_told_by_their_kind(house: House):
    kinds = [
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.UniformResourceIdentifier("spiffe://partner.example/mx"),
        x509.RFC822Name("post@partner.example"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.DNSName("x" * 300),
        x509.DNSName("MX.Partner.example"),
    ]
    many = [x509.DNSName(f"{number}.partner.example") for number in range(2 * NAMES)]
    found = inspect(certify(house.ca, "partner", x509.SubjectAlternativeName([*kinds, *many])).der, "")
    assert found.names[:4] == (
        "IP:2001:db8::1",
        "URI:spiffe://partner.example/mx",
        "email:post@partner.example",
        "DNS:mx.partner.example",
    )
    assert len(found.names) == NAMES


@pytest.mark.filterwarnings("ignore:Attribute's length")
@settings(max_examples=40)
@given(st.text(max_size=300))
def test_whatever_the_subject_is_what_is_told_is_printable(subject: str):
    with contextlib.suppress(UnicodeEncodeError):
        found = inspect(certify(FUZZED, subject).der, "")
        assert found.subject in ("", subject)
        assert found.subject.isprintable() and len(found.subject) <= NAME_LENGTH


FUZZED = make_ca("Fuzzed CA")
WHOLE = FUZZED.issue("mx.partner.example").der


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=6))
def test_octets_that_are_no_certificate_are_told_by_their_fingerprint_only(at: int, octets: bytes):
    der = WHOLE[:at] + octets + WHOLE[at + len(octets) :]
    found = inspect(der, "")
    assert found.fingerprint == colons(der)
    assert found.verified or found == ClientCertificate(False, colons(der), UNREADABLE)
    assert all(text.isprintable() for text in (found.subject, found.issuer, found.serial, *found.names))


@settings(max_examples=60)
@given(st.binary(max_size=300), st.booleans())
def test_octets_that_are_no_tls_end_in_errors_that_event_loops_know(house: House, octets: bytes, again: bool):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = house.context().wrap_bio(incoming, outgoing, server_side=True)
    if again:
        # The beginning of a handshake, and then something else.
        there = house.client(None).wrap_bio(ssl.MemoryBIO(), incoming)
        with pytest.raises(ssl.SSLWantReadError):
            there.do_handshake()
    incoming.write(octets)
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            here.do_handshake()
    incoming.write_eof()
    with pytest.raises(ssl.SSLError):
        here.do_handshake()


def test_a_record_that_was_changed_on_its_way_ends_the_session(house: House):
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here, there = shake(house.context(), house.client(None), bios=(up, down))
    there.write(b"MAIL FROM:<a@sender.test>")
    octets = bytearray(up.read())
    octets[-1] ^= 1
    up.write(octets)
    with pytest.raises(ssl.SSLError, match="bad record mac"):
        here.read(100)


def test_files_that_are_no_good_are_told_as_errors_of_python(house: House):
    encrypted = house.directory / "encrypted.key"
    encrypted.write_bytes(
        house.ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    for certificate, key in (
        (house.certificate, house.certificate),
        (house.certificate, encrypted),
        (house.key, house.key),
        (house.certificate, house.ca.issue("other").write(house.directory, "other")[1]),
        (house.directory / "nothing", house.key),
    ):
        with pytest.raises(OSError):
            tls_context(str(certificate), str(key), str(house.authorities))


def test_a_file_of_cas_is_read_whole_or_not_at_all(house: House):
    path = house.directory / "read.pem"
    whole = house.authorities.read_bytes()
    path.write_bytes(b"# our partners\n" + whole + make_ca().certificate.public_bytes(Encoding.PEM))
    assert len(read_authorities(str(path))) == 2
    for octets in (
        b"",
        b"nothing",
        whole[:-60],
        whole.replace(b"MII", b"MIX", 1),
        whole * 501,
        b"#" * (1 << 20) + whole,
    ):
        path.write_bytes(octets)
        with pytest.raises(ValueError, match=r"certificate|KiB"):
            read_authorities(str(path))
