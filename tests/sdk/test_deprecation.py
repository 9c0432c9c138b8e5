"""What is going works for one release more, and whoever uses it is told where they do."""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import structlog
from click.testing import CliRunner
from pydantic import ValidationError

import gateway.sdk
from gateway.app import wiring
from gateway.cli import main
from gateway.config import load
from gateway.mail.session import Session
from gateway.pipeline.catalog import Catalog
from gateway.sdk import (
    PROCEED,
    Action,
    Ending,
    Going,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    PolicyOptions,
    Stage,
    Verdict,
    reject,
)
from gateway.sdk.deprecation import HOOKS, NAMES, NOTICES, Notice, Notices, OldName
from gateway.sdk.testing import Bench

GOING = Going("0.2", "0.3", "on_helo")


class Lists(OptionsModel):
    """Options inside options."""

    going: ClassVar[Mapping[str, Going]] = {"hosts": Going("0.2", "0.3", "names")}
    names: tuple[str, ...] = ()


class Options(PolicyOptions):
    """One option renamed, one that does nothing any more, one that still works."""

    going: ClassVar[Mapping[str, Going]] = {
        "maximum": Going("0.2", "0.3", "limit"),
        "eager": Going("0.2", "0.3"),
        "strict": Going("0.2", "0.3", "limit"),
    }
    limit: int = 1
    strict: bool = False
    lists: tuple[Lists, ...] = ()


class Limited(Policy):
    """Refuses when its limit is 0."""

    name = "limited"
    Options = Options

    def on_helo(self, session: Session) -> Verdict:
        return PROCEED if self.options.limit else reject("7.1", "no")


def test_a_renamed_name_gives_the_new_thing_and_a_warning_that_points_at_the_importer(monkeypatch, tmp_path):
    monkeypatch.setitem(NAMES, "gateway.sdk.refuse", OldName("0.2", "0.3", "gateway.sdk.reject"))
    (tmp_path / "authors_module.py").write_text("\nfrom gateway.sdk import refuse\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(DeprecationWarning, match=r"gateway\.sdk\.refuse .* gone in 0\.3; use gateway\.sdk\.reject") as w:
        module = importlib.import_module("authors_module")
    monkeypatch.delitem(sys.modules, "authors_module")
    assert module.refuse is reject
    assert {(Path(one.filename).name, one.lineno) for one in w} == {("authors_module.py", 2)}


def test_a_name_without_successor_gives_what_it_was(monkeypatch):
    home = types.ModuleType("attic")
    home.__dict__["thing"] = marker = object()
    monkeypatch.setitem(sys.modules, "attic", home)
    monkeypatch.setitem(NAMES, "gateway.sdk.thing", OldName("0.2", "0.3", gives="attic.thing"))
    with pytest.warns(DeprecationWarning, match="nothing comes in its place"):
        assert gateway.sdk.thing is marker


def test_what_never_was_a_name_is_none():
    with pytest.raises(AttributeError, match=r"module 'gateway\.sdk' has no attribute 'refuse'"):
        _ = gateway.sdk.refuse


def test_a_policys_hook_is_asked_under_its_old_name(monkeypatch):
    monkeypatch.setitem(HOOKS, "on_hello", GOING)
    with pytest.warns(DeprecationWarning, match=r"Old\.on_hello .* use on_helo") as warned:

        class Old(Policy):
            name = "old"

            def on_hello(self, session: Session) -> Verdict:
                return reject("7.1", "no")

    assert warned[0].filename == __file__
    assert Bench().judge(Old, stage=Stage.HELO).action is Action.REJECT


def test_a_plugins_method_is_called_under_its_old_name(monkeypatch):
    monkeypatch.setitem(HOOKS, "finished", Going("0.2", "0.3", "ended"))
    told = []
    with pytest.warns(DeprecationWarning, match=r"finished .* use ended"):

        class Old(Plugin):
            name = "old"

            async def finished(self, ending: Ending) -> None:
                told.append(ending.outcome)

    assert Old.learns()
    Bench().end(Old)
    assert len(told) == 1


def test_a_hook_under_both_names_is_refused(monkeypatch):
    monkeypatch.setitem(HOOKS, "on_hello", GOING)
    with pytest.raises(TypeError, match="old name of on_helo"):

        class Both(Policy):
            name = "both"

            def on_hello(self, session: Session) -> Verdict:
                return PROCEED

            def on_helo(self, session: Session) -> Verdict:
                return PROCEED


def test_on_the_bench_an_old_option_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="maximum .* use limit"):
        assert Bench().judge(Limited, {"maximum": 0}).action is Action.REJECT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bench().judge(Limited, {"limit": 0}).action is Action.REJECT


def test_an_option_that_does_nothing_any_more_is_left_out_and_one_that_still_works_stays():
    with pytest.warns(DeprecationWarning) as warned:
        options = Options.model_validate({"eager": [1, 2], "strict": True})
    assert options == Options.model_construct(limit=1, strict=True, lists=())
    assert len(warned) == 2


def test_both_names_of_an_option_are_one_too_many():
    with pytest.warns(DeprecationWarning), pytest.raises(ValidationError, match="old name of limit, and both"):
        Options.model_validate({"maximum": 1, "limit": 2})


def test_an_old_option_with_a_wrong_value_is_refused_as_the_new_one_is():
    with pytest.warns(DeprecationWarning), pytest.raises(ValidationError, match="limit"):
        Options.model_validate({"maximum": "many"})


def test_notices_know_the_place_of_options_inside_options():
    notices = Notices()
    raw: dict[str, Any] = {"lists": [{"names": ["a"]}, {"hosts": ["b"]}]}
    options = Options.model_validate(raw, context={NOTICES: notices})
    assert options.lists[1].names == ("b",)
    assert notices.within(raw) == (Notice(("lists", 1, "hosts"), Lists.going["hosts"].text("hosts")),)
    # Of a mapping that somebody made on the way, the key at least is known.
    assert notices.within({}) == (Notice(("hosts",), Lists.going["hosts"].text("hosts")),)


@pytest.mark.parametrize(
    ("since", "gone_in"), [("0.2", "0.2"), ("0.3", "0.2"), ("1.0", "0.9"), ("x", "0.3"), ("0.2", "")]
)
def test_there_is_a_release_that_warns(since, gone_in):
    with pytest.raises(ValueError):
        Going(since, gone_in)


@pytest.mark.parametrize(
    ("version", "due"), [("0.2.9", False), ("0.3.0", True), ("0.3.0rc1", True), ("0.10.0", True), ("1.0.0", True)]
)
def test_it_is_due_in_the_release_that_is_to_be_without_it(version, due):
    assert Going("0.2", "0.3").due(version) is due


class Widths(Plugin):
    """Finds nothing."""

    name = "widths"
    Options = PluginOptions


KNOWN = Catalog({"widths": Widths}, {"limited": Limited})


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Catalog, "installed", classmethod(lambda cls: Catalog({"widths": Widths}, {"limited": Limited}))
    )
    file = tmp_path / "gatepost.yaml"
    file.write_text(
        'listeners: [{address: "127.0.0.1:2525"}]\n'
        f"state: {{path: {tmp_path / 'state'}}}\n"
        "pipeline:\n"
        "  - limited:\n"
        "      lists:\n"
        "        - names: [a]\n"
        "        - hosts: [b]\n"
        "      maximum: 3\n"
        "pipelines:\n"
        "  other:\n"
        "    - widths: {}\n"
        "      policy:\n"
        "        limited: {eager: true}\n"
    )
    return file


def test_check_names_file_line_and_new_key_of_every_old_option(configuration):
    result = CliRunner().invoke(main, ["check", "-c", str(configuration)])
    assert result.exit_code == 0, result.output
    shown = result.stdout.splitlines()
    assert shown[:-1] == [
        f"{configuration}:7: pipeline[0].limited.lists[1].hosts: {Lists.going['hosts'].text('hosts')}",
        f"{configuration}:8: pipeline[0].limited.maximum: "
        "maximum is deprecated since Gatepost 0.2 and gone in 0.3; use limit",
        f"{configuration}:13: pipelines.other[0].policy.limited.eager: "
        "eager is deprecated since Gatepost 0.2 and gone in 0.3; nothing comes in its place",
    ]
    as_json = json.loads(CliRunner().invoke(main, ["check", "-c", str(configuration), "--json"]).stdout)
    assert as_json["ok"] and [(d["line"], d["key"]) for d in as_json["deprecated"]] == [
        (7, "pipeline[0].limited.lists[1].hosts"),
        (8, "pipeline[0].limited.maximum"),
        (13, "pipelines.other[0].policy.limited.eager"),
    ]


def test_a_start_or_reload_logs_each_of_them(configuration):
    config = load(str(configuration))
    with structlog.testing.capture_logs() as logs:
        wiring.log_notices(config, wiring.load_pipelines(config))
    assert [(one["event"], one["log_level"], one["line"]) for one in logs] == [
        ("config.deprecated", "warning", line) for line in (7, 8, 13)
    ]
    assert logs[1]["key"] == "pipeline[0].limited.maximum" and "use limit" in logs[1]["reason"]


def test_the_place_counts_from_the_operators_own_first_entry(configuration):
    # A domain that checks its recipients has the plugin for it put in front of the list.
    text = configuration.read_text() + "domains: {example.org: {next_hop: discard, recipients: {list: [anna]}}}\n"
    configuration.write_text(text)
    config = load(str(configuration))
    catalog = Catalog({"widths": Widths, "recipient": Widths}, {"limited": Limited})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Catalog, "installed", classmethod(lambda cls: catalog))
        found = wiring.notices(config, wiring.load_pipelines(config))
    assert [(one.line, one.path) for one in found][:2] == [
        (7, "pipeline[0].limited.lists[1].hosts"),
        (8, "pipeline[0].limited.maximum"),
    ]


def test_gateposts_own_options_are_told_of_in_the_same_way(configuration, monkeypatch):
    from gateway.config.model import Limits

    monkeypatch.setattr(Limits, "going", {"people": Going("0.2", "0.3", "recipients")})
    configuration.write_text(configuration.read_text() + "limits:\n  people: 7\n")
    config = load(str(configuration))
    assert config.limits.recipients == 7
    assert [(one.line, one.path) for one in config.notices] == [(15, "limits.people")]
