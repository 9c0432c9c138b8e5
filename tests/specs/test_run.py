"""``gatepost test``: cases played, compared and counted."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from gateway.mail.session import Tls
from gateway.specs.coverage import ranges
from gateway.specs.expected import matches
from gateway.specs.model import Given
from gateway.specs.play import OfflineLoop
from policies.restricted_recipients import RestrictedRecipients
from tests.specs.desk import Desk
from tests.test_policy_folder import ODD

ROOT = Path(__file__).parents[2]
OWN = "policy: own-domain-sender\noptions: {own_domains: [example.org]}\n"
SPF = "Spf: {result: fail, domain: example.org, helo: none, helo_domain: x.example}"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(autouse=True)
def _logging() -> object:
    # The command has set up logging, as a process of its own may.
    yield
    structlog.reset_defaults()


def test_the_policies_that_come_with_gatepost_hold_their_specs_and_every_rule_is_reached(desk: Desk) -> None:
    specs = {path.name.partition(".")[0] for path in (ROOT / "policies").glob("*.spec.yaml")}
    found = desk.json(str(ROOT / "policies"), "--fail-under", "80")
    assert found["failed"] == [] and found["files"] == len(specs)
    coverage = {Path(c["subject"].partition(":")[0]).name.partition(".")[0]: c for c in found["coverage"]}
    assert set(coverage) == specs
    # Without recipients no message comes so far.
    assert {name for name, covered in coverage.items() if covered["percent"] < 100} == {"archive"}


def test_a_case_that_fails_is_shown_with_its_line_what_was_expected_and_what_came(desk: Desk) -> None:
    path = desk.put(
        "a/x.spec.yaml", OWN + "cases:\n  - name: strangers\n    given: {sender: a@example.org}\n    expect: reject\n"
    )
    result = desk.command(str(desk.folder))
    assert result.exit_code == 1
    assert result.stdout.startswith(
        f"{path}:4: strangers\n"
        "    action: expected reject, came quarantine\n"
        "    came: quarantine at message by own-domain-sender because stranger sends as example.org\n"
        "\n1 files, 1 cases: 0 as expected, 1 not\n"
    )
    (failed,) = desk.json(str(path), status=1)["failed"]
    assert (failed["line"], failed["name"]) == (4, "strangers")
    assert failed["differences"] == [{"what": "action", "expected": "reject", "came": "quarantine"}]
    assert failed["came"]["recipients"] == ["anna@example.org"]


def test_everything_that_can_be_expected_is_compared(desk: Desk) -> None:
    text = f"""{OWN}
cases:
  - given: {{sender: a@example.org, findings: {{{SPF}}}}}
    options: {{strict: true}}
    expect:
      {{action: defer, stage: rcpt, code: 551, status: 5.7.2, text: nonsense, reason: x*y, by: z,
       edits: [{{edit: AddHeader}}], recipients: [], parts: [{{}}]}}
"""
    assert desk.differences(text) == [
        "action: defer / reject",
        "code: 551 / 550",
        "status: 5.7.2 / 5.7.1",
        "recipients: none / anna@example.org",
        "text: nonsense / not authorised to send as this domain",
        "reason: x*y / stranger sends as example.org",
        "by: z / own-domain-sender",
        "edits: edit: AddHeader / none",
        "stage: rcpt / message",
        "parts: 1 / 0",
    ]


@pytest.mark.parametrize(
    ("pattern", "text", "is_so"),
    [
        ("b", "abc", True),
        ("a*c", "xabcx", True),
        ("c*a", "abc", False),
        ("a**c", "abc", True),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("ab*ba", "aba", False),
    ],
)
def test_a_text_is_matched_by_a_part_of_it_with_stars(pattern: str, text: str, is_so: bool) -> None:
    assert matches(pattern, text) is is_so


def test_a_policy_that_fails_is_a_failure_even_of_a_case_that_expects_what_comes_of_it(desk: Desk) -> None:
    desk.put(
        "bad.py",
        "from gateway.sdk import Policy, Session, Verdict\n\n\nclass Bad(Policy):\n    name = 'bad'\n\n"
        "    def on_connect(self, session: Session) -> Verdict:\n        return 1 / 0\n",
    )
    path = desk.put("bad.spec.yaml", "policy: bad\ncases: [{expect: defer}]\n")
    (failed,) = desk.json(str(path), status=1)["failed"]
    assert failed["differences"] == [
        {
            "what": "policy",
            "expected": "an answer",
            "came": "connect: policy bad failed: ZeroDivisionError: division by zero",
        }
    ]


LISTS = "policy: restricted-recipients\noptions: {lists: {all@example.org: [partner.example]}}\n"


def test_options_may_be_expected_to_be_refused_and_a_policy_to_miss_who_finds(desk: Desk) -> None:
    text = (
        LISTS
        + """
cases:
  - options: {lists: {ALL@example.org: []}}
    expect: {problem: stands * twice}
  - given: {findings: {Spf: missing}}
    expect: {problem: list spf in this pipeline}
  - given: {recipients: [all@example.org], findings: {Spf: missing}}
    expect: reject
"""
    )
    found = desk.run(text)
    assert found.failed == [] and found.cases == 3
    lines, first = inspect.getsourcelines(RestrictedRecipients.wire)
    missed = {place.line for covered in found.coverage for place in covered.missed}
    assert missed and not missed & set(range(first, first + len(lines))), "that counts as reached"


def test_options_that_are_good_or_refused_for_something_else_are_not_as_expected(desk: Desk) -> None:
    path = desk.put(
        "x.spec.yaml",
        LISTS
        + """
cases:
  - expect: {problem: stands there twice}
  - options: {lists: {x@example.org: [a b], y@example.org: [z]}, delimiter: ++}
    expect: {problem: stands there twice}
""",
    )
    result = desk.command(str(path))
    assert result.exit_code == 1
    first, second = result.stdout.split("\n\n")[0].split(f"\n{path}:6: ")
    assert first == f"{path}:5: case 1\n    problem: expected stands there twice, came none"
    assert second.startswith("case 2\n    problem: expected stands there twice, came 'a b' is neither")
    assert "; " in second and len(second.splitlines()) == 2, "all that is wrong with them"
    failed, _ = desk.json(str(path), status=1)["failed"]
    assert failed["came"] is None


@pytest.mark.parametrize("value", ["{Spff: missing}", "{Spf: failed}", "{Spf: {result: odd}}"])
def test_findings_beside_options_that_are_refused_must_be_findings(desk: Desk, value: str) -> None:
    (problem,) = desk.problems(LISTS + f"cases: [{{given: {{findings: {value}}}, expect: {{problem: x}}}}]")
    assert problem.startswith("x.spec.yaml:3:") and "cases[0].given.findings.Spf" in problem


def test_a_hook_that_lacks_a_finding_is_not_asked_and_the_failure_says_so(desk: Desk) -> None:
    path = desk.put("x.spec.yaml", "policy: spf\ncases: [{expect: reject}]\n")
    (failed,) = desk.json(str(path), status=1)["failed"]
    assert failed["came"]["action"] == "proceed"
    assert any("spf was not asked at " in note and note.endswith(": Spf is not given") for note in failed["notes"])


def test_a_plugins_default_policy_is_tested_by_the_plugins_name_and_options(desk: Desk) -> None:
    text = """
policy: dnsbl
options: {zones: {bl.test: 2}, reject_at: 2}
given: {findings: {Dnsbl: {score: 2, hits: [{zone: bl.test, codes: [127.0.0.2], weight: 2}]}}}
cases:
  - {expect: reject}
  - {options: {reject_at: 3}, expect: proceed}
  - {given: {findings: {Dnsbl: missing}}, expect: proceed}
"""
    report = desk.run(text)
    assert report.cases == 3 and report.failed == []
    assert report.coverage[0].subject.endswith("plugins/dnsbl/policy.py") or "dnsbl" in report.coverage[0].subject


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy: odd-one\ncases: [{expect: proceed}]", "1:1: policy: odd-one is no policy"),
        ("policy: helo-identty\ncases: [{expect: proceed}]", "did you mean helo-identity?"),
        ("policy: tarpit\ncases: [{expect: proceed}]", "1:1: policy: tarpit is a plugin without a policy"),
        (
            OWN + "cases: [{given: {findings: {Spff: {}}}, expect: proceed}]",
            "3:29: cases[0].given.findings.Spff: Spff is no finding of what is installed; did you mean Spf?",
        ),
        (
            OWN + "cases: [{given: {findings: {Spf: {reslt: fail}}}, expect: proceed}]",
            "3:35: cases[0].given.findings.Spf.reslt: Spf has no field 'reslt'; it has result, domain, ",
        ),
        (
            OWN + "cases: [{given: {findings: {Spf: {result: bad}}}, expect: proceed}]",
            "3:35: cases[0].given.findings.Spf.result: Spf: result: Input should be 'none', ",
        ),
        (
            OWN + "cases: [{given: {findings: {Spf: {result: fail}}}, expect: proceed}]",
            "3:29: cases[0].given.findings.Spf: Spf needs domain, helo, helo_domain",
        ),
        (
            OWN + "cases: [{given: {findings: {Spf: 3}}, expect: proceed}]",
            "3:29: cases[0].given.findings.Spf: must be the finding's fields, or missing, or failed",
        ),
        (
            OWN + "cases: [{given: {findings: {Spf: failed}}, expect: proceed}]",
            "3:29: cases[0].given.findings.Spf: on_error says what a failure means, in a pipeline; for a policy alone",
        ),
        (
            "policy: own-domain-sender\ncases: [{expect: proceed}]",
            "2:9: cases[0]: own_domains must be given",
        ),
        (
            OWN + "cases: [{options: {strikt: true}, expect: proceed}]",
            "3:20: cases[0].options.strikt: unknown option; did you mean strict?",
        ),
        (
            OWN + "cases: [{given: {message: {file: nowhere.eml}}, expect: proceed}]",
            "3:28: cases[0].given.message.file: nowhere.eml: No such file or directory",
        ),
        (
            "policy: rules\noptions:\n  - {when: 'spf.reslt == \"fail\"', then: discard}\ncases: [{expect: proceed}]",
            "3:17: options[0].when: Spf has no field reslt; did you mean result?",
        ),
        (
            "pipeline:\n  - rules: [{when: 'sesion.trusted', then: discard}]\ncases: [{expect: proceed}]",
            "2:21: pipeline[0].rules[0].when: there is no variable sesion",
        ),
        (
            "pipeline: [spf]\ncases: [{given: {findings: {Dnsbl: {score: 1}}}, expect: proceed}]",
            "2:29: cases[0].given.findings.Dnsbl: Dnsbl is no finding of this pipeline",
        ),
        (
            "pipeline: [spf]\nrun: [spff]\ncases: [{expect: proceed}]",
            "2:7: run[0]: there is no entry spff; did you mean spf?",
        ),
        ("pipeline: {file: none.yaml}\ncases: [{expect: proceed}]", "none.yaml:1: cannot be read: No such file"),
    ],
    ids=range(17),
)
def test_what_does_not_fit_is_said_with_its_place(desk: Desk, text: str, said: str) -> None:
    problems = desk.problems(text)
    assert said in problems[0], problems


def test_rules_are_counted_where_they_stand_also_when_a_case_brings_its_own(desk: Desk) -> None:
    text = """
policy: rules
options:
  - {name: never, when: spf.result == "pass", then: accept}
  - {name: always, when: session.trusted == false, at: message, then: discard}
cases:
  - expect: {action: discard, reason: always}
  - options: [{when: "true", then: quarantine, at: message}]
    expect: quarantine
"""
    report = desk.run(text)
    assert report.failed == []
    (covered,) = report.coverage
    assert (covered.kind, covered.hit, covered.of) == ("clauses", 2, 3)
    assert [(p.line, p.name) for p in covered.missed] == [(4, "never")]


def test_lines_of_a_policy_that_stands_beside_its_spec_are_counted(desk: Desk) -> None:
    path = desk.put("odd.py", ODD)
    desk.put("odd.spec.yaml", "policy: odd\ncases: [{given: {sender: ben@x.example}, expect: proceed}]\n")
    (covered,) = desk.json(str(desk.folder))["coverage"]
    lines = ODD.splitlines()
    assert covered["subject"] == str(path) and covered["kind"] == "lines"
    assert [lines[m["line"] - 1].split()[0] for m in covered["missed"]] == ["return"]
    assert (covered["hit"], covered["of"]) == (2, 3)
    result = desk.command(str(desk.folder), "--fail-under", "67")
    assert result.exit_code == 1 and "less than 67 % was reached of" in result.stderr
    assert "never ran: 16\n" in result.stdout
    assert desk.command(str(desk.folder), "--fail-under", "66").exit_code == 0


def test_a_file_beside_its_spec_that_is_wrong_is_named(desk: Desk) -> None:
    path = desk.put("odd.py", "1 +\n")
    spec = desk.put("odd.spec.yaml", "policy: odd\ncases: [{expect: proceed}]\n")
    (problem,) = desk.json(str(spec), status=2)["problems"]
    assert (problem["file"], problem["line"]) == (str(path), 1)


def test_counting_lines_leaves_a_tracer_of_others_in_place(desk: Desk) -> None:
    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        desk.run(OWN + "cases: [{expect: proceed}]")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_a_configurations_pipeline_is_tested_with_its_folder_its_rules_and_its_own_networks(desk: Desk) -> None:
    (desk.folder / "policies").mkdir(mode=0o755)
    desk.put("policies/odd.py", ODD).chmod(0o644)
    config = {
        "listeners": [{"address": "127.0.0.1:2525"}],
        "policy_folder": "./policies",
        "relay_from": ["10.0.0.0/8"],
        "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": {"list": ["anna"]}}},
        "pipelines": {
            "strict": [
                "odd",
                {
                    "rules": [
                        {"when": "session.trusted", "at": "mail", "then": "accept"},
                        {"when": "false", "then": "discard"},
                    ]
                },
            ]
        },
    }
    file = desk.put("gatepost.yaml", json.dumps(config, indent=1))
    path = desk.put(
        "specs/x.spec.yaml",
        """
        pipeline: {file: ../gatepost.yaml, name: strict}
        given: {findings: {RecipientStatus: {state: exists, source: list}}}
        cases:
          - {given: {sender: odd@x.example}, expect: {action: reject, by: odd}}
          - {given: {session: {client: 10.1.2.3}}, expect: {action: accept, by: rules, stage: mail}}
          - {expect: proceed}
          - {given: {findings: {RecipientStatus: {state: unknown}}}, expect: {action: reject, by: recipient}}
        """,
    )
    found = desk.json(str(path))
    assert found["failed"] == [] and found["cases"] == 4
    odd, rules = sorted(found["coverage"], key=lambda covered: covered["kind"], reverse=True)
    assert odd["subject"] == str(desk.folder / "policies/odd.py") and odd["percent"] == 100
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if '"false"' in text)
    assert [(m["file"], m["line"]) for m in rules["missed"]] == [(str(file), line - 1)]
    assert (
        "there is no pipeline 'strickt'"
        in desk.problems(f"pipeline: {{file: {file}, name: strickt}}\ncases: [{{expect: proceed}}]")[0]
    )


def test_a_plugin_that_fails_does_as_its_entry_says(desk: Desk) -> None:
    text = """
pipeline:
  - spf: {}
    on_error: %s
given: {findings: {Spf: failed}}
cases: [{expect: {action: %s}}]
"""
    assert desk.differences(text % ("proceed", "proceed")) == []
    assert desk.differences(text % ("defer", "defer")) == []
    assert desk.differences(text % ("reject", "reject")) == []


def test_plugins_that_are_run_look_into_the_message_and_reach_no_network(desk: Desk) -> None:
    text = """
pipeline:
  - mime
  - attachments
  - clamd: {connect: "inet:127.0.0.1:3310"}
    on_error: defer
  - rules: [{name: one, when: "attachments.items.size() == 1", then: discard}]
run: [mime, attachments%s]
given:
  message:
    headers: {MIME-Version: "1.0", Content-Type: application/pdf; name=x.pdf, Content-Disposition: attachment}
cases: [{expect: %s}]
"""
    assert desk.differences(text % ("", "{action: discard, reason: one}")) == []
    assert desk.differences(text % (", clamd", "{action: defer, by: clamd, reason: a spec has no network}")) == []


def test_recipients_are_judged_one_by_one_and_a_verdict_for_some_makes_parts(desk: Desk) -> None:
    desk.put(
        "some.py",
        """
        from gateway.sdk import PROCEED, Policy, Recipient, Transaction, Verdict, quarantine, reject


        class Some(Policy):
            name = "some"

            def on_rcpt(self, recipient: Recipient) -> Verdict:
                return reject("1.1", "no") if recipient.address.local == "nobody" else PROCEED

            def on_message(self, transaction: Transaction) -> Verdict:
                named = [r for r in transaction.recipients if r.address.local == "ben"]
                return quarantine("odd").only(named) if named else PROCEED
        """,
    )
    path = desk.put(
        "some.spec.yaml",
        """
        policy: some
        cases:
          - given: {recipients: [anna@x.example, nobody@x.example, ben@x.example]}
            expect:
              action: proceed
              recipients: [anna@x.example, ben@x.example]
              parts: [{recipients: [ben@x.example], action: quarantine, reason: odd}]
          - given: {recipients: [nobody@x.example]}
            expect: {action: reject, stage: rcpt, code: 550, status: 5.1.1, recipients: []}
          - given: {recipients: [ben@x.example]}
            expect: {parts: [{recipients: [anna@x.example], action: discard}]}
        """,
    )
    (failed,) = desk.json(str(path), status=1)["failed"]
    assert [d["what"] for d in failed["differences"]] == ["parts[0].action", "parts[0].recipients"]


def test_a_session_and_a_message_are_as_they_are_given(desk: Desk) -> None:
    model = Given.model_validate(
        {
            "session": {"client": "2001:db8::1", "helo": "x", "name": "n.example", "tls": True, "trusted": True},
            "parameters": {"size": 5, "body": "8BITMIME", "smtputf8": True},
            "message": {"headers": {"A": ["1", "2"], "B": "ü"}, "body": "x\ny\r\n", "size": "1kB"},
        }
    )
    session = model.session.make(False)
    assert (str(session.client), session.helo, session.name, session.trusted) == ("2001:db8::1", "x", "n.example", True)
    assert session.tls == Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    shown: dict[str, Any] = {"subject": "partner", "names": ["DNS:mx.partner.example"], "issuer": "Partners CA"}
    given = Given.model_validate({"session": {"tls": {"client": shown}}}).session.make(False)
    assert given.tls and given.tls.client and given.tls.client.verified
    assert (given.tls.client.subject, given.tls.client.names) == ("partner", ("DNS:mx.partner.example",))
    given = Given.model_validate({"session": {"tls": {"client": {"problem": "cert has expired"}}}}).session.make(False)
    assert given.tls and given.tls.client and not given.tls.client.verified
    with pytest.raises(ValidationError, match="nothing but its fingerprint"):
        Given.model_validate({"session": {"tls": {"client": {**shown, "problem": "cert has expired"}}}})
    assert (model.parameters.make().size, model.parameters.make().smtputf8) == (5, True)
    message = model.message.make(str(desk.folder))
    assert message.all("A") == ("1", "2") and message.content.size == 1000
    octets = asyncio.run(message.octets(40))
    assert octets.startswith("A: 1\r\nA: 2\r\nB: ü\r\n\r\nx\r\ny\r\n".encode())
    desk.put("m.eml", "From: a@b\n\nx\n")
    read = Given.model_validate({"message": {"file": "m.eml"}}).message.make(str(desk.folder))
    assert asyncio.run(read.octets(100)) == b"From: a@b\r\n\r\nx\r\n"


def test_the_loop_of_a_spec_leads_nowhere() -> None:
    async def dial() -> list[str]:
        loop = asyncio.get_running_loop()
        out = []
        for work in (
            asyncio.open_connection("127.0.0.1", 9),
            asyncio.open_unix_connection("/nowhere"),
            loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)),
            loop.getaddrinfo("localhost", 9),
            loop.sock_connect(socket.socket(), ("127.0.0.1", 9)),
        ):
            with pytest.raises(OSError, match="no network") as caught:
                await work
            out.append(str(caught.value))
        return out

    with asyncio.Runner(loop_factory=OfflineLoop) as runner:
        assert len(runner.run(dial())) == 5


def test_folders_are_searched_and_one_without_specs_is_wrong_usage(desk: Desk) -> None:
    good = OWN + "cases: [{expect: proceed}]"
    for name in ("a.spec.yaml", "b/c/d.spec.yaml", ".hidden/e.spec.yaml", "b/other.yaml"):
        desk.put(name, good)
    assert desk.json(str(desk.folder))["files"] == 2
    assert desk.json(str(desk.folder), str(desk.folder / "a.spec.yaml"))["files"] == 2
    assert desk.json(str(desk.folder / "b/other.yaml"))["files"] == 1
    (desk.folder / "empty").mkdir()
    result = desk.command(str(desk.folder / "empty"))
    assert result.exit_code == 2 and "there is no *.spec.yaml here" in result.stderr
    assert desk.command(str(desk.folder / "nowhere")).exit_code == 2
    assert desk.command().exit_code == 2


def test_problems_of_all_files_are_said_at_once_and_nothing_of_them_reaches_a_terminal_raw(desk: Desk) -> None:
    desk.put("a.spec.yaml", 'policy: "x\\e[2J"\ncases: [{expect: proceed}]')
    desk.put("b.spec.yaml", "cases: 3")
    result = desk.command(str(desk.folder))
    assert result.exit_code == 2 and "\x1b" not in result.output
    assert "a.spec.yaml:1:1: policy: x\\x1b[2J is no policy" in result.stderr and "b.spec.yaml:" in result.stderr


def test_the_policy_folder_of_a_configuration_is_known_when_it_is_named(desk: Desk) -> None:
    (desk.folder / "policies").mkdir(mode=0o755)
    desk.put("policies/odd.py", ODD).chmod(0o644)
    desk.put("gatepost.yaml", json.dumps({"listeners": [{"address": "127.0.0.1:25"}], "policy_folder": "policies"}))
    path = desk.put("elsewhere.spec.yaml", "policy: odd\ncases: [{expect: proceed}]")
    assert desk.json(str(path), "-c", str(desk.folder / "gatepost.yaml"))["cases"] == 1
    assert desk.command(str(path)).exit_code == 2


def test_line_numbers_are_shown_in_ranges() -> None:
    assert ranges([3, 1, 2, 9, 11, 12]) == "1-3, 9, 11-12"
