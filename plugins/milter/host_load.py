"""Finding a milter class and everything that is known of it before it runs.

*Fails by*: `HostError`, which says what is wrong in the words of the configuration.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Final

from plugins.milter.hosted import OFFERED_STEPS
from plugins.milter.packets import Steps

_EXTRA: Final = "pymilter is not installed: install gatepost[milter]"


class HostError(ValueError):
    """The milter class cannot be had."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A milter class: its name and what makes an instance.

    `error` is pymilter's own. `steps` is what the class declines, None when only an instance can say; `farewell` says
    that it does something in ``close`` or ``abort``.
    """

    name: str
    make: Callable[[], Any]
    error: type[Exception]
    steps: int | None
    farewell: bool


def load(name: str, file: str, options: dict[str, Any]) -> Loaded:
    """The class that `name` names: ``package.module:Class``, or with `file` the class in that file.

    Imports it, which runs its module. Raises `HostError`.
    """
    pymilter = _pymilter()
    module, class_name = _module(name, file)
    found = getattr(module, class_name, None)
    where = file or module.__name__
    if found is None:
        raise HostError(f"{where} has no {class_name}")
    if not (isinstance(found, type) and issubclass(found, pymilter.Base)):
        raise HostError(f"{class_name} in {where} is no subclass of Milter.Base")
    try:
        inspect.signature(found).bind(**options)
    except (TypeError, ValueError) as error:
        raise HostError(f"{class_name} does not take these options: {error}") from error
    base, own = pymilter.Base, _leaf(found)
    make: Callable[..., Any] = own
    error_type = pymilter.error
    return Loaded(class_name, partial(make, **options), error_type, _declined(own, base), _has_farewell(own, base))


def _pymilter() -> Any:
    try:
        return importlib.import_module("Milter")
    except ImportError as error:
        raise HostError(f"{_EXTRA} ({error})") from error


def _module(name: str, file: str) -> tuple[types.ModuleType, str]:
    module_name, colon, class_name = name.rpartition(":")
    if file:
        if colon:
            raise HostError("with a file, class is the name of the class alone")
        return _from_file(Path(file)), class_name
    if not colon or not module_name or not class_name:
        raise HostError("expected package.module:Class, or a file beside the class")
    try:
        return importlib.import_module(module_name), class_name
    except ModuleNotFoundError as error:
        raise HostError(f"there is no module {error.name}") from error
    except (Exception, SystemExit) as error:
        raise HostError(f"importing {module_name} failed: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> types.ModuleType:
    """The file's module, under a name of its own: each pipeline that is loaded reads the file again."""
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    name = f"gatepost_milter_{digest}"
    if not path.is_file():
        raise HostError(f"there is no file {path}")
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise HostError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        # What stands there now. Bytecode beside it tells by the second and the size whether it is of this file.
        exec(loader.source_to_code(loader.get_data(str(path)), str(path)), vars(module))
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise HostError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module


def _leaf(cls: type[Any]) -> type[Any]:
    """A class from which no other is derived.

    pymilter keeps what a class declines as an attribute of the class, where classes that are derived from it find it
    and take it for theirs.
    """
    return types.new_class(cls.__name__, (cls,), exec_body=lambda names: names.update(__module__=cls.__module__))


def _declined(cls: type[Any], base: type[Any]) -> int | None:
    if cls.negotiate is not base.negotiate:
        return None
    return (OFFERED_STEPS & ~Steps(cls.protocol_mask())).value


def _has_farewell(cls: type[Any], base: type[Any]) -> bool:
    return cls.close is not base.close or cls.abort is not base.abort
