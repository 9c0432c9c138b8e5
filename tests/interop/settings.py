"""Configurations that several of these tests start from."""

from __future__ import annotations

from pathlib import Path

from tests.support.process import free_port


def maildir(directory: Path) -> dict[str, object]:
    return {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}}


def delivered(directory: Path) -> list[Path]:
    return [path for path in (directory / "mail").rglob("*") if path.parent.name == "new"]


def unreachable() -> dict[str, object]:
    return {"example.org": {"next_hop": f"lmtp:127.0.0.1:{free_port()}", "recipients": "any"}}
