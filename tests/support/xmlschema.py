"""XML checked against a schema, by libxml2's xmllint."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.process import binary

DMARC_REPORT = Path(__file__).parents[1] / "data" / "dmarc-2.0.xsd"


def schema_errors(xml: bytes, schema: Path = DMARC_REPORT) -> str:
    """What is wrong with the document; empty when it is valid."""
    argv = [binary("xmllint"), "--noout", "--nonet", "--schema", str(schema), "-"]
    done = subprocess.run(argv, input=xml, capture_output=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace")
