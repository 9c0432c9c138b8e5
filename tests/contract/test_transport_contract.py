"""The contract of transports, kept by those into Maildirs, mboxes and commands, and by SMTP to a real front door."""

from __future__ import annotations

import asyncio
import mailbox
from pathlib import Path

import pytest

from gateway.kit.contracts.transport import (
    Arrived,
    RefusalContract,
    RefusingPlace,
    StallContract,
    StallingPlace,
    TransportContract,
    TransportPlace,
)
from gateway.kit.door import Door
from gateway.sdk import (
    PROCEED,
    Address,
    Finding,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Stage,
    Transaction,
    Verdict,
    acts,
    reject,
)
from gateway.sdk.testing import FakeDns, ManualClock
from gateway.transport.maildir import MaildirTransport
from gateway.transport.mbox import MboxTransport
from gateway.transport.options import MboxOptions, PipeOptions, SmtpOptions, Timeouts
from gateway.transport.pipe import PipeTransport
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Security, Transport

DOMAIN = "example.org"


class FilePlace:
    """Mailboxes below a directory, each named like its recipient's local part."""

    def __init__(self, directory: Path) -> None:
        self.boxes = directory / "boxes"
        self.boxes.mkdir()

    def recipient(self, number: int) -> Recipient:
        return Recipient(Address(f"user{number}", DOMAIN))

    async def received(self) -> list[Arrived]:
        return [
            Arrived(f"{box.name}@{DOMAIN}", content)
            for box in sorted(self.boxes.iterdir())
            for content in self.contents(box)
        ]

    def contents(self, box: Path) -> list[bytes]:
        raise AssertionError("a kind of place says how it is read")

    async def down(self) -> None:
        self.boxes.rename(self.boxes.with_name("gone"))
        self.boxes.write_text("there is a file where a directory should be")

    async def close(self) -> None:
        """Nothing is open."""


class MaildirPlace(FilePlace):
    def transport(self) -> Transport:
        destination = Destination(Kind.MAILDIR, path=f"{self.boxes}/{{local}}")
        return MaildirTransport(destination, "gate.test", ManualClock())

    def contents(self, box: Path) -> list[bytes]:
        assert list((box / "tmp").iterdir()) == []
        return [path.read_bytes() for path in (box / "new").iterdir()]


class MboxPlace(FilePlace):
    """Mailboxes that another program can have locked."""

    patience = 30.0

    def transport(self) -> Transport:
        options = MboxOptions(lock_timeout=self.patience)
        destination = Destination(Kind.MBOX, path=f"{self.boxes}/{{local}}", options=options)
        return MboxTransport(destination, "gate.test", ManualClock())

    def contents(self, box: Path) -> list[bytes]:
        if box.suffix == ".lock":
            return []
        read = mailbox.mbox(box)
        try:
            return [read.get_bytes(key) for key in read.keys()]
        finally:
            read.close()

    async def stall(self) -> None:
        self.patience = 0.1
        for number in range(2):
            self.boxes.joinpath(f"user{number}.lock").write_text("somebody")


class PipePlace(FilePlace):
    """A command that files what it has read to its end, refuses strangers, and may sleep first."""

    SCRIPT = (
        'case "$2" in stranger) exit 67;; esac; [ -e "$1/../stalls" ] && sleep 60; '
        'mkdir -p "$1/$2" || exit 75; f=$(mktemp "$1/.XXXXXX") && cat > "$f" && mv "$f" "$1/$2/"'
    )

    def transport(self) -> Transport:
        command = ("/bin/sh", "-c", self.SCRIPT, "sh", str(self.boxes), "{local}")
        return PipeTransport(
            PipeOptions(command, timeout=0.5 if self.stalls.exists() else 30), "gate.test", ManualClock()
        )

    @property
    def stalls(self) -> Path:
        return self.boxes.with_name("stalls")

    def stranger(self) -> Recipient:
        return Recipient(Address("stranger", DOMAIN))

    def contents(self, box: Path) -> list[bytes]:
        return [path.read_bytes() for path in box.iterdir()] if box.is_dir() else []

    async def stall(self) -> None:
        self.stalls.touch()


class Waited(Finding):
    """Nothing but that it was waited for."""


class Slow(Plugin):
    """Takes its time with each recipient when it is told to."""

    name = "slow"
    Options = PluginOptions
    timeout = 60.0
    stalls = False

    @acts(Stage.RCPT)
    async def wait(self, transaction: Transaction, recipient: Recipient) -> Waited:
        if type(self).stalls:
            await asyncio.sleep(50)
        return Waited()


class Strangers(Policy):
    """Refuses who is not there."""

    name = "strangers"

    def on_rcpt(self, recipient: Recipient) -> Verdict:
        return reject("1.1", "no such recipient") if recipient.address.local == "stranger" else PROCEED


class SmtpPlace:
    """A front door, as the next hop."""

    def __init__(self, directory: Path) -> None:
        Slow.stalls = False
        self.door = Door(directory / "spool", ["slow", "strangers"], Slow, Strangers)

    def recipient(self, number: int) -> Recipient:
        return Recipient(Address(f"user{number}", DOMAIN))

    def stranger(self) -> Recipient:
        return Recipient(Address("stranger", DOMAIN))

    def transport(self) -> Transport:
        destination = Destination(Kind.SMTP, *self.door.address, security=Security.NONE)
        timeouts = Timeouts(command=1.0 if Slow.stalls else 300.0, quit=1.0)
        return SmtpTransport(destination, SmtpOptions("gate.test", timeouts), FakeDns())

    async def received(self) -> list[Arrived]:
        queued = await asyncio.to_thread(lambda: self.door.queued)
        return [Arrived(recipient, one.content) for one in queued for recipient in one.recipients]

    async def down(self) -> None:
        await asyncio.to_thread(self.door.close)

    async def stall(self) -> None:
        Slow.stalls = True

    async def close(self) -> None:
        await asyncio.to_thread(self.door.close)


class TestMaildirTransport(TransportContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> TransportPlace:
        return MaildirPlace(tmp_path)


class TestMboxTransport(TransportContract, StallContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> StallingPlace:
        return MboxPlace(tmp_path)


class TestPipeTransport(TransportContract, RefusalContract, StallContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> RefusingPlace:
        return PipePlace(tmp_path)


class TestSmtpTransport(TransportContract, RefusalContract, StallContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> RefusingPlace:
        return SmtpPlace(tmp_path)
