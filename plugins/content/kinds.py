"""What kind of file something is, by its first octets: own knowledge for what matters here, puremagic for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import puremagic

HEAD: Final = 36 << 10
"""How many octets `find_kind` wants to see: the mark of a CD image comes late."""

_PUREMAGIC_HEAD: Final = 4096
_LEAST_CONFIDENCE: Final = 0.3
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


class Form(Enum):
    """What can be done with it."""

    OTHER = auto()
    ZIP = auto()
    TAR = auto()
    GZIP = auto()
    BZIP2 = auto()
    XZ = auto()
    OLE = auto()
    OPAQUE = auto()
    """An archive or an image of a disk that is not looked into."""
    EXECUTABLE = auto()


@dataclass(frozen=True, slots=True)
class Kind:
    """A media type, empty where it is not known, and what can be done with it."""

    type: str
    form: Form = Form.OTHER


_MARKS: Final[tuple[tuple[int, bytes, str, Form], ...]] = (
    (0, b"PK\x03\x04", "application/zip", Form.ZIP),
    (0, b"PK\x05\x06", "application/zip", Form.ZIP),
    (0, b"PK00PK\x03\x04", "application/zip", Form.ZIP),
    (0, b"PK\x07\x08PK\x03\x04", "application/zip", Form.ZIP),
    (0, b"\x1f\x8b\x08", "application/gzip", Form.GZIP),
    (4, b"1AY&SY", "application/x-bzip2", Form.BZIP2),
    (4, b"\x17rE8P\x90", "application/x-bzip2", Form.BZIP2),
    (0, b"\xfd7zXZ\x00", "application/x-xz", Form.XZ),
    (257, b"ustar", "application/x-tar", Form.TAR),
    (0, _OLE, "application/x-ole-storage", Form.OLE),
    (0, b"Rar!\x1a\x07", "application/vnd.rar", Form.OPAQUE),
    (0, b"RE~^", "application/vnd.rar", Form.OPAQUE),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed", Form.OPAQUE),
    (0, b"MSCF\0\0\0\0", "application/vnd.ms-cab-compressed", Form.OPAQUE),
    (0, b"ISc(", "application/x-installshield", Form.OPAQUE),
    (0, b"\x60\xea", "application/x-arj", Form.OPAQUE),
    (7, b"**ACE**", "application/x-ace-compressed", Form.OPAQUE),
    (2, b"-lh5-", "application/x-lzh-compressed", Form.OPAQUE),
    (2, b"-lh0-", "application/x-lzh-compressed", Form.OPAQUE),
    (2, b"-lh6-", "application/x-lzh-compressed", Form.OPAQUE),
    (2, b"-lh7-", "application/x-lzh-compressed", Form.OPAQUE),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd", Form.OPAQUE),
    (0, b"\x04\x22\x4d\x18", "application/x-lz4", Form.OPAQUE),
    (0, b"\x1f\x9d", "application/x-compress", Form.OPAQUE),
    (0, b"LZIP\x01", "application/x-lzip", Form.OPAQUE),
    (0, b"!<arch>\n", "application/x-archive", Form.OPAQUE),
    (0, b"xar!\0\x1c", "application/x-xar", Form.OPAQUE),
    (32769, b"CD001", "application/x-iso9660-image", Form.OPAQUE),
    (32769, b"BEA01", "application/x-udf-image", Form.OPAQUE),
    (0, b"vhdxfile", "application/x-vhdx", Form.OPAQUE),
    (0, b"conectix", "application/x-vhd", Form.OPAQUE),
    (0, b"MSWIM\0\0\0", "application/x-ms-wim", Form.OPAQUE),
    (0, b"ITSF\x03", "application/vnd.ms-htmlhelp", Form.EXECUTABLE),
    (0, b"\x7fELF", "application/x-elf", Form.EXECUTABLE),
    (0, b"\xca\xfe\xba\xbe", "application/java-vm", Form.EXECUTABLE),
    (0, b"\xfe\xed\xfa\xce", "application/x-mach-binary", Form.EXECUTABLE),
    (0, b"\xfe\xed\xfa\xcf", "application/x-mach-binary", Form.EXECUTABLE),
    (0, b"\xce\xfa\xed\xfe", "application/x-mach-binary", Form.EXECUTABLE),
    (0, b"\xcf\xfa\xed\xfe", "application/x-mach-binary", Form.EXECUTABLE),
    (0, b"L\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0F", "application/x-ms-shortcut", Form.EXECUTABLE),
    (0, b"%PDF-", "application/pdf", Form.OTHER),
    (0, b"{\\rt", "application/rtf", Form.OTHER),
    (0, b"\x89PNG\r\n\x1a\n", "image/png", Form.OTHER),
    (0, b"GIF8", "image/gif", Form.OTHER),
    (0, b"\xff\xd8\xff", "image/jpeg", Form.OTHER),
    (0, b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", "application/onenote", Form.OTHER),
    (0, b"\x78\x9f\x3e\x22", "application/vnd.ms-tnef", Form.OPAQUE),
)
_TEXT: Final = bytes(set(range(256)) - set(range(32)) | set(b"\t\n\r\f"))


def find_kind(head: bytes) -> Kind:
    """The kind of a file that begins with these octets."""
    if not head:
        return Kind("")
    if head.startswith((b"MZ", b"ZM")) and b"\0" in head[:64]:
        return Kind("application/vnd.microsoft.portable-executable", Form.EXECUTABLE)
    for offset, mark, kind, form in _MARKS:
        if head.startswith(mark, offset):
            return Kind(kind, form)
    if not head[:_PUREMAGIC_HEAD].translate(None, _TEXT):
        return Kind(_text_kind(head))
    if _is_old_tar(head):
        return Kind("application/x-tar", Form.TAR)
    return Kind(_ask_puremagic(head[:_PUREMAGIC_HEAD]))


def _text_kind(head: bytes) -> str:
    start = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n\f").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<script", b"<body", b"<head", b"<hta:")):
        return "text/html"
    if start.startswith(b"<?xml"):
        return "image/svg+xml" if b"<svg" in head[:_PUREMAGIC_HEAD] else "text/xml"
    if start.startswith(b"<svg"):
        return "image/svg+xml"
    if start.startswith(b"#!"):
        return "text/x-script"
    return "text/plain"


def _is_old_tar(head: bytes) -> bool:
    """Whether it begins with a tar header that has no mark: then its checksum must be right."""
    block = head[:512]
    if len(block) < 512 or not block[0]:
        return False
    try:
        said = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return said == sum(block) - sum(block[148:156]) + 8 * 32


def _ask_puremagic(head: bytes) -> str:
    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return ""
    sure = [match for match in found if match.confidence >= _LEAST_CONFIDENCE and match.mime_type]
    return sure[0].mime_type if sure else ""
