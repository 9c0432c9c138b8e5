"""The chart, rendered by the real Helm of either major version."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/gatepost"
MAJORS: Final = (3, 4)
NAMESPACE: Final = "mail"
RELEASE: Final = "rel"
EXAMPLES: Final = tuple(
    sorted(str(path.relative_to(CHART)) for folder in ("examples", "ci") for path in (CHART / folder).glob("*.yaml"))
)

Document = dict[str, Any]
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(_Safe):  # type: ignore[misc]
    """YAML in which no key stands twice: Helm takes the last one, other tools refuse it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice in {sorted(keys)}"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def program(major: int) -> Path:
    """Helm; a missing one fails the test, since a skipped test proves nothing."""
    path = ROOT / f".venv/tools/helm{major}"
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is not there: run tools/setup.sh test, which installs it")
    return path


def helm(*arguments: str, major: int = 4, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm; `values` are given as a file would be. It needs no cluster and gets no home."""
    command = [str(program(major)), *arguments]
    given = None
    if values is not None:
        command += ["--values", "-"]
        given = json.dumps(values)
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    return subprocess.run(command, input=given or "", capture_output=True, text=True, timeout=60, env=environment)


@cache
def rendered(*files: str, major: int = 4, release: str = RELEASE) -> tuple[Document, ...]:
    """All objects that the chart makes with these value files, by their names within the chart."""
    options = [option for file in files for option in ("--values", str(CHART / file))]
    return _documents(helm("template", release, str(CHART), "--namespace", NAMESPACE, *options, major=major))


def render(values: Mapping[str, Any], *, major: int = 4, kubernetes: str = "") -> tuple[Document, ...]:
    """All objects that the chart makes with these values, for the newest version of Kubernetes unless one is given."""
    return _documents(template(values, major=major, kubernetes=kubernetes))


def refusal(values: Mapping[str, Any], *, major: int = 4, kubernetes: str = "") -> str:
    """What Helm says of values that it must refuse, on one line."""
    result = template(values, major=major, kubernetes=kubernetes)
    assert result.returncode != 0, f"was rendered: {values}"
    return " ".join(result.stderr.split())


def template(
    values: Mapping[str, Any], *, major: int = 4, kubernetes: str = "", chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    """What Helm says to these values."""
    version = ["--kube-version", kubernetes] if kubernetes else []
    return helm("template", RELEASE, str(chart), "--namespace", NAMESPACE, *version, major=major, values=values)


def _documents(result: subprocess.CompletedProcess[str]) -> tuple[Document, ...]:
    assert result.returncode == 0, result.stderr
    return tuple(document for document in yaml.load_all(result.stdout, Loader) if document)


def of_kind(documents: Iterable[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def only(documents: Iterable[Document], kind: str, *, suffix: str = "") -> Document:
    """The one object of this kind whose name ends so."""
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(suffix))
    return found


def workload(documents: Iterable[Document]) -> Document:
    """What runs the gateway's pods."""
    (found,) = (document for document in documents if document["kind"] in ("StatefulSet", "Deployment"))
    return found


def names(documents: Iterable[Document]) -> set[tuple[str, str]]:
    return {(document["kind"], document["metadata"]["name"]) for document in documents}


def pods(documents: Iterable[Document]) -> list[tuple[str, Document, dict[str, str]]]:
    """Every pod that comes of these objects: of whom, its spec, and its labels."""
    found = []
    for document in documents:
        whose = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Pod":
            found.append((whose, document["spec"], document["metadata"]["labels"]))
        elif "template" in document.get("spec", {}):
            template = document["spec"]["template"]
            found.append((whose, template["spec"], template["metadata"]["labels"]))
    return found


def configuration(documents: Iterable[Document]) -> Document:
    """The gateway's configuration file, as the pods get it."""
    maps = [d for d in of_kind(documents, "ConfigMap") if "gatepost.yaml" in d["data"] and not is_hook(d)]
    (found,) = maps
    configured: Document = yaml.load(found["data"]["gatepost.yaml"], Loader)
    return configured


def is_hook(document: Document) -> bool:
    return "helm.sh/hook" in document["metadata"].get("annotations", {})
