"""What Gatepost knows of the well-known lists, what it refuses, and that a paid list's key is shown to nobody."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest
from pydantic import ValidationError

from gateway.ops.log import get as operators_log
from gateway.pipeline.catalog import Catalog
from gateway.pipeline.loader import PipelineError, load
from gateway.sdk import PROCEED, Dnsbl, ListHit
from gateway.sdk.testing import Bench, FakeDns, make_session
from plugins.dnsbl import DnsblOptions, DnsblPlugin, DnsblPolicy
from plugins.dnsbl.codes import parse_code
from plugins.dnsbl.options import split_key
from plugins.dnsbl.tables import GONE, KEYED, TABLES, VERSION, Kind

CARD = (Path(__file__).parents[2] / "docs/plugins/dnsbl.md").read_text()
CLIENT = make_session("192.0.2.7")
KNOWN_PLUGINS = Catalog.installed()
QUERY = "7.2.0.192"


def found(zone: str, options: Any, *codes: str, asked_as: str = "") -> Dnsbl:
    dns = FakeDns(a={f"{QUERY}.{asked_as or zone}": list(codes)} if codes else {})
    finding = Bench(dns=dns).find(DnsblPlugin, {"zones": {zone: options}}, session=CLIENT)
    assert isinstance(finding, Dnsbl)
    return finding


@pytest.mark.parametrize(
    ("zone", "weight", "code", "expected"),
    [
        ("zen.spamhaus.org", 4, "127.0.0.2", 4),
        ("zen.spamhaus.org", 4, "127.0.0.7", 4),
        ("zen.spamhaus.org", 4, "127.0.0.11", 4),
        ("zen.spamhaus.org", 4, "127.0.0.30", 4),
        ("pbl.spamhaus.org", 2, "127.0.0.10", 2),
        ("bl.spamcop.net", 2, "127.0.0.2", 2),
        ("list.dnswl.org", -5, "127.0.5.0", 0),
        ("list.dnswl.org", -5, "127.0.5.1", -1),
        ("list.dnswl.org", -5, "127.0.15.2", -3),
        ("list.dnswl.org", -5, "127.0.10.3", -5),
        ("rep.mailspike.net", 5, "127.0.0.10", 5),
        ("rep.mailspike.net", 5, "127.0.0.20", -5),
        ("bl.mailspike.net", 2, "127.0.0.12", 2),
        ("wl.mailspike.net", -5, "127.0.0.18", -3),
        ("hostkarma.junkemailfilter.com", 2, "127.0.0.1", -2),
        ("hostkarma.junkemailfilter.com", 2, "127.0.0.4", 1),
    ],
)
def test_a_bare_weight_of_a_known_list_is_read_by_its_table(zone, weight, code, expected):
    finding = found(zone, weight, code)
    assert finding.hits == (ListHit(zone, (code,), expected),)
    assert finding.score == expected
    assert finding.tables == VERSION
    assert finding.meanings[0].startswith(f"{zone} {code}: ")


@pytest.mark.parametrize(
    ("zone", "code"),
    [("zen.spamhaus.org", "127.0.0.77"), ("dnsbl.dronebl.org", "127.0.0.2"), ("xbl.spamhaus.org", "127.0.0.2")],
)
def test_a_code_that_the_table_does_not_name_does_not_count(zone, code):
    assert found(zone, 3, code) == Dnsbl(0, tables=VERSION)


def test_dnswls_own_error_code_is_a_failure_of_the_list():
    assert found("list.dnswl.org", -5, "127.0.0.255").failed == ("list.dnswl.org",)


@pytest.mark.parametrize("zone", TABLES)
def test_error_codes_never_count_for_a_known_list_either(zone):
    weight = 3 if TABLES[zone].kind is Kind.BLOCK else -3
    asked = f"k3y.{zone}" if zone.endswith("dq.spamhaus.net") else zone
    for code in ("127.255.255.254", "192.0.2.1"):
        finding = found(asked, weight, code)
        assert (finding.score, finding.hits, finding.failed) == (0, (), (zone,))


def test_codes_of_ones_own_win_over_the_table():
    own = {"codes": {"127.0.0.4": 9}}
    assert found("zen.spamhaus.org", own, "127.0.0.4").score == 9
    assert found("zen.spamhaus.org", own, "127.0.0.2").score == 0
    assert found("zen.spamhaus.org", own | {"weight": 2}, "127.0.0.2").score == 2
    assert found("zen.spamhaus.org", own | {"weight": 2}, "127.0.0.4").score == 9
    assert found("zen.spamhaus.org", own | {"weight": 2}, "127.0.0.99").score == 0


def test_an_allow_list_without_a_weight_takes_away():
    assert found("list.dnswl.org", {}, "127.0.5.3").score == -1


def test_a_mirror_of_ones_own_names_the_list_that_it_mirrors():
    finding = found("dnswl.mirror.test", {"weight": -5, "table": "list.dnswl.org"}, "127.0.5.2")
    assert (finding.score, finding.tables) == (-3, VERSION)


def test_an_unknown_list_has_no_table_and_no_version_in_the_record():
    assert found("bl.test", 3, "127.0.0.77") == Dnsbl(3, (ListHit("bl.test", ("127.0.0.77",), 3),))


def test_every_table_can_be_read_and_stands_on_the_card():
    for zone, table in TABLES.items():
        assert table.codes and table.source
        for code, meaning in table.codes.items():
            parse_code(code)
            assert -1 <= meaning.factor <= 1, (zone, code)
            assert f"`{code}`" in CARD
        assert max(abs(code.factor) for code in table.codes.values()) == 1, zone
        assert f"`{zone}`" in CARD
    assert f"version {VERSION}," in CARD


@pytest.mark.parametrize("zone", [*GONE, "dul.dnsbl.sorbs.net", "Dnsbl.NJABL.org"])
def test_a_list_that_was_shut_down_is_refused_with_what_to_do(zone):
    with pytest.raises(
        ValidationError, match=r"was shut down \(20\d\d.*\): (take it out of zones|write .* in its place)"
    ):
        DnsblOptions.model_validate({"zones": {zone: 1}})
    assert next(name for name in GONE if zone.lower().endswith(name)) in CARD


@pytest.mark.parametrize(
    ("zone", "options", "words"),
    [
        ("list.dnswl.org", 3, "is an allow list: its weight must be less than 0"),
        ("zen.spamhaus.org", -3, "is a block list: its weight must be more than 0"),
        ("zen.dq.spamhaus.net", 3, r"needs your key: name a key_file, or write KEY\.zen\.dq\.spamhaus\.net"),
        ("bl.test", {"table": "zen.spamhaus.or"}, "there are tables for "),
    ],
)
def test_what_does_not_fit_a_known_list_is_refused_with_what_to_do(zone, options, words):
    with pytest.raises(ValidationError, match=words):
        DnsblOptions.model_validate({"zones": {zone: options}})


def test_the_probes_of_lists_are_not_a_load_on_them():
    with pytest.raises(ValidationError, match="at most once a second, or never"):
        DnsblOptions.model_validate({"zones": {"bl.test": 1}, "probe": "100ms"})


@settings(max_examples=50)
@given(
    zone=st.sampled_from([zone for zone in TABLES if "dq" not in zone] + ["bl.test"]),
    codes=st.lists(
        st.ip_addresses(v=4, network="127.0.0.0/8")
        | st.ip_addresses(v=4, network="127.255.255.0/24")
        | st.ip_addresses(v=4),
        min_size=1,
        max_size=5,
        unique=True,
    ),
)
def test_whatever_a_list_answers_it_counts_once_by_codes_that_can_be_listings(zone, codes):
    weight = -3 if zone in TABLES and TABLES[zone].kind is Kind.ALLOW else 3
    finding = found(zone, weight, *map(str, codes))
    assert len(finding.hits) + len(finding.failed) <= 1
    assert abs(finding.score) <= 3
    for hit in finding.hits:
        assert all(code.startswith("127.") and not code.startswith("127.255.255.") for code in hit.codes)
    if all(not str(code).startswith("127.") or str(code).startswith("127.255.255.") for code in codes):
        assert finding.failed == (zone,)


# --- allow lists that overrule ---------------------------------------------------------------------------------------


def judge(options: dict[str, Any], *weights: float):
    hits = tuple(ListHit(f"l{i}.test", ("127.0.0.2",), weight) for i, weight in enumerate(weights))
    finding = Dnsbl(sum(weights), hits)
    return Bench().judge(DnsblPolicy, {"zones": {"bl.test": 1}, "reject_at": 3} | options, findings=[finding])


def test_an_allow_list_of_enough_weight_keeps_block_lists_from_refusing():
    assert judge({}, 9, -3).decisive
    assert judge({"allow_at": -3}, 9, -3) == PROCEED
    assert judge({"allow_at": -3}, 9, -2.9).decisive
    assert judge({"allow_at": -3}, 9, -2, -1) == PROCEED
    assert judge({"allow_at": -3, "reject_at": None, "defer_at": 1}, 9, -3) == PROCEED


def test_the_weight_that_allows_is_below_0():
    with pytest.raises(ValidationError):
        DnsblOptions.model_validate({"zones": {"bl.test": 1}, "allow_at": 0})


# --- keys ------------------------------------------------------------------------------------------------------------

KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=16, max_size=40).filter(
    lambda key: any(c.isdigit() for c in key) and any(c.isalpha() for c in key)
)
KNOWN = ("zen.dq.spamhaus.net", "xbl.dq.spamhaus.net", "combined.mail.abusix.zone")


def seen_by_somebody(zone: str, options: dict[str, Any], dns: FakeDns) -> str:
    """Everything that Gatepost shows while it asks, judges and loads: record, reply, log, metrics, representations."""
    with structlog.testing.capture_logs() as logs:
        bench = Bench(dns=dns)
        finding = bench.find(DnsblPlugin, options, session=CLIENT)
        verdict = bench.judge(DnsblPolicy, options, findings=[finding])
        made = DnsblPlugin(DnsblOptions.model_validate(options), bench.services)
        pipeline = load("default", [{"dnsbl": options}], bench.services, known=KNOWN_PLUGINS)
    shown = [finding, finding.to_json(), verdict, verdict.to_json(), logs, made.options, made, pipeline.table()]
    shown += [str(made.options), generate_latest(REGISTRY).decode()]
    return " ".join(repr(part) for part in shown).lower()


@settings(max_examples=50)
@given(
    key=KEYS, zone=st.sampled_from([*KNOWN, "bl.paid.example"]), code=st.sampled_from(["127.0.0.4", "127.255.255.254"])
)
def test_a_key_is_asked_with_and_shown_to_nobody(key, zone, code):
    dns = FakeDns(a={f"{QUERY}.{key}.{zone}": [code]})
    text = seen_by_somebody(zone, {"zones": {f"{key}.{zone}": 3}}, dns)
    assert (f"{QUERY}.{key}.{zone}", "A") in dns.asked
    assert key not in text
    assert zone in text


@settings(max_examples=50)
@given(
    key=KEYS, mistake=st.sampled_from(["much", {"weight": "much"}, {"cods": {}}, {"codes": {"1.2.3.4": 1}}, None, []])
)
def test_an_error_in_the_options_of_a_keyed_list_does_not_tell_the_key(key, mistake):
    zones = {f"{key}.zen.dq.spamhaus.net": mistake}
    with pytest.raises(ValidationError) as refused:
        DnsblOptions.model_validate({"zones": zones})
    assert key not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(PipelineError) as problem:
        load("default", [{"dnsbl": {"zones": zones}}], Bench().services, known=KNOWN_PLUGINS)
    said = [*map(str, problem.value.problems), *(str(p.path) for p in problem.value.problems), str(problem.value)]
    assert key not in " ".join(said)
    assert "zen.dq.spamhaus.net" in " ".join(said)


@settings(max_examples=50)
@given(key=KEYS)
def test_other_errors_do_not_tell_the_key_either(key):
    zone = f"{key}.zen.dq.spamhaus.net"
    for options in (
        {"zones": {zone: -1}},
        {"zones": {zone: 1, "bad name.test": 1}},
        {"zones": {zone: 1}, "rejekt_at": 3},
        {"zones": {zone: 1}, "wait": 0},
        {"zones": {f"{key}.dnsbl.sorbs.net": 1}},
        {"zones": {zone: 1} | {f"z{i}.test": 1 for i in range(51)}},
    ):
        with pytest.raises(ValidationError) as refused:
            DnsblOptions.model_validate(options)
        assert key not in "".join(traceback.format_exception(refused.value)), options
        with pytest.raises(PipelineError) as problem:
            load("default", [{"dnsbl": options}], Bench().services, known=KNOWN_PLUGINS)
        assert key not in " ".join(f"{p} {p.path}" for p in problem.value.problems), options


def test_a_key_may_stand_in_a_file(tmp_path):
    file = tmp_path / "dqs"
    file.write_text("AbCdEf123\n")
    zone = "zen.dq.spamhaus.net"
    finding = found(zone, {"weight": 3, "key_file": str(file)}, "127.0.0.4", asked_as=f"abcdef123.{zone}")
    assert finding.hits == (ListHit(zone, ("127.0.0.4",), 3),)


@pytest.mark.parametrize("content", ["", "two words", "sekrit!", "a" * 64, "\x00", "sekrit.sekrit"])
def test_a_key_file_that_holds_no_key_keeps_the_plugin_from_starting_and_is_not_quoted(tmp_path, content):
    file = tmp_path / "dqs"
    file.write_text(content)
    with pytest.raises(ValueError, match="holds no key") as refused:
        found("zen.dq.spamhaus.net", {"key_file": str(file)})
    assert "sekrit" not in str(refused.value)


def test_a_key_file_that_is_not_there_keeps_the_plugin_from_starting():
    with pytest.raises(ValueError, match="cannot read /nowhere/dqs"):
        found("zen.dq.spamhaus.net", {"key_file": "/nowhere/dqs"})


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        ("zen.spamhaus.org", "zen.spamhaus.org"),
        ("hostkarma.junkemailfilter.com", "hostkarma.junkemailfilter.com"),
        ("dnsbl-1.uceprotect.net", "dnsbl-1.uceprotect.net"),
        ("backscatter.spameatingmonkey.net", "backscatter.spameatingmonkey.net"),
        ("short.ZEN.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("one.two.zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("abcdefghijklmnopqrstuvwxyz.lists.example", "lists.example"),
        ("0123456789abcdef.example", "0123456789abcdef.example"),
    ],
)
def test_only_what_is_a_key_is_taken_for_one(zone, shown):
    assert split_key(zone)[1] == shown


def test_the_lists_with_keys_are_on_the_card():
    assert all(suffix in CARD for suffix in KEYED)


def test_the_operators_log_goes_through_the_same_logger_that_is_captured_here():
    logging.disable(logging.NOTSET)
    with structlog.testing.capture_logs() as logs:
        operators_log().info("dnsbl.restored", list="bl.test")
    assert logs == [{"event": "dnsbl.restored", "list": "bl.test", "log_level": "info"}]
