"""The decision record."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER
from gateway.mail.session import ClientCertificate, Session, Tls
from gateway.pipeline import record
from gateway.pipeline.past import Past
from gateway.pipeline.record import LIMIT, Outcome, Trace, build
from gateway.sdk import AddHeader, Message, Recipient, Stage, Transaction, annotate
from gateway.sdk.testing import make_client_certificate
from tests.pipeline.quick import run
from tests.pipeline.setting import (
    SESSION,
    TRANSACTION,
    A,
    B,
    C,
    Counter,
    Flow,
    finder,
    hook,
    plugin,
    policy,
    proceeding,
)


def made(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "session": SESSION,
        "id": TRANSACTION.id,
        "started": 1_700_000_000.12345,
        "pipeline": "default",
        "traces": (),
        "outcome": Outcome.ACCEPTED,
        "reply": "250 2.0.0 queued as X",
        **changes,
    }
    return build(**given)


def test_the_record_of_a_transaction_holds_all_that_was_found_and_decided() -> None:
    things = [
        plugin("a", finder(Stage.CONNECT, A, [Session]), policy=proceeding("a", Stage.CONNECT, A)),
        plugin("b", finder(Stage.RCPT, B, [Recipient]), policy=proceeding("b", Stage.RCPT, B)),
        plugin("c", finder(Stage.MESSAGE, C, [Message], Counter(OSError("gone")), does=True)),
        policy("tag", hook(Stage.MESSAGE, [], lambda: annotate(AddHeader("X-Tag", "1")))),
    ]

    async def scenario() -> dict[str, Any]:
        flow = Flow(["a", "b", {"c": {}, "on_error": "proceed"}, "tag"], *things)
        decision = (await flow.whole())[5]
        assert flow.txn
        out = made(
            traces=flow.txn.traces,
            sender=TRANSACTION.sender,
            recipients=[("ben@example.org", "250 2.1.5 ok")],
            size=14,
            edits=decision.edits,
        )
        await flow.close()
        return out

    whole = run(scenario())
    assert json.loads(json.dumps(whole)) == whole
    assert whole["findings"] == [
        {"stage": "connect", "plugin": "a", "finding": "A", "value": {"value": 1}, "ms": 0.0},
        {
            "stage": "rcpt",
            "plugin": "b",
            "finding": "B",
            "recipient": "ben@example.org",
            "value": {"value": 2},
            "ms": 0.0,
        },
        {"stage": "message", "plugin": "c", "finding": "C", "ms": 0.0, "fault": "error", "detail": "OSError: gone"},
    ]
    assert [(v["stage"], v["plugin"], v["policy"], v["action"]) for v in whole["verdicts"]] == [
        ("connect", "a", "a", "proceed"),
        ("rcpt", "b", "b", "proceed"),
        ("message", "c", "on_error", "proceed"),
        ("message", "tag", "tag", "proceed"),
    ]
    tag = {"edit": "AddHeader", "name": "X-Tag", "index": 0, "value": "1"}
    assert whole["verdicts"][3]["edits"] == [tag]
    rest = {key: value for key, value in whole.items() if key not in ("findings", "verdicts")}
    assert rest == {
        "v": 1,
        "id": "0123456789ABC1",
        "session": "0123456789ABC",
        "time": 1_700_000_000.123,
        "listener": "edge",
        "client": {"ip": "192.0.2.7", "port": 40000},
        "tls": None,
        "helo": "client.example.net",
        "sender": "anna@example.net",
        "recipients": [{"address": "ben@example.org", "reply": "250 2.1.5 ok"}],
        "size": 14,
        "edits": [tag],
        "outcome": "accepted",
        "reply": "250 2.0.0 queued as X",
        "pipeline": "default",
    }


def test_every_key_of_a_record_is_documented() -> None:
    assert record.__doc__
    for key in made():
        assert f"``{key}``" in record.__doc__


@pytest.mark.parametrize(
    ("sender", "shown"), [(None, None), (NULL_SENDER, "<>"), (TRANSACTION.sender, "anna@example.net")]
)
def test_null_sender_and_no_sender_are_told_apart(sender: Any, shown: Any) -> None:
    assert made(sender=sender)["sender"] == shown


def test_what_was_not_waited_for_is_pending_and_ending_later_changes_no_record() -> None:
    thing = plugin("p", finder(Stage.MAIL, A, [Transaction], Counter(A(), seconds=1)))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        await flow.mail()
        assert flow.txn
        pending = {"stage": "mail", "plugin": "p", "finding": "A", "pending": True}
        taken = made(traces=flow.txn.traces)
        await asyncio.sleep(2)
        assert taken["findings"] == [pending]
        assert made(traces=flow.txn.traces)["findings"][0]["value"] == {"value": 1}
        await flow.close()

    run(scenario())


def test_peer_name_and_tls_are_recorded_where_there_are_any() -> None:
    session = dataclasses.replace(
        SESSION, peer=ipaddress.ip_address("10.0.0.1"), name="relay.example.net", tls=Tls("TLSv1.3", "AES", "mx.test")
    )
    out = made(session=session)
    assert out["client"] == {"ip": "192.0.2.7", "port": 40000, "peer": "10.0.0.1", "name": "relay.example.net"}
    assert out["tls"] == {"version": "TLSv1.3", "cipher": "AES", "sni": "mx.test"}


@pytest.mark.parametrize(
    ("shown", "recorded"),
    [
        (
            make_client_certificate("partner", "DNS:mx.partner.example", issuer="CA"),
            {
                "verified": True,
                "subject": "partner",
                "names": ["DNS:mx.partner.example"],
                "issuer": "CA",
                "serial": "1F",
            },
        ),
        (make_client_certificate(problem="cert has expired"), {"verified": False, "problem": "cert has expired"}),
    ],
)
def test_the_clients_certificate_is_recorded_and_read_back(shown: ClientCertificate, recorded: dict[str, Any]) -> None:
    tls = Tls("TLSv1.3", "AES", "mx.test", shown)
    out = made(session=dataclasses.replace(SESSION, tls=tls))
    assert out["tls"]["client"] == {**recorded, "fingerprint": shown.fingerprint}
    assert Past(out, lambda client: False).session.tls == tls
    # As records were before clients were asked.
    del out["tls"]["client"]
    assert Past(out, lambda client: False).session.tls == Tls("TLSv1.3", "AES", "mx.test")


def test_a_trace_is_bounded_and_says_that_it_was_cut() -> None:
    trace = Trace()
    for i in range(LIMIT + 50):
        trace.finding({"n": i, "ms": 0})
        trace.verdict({"n": i})
    out = made(traces=[trace])
    for notes in (out["findings"], out["verdicts"]):
        assert len(notes) == LIMIT + 1
        assert notes[-1] == {"truncated": True}


def test_many_recipients_leave_room_for_what_is_said_of_the_message() -> None:
    trace = Trace()
    for i in range(LIMIT + 50):
        trace.verdict({"stage": "rcpt", "n": i})
    trace.verdict({"stage": "message", "action": "reject"})
    assert trace.verdicts[-2:] == [{"truncated": True}, {"stage": "message", "action": "reject"}]
    assert len(trace.verdicts) == LIMIT + 2


def test_what_is_looked_up_again_and_again_takes_one_place() -> None:
    trace = Trace()
    for i in range(LIMIT + 50):
        trace.finding(note := {"stage": "connect", "n": i})
        trace.forget(note)
    assert trace.findings == []
    trace.finding({"stage": "connect"})
    assert trace.findings == [{"stage": "connect"}]


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="lost"):
        made(outcome="lost")
