"""What is going is gone when its release has come."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config
from gateway.sdk import Going, OptionsModel
from gateway.sdk.deprecation import HOOKS, NAMES, OldName

ROOT = Path(__file__).parents[2]


def models(model: type[OptionsModel]) -> Iterator[type[OptionsModel]]:
    """All options that exist, of Gatepost itself and of its plugins and policies."""
    for below in model.__subclasses__():
        yield below
        yield from models(below)


def going() -> dict[str, Going]:
    """Everything that is going, by name."""
    for group in ("gatepost.plugins", "gatepost.policies"):
        for point in entry_points(group=group):
            if point.module.partition(".")[0] in ("plugins", "policies"):
                point.load()
    ours = [m for m in models(OptionsModel) if m.__module__.partition(".")[0] in ("gateway", "plugins", "policies")]
    assert Config in ours
    options = {f"{m.__module__}.{m.__qualname__}.{key}": one for m in ours for key, one in m.going.items()}
    return {**NAMES, **HOOKS, **options}


def overdue(release: str) -> list[str]:
    """What this release was to be without."""
    return sorted(name for name, one in going().items() if one.due(release))


def test_nothing_is_left_that_was_to_be_gone_in_this_release() -> None:
    assert overdue(version("gatepost")) == [], "remove them; docs/stability.md says what else to do then"


def test_names_hooks_and_options_that_are_overdue_are_found(monkeypatch) -> None:
    from plugins.dnsbl import DnsblPlugin

    real = going()

    def added(release: str) -> list[str]:
        return [name for name in overdue(release) if name not in real]

    monkeypatch.setitem(NAMES, "gateway.sdk.refuse", OldName("0.2", "0.3", "gateway.sdk.reject"))
    monkeypatch.setitem(HOOKS, "on_hello", Going("0.2", "0.4", "on_helo"))
    monkeypatch.setattr(DnsblPlugin.Options, "going", {"lists": Going("0.2", "0.3", "zones")})
    options = f"{DnsblPlugin.Options.__module__}.{DnsblPlugin.Options.__qualname__}.lists"
    assert added("0.2.7") == []
    assert added("0.3.0") == ["gateway.sdk.refuse", options]
    assert added("0.4.0") == ["gateway.sdk.refuse", "on_hello", options]


def test_old_names_give_something_and_have_no_other_life() -> None:
    for name, old in NAMES.items():
        module, _, last = name.rpartition(".")
        assert last not in importlib.import_module(module).__all__, name
        old.load()


def test_the_options_on_the_page_are_taken_as_it_says() -> None:
    (block,) = re.findall(r"(?m)^```python\n(.*?)^```", (ROOT / "docs/stability.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(block, "docs/stability.md", "exec"), namespace)
    with pytest.warns(DeprecationWarning) as warned:
        options = namespace["Options"].model_validate({"max_messages": 7, "eager": True})
    assert options.limit == 7 and len(warned) == 2
