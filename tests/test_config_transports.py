"""Named transports in the configuration file: what is taken, and that every problem names file, line and key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gateway.app.wiring import load_pipelines, make_parts
from gateway.config import ConfigError, RecipientCheck
from gateway.mail.address import parse_mailbox
from gateway.sdk.testing import ManualClock
from gateway.services.state import SqliteState
from gateway.transport.options import (
    LineEnds,
    MaildirOptions,
    MboxOptions,
    OverQuota,
    PipeOptions,
    RunAs,
    WebhookFormat,
    WebhookOptions,
)
from gateway.transport.transport import Destination, Kind
from tests.test_config import LISTEN, good, problems

CAT = "pipe: {command: [/bin/cat], user: nobody"


def test_each_kind_is_read_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0ken-of-ours\n")
    config = good(
        tmp_path,
        LISTEN
        + """
transports:
  lda:
    pipe:
      command: [/bin/cat, -d, "{local}", --, "{recipient}"]
      user: nobody
      group: mail
      timeout: 90s
      recipients_per_run: 10
      line_ends: crlf
      from_line: true
      return_path: false
      delivered_to: false
      fail_on: [67]
      environment: {FOLDER: inbox}
  homes: {maildir: {path: "mail/{domain}/{local}", quota: 1GiB, quota_messages: 1000, over_quota: fail}}
  files: {mbox: {path: "mail/{local}", lock_timeout: 5s, stale_lock: 10m}}
  hook: {http: {url: "https://hook.example/x", format: multipart, token_file: token, timeout: 10s}}
domains: {a.example: {next_hop: "transport:lda"}, b.example: {next_hop: "mbox:./boxes/{local}"}}
""",
    )
    lda, homes, files, hook = (entry.destination(name) for name, entry in config.transports.items())
    assert isinstance(lda.options, PipeOptions) and lda.options.run_as == RunAs("nobody", "mail")
    assert lda.options.line_ends is LineEnds.CRLF and lda.options.from_line and not lda.options.return_path
    assert (lda.options.timeout, lda.options.recipients_per_run, lda.options.fail_on) == (90.0, 10, (67,))
    assert lda.options.environment == (("FOLDER", "inbox"),)
    assert homes == Destination(
        Kind.MAILDIR,
        path=f"{tmp_path}/mail/{{domain}}/{{local}}",
        name="homes",
        options=MaildirOptions(1 << 30, 1000, OverQuota.FAIL),
    )
    assert files == Destination(
        Kind.MBOX, path=f"{tmp_path}/mail/{{local}}", name="files", options=MboxOptions(5.0, 600.0)
    )
    assert hook.options == WebhookOptions(
        "https://hook.example/x", WebhookFormat.MULTIPART, str(tmp_path / "token"), timeout=10.0
    )
    assert config.domains["a.example"].check is RecipientCheck.ANY
    assert config.domains["b.example"].destination.path == f"{tmp_path}/boxes/{{local}}"
    assert "t0ken" not in json.dumps(config.model_dump(mode="json"))


def test_a_domain_reaches_its_transport(tmp_path: Path) -> None:
    text = LISTEN + f"transports: {{lda: {{{CAT}}}}}}}\ndomains: {{a.example: {{next_hop: 'transport:lda'}}}}"
    config = good(tmp_path, text)
    clock = ManualClock()
    router = make_parts(config, SqliteState(tmp_path / "state", clock), clock).router
    found = router.resolve(parse_mailbox("x@a.example"))
    assert (found.kind, found.name) == (Kind.PIPE, "lda")


@pytest.mark.parametrize(
    ("transport", "says"),
    [
        ("{}", "transports.x: give one of pipe, maildir, mbox and http"),
        ("{mbox: {path: a}, maildir: {path: b}}", "transports.x: give one of pipe, maildir, mbox and http"),
        ("{smtp: {}}", "transports.x.smtp: unknown key"),
        ("{pipe: {}}", "transports.x.pipe.command: this key is required"),
        ("{pipe: {command: /bin/cat}}", "transports.x.pipe.command: must be a list"),
        ("{pipe: {command: []}}", "transports.x.pipe.command: must have at least one entry"),
        ("{pipe: {command: [cat]}}", "transports.x.pipe.command[0]: the command's own name is an absolute path"),
        ("{pipe: {command: [/bin/cat, -x, '{user}']}}", "transports.x.pipe.command[2]: '{user}' is no placeholder"),
        ("{pipe: {command: [/bin/sh, -c, '{local}']}}", "transports.x.pipe.command[2]: an address would be run"),
        ("{pipe: {command: [/bin/cat, 5]}}", "transports.x.pipe.command[1]: must be text"),
        ("{" + CAT + ", user: nosuchuser}}", "transports.x.pipe.user: key given twice"),
        ("{pipe: {command: [/bin/cat], group: mail}}", "transports.x.pipe.group: means nothing without a user"),
        ("{" + CAT + ", fail_on: [0]}}", "transports.x.pipe.fail_on[0]: must be greater than or equal to 1"),
        ("{" + CAT + ", environment: {A-B: x}}}", "transports.x.pipe.environment.A-B: is no name of an environment"),
        ("{" + CAT + ", recipients_per_run: 5}}", "transports.x.pipe.recipients_per_run: the command names no rec"),
        ("{" + CAT + ", tiemout: 5s}}", "transports.x.pipe.tiemout: unknown key; did you mean timeout?"),
        ("{maildir: {path: 'a/{user}'}}", "transports.x.maildir.path: '{user}' in the path is no placeholder"),
        ("{maildir: {path: a, quota: 5k}}", "transports.x.maildir.quota: expected a size with its unit"),
        ("{mbox: {path: a, stale_lock: 5s}}", "transports.x.mbox.stale_lock: must be greater than or equal to 60"),
        ("{http: {url: 'ftp://a.example'}}", "transports.x.http.url: a URL begins with https:// or http://"),
        ("{http: {url: 'https://a:b@c.example'}}", "transports.x.http.url: a URL with a name or password"),
        ("{http: {url: 'https://a.example', token_file: no}}", "transports.x.http.token_file: cannot read"),
        ("{http: {url: 'http://a.example', tls_ca: no}}", "transports.x.http.tls_ca: cannot read CA certificates"),
    ],
)
def test_what_is_wrong_with_a_transport_is_named(tmp_path: Path, transport: str, says: str) -> None:
    found = problems(tmp_path, LISTEN + f"transports:\n  x: {transport}\n")
    assert any(problem.startswith(f"gatepost.yaml:3: {says}") for problem in found), found


@pytest.mark.parametrize(
    ("pipe", "says"),
    [
        ("{command: [/no/lda], user: nobody}", "command[0]: /no/lda cannot be run: it is not there"),
        ("{command: [/etc/passwd], user: nobody}", "command[0]: /etc/passwd cannot be run: it is not executable"),
        ("{command: [/etc], user: nobody}", "command[0]: /etc cannot be run: it is not executable"),
        ("{command: [/bin/cat], user: nosuch}", "user: there is no user 'nosuch'"),
        ("{command: [/bin/cat], user: nobody, group: nosuch}", "group: there is no group 'nosuch'"),
        ("{command: [/bin/cat]}", "user: this runs as root: say whom the command runs as"),
    ],
)
def test_what_this_machine_lacks_is_found_at_the_start_and_does_not_hide_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: str, says: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    config = good(tmp_path, LISTEN + f"transports:\n  x:\n    pipe: {pipe}")
    with pytest.raises(ConfigError) as caught:
        load_pipelines(config)
    (problem,) = caught.value.problems
    assert str(problem).endswith(f"gatepost.yaml:4: transports.x.pipe.{says}")


def test_who_is_not_root_need_not_say_whom_a_command_runs_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config = good(tmp_path, LISTEN + "transports: {x: {pipe: {command: [/bin/cat]}}}")
    assert load_pipelines(config).keys() == {"default"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "domains: {a.example: {next_hop: 'transport:ldb'}}",
            "domains.a.example.next_hop: there is no transport 'ldb'",
        ),
        ("routes: {default: 'transport:ldb'}", "routes.default: there is no transport 'ldb'; did you mean lda?"),
        ("routes: {default: {next_hop: 'transport:ldb'}}", "routes.default.next_hop: there is no transport 'ldb'"),
        ("domains: {a.example: {next_hop: 'transport:lda', tls: none}}", "tls: means nothing for transport:lda"),
        ("domains: {a.example: {next_hop: 'pipe:/bin/cat'}}", "next_hop: a command stands in an entry of its own"),
        (
            "domains: {a.example: {next_hop: 'transport:lda', recipients: {verify: callout}}}",
            "recipients: transport cannot be asked for its recipients",
        ),
    ],
)
def test_what_names_a_transport_is_checked(tmp_path: Path, text: str, says: str) -> None:
    found = problems(tmp_path, LISTEN + f"transports: {{lda: {{{CAT}}}}}}}\n{text}\n")
    assert len(found) == 1 and found[0].startswith("gatepost.yaml:3: ") and says in found[0], found
