"""Checkov, which looks for weak spots, finds none in what the chart makes but those named here: ``make chart-full``."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.chart.helm import EXAMPLES, NAMESPACE, ROOT, Document, of_kind, pods, rendered, workload

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Finding:
    """What a check has against an object; `file` is of whose values it is made."""

    check: str
    file: str
    kind: str
    name: str
    says: str


@dataclass(frozen=True)
class Allowed:
    """Findings that stay; `file`, `kind` and `name` are patterns, as file names have them."""

    check: str
    why: str
    file: str = "*"
    kind: str = "*"
    name: str = "*"

    def covers(self, finding: Finding) -> bool:
        pairs = ((finding.file, self.file), (finding.kind, self.kind), (finding.name, self.name))
        return finding.check == self.check and all(fnmatchcase(*pair) for pair in pairs)


ALLOWED: Final = (
    Allowed("CKV_K8S_8", "The test asks once and ends: nothing is to be restarted.", kind="Pod", name="*-selftest"),
    Allowed("CKV_K8S_9", "No Service leads to the test.", kind="Pod", name="*-selftest"),
    Allowed("CKV_K8S_11", "Memory is limited and CPU is not: it would slow mail down while a node has nothing to do."),
    Allowed("CKV_K8S_15", "A tag is a version; pods must start from what their node has while the registry is away."),
    Allowed("CKV_K8S_40", "OpenShift gives each namespace high user ids of its own.", file="examples/openshift.yaml"),
    Allowed("CKV_K8S_43", "Only who builds the image knows its digest: image.digest, as examples/gitops.yaml has it."),
    Allowed("CKV2_K8S_6", "It turns policies off, to show that one can.", file="ci/one-pod-values.yaml", kind="Pod"),
)


@dataclass(frozen=True)
class Scan:
    findings: tuple[Finding, ...]
    seen: frozenset[tuple[str, str, str]]
    """What was looked at: file, kind and name."""

    def refused(self) -> list[Finding]:
        return [finding for finding in self.findings if not any(one.covers(finding) for one in ALLOWED)]

    def unused(self, allowed: Sequence[Allowed] = ALLOWED) -> list[Allowed]:
        return [one for one in allowed if not any(one.covers(finding) for finding in self.findings)]


def scan(made: Mapping[str, Iterable[Document]], directory: Path) -> Scan:
    """Have checkov look at the objects of each file, without a network."""
    checkov = ROOT / ".venv/tools/checkov"
    assert checkov.is_dir(), "run tools/setup.sh full, which installs it"
    for file, documents in made.items():
        # Helm gives an object the namespace of its release when it is installed.
        there = [{**one, "metadata": {"namespace": NAMESPACE, **one["metadata"]}} for one in documents]
        (directory / flat(file)).write_text(yaml.dump_all(there, Dumper=_Dumper))
    # It sees its own packages and none of ours, and does not ask for a newer version of itself.
    command = (sys.executable, "-S", "-m", "checkov.main", "--framework", "kubernetes", "-d", ".")
    options = ("--skip-download", "--compact", "-o", "json")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(checkov)}
    environment["CKV_SKIP_PACKAGE_UPDATE_CHECK"] = "true"
    ran = subprocess.run(
        (*command, *options), cwd=directory, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode in (0, 1), ran.stderr
    report = json.loads(ran.stdout)
    assert report["summary"]["parsing_errors"] == 0
    names = {flat(file): file for file in made}
    results = report["results"]
    failed = tuple(_finding(result, names) for result in results["failed_checks"])
    passed = (_finding(result, names) for result in results["passed_checks"])
    return Scan(failed, frozenset((one.file, one.kind, one.name) for one in (*failed, *passed)))


def flat(file: str) -> str:
    return file.replace("/", "-")


def _finding(result: dict[str, Any], names: Mapping[str, str]) -> Finding:
    # A pod of a template has its labels behind its name.
    kind, _, name = result["resource"].split(".")[:3]
    return Finding(result["check_id"], names[result["file_path"].lstrip("/")], kind, name, result["check_name"])


def made_of(*files: str) -> tuple[Document, ...]:
    """The objects of a release of its own name: a policy for the pods of one must not count for those of another."""
    return rendered(*files, release=Path(*files).stem or "values")


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Document, ...]]:
    return {"values.yaml": made_of(), **{file: made_of(file) for file in EXAMPLES}}


@pytest.fixture(scope="module")
def found(made: dict[str, tuple[Document, ...]], tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scan(made, tmp_path_factory.mktemp("rendered"))


def test_checkov_sees_every_pod_and_finds_nothing_but_what_is_allowed(
    made: dict[str, tuple[Document, ...]], found: Scan
) -> None:
    for file, documents in made.items():
        for whose, _, _ in pods(documents):
            assert (file, *whose.split()) in found.seen
    assert found.refused() == []


def test_a_digest_is_all_that_an_image_needs(found: Scan) -> None:
    checks = {finding.check for finding in found.findings if finding.file == "examples/gitops.yaml"}
    assert not checks & {"CKV_K8S_15", "CKV_K8S_43"}


def test_every_allowance_is_needed(found: Scan) -> None:
    assert found.unused() == []
    nobody = Allowed("CKV_K8S_16", "No container is privileged.")
    assert found.unused((*ALLOWED, nobody)) == [nobody]


def test_what_is_made_worse_is_found(tmp_path: Path) -> None:
    worse = copy.deepcopy([one for one in made_of() if one["kind"] != "NetworkPolicy"])
    spec = workload(worse)["spec"]["template"]["spec"]
    spec |= {"hostNetwork": True, "hostPID": True, "automountServiceAccountToken": True}
    spec["securityContext"] |= {"runAsUser": 0, "runAsNonRoot": False}
    (container,) = spec["containers"]
    container["securityContext"] |= {"privileged": True, "readOnlyRootFilesystem": False, "capabilities": {}}
    del container["livenessProbe"], container["resources"]["limits"]["memory"]
    # The same that is allowed elsewhere.
    for job in of_kind(worse, "Job"):
        del job["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    refused = scan({"worse.yaml": worse}, tmp_path).refused()
    assert {finding.check for finding in refused if finding.kind == "StatefulSet"} == {
        "CKV_K8S_8",  # A probe is missing,
        "CKV_K8S_13",  # and a limit of memory.
        "CKV_K8S_16",  # It is privileged,
        "CKV_K8S_17",  # in the node's process ids
        "CKV_K8S_19",  # and network,
        "CKV_K8S_22",  # on a root file system that can be written,
        "CKV_K8S_23",  # as root,
        "CKV_K8S_28",  # with raw sockets
        "CKV_K8S_37",  # and other capabilities,
        "CKV_K8S_38",  # with a token,
        "CKV_K8S_40",  # as a user that the node has.
    }
    assert {finding.check for finding in refused if finding.kind == "Job"} == {"CKV_K8S_40"}
    bare = {finding.name for finding in refused if finding.check == "CKV2_K8S_6"}
    assert bare == {"values-gatepost", "values-gatepost-check", "values-gatepost-selftest"}
