"""What a policy server hears from Postfix and from us in the same dialogue, and what its answers do there and here."""

from __future__ import annotations

import shutil
import smtplib
import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_string

import pytest

from tests.support.clients import transact
from tests.support.gatepost import GatepostProcess
from tests.support.policy_server import PolicyServer, Request
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import free_port, wait_until
from tests.support.servers import Certificate, Unbound

pytestmark = pytest.mark.slow

STAGES = ["connect", "helo", "mail", "rcpt", "data", "message"]
STATES = ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE"]
CONTEXT = "the context"
SENDER, ANNA, BEN = '"a b"@sender.test', "anna@example.org", "Ben@Example.org"
REFUSED = "refused@example.org"
"""Who is refused by what comes after the policy server in the list."""
CONTENT = b"Subject: size counts\r\n\r\nHello\r\n.a line that begins with a dot\r\n"
VERSIONS = ((3, 7), (3, 8), (3, 12))
"""Those between which the attributes differ."""


@dataclass(frozen=True)
class Rig:
    """A Postfix and a Gatepost that ask the same policy server wherever they can, and where their mail goes."""

    server: PolicyServer
    postfix: Postfix
    gate: GatepostProcess
    sink: SmtpSink
    other: SmtpSink

    @property
    def ports(self) -> tuple[int, int]:
        return self.postfix.port, self.gate.port

    def both(self, dialogue: Callable[[int], None]) -> tuple[list[Request], list[Request]]:
        """The requests that come of the same dialogue with Postfix, and with us."""
        heard = []
        for port in self.ports:
            self.server.take()
            dialogue(port)
            heard.append(self.server.take())
        return heard[0], heard[1]


def start_postfix(server: PolicyServer, sink: SmtpSink, certificate: Certificate) -> Postfix:
    check = f"check_policy_service {server.address}"
    refused = f"check_recipient_access inline:{{ {{ {REFUSED} = 554 5.7.1 no }} }}"
    return Postfix(
        {
            "smtpd_client_restrictions": check,
            "smtpd_helo_restrictions": check,
            "smtpd_sender_restrictions": check,
            "smtpd_relay_restrictions": "",
            "smtpd_recipient_restrictions": f"{check}, {refused}, permit_mynetworks, reject",
            "smtpd_data_restrictions": check,
            "smtpd_end_of_data_restrictions": check,
            "smtpd_delay_reject": "no",
            "smtpd_policy_service_policy_context": CONTEXT,
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": str(certificate.certificate),
            "smtpd_tls_key_file": str(certificate.key),
            "relayhost": f"[127.0.0.1]:{sink.port}",
        }
    )


def start_gatepost(
    server: PolicyServer, sink: SmtpSink, certificate: Certificate, dns: Unbound, version: str
) -> GatepostProcess:
    entry = {"connect": server.address, "at": STAGES, "policy_context": CONTEXT, "postfix": version}
    refused = {"match": "recipient", "entries": [f"{REFUSED} 554 5.7.1 no"]}
    return GatepostProcess(
        {
            "domains": {"example.org": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any"}},
            "dns": {"nameservers": [dns.address]},
            "listeners": [
                {
                    "address": f"127.0.0.1:{free_port()}",
                    "role": "edge",
                    "tls": {"certificate": str(certificate.certificate), "key": str(certificate.key)},
                }
            ],
            "pipeline": [{"rdns": {}}, {"delegation": entry}, {"access": {"lists": [refused]}}],
        }
    )


@pytest.fixture(scope="module")
def rig(certificate) -> Iterator[Rig]:
    server, sink, other = PolicyServer(), SmtpSink(dump=True), SmtpSink(dump=True)
    # It knows 127.0.0.1 and localhost by itself, as the system's resolver that Postfix asks does.
    dns = Unbound([])
    postfix = start_postfix(server, sink, certificate)
    major, minor = max(version for version in VERSIONS if version <= postfix.version)
    gate = start_gatepost(server, sink, certificate, dns, f"{major}.{minor}")
    yield Rig(server, postfix, gate, sink, other)
    gate.stop()
    shutil.rmtree(gate.directory, ignore_errors=True)
    for one in (postfix, dns, sink, other, server):
        one.stop()


def client(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30)


def dialogue(port: int, *, tls: bool = False) -> None:
    """Two messages: one with a declared size and two recipients, one from the null sender with a single one."""
    with client(port) as smtp:
        assert smtp.ehlo()[0] == 250
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            smtp.starttls(context=context)
            assert smtp.ehlo()[0] == 250
        replies = [
            transact(smtp, SENDER, [ANNA, BEN], CONTENT, parameters=" SIZE=1234"),
            transact(smtp, "", [BEN], CONTENT),
        ]
        assert [code for code, _ in replies] == [250, 250]


# What it hears

DIFFERENT = {
    "client_port": "each connection has its own",
    "server_port": "each server has its own",
    "queue_id": "they are each server's own, and a test of their own looks at when they are there",
    "instance": "they are each server's own, and a test of their own looks at when they are there",
}
"""Attributes whose values are not compared, and why."""


def compared(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.attributes if name not in DIFFERENT}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "over TLS"])
def test_a_policy_server_hears_from_us_what_it_hears_from_postfix(rig, tls):
    theirs, ours = rig.both(lambda port: dialogue(port, tls=tls))
    hello = ["CONNECT", "EHLO", "EHLO"] if tls else ["CONNECT", "EHLO"]
    first, second = ["MAIL", "RCPT", "RCPT", "DATA", "END-OF-MESSAGE"], ["MAIL", "RCPT", "DATA", "END-OF-MESSAGE"]
    assert [request["protocol_state"] for request in theirs] == [*hello, *first, *second]
    assert [request["protocol_state"] for request in ours] == [*hello, *first, *second]
    for their, our in zip(theirs, ours, strict=True):
        assert our.names == their.names
        wanted = compared(their)
        if their is theirs[1]:
            # Postfix notes only after it has asked that the client said EHLO and not HELO.
            assert wanted["protocol_name"] == "SMTP"
            wanted["protocol_name"] = "ESMTP"
        assert compared(our) == wanted
    assert theirs[-1]["encryption_protocol"].startswith("TLS") is tls
    assert theirs[3 + tls]["client_name"] == "localhost"


def test_requests_about_one_message_have_one_instance_and_another_message_has_another(rig):
    theirs, ours = rig.both(dialogue)
    for requests in (theirs, ours):
        # From the first RCPT on.
        first, second = {r["instance"] for r in requests[3:7]}, {r["instance"] for r in requests[8:]}
        assert len(first) == len(second) == 1
        assert first != second
        assert {r["instance"] for r in requests[:2]} == {""}
        assert len({r["queue_id"] for r in requests[5:7]}) == 1
    # At MAIL Postfix knows neither, and the queue id only when it has taken a recipient; we know both.
    assert (theirs[2]["instance"], theirs[2]["queue_id"], theirs[3]["queue_id"]) == ("", "", "")
    for message in (ours[2:7], ours[7:]):
        (known,) = {(r["instance"], r["queue_id"]) for r in message}
        assert known[0] == known[1] != ""


def test_a_session_is_asked_about_over_one_connection(rig):
    for requests in rig.both(dialogue):
        assert len({request.connection for request in requests}) == 1


def test_a_session_leaves_its_connection_to_the_next_ones(rig):
    seen: list[int] = []

    def known() -> bool:
        rig.server.take()
        dialogue(rig.gate.port)
        seen.append(rig.server.take()[0].connection)
        return seen[-1] in seen[:-1]

    # Gatepost lets go of it a moment after the session's end.
    wait_until(known, "a session has the connection of another one")
    assert len(seen) < 20


# What its answers do


@dataclass(frozen=True)
class Did:
    """What became of a message: code and status of the reply, and, where it was handed on, its recipients and header
    fields whose names begin with X-Test."""

    reply: tuple[int, str]
    recipients: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def deliver(rig: Rig, port: int, recipient: str = ANNA, *, by: SmtpSink | None = None) -> Did:
    """Send one message, and wait until it has been handed on, where it was taken."""
    marker = uuid.uuid4().hex
    try:
        with client(port) as smtp:
            code, said = smtp.ehlo()
            text = said.decode()
            if code == 250:
                content = f"Subject: {marker}\r\n\r\nHello\r\n".encode()
                code, text = transact(smtp, "ann@sender.test", [recipient], content)
    except smtplib.SMTPConnectError as error:
        code, text = error.smtp_code, str(error.smtp_error, "ascii")
    if code != 250:
        return Did((code, text.split()[0]))
    sink = by or rig.sink
    mail = wait_until(lambda: next((mail for mail in sink.messages() if marker in mail), None), "it is handed on")
    fields = message_from_string(mail)
    recipients = [line.partition("<")[2].partition(">")[0] for line in fields.get_all("X-Rcpt-Args", [])]
    tests = [f"{name}: {value}" for name, value in fields.items() if name.startswith("X-Test")]
    return Did((code, text.split()[0]), tuple(sorted(recipients)), tuple(tests))


@pytest.fixture
def answering(rig) -> Iterator[Callable[[str, str], None]]:
    """``answering(action, state)``: that action at that protocol state, and DUNNO at all others."""

    def answer(action: str, state: str) -> None:
        rig.server.answer = lambda request: action if request["protocol_state"] == state else "DUNNO"

    yield answer
    rig.server.always("DUNNO")


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("RCPT", "DUNNO"),
        ("RCPT", "OK"),
        ("RCPT", "4711"),
        ("RCPT", "550"),
        ("RCPT", "INFO look"),
        ("MAIL", "WARN look"),
        ("EHLO", "REJECT"),
        ("MAIL", "REJECT"),
        ("RCPT", "REJECT"),
        ("RCPT", "reject 5.1.1 nobody here"),
        ("RCPT", "REJECT 4.1.1 of the wrong class"),
        ("DATA", "REJECT no data"),
        ("END-OF-MESSAGE", "reject at the end"),
        ("RCPT", "DEFER"),
        ("END-OF-MESSAGE", "DEFER 4.2.0 later"),
        ("RCPT", "451 4.3.5 trouble"),
        ("MAIL", "550 5.7.23 SPF"),
        ("RCPT", "452 no status"),
        ("RCPT", "defer_if_permit Greylisted"),
        ("END-OF-MESSAGE", "DEFER_IF_PERMIT 4.3.0 later"),
        ("RCPT", "DEFER_IF_REJECT nobody does"),
        ("RCPT", "PREPEND X-Test: by the server"),
        ("MAIL", "prepend X-Test-Null:"),
        ("RCPT", "BCC archive@example.org"),
        ("DATA", "BCC archive@example.org"),
        ("RCPT", "REDIRECT other@example.org"),
        ("END-OF-MESSAGE", "REDIRECT late@example.org"),
    ],
)
def test_an_action_does_here_what_it_does_there(rig, answering, state, action):
    answering(action, state)
    theirs, ours = (deliver(rig, port) for port in rig.ports)
    # When a message is taken each server says what it likes behind 250.
    assert ours == theirs


@pytest.mark.parametrize("action", ["OK", "DUNNO", "DEFER_IF_PERMIT later", "DEFER_IF_REJECT later", "REJECT at once"])
def test_what_comes_later_in_the_list_is_heard_or_not_as_there(rig, answering, action):
    answering(action, "RCPT")
    theirs, ours = (deliver(rig, port, REFUSED) for port in rig.ports)
    assert ours == theirs


def test_a_filter_is_where_the_message_goes_there_and_here(rig, answering):
    answering(f"FILTER smtp:[127.0.0.1]:{rig.other.port}", "RCPT")
    theirs, ours = (deliver(rig, port, by=rig.other) for port in rig.ports)
    assert ours == theirs == Did((250, "2.0.0"), (ANNA,))


def test_after_421_and_521_nothing_more_is_said(rig, answering):
    for action in ("421 4.7.0 bye", "521 5.7.0 bye"):
        answering(action, "RCPT")
        for port in rig.ports:
            with client(port) as smtp:
                smtp.ehlo()
                smtp.docmd("MAIL", "FROM:<ann@sender.test>")
                assert smtp.docmd("RCPT", f"TO:<{ANNA}>")[0] == int(action[:3])
                with pytest.raises(smtplib.SMTPServerDisconnected):
                    smtp.noop()


def test_a_client_that_is_refused_at_connect_is_greeted_with_a_refusal_there_and_here(rig, answering):
    answering("REJECT go away", "CONNECT")
    theirs, ours = (deliver(rig, port) for port in rig.ports)
    assert ours.reply == (554, "5.7.1")
    assert theirs.reply[0] == 554


@pytest.mark.parametrize(
    ("action", "outcome", "kept"), [("DISCARD spam", "discarded", 0), ("HOLD odd", "quarantined", 1)]
)
def test_hold_and_discard_keep_a_message_from_its_recipient_there_and_here(rig, answering, action, outcome, kept):
    answering(action, "RCPT")
    wait_until(lambda: not rig.postfix.queue_length(), "nothing is under way")
    handed_on, held = rig.sink.count, len(rig.gate.queue())
    for port in rig.ports:
        with client(port) as smtp:
            smtp.ehlo()
            assert transact(smtp, "ann@sender.test", [ANNA])[0] == 250
    assert rig.gate.metric("gatepost_messages_total", outcome=outcome) == 1
    assert [message["state"] for message in rig.gate.queue()[held:]] == ["quarantine"] * kept
    assert rig.postfix.queue_length() == kept
    # What comes after it is handed on, and it is not.
    rig.server.always("DUNNO")
    for port in rig.ports:
        assert deliver(rig, port).reply[0] == 250
    assert rig.sink.count == handed_on + len(rig.ports)


def test_info_and_warn_are_in_the_log(rig, answering):
    answering("WARN look at this", "RCPT")
    for port in rig.ports:
        assert deliver(rig, port).reply[0] == 250
    assert "look at this" in rig.postfix.log
    assert '"delegation.said"' in rig.gate.log
    assert '"text":"look at this"' in rig.gate.log
