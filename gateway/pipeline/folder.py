"""Policies and plugins that stand in single files of one folder, without a package around them.

Every file is a module of its own under a private name: no file sees another one, and nothing is added to the path that
Python imports from. A file that has not changed is not run again; one that has makes new classes, and whoever holds the
old ones keeps them.

*Promises*: only files are run that nobody may write to but root and the owners that the caller names. What a file does
while it is loaded, sys.exit and endless loops too, ends in a problem with its file and line.

*Fails by*: `FolderError`, which holds every problem.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CodeType, ModuleType, TracebackType
from typing import Any, Final

from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy

FILES: Final = 200
FILE_OCTETS: Final = 1 << 20
SECONDS: Final = 10.0
"""How long a file may take to be loaded."""
RESERVED: Final = frozenset({"shadow", "enforce", "timeout", "on_error", "policy", "none"})
"""Words that mean something else in an entry of a pipeline."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_TESTS: Final = re.compile(r"(?:test_.*|.*_test|conftest)\.py\Z")
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Offer:
    """A policy or plugin of a file, and the line of its class."""

    name: str
    thing: type[Plugin] | type[Policy]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class FolderProblem:
    """What is wrong with a file, or with the folder: then `line` is 0. `column` is 0 where none is meant."""

    file: str
    line: int
    message: str
    column: int = 0


class FolderError(Exception):
    """Files cannot be used. `problems` has all that is wrong."""

    def __init__(self, problems: Collection[FolderProblem]) -> None:
        super().__init__("; ".join(f"{p.file}:{p.line}: {p.message}" for p in problems))
        self.problems = tuple(problems)


class _Wrong(Exception):
    def __init__(self, message: str, line: int = 1, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


class _TooLong(BaseException):
    """No file's ``except Exception`` stops it."""


def read_folder(path: str, owners: Collection[int]) -> tuple[Offer, ...]:
    """What the files ``*.py`` of a folder offer, by the files' names. Raises `FolderError`.

    Files that begin with ``_`` or ``.``, and tests, are left alone. `owners` are the users besides root that the folder
    and its files may belong to.
    """
    trusted = frozenset(owners) | {0}
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FolderError([FolderProblem(path, 0, f"cannot be read: {error.strerror}")]) from error
    try:
        if problem := _exposed(folder, path, trusted):
            raise FolderError([FolderProblem(path, 0, problem)])
        names = sorted(name for name in os.listdir(folder) if _counts(name))
        if len(names) > FILES:
            raise FolderError([FolderProblem(path, 0, f"has more than {FILES} files")])
        return _all(path, names, lambda name: _contents(os.path.join(path, name), name, folder, trusted))
    finally:
        os.close(folder)


def read_file(path: str) -> tuple[Offer, ...]:
    """What one file offers, whoever it belongs to: for tests that its author runs. Raises `FolderError`."""
    return _all(os.path.dirname(path), [os.path.basename(path)], lambda name: _contents(path, path))


def _counts(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(("_", ".")) and not _TESTS.match(name)


def _all(path: str, names: list[str], contents: Any) -> tuple[Offer, ...]:
    problems: list[FolderProblem] = []
    found: dict[str, Offer] = {}
    for name in names:
        file = os.path.join(path, name)
        try:
            for offer in _offers(file, contents(name)):
                other = found.setdefault(offer.name, offer)
                if other is not offer:
                    message = f"{offer.name} is offered by {other.file}:{other.line} too; give one of them another name"
                    problems.append(FolderProblem(file, offer.line, message))
        except _Wrong as wrong:
            problems.append(FolderProblem(file, wrong.line, wrong.message, wrong.column))
    if problems:
        raise FolderError(problems)
    return tuple(found.values())


def _exposed(descriptor: int, path: str, trusted: Collection[int]) -> str:
    """Why somebody else could change it; empty when nobody can."""
    status = os.fstat(descriptor)
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        # As volumes of configuration are, whose modes say that everybody may write.
        return ""
    if status.st_uid not in trusted:
        return (
            f"belongs to user {status.st_uid}, and what it holds runs in the gateway; give it to root, to the user that"
            f" runs Gatepost or to the owner of the configuration file: chown root {path}"
        )
    if status.st_mode & _OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        return (
            f"others than its owner may write to it (mode {mode:04o}), and what it holds runs in the gateway:"
            f" chmod go-w {path}"
        )
    return ""


def _contents(file: str, name: str, folder: int | None = None, trusted: Collection[int] | None = None) -> bytes:
    """The octets of a file. What was looked at is what is read, whatever happens to the name meanwhile."""
    try:
        # Without waiting: a pipe of that name would never be opened.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise _Wrong(f"cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Wrong("is no plain file")
        if trusted is not None and (problem := _exposed(descriptor, file, trusted)):
            raise _Wrong(problem)
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            octets = opened.read(FILE_OCTETS + 1)
    finally:
        os.close(descriptor)
    if len(octets) > FILE_OCTETS:
        raise _Wrong(f"is larger than {FILE_OCTETS >> 20} MiB")
    return octets


_modules: Final[dict[str, tuple[ModuleType, ast.Module]]] = {}
"""What was loaded, by private name, which says what stood in the file: it is the same module wherever that stands."""


def _offers(file: str, octets: bytes) -> tuple[Offer, ...]:
    stem = re.sub(r"\W", "_", os.path.basename(file).removesuffix(".py"))
    name = f"_gatepost_file_{stem}_{hashlib.sha256(octets).hexdigest()[:16]}"
    if name not in _modules:
        tree, code = _compile(file, octets)
        _modules[name] = _load(name, file, code), tree
    module, tree = _modules[name]
    lines = {node.name: node.lineno for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    own = _classes(module)
    # A plugin brings its default policy along; that is no entry of its own.
    defaults = [thing.policy for thing in own if issubclass(thing, Plugin)]
    found = []
    for thing in own:
        if "name" not in vars(thing) or thing.__name__.startswith("_") or thing in defaults:
            continue
        line = lines.get(thing.__name__, 1)
        if not isinstance(thing.name, str) or not _NAME.match(thing.name) or thing.name in RESERVED:
            raise _Wrong(f"{thing.__name__}: {thing.name!r} cannot be the name of an entry", line)
        found.append(Offer(thing.name, thing, file, line))
    if not found:
        raise _Wrong("offers nothing: no class in it is derived from Policy or Plugin and has a name")
    return tuple(found)


def _classes(module: ModuleType) -> list[type[Plugin] | type[Policy]]:
    """The plugins and policies that the module makes itself, each once."""
    found: dict[int, type[Plugin] | type[Policy]] = {}
    for thing in vars(module).values():
        if isinstance(thing, type) and issubclass(thing, (Plugin, Policy)) and thing.__module__ == module.__name__:
            found.setdefault(id(thing), thing)
    return list(found.values())


def _compile(file: str, octets: bytes) -> tuple[ast.Module, CodeType]:
    try:
        tree = ast.parse(octets, file)
        return tree, compile(tree, file, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _Wrong(f"no Python: {error.msg}", error.lineno or 1, error.offset or 0) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Wrong(f"no Python: {_said(error)}") from error


def _load(name: str, file: str, code: CodeType) -> ModuleType:
    """Run a file's code as a module. Dataclasses and annotations look their module up by its name."""
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    try:
        with _limit():
            exec(code, module.__dict__)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:
        # Whatever a file does when it is run is a problem of that file.
        del sys.modules[name]
        # The private name means nothing to its author.
        raise _Wrong(_why(error).replace(f"{name}.", ""), _line(error.__traceback__, file)) from error
    return module


def _why(error: BaseException) -> str:
    match error:
        case _TooLong():
            return f"takes longer than {SECONDS:g} s to be loaded; a file only defines classes"
        case SystemExit():
            return "calls sys.exit when it is loaded; a file only defines classes"
        case ValueError() if "Duplicated timeseries" in str(error):
            return (
                f"{_said(error)}: metrics stay for as long as the process runs, so restart Gatepost to have this"
                " version; code with metrics of its own is better off in a package (gatepost plugin new)"
            )
    return f"cannot be loaded: {_said(error)}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_TEXT]


def _line(traceback: TracebackType | None, file: str) -> int:
    """The line of the file at which it went wrong."""
    line = 1
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Bounds what is done inside to `SECONDS`, in the main thread: there a new file is always loaded first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_number: int, _frame: Any) -> None:
        raise _TooLong

    handler = signal.signal(signal.SIGALRM, expired)
    # Again and again, for who catches everything.
    left, interval = signal.setitimer(signal.ITIMER_REAL, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
