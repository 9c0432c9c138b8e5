"""Database files in the MaxMind DB format, written for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet


def write(path: Path, kind: str, networks: Mapping[str, Any], *, ip_version: int = 6) -> Path:
    """Write a file of this kind (its own name for what it holds) with a record for each network."""
    writer = MMDBWriter(ip_version, database_type=kind, ipv4_compatible=ip_version == 6, int_type="u32")
    for network, record in networks.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def write_countries(path: Path, networks: Mapping[str, str], **options: Any) -> Path:
    """A file with these countries."""
    records = {network: {"country": {"iso_code": code}} for network, code in networks.items()}
    return write(path, "Test-Country", records, **options)


def write_systems(path: Path, networks: Mapping[str, tuple[int, str]]) -> Path:
    """A file with these AS numbers and names."""
    records = {
        network: {"autonomous_system_number": number, "autonomous_system_organization": name}
        for network, (number, name) in networks.items()
    }
    return write(path, "Test-ASN", records)
