"""DKIM and ARC with real signers and verifiers: OpenDKIM behind Postfix, dkimpy's programs, keys in unbound."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import delivered, maildir
from tests.plugins.test_arc import hop
from tests.support.clients import connect, queue_id, swaks, transact
from tests.support.dkimkeys import KeyPair, ed25519, rsa
from tests.support.gatepost import GatepostProcess, refused_start
from tests.support.opendkim import OpenDkim
from tests.support.postfix import Postfix
from tests.support.process import binary, free_port, wait_until
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

BEN = "ben@example.org"
MAIL = (
    b"From: Ann <ann@sender.test>\r\nTo: Ben <ben@example.org>\r\nSubject: A  test\r\n of folding\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@sender.test>\r\n\r\n"
    b"Hello  there. \r\n.a dot\r\n\r\nBye.\r\n\r\n\r\n"
)
KEYS = {"r._domainkey.sender.test": rsa(2048), "e._domainkey.sender.test": ed25519()}
LIST = {"sel._domainkey.lists.test": rsa()}
OURS = {"r._domainkey.example.org": rsa(2048), "e._domainkey.example.org": ed25519()}


def txt(name: str, record: str) -> str:
    """A TXT record in zone file form, in strings of at most 200 characters."""
    return f"{name}. 60 IN TXT " + " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))


@pytest.fixture(scope="module")
def unbound() -> Iterator[Unbound]:
    # On port 53, since the programs below read it from resolv.conf, where no port can be said.
    records = [txt(name, key.record) for name, key in (KEYS | LIST | OURS).items()]
    records.append(txt("_dmarc.sender.test", "v=DMARC1; p=reject"))
    server = Unbound(records, interface="127.77.0.54", port=53)
    yield server
    server.stop()


def options(directory: Path, nameserver: str, *pipeline: Any, **more: Any) -> dict[str, Any]:
    return {
        "domains": maildir(directory),
        "dns": {"nameservers": [nameserver], "timeout": "1s"},
        "pipeline": list(pipeline),
        **more,
    }


def stored(directory: Path, count: int = 1) -> bytes:
    """The newest message in the store, once there are `count`."""
    wait_until(lambda: len(delivered(directory)) >= count, f"{count} message(s) are in the store")
    return max(delivered(directory), key=lambda path: path.stat().st_mtime_ns).read_bytes()


def results(content: bytes, authserv_id: str = "mx.example.org") -> str:
    """The Authentication-Results field of `authserv_id`, on one line."""
    fields = re.findall(rb"(?m)^Authentication-Results:((?:[^\r\n]|\r?\n[ \t])*)", content)
    ours = [" ".join(field.decode().split()) for field in fields]
    (found,) = [field for field in ours if field.startswith(authserv_id)]
    return found


def send(gate: GatepostProcess, content: bytes, sender: str = "ann@sender.test") -> tuple[int, str]:
    with connect(gate.port) as client:
        return transact(client, sender, [BEN], content)


def dkimsign(content: bytes, selector: str, key: KeyPair, directory: Path, *arguments: str) -> bytes:
    """The message as dkimpy's dkimsign signs it; it wants an Ed25519 key in its own form."""
    path = directory / f"{selector}.key"
    if key.kind == "ed25519":
        der = subprocess.run(["openssl", "pkey", "-outform", "DER"], input=key.pem, capture_output=True, check=True)
        path.write_bytes(base64.b64encode(der.stdout[-32:]))
        arguments += ("--signalg", "ed25519-sha256")
    else:
        path.write_bytes(key.pem)
    argv = [str(Path(sys.executable).with_name("dkimsign")), *arguments, selector, "sender.test", str(path)]
    return subprocess.run(argv, input=content, capture_output=True, check=True, timeout=60).stdout


def judged(server: Unbound, directory: Path, content: bytes, *argv: str) -> tuple[int, str]:
    """Exit status and output of a verifying program, in a mount namespace where resolv.conf names `server`."""
    (directory / "resolv.conf").write_text(f"nameserver {server.interface}\noptions timeout:2\n")
    private = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    program = Path(sys.executable).with_name(argv[0])
    command = [str(program) if program.exists() else binary(argv[0]), *argv[1:]]
    result = subprocess.run(
        [*private, "sh", "-c", script, str(directory / "resolv.conf"), *command],
        input=content,
        capture_output=True,
        timeout=60,
    )
    return result.returncode, (result.stdout + result.stderr).decode()


@pytest.mark.parametrize("canonicalization", ["relaxed/relaxed", "simple/simple"])
def test_mail_that_opendkim_signed_behind_a_real_postfix_passes(
    gatepost, running, unbound, directory, canonicalization
):
    gate = gatepost(**options(directory, unbound.address, {"dkim": {}}))
    signer = running(OpenDkim.signer("sender.test", "r", KEYS["r._domainkey.sender.test"], canonicalization))
    postfix = running(Postfix.relay(gate.port, smtpd_milters=signer.milter, milter_default_action="tempfail"))
    (directory / "message").write_bytes(MAIL)
    sent = swaks(postfix.port, "--from", "ann@sender.test", "--to", BEN, "--data", f"@{directory}/message")
    assert sent.status == 0, sent.text
    content = stored(directory)
    assert b"DKIM-Signature:" in content
    found = results(content)
    assert "dkim=pass header.d=sender.test" in found
    assert "header.s=r header.a=rsa-sha256 header.b=" in found


def test_mail_that_dkimpy_signed_passes_and_what_was_changed_fails(gatepost, unbound, directory):
    gate = gatepost(**options(directory, unbound.address, {"dkim": {}}))
    content = dkimsign(MAIL, "r", rsa(2048), directory)
    content = dkimsign(content, "e", ed25519(), directory, "--hcanon", "simple", "--bcanon", "relaxed")
    queue_id(send(gate, content))
    found = results(stored(directory))
    assert "dkim=pass header.d=sender.test header.i=@sender.test header.s=e header.a=ed25519-sha256" in found
    assert "dkim=pass header.d=sender.test header.i=@sender.test header.s=r header.a=rsa-sha256" in found

    for count, (old, new, reason) in enumerate(
        [(b"Bye.", b"Pay!", "body was changed"), (b"Subject: A", b"Subject: B", "signed fields were changed")], 2
    ):
        id = queue_id(send(gate, content.replace(old, new)))
        found = results(stored(directory, count))
        assert found.count(f'dkim=fail reason="{reason}" header.d=sender.test') == 2
        assert "Dkim" in gate.run("explain", id)


def test_a_large_signed_message_passes(gatepost, unbound, directory):
    gate = gatepost(**options(directory, unbound.address, {"dkim": {}}))
    large = MAIL + b"A line of a large message,  with white space \t\r\n" * 100_000
    queue_id(send(gate, dkimsign(large, "r", rsa(2048), directory, "--bcanon", "relaxed")))
    assert "dkim=pass" in results(stored(directory))


def test_a_failing_signature_refuses_only_where_that_was_asked_for(gatepost, unbound, directory):
    gate = gatepost(**options(directory, unbound.address, {"dkim": {"reject_fail": True}}))
    content = dkimsign(MAIL, "r", rsa(2048), directory)
    code, text = send(gate, content.replace(b"Bye.", b"Pay!"))
    assert (code, text[:7]) == (550, "5.7.20 ")
    queue_id(send(gate, content))
    queue_id(send(gate, MAIL))


class ServerFailure:
    """A name server that answers SERVFAIL to everything."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", free_port()))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(query[:2] + b"\x81\x82" + query[4:], peer)

    def stop(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.mark.parametrize("trouble", ["dead", "servfail"])
def test_dns_trouble_is_a_temperror_and_never_refuses_for_good(gatepost, running, directory, trouble):
    server = running(ServerFailure()).address if trouble == "servfail" else f"127.0.0.1:{free_port()}"
    strict = {"reject_fail": True, "reject_none": True, "timeout": "3s"}
    gate = gatepost(
        **options(directory, server, {"dkim": strict}, {"arc": {"reject_fail": True, "timeout": "3s"}}),
    )
    content = dkimsign(MAIL, "r", rsa(2048), directory)
    queue_id(send(gate, content))
    assert "dkim=temperror" in results(stored(directory))
    gate.stop()
    later = gatepost(**options(directory, server, {"dkim": strict | {"defer_temperror": True}}))
    code, text = send(later, content)
    assert (code, text[:7]) == (451, "4.7.20 ")


def signing(directory: Path) -> dict[str, Any]:
    keys = [
        {"selector": "r", "key_file": rsa(2048).write(directory / "r.pem")},
        {"selector": "e", "key_file": ed25519().write(directory / "e.pem")},
    ]
    return {"dkim-sign": {"domains": {"example.org": keys}, "expiry": "7d"}}


OUTGOING = MAIL.replace(b"ann@sender.test", b"anna@example.org").replace(
    b"To: Ben <ben@example.org>", b"To: <x@far.test>"
)


def test_what_dkim_sign_signed_verifies_with_opendkim_and_dkimpy(gatepost, running, unbound, directory):
    verifier = running(OpenDkim.verifier({name: key.record for name, key in OURS.items()}, "verifier.test"))
    far = running(Postfix.store("far.test", ["x"], smtpd_milters=verifier.milter, milter_default_action="tempfail"))
    gate = gatepost(
        **options(directory, unbound.address, signing(directory)),
        relay_from=["127.0.0.0/8"],
        routes={"default": f"smtp:127.0.0.1:{far.port}"},
    )
    with connect(gate.port) as client:
        queue_id(transact(client, "anna@example.org", ["x@far.test"], OUTGOING))
    (content,) = wait_until(lambda: far.mails("x"), "the message is in the far store")
    found = results(content, "verifier.test")
    assert "dkim=pass (2048-bit key) header.d=example.org header.i=@example.org header.a=rsa-sha256" in found
    assert "dkim=pass header.d=example.org header.i=@example.org header.a=ed25519-sha256" in found
    sent = content[content.index(b"DKIM-Signature:") :].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for index in ("0", "1"):
        assert judged(unbound, directory, sent, "dkimverify", "--index", index) == (0, "signature ok\n")
    assert judged(unbound, directory, sent, "opendkim-testmsg") == (0, "")
    tampered = sent.replace(b"Bye.", b"Pay!")
    assert judged(unbound, directory, tampered, "dkimverify")[0] == 1
    assert judged(unbound, directory, tampered, "opendkim-testmsg")[0] != 0


def test_what_strangers_send_is_not_signed(gatepost, unbound, directory):
    gate = gatepost(**options(directory, unbound.address, signing(directory)))
    queue_id(send(gate, MAIL.replace(b"ann@sender.test", b"anna@example.org"), "anna@example.org"))
    assert b"DKIM-Signature" not in stored(directory)


def test_a_key_that_everybody_can_read_stops_the_start(directory):
    path = rsa(2048).write(directory / "open.pem", 0o644)
    entry = {"dkim-sign": {"domains": {"example.org": {"selector": "r", "key_file": path}}}}
    status, said = refused_start(options(directory, "127.0.0.1:53", entry))
    assert status != 0
    assert f"{path} is a private key that everybody can read or write: chmod o= {path}" in said
    assert not any(line.decode() in said for line in rsa(2048).pem.splitlines() if len(line) > 20)


def test_what_arc_seal_sealed_verifies_with_dkimpy_and_is_carried_on(gatepost, unbound, directory):
    seal = {"domain": "example.org", "selector": "r", "key_file": rsa(2048).write(directory / "seal.pem")}
    pipeline = [{"dkim": {}}, {"arc": {"trusted": ["example.org"]}}, {"arc-seal": seal}]
    gate = gatepost(**options(directory, unbound.address, *pipeline))
    content = dkimsign(MAIL, "r", rsa(2048), directory)
    for count in (1, 2, 3):
        queue_id(send(gate, content))
        content = stored(directory, count)
        content = content[content.index(b"ARC-Seal:") :].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        assert content.startswith(b"ARC-Seal: i=%d; " % count)
        verdict = judged(unbound, directory, content, "arcverify")
        assert verdict == (0, "arc verification: cv=b'pass' success\n")
    assert "arc=pass header.oldest-pass=0" in results(stored(directory, 3))
    assert b"dkim=pass header.d=sender.test" in content

    queue_id(send(gate, content.replace(b"Bye.", b"Pay!")))
    content = stored(directory, 4)
    assert "arc=fail" in results(content)
    assert b"ARC-Seal: i=4; a=rsa-sha256; cv=fail; d=example.org" in content


def test_a_list_that_broke_the_signature_gets_through_dmarc_by_its_seal_only_where_it_is_trusted(
    gatepost, unbound, directory
):
    changed = dkimsign(MAIL, "r", rsa(2048), directory).replace(b"Subject: A", b"Subject: [list] A")
    aar = "i={i}; {d}; dkim=pass header.d=sender.test; dmarc=pass header.from=sender.test"
    content = hop(changed, 1, "lists.test", aar=aar)
    for trusted, code in (([], 550), (["lists.test"], 250)):
        pipeline = [{"spf": {}}, {"dkim": {}}, {"arc": {"trusted": trusted}}, {"dmarc": {}}]
        gate = gatepost(**options(directory, unbound.address, *pipeline))
        assert send(gate, content, "list@lists.test")[0] == code
        gate.stop()
    found = results(stored(directory))
    assert "dkim=fail" in found
    assert "arc=pass" in found
    assert "dmarc=fail" in found
