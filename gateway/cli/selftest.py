"""``gatepost selftest``: ask a gateway that runs, over the network, whether it does what a gateway must."""

from __future__ import annotations

import smtplib
import ssl
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import json_option

_PATIENCE: Final = 60.0
"""Seconds for one answer: a look-up at RCPT may take its time."""
_PAGE_OCTETS: Final = 4 << 20
_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Trial:
    """What was tried at `target`, whether it went as it must, and what was answered."""

    target: str
    name: str
    ok: bool
    answer: str


class _Address(click.ParamType[tuple[str, int]]):
    """``HOST:PORT`` or ``[v6]:PORT``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        host, _, port = str(value).rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            self.fail("expected HOST:PORT", param, ctx)
        return host.removeprefix("[").removesuffix("]"), int(port)


@click.command()
@click.option("--smtp", multiple=True, type=_Address(), metavar="HOST:PORT", help="A listener. May be repeated.")
@click.option("--http", multiple=True, metavar="URL", help="Base URL of probes and metrics. May be repeated.")
@click.option("--to", metavar="ADDRESS", help="A recipient that must be taken.")
@click.option("--send", is_flag=True, help="Send --to a message, too.")
@click.option("--starttls", is_flag=True, help="STARTTLS must be offered, and must work.")
@click.option("--foreign", default="postmaster@relay-test.invalid", metavar="ADDRESS", show_default=True,
              help="A recipient that must be refused for good.")  # fmt: skip
@json_option
def selftest(
    smtp: tuple[tuple[str, int], ...],
    http: tuple[str, ...],
    to: str | None,
    send: bool,
    starttls: bool,
    foreign: str,
    as_json: bool,
) -> None:
    """Ask a running gateway: does it greet, refuse to relay, take mail for us, speak TLS, and show its metrics?"""
    if not smtp and not http:
        raise click.UsageError("nothing to ask: give --smtp, --http, or both")
    if send and not to:
        raise click.UsageError("--send needs a recipient: --to")
    trials = [trial for address in smtp for trial in _smtp(address, to, foreign, starttls=starttls, send=send)]
    trials += [trial for url in http for trial in _http(url.rstrip("/"))]
    if as_json:
        output.as_json([asdict(trial) for trial in trials])
    else:
        for trial in trials:
            click.echo(output.safe(f"{'ok  ' if trial.ok else 'FAIL'} {trial.target} {trial.name}: {trial.answer}"))
    sys.exit(0 if all(trial.ok for trial in trials) else 1)


def _smtp(address: tuple[str, int], to: str | None, foreign: str, *, starttls: bool, send: bool) -> Iterator[Trial]:
    target = f"{address[0]}:{address[1]}"
    name = "greeting"
    try:
        with smtplib.SMTP(*address, timeout=_PATIENCE) as client:
            code, text = client.ehlo()
            yield _trial(target, name, code == 250, code, text)
            if starttls:
                name = "starttls"
                yield _trial(target, name, *_encrypted(client))
            name = "relaying is refused"
            # To the null sender nobody has to answer, so the mail of a failed trial does no harm.
            client.mail("")
            code, text = client.rcpt(foreign)
            yield _trial(target, name, 500 <= code < 600, code, text)
            client.rset()
            if to:
                name = "mail is taken"
                yield _trial(target, name, *_taken(client, to, send))
    except (OSError, smtplib.SMTPException, UnicodeError) as error:
        yield Trial(target, name, False, str(error)[:_TEXT] or type(error).__name__)


def _encrypted(client: smtplib.SMTP) -> tuple[bool, int, bytes]:
    """Begin TLS; who the certificate is for is not asked, since the test may come in by another name."""
    if not client.has_extn("starttls"):
        return False, 250, b"STARTTLS is not offered"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    code, _ = client.starttls(context=context)
    if code != 220:
        return False, code, b"STARTTLS was refused"
    code, text = client.ehlo()
    return code == 250, code, text


def _taken(client: smtplib.SMTP, to: str, send: bool) -> tuple[bool, int, bytes]:
    client.mail("")
    code, text = client.rcpt(to)
    if not send or code >= 300:
        client.rset()
        return 200 <= code < 300, code, text
    code, text = client.data(
        f"From: <>\r\nTo: <{to}>\r\nSubject: gatepost selftest\r\n\r\nA test. No need to answer.\r\n"
    )
    return 200 <= code < 300, code, text


def _trial(target: str, name: str, ok: bool, code: int, text: bytes) -> Trial:
    return Trial(target, name, ok, f"{code} {text.decode('utf-8', 'replace').replace(chr(10), ' | ')}"[:_TEXT])


def _http(url: str) -> Iterator[Trial]:
    # It takes a while to import.
    import httpx

    for path, wanted in (("/readyz", '"ok":true'), ("/metrics", "gatepost_sessions_open")):
        body = b""
        try:
            with (
                httpx.Client(trust_env=False, timeout=_PATIENCE) as client,
                client.stream("GET", url + path) as got,
            ):
                for block in got.iter_bytes():
                    body += block
                    if len(body) > _PAGE_OCTETS:
                        break
                status = got.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            yield Trial(url, path, False, str(error)[:_TEXT] or type(error).__name__)
            continue
        ok = status == 200 and wanted.encode() in body
        yield Trial(url, path, ok, f"{status}" if ok else f"{status} {body[:_TEXT].decode('utf-8', 'replace')}"[:_TEXT])
