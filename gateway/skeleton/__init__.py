"""What ``gatepost plugin new`` makes: a whole package of a plugin, from the templates beside this file.

In a template ``$name`` is the plugin's name (``mail-age``), ``$module`` that of its Python package
(``gatepost_mail_age``) and ``$title`` the beginning of its classes' names (``MailAge``).

*Fails by*: `SkeletonError`.
"""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*\Z")
_LONGEST: Final = 50

FILES: Final = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "card.md.tmpl",
    "$module/__init__.py": "init.py.tmpl",
    "$module/plugin.py": "plugin.py.tmpl",
    "$module/py.typed": "",
    "tests/test_$snake.py": "tests/plugin.py.tmpl",
    ".github/workflows/ci.yml": "ci/workflow.yml.tmpl",
    ".gitignore": "gitignore.tmpl",
}


class SkeletonError(Exception):
    """The package cannot be made; the text says why."""


def make(name: str, directory: Path) -> list[Path]:
    """Write the package of the plugin `name` to the new folder `directory`; gives the files. Raises `SkeletonError`."""
    if not NAME.match(name) or len(name) > _LONGEST:
        raise SkeletonError(f"{name!r} is no name for a plugin: small letters, digits and hyphens, such as mail-age")
    snake = name.replace("-", "_")
    if keyword.iskeyword(snake):
        raise SkeletonError(f"{name!r} is a word of Python's own")
    title = "".join(part.capitalize() for part in name.split("-"))
    words = {"name": name, "snake": snake, "module": f"gatepost_{snake}", "title": title}
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SkeletonError(f"{directory} is there already")
    templates = files(__name__)
    made = []
    try:
        for target, template in FILES.items():
            text = templates.joinpath(template).read_text(encoding="utf-8") if template else ""
            path = directory / Template(target).substitute(words)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(words), encoding="utf-8")
            made.append(path)
    except OSError as error:
        raise SkeletonError(f"{error.filename}: {error.strerror}") from error
    return made
