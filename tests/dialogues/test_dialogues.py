"""Plays the dialogues in this folder against a front door that is really open.

A file holds lines of these kinds; what the client says up to the next line of another kind goes out in one write:

    # a comment                  @ recipients 3      an option of the door (see `OPTIONS`), before the first octet
    C: EHLO client.test          a line of the client, CRLF added
    R: a\\n.\\r\\n                  octets of the client, with escapes, nothing added
    S: 250-*                     a line of the server; ``*`` stands for anything
    S[reject]: 550 *             the same where an option has several values, and this one is tried
    TLS                          the handshake
    CLOSED                       the server has closed, and said nothing more
    SPOOL 2                      so many messages are in the spool
    HAS text                     one of them holds this, with escapes
    LACKS text                   none of them does

After each dialogue no message in the spool may hold a bare CR or LF.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.smtp.data import Newlines
from gateway.smtp.domains import Domain
from gateway.smtp.listener import tls_context
from gateway.smtp.options import Limits
from tests.smtp.door import Client, Door, door, networks, run
from tests.support.servers import Certificate

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.txt"))
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
NUMBERS = ("recipients", "errors", "message_size", "transactions", "command_line")
OPTIONS = (*NUMBERS, "newlines", "tls", "proxy", "xclient", "relay_from", "domain", "requiretls")


def octets(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def read(path: Path) -> tuple[dict[str, list[str]], list[tuple[str, str, str]]]:
    """Options with their values, and steps: kind, variant, text."""
    options: dict[str, list[str]] = {}
    steps: list[tuple[str, str, str]] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("@ "):
            name, *values = line[2:].split()
            assert name in OPTIONS and values and not steps, f"{path.name}:{number}: {line}"
            options[name] = values
            continue
        match = re.fullmatch(r"(?:([CRS])(?:\[(\w+)\])?: ?|(TLS|CLOSED|SPOOL|HAS|LACKS) ?)(.*)", line)
        assert match, f"{path.name}:{number}: {line}"
        steps.append((match[1] or match[3], match[2] or "", match[4]))
    return options, steps


def setting(options: dict[str, str], context: ssl.SSLContext) -> dict[str, Any]:
    """The door's arguments."""
    out: dict[str, Any] = {"limits": replace(Limits(), **{k: int(v) for k, v in options.items() if k in NUMBERS})}
    if "newlines" in options:
        out["newlines"] = Newlines(options["newlines"])
    if "tls" in options:
        out |= {"tls": context, "implicit": options["tls"] == "implicit"}
    if "requiretls" in options:
        out["requiretls"] = options["requiretls"] == "on"
    for name in ("proxy", "xclient", "relay_from"):
        if name in options:
            out[name] = networks(options[name])
    if "domain" in options:
        out["domains"] = {options["domain"]: Domain(options["domain"])}
    return out


async def play(steps: list[tuple[str, str, str]], variant: str, opened: Door) -> None:
    client: Client | None = None
    waiting = b""
    for kind, only, text in steps:
        if only and only != variant:
            continue
        if client is None:
            client = await opened.connect()
        if kind in "CR":
            waiting += text.encode() + b"\r\n" if kind == "C" else octets(text)
            continue
        client.send(waiting)
        waiting = b""
        if kind == "S":
            line = (await client.line()).decode("ascii")
            pattern = ".*".join(map(re.escape, text.split("*")))
            assert re.fullmatch(pattern + "\r\n", line), f"expected {text!r}, heard {line!r}"
        elif kind == "TLS":
            await client.handshake()
        elif kind == "CLOSED":
            assert await client.last_words() == ""
        else:
            contents = await opened.contents()
            found = [content for content in contents if octets(text) in content]
            if kind == "SPOOL":
                assert len(contents) == int(text), contents
            elif kind == "HAS":
                assert found, contents
            else:
                assert not found, contents
    for content in await opened.contents():
        assert not BARE.search(content), content


CASES = [
    pytest.param(path, variant, id=path.stem + (f"-{variant}" if variant else ""))
    for path in FILES
    for variant in next((v for v in read(path)[0].values() if len(v) > 1), [""])
]


@pytest.mark.parametrize(("path", "variant"), CASES)
def test_dialogue(path: Path, variant: str, certificate: Certificate):
    options, steps = read(path)
    context = tls_context(str(certificate.certificate), str(certificate.key))

    async def test() -> None:
        chosen = {name: variant if len(values) > 1 else values[0] for name, values in options.items()}
        async with door(**setting(chosen, context)) as opened:
            await play(steps, variant, opened)

    run(test)


def test_there_is_a_dialogue_for_each_file_and_each_says_something():
    assert len(FILES) > 30
    for path in FILES:
        kinds = {kind for kind, _, _ in read(path)[1]}
        assert kinds & {"S", "CLOSED"}, path.name
