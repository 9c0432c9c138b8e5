"""Postfix's own look-ups in its tables, by postmap."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.process import binary


def postmap(kind: str, table: Path, keys: Sequence[str]) -> dict[str, str]:
    """What Postfix finds for these keys in the table; keys that it does not find are left out.

    A warning of postmap, which goes on without a line that it does not understand, fails here.
    """
    etc = table.parent / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "main.cf").write_text("compatibility_level = 3.6\n")
    (etc / "master.cf").touch()
    argv = [binary("postmap"), "-c", str(etc), "-q", "-", f"{kind}:{table}"]
    asked = "".join(f"{key}\n" for key in keys)
    result = subprocess.run(argv, input=asked, capture_output=True, text=True, timeout=120)
    # Its status is 1 when nothing at all is found.
    assert result.stderr == "", result.stderr
    assert result.returncode in (0, 1), argv
    return dict(line.split("\t", 1) for line in result.stdout.splitlines())
