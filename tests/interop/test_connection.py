"""Connection tests of the whole gateway: real DNS, real database files, true client addresses by PROXY."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import delivered, maildir
from tests.support.checker import CheckingHaproxy
from tests.support.clients import MESSAGE, ProxiedClient, queue_id, reference, swaks, transact
from tests.support.gatepost import GatepostProcess, refused_start
from tests.support.geodb import write_countries, write_systems
from tests.support.process import free_port, wait_until
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

NAMED, STRANGE, NAMELESS, DYNAMIC, LISTED = (f"192.0.2.{n}" for n in (7, 8, 9, 10, 11))
BOX = "anna@example.org"
LONG = "9s"
"""A wait that no test sits out: who is served within `PROMPT` seconds has not waited."""
PROMPT = 6.0

RECORDS = [
    "7.2.0.192.in-addr.arpa. 60 IN PTR mail.sender.test.",
    "mail.sender.test. 60 IN A 192.0.2.7",
    "8.2.0.192.in-addr.arpa. 60 IN PTR mail.sender.test.",
    "10.2.0.192.in-addr.arpa. 60 IN PTR dyn-192-0-2-10.isp.sender.test.",
    "dyn-192-0-2-10.isp.sender.test. 60 IN A 192.0.2.10",
    "text-only.test. 60 IN TXT nothing",
    "11.2.0.192.bl.test. 60 IN A 127.0.0.2",
]


def behind_proxy(directory: Path, unbound: Unbound | None, pipeline: list[Any], **options: Any) -> dict[str, Any]:
    """Clients come with a PROXY header, so that they can be anybody. Without unbound nobody answers questions."""
    proxied = {"proxy_protocol": {"trusted": ["127.0.0.1/32"]}}
    return {
        "domains": maildir(directory),
        "listeners": [{"address": f"127.0.0.1:{free_port()}", "role": "edge", **proxied}],
        "dns": {"nameservers": [unbound.address if unbound else f"127.0.0.1:{free_port()}"], "timeout": "2s"},
        "pipeline": pipeline,
        **options,
    }


def send(gate: GatepostProcess, client: str, *, helo: str = "mail.sender.test", to: str = BOX) -> tuple[int, str]:
    """One message from this client; gives the reply that decided."""
    with ProxiedClient(gate.port, client) as smtp:
        assert smtp.ehlo(helo)[0] == 250
        return transact(smtp, "ann@sender.test", [to])


def finding(gate: GatepostProcess, id: str, kind: str) -> dict[str, Any]:
    """The one finding of this kind that the record holds, as `gatepost explain` gets it."""

    def search(explained: Any) -> Iterator[dict[str, Any]]:
        if isinstance(explained, dict):
            if explained.get("finding") == kind:
                yield explained["value"]
            for value in explained.values():
                yield from search(value)
        elif isinstance(explained, list):
            for value in explained:
                yield from search(value)

    def explained() -> str:
        status, body = gate.http("GET", f"/api/v1/explain/{id}")
        return body if status == 200 else ""

    # A refusal is answered first and recorded then.
    (found,) = search(json.loads(wait_until(explained, f"{id} is recorded")))
    return found


# pregreet


def early(gate: GatepostProcess, client: str) -> str:
    """Everything that a client hears that talks at once, and waits for the end."""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as sock:
        sock.sendall(f"PROXY TCP4 {client} 127.0.0.1 40000 25\r\nEHLO client.test\r\nQUIT\r\n".encode())
        heard = b""
        while block := sock.recv(4096):
            heard += block
    return heard.decode()


def test_an_early_talker_is_refused_and_a_patient_client_waits_once_for_all_workers(gatepost, directory):
    gate = gatepost(**behind_proxy(directory, None, [{"pregreet": {"wait": "1s"}}], workers=2))
    heard = early(gate, NAMED)
    assert re.fullmatch(r"554 5\.5\.1 data before it was asked for \(ref \w+\)\r\n", heard), heard
    found = finding(gate, reference(heard.strip()), "EarlyTalk")
    assert found["early"] is True
    assert "EarlyTalk" in gate.run("explain", reference(heard.strip())), "and the tree for people shows it"

    began = time.monotonic()
    id = queue_id(send(gate, NAMED))
    assert time.monotonic() - began >= 0.95
    found = finding(gate, id, "EarlyTalk")
    assert (found["early"], found["remembered"]) == (False, False)
    for _ in range(4):  # by whichever worker
        found = finding(gate, queue_id(send(gate, NAMED)), "EarlyTalk")
        assert (found["early"], found["remembered"], found["waited"]) == (False, True, 0)
    assert gate.metric("gatepost_pregreet_clients_total", result="early") == 1
    assert gate.metric("gatepost_pregreet_clients_total", result="passed") == 1
    assert gate.metric("gatepost_pregreet_clients_total", result="remembered") == 4


def test_a_restart_forgets_nobody(gatepost, directory):
    gate = gatepost(**behind_proxy(directory, None, [{"pregreet": {"wait": "500ms"}}]))
    queue_id(send(gate, NAMED))
    gate.stop()
    gate.start()
    assert finding(gate, queue_id(send(gate, NAMED)), "EarlyTalk")["remembered"] is True


def test_an_early_talker_in_shadow_goes_on(gatepost, directory):
    gate = gatepost(**behind_proxy(directory, None, [{"pregreet": {"wait": LONG}, "shadow": True}]))
    heard = early(gate, NAMED).splitlines()
    assert heard[0].startswith("220 ")
    assert heard[1].startswith("250-")
    assert heard[-1].startswith("221 ")


def test_the_checks_of_haproxy_do_not_wait_and_swaks_through_it_does(gatepost, running, directory):
    gate = gatepost(**behind_proxy(directory, None, [{"pregreet": {"wait": "6s"}}]))
    checker = running(CheckingHaproxy(gate.port, timeout="4s"))
    wait_until(lambda: checker.check not in ("", "INI"), "haproxy has checked")
    assert checker.check == "L7OK", "a check that had to wait would have timed out"
    began = time.monotonic()
    transcript = swaks(checker.port, "--from", "ann@sender.test", "--to", BOX)
    assert transcript.status == 0, transcript.text
    assert time.monotonic() - began >= 5.7
    found = finding(gate, transcript.queue_id, "EarlyTalk")
    assert (found["early"], found["remembered"]) == (False, False)
    assert checker.check == "L7OK"


# rdns


def test_a_confirmed_name_stands_in_the_message_and_others_are_refused_as_told(gatepost, running, directory):
    unbound = running(Unbound(RECORDS))
    options = {"mismatch": "reject", "nameless": "defer", "generic": "reject"}
    gate = gatepost(**behind_proxy(directory, unbound, [{"rdns": options}]))

    id = queue_id(send(gate, NAMED))
    found = finding(gate, id, "ReverseName")
    assert (found["result"], found["name"], found["generic"]) == ("pass", "mail.sender.test", False)
    gate.wait_empty()
    (stored,) = delivered(directory)
    assert b"iprev=pass policy.iprev=192.0.2.7" in b" ".join(stored.read_bytes().split())

    for client, code, result in ((STRANGE, 550, "fail"), (NAMELESS, 450, "permerror"), (DYNAMIC, 550, "pass")):
        got, text = send(gate, client)
        assert (got, text[:6]) == (code, f"{code // 100}.7.25")
        found = finding(gate, reference(text), "ReverseName")
        assert found["result"] == result
        assert found["generic"] is (client == DYNAMIC)
        queue_id(send(gate, client, to="postmaster@example.org"))


def test_with_dead_dns_nobody_is_refused_for_want_of_a_name(gatepost, directory):
    options = {"mismatch": "reject", "nameless": "reject", "generic": "reject"}
    gate = gatepost(**behind_proxy(directory, None, [{"rdns": options}]))
    assert finding(gate, queue_id(send(gate, NAMED)), "ReverseName")["result"] == "temperror"


# helo


@pytest.mark.parametrize(
    ("helo", "code", "problem"),
    [
        ("mail.sender.test", 250, ""),
        ("[192.0.2.7]", 250, ""),
        ("[192.0.2.8]", 550, "literal-mismatch"),
        ("192.0.2.7", 550, "bare-address"),
        ("mx.example.org", 550, "our-name"),
        ("nowhere.test", 450, "no-such-name"),
        ("text-only.test", 450, "unresolvable"),
        ("localhost", 250, "single-label"),
    ],
)
def test_each_problem_of_a_name_is_found_and_answered_as_told(named_gate, helo, code, problem):
    reply = send(named_gate, NAMED, helo=helo)
    assert reply[0] == code
    id = queue_id(reply) if code == 250 else reference(reply[1])
    assert finding(named_gate, id, "HeloName")["problems"] == ([problem] if problem else [])
    queue_id(send(named_gate, NAMED, helo=helo, to="postmaster@example.org"))


@pytest.fixture(scope="module")
def named_gate(tmp_path_factory) -> Iterator[GatepostProcess]:
    unbound = Unbound(RECORDS)
    pipeline = [{"helo": {"defer": ["no-such-name", "unresolvable"]}}]
    gate = GatepostProcess(behind_proxy(tmp_path_factory.mktemp("helo"), unbound, pipeline))
    yield gate
    gate.stop()
    unbound.stop()


def test_with_dead_dns_a_name_is_not_held_against_a_client(gatepost, directory):
    pipeline = [{"helo": {"reject": ["no-such-name", "unresolvable"]}}]
    gate = gatepost(**behind_proxy(directory, None, pipeline))
    found = finding(gate, queue_id(send(gate, NAMED)), "HeloName")
    assert (found["problems"], found["resolves"]) == ([], None)


# geoip


def test_clients_are_refused_by_country_and_system_and_a_new_file_is_taken_up(gatepost, directory):
    country = write_countries(directory / "country.mmdb", {"192.0.2.7/32": "DE", "192.0.2.8/32": "FR"})
    asn = write_systems(directory / "asn.mmdb", {"192.0.2.9/32": (64500, "Example Networks")})
    options = {"country": str(country), "asn": str(asn), "reject_countries": ["FR"], "reject_asns": [64500]}
    gate = gatepost(**behind_proxy(directory, None, [{"geoip": options}]))

    id = queue_id(send(gate, NAMED))
    assert finding(gate, id, "Geo") == {"country": "DE", "asn": 0, "organization": ""}
    for client, found in ((STRANGE, {"country": "FR"}), (NAMELESS, {"asn": 64500, "organization": "Example Networks"})):
        code, text = send(gate, client)
        assert (code, text[:5]) == (550, "5.7.1")
        assert finding(gate, reference(text), "Geo") == {"country": "", "asn": 0, "organization": ""} | found

    country.write_bytes(country.read_bytes()[:100])
    wait_until(lambda: send(gate, NAMED) and "file.unusable" in gate.log, "the broken file is noticed")
    queue_id(send(gate, NAMED))
    assert send(gate, STRANGE)[0] == 550
    write_countries(directory / "new.mmdb", {"192.0.2.7/32": "FR"}).replace(country)
    wait_until(lambda: send(gate, NAMED)[0] == 550, "the new file is in use")
    queue_id(send(gate, STRANGE))


def test_it_does_not_start_without_its_file_and_says_so(directory):
    gone = str(directory / "gone.mmdb")
    status, said = refused_start({"pipeline": [{"geoip": {"country": gone}}]})
    assert status == 2
    assert f"geoip does not start: ValueError: cannot read {gone}: No such file" in said
    assert "Traceback" not in said


# tarpit


def test_a_listed_client_is_answered_late_and_others_at_once(gatepost, running, directory):
    unbound = running(Unbound(RECORDS))
    pipeline = [
        {"dnsbl": {"zones": {"bl.test": 1}, "reject_at": 2}},
        {"helo": {"reject": []}},
        {"tarpit": {"delay": "700ms"}},
    ]
    gate = gatepost(**behind_proxy(directory, unbound, pipeline))

    def rcpt(client: str, helo: str, times: int = 1) -> tuple[float, str]:
        """The shortest time of so many RCPT, and the message's id."""
        with ProxiedClient(gate.port, client) as smtp:
            smtp.ehlo(helo)
            smtp.docmd("MAIL", "FROM:<ann@sender.test>")
            took = []
            for _ in range(times):
                began = time.monotonic()
                assert smtp.docmd("RCPT", f"TO:<{BOX}>")[0] == 250
                took.append(time.monotonic() - began)
            code, text = smtp.data(MESSAGE)
            return min(took), queue_id((code, text.decode()))

    took, id = rcpt(LISTED, "mail.sender.test")
    assert took >= 0.69
    assert finding(gate, id, "Tarpit") == {"held": 0.7, "reason": "score 1"}
    took, id = rcpt(NAMED, "nowhere.test")
    assert took >= 0.69
    assert finding(gate, id, "Tarpit") == {"held": 0.7, "reason": "HELO: no-such-name"}
    took, id = rcpt(NAMED, "mail.sender.test", times=3)
    assert took < 0.69
    assert gate.metric("gatepost_tarpit_answers_total", result="held") == 2
    assert gate.metric("gatepost_tarpit_held") == 0
