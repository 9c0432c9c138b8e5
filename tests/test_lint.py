"""What lint finds: for each check a configuration that it remarks on, and one beside it that it leaves alone."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.app.lint import CHECKS, Report, lint
from gateway.app.lint.disk import Disk, disk_of
from gateway.app.wiring import load_pipelines
from gateway.config import load
from gateway.pipeline.loader import Catalog
from gateway.pipeline.loader import load as load_pipeline
from gateway.sdk import PROCEED, Policy, Verdict
from gateway.sdk.lint import Check, Remark, Severity
from gateway.sdk.testing import Bench
from gateway.services.clock import SystemClock

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
DISKS = {"": Disk("ext4", 100 * GIB)}

BASE: dict[str, Any] = {
    "hostname": "mx.example.org",
    "listeners": [{"address": "0.0.0.0:25", "tls": {"certificate": "good.pem", "key": "good.key"}}],
    "dns": {"nameservers": ["127.0.0.1"]},
    "domains": {"example.org": {"next_hop": "lmtp:127.0.0.1:24", "recipients": {"list": ["anna"]}}},
}
LISTENER = BASE["listeners"][0]
DOMAIN = BASE["domains"]["example.org"]
PROXY = {"proxy_protocol": {"trusted": ["10.9.0.0/24"]}}
RULE_BY_SENDER = {"when": 'sender.domain == "friend.example"', "then": "accept", "at": "message"}
RULE_BY_PROOF = {"when": 'spf.result == "pass" && sender.domain == "friend.example"', "then": "accept", "at": "message"}
CLAMD: dict[str, Any] = {"clamd": {}, "on_error": "defer"}
SLOW = {"milter": {"connect": "127.0.0.1:1"}, "timeout": "10m", "on_error": "defer"}
PUBLIC_DNS = {"nameservers": ["8.8.8.8"]}
ACCEPT_OURS: dict[str, Any] = {"when": "session.trusted", "then": "accept"}
REFUSE_OURS: dict[str, Any] = {"when": "session.trusted ", "then": {"reject": "no"}}
SIGN = {"dkim-sign": {"domains": {"example.org": {"selector": "a", "key_file": "dkim.key"}}}}
OWN_PIPELINE = {"domains": {"example.org": {**DOMAIN, "pipeline": "own"}}}


def access(*entries: str, match: str = "client", **more: Any) -> dict[str, Any]:
    return {"access": {"lists": [{"match": match, "entries": list(entries)}], **more}}


def pipeline(*entries: Any, **more: Any) -> dict[str, Any]:
    return {"pipeline": list(entries), **more}


def domain(name: str = "example.org", **options: Any) -> dict[str, Any]:
    return {"domains": {name: options}}


def listener(**more: Any) -> dict[str, Any]:
    return {"listeners": [{**LISTENER, **more}]}


def certificate(name: str) -> dict[str, Any]:
    return listener(tls={"certificate": f"{name}.pem", "key": f"{name}.key"})


def clients(name: str, **more: Any) -> dict[str, Any]:
    return listener(tls={"certificate": "good.pem", "key": "good.key", "client_ca": f"{name}.pem", **more})


def two_lists(entry: str) -> dict[str, Any]:
    listed = {"match": "sender", "kind": "glob", "entries": [entry]}
    return {"access": {"lists": [listed, listed]}}


# Code: what it remarks on, and the nearest thing that it leaves alone.
CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "GP101": ({"relay_from": ["0.0.0.0/1", "128.0.0.0/1"]}, {"relay_from": ["192.0.2.0/24", "10.9.0.0/16"]}),
    "GP102": ({"relay_from": ["17.0.0.0/8"]}, {"relay_from": ["17.1.0.0/16", "2001:db8::/32", "100.64.0.0/10"]}),
    "GP103": (
        {"relay_from": ["10.9.0.7/32"], "listeners": [LISTENER, {**LISTENER, "address": "0.0.0.0:2525", **PROXY}]},
        {"relay_from": ["10.9.0.7/32"], **listener(**PROXY)},
    ),
    "GP104": ({"relay_from": ["172.17.0.0/16"]}, {"relay_from": ["172.17.0.0/16"], **listener(**PROXY)}),
    "GP105": ({"relay_from": ["10.0.0.0/8"]}, {"relay_from": ["10.1.2.0/24", "10.1.0.0/16"]}),
    "GP106": (
        listener(proxy_protocol={"trusted": ["0.0.0.0/0"]}),
        listener(proxy_protocol={"trusted": ["10.0.0.0/8", "198.51.100.7/32"]}),
    ),
    "GP107": (
        {**listener(xclient={"trusted": ["10.1.2.3/32"]}), "relay_from": ["10.1.2.0/24"]},
        {**listener(xclient={"trusted": ["10.1.3.3/32"]}), "relay_from": ["10.1.2.0/24"]},
    ),
    "GP201": (domain("co.uk", **DOMAIN), domain("example.co.uk", **DOMAIN)),
    "GP202": (
        domain(".example.org", next_hop="maildir:./mail", recipients="any"),
        domain(".example.org", next_hop="lmtp:127.0.0.1:24"),
    ),
    "GP203": (
        domain(next_hop="lmtp:127.0.0.1:24", recipients="any"),
        domain(next_hop="maildir:./mail", recipients="any"),
    ),
    "GP204": (
        domain(next_hop="maildir:./mail/{local}", recipients="any"),
        domain(next_hop="maildir:./mail/{local}", recipients={"list": ["anna"]}),
    ),
    "GP205": (
        domain(next_hop="lmtp:127.0.0.1:24", recipients={"verify": "callout", "when_down": "accept"}),
        domain(next_hop="lmtp:127.0.0.1:24", recipients={"verify": "callout", "when_down": "defer"}),
    ),
    "GP206": (
        pipeline({"recipient": {}, "shadow": True}),
        {**pipeline({"recipient": {}, "shadow": True}), **domain(next_hop="discard", recipients="any")},
    ),
    "GP207": (
        domain(next_hop="smtp:127.0.0.1:25", recipients={"list": ["anna"]}),
        domain(next_hop="smtp:127.0.0.1:2525", recipients={"list": ["anna"]}),
    ),
    "GP208": (domain(next_hop="mx", recipients={"list": ["anna"]}), {"routes": {"default": "mx"}}),
    "GP301": (
        pipeline({"spf": {}}, {"rules": [RULE_BY_SENDER]}, {"dkim": {}}, {"dmarc": {}}),
        pipeline({"spf": {}}, {"rules": [RULE_BY_PROOF]}, {"dkim": {}}, {"dmarc": {}}),
    ),
    "GP302": (
        pipeline({"delegation": {"connect": "127.0.0.1:10023"}, "on_error": "defer"}, {"greylist": {}}, {"spf": {}}),
        pipeline({"spf": {}}, {"greylist": {}}, {"delegation": {"connect": "127.0.0.1:10023"}, "on_error": "defer"}),
    ),
    "GP303": (
        pipeline(access("192.0.2.1 accept"), {"recipient": {}}),
        pipeline({"recipient": {}}, access("192.0.2.1 accept")),
    ),
    "GP304": (
        pipeline({"rules": [{"when": "true", "at": "rcpt", "then": "accept"}]}, {"spf": {}}),
        pipeline({"rules": [{"when": "true", "at": "data", "then": "accept"}]}, {"spf": {}}),
    ),
    "GP305": (pipeline({"rules": []}), pipeline({"rules": [{"when": "session.trusted", "then": "accept"}]})),
    "GP306": (
        pipeline({"helo": {}, "policy": "none"}),
        pipeline({"helo": {}, "policy": "none"}, {"client-score": {}}),
    ),
    "GP307": ({"pipelines": {"strict": [{"spf": {}}]}}, {"pipelines": {"strict": []}}),
    "GP308": (
        {**pipeline({"spf": {"reject_fail": True}}), **OWN_PIPELINE, "pipelines": {"own": []}},
        {
            **pipeline({"spf": {"reject_fail": True}}),
            **{"domains": {**OWN_PIPELINE["domains"], "example.net": DOMAIN}, "pipelines": {"own": []}},
        },
    ),
    "GP309": (pipeline({"spf": {}, "enforce": "0%"}), pipeline({"spf": {}, "enforce": "1%"})),
    "GP310": (pipeline({"spf": {}}, {"dmarc": {}}), pipeline({"dmarc": {}}, {"spf": {}}, {"dkim": {}})),
    "GP311": (
        {**pipeline(SIGN, {"disclaimer": {"text": "confidential"}}), "relay_from": ["10.1.2.0/24"]},
        {**pipeline({"disclaimer": {"text": "confidential"}}, SIGN), "relay_from": ["10.1.2.0/24"]},
    ),
    "GP401": (pipeline({"clamd": {}}), pipeline(CLAMD)),
    "GP402": (
        pipeline({**CLAMD, "on_error": "proceed"}),
        pipeline({**CLAMD, "on_error": "proceed"}, {"clamd": {"connect": "127.0.0.1:3310"}, "on_error": "defer"}),
    ),
    "GP403": (
        pipeline({"recipient": {}, "on_error": "proceed"}),
        pipeline({"recipient": {}}, {"greylist": {}, "on_error": "proceed"}, {"spf": {}}),
    ),
    "GP404": (pipeline({**CLAMD, "on_error": "reject"}), pipeline({**CLAMD, "on_error": "reject", "shadow": True})),
    "GP501": (
        pipeline(SLOW, SLOW, deadlines={"message": "11m"}),
        pipeline(SLOW, deadlines={"message": "11m"}),
    ),
    "GP502": (
        {**pipeline({**CLAMD, "timeout": "6m"}), "deadlines": {"message": "11m"}},
        {**pipeline({**CLAMD, "timeout": "5m"}), "deadlines": {"message": "11m"}},
    ),
    "GP503": (pipeline({**CLAMD, "timeout": "2m"}), pipeline({**CLAMD, "timeout": "1m"})),
    "GP504": (pipeline({"recipient": {}, "timeout": "5s"}), pipeline({"recipient": {"wait": "4s"}, "timeout": "5s"})),
    "GP505": ({"timeouts": {"command": "1m"}}, {"timeouts": {"command": "5m"}}),
    "GP601": (
        pipeline({"clamd": {"max_size": "10MiB"}, "on_error": "defer"}),
        pipeline({"clamd": {"max_size": "10MiB", "too_large": "quarantine"}, "on_error": "defer"}),
    ),
    "GP602": (
        pipeline({"rspamd": {}, "on_error": "proceed"}),
        pipeline({"rspamd": {}, "on_error": "proceed"}, limits={"message_size": "25MiB"}),
    ),
    "GP701": (
        {"listeners": [{"address": "0.0.0.0:25"}]},
        {"listeners": [{"address": "127.0.0.1:25"}]},
    ),
    "GP702": (certificate("ended"), certificate("good")),
    "GP703": (certificate("ending"), certificate("good")),
    "GP704": (certificate("other"), certificate("wild")),
    "GP705": (
        {"admin": {"address": "0.0.0.0:9925", "token": "0123456789abcdef"}},
        {"admin": {"address": "[::1]:9925", "token": "0123456789abcdef"}},
    ),
    "GP706": (
        {"hostname": "gw.corp.internal", "listeners": [{"address": "127.0.0.1:25"}]},
        {"hostname": "internal.example.org", "listeners": [{"address": "127.0.0.1:25"}]},
    ),
    "GP707": ({"authserv_id": "gatepost"}, {"authserv_id": "mail.example.org"}),
    "GP708": (
        {"spool": {"path": "memory/spool"}},
        {"spool": {"path": "memory/spool", "postgres": "postgresql://db.example.org/mail"}},
    ),
    "GP709": ({"spool": {"path": "small/spool"}}, {"spool": {"path": "small/spool", "min_free": "10MiB"}}),
    "GP710": ({"state": {"path": "memory/state"}}, {"state": {"path": "disk/state"}}),
    "GP711": (clients("good", client_certificate="require"), clients("good", client_certificate="ask")),
    "GP712": (clients("ended"), clients("good")),
    "GP801": ({"retry": {"give_up": "12h"}}, {"retry": {"give_up": "4d"}}),
    "GP802": ({"retry": {"give_up": "2d"}}, {"retry": {"give_up": "4d"}}),
    "GP803": ({"retry": {"give_up": "5d", "warn_after": "5d"}}, {"retry": {"give_up": "5d", "warn_after": "0s"}}),
    "GP804": ({"split_refused": "discard"}, {"split_refused": "quarantine"}),
    "GP805": (
        {"pipelines": {"own": []}, "domains": {**OWN_PIPELINE["domains"], "example.net": DOMAIN}},
        {"pipelines": {"own": []}, "domains": {**OWN_PIPELINE["domains"], "example.net": DOMAIN}, "split": "copies"},
    ),
    "GP806": (
        domain(next_hop="lmtp:192.0.2.9:24", tls="none"),
        domain(next_hop="lmtp:127.0.0.1:24", tls="none"),
    ),
    "GP807": (
        {
            **domain(next_hop="smtp:store.example.org:25", tls="dane"),
            "dns": {"nameservers": ["127.0.0.1", "192.0.2.53"]},
        },
        {**domain(next_hop="smtp:store.example.org:25", tls="dane"), "dns": {"nameservers": ["127.0.0.1"]}},
    ),
    "GP808": (
        domain(next_hop="smtp:store.example.org:25", tls="require", tls_names=["store.example.org"]),
        domain(next_hop="smtp:store.example.org:25", tls="verify", tls_names=["store.example.org"]),
    ),
    "GP809": (
        {"routes": {"default": {"next_hop": "mx", "tls": "verify"}}},
        {"routes": {"default": {"next_hop": "mx", "tls": "verify", "tls_names": [".example.org"]}}},
    ),
    "access/file": (
        pipeline({"access": {"lists": [{"match": "client", "file": "missing.list"}]}}),
        pipeline({"access": {"lists": [{"match": "client", "file": "clients.list"}]}}),
    ),
    "access/hidden-line": (
        pipeline(access("example.com ok", "user@example.com reject", match="sender")),
        pipeline(access("user@example.com reject", "example.com ok", match="sender")),
    ),
    "access/unreached-list": (pipeline(two_lists("* reject")), pipeline(two_lists("* dunno"))),
    "dkim-sign/nobody": (pipeline(SIGN), pipeline(SIGN, relay_from=["10.1.2.0/24"])),
    "dnsbl/public-resolver": (
        pipeline({"dnsbl": {"zones": {"zen.spamhaus.org": 3}}}, dns=PUBLIC_DNS),
        pipeline({"dnsbl": {"zones": {"bl.spamcop.net": 3, "a1b2.zen.dq.spamhaus.net": 3}}}, dns=PUBLIC_DNS),
    ),
    "uribl/public-resolver": (
        pipeline({"uribl": {"lists": {"multi.uribl.com": 3}}}, dns={"nameservers": ["1.1.1.1"]}),
        pipeline({"uribl": {"lists": {"multi.uribl.com": 3}}}, dns={"nameservers": ["192.0.2.53"]}),
    ),
    "greylist/blind": (pipeline({"greylist": {}}), pipeline({"greylist": {"when": "always"}})),
    "greylist/no-pools": (pipeline({"greylist": {"pools": {}}}, {"spf": {}}), pipeline({"greylist": {}}, {"spf": {}})),
    "rules/never-true": (
        pipeline({"rules": [{"when": "1 > 2", "at": "rcpt", "then": "accept"}]}),
        pipeline({"rules": [{"when": "size(recipients) > 2", "then": "accept"}]}),
    ),
    "rules/never-asked": (
        pipeline({"rules": [ACCEPT_OURS, REFUSE_OURS]}),
        pipeline({"rules": [ACCEPT_OURS, {**REFUSE_OURS, "at": "helo"}]}),
    ),
}
IN_OTHER_TESTS = {"GP001", "GP002", "GP003"}


def make_certificate(folder: Path, name: str, names: str, days: int) -> None:
    key, request = folder / f"{name}.key", folder / f"{name}.csr"
    config = folder / "names.cnf"
    config.write_text(f"subjectAltName={names}\n")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=gateway"
    for command in (
        f"openssl req -new {curve} -keyout {key} -out {request}",
        f"openssl x509 -req -in {request} -signkey {key} -days {days} -extfile {config} -out {folder / name}.pem",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and lists."""
    made = tmp_path_factory.mktemp("lint")
    make_certificate(made, "good", "DNS:mx.example.org", 90)
    make_certificate(made, "wild", "DNS:*.example.org", 90)
    make_certificate(made, "other", "DNS:www.example.org", 90)
    make_certificate(made, "ending", "DNS:mx.example.org", 3)
    make_certificate(made, "ended", "DNS:mx.example.org", -1)
    (made / "clients.list").write_text("192.0.2.1 reject\n")
    (made / "dkim.key").write_text("")
    return made


def nobody(name: str) -> Any:
    raise OSError(f"{name} is not looked up")


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access lists are looked for from where one is; and the machine has a name."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket, "gethostname", lambda: "mx.example.org")
    monkeypatch.setattr(socket, "gethostbyaddr", nobody)


def written(values: Mapping[str, Any]) -> str:
    """YAML without aliases."""
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False)


def disk(path: str) -> Disk:
    kinds = {"memory": Disk("tmpfs", 100 * GIB), "small": Disk("ext4", 100 << 20)}
    return kinds.get(Path(path).parent.name, Disk("ext4", 100 * GIB))


def look(file: Path) -> Report:
    config = load(str(file))
    plans = {name: made.plan for name, made in load_pipelines(config).items()}
    return lint(config, plans, SystemClock().now(), disk=disk)


def report_of(folder: Path, changes: Mapping[str, Any]) -> Report:
    file = folder / "gatepost.yaml"
    file.write_text(written({**BASE, **changes}))
    return look(file)


def codes(report: Report) -> set[str]:
    return {placed.code for placed in report.remarks}


def test_a_plain_configuration_is_clean(folder: Path) -> None:
    assert report_of(folder, {}).remarks == ()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            domain(next_hop=["smtp:192.0.2.9", "smtp:127.0.0.1:25"], recipients={"list": ["anna"]}),
            "domains.example.org",
        ),
        ({"routes": {"domains": {"a.test": "smtp:127.0.0.1:25"}}}, "routes.domains.a.test"),
        ({"routes": {"senders": {"<>": {"next_hop": "smtp:127.0.0.1:25"}}}}, "routes.senders.<>.next_hop"),
    ],
)
def test_a_loop_is_found_in_every_route_and_in_every_place_of_a_list(
    folder: Path, changes: Mapping[str, Any], key: str
) -> None:
    (found,) = [placed for placed in report_of(folder, changes).remarks if placed.code == "GP207"]
    assert found.key.startswith(key)


@pytest.mark.parametrize("code", CASES)
def test_a_check_remarks_on_its_case_and_says_where_what_and_how_to_mend_it(code: str, folder: Path) -> None:
    found = [placed for placed in report_of(folder, CASES[code][0]).remarks if placed.code == code]
    assert found
    for placed in found:
        assert placed.line >= 1 and placed.column >= 1
        assert placed.remark.message and placed.remark.example and placed.remark.fix


@pytest.mark.parametrize("code", CASES)
def test_a_check_leaves_alone_what_is_near_its_case(code: str, folder: Path) -> None:
    assert code not in codes(report_of(folder, CASES[code][1]))


def test_every_check_of_lint_itself_has_a_case() -> None:
    assert {check.code for check in CHECKS} <= CASES.keys() | IN_OTHER_TESTS


def test_every_check_that_our_plugins_and_policies_declare_has_a_case() -> None:
    declared: set[str] = set()
    for group in ("gatepost.plugins", "gatepost.policies"):
        for point in entry_points(group=group):
            if point.module.split(".")[0] in ("plugins", "policies"):
                made = point.load()
                checks = {*made.checks, *(made.policy.checks if getattr(made, "policy", None) else ())}
                assert all(check.code.startswith(f"{point.name}/") for check in checks), point.name
                declared |= {check.code for check in checks}
    assert declared == {code for code in CASES if "/" in code}


def test_codes_are_there_once() -> None:
    assert len({check.code for check in CHECKS}) == len(CHECKS) > 50


@pytest.mark.parametrize(
    ("changes", "code", "place"),
    [
        ({"relay_from": ["10.1.2.0/24", "0.0.0.0/0"]}, "GP101", "relay_from[1]"),
        (pipeline({"spf": {}}, {**CLAMD, "on_error": "reject"}), "GP404", "pipeline[1].on_error"),
        (
            pipeline(access("a@example.com accept", match="sender"), {"spf": {}}),
            "GP301",
            "pipeline[0].access.lists[0].entries[0]",
        ),
        (pipeline({"spf": {}}, {"rules": [RULE_BY_SENDER]}, {"dkim": {}}), "GP301", "pipeline[1].rules[0].when"),
    ],
)
def test_a_remark_names_the_key_that_causes_it(changes: Mapping[str, Any], code: str, place: str, folder: Path) -> None:
    (found,) = (placed for placed in report_of(folder, changes).remarks if placed.code == code)
    assert found.key == place
    line = (folder / "gatepost.yaml").read_text().splitlines()[found.line - 1]
    last = place.rpartition(".")[2]
    assert line[found.column - 1 :].startswith(last) or last.endswith("]")


def test_accept_skips_nothing_at_later_stages(folder: Path) -> None:
    listed = access("friend.example accept", match="sender")
    assert "GP301" not in codes(report_of(folder, pipeline(listed, {"dkim": {}}, CLAMD)))
    assert "GP301" in codes(report_of(folder, pipeline(listed, {"dnsbl": {"zones": {"bl.spamcop.net": 1}}})))


def test_entries_in_shadow_skip_nothing_and_are_not_skipped(folder: Path) -> None:
    listed = access("friend.example accept", match="sender")
    spf = {"spf": {}}
    assert "GP301" not in codes(report_of(folder, pipeline({**listed, "shadow": True}, spf)))
    assert "GP301" not in codes(report_of(folder, pipeline(listed, {**spf, "shadow": True})))


def test_the_implied_check_of_recipients_comes_before_whatever_accepts(folder: Path) -> None:
    assert "GP303" not in codes(report_of(folder, pipeline(access("192.0.2.1 accept"))))


def test_a_domains_pipeline_has_to_catch_up_within_the_reply_to_rcpt(folder: Path) -> None:
    slow = {"milter": {"connect": "127.0.0.1:1"}, "timeout": "1m", "on_error": "defer"}
    changes = {**OWN_PIPELINE, "pipelines": {"own": [slow]}}
    changes["deadlines"] = {"connect": "1m", "helo": "1m", "mail": "1m", "rcpt": "1m"}
    (found,) = (p for p in report_of(folder, changes).remarks if p.code == "GP502")
    assert "4m" in found.remark.message and "catch" not in found.remark.message
    assert "GP502" not in codes(report_of(folder, {**pipeline(slow), "deadlines": changes["deadlines"]}))


def test_with_copies_pipelines_are_asked_one_after_the_other_at_data(folder: Path) -> None:
    slow = {"delegation": {"connect": "127.0.0.1:1", "at": ["data"]}, "timeout": "50s", "on_error": "defer"}
    changes = {"pipeline": [slow], **OWN_PIPELINE, "pipelines": {"own": [slow]}, "deadlines": {"data": "50s"}}
    assert "GP502" not in codes(report_of(folder, changes))
    assert "GP502" in codes(report_of(folder, {**changes, "split": "copies"}))


class Odd(Policy):
    """Cannot look at itself."""

    name = "odd"
    checks = (Check("odd/one", Severity.NOTE, "one"),)

    def on_connect(self) -> Verdict:
        return PROCEED

    def lint(self, setting: object) -> list[Remark]:
        raise RuntimeError("\x1b[2J no")


class Stray(Odd):
    """Says what is not among its checks."""

    name = "stray"

    def lint(self, setting: object) -> list[Remark]:
        return [Remark(Check("stray/two", Severity.NOTE, "two"), (), "two")]


@pytest.mark.parametrize(("policy", "said"), [(Odd, "RuntimeError"), (Stray, "stray/two is not among its checks")])
def test_a_hook_that_fails_is_a_remark_and_the_others_go_on(policy: type[Policy], said: str, folder: Path) -> None:
    file = folder / "gatepost.yaml"
    file.write_text(written({**BASE, "split_refused": "discard"}))
    config = load(str(file))
    known = Catalog({}, {policy.name: policy})
    made = load_pipeline("default", [policy.name], Bench().services, known=known)
    object.__setattr__(config, "pipeline", (policy.name,))
    report = lint(config, {"default": made.plan}, 0.0, disk=disk)
    (found,) = (placed for placed in report.remarks if placed.code == "GP003")
    assert said in found.remark.message
    assert "GP804" in codes(report)


def test_the_example_and_the_demo_are_clean() -> None:
    for name in ("gatepost.example.yaml", "gatepost.demo.yaml"):
        assert look(ROOT / name).remarks == (), name


def test_the_readmes_configurations_are_clean_but_for_what_they_leave_out(folder: Path) -> None:
    text = (ROOT / "README.md").read_text().replace("/etc/gatepost/tls.crt", "good.pem")
    blocks = [
        block.partition("```")[0] for block in text.replace("/etc/gatepost/tls.key", "good.key").split("```yaml\n")[1:]
    ]
    found = []
    for block in blocks:
        found.append(codes(report_of(folder, {**BASE, **yaml.safe_load(block)})))
    # The listener behind a load balancer is shown without its certificate.
    assert found == [set(), {"GP701"}]


def test_the_nearest_mount_says_on_what_a_path_is(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts.write_text(f"none / ext4 rw 0 0\nnone {escaped} tmpfs rw 0 0\nnone /else ramfs rw 0 0\nshort\n")
    assert disk_of(str(inner / "not/there/yet"), mounts).in_memory
    assert disk_of(str(tmp_path / "other"), mounts).kind == "ext4"
    assert disk_of(str(inner), mounts).size > 0
    assert disk_of(str(inner), tmp_path / "no such file").kind == ""
