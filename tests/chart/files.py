"""Makes the chart's `values.schema.json` and the table of values in its README: ``make chart-files``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.config import json_schema
from tests.chart.values import Chart

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "helm/gatepost"
SCHEMA: Final = CHART / "values.schema.json"
README: Final = CHART / "README.md"
_BEGIN, _END = "<!-- values: begin (make chart-files) -->\n", "<!-- values: end -->\n"
_OWNED: Final = ("listeners", "admin", "evacuate", "reload")
"""Keys of the configuration that are made from other values: anything passes, and a template says where it belongs."""
_OWNED_BELOW: Final = {"Spool": ("path",), "StateStore": ("path",), "Timeouts": ("drain", "drain_delay")}


def schema() -> dict[str, Any]:
    """JSON Schema of the values: the chart's own, and the gateway's configuration under `config`."""
    own = _plain(Chart.model_json_schema(by_alias=True))
    config = _plain(json_schema())
    definitions: dict[str, Any] = {
        f"Gatepost{name}": _renamed(part) for name, part in config.pop("$defs").items() if name not in ("Listener",)
    }
    for name, keys in _OWNED_BELOW.items():
        for key in keys:
            definitions[f"Gatepost{name}"]["properties"][key] = {"description": "Made from other values."}
    config = _renamed(config)
    del config["$schema"], config["required"]
    for key in _OWNED:
        config["properties"][key] = {"description": "Made from other values."}
    for name in ("Admin", "Evacuate", "ListenerTls", "ProxyProtocol", "Xclient", "ReloadOptions"):
        del definitions[f"Gatepost{name}"]
    own["properties"]["config"] = {
        "description": own["properties"]["config"]["description"],
        "$ref": "#/$defs/GatepostConfig",
    }
    own["$defs"] = {**own["$defs"], **definitions, "GatepostConfig": config}
    # Whoever has this chart as a part may leave out anything: Helm has merged the defaults by then.
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart gatepost", **own}


def _plain(node: Any) -> Any:
    """Without titles and defaults, which say nothing here, or something else than values.yaml."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            out[key] = {name: _plain(part) for name, part in value.items()}
        elif key not in ("title", "default"):
            out[key] = _plain(value)
    if "patternProperties" in out:
        out["additionalProperties"] = False
    return out


def _renamed(node: Any) -> Any:
    """With references to the gateway's definitions by the names that they have here."""
    if isinstance(node, list):
        return [_renamed(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        key: value.replace("#/$defs/", "#/$defs/Gatepost")
        if key == "$ref" and isinstance(value, str)
        else _renamed(value)
        for key, value in node.items()
    }


def table() -> str:
    """The values with their defaults and meaning, in Markdown."""
    whole = schema()
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = ["| value | default | meaning |", "| --- | --- | --- |"]
    for path, part, default in _leaves(whole, whole, defaults, ""):
        text = " ".join(part.get("description", "").split()).replace("|", "\\|")
        shown = "" if default is _MISSING else f"`{json.dumps(default)}`".replace("|", "\\|")
        lines.append(f"| `{path}` | {shown} | {text} |")
    return "\n".join(lines) + "\n"


_MISSING: Final = object()


def _leaves(whole: dict[str, Any], node: dict[str, Any], default: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    for key, part in node["properties"].items():
        at = f"{path}{key}"
        below = default.get(key, _MISSING) if isinstance(default, dict) else _MISSING
        found = _section(whole, part)
        if found is None or key == "config":
            yield at, part, below
        elif "properties" in found:
            yield from _leaves(whole, found, below, f"{at}.")
        else:
            # A mapping of the operator's own names; values.yaml has one entry, whose values are an example.
            assert isinstance(below, dict)
            yield at, part, list(below)
            entry = _section(whole, next(iter(found["patternProperties"].values())))
            assert entry is not None
            defaults = next(iter(below.values()))
            yield from _leaves(whole, entry, defaults, f"{at}.NAME.")


def _section(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any] | None:
    """The part of the schema that has keys below this one; None when there is none."""
    for one in (part, *part.get("anyOf", ())):
        if "$ref" in one:
            found: dict[str, Any] = whole["$defs"][one["$ref"].rpartition("/")[2]]
            if "properties" in found:
                return found
        for entry in one.get("patternProperties", {}).values():
            if _section(whole, entry):
                return dict(one)
    return None


def written_schema() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def written_readme() -> str:
    """The README with the table as it is now."""
    before, _, rest = README.read_text().partition(_BEGIN)
    return before + _BEGIN + table() + _END + rest.partition(_END)[2]


def main() -> int:
    SCHEMA.write_text(written_schema())
    README.write_text(written_readme())
    return 0


if __name__ == "__main__":
    sys.exit(main())
