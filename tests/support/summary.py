"""Texts that stand at the end of the tests' output, whichever process ran the test that wrote them."""

from __future__ import annotations

TEXTS: list[str] = []


def add(text: str) -> None:
    """Have this printed after the last test."""
    TEXTS.append(text)
