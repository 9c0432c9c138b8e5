"""What is told at the end of the tests, whichever process ran the test that says it."""

from __future__ import annotations

from typing import Any

TEXTS: list[str] = []
COUNTS: list[tuple[str, dict[str, Any]]] = []
"""Rows of the report on durability, each with the part that it stands in; see `tests.crash.report.of_counts`."""


def add(text: str) -> None:
    """Have this printed after the last test."""
    TEXTS.append(text)
