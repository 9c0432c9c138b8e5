"""File names: how they end, what such an end means, and how names are made to look harmless."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

EXECUTABLE: Final = frozenset(
    # Programs and libraries.
    "exe com scr pif cpl dll ocx sys drv msi msp mst msu msix msixbundle appx appxbundle application appref-ms "
    "app gadget xll xbap jar jnlp class apk dex ade adp "
    # Scripts, and files that a double click runs as such.
    "bat cmd btm vb vbe vbs vba js jse mjs ws wsf wsc wsh sct hta ps1 ps1xml ps2 ps2xml psc1 psc2 psd1 psm1 msh msh1 "
    "msh2 mshxml scf inf ins isp reg lnk url website desktop chm hlp shb shs msc job diagcab diagcfg diagpkg "
    "settingcontent-ms search-ms library-ms theme themepack workflow command action csh ksh sh bash run "
    # Images of disks, which are opened as if they were folders and hide where their content came from.
    "iso img vhd vhdx udf dmg wim".split()
)
"""Extensions of files that run something when they are opened: nobody has to mail them as they are."""

HARMLESS: Final = frozenset(
    "pdf doc docx xls xlsx ppt pptx odt ods odp rtf txt csv jpg jpeg png gif bmp tif tiff webp mp3 mp4 avi mov wav "
    "htm html xml eml msg ics vcf zip".split()
)
"""Extensions that a name is given in front of its real one to look like a document."""

_LONGEST_EXTENSION: Final = 20
_GAP: Final = re.compile(r"\s{5,}\.[^.\s]{1,20}\Z")
_DIRECTIONS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_UNSAFE: Final = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\]|\Z)|\A[/\\]|\A[A-Za-z]:|\0")


def base_name(name: str) -> str:
    """The name without folders, and without what systems leave out when they store it."""
    name = re.split(r"[/\\]", name)[-1]
    visible = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cf"))
    # What follows a colon names a stream of the file, and is no part of its name.
    stem, colon, _ = visible.partition(":")
    return (stem if colon and "." in stem else visible).rstrip(". ")


def extensions(names: Iterable[str]) -> tuple[str, ...]:
    """The last extension of each of these names, lower-case, each once; and what stands before a NUL, too."""
    found = []
    for name in names:
        for candidate in dict.fromkeys((name, name.partition("\0")[0])):
            _, dot, end = base_name(candidate).rpartition(".")
            if dot and 0 < len(end) <= _LONGEST_EXTENSION:
                found.append(end.strip().lower())
    return tuple(dict.fromkeys(found))


def is_disguised(names: Iterable[str]) -> bool:
    """Whether one of these names is made to look like another kind of file.

    By an extension in front of the real one, by many spaces before it, or by marks that turn the direction of writing.
    """
    for name in names:
        parts = base_name(name).lower().split(".")
        last = parts[-1].strip() if len(parts) > 1 else ""
        if last in EXECUTABLE and len(parts) > 2 and parts[-2].strip() in HARMLESS:
            return True
        if last and (_GAP.search(name.rstrip(". ")) or (last in EXECUTABLE and not _DIRECTIONS.isdisjoint(name))):
            return True
        if "\u202e" in name:
            return True
    return False


def is_unsafe(path: str) -> bool:
    """Whether a path leads out of the folder that an archive is unpacked into."""
    return _UNSAFE.search(path) is not None
