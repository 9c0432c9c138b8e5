"""rbldnsd, the server that most DNS lists run on: lists of addresses, networks and domains, reloaded while it runs."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
from collections.abc import Mapping, Sequence

from tests.support.process import Process, binary, free_port, new_directory, wait_until

TEST_ENTRY = "127.0.0.2"
"""rbldnsd answers for ::FFFF:7F00:2 by it, too."""


class Rbldnsd:
    """Zones of lines as in its data files: an address or network, and perhaps ``:127.0.0.4:text``.

    Lines with ``::`` are IPv6. Zones of `names` hold domains, ``.evil.test :127.0.0.8:text`` with all below it. Answers
    are good for one second.
    """

    def __init__(self, zones: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]] | None = None) -> None:
        self.port = free_port()
        self.home = new_directory("rbldnsd")
        self._zones = list(zones)
        for number, lines in enumerate(zones.values()):
            self._write(number, lines)
        specs = [
            f"{zone}:{kind}:{number}.{kind}"
            for number, zone in enumerate(self._zones)
            for kind in ("ip4trie", "ip6trie")
        ]
        for number, (zone, lines) in enumerate((names or {}).items()):
            (self.home / f"{number}.dnset").write_text("".join(f"{line}\n" for line in [":127.0.0.2:listed", *lines]))
            specs.append(f"{zone}:dnset:{number}.dnset")
        first = next(iter([*zones, *(names or {})]))
        argv = [binary("rbldnsd"), "-n", "-t", "1", "-c", "0", "-w", str(self.home), "-b", f"127.0.0.1/{self.port}"]
        self._process = Process([*argv, *specs], self.home / "log", cwd=self.home)
        self._process.wait_ready(lambda: self.codes("2.0.0.127", first) is not None)

    def _write(self, number: int, lines: Sequence[str]) -> None:
        six = [line for line in lines if "::" in line.split("/")[0]]
        four = [line for line in lines if line not in six]
        for kind, chosen in (("ip4trie", four), ("ip6trie", six)):
            text = "".join(f"{line}\n" for line in [":127.0.0.2:listed", *chosen])
            (self.home / f"{number}.{kind}").write_text(text)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def change(self, zone: str, lines: Sequence[str], *, probe: str, listed: bool) -> None:
        """Give the zone other lines, and wait until `probe` (octets in reverse) is listed, or is not."""
        self._write(self._zones.index(zone), lines)
        self._process.signal(signal.SIGHUP)
        wait_until(lambda: bool(self.codes(probe, zone)) is listed, f"rbldnsd has read {zone} again")

    def codes(self, key: str, zone: str) -> int | None:
        """How many A records it answers with; None when it does not answer."""
        name = b"".join(bytes([len(part)]) + part.encode() for part in f"{key}.{zone}".split(".")) + b"\0"
        query = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.sendto(query, ("127.0.0.1", self.port))
            reply = sock.recv(512)
        return int(struct.unpack(">H", reply[6:8])[0]) if reply[:2] == query[:2] else None

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
