"""What a published chart is: it names its image, and is signed so that either Helm can tell (tools/publish.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, MAJORS, helm, only
from tests.chart.signing import NAME, KeyRing
from tools.publish import Failed, Key, Registry, name_image, pack

pytestmark = pytest.mark.slow

REGISTRY = Registry.parsed("registry.example.org:5000/mail", plain=False)
DIGEST = f"sha256:{'1' * 64}"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """The chart as it is published."""
    chart = tmp_path / "gatepost"
    shutil.copytree(CHART, chart)
    name_image(chart, REGISTRY, DIGEST)
    return chart


def image(chart: Path, **values: Any) -> str:
    made = helm("template", "rel", str(chart), values=values)
    assert made.returncode == 0, made.stderr
    documents = list(yaml.safe_load_all(made.stdout))
    (container,) = only(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    found: str = container["image"]
    return found


def test_a_published_chart_needs_nobody_to_say_which_image_it_runs(named: Path) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert image(named) == f"registry.example.org:5000/mail/gatepost:{version}"
    for major in MAJORS:
        linted = helm("lint", "--strict", str(named), major=major)
        assert linted.returncode == 0, linted.stdout + linted.stderr
    (told,) = yaml.safe_load(yaml.safe_load((named / "Chart.yaml").read_text())["annotations"]["artifacthub.io/images"])
    assert told == {"name": "gatepost", "image": f"registry.example.org:5000/mail/gatepost:{version}@{DIGEST}"}


def test_the_image_of_a_published_chart_gives_way_to_another(named: Path) -> None:
    own = image(named, image={"registry": "mirror.example.net", "repository": "own", "tag": "3"})
    assert own == "mirror.example.net/own:3"
    assert image(named, image={"registry": "", "repository": "mirror.example.net/own", "tag": "3"}) == own
    assert image(named, **{"global": {"imageRegistry": "mirror.example.net"}}).startswith("mirror.example.net/mail/")
    refused = helm("template", "rel", str(named), values={"image": {"repository": "mirror.example.net/own"}})
    assert refused.returncode != 0 and "image.registry is registry.example.org:5000" in refused.stderr


def test_values_and_readme_of_a_published_chart_say_the_same(named: Path) -> None:
    values = yaml.safe_load((named / "values.yaml").read_text())["image"]
    rows = (named / "README.md").read_text()
    for key in ("registry", "repository"):
        assert f'| `image.{key}` | `"{values[key]}"` |' in rows


def test_a_chart_that_is_not_as_expected_is_not_published(named: Path) -> None:
    with pytest.raises(Failed, match=r"values\.yaml has this not once"):
        name_image(named, REGISTRY, DIGEST)


@pytest.mark.parametrize("text", ["registry.example.org", "https://registry.example.org/mail", "a/../b c", "a//b", ""])
def test_a_registry_is_a_host_and_a_path(text: str) -> None:
    with pytest.raises(Failed, match="is not HOST/PATH"):
        Registry.parsed(text, plain=False)


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ring() -> Iterator[KeyRing]:
    made = KeyRing()
    yield made
    made.close()


@pytest.fixture
def own_ring(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    """The ring, and it is the user's."""
    monkeypatch.setenv("GNUPGHOME", str(ring.home))
    return ring


def test_both_helms_find_the_signature_good_and_a_changed_chart_bad(own_ring: KeyRing, tmp_path: Path) -> None:
    with Key.exported(NAME, own_ring.passphrase) as key:
        package = pack(CHART, tmp_path, key)
        public = tmp_path / "gatepost.gpg"
        shutil.copy(key.public, public)
    assert not key.secret.exists(), "a secret key is left"
    for major in MAJORS:
        verified = helm("verify", str(package), "--keyring", str(public), major=major)
        assert verified.returncode == 0 and "releases@example.org" in verified.stdout, verified.stderr
    package.write_bytes(package.read_bytes() + b"\0")
    for major in MAJORS:
        refused = helm("verify", str(package), "--keyring", str(public), major=major)
        assert refused.returncode != 0 and "sha256 sum does not match" in refused.stderr, refused.stderr


def test_a_signature_by_somebody_else_is_not_good(own_ring: KeyRing, tmp_path: Path) -> None:
    with Key.exported(NAME, own_ring.passphrase) as key:
        package = pack(CHART, tmp_path, key)
    other = KeyRing()
    try:
        (tmp_path / "other.gpg").write_bytes(other.exported())
    finally:
        other.close()
    for major in MAJORS:
        refused = helm("verify", str(package), "--keyring", str(tmp_path / "other.gpg"), major=major)
        assert refused.returncode != 0 and "signature" in refused.stderr, refused.stderr


def test_a_wrong_passphrase_and_an_unknown_key_end_it(own_ring: KeyRing, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("another\n")
    with pytest.raises(Failed, match="gpg --batch failed"), Key.exported(NAME, wrong):
        pytest.fail("a key was exported")
    with pytest.raises(Failed, match=r"no secret key of nobody@example\.org"):
        with Key.exported("nobody@example.org", own_ring.passphrase):
            pytest.fail("a key was exported")


def test_a_key_that_helm_3_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = KeyRing("ed25519")
    try:
        monkeypatch.setenv("GNUPGHOME", str(curves.home))
        with Key.exported(NAME, curves.passphrase) as key, pytest.raises(Failed, match="public key type"):
            pack(CHART, tmp_path, key)
    finally:
        curves.close()
