"""A milter of the kind that people write with pymilter: it looks at every part of a message and adds one field.

As a program it serves on the socket that it is given; Gatepost's `milter-host` runs the same class without one.
"""

from __future__ import annotations

import sys

import Milter


class CountingMilter(Milter.Base):
    """Counts header fields and octets of the body."""

    def __init__(self) -> None:
        self.fields = 0
        self.octets = 0

    def connect(self, name: str, family: int, address: object) -> int:
        return Milter.CONTINUE

    def hello(self, name: str) -> int:
        return Milter.CONTINUE

    def envfrom(self, sender: str, *parameters: str) -> int:
        self.fields = self.octets = 0
        return Milter.CONTINUE

    def envrcpt(self, recipient: str, *parameters: str) -> int:
        return Milter.CONTINUE

    def header(self, name: str, value: str) -> int:
        self.fields += 1
        return Milter.CONTINUE

    def eoh(self) -> int:
        return Milter.CONTINUE

    def body(self, chunk: bytes) -> int:
        self.octets += len(chunk)
        return Milter.CONTINUE

    def eom(self) -> int:
        self.addheader("X-Counted", f"{self.fields} fields, {self.octets} octets")
        return Milter.CONTINUE

    def close(self) -> int:
        return Milter.CONTINUE


if __name__ == "__main__":
    Milter.factory = CountingMilter
    Milter.set_flags(Milter.ADDHDRS)
    Milter.runmilter("counting", sys.argv[1], 60)
