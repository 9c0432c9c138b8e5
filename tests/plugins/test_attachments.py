"""Which files are found in messages and archives, honest and lying, and what the policy makes of them."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.pipeline.recall import recall
from gateway.sdk import Action, AddHeader, Attachment, Attachments, Flaw, Mime
from gateway.sdk.testing import Bench, make_message
from plugins.content.attachments import AttachmentsOptions, AttachmentsPlugin, AttachmentsPolicy, DenyRule
from plugins.content.examine import Bounds, Collected, Examiner, Label
from plugins.content.kinds import find_kind
from plugins.content.mime import MimePlugin
from plugins.content.names import EXECUTABLE, base_name, extensions, is_disguised, is_unsafe

PROGRAM = b"MZ\x90\x00" + b"\0" * 60 + b"PE\0\0"


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, octets in members:
            archive.writestr(name, octets)
    return out.getvalue()


def tarred(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, octets in members:
            info = tarfile.TarInfo(name)
            info.size = len(octets)
            archive.addfile(info, io.BytesIO(octets))
    return out.getvalue()


def examined(
    octets: bytes, name: str = "a.bin", bounds: Bounds | None = None, *, declared: str = "", clock=lambda: 0.0
) -> list[Attachment]:
    examiner = Examiner(bounds or Bounds(), clock)
    collected = Collected()
    collected.write(octets)
    try:
        examiner.examine(collected, Label((name,), declared, "1.2"))
    finally:
        collected.close()
    return examiner.items


def message_with(*files: tuple[str, bytes], kind: str = "application/octet-stream") -> bytes:
    message = EmailMessage()
    message["From"] = "a@sender.example"
    message.set_content("see attached")
    for name, octets in files:
        major, minor = kind.split("/")
        message.add_attachment(octets, major, minor, filename=name)
    return message.as_bytes(policy=SMTP)


def found(content: bytes, options=None, findings=()) -> Attachments:
    attachments = Bench().find(AttachmentsPlugin, options, message=make_message(content), findings=findings)
    assert isinstance(attachments, Attachments)
    return attachments


def test_a_file_is_described_by_its_content_and_not_by_what_is_said_of_it():
    (item,) = found(message_with(("photo.jpg", PROGRAM), kind="image/jpeg")).items
    assert (item.name, item.extensions, item.declared, item.section) == ("photo.jpg", ("jpg",), "image/jpeg", "1.2")
    assert item.type == "application/vnd.microsoft.portable-executable"
    assert item.executable
    assert (item.size, item.sha256) == (len(PROGRAM), hashlib.sha256(PROGRAM).hexdigest())


def test_the_texts_of_a_message_are_no_files_but_attached_ones_are():
    assert found(message_with()).items == ()
    (item,) = found(message_with(("notes.txt", b"hello"), kind="application/x-notes")).items
    assert (item.name, item.type) == ("notes.txt", "text/plain")


def test_it_reads_the_parts_itself_where_no_other_plugin_did_and_says_the_same():
    content = message_with(("a.zip", packed(("x.txt", b"x"))))
    mime = Bench().find(MimePlugin, message=make_message(content))
    assert isinstance(mime, Mime)
    assert found(content, findings=[mime]) == found(content)


def test_members_of_archives_within_archives_are_found_with_their_way():
    inner = packed(("deep/run.exe", PROGRAM))
    outer = gzip.compress(tarred(("inner.zip", inner), ("readme.txt", b"read me")))
    items = examined(outer, "all.tar.gz")
    assert [(item.name, item.inside) for item in items] == [
        ("all.tar.gz", ()),
        ("all.tar", ("all.tar.gz",)),
        ("inner.zip", ("all.tar.gz", "all.tar")),
        ("deep/run.exe", ("all.tar.gz", "all.tar", "inner.zip")),
        ("readme.txt", ("all.tar.gz", "all.tar")),
    ]
    assert [item.executable for item in items] == [False, False, False, True, False]
    assert {item.section for item in items} == {"1.2"}
    assert not any(item.flaws for item in items)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_all_of_pythons_ways_to_pack_a_zip_are_read(method):
    octets = bytes(range(256)) * 3000
    items = examined(packed(("a.dat", octets), method=method))
    assert items[1].sha256 == hashlib.sha256(octets).hexdigest()
    assert items[1].size == len(octets)
    assert not items[0].flaws


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read_with_all_their_streams(compress):
    items = examined(compress(b"one" * 50_000) + compress(b"two") + b"\0" * 100, "a.txt.gz")
    assert items[1].sha256 == hashlib.sha256(b"one" * 50_000 + b"two").hexdigest()
    assert not items[0].flaws


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_tar_archives_are_read(form):
    name = "/".join(["folder"] * 20) + "/file.txt"
    assert examined(tarred((name, b"x"), ("b.exe", b"y"), form=form))[1].name == name


def test_a_gzip_members_own_name_is_shown():
    out = io.BytesIO()
    with gzip.GzipFile("real.exe", "wb", fileobj=out) as file:
        file.write(PROGRAM)
    assert [item.name for item in examined(out.getvalue(), "harmless.gz")] == ["harmless.gz", "real.exe"]


def test_a_zip_that_is_streamed_has_data_descriptors_and_no_flaws():
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.octets = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, octets) -> int:
            self.octets += octets
            return len(octets)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.writestr("a.txt", b"a" * 1000)
        archive.writestr("b.txt", b"b" * 1000)
    items = examined(bytes(pipe.octets))
    assert [item.name for item in items] == ["a.bin", "a.txt", "b.txt"]
    assert items[0].flaws == ()


def patched(octets: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    at = octets.index(mark) + offset
    return octets[:at] + value + octets[at + len(value) :]


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
GOOD = packed(("a.txt", b"hello" * 100))


@pytest.mark.parametrize(
    ("octets", "flaws"),
    [
        (patched(GOOD, LOCAL, 30, b"b.exe"), {Flaw.NAME_MISMATCH}),
        (patched(GOOD, LOCAL, 8, struct.pack("<H", 0)), {Flaw.NAME_MISMATCH}),
        (patched(GOOD, LOCAL, 22, struct.pack("<L", 5)), {Flaw.SIZE_MISMATCH}),
        (patched(patched(GOOD, LOCAL, 22, b"\5\0\0\0"), CENTRAL, 24, b"\5\0\0\0"), {Flaw.SIZE_MISMATCH}),
        (b"#!/bin/sh\n" + GOOD, {Flaw.LEADING_DATA}),
        (GOOD + b"more", {Flaw.TRAILING_DATA}),
        (packed(("x.exe", PROGRAM))[:60].ljust(200, b"\0") + GOOD, {Flaw.LEADING_DATA, Flaw.HIDDEN_MEMBER}),
        (packed(("../../x", b"x")), {Flaw.UNSAFE_PATH}),
        (packed(("C:\\windows\\x", b"x")), {Flaw.UNSAFE_PATH}),
        (GOOD[:-30], {Flaw.BROKEN}),
        (patched(GOOD, b"\x08\x00", 0, b"\x62\x00").replace(b"\x08\x00", b"\x62\x00"), {Flaw.UNSUPPORTED}),
        (GOOD[:38] + b"\xff\xff" + GOOD[40:], {Flaw.BROKEN}),
    ],
    # Archives have the time of their making in them, and names of tests must not.
    ids=range(12),
)
def test_a_lying_archive_has_the_flaw_that_it_has(octets, flaws):
    items = examined(octets)
    assert set(items[0].flaws) >= flaws
    assert set(items[0].flaws) <= flaws | {Flaw.BROKEN}


def test_both_names_of_a_member_with_two_are_judged():
    items = examined(patched(GOOD, LOCAL, 30, b"b.exe"))
    assert items[1].names == ("a.txt", "b.exe")
    assert items[1].extensions == ("txt", "exe")


def test_two_members_of_one_name_are_noted_and_both_are_read():
    with pytest.warns(UserWarning, match="Duplicate name"):
        octets = packed(("a", b"one"), ("a", b"two"))
    items = examined(octets)
    assert Flaw.DUPLICATE_NAME in items[0].flaws
    assert [item.size for item in items[1:]] == [3, 3]


def test_an_archive_behind_a_program_is_opened_too():
    items = examined(PROGRAM + packed(("x.js", b"x")), "setup.exe")
    assert items[0].executable
    assert items[1].name == "x.js"


def test_members_that_need_a_password_are_named_and_not_read():
    octets = bytearray(packed(("secret.exe", b"x" * 50)))
    octets[octets.index(LOCAL) + 6] |= 1
    octets[octets.index(CENTRAL) + 8] |= 1
    items = examined(bytes(octets))
    assert items[0].encrypted
    assert (items[1].name, items[1].encrypted, items[1].sha256) == ("secret.exe", True, "")


@pytest.mark.parametrize(
    ("head", "kind", "opaque"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "application/x-7z-compressed", True),
        (b"Rar!\x1a\x07\x01\0", "application/vnd.rar", True),
        (b"\0" * 32769 + b"CD001", "application/x-iso9660-image", True),
        (b"%PDF-1.7\n", "application/pdf", False),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wave", False),
        (b"<HTML><script>", "text/html", False),
        (b"\xef\xbb\xbf  <!DOCTYPE html>", "text/html", False),
        (b"just some words", "text/plain", False),
        (b"", "", False),
        (b"\0\1\2\3nothing known", "", False),
    ],
)
def test_kinds_are_known_by_their_first_octets(head, kind, opaque):
    (item,) = examined(head)
    assert (item.type, item.opaque) == (kind, opaque)


def ole(*names: str, clsid: bytes = b"") -> bytes:
    entries = b"".join(
        name.encode("utf-16-le").ljust(64, b"\0") + b"\0" * 16 + clsid.ljust(16, b"\0") + b"\0" * 32 for name in names
    )
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".ljust(512, b"\0") + entries


def test_macros_and_passwords_of_old_documents_are_seen():
    (plain,) = examined(ole("Root Entry", "WordDocument"))
    (macro,) = examined(ole("Root Entry", "WordDocument", "Macros", "VBA"))
    (encrypted,) = examined(ole("Root Entry", "EncryptionInfo", "EncryptedPackage"))
    assert (plain.type, plain.macro, plain.encrypted) == ("application/msword", False, False)
    assert macro.macro
    assert encrypted.encrypted


def test_an_installer_is_a_program():
    (item,) = examined(ole("Root Entry", clsid=bytes.fromhex("84100c0000000000c000000000000046")))
    assert (item.type, item.executable) == ("application/x-msi", True)


def test_a_new_document_shows_its_macros_and_only_the_members_that_matter():
    members = [
        ("[Content_Types].xml", b"<Types/>"),
        ("word/document.xml", b"<w/>"),
        ("word/vbaProject.bin", ole("VBA")),
        ("word/embeddings/run.exe", PROGRAM),
        ("word/script.js", b"x"),
    ]
    items = examined(packed(*members), "letter.docx")
    assert items[0].type.endswith("wordprocessingml.document")
    assert items[0].macro
    assert [item.name for item in items[1:]] == ["word/embeddings/run.exe", "word/script.js"]
    assert not examined(packed(*members[:2]), "letter.docx")[0].macro


def test_a_java_archive_is_a_program():
    items = examined(packed(("META-INF/MANIFEST.MF", b"x"), ("A.class", b"\xca\xfe\xba\xbe")), "photo.zip")
    assert (items[0].type, items[0].executable) == ("application/java-archive", True)


def test_a_message_that_is_a_file_is_looked_into():
    items = examined(message_with(("run.exe", PROGRAM)), "forwarded.eml")
    assert [(item.name, item.executable) for item in items] == [("forwarded.eml", False), ("run.exe", True)]
    assert len(examined(message_with(("run.exe", PROGRAM)), "x", declared="message/rfc822")) == 2


def nested(levels: int) -> bytes:
    octets = b"x"
    for _ in range(levels):
        octets = packed(("inner.zip", octets))
    return octets


@pytest.mark.parametrize(
    ("octets", "bounds", "flaw"),
    [
        (nested(8), Bounds(depth=3), Flaw.TOO_DEEP),
        (packed(*[(str(n), b"x") for n in range(30)]), Bounds(members=10), Flaw.TOO_MANY),
        (packed(("a", b"\0" * 5_000_000)), Bounds(unpacked=1_000_000), Flaw.TOO_LARGE),
        (packed(("a", b"\0" * 12_000_000)), Bounds(ratio=100), Flaw.RATIO),
        (gzip.compress(b"\0" * 12_000_000), Bounds(ratio=100), Flaw.RATIO),
        (tarred(*[(str(n), b"") for n in range(30)]), Bounds(members=10), Flaw.TOO_MANY),
    ],
)
def test_bombs_end_at_their_limit(octets, bounds, flaw):
    examiner_items = examined(octets, bounds=bounds)
    assert any(flaw in item.flaws for item in examiner_items)
    assert len(examiner_items) <= 12


def test_a_bomb_of_many_small_bombs_is_stopped_by_the_limit_for_all_of_them():
    layer = packed(("zeros", b"\0" * 1_000_000))
    octets = packed(*[(f"{n}.zip", layer) for n in range(100)])
    items = examined(octets, bounds=Bounds(unpacked=3_000_000))
    assert Flaw.TOO_LARGE in items[0].flaws
    assert len(items) < 20


def test_members_that_share_octets_are_not_unpacked():
    entry = GOOD[GOOD.index(CENTRAL) : GOOD.index(b"PK\x05\x06")]
    start = GOOD.index(CENTRAL)
    twice = entry + entry.replace(b"a.txt", b"b.txt")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(twice), start, 0)
    items = examined(GOOD[:start] + twice + end)
    assert Flaw.OVERLAP in items[0].flaws
    assert len(items) == 1


def test_time_is_bounded():
    now = iter(range(1000))
    items = examined(
        packed(*[(str(n), b"x" * 10) for n in range(50)]), bounds=Bounds(seconds=10), clock=lambda: next(now)
    )
    assert Flaw.TOO_SLOW in items[0].flaws
    assert len(items) < 12


def test_unpacking_stops_when_nobody_waits_any_more():
    examiner = Examiner(Bounds(), lambda: 0.0)
    examiner.stop.set()
    collected = Collected()
    collected.write(GOOD)
    examiner.examine(collected, Label(("a.zip",)))
    collected.close()
    assert examiner.items[0].flaws == (Flaw.TOO_SLOW,)
    assert not examiner.complete


def test_a_deflated_member_that_never_ends_is_broken_and_its_beginning_is_seen():
    body = zlib.compressobj(wbits=-15)
    cut = (body.compress(PROGRAM + bytes(range(256)) * 100) + body.flush())[:-20]
    header = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 8, 0, 0, 0, len(cut), 0, 5, 0)
    items = examined(header + b"x.exe" + cut)
    assert items[1].executable
    assert Flaw.BROKEN in items[1].flaws
    assert items[1].sha256 == ""


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("a.EXE", ("exe",)),
        ("a.exe. . ", ("exe",)),
        ("folder.x/a", ()),
        ("a.exe::$DATA", ("exe",)),
        ("a.e\u200bxe", ("exe",)),
        ("a.exe\0.txt", ("txt", "exe")),
        ("noextension", ()),
        ("a." + "x" * 30, ()),
    ],
)
def test_extensions_are_what_a_system_makes_of_a_name(name, ends):
    assert set(extensions([name])) == set(ends)


@pytest.mark.parametrize(
    ("name", "disguised"),
    [
        ("invoice.pdf.exe", True),
        ("invoice.pdf          .exe", True),
        ("invoice\u202efdp.exe", True),
        ("report.2026.pdf", False),
        ("setup.exe", False),
        ("archive.tar.gz", False),
        ("v1.2.exe", False),
    ],
)
def test_names_that_pretend_are_known(name, disguised):
    assert is_disguised([name]) is disguised


def test_paths_are_no_part_of_a_name():
    assert base_name("C:\\temp\\a.txt") == "a.txt"
    assert not is_unsafe("a/b..c/d.txt")


def judged(*items: Attachment, options=None, complete: bool = True):
    return Bench().judge(AttachmentsPolicy, options, findings=[Attachments(items, complete)])


def test_programs_are_refused_by_default_and_documents_are_not():
    assert judged(Attachment("a.pdf", extensions=("pdf",))).action is Action.PROCEED
    by_name = judged(Attachment("a.js", extensions=("js",)))
    assert (by_name.action, by_name.reply.code, by_name.reply.text) == (Action.REJECT, 550, "attachment not accepted")
    assert by_name.reason == "executable: 'a.js'"
    by_content = judged(Attachment("a.jpg", extensions=("jpg",), executable=True, inside=("b.zip",)))
    assert by_content.reason == "executable: 'b.zip/a.jpg'"


def test_what_exceeds_a_limit_is_quarantined_by_default():
    bomb = Attachment("a.zip", flaws=(Flaw.RATIO,))
    assert judged(bomb).action is Action.QUARANTINE
    assert judged(bomb, options={"on_limit": "reject"}).action is Action.REJECT
    assert judged(complete=False).action is Action.QUARANTINE
    assert judged(Attachment("a.zip", flaws=(Flaw.LEADING_DATA,)), complete=False).action is Action.QUARANTINE
    assert judged(Attachment("a.zip", flaws=(Flaw.LEADING_DATA,))).action is Action.PROCEED


@pytest.mark.parametrize(
    ("rule", "item"),
    [
        ({"extension": [".DOCM"]}, Attachment("a.docm", extensions=("docm",))),
        ({"name": ["*INVOICE*"]}, Attachment("my invoice.pdf", names=("my invoice.pdf",))),
        ({"type": ["image/*"]}, Attachment("a", type="image/png")),
        ({"type": ["image/*"]}, Attachment("a", declared="image/png")),
        ({"encrypted": True}, Attachment("a", encrypted=True)),
        ({"macro": True}, Attachment("a", macro=True)),
        ({"opaque": True}, Attachment("a", opaque=True)),
        ({"double_extension": True}, Attachment("a", double_extension=True)),
        ({"inside": True, "encrypted": False}, Attachment("a", inside=("b.zip",))),
        ({"flaw": ["name-mismatch"]}, Attachment("a", flaws=(Flaw.NAME_MISMATCH,))),
        ({"larger_than": "1KiB"}, Attachment("a", size=1025)),
    ],
)
def test_each_condition_of_a_rule_matches_what_it_says_and_nothing_else(rule, item):
    options = {"deny": [{**rule, "action": "discard"}]}
    assert judged(item, options=options).action is Action.DISCARD
    assert judged(Attachment("plain.pdf", extensions=("pdf",)), options=options).action is Action.PROCEED


def test_all_conditions_of_a_rule_must_be_so():
    rule = DenyRule.model_validate({"extension": ["zip"], "encrypted": True})
    assert not rule.matches(Attachment("a", extensions=("zip",)))
    assert rule.matches(Attachment("a", extensions=("zip",), encrypted=True))


def test_an_earlier_rule_lets_an_attachment_pass_the_later_ones():
    options = {"deny": [{"name": ["update.exe"], "action": "allow"}]}
    ours = Attachment("update.exe", names=("update.exe",), extensions=("exe",))
    assert judged(ours, options=options).action is Action.PROCEED
    assert judged(ours, Attachment("b.exe", extensions=("exe",)), options=options).action is Action.REJECT


def test_the_strongest_action_of_several_attachments_is_done_and_its_text_said():
    options = {
        "deny": [
            {"macro": True, "action": "tag"},
            {"encrypted": True, "action": "reject", "text": "no passwords please"},
        ]
    }
    verdict = judged(Attachment("a", macro=True), Attachment("b", encrypted=True), options=options)
    assert (verdict.action, verdict.reply.text) == (Action.REJECT, "no passwords please")
    tagged = judged(Attachment("a", macro=True), options=options)
    assert tagged.edits == (AddHeader("X-Attachment-Warning", "attachment may be dangerous"),)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"deny": [{"action": "reject"}]}, "without a condition"),
        ({"deny": [{"macro": True, "text": "nö"}]}, "printable ASCII"),
        ({"deny": [{"flaw": ["nonsense"]}]}, "too-deep"),
        ({"tag": "X Y"}, "pattern"),
    ],
)
def test_wrong_rules_are_refused(options, wrong):
    with pytest.raises(ValidationError, match=wrong):
        AttachmentsOptions.model_validate(options)


def test_the_record_shows_a_hundred_files_and_says_that_there_were_more():
    record = Attachments(tuple(Attachment("x" * 5000) for _ in range(300))).to_json()
    assert (len(record["items"]), record["items"][-1], len(record["items"][0]["name"])) == (101, "…", 500)


def test_what_a_record_keeps_can_be_judged_again():
    inside = examined(patched(GOOD, LOCAL, 30, b"b.exe"), "a.zip")
    again = recall(Attachments, json.loads(json.dumps(Attachments(tuple(inside)).to_json())))
    assert isinstance(again, Attachments)
    assert [(i.name, i.extensions, i.inside, i.flaws) for i in again.items] == [
        (i.name, i.extensions, i.inside, i.flaws) for i in inside
    ]
    assert judged(*again.items) == judged(*inside)


def test_the_card_names_every_extension_that_is_refused():
    card = (Path(__file__).parents[2] / "docs/plugins/attachments.md").read_text()
    assert set(card.partition("## Executable content")[2].replace("`", "").replace(",", " ").split()) >= EXECUTABLE


def test_an_empty_head_has_no_kind():
    assert find_kind(b"").type == ""


def test_a_message_is_looked_at_while_others_go_on():
    content = make_message(message_with(("a.zip", packed(("a", bytes(range(256)) * 20_000)))))
    plugin = AttachmentsPlugin(AttachmentsOptions(), Bench().services)

    async def run() -> tuple[Attachments, int]:
        looking = asyncio.get_running_loop().create_task(plugin.look(content, None))
        turns = 0
        while not looking.done():
            await asyncio.sleep(0)
            turns += 1
        return looking.result(), turns

    attachments, turns = asyncio.run(run())
    assert attachments.complete
    assert turns > 3
