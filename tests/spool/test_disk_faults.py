"""A disk in trouble, as clients meet it: never a 250 for what is not stored, and all is well when the disk is."""

from __future__ import annotations

import asyncio
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.kit.door import Door
from gateway.spool.spool import SpoolError, SpoolFull
from gateway.spool.sqlite import SqliteSpool
from tests.spool.faults import DATABASE, FILES, Disk, disk_of
from tests.spool.rig import NOW, SMALL, content_files, deliver, options, put, take

TROUBLE = {**FILES, **DATABASE}
LARGE = 270_000


class Scene:
    """A front door on a disk that can be broken, and a client in an open session."""

    def __init__(self, door: Door, disk: Disk) -> None:
        self.door = door
        self.disk = disk
        self.acknowledged: set[str] = set()
        self.sent = 0
        self.client = self.connect()

    def connect(self) -> smtplib.SMTP:
        client = smtplib.SMTP(*self.door.address, local_hostname="client.test", timeout=20)
        client.ehlo()
        return client

    def send(self, *, large: bool) -> tuple[int, bytes]:
        """One transaction; what it was is kept when it is acknowledged."""
        self.sent += 1
        mark = f"number-{self.sent}"
        body = f"Subject: {mark}\r\n\r\n" + ("x" * 898 + "\r\n") * (LARGE // 900 if large else 1)
        for command in ("MAIL FROM:<ann@sender.test>", "RCPT TO:<ben@example.org>"):
            code, text = self.client.docmd(command)
            if code != 250:
                self.client.docmd("RSET")
                return code, text
        code, text = self.client.data(body)
        if code == 250:
            self.acknowledged.add(mark)
        return code, text

    def stored(self) -> dict[str, int]:
        """What is in the spool, and how many octets of it are there."""
        found = {}
        for queued in self.door.queued:
            (subject,) = [line for line in queued.content.split(b"\r\n") if line.startswith(b"Subject: ")]
            found[subject.decode().removeprefix("Subject: ")] = len(queued.content)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Door(tmp_path_factory.mktemp("door"), []) as door:
        spool = door._spool
        assert isinstance(spool, SqliteSpool)
        with disk_of(spool) as disk:
            made = Scene(door, disk)
            yield made
            made.client.close()


def content(scene: Scene) -> set[str]:
    spool = scene.door._spool
    assert isinstance(spool, SqliteSpool)
    return {path.name for path in (spool._shards[0].directory / "content").iterdir()}


@pytest.mark.parametrize(
    ("name", "large"),
    # The row of a large message finds room in a database that has no page more.
    [(name, True) for name in TROUBLE if name != "SQLITE_FULL"] + [(name, False) for name in DATABASE],
    ids=lambda value: value if isinstance(value, str) else "large" if value else "small",
)
def test_the_client_hears_that_it_is_to_come_back_and_nothing_is_half_stored(
    scene: Scene, name: str, large: bool
) -> None:
    break_it, full = TROUBLE[name]
    before, files, met = scene.stored(), content(scene), scene.disk.met
    break_it(scene.disk)
    try:
        code, text = scene.send(large=large)
        assert (code, text[:6]) == ((452, b"4.3.1 ") if full else (451, b"4.3.0 "))
    finally:
        scene.disk.mend()
    assert scene.disk.met > met or name in ("SQLITE_FULL", "SQLITE_READONLY")
    assert scene.stored() == before and content(scene) == files
    # The session goes on, and the next message is taken.
    code, _ = scene.send(large=large)
    assert code == 250 and set(scene.stored()) == set(before) | {f"number-{scene.sent}"}


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, *TROUBLE]), st.booleans()), min_size=1, max_size=6))
def test_whatever_breaks_and_mends_in_whatever_order_250_means_stored(
    scene: Scene, order: list[tuple[str | None, bool]]
) -> None:
    for name, large in order:
        scene.disk.mend()
        if name is not None:
            TROUBLE[name][0](scene.disk)
        code, _ = scene.send(large=large)
        assert code in (250, 451, 452)
    scene.disk.mend()
    assert set(scene.stored()) == scene.acknowledged, "no false 250, and nothing that got 451 or 452"
    assert scene.send(large=False)[0] == scene.send(large=True)[0] == 250


@pytest.mark.parametrize("name", [name for name in DATABASE if "INSERT" not in name and name != "SQLITE_FULL"])
def test_what_was_delivered_and_could_not_be_settled_is_settled_when_the_disk_is_well(
    tmp_path: Path, name: str
) -> None:
    break_it, full = DATABASE[name]

    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        ids = [await put(spool, SMALL), await put(spool, b"x" * LARGE)]
        claimed = await take(spool)
        with disk_of(spool) as disk:
            break_it(disk)
            for id in ids:
                with pytest.raises(SpoolFull if full else SpoolError):
                    await deliver(spool, claimed[id].message)
            assert [message.id for message in await spool.list()] == ids
            assert content_files(options(tmp_path)) == {ids[1]}
            disk.mend()
            for id in ids:
                await deliver(spool, claimed[id].message)
        assert await spool.list() == [] and not content_files(options(tmp_path))
        await spool.close()

    asyncio.run(check())


def test_a_claim_that_fails_gives_nobody_a_message_and_is_made_when_the_disk_is_well(tmp_path: Path) -> None:
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        id = await put(spool, b"x" * LARGE)
        with disk_of(spool) as disk:
            for name in ("SQLITE_READONLY", "SQLITE_IOERR_FSYNC at COMMIT", "SQLITE_IOERR_WRITE at BEGIN"):
                DATABASE[name][0](disk)
                with pytest.raises(SpoolError):
                    await take(spool, NOW + 9)
                disk.mend()
                spool._shards[0].next_due = 0.0
            assert set(await take(spool, NOW + 9)) == {id}
        await spool.close()

    asyncio.run(check())
