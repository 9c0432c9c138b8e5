"""Real clients that show their certificate to whoever asks."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.smtp.listener import tls_context
from tests.smtp.door import Door, door, run
from tests.support.certificates import Issued, make_ca
from tests.support.postfix import Postfix
from tests.support.process import binary, new_directory

pytestmark = pytest.mark.slow

CA = make_ca("Partners CA")


def sending(port: int, shown: Issued, stack: ExitStack) -> Postfix:
    """A Postfix that sends everything to this port, over TLS only."""
    home = new_directory("sender")
    certificate, key = shown.write(home)
    settings = {
        "relayhost": f"[127.0.0.1]:{port}",
        "smtp_tls_security_level": "encrypt",
        "smtp_tls_cert_file": str(certificate),
        "smtp_tls_key_file": str(key),
    }
    postfix = Postfix(settings, home=home)
    stack.callback(postfix.stop)
    return postfix


def submit(postfix: Postfix) -> None:
    with smtplib.SMTP("127.0.0.1", postfix.port) as client:
        client.sendmail("ann@partner.example", ["b@example.org"], b"Subject: x\r\n\r\nHello.\r\n")


async def arrived(opened: Door) -> str:
    """The header of the only message, once it is there."""
    async with asyncio.timeout(30):
        while not (found := await opened.contents()):
            await asyncio.sleep(0.05)
    (content,) = found
    return content.decode()


def asking(directory: Path) -> ssl.SSLContext:
    """Of a listener that asks for certificates by the partners' CA."""
    certificate, key = make_ca().issue("mx.example.org").write(directory, "own")
    authorities = directory / "partners.pem"
    authorities.write_bytes(CA.certificate.public_bytes(Encoding.PEM))
    return tls_context(str(certificate), str(key), str(authorities))


def test_postfix_delivers_over_tls_with_a_certificate_of_its_own(directory: Path) -> None:
    async def test() -> str:
        async with door(tls=asking(directory)) as opened:
            with ExitStack() as stack:
                postfix = await asyncio.to_thread(sending, opened.port, make_ca("mx.partner.example"), stack)
                await asyncio.to_thread(submit, postfix)
                return await arrived(opened)

    content = run(test)
    assert "\r\n\t(using TLSv1" in content and "\r\n\t(Client certificate not verified)\r\n" in content


def test_openssl_is_told_by_which_cas(directory: Path) -> None:
    async def test() -> str:
        async with door(tls=asking(directory)) as opened:
            command = [binary("openssl"), "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{opened.port}"]
            done = await asyncio.to_thread(
                subprocess.run, command, input=b"QUIT\r\n", capture_output=True, check=True, timeout=30
            )
            return done.stdout.decode(errors="replace")

    assert "Acceptable client certificate CA names\nCN = Partners CA\n" in run(test)
