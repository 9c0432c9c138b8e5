"""docs/lint.md against the checks, in both directions."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

from gateway.app.lint import CHECKS
from gateway.sdk.lint import Check

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"(?m)^\| `(GP\d{3}|[a-z0-9-]+/[a-z-]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$")


def first_party() -> set[Check]:
    found: set[Check] = set()
    for group in ("gatepost.plugins", "gatepost.policies"):
        for point in entry_points(group=group):
            if point.module.split(".")[0] in ("plugins", "policies"):
                made = point.load()
                found |= {*made.checks, *(made.policy.checks if getattr(made, "policy", None) else ())}
    return found


def test_every_check_is_on_the_page_with_its_severity_and_title_and_no_other() -> None:
    rows = ROW.findall((ROOT / "docs/lint.md").read_text())
    documented = {(code, severity, title) for code, severity, title, _ in rows}
    assert len(documented) == len(rows)
    assert documented == {(c.code, c.severity.value, c.title) for c in {*CHECKS, *first_party()}}
    assert all(len(why) > 15 for *_, why in rows), "a row that explains nothing"
