"""HTTPS to hosts that others name."""

from __future__ import annotations

from pathlib import Path

from gateway.sdk.testing import FakeDns
from gateway.transport.https import Answer, Https, HttpsFailed
from tests.support.certificates import make_ca
from tests.support.policyhost import serving
from tests.transport.peer import run

CA = make_ca()
HOST = "reports.example.net"


def ask(tmp_path: Path, gives: bytes, *, public_only: bool = False, limit: int = 0) -> tuple[object, list[bytes]]:
    heard: list[bytes] = []

    async def main() -> Answer | HttpsFailed:
        async with serving(CA.issue(HOST).server(tmp_path), gives, heard) as port:
            ca = str(CA.write(tmp_path, "ca")[0])
            https = Https(FakeDns(a={HOST: ["127.0.0.1"]}), ca_file=ca, public_only=public_only)
            try:
                kind = {"Content-Type": "application/tlsrpt+gzip"}
                return await https.ask("POST", f"https://{HOST}:{port}/v1?x=1", kind, b"packed", limit)
            finally:
                await https.close()

    return run(main()), heard


def test_a_report_is_posted_to_the_host_that_dns_gives(tmp_path: Path):
    found, (request,) = ask(tmp_path, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    assert found == Answer(201, "", b"")
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1?x=1 HTTP/1.1\r\n") and body == b"packed"
    assert b"Content-Type: application/tlsrpt+gzip" in head and f"Host: {HOST}:".encode() in head


def test_a_host_within_our_own_networks_is_not_asked_when_a_stranger_names_it(tmp_path: Path):
    found, heard = ask(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", public_only=True)
    assert found == HttpsFailed("[127.0.0.1] is no public address") and heard == []


def test_no_more_of_an_answer_is_kept_than_is_wanted(tmp_path: Path):
    text = b"x" * 100_000
    gives = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Plain; a=b\r\nContent-Length: 100000\r\n\r\n" + text
    assert ask(tmp_path, gives, limit=10)[0] == Answer(200, "text/plain", b"x" * 11)
    assert ask(tmp_path, gives)[0] == Answer(200, "text/plain", b"")
