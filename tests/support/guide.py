"""A guide in Markdown as what it is: files to write, commands to run, and what they print.

A fenced block in ``python`` or ``yaml`` begins with a comment that names its file; one in ``sh`` is run; one in
``text`` is what the commands before it print. In that, ``…`` is anything within a line, and on a line of its own any
lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK: Final = re.compile(r"(?m)^```(\w*)\n(.*?)^```$", re.DOTALL)
_FILE: Final = re.compile(r"# file: ([\w./-]+)\n")
_ANY: Final = "…"


class GuideError(Exception):
    """The page has a block that is neither a file nor a command nor what one prints."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to write; `line` is where it stands on the page."""

    line: int
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A script to run with a shell, and what it prints; None where the page does not say."""

    line: int
    script: str
    output: str | None = None


def read(page: Path) -> list[File | Command]:
    """What the page has its readers do, in order. Raises `GuideError`."""
    text = page.read_text()
    steps: list[File | Command] = []
    for block in _BLOCK.finditer(text):
        language, body = block[1], block[2]
        line = text.count("\n", 0, block.start()) + 1
        last = steps[-1] if steps else None
        if language == "sh":
            steps.append(Command(line, body))
        elif language == "text" and isinstance(last, Command) and last.output is None:
            steps[-1] = Command(last.line, last.script, body)
        elif language in ("python", "yaml") and (name := _FILE.match(body)):
            steps.append(File(line, name[1], body[name.end() :]))
        else:
            raise GuideError(f"{page.name}:{line}: a block in {language or 'nothing'} that nothing is done with")
    return steps


def fits(wanted: str, output: str) -> bool:
    """Whether this is the output that the page shows; white space at the ends of lines is left out of account."""
    pattern = ""
    for line in wanted.strip().split("\n"):
        if line.strip() == _ANY:
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += "[^\n]*".join(re.escape(part) for part in line.rstrip().split(_ANY)) + "\n"
    said = "\n".join(line.rstrip() for line in output.strip().split("\n")) + "\n"
    return re.fullmatch(pattern, said) is not None
