"""Recipients of one transaction with different pipelines, judged by real milters and delivered to real LMTP stores."""

from __future__ import annotations

import contextlib
import itertools
import json
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.gatepost import GatepostProcess
from tests.support.milter_servers import MilterServer, pymilter
from tests.support.process import new_directory, wait_until
from tests.support.servers import Dovecot

pytestmark = pytest.mark.slow

KINDS = ("accept", "header", "body", "quarantine", "discard", "reject", "tempfail")
DELIVERED = ("accept", "header", "body")


class OtherDovecot(Dovecot):
    DOMAIN = "other.test"


@dataclass
class Rig:
    """Two stores, a milter that both pipelines ask, and Gatepost with and without `split: copies`."""

    stores: dict[str, Dovecot]
    milter: MilterServer
    gates: dict[str, GatepostProcess]

    def queued(self, gate: GatepostProcess) -> list[dict[str, Any]]:
        return list(json.loads(gate.http("GET", "/api/v1/queue?state=queued")[1])["messages"])

    def set_aside(self, gate: GatepostProcess) -> dict[str, str]:
        """Who has a message in quarantine, and why."""
        listed = json.loads(gate.http("GET", "/api/v1/queue?state=quarantine")[1])["messages"]
        return {recipient["address"]: m["reason"] for m in listed for recipient in m["recipients"]}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        stores: dict[str, Dovecot] = {"example": Dovecot(), "other": OtherDovecot()}
        for store in stores.values():
            stack.callback(store.stop)
        milter = pymilter("Deciding", new_directory("record") / "record")
        stack.callback(milter.stop)
        domains = {
            store.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{store.lmtp_port}", "recipients": "any", "pipeline": name}
            for name, store in stores.items()
        }
        entries = [{"milter": {"connect": milter.address}}]
        gates = {}
        for split in ("copies", "defer"):
            options = {"domains": domains, "pipelines": {"example": entries, "other": entries}, "split": split}
            gates[split] = GatepostProcess(options)
            stack.callback(gates[split].stop)
        yield Rig(stores, milter, gates)


def content(first: str, second: str) -> bytes:
    return f"Subject: groups\r\nX-Act-example: {first}\r\nX-Act-other: {second}\r\n\r\nThe body.\r\n".encode()


def send(smtp: smtplib.SMTP, recipients: list[str], message: bytes) -> tuple[list[int], int]:
    """Replies to RCPT, and the one to the final dot."""
    assert smtp.docmd("MAIL FROM:<ann@sender.test>")[0] == 250
    codes = [smtp.docmd(f"RCPT TO:<{recipient}>")[0] for recipient in recipients]
    assert smtp.docmd("DATA")[0] == 354, codes
    smtp.send(message + b".\r\n")
    return codes, smtp.getreply()[0]


def check_delivered(store: Dovecot, box: str, kind: str, group: str) -> None:
    """What has come into a mailbox, and with which edits; nothing unless the milter let it through."""
    if kind not in DELIVERED:
        assert store.mails(box) == []
        return
    (mail,) = store.wait_mails(box)
    head, _, body = mail.partition(b"\r\n\r\n")
    assert (b"X-Group: %s" % group.encode() in head) is (kind == "header")
    assert b"X-Group: other" not in head or group == "other"
    assert body == (f"a body for {group}\r\n".encode() if kind == "body" else b"The body.\r\n")


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_copies_are_delivered_as_each_groups_milter_has_left_them(rig, first, second):
    gate = rig.gates["copies"]
    boxes = {name: store.mailbox() for name, store in rig.stores.items()}
    with smtplib.SMTP("127.0.0.1", gate.port, timeout=60) as smtp:
        smtp.ehlo("client.test")
        codes, code = send(smtp, list(boxes.values()), content(first, second))
    assert codes == [250, 250]
    kinds = {"example": first, "other": second}
    if "tempfail" in kinds.values() or first == second == "reject":
        assert code == (451 if "tempfail" in kinds.values() else 550)
        kinds = dict.fromkeys(kinds, "nothing")
    else:
        assert code == 250
    wait_until(lambda: not rig.queued(gate), "everything is delivered")
    for name, kind in kinds.items():
        check_delivered(rig.stores[name], boxes[name], kind, name)
        reason = rig.set_aside(gate).get(boxes[name], "")
        expected = {"quarantine": "odd", "reject": "refused (550 5.7.1 no"}.get(kind, "")
        assert expected in reason and bool(reason) is bool(expected)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
def test_without_copies_the_second_group_comes_again_and_is_judged_for_itself(rig, first, second):
    gate = rig.gates["defer"]
    boxes = {name: store.mailbox() for name, store in rig.stores.items()}
    with smtplib.SMTP("127.0.0.1", gate.port, timeout=60) as smtp:
        smtp.ehlo("client.test")
        codes, one = send(smtp, list(boxes.values()), content(first, second))
        assert codes == [250, 452]
        codes, two = send(smtp, [boxes["other"]], content(first, second))
        assert codes == [250]
    kinds = {"example": first, "other": second}
    assert [one, two] == [{"reject": 550, "tempfail": 451}.get(kind, 250) for kind in kinds.values()]
    wait_until(lambda: not rig.queued(gate), "everything is delivered")
    for name, kind in kinds.items():
        check_delivered(rig.stores[name], boxes[name], kind, name)
        assert bool(rig.set_aside(gate).get(boxes[name])) is (kind == "quarantine")
