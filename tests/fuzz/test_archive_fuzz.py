"""Archives that are mutated, made up and nested: looking at them ends, stays within its bounds and is repeatable."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sdk import Attachment
from plugins.content.examine import Bounds, Collected, Examiner, Label
from plugins.content.names import base_name, extensions, is_disguised, is_unsafe

BOUNDS = Bounds(depth=3, members=20, unpacked=200_000, ratio=50, seconds=60.0)


def zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, octets in members:
            archive.writestr(zipfile.ZipInfo(name), octets, method)
    return out.getvalue()


def tarred(members: list[tuple[str, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, octets in members:
            info = tarfile.TarInfo(name)
            info.size = len(octets)
            archive.addfile(info, io.BytesIO(octets))
    return out.getvalue()


NAMES = st.text(alphabet="abc äß.-_", min_size=1, max_size=30).filter(lambda n: n.strip("/. ") != "")
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=6, unique_by=lambda m: m[0])
METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
FORMS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
ZIPS = st.builds(zipped, MEMBERS, METHODS)
ARCHIVES = st.recursive(
    ZIPS | st.builds(tarred, MEMBERS, FORMS),
    lambda inner: (
        st.builds(lambda octets: gzip.compress(octets, mtime=0), inner)
        | st.builds(bz2.compress, inner)
        | st.builds(lzma.compress, inner)
        | st.builds(lambda octets, method: zipped([("inner", octets)], method), inner, METHODS)
    ),
    max_leaves=4,
)


def look(octets: bytes, bounds: Bounds = BOUNDS) -> list[Attachment]:
    examiner = Examiner(bounds, lambda: 0.0)
    collected = Collected()
    try:
        collected.write(octets)
        examiner.examine(collected, Label(("a.bin",)))
    finally:
        collected.close()
    return examiner.items


@st.composite
def mutated(draw) -> bytes:
    octets = bytearray(draw(ARCHIVES))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(octets)))
        how = draw(st.integers(0, 3))
        if how == 0:
            octets[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif how == 1:
            del octets[at : at + draw(st.integers(1, 40))]
        elif how == 2:
            octets[at:at] = octets[at : at + draw(st.integers(1, 80))]
        else:
            octets[at:at] = draw(st.sampled_from([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\xff\xff\xff\xff"]))
    return bytes(octets)


@given(mutated())
@example(b"PK\x05\x06" + b"\xff" * 18)
@example(b"PK\x05\x06" + b"\0" * 18)
@example(b"PK\x03\x04" + b"\0" * 26)
def test_a_damaged_archive_is_looked_at_to_its_end_within_the_bounds(octets):
    items = look(octets)
    assert look(octets) == items
    assert items[0].sha256 == hashlib.sha256(octets).hexdigest()
    assert len(items) <= BOUNDS.members + 1
    assert sum(item.size for item in items[1:] if item.sha256) <= BOUNDS.unpacked
    assert max(len(item.inside) for item in items) <= BOUNDS.depth


@given(st.binary(max_size=600), st.sampled_from([b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh91AY&SY", b"\xfd7zXZ\0", b""]))
def test_any_octets_behind_the_mark_of_an_archive_are_looked_at(octets, mark):
    assert look(mark + octets)[0].size == len(mark) + len(octets)


# A member may itself begin as an archive does: what is inside of it is not Python's.


@given(MEMBERS, METHODS)
@example([("a", b"\x1f\x8b\x08")], zipfile.ZIP_STORED)
def test_a_good_zip_holds_what_python_says_it_holds(members, method):
    items = look(zipped(members, method))
    assert items[0].flaws == ()
    assert [(item.name, item.sha256) for item in items if len(item.inside) == 1] == [
        (name, hashlib.sha256(octets).hexdigest()) for name, octets in members
    ]


@given(MEMBERS, FORMS)
@example([("a", b"\xfd7zXZ\0")], tarfile.PAX_FORMAT)
def test_a_good_tar_holds_what_python_says_it_holds(members, form):
    items = look(tarred(members, form))
    assert items[0].flaws == ()
    assert [(item.name, item.sha256) for item in items if len(item.inside) == 1] == [
        (name, hashlib.sha256(octets).hexdigest()) for name, octets in members
    ]


@given(st.text(max_size=60))
def test_any_name_has_an_end_and_a_judgement(name):
    assert all(end == end.lower() and "/" not in end for end in extensions([name]))
    assert len(base_name(name)) <= len(name)
    assert is_disguised([name]) in (True, False)
    assert is_unsafe(name) in (True, False)
