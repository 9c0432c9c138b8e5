"""Made values are rendered, refused by a guard that says why, or refused by the schema by name: ``make chart-full``.

Both Helms render each tree at the same time, for the oldest or the newest Kubernetes; what they make is judged by
Kubernetes' own schemas, the operators' models, the rules of all renderings, and the gateway's own parser. Each run
makes others; ``ARGS=--hypothesis-seed=N`` makes the same again. What fails is shown as it is: to make it smaller may
take minutes.
"""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError

from gateway.config import ConfigError, parse
from tests.chart import generated
from tests.chart.full_custom import dropped
from tests.chart.full_custom import models as models
from tests.chart.generated import Broken, Values, broken
from tests.chart.helm import CHART, MAJORS, Document, Loader, is_hook, of_kind, pods, template
from tests.chart.kubernetes import VERSIONS, objections, validate
from tests.chart.rules import check_files, check_mounts, check_references, containers
from tests.chart.test_render import FOREIGN, with_files
from tests.chart.test_render import certificate as certificate
from tests.support.servers import Certificate

pytestmark = pytest.mark.slow

TREES: Final = 180
"""Two Helms need a third of a second for each."""
FAULTY: Final = 40
TAKEN, REFUSED, GUARDED = "taken by the gateway", "refused by the gateway", "refused by a guard"
KUBERNETES: Final = st.sampled_from((VERSIONS[0], VERSIONS[-1]))
LEAST: Final = 0.3
"""So many of the trees must be rendered at least, since guards that refuse everything would prove nothing."""


@dataclass(frozen=True, slots=True)
class Judges:
    """What objects and configurations are judged by, beside Kubernetes' schemas."""

    models: Mapping[str, Any]
    certificate: Certificate
    """Files for configurations that name some."""


@pytest.fixture(scope="module")
def judges(models: Mapping[str, Any], certificate: Certificate) -> Judges:
    return Judges(models, certificate)


_both: Final = ThreadPoolExecutor(len(MAJORS))


@cache
def guards() -> tuple[re.Pattern[str], ...]:
    """What the chart's guards say, each as a pattern."""
    found = []
    for file in (CHART / "templates").glob("*.tpl"):
        for text in re.findall(r'fail (?:\(printf )?("(?:[^"\\]|\\.)*")', file.read_text()):
            parts = re.split(r"%[vs]", json.loads(text))
            found.append(re.compile("(?s:.*)".join(map(re.escape, parts))))
    assert found
    return tuple(found)


def outcome(values: Values, kubernetes: str, chart: Path = CHART) -> tuple[Document, ...] | str:
    """The objects of these values, or the guard's message; fails when a Helm ends otherwise, or the two differ."""
    results = _both.map(lambda major: template(values.given, major=major, kubernetes=kubernetes, chart=chart), MAJORS)
    three, four = (_read(result) for result in results)
    assert three == four, "Helm 3 and Helm 4 differ"
    return four


def _read(result: subprocess.CompletedProcess[str]) -> tuple[Document, ...] | str:
    if result.returncode == 0:
        documents = [document for document in yaml.load_all(result.stdout, Loader) if document]
        return tuple(sorted(documents, key=lambda document: json.dumps(document, sort_keys=True)))
    said = result.stderr.strip()
    told = re.match(r"(?s)Error: execution error at \(gatepost/templates/[^)]*\): (.*?)(?:\n\nUse --debug|\Z)", said)
    assert told is not None, said
    assert any(guard.fullmatch(told[1]) for guard in guards()), said
    return told[1]


def check(documents: Collection[Document], tree: Document, kubernetes: str, judges: Judges) -> str:
    """Fails for what is wrong in objects; says what the gateway thinks of its configuration."""
    for document in documents:
        if document["kind"] in FOREIGN:
            continue
        if (model := judges.models.get(document["kind"])) is None:
            validate(document, kubernetes)
        else:
            kept = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert not dropped(document, kept), document
        assert not (found := objections(document)), found
    check_references(documents, _foreign(tree))
    check_mounts(documents)
    check_files(documents)
    for _, spec, _ in pods(documents):
        assert spec["automountServiceAccountToken"] is False
        for container in containers(spec):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    return _configured(documents, tree, judges.certificate)


def judge(values: Values, kubernetes: str, judges: Judges, chart: Path = CHART) -> str:
    """Fails unless these values are rendered well, and then says what the gateway thinks; or what the guard says."""
    assert generated.accepted(values.tree), "the schema does not take what was made from it"
    made = outcome(values, kubernetes, chart)
    return made if isinstance(made, str) else check(made, values.tree, kubernetes, judges)


def judge_refusal(case: Broken, chart: Path = CHART) -> None:
    """Fails unless both Helms refuse these values and name what is wrong."""
    assert not generated.accepted(case.tree), "the schema takes what it should not"
    for result in _both.map(lambda major: template(case.given, major=major, chart=chart), MAJORS):
        assert result.returncode != 0, "was rendered"
        assert "values don't meet the specifications of the schema" in result.stderr and case.name in result.stderr


def _foreign(tree: Document) -> set[str]:
    """Names of ConfigMaps and accounts that the operator has."""
    source = tree["plugins"]["wheels"]["source"]
    return {
        tree["tls"]["clientCA"]["existingConfigMap"],
        source.get("configMap", {}).get("name", ""),
        *([] if tree["serviceAccount"]["create"] else [tree["serviceAccount"]["name"]]),
    }


def _configured(documents: Collection[Document], tree: Document, certificate: Certificate) -> str:
    """The configuration is what was given and what the chart adds; the gateway takes it or says why not."""
    texts = {d["data"]["gatepost.yaml"] for d in of_kind(documents, "ConfigMap") if "gatepost.yaml" in d["data"]}
    (text,) = texts
    config = yaml.load(text, Loader)
    given_ = tree["config"]
    for key, value in given_.items():
        if key in ("spool", "state", "timeouts"):
            assert config[key].items() >= value.items(), key
        else:
            assert config[key] == value, key
    added = {"listeners", "admin", "spool", "state", "timeouts", "reload", "evacuate", "policy_folder"}
    assert config.keys() - given_.keys() <= added
    services = {name: one for name, one in tree["services"].items() if one and one.get("enabled", True)}
    addresses = {f"{host}:{one['targetPort']}" for one in services.values() for host in _hosts(tree)}
    assert {listener["address"] for listener in config["listeners"]} == addresses
    for listener in config["listeners"]:
        (service,) = (one for one in services.values() if listener["address"].endswith(f":{one['targetPort']}"))
        assert listener["pipeline"] == (service.get("pipeline") or "default")
    if inline := tree["plugins"]["inline"]:
        assert any(d["data"] == inline for d in of_kind(documents, "ConfigMap") if not is_hook(d))
    try:
        parse(with_files(text, certificate).encode(), "/etc/gatepost/config/gatepost.yaml")
    except ConfigError as error:
        assert error.problems and all(str(problem) for problem in error.problems)
        return REFUSED
    return TAKEN


def _hosts(tree: Document) -> list[str]:
    return ["[::]" if family == "IPv6" else "0.0.0.0" for family in tree["ipFamilies"]]


def test_what_the_schema_takes_is_rendered_well_or_refused_by_a_guard(judges: Judges) -> None:
    seen: collections.Counter[str] = collections.Counter()
    said = set()

    @settings(max_examples=TREES, derandomize=False, phases=[Phase.generate])
    @given(generated.values(), KUBERNETES)
    def run(values: Values, kubernetes: str) -> None:
        made = judge(values, kubernetes, judges)
        if made in (TAKEN, REFUSED):
            seen[made] += 1
        else:
            seen[GUARDED] += 1
            said.add(next(guard for guard in guards() if guard.fullmatch(made)))

    run()
    print(f"\n{dict(seen)}, by {len(said)} of {len(guards())} guards")
    assert seen[TAKEN] + seen[REFUSED] >= LEAST * seen.total()
    assert seen[TAKEN] and seen[REFUSED] and seen[GUARDED]


@settings(max_examples=FAULTY, derandomize=False, phases=[Phase.generate])
@given(broken())
def test_what_the_schema_does_not_take_is_refused_by_name(case: Broken) -> None:
    judge_refusal(case)


# --- that faults are found --------------------------------------------------------------------------------------------


def planted(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """A copy of the chart with a fault."""
    chart = tmp_path / "gatepost"
    shutil.copytree(CHART, chart)
    text = (chart / file).read_text()
    assert old in text
    (chart / file).write_text(text.replace(old, new))
    return chart


FAULTS: Final = {
    "a text without quotes": (
        "priorityClassName",
        ("templates/_pod.tpl", "priorityClassName: {{ . | quote }}", "priorityClassName: {{ . }}"),
    ),
    "a guard that is gone": (
        "services",
        ("templates/_checks.tpl", 'has $name (list "health" "handover" "pods")', "false"),
    ),
    "a list that must not be empty": (
        "networkPolicy",
        ("templates/networkpolicy.yaml", "{{- with $n.egress.ports }}", "{{- with list (index $n.egress.ports 0) }}"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, judges: Judges, tmp_path: Path) -> None:
    key, change = FAULTS[fault]
    chart = planted(tmp_path, *change)

    # The first find ends it; so many, since some faults need a certain word at a certain place.
    @settings(max_examples=5 * TREES, phases=[Phase.generate], report_multiple_bugs=False)
    @given(generated.values([key]))
    def run(values: Values) -> None:
        judge(values, VERSIONS[-1], judges, chart)

    with pytest.raises((AssertionError, ValidationError)):
        run()


def test_a_schema_that_takes_what_it_should_not_is_found(tmp_path: Path) -> None:
    strict = '"maximum": 3600,\n     "minimum": 0,'
    chart = planted(tmp_path, "values.schema.json", strict, '"maximum": 3600,\n     "minimum": -9,')

    @settings(max_examples=TREES, phases=[Phase.generate], report_multiple_bugs=False)
    @given(broken(["drain"]))
    def run(case: Broken) -> None:
        judge_refusal(case, chart)

    with pytest.raises(AssertionError, match="was rendered"):
        run()


def test_a_keyword_that_nothing_obeys_is_an_error() -> None:
    with pytest.raises(ValueError, match="contains"):
        generated.known({"$defs": {"a": {"anyOf": [{"items": {"type": "string", "contains": {}}}]}}})
    with pytest.raises(ValueError, match="somethingNew"):
        generated.made({"type": "object", "additionalProperties": True}, ("somethingNew",))
