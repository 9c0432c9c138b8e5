"""A message as an HTTP request, and what responses mean."""

from __future__ import annotations

import email
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret
from gateway.transport.options import WebhookFormat
from gateway.transport.posting import Posting, compose, idempotency_key, judge, parse_retry_after
from gateway.transport.transport import Delivery, Fault
from tests.transport.peer import delivery, recipient, run

NOW = 1_000_000_000.0


def composed(what: Delivery, format: WebhookFormat, token: str = "") -> tuple[Posting, bytes]:
    posting = compose(what, what.recipients, format, token)

    async def body() -> bytes:
        return b"".join([block async for block in posting.body(what.content)])

    octets = run(body())
    assert len(octets) == posting.size == int(posting.headers["Content-Length"])
    return posting, octets


def test_the_envelope_stands_in_the_header():
    what = delivery("anna@x.test", '"a, <b"@x.test', "j\u00fcrgen@x.test", content=b"Subject: x\r\n\r\nHi\r\n")
    posting, body = composed(what, WebhookFormat.MESSAGE, "t0ken")
    assert body == b"Subject: x\r\n\r\nHi\r\n"
    assert posting.headers["Content-Type"] == "message/rfc822"
    assert posting.headers["Gatepost-Queue-Id"] == "ID"
    assert posting.headers["Gatepost-Sender"] == "<ben@example.org>"
    assert posting.headers["Gatepost-Recipients"] == ("<anna@x.test>, <%22a%2C%20%3Cb%22@x.test>, <j%C3%BCrgen@x.test>")
    assert posting.headers["Authorization"] == "Bearer t0ken"
    assert all(value.isascii() and value.isprintable() for value in posting.headers.values())
    nobody, _ = composed(delivery(sender=""), WebhookFormat.MESSAGE)
    assert nobody.headers["Gatepost-Sender"] == "<>" and "Authorization" not in nobody.headers


def test_a_form_has_the_envelope_and_the_message():
    who = Recipient(recipient("j\u00fcrgen@x.test").address, frozenset({Notify.DELAY, Notify.FAILURE}), "rfc822;x")
    parameters = MailParameters(body=Body.EIGHT_BIT, smtputf8=True, ret=Ret.HEADERS, envid="e")
    content = b"Subject: x\r\n\r\nb\xc3\xbc\r\n--gatepost-\r\n"
    posting, body = composed(delivery(who, content=content, parameters=parameters), WebhookFormat.MULTIPART)
    form = email.message_from_bytes(b"Content-Type: " + posting.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
    assert form.get_content_type() == "multipart/form-data"
    names = [re.search(r'name="(\w+)"', part["Content-Disposition"])[1] for part in form.get_payload()]  # type: ignore
    assert names == ["envelope", "message"]
    assert json.loads(form.get_payload(0).get_payload(decode=True)) == {  # type: ignore
        "id": "ID",
        "sender": "ben@example.org",
        "recipients": [{"address": "j\u00fcrgen@x.test", "notify": ["DELAY", "FAILURE"], "orcpt": "rfc822;x"}],
        **{"body": "8BITMIME", "smtputf8": True, "ret": "HDRS", "envid": "e"},
    }
    assert b"Content-Type: message/rfc822\r\n\r\n" + content + b"\r\n--" in body


def test_the_idempotency_key_is_of_the_message_and_its_recipients():
    a, b = recipient("a@x.test"), recipient("b@x.test")
    keys = [idempotency_key(*args) for args in (("1", [a, b]), ("1", [b, a]), ("1", [a]), ("2", [a, b]))]
    assert keys[0] == keys[1] and len(set(keys)) == 3 and keys[0].startswith("1-")


@pytest.mark.parametrize(
    ("status", "text", "says", "fault"),
    [
        (200, b"", "delivered 250 2.0.0 HTTP 200", Fault.NONE),
        (202, b"queued as 7\n", "delivered 250 2.0.0 HTTP 202: queued as 7", Fault.NONE),
        (204, b"", "delivered 250 2.0.0 HTTP 204", Fault.NONE),
        (301, b"", "deferred 451 4.3.5 HTTP 301", Fault.OURS),
        (400, b"", "failed 554 5.0.0 HTTP 400", Fault.PEER),
        (401, b"", "deferred 451 4.3.5 HTTP 401", Fault.OURS),
        (403, b"", "failed 554 5.0.0 HTTP 403", Fault.PEER),
        (404, b"5.1.1 nobody", "failed 554 5.1.1 HTTP 404: nobody", Fault.PEER),
        (407, b"", "deferred 451 4.3.5 HTTP 407", Fault.OURS),
        (408, b"", "deferred 451 4.3.0 HTTP 408", Fault.PEER),
        (413, b"", "failed 552 5.3.4 HTTP 413", Fault.PEER),
        (421, b"", "deferred 451 4.3.0 HTTP 421", Fault.PEER),
        (425, b"", "deferred 451 4.3.0 HTTP 425", Fault.PEER),
        (429, b"", "deferred 451 4.4.5 HTTP 429", Fault.PEER),
        (500, b"5.1.1 x", "deferred 451 4.3.0 HTTP 500: 5.1.1 x", Fault.PEER),
        (503, b"4.2.2 full", "deferred 451 4.2.2 HTTP 503: full", Fault.PEER),
        (599, b"", "deferred 451 4.3.0 HTTP 599", Fault.PEER),
        (999, b"", "deferred 451 4.3.0 HTTP 999", Fault.PEER),
    ],
)
def test_each_status_has_its_meaning(status: int, text: bytes, says: str, fault: Fault):
    outcome = judge(status, text, "", NOW, "hook.test")
    assert (f"{outcome.result} {outcome.reply}", outcome.fault, outcome.host) == (says, fault, "hook.test")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("999999999", 86400.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Sun, 09 Sep 2001 01:47:40 GMT", 60.0),
        ("Sun, 09 Sep 2001 01:45:40 GMT", 0.0),
        ("Sun, 09 Sep 9999 01:45:40 GMT", 86400.0),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str, seconds: float):
    assert parse_retry_after(value, NOW) == seconds


@given(st.integers(100, 999), st.binary(max_size=200), st.text(max_size=60))
def test_whatever_a_server_answers_has_a_meaning(status: int, text: bytes, retry_after: str):
    outcome = judge(status, text, retry_after, NOW, "hook.test")
    assert outcome.reply.code // 100 == {"delivered": 2, "deferred": 4, "failed": 5}[outcome.result]
    assert 0.0 <= outcome.retry_after <= 86400.0
    assert (outcome.result == "delivered") == (200 <= status < 300)
