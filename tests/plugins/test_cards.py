"""The guide and the cards say what the code does: option tables are the models' own, and the examples run."""

from __future__ import annotations

import json
import re
import sys
import tomllib
import types
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.sdk import Stage
from gateway.sdk.testing import parse_options, plugin_class, policy_class

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
OFFERED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
PLUGINS = sorted(OFFERED["gatepost.plugins"])
POLICIES = sorted(OFFERED["gatepost.policies"])


def card(name: str) -> str:
    path = ROOT / "docs" / ("plugins" if name in PLUGINS else "policies") / f"{name}.md"
    text = path.read_text()
    assert text.startswith(f"# `{name}`\n"), path
    return text


def default(field: FieldInfo, model: type[BaseModel], name: str) -> str:
    if field.is_required():
        return "required"
    serialised = model.__pydantic_serializer__.to_python(
        model.model_construct(**{name: field.default}), mode="json", include={name}
    )
    text = json.dumps(serialised[name])
    return f"`{text.strip(chr(34)) or text}`"


def table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {default(field, model, name)} | {field.description} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows])


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugins_card_has_its_options_with_their_defaults(name):
    assert table(plugin_class(name).Options) in card(name)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policys_card_has_its_options_with_their_defaults(name):
    assert table(policy_class(name).Options) in card(name)


def test_the_options_of_one_list_are_on_the_page():
    from plugins.dnsbl import ZoneOptions

    assert table(ZoneOptions) in card("dnsbl")


def test_the_options_of_one_uri_list_are_on_the_page():
    from plugins.content.urilists import UriListOptions

    assert table(UriListOptions) in card("uribl")


def test_the_conditions_of_a_rule_about_attachments_are_on_the_page():
    from plugins.content.attachments import DenyRule

    assert table(DenyRule) in card("attachments")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugins_card_says_what_it_asks_costs_and_does_when_it_fails(name):
    for part in ("**Asks.**", "**Costs.**", "**When it fails.**", "**Decides.**"):
        assert part in card(name)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugins_card_names_its_stages_and_findings(name):
    text = " ".join(card(name).split())
    for finder in plugin_class(name).finders:
        kind = "acts" if finder.acts else "finds"
        assert f"{kind} `{finder.finding.__name__}` at `{finder.stage}`" in text, finder


def test_there_is_a_card_for_every_plugin_and_policy_and_no_other():
    assert sorted(path.stem for path in (ROOT / "docs/plugins").iterdir()) == PLUGINS
    assert sorted(path.stem for path in (ROOT / "docs/policies").iterdir()) == POLICIES


def test_every_plugin_and_policy_is_installed_as_it_is_offered():
    for group, names in (("gatepost.plugins", PLUGINS), ("gatepost.policies", POLICIES)):
        ours = {p.name for p in entry_points(group=group) if p.value.split(".")[0] in ("plugins", "policies")}
        assert ours == set(names)


def test_the_page_names_every_stage_and_every_name_of_the_sdk_it_uses_exists():
    import gateway.sdk

    for stage in Stage:
        assert f"`{stage}`" in PAGE
    imports = re.findall(r"^from gateway\.sdk import (\([^)]*\)|.+)$", PAGE, re.MULTILINE)
    names = [name for listed in imports for name in re.findall(r"\w+", listed)]
    assert len(names) > 10
    for name in names:
        assert hasattr(gateway.sdk, name), name


def test_the_python_examples_run(monkeypatch):
    guide = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", guide)
    namespace: dict[str, Any] = guide.__dict__
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "docs/plugins.md", "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_yaml_examples_name_plugins_and_options_that_exist():
    import yaml

    pages = [PAGE, *map(card, PLUGINS), *map(card, POLICIES)]
    blocks = [block for page in pages for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    entries = [entry for block in blocks for entry in yaml.safe_load(block).get("pipeline", [])]
    assert len(entries) >= 4
    for entry in entries:
        name = entry if isinstance(entry, str) else next(iter(entry))
        options = None if isinstance(entry, str) else entry[name]
        # The guide's own examples are not installed.
        if name in PLUGINS:
            plugin_class(name).Options.model_validate(options or {})
        elif name in POLICIES:
            model = policy_class(name).Options
            model.model_validate(parse_options(options, sole=model.sole))
        else:
            assert name in ("reverse-name", "nameless-stranger"), name
