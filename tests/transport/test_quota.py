"""Maildir++ quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transport.quota import LONGEST, MaildirQuota, Quota, Sizes, Usage, parse

NOW = 1_000_000_000.0


def make(folder: Path, size: str = "") -> Path:
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(parents=True)
    if size:
        (folder / "maildirsize").write_text(size)
    return folder


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"1000S,10C\n 500 2      \n", Sizes(Quota(1000, 10), Usage(500, 2), True)),
        (b"1000S\n500 2\n-100 -1\n", Sizes(Quota(1000), Usage(400, 1), False)),
        (b"10C\n", Sizes(Quota(0, 10), Usage(), False)),
        (b"\n0 0\n", Sizes(Quota(), Usage(), True)),
        (b"", None),
        (b"1000S", None),
        (b"1000S\n500", None),
        (b"1000S\n500\n", None),
        (b"lots\n500 2\n", None),
        (b"1000S\n5e3 2\n", None),
        (b"1000S\n" + b"1 1\n" * 2000, None),
    ],
)
def test_the_file_is_read(data: bytes, expected: Sizes | None):
    assert parse(data) == expected


@given(st.binary(max_size=LONGEST + 10))
def test_whatever_stands_in_it_is_read_or_not(data: bytes):
    assert parse(data) is None or (data.endswith(b"\n") and len(data) < LONGEST)


@given(st.lists(st.sampled_from([b"1000S", b",", b"10C", b"\n", b" ", b"-5", b"7", b"1"]), max_size=30).map(b"".join))
def test_what_nearly_is_one_is_read_or_not(data: bytes):
    if sizes := parse(data):
        assert sizes.counted == (data.count(b"\n") == 2)
        again = f"{sizes.quota}\n{sizes.usage.octets} {sizes.usage.messages}\n".encode()
        assert parse(again) == Sizes(sizes.quota, sizes.usage, True)


def test_everything_counts_but_the_trash(tmp_path: Path):
    box = make(tmp_path / "box")
    (box / "new" / "1,S=100").write_bytes(b"")
    (box / "cur" / "2,S=200:2,S").write_bytes(b"")
    (box / "cur" / "3:2,").write_bytes(b"x" * 30)
    (box / "cur" / "4,S=999:2,ST").write_bytes(b"")
    (box / "cur" / ".hidden").write_bytes(b"x" * 999)
    (box / "tmp" / "5,S=999").write_bytes(b"")
    make(box / ".Sent")
    (box / ".Sent" / "cur" / "6,S=4000,W=5000:2,").write_bytes(b"")
    make(box / ".Trash")
    (box / ".Trash" / "cur" / "7,S=999:2,").write_bytes(b"")
    quota = MaildirQuota(box, Quota(5330))
    assert quota.admits(1000, "n", NOW)
    assert (box / "maildirsize").read_text().split() == ["5330S", "4330", "4"]
    assert not quota.admits(1001, "n", NOW)
    quota.added(1000)
    assert (box / "maildirsize").read_bytes().endswith(b"\n1000 1       \n")
    assert not list((box / "tmp").glob("n*"))


def test_another_quota_than_the_one_in_the_file_takes_its_place(tmp_path: Path):
    box = make(tmp_path / "box", "10S\n900 9\n")
    assert MaildirQuota(box, Quota(1000, 5)).admits(500, "n", NOW)
    assert (box / "maildirsize").read_text().split() == ["1000S,5C", "0", "0"]


@pytest.mark.parametrize("text", ["garbage", "1000S\n" + "1 1\n" * 2000])
def test_a_file_that_is_none_or_too_long_is_written_anew(tmp_path: Path, text: str):
    box = make(tmp_path / "box", text)
    assert MaildirQuota(box, Quota(1000)).admits(500, "n", NOW)
    assert (box / "maildirsize").read_text().split() == ["1000S", "0", "0"]


def test_numbers_that_say_full_are_counted_again_unless_they_just_were(tmp_path: Path):
    box = make(tmp_path / "box", "1000S\n900 9\n100 1\n")
    quota = MaildirQuota(box, Quota(1000))
    assert quota.admits(500, "n", NOW)

    (box / "maildirsize").write_text("1000S\n900 9\n")
    os.utime(box / "maildirsize", (NOW - 10, NOW - 10))
    assert not quota.admits(500, "n", NOW)
    assert quota.admits(500, "n", NOW + 900)


def test_a_file_that_cannot_be_read_as_quota_is_none_when_none_is_wanted(tmp_path: Path):
    box = make(tmp_path / "box", "garbage")
    assert MaildirQuota(box, Quota()).admits(10**12, "n", NOW)
    assert (box / "maildirsize").read_text() == "garbage"


def test_without_a_file_nothing_is_noted(tmp_path: Path):
    box = make(tmp_path / "box")
    MaildirQuota(box, Quota()).added(5)
    assert not (box / "maildirsize").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path):
    box = make(tmp_path / "box")
    (tmp_path / "other").write_text("1S\n0 0\n")
    (box / "maildirsize").symlink_to(tmp_path / "other")
    with pytest.raises(OSError):
        MaildirQuota(box, Quota()).added(5)
    assert (tmp_path / "other").read_text() == "1S\n0 0\n"
