"""Delivery into Maildirs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.address import Address
from gateway.mail.envelope import Recipient
from gateway.sdk.testing import BytesContent, ManualClock
from gateway.transport import maildir, storage
from gateway.transport.maildir import MaildirTransport
from gateway.transport.options import MaildirOptions, OverQuota
from gateway.transport.transport import Delivery, Destination, Fault, Kind, Outcome, Result
from tests.transport.peer import delivery, run, statuses


def deliver(path: object, what: Delivery, options: MaildirOptions | None = None) -> list[Outcome]:
    destination = Destination(Kind.MAILDIR, path=str(path), options=options)
    return run(MaildirTransport(destination, "gate.test", ManualClock()).deliver(what))


def mails(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "new").iterdir())]


def test_each_recipient_gets_a_copy_with_return_path_and_delivered_to(tmp_path: Path):
    box = tmp_path / "deep" / "box"
    outcomes = deliver(box, delivery("anna@example.net", "ben@example.net", content=b"Subject: x\r\n\r\n.\r\nHi\r\n"))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2
    assert sorted(mails(box)) == [
        b"Return-Path: <ben@example.org>\nDelivered-To: %s@example.net\nSubject: x\n\n.\nHi\n" % who
        for who in (b"anna", b"ben")
    ]
    assert list((box / "tmp").iterdir()) == []


def test_the_null_sender_is_an_empty_return_path(tmp_path: Path):
    deliver(tmp_path / "box", delivery(sender=""))
    assert mails(tmp_path / "box")[0].startswith(b"Return-Path: <>\nDelivered-To: anna@example.net\n")


def test_the_path_names_domain_and_local_part_in_lower_case(tmp_path: Path):
    deliver(f"{tmp_path}/{{domain}}/{{local}}", delivery("Anna+Lists@Example.NET"))
    assert len(mails(tmp_path / "example.net" / "anna+lists")) == 1


def test_a_gateway_with_the_longest_of_names_finds_names_for_its_files(tmp_path: Path):
    destination = Destination(Kind.MAILDIR, path=str(tmp_path / "box"), options=MaildirOptions(quota_messages=9))
    it = MaildirTransport(destination, ".".join(["a" * 62] * 4), ManualClock())
    assert statuses(run(it.deliver(delivery()))) == ["delivered 2.0.0"]


def test_only_the_owner_may_read_mail(tmp_path: Path):
    deliver(tmp_path / "a" / "box", delivery())
    (mail,) = (tmp_path / "a" / "box" / "new").iterdir()
    assert stat.S_IMODE(mail.stat().st_mode) == 0o600
    for folder in ("a", "a/box", "a/box/new", "a/box/tmp", "a/box/cur"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


def test_a_hostile_recipient_stays_below_the_path(tmp_path: Path):
    hostile = Recipient(Address("../../../escape", "../example.net"))
    outcomes = deliver(f"{tmp_path}/mail/{{domain}}/{{local}}", delivery(hostile))
    assert statuses(outcomes) == ["delivered 2.0.0"]
    assert [p.name for p in tmp_path.iterdir()] == ["mail"]


def test_large_content_is_streamed_into_each_copy(tmp_path: Path):
    data = b"".join(b"%d\r\n" % i for i in range(400_000))
    assert (
        statuses(deliver(tmp_path / "box", delivery("a@x.test", "b@x.test", content=data))) == ["delivered 2.0.0"] * 2
    )
    assert [mail.partition(b"x.test\n")[2] for mail in mails(tmp_path / "box")] == [data.replace(b"\r\n", b"\n")] * 2


def test_large_content_that_cannot_be_read_leaves_nothing(tmp_path: Path):
    class Unreadable(BytesContent):
        async def blocks(self) -> AsyncIterator[bytes]:
            yield self.data[:100_000]
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        deliver(tmp_path / "box", delivery(content=Unreadable(b"x\r\n" * 1_000_000)))
    assert mails(tmp_path / "box") == [] and not list((tmp_path / "box" / "tmp").iterdir())


def test_a_maildir_that_cannot_be_made_is_our_fault_and_temporary(tmp_path: Path):
    (tmp_path / "box").write_text("no directory")
    (outcome,) = deliver(tmp_path / "box" / "anna", delivery())
    assert outcome.result is Result.DEFERRED and outcome.fault is Fault.OURS
    assert outcome.reply.status == "4.3.0"


def failing(function: str, number: int) -> Any:
    """A function of os that fails with this errno from its first call on a Maildir's files."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("function", "number", "status"),
    [
        ("write", errno.ENOSPC, "4.2.2"),
        ("write", errno.EDQUOT, "4.2.2"),
        ("write", errno.EIO, "4.3.0"),
        ("fsync", errno.EIO, "4.3.0"),
        ("rename", errno.EACCES, "4.3.0"),
    ],
)
@pytest.mark.parametrize("size", [10, storage.SMALL + 10])
def test_a_disk_that_fails_defers_and_leaves_nothing_half_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, status: str, size: int
):
    box = tmp_path / "box"
    assert statuses(deliver(box, delivery())) == ["delivered 2.0.0"]
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, function, failing(function, number))
        (outcome,) = deliver(box, delivery(content=b"x" * size))
    assert statuses([outcome]) == [f"deferred {status}"] and outcome.fault is Fault.OURS
    assert len(mails(box)) == 1 and not list((box / "tmp").iterdir())


def test_the_file_is_synced_before_it_is_moved_and_the_directory_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"
    deliver(box, delivery())
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(fd: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(box).parts[0])
        fsync(fd)

    def spy_rename(old: Any, new: Any) -> None:
        steps.append("move")
        rename(old, new)

    monkeypatch.setattr(storage.os, "fsync", spy_fsync)
    monkeypatch.setattr(storage.os, "rename", spy_rename)
    deliver(box, delivery())
    assert steps == ["sync tmp", "move", "sync new"]


def test_a_maildir_that_lost_a_part_is_mended(tmp_path: Path):
    box = tmp_path / "box"
    deliver(box, delivery())
    for mail in (box / "new").iterdir():
        mail.unlink()
    (box / "new").rmdir()
    assert statuses(deliver(box, delivery())) == ["delivered 2.0.0"]
    assert len(mails(box)) == 1


def test_a_thousand_names_are_a_thousand_names():
    transport = MaildirTransport(Destination(Kind.MAILDIR, path="/m"), "gate.test", ManualClock())
    names = {transport._name(1e9) for _ in range(1000)}
    assert len(names) == 1000 and all(name.endswith(".gate.test") and "/" not in name for name in names)


def test_a_name_tells_the_size_of_the_message(tmp_path: Path):
    for size in (10, storage.SMALL + 10):
        deliver(tmp_path / "box", delivery(content=b"x" * size + b"\r\n"))
    for path in (tmp_path / "box" / "new").iterdir():
        assert path.name.endswith(f",S={path.stat().st_size}")


@pytest.mark.parametrize("size", [100, storage.SMALL + 10])
@pytest.mark.parametrize(
    ("over", "says"), [(OverQuota.DEFER, "deferred 4.2.2"), (OverQuota.FAIL, "failed 5.2.2")], ids=str
)
def test_a_full_mailbox_takes_no_more_and_the_others_do(tmp_path: Path, size: int, over: OverQuota, says: str):
    path = f"{tmp_path}/{{local}}"
    options = MaildirOptions(quota=2 * size, over_quota=over)
    content = b"x" * size
    assert statuses(deliver(path, delivery("anna@x.test", content=content), options)) == ["delivered 2.0.0"]
    outcomes = deliver(path, delivery("anna@x.test", "ben@x.test", content=content), options)
    assert statuses(outcomes) == [says, "delivered 2.0.0"]
    assert outcomes[0].reply.code == (452 if over is OverQuota.DEFER else 552)
    assert len(mails(tmp_path / "anna")) == 1 and not list((tmp_path / "anna" / "tmp").iterdir())


def test_room_that_was_made_is_found(tmp_path: Path):
    options = MaildirOptions(quota_messages=2)
    box = tmp_path / "box"
    for _ in range(2):
        assert statuses(deliver(box, delivery(), options)) == ["delivered 2.0.0"]
    assert statuses(deliver(box, delivery(), options)) == ["deferred 4.2.2"]
    next((box / "new").iterdir()).unlink()
    # Numbers that were just counted are believed for a quarter of an hour, by the file's age.
    os.utime(box / "maildirsize", (0, 0))
    assert statuses(deliver(box, delivery(), options)) == ["delivered 2.0.0"]


def test_without_an_option_the_quota_of_the_mailbox_itself_is_kept(tmp_path: Path):
    box = tmp_path / "box"
    deliver(box, delivery())
    assert not (box / "maildirsize").exists()
    (box / "maildirsize").write_text("5000S,2C\n90 1\n")
    assert statuses(deliver(box, delivery())) == ["delivered 2.0.0"]
    assert statuses(deliver(box, delivery())) == ["deferred 4.2.2"]


def test_a_quota_that_cannot_be_noted_loses_no_mail_and_doubles_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    box = tmp_path / "box"
    options = MaildirOptions(quota_messages=5)
    deliver(box, delivery(), options)

    def refuse(self: object, octets: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(maildir.MaildirQuota, "added", refuse)
    assert statuses(deliver(box, delivery(), options)) == ["delivered 2.0.0"]
    assert len(mails(box)) == 2
