"""The same tables in Postfix and here: what cleanup(8) decides and changes, Gatepost decides and changes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.clients import connect, transact
from tests.support.gatepost import GatepostProcess
from tests.support.postfix import Postfix
from tests.support.process import new_directory, wait_until

pytestmark = pytest.mark.slow

HEADER = r"""
# Decisions
/^Subject: .*\<lottery\>/        REJECT
/^Subject: .*casino/             REJECT no games, please
/^Subject: later/                REJECT 4.7.1 come back
/^Subject: .*gone/               DISCARD as agreed
/^Subject: .*look at/            HOLD for the postmaster
/^Subject: (.*)\[([a-z]+)\](.*)/ REPLACE Subject: $1($2)$3
if /^X-/
/^X-Trace:/                      IGNORE
!/^X-(Keep|Trace|To|Copy|Mark):/ PREPEND X-Seen: an unknown field
/^X-Mark: *(.*)/                 REPLACE X-Marked:	$1
/^X-To: ([a-z]+)/                REDIRECT carl@example.org
/^X-Copy:/                       BCC archive@example.org
endif
/^To:.*ben@/                     PREPEND X-For: Ben
/^List-Id:[[:space:]]+<(.{1,20})>/ WARN a list: $1
/^Comments: first.
  line/                          INFO in two lines
/^Keywords: (a|ab)(c|bcd)(d*)/   REPLACE Keywords: $1-$2-$3
/^Content-/                      REPLACE X-Never: header_checks do not see fields about MIME
"""
MIME = r"""
/name="?[^"]*\.(exe|scr)"?/      REJECT a program: .$1
/^Content-Disposition: attachment;[[:space:]]*filename="(.*)\.txt"/
  REPLACE Content-Disposition: attachment; filename="$1.text"
/^Content-Description:/          IGNORE
/^X-Part:/                       PREPEND X-Part-Seen: yes
"""
NESTED = r"""
/^Subject: .*nested secret/      REJECT in an attached message
/^Subject: (.*)/                 REPLACE Subject: [attached] $1
/^Received:/                     IGNORE
"""
BODY = r"""
~^[[:alnum:]+/]{60,}$~           OK
/buy (now|later) at/             REJECT an offer
/^remove this line$/             IGNORE
/^>+ ?(.*)$/                     REPLACE | $1
/^-- $/                          PREPEND [signature follows]
!/[a-z0-9]/                      WARN no letters
/^a{,2}b$/                       REPLACE up to two
/[\.]dot/                        REPLACE backslash or dot
/x\\y/                           REPLACE backslash
"""


def plain(subject: str = "hello", body: str = "Hello,\nhow are you?\n", **fields: str) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@sender.test", "anna@example.org", subject
    message["Date"], message["Message-ID"] = "Sun, 01 Nov 2026 10:00:00 +0000", "<1@sender.test>"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content(body)
    return message.as_bytes().replace(b"\n", b"\r\n")


def with_parts(filename: str, *, nested: str = "the one inside", description: str = "") -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@sender.test", "anna@example.org", "parts"
    message["Date"], message["Message-ID"] = "Sun, 01 Nov 2026 10:00:00 +0000", "<2@sender.test>"
    message.set_content("> quoted\n> text\nremove this line\n-- \nAnn\n")
    message.add_alternative("<p>text</p>\nremove this line\n", subtype="html")
    message.add_attachment(bytes(range(256)) * 40, maintype="application", subtype="octet-stream", filename=filename)
    inner = EmailMessage()
    inner["From"], inner["Subject"], inner["Received"] = "eve@other.test", nested, "by other.test; today"
    inner.set_content("> inner\nremove this line\n")
    message.add_attachment(inner)
    for part in message.iter_parts():
        part["X-Part"] = "1"
        if description:
            part["Content-Description"] = description
    return message.as_bytes().replace(b"\n", b"\r\n")


def raw(*lines: bytes) -> bytes:
    head = (b"From: ann@sender.test", b"To: anna@example.org", b"Date: Sun, 01 Nov 2026 10:00:00 +0000")
    return b"".join(line + b"\r\n" for line in (*head, b"Message-ID: <3@sender.test>", *lines))


MULTIPART = b'Content-Type: multipart/mixed; boundary="b"'
MESSAGES = {
    "plain": plain(),
    "rejected": plain("win the lottery now"),
    "no word boundary": plain("lotterywinner"),
    "rejected with a text": plain("our CASINO"),
    "deferred": plain("later, please"),
    "discarded": plain("all gone"),
    "held": plain("please look at this"),
    "held and changed": plain("please look at this", X_Trace="1"),
    "replaced": plain("Re: [list] news"),
    "a field deleted": plain(X_Trace="abc", X_Keep="1"),
    "a field put before another": plain(X_Odd="1", X_Odder="2"),
    "a field replaced by one of another name": plain(X_Mark="something  here"),
    "a folded field": raw(b"Comments: first", b"  line", b"\tand more", b"Subject: x", b"", b"> x"),
    "the longest match": plain(Keywords="abcd"),
    "redirected": plain(X_To="carl"),
    "copied": plain(X_Copy="yes"),
    "redirected and copied": plain(X_To="carl", X_Copy="yes"),
    "an offer": plain(body="You can buy now at our shop\n"),
    "lines": plain(body="> a\n>> b\nremove this line\n\n***\naab\naaab\nx.dot\nx\\dot\nx\\y\n-- \nAnn\n"),
    "parts": with_parts("notes.txt"),
    "parts with descriptions": with_parts("notes.txt", description="a note"),
    "a program": with_parts("setup.exe"),
    "a secret in an attached message": with_parts("a.dat", nested="a nested secret"),
    "no header in a part": raw(MULTIPART, b"", b"--b", b"", b"> x", b"--b", b"no field", b"> y", b"--b--", b"> after"),
    "a field in the body": raw(b"", b"X-Trace: not a field here", b"> z"),
    "no empty line": raw(b"Subject: x", b"this is no field", b"remove this line", b"> more"),
    "a boundary that begins with another": raw(
        MULTIPART, b"", b"--bc", b"X-Part: 1", b"", b"> x", b"--b", b"Content-Description: 2", b"", b"> y", b"--b--"
    ),
    "a digest": raw(
        b"Content-Type: multipart/digest; boundary=d", b"", b"--d", b"", b"Subject: one", b"", b"> a", b"--d",
        b"Content-Type: text/plain", b"", b"Subject: two", b"--d--",
    ),
    "a multipart in a multipart that is not ended": raw(
        MULTIPART, b"", b"--b", b"Content-Type: multipart/alternative; boundary=c", b"", b"--c", b"X-Part: 1", b"",
        b"> x", b"--b", b"X-Part: 2", b"", b"--c", b"X-Part: none", b"--b--",
    ),
    "a message in base64": raw(
        MULTIPART, b"", b"--b", b"Content-Type: message/rfc822", b"Content-Transfer-Encoding: base64", b"",
        b"U3ViamVjdDogeA==", b"--b--",
    ),
    "a line longer than is looked at": raw(b"Subject: long", b"", b"y" * 900 + b" buy now at"),
    "eight bits": raw(b"Subject: \xe9t\xe9 [list] x\xff", b"Content-Type: text/plain; charset=latin1", b"", b"> \xe9"),
    "an attached message at the end of the header": raw(
        b"Content-Type: message/rfc822", b"", b"Subject: inside", b"X-Trace: stays", b"", b"> x"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tables() -> Iterator[Path]:
    directory = new_directory("tables")
    for name, text in (("header", HEADER), ("mime", MIME), ("nested", NESTED), ("body", BODY)):
        (directory / name).write_text(text.lstrip("\n"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def postfix(tables: Path) -> Iterator[Postfix]:
    server = Postfix.store(
        "example.org",
        ["anna", "carl", "archive"],
        header_checks=f"regexp:{tables}/header",
        mime_header_checks=f"regexp:{tables}/mime",
        nested_header_checks=f"regexp:{tables}/nested",
        body_checks=f"regexp:{tables}/body",
        local_header_rewrite_clients="",
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def gate(tables: Path) -> Iterator[GatepostProcess]:
    entry = {
        "tables": [
            {"match": [place], "kind": "regexp", "file": str(tables / name)}
            for place, name in (
                ("header", "header"),
                ("mime-header", "mime"),
                ("nested-header", "nested"),
                ("body", "body"),
            )
        ]
    }
    mail = tables / "mail"
    process = GatepostProcess(
        {
            "domains": {"example.org": {"next_hop": f"maildir:{mail}/{{local}}", "recipients": "any"}},
            "pipeline": [{"content-checks": entry}],
        }
    )
    yield process
    process.stop()
    shutil.rmtree(process.directory)


ADDED = re.compile(rb"(?:Return-Path|X-Original-To|Delivered-To):.*\r?\n", re.IGNORECASE)
RECEIVED = re.compile(rb"Received: from .*\r?\n(?:[ \t].*\r?\n)*")
USERS = ("anna", "carl", "archive")


def sent(port: int, content: bytes) -> tuple[int, str]:
    with connect(port) as smtp:
        code, text = transact(smtp, "ann@sender.test", ["anna@example.org"], content)
    text = text.partition(" (ref ")[0]
    return code, "" if code == 250 else text


def without_trace(octets: bytes) -> bytes:
    """A message as it was delivered, without what each server writes at the top."""
    octets = octets.replace(b"\r\n", b"\n")
    at = 0
    while match := ADDED.match(octets, at) or RECEIVED.match(octets, at):
        at = match.end()
    return octets[at:]


def delivered(root: Path) -> dict[tuple[str, str], bytes]:
    """What has come into the mailboxes, by the name of the message and the user."""
    found = {}
    for user in USERS:
        for path in root.glob(f"{user}/new/*"):
            octets = without_trace(path.read_bytes())
            number = re.search(rb"Message-ID: <(\d+)@", octets)
            assert number, octets
            found[list(MESSAGES)[int(number[1])], user] = octets
    return found


def test_postfix_and_gatepost_do_the_same_with_the_same_tables(postfix, gate, tables):
    contents = {
        name: re.sub(rb"(?m)^Message-ID: <\d+@", b"Message-ID: <%d@" % number, content)
        for number, (name, content) in enumerate(MESSAGES.items())
    }
    theirs = {name: sent(postfix.port, content) for name, content in contents.items()}
    ours = {name: sent(gate.port, content) for name, content in contents.items()}
    assert ours == theirs
    assert {code for code, _ in ours.values()} == {250, 451, 550}

    wait_until(lambda: postfix.queue_length() == len(list(holding(postfix))), "Postfix has delivered")
    wait_until(lambda: all(m["state"] == "quarantine" for m in gate.queue()), "Gatepost has delivered")
    expected, found = delivered(postfix.home / "mail"), delivered(tables / "mail")
    for key in expected.keys() | found.keys():
        if expected.get(key) != found.get(key):
            print(f"--- {key}\n  Postfix:  {expected.get(key)!r}\n  Gatepost: {found.get(key)!r}")
    assert found == expected
    assert {user for _, user in found} == set(USERS)
    assert len(found) > 20
    assert len(list(holding(postfix))) == len(gate.queue()) == 2


def holding(postfix: Postfix) -> Iterator[Path]:
    return (path for path in (postfix.home / "queue/hold").rglob("*") if path.is_file())
