"""The public names are those that are written down, and none goes without a warning."""

from __future__ import annotations

import re

from gateway.sdk.deprecation import NAMES, OldName
from tests.support import public_names
from tests.support.public_names import FILE, MODULES, ROOT, difference, names, refusals, render


def test_the_public_names_are_those_of_the_file():
    now = render()
    assert now == FILE.read_text(), (
        f"public names of the SDK have changed:\n{difference(FILE.read_text(), now)}\n"
        "When that is meant, run `make public-names` and commit tests/sdk/public_names.txt. A name that is removed or "
        "renamed must be deprecated for one release first; docs/stability.md says how."
    )


def test_the_page_of_stability_lists_the_public_modules():
    page = (ROOT / "docs/stability.md").read_text()
    listed = re.findall(r"(?m)^\| `(gateway\.(?:kit|sdk)[\w.]*)` \|", page)
    assert tuple(listed) == MODULES


def test_a_change_of_a_signature_of_a_field_or_of_a_member_is_seen(monkeypatch):
    import gateway.sdk

    def reject(detail: str) -> None: ...

    before = render()
    monkeypatch.setattr(gateway.sdk, "reject", reject)
    assert "-gateway.sdk.reject(detail: str, text: str" in difference(before, render())
    monkeypatch.undo()
    for line in (
        "    lookups: int = 0",
        "    SOFTFAIL = 'softfail'",
        "    only(self, recipients: Iterable[Recipient]) ->",
    ):
        assert line in before


OLD = "# gateway.sdk\n\ngateway.sdk.Old: class\n    name: str\n\nasync gateway.sdk.dial(endpoint: Endpoint) -> None\n"


def test_the_file_is_read_by_names():
    assert names(OLD + "\ngateway.sdk.older: going, gone in 0.3\n") == {
        "gateway.sdk.Old": "",
        "gateway.sdk.dial": "",
        "gateway.sdk.older": "0.3",
    }
    assert {"gateway.sdk.Policy", "gateway.sdk.dial", "gateway.sdk.testing.Bench"} <= names(render()).keys()


def test_a_name_that_is_just_gone_is_refused():
    (refused,) = refusals(OLD, OLD.replace("gateway.sdk.Old: class\n    name: str\n", ""), "0.2.0")
    assert refused.startswith("gateway.sdk.Old is gone without a warning")


def test_a_name_that_is_going_stays_until_its_release_has_come():
    going = OLD.replace(": class\n    name: str", ": going, gone in 0.3")
    gone = OLD.replace("gateway.sdk.Old: class\n    name: str\n", "")
    assert refusals(OLD, going, "0.2.0") == []
    assert refusals(going, gone, "0.2.9") == ["gateway.sdk.Old was to warn until 0.3, and this is 0.2.9"]
    assert refusals(going, gone, "0.3.0") == []


def test_a_name_that_is_going_stands_in_the_text(monkeypatch):
    monkeypatch.setitem(NAMES, "gateway.sdk.refuse", OldName("0.2", "0.3", "gateway.sdk.reject"))
    assert names(render())["gateway.sdk.refuse"] == "0.3"


def test_the_command_writes_what_may_change_and_nothing_else(monkeypatch, tmp_path, capsys):
    file = tmp_path / "public_names.txt"
    monkeypatch.setattr(public_names, "FILE", file)
    assert public_names.main() == 0 and file.read_text() == render()
    file.write_text(before := render() + "\ngateway.sdk.Lost: class\n")
    assert public_names.main() == 1 and file.read_text() == before
    assert "gateway.sdk.Lost is gone without a warning" in capsys.readouterr().err
