"""Where the author of a plugin works: a virtual environment with Gatepost installed, and not this tree.

The distribution is built from a copy of the tree and installed as pip does it, so that its list of packages and its
``py.typed`` are those that a stranger gets. Dependencies and tools are those of the present interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_TREE: Final = ("gateway", "plugins", "policies", "pyproject.toml", "README.md", "LICENSE")
_OFFLINE: Final = "--no-index --no-deps --no-build-isolation"
_TOOLS: Final = ("pytest", "mypy", "pyright", "ruff")


class Workshop:
    """The environment in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin/python"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP"))}
        self.environment |= {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(folder),
            # Or it asks the network whether there is a newer one.
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        }

    def run(self, *argv: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            argv, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )


def make_workshop(folder: Path) -> Workshop:
    """Make the environment and install Gatepost into it."""
    venv.create(folder, symlinks=True, with_pip=False)
    workshop = Workshop(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for tool in _TOOLS:
        _script(folder / "bin" / tool, f'exec python -m {tool} "$@"')
    # Nothing is fetched in tests: what a package needs is there already.
    _script(folder / "bin/pip", f'shift; exec python -m pip --disable-pip-version-check install {_OFFLINE} "$@"')
    source = folder / "source"
    source.mkdir()
    for name in _TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    installed = workshop.run("pip", "install", "-q", "--no-compile", "--ignore-installed", str(source), cwd=folder)
    if installed.returncode:
        raise RuntimeError(installed.stdout + installed.stderr)
    return workshop


def _script(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
