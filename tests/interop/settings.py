"""Configurations that several of these tests start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.process import free_port
from tests.support.servers import Dovecot, Unbound


def maildir(directory: Path) -> dict[str, object]:
    return {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}}


def delivered(directory: Path) -> list[Path]:
    return [path for path in (directory / "mail").rglob("*") if path.parent.name == "new"]


def unreachable() -> dict[str, object]:
    return {"example.org": {"next_hop": f"lmtp:127.0.0.1:{free_port()}", "recipients": "any"}}


def behind_proxy(dovecot: Dovecot, unbound: Unbound | None, pipeline: list[Any]) -> dict[str, Any]:
    """Clients come with a PROXY header, so that they can be anybody. Without unbound nobody answers questions."""
    return {
        "domains": {Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"}},
        "listeners": [
            {
                "address": f"127.0.0.1:{free_port()}",
                "role": "edge",
                "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
            }
        ],
        "dns": {"nameservers": [unbound.address if unbound else f"127.0.0.1:{free_port()}"], "timeout": "2s"},
        "pipeline": pipeline,
    }
