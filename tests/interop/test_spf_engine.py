"""The `spf` plugin against spf-engine's policyd-spf, the SPF checker that a Postfix would use: same DNS, same answers.

policyd-spf reads nameservers from resolv.conf and cannot be told a port, so it runs in a mount namespace of its own
with one that names our unbound, on a loopback address where port 53 is free.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.sdk import Services, Spf
from gateway.sdk.testing import FakeDirectory, FakeState, make_session, make_transaction
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from plugins.spf import SpfPlugin
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

_ADDRESS = "127.77.0.53"
_RECORDS = [
    'plain.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
    'soft.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 ~all"',
    'neutral.test. 60 IN TXT "v=spf1 ?all"',
    'bare.test. 60 IN TXT "something else"',
    'included.test. 60 IN TXT "v=spf1 include:plain.test -all"',
    'redirect.test. 60 IN TXT "v=spf1 redirect=plain.test"',
    'broken.test. 60 IN TXT "v=spf1 ip4:not-an-address -all"',
    'loop.test. 60 IN TXT "v=spf1 include:loop.test -all"',
    'twice.test. 60 IN TXT "v=spf1 -all"',
    'twice.test. 60 IN TXT "v=spf1 +all"',
    'hosts.test. 60 IN TXT "v=spf1 a mx -all"',
    "hosts.test. 60 IN A 192.0.2.8",
    "hosts.test. 60 IN MX 10 mail.hosts.test.",
    "mail.hosts.test. 60 IN A 192.0.2.9",
    'macro.test. 60 IN TXT "v=spf1 exists:%{ir}.allow.test -all"',
    "8.2.0.192.allow.test. 60 IN A 127.0.0.2",
    'six.test. 60 IN TXT "v=spf1 ip6:2001:db8::/32 -all"',
]
_CASES = [
    (client, domain)
    for client in ("192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::7")
    for domain in sorted({record.partition(".test.")[0] for record in _RECORDS[:11]} | {"macro", "six", "absent"})
    if ":" not in client or domain not in ("hosts", "macro")
]


@pytest.fixture(scope="module")
def unbound() -> Iterator[Unbound]:
    server = Unbound(_RECORDS, interface=_ADDRESS, port=53)
    yield server
    server.stop()


def asked_of_policyd(directory: Path) -> dict[tuple[str, str], str]:
    """What policyd-spf says to each case, from the Received-SPF field that it prepends."""
    (directory / "resolv.conf").write_text(f"nameserver {_ADDRESS}\noptions timeout:2\n")
    (directory / "policyd.conf").write_text(
        "debugLevel = 0\nHELO_reject = False\nMail_From_reject = False\nPermError_reject = False\n"
    )
    requests = "".join(
        f"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address={client}\nhelo_name=client.test\n"
        f"sender=ann@{domain}.test\nrecipient=u{number}@example.org\ninstance={number}\n\n"
        for number, (client, domain) in enumerate(_CASES)
    )
    private = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    program = Path(sys.executable).parent / "policyd-spf"
    mount = f"mount --bind {directory}/resolv.conf /etc/resolv.conf"
    script = f"{mount} && exec {program} {directory}/policyd.conf"
    done = subprocess.run(
        [*private, "sh", "-c", script], input=requests, capture_output=True, text=True, timeout=60, check=False
    )
    answers = re.findall(r"^action=(.*)$", done.stdout, re.MULTILINE)
    assert len(answers) == len(_CASES), done.stderr
    said = [re.match(r"prepend Received-SPF: (\w+)", answer, re.IGNORECASE) for answer in answers]
    return {
        case: match[1].lower() if match else answers[i]
        for i, (case, match) in enumerate(zip(_CASES, said, strict=True))
    }


async def found_by_the_plugin() -> dict[tuple[str, str], str]:
    clock = SystemClock()
    resolver = Resolver(DnsOptions(((_ADDRESS, 53),), 5.0), clock)
    services = Services(resolver, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
    plugin = SpfPlugin(SpfPlugin.Options(), services)
    await plugin.start()
    out = {}
    for client, domain in _CASES:
        session = make_session(client, helo="client.test")
        finding = await plugin.check(make_transaction(session, sender=f"ann@{domain}.test"))
        assert isinstance(finding, Spf)
        out[client, domain] = finding.result.value
    await plugin.close()
    await resolver.close()
    return out


def test_the_plugin_and_policyd_spf_agree(unbound: Unbound, directory: Path):
    theirs = asked_of_policyd(directory)
    ours = asyncio.run(found_by_the_plugin())
    assert {"pass", "fail", "softfail", "neutral", "none", "permerror"} == set(ours.values())
    assert ours == theirs
