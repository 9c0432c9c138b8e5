"""The documents against the code, in both directions: what exists is documented, what is documented exists."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import yaml
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway.cli import main
from gateway.config import Config, load
from gateway.config.reference import NAME, Option, options, table
from gateway.ops import metrics

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "gatepost.example.yaml").read_text()
COMMENTED = re.compile(r"(?m)^( {0,6})# ( *[a-z_.]+:(?: .*)?)$")


def sources() -> Iterator[Path]:
    for folder in ("gateway", "plugins", "policies"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def leaves(values: Any, model_options: dict[str, Option], path: str = "") -> Iterator[tuple[str, Any]]:
    """The options that a mapping sets, with the operator's own names and places in lists made general."""
    if path in model_options or not isinstance(values, (dict, list)):
        yield path, values
    elif isinstance(values, list):
        for value in values:
            yield from leaves(value, model_options, path + "[]")
    else:
        for key, value in values.items():
            below = f"{path}.{key}" if path else key
            known = any(known == below or known.startswith((below + ".", below + "[")) for known in model_options)
            yield from leaves(value, model_options, below if known else f"{path}.{NAME}")


OPTIONS = {option.path: option for option in options(Config)}


def test_the_example_holds_every_option() -> None:
    everything = yaml.safe_load(COMMENTED.sub(r"\1\2", EXAMPLE))
    counts = Counter(path for path, _ in leaves(everything, OPTIONS))
    # As for domains; the default route of the example is one that nobody may log in at.
    told = ("routes.default.smtp.auth.", f"routes.domains.{NAME}.smtp.", f"routes.senders.{NAME}.smtp.")
    wanted = {path for path in OPTIONS if not path.startswith(told)}
    assert wanted - set(counts) == set(), "options that gatepost.example.yaml does not show"
    unknown = set(counts) - set(OPTIONS) - {f"domains.{NAME}.recipients"}
    assert unknown == set(), "keys in gatepost.example.yaml that are no options"
    repeated = {path for path, n in counts.items() if n > 1 and not path.startswith("domains.")}
    assert repeated == set(), "options that gatepost.example.yaml shows more than once"


def test_the_example_gives_every_option_its_default() -> None:
    shown = list(leaves(yaml.safe_load(EXAMPLE), OPTIONS))
    wrong = []
    for path, value in shown:
        option = OPTIONS.get(path)
        if option is not None and not option.required and option.default is not None:
            if json.dumps(value) != option.default and path != f"pipelines.{NAME}":
                wrong.append(f"{path} is {json.dumps(value)}, its default {option.default}")
    assert wrong == []
    without = {path for path, option in OPTIONS.items() if option.default not in (None, "null") and not option.required}
    # The listener's TLS as a whole has no default, so its other keys can only stand in the comment with it; LDAP
    # neither, nor a named transport, a login, a route by domain or sender, VERP, SRS, Redis and PostgreSQL.
    without -= {f"listeners[].tls.{key}" for key in ("mode", "requiretls", "client_certificate")}
    logins = (f"domains.{NAME}.smtp.auth.", "routes.default.smtp.auth.")
    in_comments = (f"domains.{NAME}.recipients.ldap.", *logins, f"transports.{NAME}.", "verp.", "srs.")
    in_comments += (f"routes.domains.{NAME}.", f"routes.senders.{NAME}.", "state.redis.", "spool.postgres.")
    without -= {path for path in without if path.startswith(in_comments)}
    assert without - {path for path, _ in shown} == set(), "options with a default that are only in comments"


def test_the_example_is_a_good_configuration_with_and_without_its_comments(tmp_path: Path) -> None:
    assert load(str(ROOT / "gatepost.example.yaml")).listeners
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mx.example.org"
        " -keyout tls.key -out tls.crt".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    for ca in ("ca.pem", "partners.pem"):
        (tmp_path / ca).write_bytes((tmp_path / "tls.crt").read_bytes())
    (tmp_path / "recipients.txt").write_text("anna\n")
    (tmp_path / "ldap.secret").write_text("secret\n")
    (tmp_path / "smarthost.secret").write_text("secret\n")
    (tmp_path / "redis.secret").write_text("secret\n")
    (tmp_path / "postgres.secret").write_text("secret\n")
    (tmp_path / "hook.token").write_text("token\n")
    (tmp_path / "admin.token").write_text("a token of some length\n")
    (tmp_path / "peers.token").write_text("another token of some length\n")
    (tmp_path / "srs.secrets").write_text("a secret of some length\n")
    (tmp_path / "srs.secrets").chmod(0o600)
    (tmp_path / "gatepost.yaml").write_text(COMMENTED.sub(r"\1\2", EXAMPLE))
    everything = load(str(tmp_path / "gatepost.yaml"))
    assert everything.admin.token is not None
    checks = [domain.check for domain in everything.domains.values()]
    assert checks == ["callout", "any", "list", "list", "ldap"]


def test_the_reference_page_is_the_models_table() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert page.endswith("\n\n" + table(Config)), "write gateway.config.reference.table(Config) at its end"


def metrics_of(values: Iterable[object]) -> dict[str, tuple[str, tuple[str, ...]]]:
    found = {}
    for value in values:
        if isinstance(value, MetricWrapperBase):
            (description,) = value.describe()
            name = description.name + ("_total" if isinstance(value, PrometheusCounter) else "")
            kind = {PrometheusCounter: "counter", Gauge: "gauge", Histogram: "histogram"}[type(value)]
            found[name] = (kind, tuple(value._labelnames))
    return found


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    found = metrics_of(vars(metrics).values())
    assert documented_metrics(ROOT / "docs/metrics.md") == found


def documented_metrics(page: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = re.findall(r"(?m)^\| `(gatepost_[a-z_]+)` \| (\w+) \| ([^|]*)\|", page.read_text())
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_every_metric_of_a_plugin_stands_on_a_card_of_its_package() -> None:
    cards: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {}
    for point in entry_points(group="gatepost.plugins"):
        if point.module.split(".")[0] == "plugins":
            importlib.import_module(point.module)
            cards.setdefault(point.module.split(".")[1], {}).update(
                documented_metrics(ROOT / f"docs/plugins/{point.name}.md")
            )
    assert cards
    for package, documented in cards.items():
        modules = [m for name, m in sys.modules.items() if (name + ".").startswith(f"plugins.{package}.")]
        assert metrics_of(value for module in modules for value in vars(module).values()) == documented, package


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_and_option_is_documented_and_every_documented_one_exists() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    documented: dict[str, set[str]] = {}
    for section in re.split(r"(?m)^#{2,3} ", page)[1:]:
        title = re.match(r"`([a-z ]+)`", section)
        listed = re.search(r"(?m)^Options: (.*)\.$", section)
        if title and listed:
            documented[title[1]] = set(re.findall(r"`(--[a-z-]+)`", listed[1]))
    found = {
        path: {o for p in command.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
        for path, command in commands(main, "gatepost")
    }
    assert documented == found


def test_every_command_that_prints_data_takes_json() -> None:
    without = [
        path for path, command in commands(main, "gatepost") if not any("--json" in p.opts for p in command.params)
    ]
    # An export is JSON and nothing else.
    assert without == ["gatepost run", "gatepost delegate", "gatepost milter", "gatepost records export"]


EVENT = re.compile(r"[a-z]+\.[a-z_]+\Z")


def logged() -> set[str]:
    """Names of events as the code writes them; a computed part stands as ``*``."""
    found = set()
    for path in sources():
        module = ast.parse(path.read_text())
        tables = {
            target.id: statement.value
            for statement in module.body
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, ast.Dict)
            for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if isinstance(node.func.value, ast.Name) and node.func.value.id == "_log":
                    found |= set(names(node.args[0], tables))
    return found


def names(argument: ast.expr, tables: dict[str, ast.Dict]) -> Iterator[str]:
    if isinstance(argument, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in argument.values)
        return
    for node in ast.walk(argument):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT.match(node.value):
            yield node.value
        elif isinstance(node, ast.Name) and node.id in tables:
            yield from (name for value in tables[node.id].values for name in names(value, tables))


def test_every_log_event_is_documented_and_every_documented_one_exists() -> None:
    # A plugin's own events stand on its card.
    page = "".join(path.read_text() for path in [ROOT / "docs/logging.md", *sorted((ROOT / "docs/plugins").iterdir())])
    documented = set(re.findall(r"(?m)^\| `([a-z]+\.[a-z_]+)` \|", page))
    found = logged()
    computed = [re.compile(re.escape(name).replace(r"\*", "[a-z_]+") + r"\Z") for name in found if "*" in name]
    plain = {name for name in found if "*" not in name}
    assert plain - documented == set(), "events that docs/logging.md does not have"
    nowhere = {name for name in documented - plain if not any(pattern.match(name) for pattern in computed)}
    assert nowhere == set(), "events in docs/logging.md that nothing writes"


def test_of_every_plugin_that_uses_the_state_the_page_says_what_becomes_of_it_while_redis_is_down() -> None:
    rows = set(re.findall(r"(?m)^\| \[`([a-z-]+)`\]", (ROOT / "docs/shared-state.md").read_text()))
    users = set()
    for point in entry_points(group="gatepost.plugins"):
        if point.module.split(".")[0] == "plugins":
            path = ROOT.joinpath(*point.module.split("."))
            # A plugin is a module or a package; several in one package are told apart by their own module.
            files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            if any(re.search(r"services\.state\b", file.read_text()) for file in files):
                users.add(point.name)
    assert rows == users


def rfcs(text: str) -> set[int]:
    """RFCs that a module names: ``RFC n``, and the numbers after ``*RFCs*:``."""
    found = {int(n) for n in re.findall(r"\bRFCs? (\d{3,5})\b", text)}
    for paragraph in re.findall(r'\*RFCs\*:(.*?)(?:\n\s*\n|""")', text, re.DOTALL):
        found |= {int(n) for n in re.findall(r"(?<![\d.])(\d{4})(?![\d])", paragraph)}
    return found


def test_every_rfc_that_the_code_names_stands_in_the_table_of_standards() -> None:
    rows = re.findall(
        r"(?m)^\| (\d+) \| [^|]* \| (yes|partial|no)\b[^|]*\| ([^|]*) \|", (ROOT / "docs/standards.md").read_text()
    )
    state = {int(number): word for number, word, _ in rows}
    assert len(state) == len(rows), "an RFC stands in the table twice"
    named = {path.relative_to(ROOT): rfcs(path.read_text()) for path in sources()}
    missing = {str(path): sorted(numbers - set(state)) for path, numbers in named.items() if numbers - set(state)}
    assert missing == {}
    everywhere = set().union(*named.values())
    claimed = {number for number, word in state.items() if word != "no"}
    assert claimed - everywhere == set(), "RFCs said to be implemented that no module names"
    for number, _, where in rows:
        for name in re.findall(r"`([^`]+)`", where):
            assert (ROOT / name).exists(), f"docs/standards.md, RFC {number}: {name} is not there"


def test_rows_of_the_table_of_standards_name_modules_unless_they_say_no() -> None:
    lines = (ROOT / "docs/standards.md").read_text().splitlines()
    _, _, *rows = [cells for line in lines if len(cells := [c.strip() for c in line.strip("|").split("|")]) == 4]
    assert rows
    for cells in rows:
        assert (cells[3] == "-") == cells[2].startswith("no"), cells
