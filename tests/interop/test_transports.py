"""Through Gatepost into real delivery agents, mailboxes that other programs use too, and a webhook."""

from __future__ import annotations

import asyncio
import json
import mailbox
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.testing import ManualClock
from gateway.services.clock import SystemClock
from gateway.transport.maildir import MaildirTransport
from gateway.transport.mbox import MboxTransport
from gateway.transport.options import MaildirOptions
from gateway.transport.transport import Destination, Kind
from tests.interop.transports import DOMAIN, mails, send, to
from tests.support.agents import DovecotLda, Maildrop, Procmail
from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.hook import Hook, token
from tests.support.process import binary, wait_until
from tests.support.servers import Certificate, Unbound
from tests.transport.peer import delivery, run, statuses

pytestmark = pytest.mark.slow

AS_MAIL: dict[str, Any] = {"user": "mail", "group": "mail", "extra_groups": [], "cwd": "/"}
LARGER = b"Subject: large\r\n\r\n" + (b"z" * 70 + b"\r\n") * 600
STORED = MESSAGE.replace(b"\r\n", b"\n")


def last(gate: Any, id: str) -> dict[str, str]:
    """The last reply for each recipient of a message that was tried, by local part."""

    def tried() -> dict[str, str] | None:
        found = [attempt for part in gate.cli("explain", id) for attempt in part["attempts"]]
        return {a["recipient"].partition("@")[0]: a["reply"] for a in found} or None

    return wait_until(tried, "it was tried")


def as_nail_sees_it(path: Path) -> list[str]:
    """Subjects, as s-nail's summary of the headers shows them."""
    argv = [binary("s-nail"), "-:/", "-S", "noheader", "-S", "headline=%s", "-R", "-H", "-f", str(path)]
    text = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=30).stdout.decode()
    return [line.strip() for line in text.splitlines()]


# --- delivery agents --------------------------------------------------------------------------------------------------


def test_procmail_files_mail_and_its_refusal_bounces(gatepost, directory: Path):
    procmail = Procmail(directory)
    gate = gatepost(**to(procmail.transport))
    id = send(gate, "Anna", "unknown")
    send(gate, "anna", sender="")

    replies = last(gate, id)
    assert replies["unknown"] == "550 5.1.1 procmail ended with status 67 (EX_NOUSER)"
    assert replies["Anna"] == "250 2.0.0 procmail took it"
    wait_until(lambda: len(mails(procmail.mail / "anna")) == 2, "both are in the mailbox")
    text = (procmail.mail / "anna").read_bytes()
    assert text.count(STORED) == 2 and b"\nReturn-Path: <ann@sender.test>\nDelivered-To: Anna@example.org\n" in text
    assert b"From ann@sender.test " in text and b"From MAILER-DAEMON " in text
    assert as_nail_sees_it(procmail.mail / "anna") == ["A test", "A test"]
    assert gate.metric("gatepost_attempts_total", outcome="failed", transport="pipe") == 1
    assert gate.metric("gatepost_attempts_total", outcome="delivered", transport="pipe") == 2


def test_procmail_that_may_not_write_defers(gatepost, directory: Path):
    gate = gatepost(**to(Procmail(directory).transport))
    reply = last(gate, send(gate, "full"))["full"]
    assert reply.startswith("451 4.3.0 procmail ended with status 75 (EX_TEMPFAIL)")


def test_maildrop_files_mail_and_its_words_are_in_the_reply(gatepost, directory: Path):
    maildrop = Maildrop(directory)
    gate = gatepost(**to(maildrop.transport))
    id = send(gate, "anna", "unknown", content=LARGER)
    assert last(gate, id)["unknown"] == ("550 5.1.1 maildrop ended with status 67 (EX_NOUSER): no such user here")
    (path,) = wait_until(lambda: list((maildrop.mail / "anna" / "new").iterdir()), "it is in the Maildir")
    assert path.read_bytes().endswith(LARGER.replace(b"\r\n", b"\n"))
    assert path.owner() == "mail"


@pytest.mark.parametrize(
    ("tempfail", "says"),
    [
        (False, "550 5.7.0 dovecot-lda ended with status 77 (EX_NOPERM): "),
        (True, "451 4.3.0 dovecot-lda ended with status 75 "),
    ],
)
def test_dovecot_lda_stores_mail_until_the_mailbox_is_full(gatepost, directory: Path, tempfail: bool, says: str):
    lda = DovecotLda(directory, tempfail=tempfail)
    gate = gatepost(**to(lda.transport))
    assert last(gate, send(gate, "anna"))["anna"] == "250 2.0.0 dovecot-lda took it"
    assert last(gate, send(gate, "anna", content=LARGER))["anna"].startswith(says)
    (path,) = (lda.mail / "anna" / "new").iterdir()
    assert path.read_bytes().endswith(STORED)
    assert b"Return-Path: <ann@sender.test>\n" in path.read_bytes()
    assert "Quota exceeded" in (lda.mail / "log").read_text()


# --- mailboxes that others use too ------------------------------------------------------------------------------------


def test_procmail_python_and_we_write_into_one_mbox_at_once(directory: Path):
    procmail = Procmail(directory)
    box = procmail.mail / "anna"
    letter = "From x@y Sun Sep  9 01:46:40 2001\nSubject: procmail\n\n" + "From the heart\n" * 2000
    # It writes with the rights of another user, we with ours; the file is there already and belongs to it.
    box.touch()
    box.chmod(0o666)
    agents = []
    for _ in range(10):
        agent = subprocess.Popen([*procmail.command[:-1], "anna"], stdin=subprocess.PIPE, **AS_MAIL)
        assert agent.stdin is not None
        agents.append(agent)
    content = b"Subject: ours\r\n\r\n" + b"From the heart\r\n" * 2000

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def feed(agent: subprocess.Popen[bytes]) -> None:
            await loop.run_in_executor(threads, agent.communicate, letter.encode())

        def keep_notes() -> None:
            # Python's own module takes both locks as well, and gives up at once when it cannot have them.
            kept = 0
            while kept < 3:
                notes = mailbox.mbox(box)
                try:
                    notes.lock()
                except mailbox.ExternalClashError:
                    time.sleep(0.01)  # noqa: TID251 - in a thread
                    continue
                notes.add(b"Subject: python\n\n" + b"x\n" * 2000)
                notes.flush()
                notes.unlock()
                notes.close()
                kept += 1

        transport = MboxTransport(Destination(Kind.MBOX, path=str(box)), "gate.test", SystemClock())
        ours = [transport.deliver(delivery(content=content)) for _ in range(10)]
        results = await asyncio.gather(*ours, *map(feed, agents), loop.run_in_executor(threads, keep_notes))
        assert [statuses(outcomes) for outcomes in results[:10]] == [["delivered 2.0.0"]] * 10

    with ThreadPoolExecutor(11) as threads:
        run(main())
    assert [agent.wait(30) for agent in agents] == [0] * 10
    found = mails(box)
    assert sorted(text.partition(b"Subject: ")[2].partition(b"\n")[0] for text in found) == (
        [b"ours"] * 10 + [b"procmail"] * 10 + [b"python"] * 3
    )
    assert all(text.count(b">From the heart") == 2000 for text in found if b"Subject: python" not in text)


def test_an_mbox_is_filled_by_two_workers_and_read_by_other_programs(gatepost, directory: Path):
    path = directory / "boxes" / DOMAIN / "anna"
    gate = gatepost(
        workers=2,
        domains={DOMAIN: {"next_hop": f"mbox:{directory}/boxes/{{domain}}/{{local}}", "recipients": "any"}},
    )
    content = b"Subject: note\r\n\r\nFrom the first line\r\n>From the second\r\n.\r\n"
    with connect(gate.port) as client:
        for _ in range(40):
            queue_id(transact(client, "ann@sender.test", [f"anna@{DOMAIN}"], content))
    gate.wait_empty()
    found = mails(path)
    assert len(found) == 40 and as_nail_sees_it(path) == ["note"] * 40
    assert all(text.endswith(b"\n\n>From the first line\n>>From the second\n.\n\n"[1:-1]) for text in found)
    assert gate.metric("gatepost_attempts_total", outcome="delivered", transport="mbox") == 40
    assert not path.with_name("anna.lock").exists()


def test_deliverquota_and_we_count_alike(directory: Path):
    box = directory / "box"
    maildirmake = binary("maildirmake.maildrop")
    subprocess.run([maildirmake, str(box)], check=True)
    subprocess.run([maildirmake, "-q", "10000S,5C", str(box)], check=True)
    deliverquota = [binary("deliverquota"), str(box)]
    transport = MaildirTransport(Destination(Kind.MAILDIR, path=str(box)), "gate.test", ManualClock())
    for _ in range(2):
        subprocess.run(deliverquota, input=b"Subject: x\n\n" + b"y" * 500, check=True)
        assert statuses(run(transport.deliver(delivery(content=b"z" * 500)))) == ["delivered 2.0.0"]
    lines = [line.split() for line in (box / "maildirsize").read_text().splitlines()]
    assert lines[0] == ["10000S,5C"]
    size = sum(path.stat().st_size for path in (box / "new").iterdir())
    assert (sum(int(line[0]) for line in lines[1:]), sum(int(line[1]) for line in lines[1:])) == (size, 4)

    subprocess.run(deliverquota, input=b"Subject: x\n\ny", check=True)
    assert statuses(run(transport.deliver(delivery()))) == ["deferred 4.2.2"]
    assert subprocess.run(deliverquota, input=b"x", capture_output=True).returncode == 77


def test_dovecot_keeps_to_the_quota_that_we_wrote(directory: Path):
    lda = DovecotLda(directory)
    options = MaildirOptions(quota=20480)
    destination = Destination(Kind.MAILDIR, path=f"{lda.mail}/{{local}}", options=options)
    transport = MaildirTransport(destination, "gate.test", ManualClock())
    large = delivery(f"anna@{DOMAIN}", content=b"Subject: x\r\n\r\n" + b"z" * 15000)
    assert statuses(run(transport.deliver(large))) == ["delivered 2.0.0"]
    subprocess.run(["chown", "-R", "mail:mail", str(lda.mail)], check=True)

    fill = ["ann@x.test" if w == "{sender}" else f"anna@{DOMAIN}" if w == "{recipient}" else w for w in lda.command]
    environment = {"HOME": str(lda.mail), "USER": "anna", "PATH": "/usr/bin:/bin"}
    for size, status in ((10000, 77), (3000, 0)):
        content = b"Subject: y\n\n" + b"z" * size
        ended = subprocess.run(fill, input=content, env=environment, capture_output=True, **AS_MAIL)
        assert ended.returncode == status, ended.stderr
    assert statuses(run(transport.deliver(delivery(f"anna@{DOMAIN}", content=b"z" * 3000)))) == ["deferred 4.2.2"]


# --- a webhook --------------------------------------------------------------------------------------------------------


@pytest.fixture
def named(running: Callable[[Any], Any]) -> str:
    """A name server that knows where ``localhost.test`` is."""
    return str(running(Unbound(["localhost.test. IN A 127.0.0.1", "hook.test. IN A 127.0.0.1"])).address)


def test_a_webhook_gets_mail_over_verified_tls(gatepost, directory: Path, running, certificate: Certificate):
    hook = running(Hook(certificate))
    secret = "a-token-that-nobody-sees"
    http = {
        "url": f"https://localhost:{hook.port}/in?key=hush-hush",
        "tls_ca": str(certificate.certificate),
        "token_file": token(directory, secret),
        "format": "multipart",
    }
    gate = gatepost(**to({"http": http}))
    id = send(gate, "anna", "ben")

    assert last(gate, id) == {"anna": "250 2.0.0 HTTP 200: noted", "ben": "250 2.0.0 HTTP 200: noted"}
    (posted,) = hook.posted
    assert posted.path == "/in?key=hush-hush" and posted.headers["authorization"] == f"Bearer {secret}"
    assert MESSAGE in posted.body and b'"anna@example.org"' in posted.body
    shown = gate.log + json.dumps(gate.cli("explain", id)) + gate.http("GET", "/metrics")[1]
    assert secret not in shown and "hush-hush" not in shown
    assert "transport:it" in gate.log
    assert gate.metric("gatepost_attempts_total", outcome="delivered", transport="http") == 2


def test_a_webhook_with_another_name_in_its_certificate_gets_nothing(
    gatepost, running, certificate: Certificate, named: str
):
    hook = running(Hook(certificate))
    http = {"url": f"https://hook.test:{hook.port}/", "tls_ca": str(certificate.certificate)}
    gate = gatepost(**to({"http": http}, dns={"nameservers": [named], "timeout": "5s"}))
    reply = last(gate, send(gate, "anna"))["anna"]
    assert reply.startswith("451 4.7.5 hook.test: [127.0.0.1]: ") and "certificate verify failed" in reply
    assert hook.posted == []


def test_a_webhook_that_wants_to_be_left_alone_is_and_the_next_attempt_has_the_same_key(gatepost, running, named: str):
    hook = running(Hook(None, [(503, "3600"), (200, "")]))
    gate = gatepost(
        **to({"http": {"url": f"http://hook.test:{hook.port}/"}}, dns={"nameservers": [named], "timeout": "5s"})
    )
    id = send(gate, "anna")
    assert last(gate, id)["anna"] == "451 4.4.5 HTTP 503: noted"
    (message,) = wait_until(lambda: [m for m in gate.queue() if m["recipients"][0]["attempts"]], "it was settled")
    assert 3500 < message["recipients"][0]["due"] - message["received"] < 3700
    gate.run("queue", "flush")
    gate.wait_empty()
    first, second = hook.posted
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] and first.body == second.body
