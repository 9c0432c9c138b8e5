"""Endpoints as options, dialling them, and connections that are kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.sdk import Endpoint, EndpointOption, PluginOptions, Pool, dial, find_addresses
from gateway.sdk.testing import FakeDns, ManualClock
from tests.support.process import free_port, new_directory


class Options(PluginOptions):
    connect: EndpointOption


@pytest.mark.parametrize(
    ("text", "endpoint", "canonical"),
    [
        ("127.0.0.1:783", Endpoint("127.0.0.1", 783), "127.0.0.1:783"),
        ("Spamd.Example:783", Endpoint("spamd.example", 783), "spamd.example:783"),
        ("[2001:DB8::1]:783", Endpoint("2001:db8::1", 783), "[2001:db8::1]:783"),
        ("inet:filter.example:8891", Endpoint("filter.example", 8891), "filter.example:8891"),
        ("inet:8891@127.0.0.1", Endpoint("127.0.0.1", 8891), "127.0.0.1:8891"),
        ("inet6:8891@[::1]", Endpoint("::1", 8891), "[::1]:8891"),
        ("unix:/run/x.sock", Endpoint(path="/run/x.sock"), "unix:/run/x.sock"),
        ("local:/run/x.sock", Endpoint(path="/run/x.sock"), "unix:/run/x.sock"),
    ],
)
def test_endpoints_are_read_in_the_forms_that_people_write(text: str, endpoint: Endpoint, canonical: str) -> None:
    read = Options.model_validate({"connect": text})
    assert read.connect == endpoint and str(endpoint) == canonical
    assert Options.model_validate(read.model_dump(mode="json")) == read


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", "host:0", "host:65536", ":25", "a b:25", "unix:", "unix:" + "x" * 108, "unix:/\0", 25, None],
)
def test_what_is_no_endpoint_is_refused_with_what_to_write(text: object) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"connect": text})


def test_names_go_through_the_configured_nameservers_and_the_hosts_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.9 filter.example\n")
    monkeypatch.setattr("gateway.sdk.hosts.HOSTS_FILE", str(file))
    dns = FakeDns(a={"other.example": ["192.0.2.1"]}, aaaa={"other.example": ["2001:db8::1"]})
    assert asyncio.run(find_addresses("filter.example", dns)) == ["192.0.2.9"]
    assert asyncio.run(find_addresses("other.example", dns)) == ["192.0.2.1", "2001:db8::1"]
    assert asyncio.run(find_addresses("192.0.2.7", dns)) == ["192.0.2.7"]
    with pytest.raises(OSError, match=r"no address of none\.example"):
        asyncio.run(find_addresses("none.example", dns))


def test_the_first_address_that_answers_is_taken() -> None:
    async def check() -> None:
        port = free_port()
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
        dns = FakeDns(a={"filter.example": ["127.0.0.2", "127.0.0.1"]})
        _, writer = await dial(Endpoint("filter.example", port), dns)
        assert writer.get_extra_info("peername") == ("127.0.0.1", port)
        writer.close()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await dial(Endpoint("127.0.0.1", free_port()), dns)

    asyncio.run(check())


def test_a_unix_socket_is_dialled_by_its_path() -> None:
    async def check() -> None:
        path = str(new_directory("dial") / "sock")
        server = await asyncio.start_unix_server(lambda r, w: w.close(), path)
        reader, writer = await dial(Endpoint(path=path), FakeDns())
        assert await reader.read() == b""
        writer.close()
        server.close()

    asyncio.run(check())


def test_the_newest_connection_is_taken_and_the_old_ones_go() -> None:
    clock, closed = ManualClock(), list[str]()
    pool = Pool(closed.append, clock, idle=10, most=2)
    assert pool.take() is None
    for name in ("a", "b", "c"):
        pool.give(name)
    assert closed == ["a"] and len(pool) == 2
    assert pool.take() == "c"
    clock.advance(5)
    pool.give("c")
    clock.advance(6)
    assert pool.take() == "c" and closed == ["a", "b"] and pool.take() is None


def test_a_closed_pool_keeps_nothing() -> None:
    closed = list[str]()
    pool = Pool(closed.append, ManualClock())
    pool.give("a")
    pool.clear()
    pool.give("b")
    pool.close()
    pool.give("c")
    assert closed == ["a", "b", "c"]
