"""Real policy servers behind Gatepost: postgrey, policyd-spf, policyd-rate-limit, policyd-weight, quota-status."""

from __future__ import annotations

from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import maildir
from tests.support.clients import ProxiedClient, queue_id, reference, transact
from tests.support.gatepost import GatepostProcess
from tests.support.policy_services import NameserverAt53, PolicydRateLimit, PolicydSpf, PolicydWeight, QuotaStatus
from tests.support.postgrey import Postgrey
from tests.support.process import free_port, wait_until

pytestmark = pytest.mark.slow

ANN, BEN, CARL = "ann@sender.test", "ben@example.org", "carl@example.org"
CLIENT = "192.0.2.1"
REFUSED = "refused@example.org"

Send = Callable[..., tuple[int, str]]


@pytest.fixture
def behind(gatepost, directory) -> Callable[..., tuple[GatepostProcess, Send]]:
    """``gate, send = behind(entry, ...)``: Gatepost with these entries, and how to send it a message."""

    def start(*entries: dict[str, Any], **options: Any) -> tuple[GatepostProcess, Send]:
        port = free_port()
        listener = {
            "address": f"127.0.0.1:{port}",
            "role": "edge",
            "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
        }
        refused = {"access": {"lists": [{"match": "recipient", "entries": [f"{REFUSED} 554 5.7.1 no"]}]}}
        gate = gatepost(listeners=[listener], domains=maildir(directory), pipeline=[*entries, refused], **options)

        def send(
            recipients: list[str], *, sender: str = ANN, client: str = CLIENT, helo: str = "client.test", size: int = 0
        ) -> tuple[int, str]:
            with ProxiedClient(port, client) as smtp:
                smtp.ehlo(helo)
                content = b"Subject: x\r\n\r\n" + b"Hello.\r\n" * (size // 8)
                return transact(smtp, sender, recipients, content, parameters=f" SIZE={size}" if size else "")

        return gate, send

    return start


def last_mail(directory: Path, gate: GatepostProcess) -> Message:
    """The message that was delivered last."""
    gate.wait_empty()
    paths = [path for path in (directory / "mail").rglob("*") if path.parent.name == "new"]
    return message_from_bytes(max(paths, key=lambda path: path.stat().st_mtime_ns).read_bytes())


def finding(gate: GatepostProcess, id: str) -> dict[str, Any]:
    """What the record says that the policy server said."""

    def recorded() -> dict[str, Any] | None:
        notes = gate.cli("explain", id)[0]["record"]["findings"]
        return next((note for note in notes if note["finding"] == "DelegatedAction"), None)

    return wait_until(recorded, f"{id} is recorded")


def test_postgrey_lets_a_stranger_wait_and_then_pass(behind, running, directory):
    postgrey = running(Postgrey("--delay=1"))
    gate, send = behind({"delegation": {"connect": f"inet:localhost:{postgrey.port}"}})
    code, text = send([BEN])
    assert (code, text.split()[0]) == (450, "4.2.0")
    assert "Greylisted" in text
    noted = finding(gate, reference(text))["value"]
    assert (noted["action"], noted["detail"]) == ("DEFER_IF_PERMIT", "2.0")
    # Who is refused anyway need not come again.
    assert send([REFUSED])[0] == 554

    wait_until(lambda: send([BEN])[0] == 250, "the stranger has waited long enough")
    assert last_mail(directory, gate)["X-Greylist"].startswith("delayed ")
    # And again, now as somebody who is known.
    assert send([BEN])[0] == 250
    service = {"service": f"localhost:{postgrey.port}"}
    assert gate.metric("gatepost_delegation_requests_total", action="defer_if_permit", **service) >= 2
    assert gate.metric("gatepost_delegation_requests_total", action="prepend", **service) >= 1


@pytest.mark.parametrize(
    ("on_error", "reply"), [("defer", (451, "4.3.0")), ("proceed", (250, "2.0.0")), ("reject", (554, "5.3.0"))]
)
def test_a_postgrey_that_is_killed_is_on_error_until_it_is_back(gatepost, behind, running, on_error, reply):
    postgrey = running(Postgrey("--delay=1"))
    gate, send = behind({"delegation": {"connect": f"127.0.0.1:{postgrey.port}"}, "on_error": on_error})
    assert send([BEN])[0] == 450
    postgrey.kill()
    code, text = send([BEN])
    assert (code, text.split()[0]) == reply
    note = finding(gate, queue_id((code, text)) if code == 250 else reference(text))
    assert (note["fault"], "value" in note) == ("error", False)
    assert gate.metric("gatepost_delegation_requests_total", action="failed") == 1
    postgrey.start()
    assert send([CARL])[0] == 450
    assert gate.metric("gatepost_breaker_open", plugin="delegation") == 0


@pytest.fixture
def nameserver(running) -> NameserverAt53:
    records = [
        'pass.test. 60 IN TXT "v=spf1 ip4:192.0.2.1 -all"',
        'fail.test. 60 IN TXT "v=spf1 -all"',
        "mx.good.test. 60 IN A 192.0.2.1",
        "good.test. 60 IN MX 10 mx.good.test.",
        "1.2.0.192.in-addr.arpa. 60 IN PTR mx.good.test.",
        "9.2.0.192.bl.test. 60 IN A 127.0.0.2",
    ]
    return running(NameserverAt53(records))


def test_policyd_spf_refuses_a_forger_and_puts_one_field_on_a_message_that_passes(
    behind, running, nameserver, directory
):
    policyd = running(PolicydSpf(nameserver.address))
    gate, send = behind({"delegation": {"connect": f"unix:{policyd.path}"}, "timeout": "20s"})
    # By `instance` it knows which requests are about one message: the field comes with the first recipient only.
    queue_id(send([BEN, CARL], sender="ann@pass.test"))
    assert [field[:4] for field in last_mail(directory, gate).get_all("Received-SPF", [])] == ["Pass"]
    code, text = send([BEN], sender="ann@fail.test")
    assert (code, text.split()[0]) == (550, "5.7.23")
    assert "SPF fail" in text
    queue_id(send([BEN], sender="ann@none.test"))
    assert last_mail(directory, gate)["Received-SPF"].startswith("None")

    processes = policyd.connections
    policyd.kill()
    assert send([BEN], sender="ann@fail.test")[0] == 550
    assert policyd.connections == processes + 1
    assert gate.metric("gatepost_findings_total", plugin="delegation", outcome="error") == 0


def test_policyd_rate_limit_defers_the_third_recipient(behind, running):
    policyd = running(PolicydRateLimit(2, 600))
    _, send = behind({"delegation": {"connect": f"127.0.0.1:{policyd.port}"}})
    assert [send([BEN])[0] for _ in range(2)] == [250, 250]
    code, text = send([BEN])
    assert (code, text.startswith("4.7.1 Rate limit reach, retry later")) == (450, True)
    assert send([BEN], client="192.0.2.2")[0] == 250


def test_policyd_weight_weighs_the_clients_names_and_lists(behind, running, nameserver, directory):
    policyd = running(PolicydWeight(nameserver.address, "bl.test"))
    gate, send = behind(
        {"rdns": {}},
        {"delegation": {"connect": f"127.0.0.1:{policyd.port}"}, "timeout": "20s"},
        dns={"nameservers": [f"{nameserver.address}:53"]},
    )
    queue_id(send([BEN], sender="ann@good.test", helo="mx.good.test"))
    assert "rate: -" in last_mail(directory, gate)["X-policyd-weight"]
    code, text = send([BEN], sender="ann@bad.test", helo="bad.test", client="192.0.2.9")
    assert (code, text.startswith("5.7.1 Your MTA is listed in too many DNSBLs")) == (550, True)


def test_quota_status_refuses_what_does_not_fit_and_who_is_not_there(behind, running):
    dovecot = running(QuotaStatus(["ben"], small="carl"))
    gate, send = behind({"delegation": {"connect": f"127.0.0.1:{dovecot.port}"}})
    queue_id(send([BEN], size=8000))
    code, text = send([CARL], size=8000)
    assert (code, text.startswith("5.2.2 mailbox is full")) == (552, True)
    assert finding(gate, reference(text))["value"]["code"] == 552
    code, text = send(["nobody@example.org"])
    assert (code, text.startswith("5.1.1 no such mailbox")) == (554, True)
    queue_id(send([CARL], size=16))


def test_ok_ends_the_list_at_its_stage_as_with_postfix(behind, running):
    dovecot = running(QuotaStatus(["refused"], small="carl"))
    entry = {"connect": f"127.0.0.1:{dovecot.port}"}
    _, send = behind({"delegation": entry})
    queue_id(send([REFUSED]))
    # But nobody is let through who may not relay.
    assert send(["ben@elsewhere.test"])[0] == 550
