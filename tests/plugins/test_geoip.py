"""The geoip plugin on the bench, with real database files."""

from __future__ import annotations

import asyncio
import ipaddress
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from gateway.sdk import PROCEED, Geo, Services
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeState, ManualClock, make_recipient, make_session
from plugins.geoip import BUILT, GeoipOptions, GeoipPlugin
from tests.support.geodb import write, write_countries, write_systems

COUNTRIES = {"192.0.2.0/24": "DE", "198.51.100.0/24": "NO", "2001:db8::/32": "FR"}
SYSTEMS = {"192.0.2.0/25": (64500, "Example Networks"), "2001:db8:1::/48": (4_200_000_000, "Far Away")}


@pytest.fixture
def files(tmp_path):
    return {
        "country": str(write_countries(tmp_path / "country.mmdb", COUNTRIES)),
        "asn": str(write_systems(tmp_path / "asn.mmdb", SYSTEMS)),
    }


def found(options, client: str) -> Geo:
    finding = Bench().find(GeoipPlugin, options, session=make_session(client))
    assert isinstance(finding, Geo)
    return finding


def test_country_and_system_come_from_the_files(files):
    assert found(files, "192.0.2.7") == Geo("DE", 64500, "Example Networks")
    assert found(files, "2001:db8:1::7") == Geo("FR", 4_200_000_000, "Far Away")
    assert found(files, "::ffff:192.0.2.7") == Geo("DE", 64500, "Example Networks")


def test_an_address_that_no_file_holds_is_an_empty_finding(files):
    for client in ("203.0.113.1", "127.0.0.1", "::1", "2a00::1"):
        assert found(files, client) == Geo()
    assert found(files, "192.0.2.200") == Geo("DE")


def test_one_file_is_enough(files):
    assert found({"country": files["country"]}, "192.0.2.7") == Geo("DE")
    assert found({"asn": files["asn"]}, "192.0.2.7") == Geo("", 64500, "Example Networks")


def test_a_file_for_ipv4_only_knows_nothing_of_ipv6(tmp_path):
    path = write_countries(tmp_path / "four.mmdb", {"192.0.2.0/24": "DE"}, ip_version=4)
    assert found({"country": str(path)}, "192.0.2.7") == Geo("DE")
    assert found({"country": str(path)}, "2001:db8::1") == Geo()


def test_where_nobody_uses_an_address_the_country_of_its_registry_counts(tmp_path):
    records = {
        "192.0.2.0/25": {"country": {"iso_code": "DE"}, "registered_country": {"iso_code": "US"}},
        "192.0.2.128/25": {"registered_country": {"iso_code": "US"}},
    }
    path = str(write(tmp_path / "city.mmdb", "Test-City", records))
    assert (found({"country": path}, "192.0.2.7").country, found({"country": path}, "192.0.2.200").country) == (
        "DE",
        "US",
    )


@pytest.mark.parametrize(
    "record",
    [
        {"country": "DE"},
        {"country": {"iso_code": "Germany"}},
        {"country": {"iso_code": 49}},
        {"country": ["DE"]},
        {"autonomous_system_number": "AS64500"},
        {"autonomous_system_organization": 7},
        "DE",
    ],
)
def test_a_record_of_another_form_is_an_empty_finding(tmp_path, record):
    path = str(write(tmp_path / "odd.mmdb", "Odd", {"192.0.2.0/24": record}))
    assert found({"country": path, "asn": path}, "192.0.2.7") == Geo()


def test_a_long_name_is_cut(tmp_path):
    path = str(write_systems(tmp_path / "long.mmdb", {"192.0.2.0/24": (64500, "x" * 5000)}))
    assert found({"asn": path}, "192.0.2.7").organization == "x" * 200


def test_a_missing_file_refuses_the_start_and_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*gone\.mmdb: No such file"):
        found({"country": str(tmp_path / "gone.mmdb")}, "192.0.2.7")


def test_a_file_that_is_no_database_refuses_the_start_and_names_the_file(tmp_path):
    path = tmp_path / "text.mmdb"
    path.write_text("192.0.2.0/24 DE\n")
    with pytest.raises(ValueError, match=r"text\.mmdb: no usable MaxMind DB file"):
        found({"country": str(path)}, "192.0.2.7")


def test_without_the_package_the_start_is_refused_and_the_extra_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(RuntimeError, match=r"install gatepost\[geoip\]"):
        found(files, "192.0.2.7")


def test_a_file_that_changes_is_read_again_and_a_broken_one_leaves_the_old_in_force(tmp_path):
    path = write_countries(tmp_path / "country.mmdb", {"192.0.2.0/24": "DE"})
    clock = ManualClock()

    async def check() -> None:
        services = Services(FakeDns(), FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
        plugin = GeoipPlugin(GeoipOptions(country=str(path)), services)
        await plugin.start()

        async def country() -> str:
            clock.advance(10)
            return (await plugin.located(make_session("192.0.2.7"))).country

        assert await country() == "DE"
        write_countries(tmp_path / "new.mmdb", {"192.0.2.0/24": "FR"}).replace(path)
        assert await country() == "FR"
        whole = path.read_bytes()
        with capture_logs() as logged:
            # Written over in place, half of it, as a careless download does.
            path.write_bytes(whole[: len(whole) // 2])
            assert await country() == "FR"
            path.write_bytes(b"")
            assert await country() == "FR"
            path.unlink()
            assert await country() == "FR"
        assert [(entry["event"], entry["path"]) for entry in logged] == [("file.unusable", str(path))] * 3
        write_countries(path, {"192.0.2.0/24": "IT"})
        assert await country() == "IT"

    asyncio.run(check())


def test_the_metric_tells_the_age_of_the_database(files):
    found(files, "192.0.2.7")
    assert BUILT.labels("Test-Country")._value.get() > 1_500_000_000


@given(st.data())
def test_a_file_with_wrong_octets_is_refused_or_answers(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    octets = bytearray(write_countries(folder / "a.mmdb", COUNTRIES).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(octets) - 1), min_size=1, max_size=8)):
        octets[at] ^= data.draw(st.integers(1, 255))
    path = folder / "b.mmdb"
    path.write_bytes(octets)
    try:
        geo = found({"country": str(path)}, str(data.draw(st.ip_addresses(network="192.0.2.0/24"))))
    except ValueError as error:
        assert "no usable MaxMind DB file" in str(error)
    else:
        assert geo.country == "" or geo.country.isalpha()


ANY = {"country": "a.mmdb", "asn": "b.mmdb"}


def judge(geo: Geo, options, recipient="anna@example.org", trusted=False):
    session = make_session("192.0.2.7", trusted=trusted)
    return Bench().judge("geoip", ANY | options, session=session, recipient=make_recipient(recipient), findings=[geo])


def test_nobody_is_refused_by_default():
    assert judge(Geo("DE", 64500), {}) == PROCEED


def test_countries_and_systems_can_be_refused():
    verdict = judge(Geo("DE"), {"reject_countries": ["de"]})
    assert (str(verdict.reply), verdict.reason) == ("550 5.7.1 not accepted from your network", "country DE")
    verdict = judge(Geo("DE"), {"defer_countries": ["DE"]})
    assert str(verdict.reply) == "450 4.7.1 not accepted from your network now, try again later"
    verdict = judge(Geo("FR", 64500, "Example"), {"reject_asns": [64500]})
    assert (str(verdict.reply), verdict.reason) == ("550 5.7.1 not accepted from your network", "AS64500 Example")
    options = {"reject_countries": ["DE"], "defer_countries": ["FR"], "reject_asns": [64500]}
    assert judge(Geo("IT", 64501), options) == PROCEED


def test_with_a_list_of_allowed_countries_all_other_known_ones_are_refused():
    options = {"allow_countries": ["DE", "NO"], "defer_countries": ["NO"]}
    assert judge(Geo("DE"), options) == PROCEED
    assert judge(Geo("FR"), options).reply.code == 550
    assert judge(Geo("NO"), options).reply.code == 450


def test_a_client_of_whom_nothing_is_known_is_not_refused():
    options = {"allow_countries": ["DE"], "reject_asns": [64500]}
    assert judge(Geo(), options) == PROCEED


def test_trusted_clients_pass_and_postmaster_can_be_written_to():
    options = {"reject_countries": ["DE"]}
    assert judge(Geo("DE"), options, trusted=True) == PROCEED
    assert judge(Geo("DE"), options, "Postmaster@example.org") == PROCEED
    assert judge(Geo("DE"), options | {"exempt": []}, "postmaster").decisive


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give the path of a database"),
        ({"asn": "a.mmdb", "reject_countries": ["DE"]}, "need the path of a database: country"),
        ({"country": "a.mmdb", "reject_asns": [1]}, "needs the path of a database: asn"),
        (ANY | {"reject_countries": ["Germany"]}, "no country code of two letters"),
        (ANY | {"reject_countries": [False]}, "in quotes"),
        (ANY | {"reject_countries": ["DE"], "allow_countries": ["DE"]}, "DE stands in more than one list"),
        (ANY | {"reject_countries": ["DE"], "defer_countries": ["DE"]}, "DE stands in more than one list"),
        (ANY | {"reject_asns": [0]}, "no AS number"),
        (ANY | {"reject_asns": ["AS64500"]}, "valid integer"),
        (ANY | {"reject_countries": "DE"}, "valid tuple"),
        ({"country": ""}, "at least 1 character"),
    ],
)
def test_wrong_options_are_refused_and_say_what_to_do(options, text):
    with pytest.raises(ValidationError, match=text):
        GeoipOptions.model_validate(options)


def test_norway_in_yaml_without_quotes_is_explained():
    with pytest.raises(ValidationError, match="Norway"):
        Bench().judge("geoip", "country: a.mmdb\nreject_countries: [SE, NO]", findings=[Geo("SE")])
    assert Bench().judge("geoip", 'country: a.mmdb\nreject_countries: [SE, "NO"]', findings=[Geo("NO")]).decisive


def test_every_ipv4_probe_lies_in_another_eighth():
    from plugins.geoip import _PROBES

    assert {int(ipaddress.ip_network((probe, 8), strict=False)[0]) >> 24 for probe in _PROBES} == set(range(256))
