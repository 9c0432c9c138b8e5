"""Milters that others wrote with pymilter, inside Gatepost and over their own sockets: the same comes out of it.

Their classes are taken as they are; a file does what their `main` does before it listens. They ask the DNS by
themselves, so Gatepost has a resolv.conf of its own here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest

from tests.support.clients import ProxiedClient, queue_id, transact
from tests.support.dkimkeys import rsa, signed
from tests.support.gatepost import PROGRAM, GatepostProcess
from tests.support.milter_servers import NOBODY, MilterServer, dkimpy_milter, pyspf_milter
from tests.support.process import binary, free_port, new_directory
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

NAMESERVER = "127.77.0.62"
HOSTNAME = "mx.example.org"
THEIRS, OURS = rsa(2048), rsa(1024)
MAIL = (
    b"From: Ann <ann@sender.test>\r\nTo: Ben <ben@example.org>\r\nSubject: A test\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello.\r\n"
)
DKIMPY = """
import dkimpy_milter
from dkimpy_milter import config, dkimMilter
from dkimpy_milter.util import get_keys

dkimpy_milter.milterconfig = get_keys(config._processConfigFile(filename={conf!r}))
"""
PYSPF = """
from spf_engine import milter_spf, policydspfsupp
from spf_engine.milter_spf import spfMilter

milter_spf.milterconfig = policydspfsupp._processConfigFile(filename={conf!r})
milter_spf.milterconfig.update(Header_Type="AR", Per_User=False)
"""


def txt(name: str, record: str) -> str:
    """A TXT record in zone file form, in strings of at most 200 characters."""
    return f"{name}. 60 IN TXT " + " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))


def setting(home: Path, name: str, text: str, separator: str, values: dict[str, str]) -> dict[str, object]:
    """A milter's configuration and the file that reads it; gives the entry's options."""
    conf = home / f"{name}.conf"
    conf.write_text("".join(f"{key}{separator}{value}\n" for key, value in values.items()))
    path = home / f"{name}.py"
    path.write_text(text.format(conf=str(conf)))
    return {"class": "dkimMilter" if name == "dkimpy" else "spfMilter", "file": str(path)}


@dataclass(frozen=True)
class Ways:
    """A Gatepost with a listener for each milter and way: ``dkimpy-inside``, ``dkimpy-socket`` and so on."""

    gate: GatepostProcess
    ports: dict[str, int]
    mail: Path

    def send(self, way: str, content: bytes, client: str = "192.0.2.1", sender: str = "ann@sender.test") -> str | bytes:
        """What arrives, without Gatepost's own field on top; or the refusal, without its reference."""
        before = set(self.mail.rglob("new/*"))
        with ProxiedClient(self.ports[way], client) as smtp:
            smtp.ehlo("mail.sender.test")
            code, text = transact(smtp, sender, ["ben@example.org"], content)
        if code != 250:
            return f"{code} {text.partition(' (ref ')[0]}"
        queue_id((code, text))
        self.gate.wait_empty()
        (new,) = set(self.mail.rglob("new/*")) - before
        return own_fields_off(new.read_bytes())


def own_fields_off(content: bytes) -> bytes:
    """Without the fields on top that Gatepost put there."""
    lines = content.splitlines(keepends=True)
    while lines[0].startswith((b"Return-Path:", b"Delivered-To:", b"Received:", b" ", b"\t")):
        lines.pop(0)
    return b"".join(lines)


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    home = new_directory("real-milters")
    records = [
        txt("sender.test", "v=spf1 ip4:192.0.2.1 -all"),
        "mail.sender.test. 60 IN A 192.0.2.1",
        txt("mail.sender.test", "v=spf1 a -all"),
        txt("sel._domainkey.sender.test", THEIRS.record),
        txt("own._domainkey.example.org", OURS.record),
    ]
    started: list[Unbound | MilterServer] = [Unbound(records, interface=NAMESERVER, port=53)]
    try:
        dkimpy, pyspf = dkimpy_milter(NAMESERVER, HOSTNAME), pyspf_milter(NAMESERVER)
        started += [dkimpy, pyspf]
        OURS.write(home / "key")
        signing = {"Mode": "sv", "Domain": "example.org", "Selector": "own", "KeyFile": str(home / "key")}
        common = {"AuthservID": HOSTNAME, "InternalHosts": NOBODY, "Syslog": "no"}
        judging = {"debugLevel": "0", "TestOnly": "1", "HELO_reject": "Fail", "Mail_From_reject": "Fail"}
        judging |= {"skip_addresses": NOBODY, "InternalHosts": NOBODY}
        pipelines = {
            "dkimpy-inside": [{"milter-host": setting(home, "dkimpy", DKIMPY, " ", common | signing)}],
            "dkimpy-socket": [{"milter": {"connect": dkimpy.address}}],
            "pyspf-inside": [{"milter-host": setting(home, "pyspf", PYSPF, " = ", judging)}],
            "pyspf-socket": [{"milter": {"connect": pyspf.address}}],
        }
        ports = {name: free_port() for name in pipelines}
        (home / "resolv.conf").write_text(f"nameserver {NAMESERVER}\noptions timeout:2 attempts:1\n")
        script = f'mount --bind {home}/resolv.conf /etc/resolv.conf && exec "$@"'
        gate = GatepostProcess(
            {
                "hostname": HOSTNAME,
                "domains": {"example.org": {"next_hop": f"maildir:{home}/mail", "recipients": "any"}},
                "listeners": [
                    {
                        "address": f"127.0.0.1:{port}",
                        "role": "edge",
                        "pipeline": name,
                        "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
                    }
                    for name, port in ports.items()
                ],
                "pipelines": pipelines,
            },
            run=(binary("unshare"), "-m", "sh", "-c", script, "sh", str(PROGRAM), "run", "-c"),
        )
        try:
            yield Ways(gate, ports, home / "mail")
        finally:
            gate.stop()
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


def the_same(ways: Ways, milter: str, content: bytes, client: str = "192.0.2.1") -> str | bytes:
    inside, socket = (ways.send(f"{milter}-{way}", content, client) for way in ("inside", "socket"))
    assert inside == socket
    return inside


def test_dkimpy_milter_verifies_the_same(ways):
    good = signed(MAIL, THEIRS, d="sender.test")
    arrived = the_same(ways, "dkimpy", good)
    assert isinstance(arrived, bytes)
    assert arrived.startswith(b"Authentication-Results: mx.example.org;")
    assert b"dkim=pass" in arrived
    arrived = the_same(ways, "dkimpy", good.replace(b"Hello", b"Hullo"))
    assert isinstance(arrived, bytes)
    assert b"dkim=fail" in arrived
    assert the_same(ways, "dkimpy", MAIL) == MAIL.replace(b"\r\n", b"\n")


def test_dkimpy_milter_signs_and_the_signature_holds(ways):
    arrived = ways.send("dkimpy-inside", MAIL.replace(b"sender.test", b"example.org"))
    assert isinstance(arrived, bytes)
    assert arrived.startswith(b"DKIM-Signature:")
    assert dkim.verify(arrived, dnsfunc=lambda name, timeout=5: OURS.record.encode())


def test_pyspf_milter_passes_and_refuses_the_same(ways):
    arrived = the_same(ways, "pyspf", MAIL)
    assert isinstance(arrived, bytes)
    assert b"spf=pass" in arrived
    refused = the_same(ways, "pyspf", MAIL, "203.0.113.9")
    assert isinstance(refused, str)
    assert refused.startswith("550 5.7.23 ")


def test_nothing_of_it_was_a_fault(ways):
    # After the others.
    assert ways.gate.metric("gatepost_findings_total", plugin="milter-host", outcome="ok") > 5
    for outcome in ("error", "timeout", "garbage", "deadline"):
        assert ways.gate.metric("gatepost_findings_total", plugin="milter-host", outcome=outcome) == 0
