"""Office documents: whether they bring program code, and whether they are encrypted.

OLE files ([MS-CFB] section 2.6) are known by the names in their directory, which are looked for all over the file: a
damaged directory still opens in some programs. OOXML and OpenDocument are ZIP archives, known by their members' names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final

_BLOCK: Final = 1 << 20
_OVERLAP: Final = 128
_ENTRY: Final = 128
_CLSID_AT: Final = 80
_MSI: Final = bytes.fromhex("84100c0000000000c000000000000046")


def _wide(name: str) -> bytes:
    return name.encode("utf-16-le") + b"\0\0"


_MACROS: Final = tuple(_wide(name) for name in ("_VBA_PROJECT", "_VBA_PROJECT_CUR", "VBA", "Macros"))
_ENCRYPTED: Final = tuple(_wide(name) for name in ("EncryptedPackage", "EncryptedSummary"))
_TYPES: Final = {
    _wide("WordDocument"): "application/msword",
    _wide("Workbook"): "application/vnd.ms-excel",
    _wide("Book"): "application/vnd.ms-excel",
    _wide("PowerPoint Document"): "application/vnd.ms-powerpoint",
    _wide("__properties_version1.0"): "application/vnd.ms-outlook",
    _wide("VisioDocument"): "application/vnd.visio",
}
_NAMES: Final = (*_MACROS, *_ENCRYPTED, *_TYPES)

_OOXML: Final = {
    "word/": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xl/": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "ppt/": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "visio/": "application/vnd.ms-visio.drawing",
}
_INNER: Final = frozenset("xml rels vml bin png jpg jpeg gif emf wmf tif tiff svg wdp odttf fntdata rdf".split())


@dataclass(frozen=True, slots=True)
class Document:
    """What is known of a document; `type` is empty where it is none."""

    type: str = ""
    macro: bool = False
    encrypted: bool = False
    executable: bool = False


def read_ole(file: BinaryIO, size: int) -> Document:
    """What an OLE file is."""
    found: set[bytes] = set()
    installer = False
    at = 0
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK + _OVERLAP)
        found |= {name for name in _NAMES if name not in found and _stands(block, name, 0)}
        installer = installer or _stands(block, _MSI, _CLSID_AT)
        at += _BLOCK
    kind = next((kind for name, kind in _TYPES.items() if name in found), "application/x-ole-storage")
    encrypted = not found.isdisjoint(_ENCRYPTED)
    if installer:
        return Document("application/x-msi", executable=True)
    return Document(kind, not found.isdisjoint(_MACROS), encrypted)


def _stands(block: bytes, octets: bytes, offset: int) -> bool:
    """Whether these octets stand at this offset of an entry of a directory: entries begin at multiples of 128."""
    at = block.find(octets)
    while at >= 0:
        if at % _ENTRY == offset:
            return True
        at = block.find(octets, at + 1)
    return False


def read_members(names: Iterable[str]) -> Document:
    """What a ZIP archive with members of these names is."""
    lower = [name.lower().replace("\\", "/") for name in names]
    present = set(lower)
    if "[content_types].xml" in present:
        kind = next((kind for folder, kind in _OOXML.items() if any(n.startswith(folder) for n in lower)), "")
        macro = any(n.endswith("vbaproject.bin") or "/macrosheets/" in n for n in lower)
        return Document(kind or "application/vnd.openxmlformats-package", macro)
    if "meta-inf/manifest.xml" in present and "content.xml" in present:
        macro = any(n.startswith(("basic/", "scripts/")) for n in lower)
        return Document("application/vnd.oasis.opendocument", macro)
    if "meta-inf/manifest.mf" in present and any(n.endswith(".class") for n in lower):
        return Document("application/java-archive", executable=True)
    if "androidmanifest.xml" in present:
        return Document("application/vnd.android.package-archive", executable=True)
    return Document()


def is_inner(extensions: Iterable[str]) -> bool:
    """Whether a member of a document is one that every document has, and not worth a place in a list."""
    return all(extension in _INNER for extension in extensions)
