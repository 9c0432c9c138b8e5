"""What a reader sees of HTML, near enough to look for words and numbers in it. Linear time, nothing is executed."""

from __future__ import annotations

import html
import re
from typing import Final

_BREAKS: Final = re.compile(
    r"</?(?:br|p|div|td|th|tr|table|li|ul|ol|h[1-6]|hr|title|blockquote|section|article|pre|dd|dt)\b[^<>]{0,4000}>",
    re.IGNORECASE,
)
_TAG: Final = re.compile(r"</?[A-Za-z!?][^<>]{0,20000}>")
_SPACE: Final = re.compile(r"[ \t\r\f\v\u00a0]{1,1000}")
_EMPTY: Final = re.compile(r"[ \u200b\u200c\u200d\ufeff\u00ad]{0,100}\n[ \n]{0,1000}")
_INVISIBLE: Final = re.compile("[\u200b\u200c\u200d\u2060\ufeff\u00ad]{1,1000}")
_DROPPED: Final = ("script", "style")


def plain_text(source: str) -> str:
    """The text of HTML: tags, comments, scripts and styles taken out, entities read, blocks on lines of their own."""
    text = _without(source, "<!--", "-->")
    for name in _DROPPED:
        text = _without(text, f"<{name}", f"</{name}")
    text = _BREAKS.sub("\n", text.replace("\n", " "))
    text = html.unescape(_TAG.sub("", text))
    text = _SPACE.sub(" ", _INVISIBLE.sub("", text))
    return _EMPTY.sub("\n", text).strip()


def _without(text: str, begin: str, end: str) -> str:
    """The text without what stands between two marks, in any case; without an end, nothing is taken out."""
    folded = text.lower() if len(text.lower()) == len(text) else text
    out: list[str] = []
    at = 0
    while (start := folded.find(begin, at)) >= 0:
        stop = folded.find(end, start + len(begin))
        if stop < 0:
            break
        out.append(text[at:start])
        close = folded.find(">", stop)
        at = close + 1 if close >= 0 else len(text)
    return "".join([*out, text[at:]]) if at else text
