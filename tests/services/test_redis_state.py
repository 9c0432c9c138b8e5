"""State in a real Redis: what else may stand there, who else may answer there, and when nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.ops import metrics
from gateway.sdk import StateError
from gateway.sdk.testing import ManualClock
from gateway.services import redis_link as link
from gateway.services.redis_options import RedisOptions, RedisServer, parse_url
from gateway.services.redis_state import Kept, RedisState
from tests.support import redis_server as real
from tests.support.redis_server import Wire
from tests.support.servers import Certificate, make_certificate

PASSWORD = "correct horse, öffentlich nicht"
_places = itertools.count()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> Iterator[real.RedisServer]:
    server = real.RedisServer(certificate=certificate)
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def opened(options: RedisOptions, clock: ManualClock | None = None) -> AsyncIterator[RedisState]:
    state = RedisState(options, clock)
    await state.start()
    try:
        yield state
    finally:
        await state.close()


def place(server: real.RedisServer, **more: Any) -> RedisOptions:
    """A part of the server that no other test uses."""
    return server.options(**{"prefix": f"place{next(_places)}", "timeout": 10.0, **more})


CALLS: dict[str, Callable[[RedisState], Awaitable[Any]]] = {
    "get": lambda state: state.get("k"),
    "put_new": lambda state: state.put_new("k", b"ours", 60),
    "take": lambda state: state.take("k", capacity=3, per_second=1),
    "count": lambda state: state.count("k", "m", 60),
    "tally": lambda state: state.tally("k"),
    "settle": lambda state: state.settle("k", Kept.SET, b"ours", 60, 1),
    "put": lambda state: state.put("k", b"ours", 60),
    "delete": lambda state: state.delete("k"),
}

SPOILED: dict[str, list[Any]] = {
    "text": ["SET", b"garbage \xff"],
    "list": ["RPUSH", b"garbage"],
    "set": ["SADD", b"garbage"],
    "numbers": ["ZADD", 1, b"garbage", "inf", b"=m", "nan" and "-inf", b"until"],
    "no numbers": ["HSET", b"v", b"value", b"at", b"yesterday", b"until", b"tomorrow", b"tokens", b"many"],
    "no end": ["HSET", b"v", b"value", b"tokens", b"nan", b"at", b"nan", b"until", b"inf"],
    "too large": ["HSET", b"v", b"x" * 65_537, b"at", b"1", b"until", b"4000000000", b"tokens", b"-5"],
    "nothing": ["HSET", b"", b""],
    "stream": ["XADD", b"*", b"a", b"b"],
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_not_ours_counts_as_nothing_and_the_next_write_replaces_it(server, spoiled):
    options = place(server)
    command, *arguments = SPOILED[spoiled]

    async def check() -> None:
        async with opened(options) as state:

            def spoil() -> None:
                for kind in "vbt":
                    client.delete(f"{options.prefix}:{kind}:k")
                    client.execute_command(command, f"{options.prefix}:{kind}:k", *arguments)

            with server.client() as client:
                spoil()
                assert await state.get("k") is None
                assert await state.tally("k") == {}
                assert await state.put_new("k", b"ours", 60) is None
                assert await state.get("k") == b"ours"
                assert (await state.take("k", capacity=3, per_second=1)).remaining == 2
                assert [await state.count("k", "m", 60), await state.count("k", "m", 60)] == [1, 2]
                spoil()
                await state.put("k", b"ours", 60)
                assert await state.get("k") == b"ours"
                spoil()
                assert await state.settle("k", Kept.NEW, b"ours", 60, 1)
                assert await state.get("k") == b"ours"

    asyncio.run(check())


NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.sampled_from(["1e309", "-0", "0x10", " 1 ", "1e3"])
)
FIELDS = st.dictionaries(
    st.sampled_from([b"v", b"at", b"until", b"tokens", b"more"]),
    st.one_of(st.binary(max_size=40), NUMBERS.map(str.encode)),
    min_size=1,
)
SCORES = st.one_of(st.floats(allow_nan=False), st.just(4e9))
MEMBERS = st.dictionaries(
    st.one_of(st.just(b"until"), st.binary(max_size=8).map(b"=".__add__), st.binary(max_size=8)), SCORES, min_size=1
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_whatever_stands_under_our_keys_no_call_ends_in_anything_but_its_answer_or_a_state_error(server, loop):
    options = place(server)
    with server.client() as client:
        state = RedisState(options)
        loop.run(state.start())

        @settings(max_examples=40)
        @given(fields=FIELDS, members=MEMBERS, first=st.sampled_from(sorted(CALLS)))
        def check(fields: dict[bytes, bytes], members: dict[bytes, float], first: str) -> None:
            client.delete(*(f"{options.prefix}:{kind}:k" for kind in "vbt"))
            client.hset(f"{options.prefix}:v:k", mapping=fields)
            client.hset(f"{options.prefix}:b:k", mapping=fields)
            client.zadd(f"{options.prefix}:t:k", members)
            for name in (first, *CALLS):
                try:
                    answer = loop.run(CALLS[name](state))
                except StateError:
                    continue
                match name, answer:
                    case (("get" | "put_new"), (bytes() | None)):
                        pass
                    case "take", taken:
                        assert 0 <= taken.remaining <= 3
                        assert taken.wait >= 0
                    case "count", int():
                        pass
                    case "tally", dict():
                        assert all(isinstance(n, int) and m for m, n in answer.items())
                    case "settle", bool():
                        pass
                    case _:
                        assert answer is None

        check()
        assert state.up, "one bad key is no dead server"
        loop.run(state.close())


ANSWERS = {
    "no redis": b"220 mail.example ESMTP\r\n",
    "an error": b"-OOM command not allowed\r\n",
    "a giant": b"$999999999999\r\nabc",
    "a giant in parts": b"*9\r\n" + (b"$67000000\r\n" + b"x" * 70_000),
    "endless": b"*1000000000\r\n" + b":1\r\n" * 1000,
    "deep": b"*1\r\n" * 100_000,
    "no length": b"$x\r\n",
    "a long number": b":" + b"9" * 5000 + b"\r\n",
    "negative": b"$-7\r\n",
    "the wrong thing": b"+OK\r\n",
    "numbers": b"*2\r\n:7\r\n$3\r\nnan\r\n",
}


@contextlib.asynccontextmanager
async def imposter(answer: bytes) -> AsyncIterator[int]:
    """A server that answers everything with the same octets."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(answer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(babble, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def _strange(answer: bytes) -> None:
    async with imposter(answer) as port, opened(RedisOptions(RedisServer("127.0.0.1", port), timeout=0.05)) as state:
        for name in ("get", "take", "count"):
            with pytest.raises(StateError):
                await CALLS[name](state)
        state._link._up.set()
        with contextlib.suppress(StateError):
            assert await state.tally("k") == {}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_is_none_ends_every_call_in_a_state_error(answer):
    asyncio.run(_strange(ANSWERS[answer]))


@settings(max_examples=15)
@given(
    st.lists(st.sampled_from([b"*", b"$", b":", b"+", b"-", b"1", b"3", b"-1", b"\r\n", b"abc", b"\xff"]), max_size=12)
)
def test_octets_of_any_kind_are_an_answer_or_a_state_error(parts):
    async def check() -> None:
        async with imposter(b"".join(parts) + b"\r\n") as port:
            async with opened(RedisOptions(RedisServer("127.0.0.1", port), timeout=0.02)) as state:
                for call in CALLS.values():
                    with contextlib.suppress(StateError):
                        await call(state)

    asyncio.run(check())


def test_a_dead_server_costs_three_calls_and_nobody_after_them_and_is_found_when_it_is_back(server, monkeypatch):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)

    async def check() -> None:
        async with Wire(server.port) as wire:
            options = RedisOptions(RedisServer("127.0.0.1", wire.port), prefix=f"place{next(_places)}")
            with structlog.testing.capture_logs() as logs:
                async with opened(options) as state:
                    await state.put("k", b"v", 60)
                    await wire.cut()
                    for left in (2, 1, 0):
                        with pytest.raises(StateError, match=rf"127\.0\.0\.1:{wire.port}"):
                            await state.get("k")
                        assert state.up == bool(left)
                    monkeypatch.setattr(state._link, "_client", None)
                    with pytest.raises(StateError, match="is down: "):
                        await state.get("k")
                    monkeypatch.undo()
                    assert metrics.STATE_DOWN._value.get() == 1
                    await wire.mend()
                    async with asyncio.timeout(30):
                        await state.wait_up()
                    assert await state.get("k") == b"v"
                    await asyncio.sleep(0)
                    assert metrics.STATE_DOWN._value.get() == 0
        assert [entry["event"] for entry in logs] == ["state.down", "state.back"]

    asyncio.run(check())


def test_pauses_between_questions_whether_it_is_back_grow_and_end(server, monkeypatch):
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def check() -> None:
        options = RedisOptions(RedisServer("127.0.0.1", server.port), password_file="/nowhere")
        state = RedisState(options)
        monkeypatch.setattr(link.asyncio, "sleep", noted)
        await state.start()
        assert not state.up
        while len(pauses) < 12:
            await sleep(0.001)
        await state.close()

    asyncio.run(check())
    assert pauses[0] <= 0.25 * 1.3
    assert 0.7 * 5 <= pauses[-1] <= 1.3 * 5
    assert pauses[3] > pauses[0]


def test_a_server_that_hangs_is_left_alone_and_old_answers_are_nobody_elses(server, monkeypatch):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.05)

    async def check() -> None:
        async with opened(place(server, timeout=0.2, connections=2)) as state:
            await state.put("a", b"a", 60)
            await state.put("b", b"b", 60)
            with server.hung():
                answers = await asyncio.gather(*(state.get("a") for _ in range(8)), return_exceptions=True)
                assert {type(answer) for answer in answers} == {StateError}
                assert "no answer in 0.2 s" in str(answers[0])
                assert not state.up
            async with asyncio.timeout(30):
                await state.wait_up()
            assert await asyncio.gather(*(state.get("ab"[i % 2]) for i in range(8))) == [b"a", b"b"] * 4

    asyncio.run(check())


def test_a_caller_who_leaves_takes_no_answer_of_others_along(server):
    async def check() -> None:
        async with opened(place(server, connections=1)) as state:
            await state.put("a", b"a", 60)
            await state.put("b", b"b", 60)
            for turns in range(6):
                leaving = asyncio.gather(state.get("a"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                leaving.cancel()
                assert await state.get("b") == b"b"

    asyncio.run(check())


def test_connections_are_bounded_and_calls_wait_for_them(server):
    async def check() -> None:
        with server.client() as client:
            before = client.info("clients")["connected_clients"]
            async with opened(place(server, connections=3)) as state:
                answers = await asyncio.gather(*(state.count("k", "m", 60) for _ in range(100)))
                assert sorted(answers) == list(range(1, 101))
                assert client.info("clients")["connected_clients"] - before == 3
            with pytest.raises(StateError, match="closed"):
                await state.get("k")

    asyncio.run(check())


def test_time_is_the_servers_and_everything_has_an_end(server):
    options = place(server)

    async def check() -> None:
        async with opened(options) as state:
            await state.put("k", b"v", 60)
            await state.take("k", capacity=10, per_second=1)
            await state.take("full", capacity=1, per_second=1e-12)
            await state.count("k", "m", 60)
            await state.put("long", b"v", 1e300)

    with server.client() as client:
        before = client.time()
        asyncio.run(check())
        after = client.time()
        at = float(client.hget(f"{options.prefix}:b:k", "at") or 0)
        assert before[0] + before[1] / 1e6 - 1e-5 <= at <= after[0] + after[1] / 1e6 + 1e-5
        keys = client.keys(f"{options.prefix}:*")
        assert len(keys) == 6
        assert all(client.pttl(key) > 0 for key in keys)
        assert 59_000 < client.pttl(f"{options.prefix}:v:k") <= 60_000


def test_after_a_clock_went_back_a_bucket_fills_also_where_one_only_looks(server):
    async def check() -> None:
        there, clock = place(server), ManualClock(1_000_000_000.0)
        async with opened(there, ManualClock(1_000_100_000.0)) as ahead:
            await ahead.take("b", capacity=10, per_second=1, cost=10)
        async with opened(there, clock) as state:
            left = []
            for _ in range(3):
                left.append((await state.take("b", capacity=10, per_second=1, cost=0)).remaining)
                clock.advance(4)
        assert left == [0.0, 4.0, 8.0]

    asyncio.run(check())


def test_keys_are_prefix_kind_and_what_the_caller_said_and_nothing_of_this_machine(server):
    options = place(server)

    async def check() -> None:
        async with opened(options) as state:
            for call in CALLS.values():
                await call(state)
            await state.put("k", b"v", 60)

    asyncio.run(check())
    with server.client() as client:
        keys = {key.decode() for key in client.keys(f"{options.prefix}:*")}
        everything = {key.decode() for key in client.keys("*")}
    assert keys == {f"{options.prefix}:{name}" for name in ("v:k", "b:k", "t:k", "probe")}
    assert not [key for key in everything if socket.gethostname() in key or str(os.getpid()) in key]


def test_stores_with_the_same_prefix_are_one_and_with_another_apart(server):
    async def check() -> None:
        options = place(server)
        async with opened(options) as one, opened(options) as same, opened(place(server)) as other:
            assert await one.put_new("k", b"one", 60) is None
            assert await same.put_new("k", b"two", 60) == b"one"
            assert await other.get("k") is None
            taken = await asyncio.gather(*(s.take("b", capacity=7, per_second=1e-9) for s in [one, same] * 10))
            assert sum(t.allowed for t in taken) == 7

    asyncio.run(check())


@pytest.fixture(scope="module")
def guarded() -> Iterator[real.RedisServer]:
    server = real.RedisServer(password=PASSWORD)
    yield server
    server.stop()


def test_the_password_is_read_at_each_connection_and_is_in_no_text(guarded, tmp_path, monkeypatch):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    file = tmp_path / "secret"
    file.write_text("a wrong one\n")

    async def check() -> None:
        with structlog.testing.capture_logs() as logs:
            async with opened(place(guarded, password_file=str(file))) as state:
                with pytest.raises(StateError, match="invalid username-password"):
                    await state.get("k")
                file.write_text(PASSWORD + "\n")
                async with asyncio.timeout(30):
                    await state.wait_up()
                await state.put("k", b"v", 60)
        assert "a wrong one" not in str(logs)
        assert PASSWORD not in str(logs)
        monkeypatch.setenv("GATEPOST_TEST_REDIS", PASSWORD)
        file.write_text("wrong again\n")
        async with opened(place(guarded, password_file=str(file), password_env="GATEPOST_TEST_REDIS")) as state:
            await state.put("k", b"v", 60)
        async with opened(place(guarded)) as state:
            with pytest.raises(StateError, match=r"NOAUTH|uthentication"):
                await state.put("k", b"v", 60)

    asyncio.run(check())


NEEDED = re.compile(r"A user for Gatepost needs `([^`]+)` and the commands of the scripts on\s+`~PREFIX:\*`: `([^`]+)`")


def test_a_user_who_may_do_what_the_page_says_may_do_enough(server, tmp_path):
    listed = NEEDED.search((Path(__file__).parents[2] / "docs/shared-state.md").read_text())
    assert listed
    (tmp_path / "secret").write_text(PASSWORD + "\n")

    async def check() -> None:
        server_of_user = parse_url(server.url.replace("://", "://gate@"))
        options = replace(place(server, password_file=str(tmp_path / "secret")), server=server_of_user)
        rules = ["reset", "on", f">{PASSWORD}", f"~{options.prefix}:*", *listed[1].split(), *listed[2].split()]
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "gate", *rules)
            async with opened(options) as state:
                for call in CALLS.values():
                    await call(state)
                client.delete(f"{options.prefix}:t:k")
                client.hset(f"{options.prefix}:t:k", "a", "b")
                assert await state.count("k", "m", 60) == 1
                assert state.up

    asyncio.run(check())


def test_with_rediss_the_certificate_must_be_good_for_the_host(server, certificate):
    async def check() -> None:
        url, ca = f"rediss://localhost:{server.tls_port}", str(certificate.certificate)
        prefix = f"place{next(_places)}"
        async with opened(RedisOptions(parse_url(url), tls_ca=ca, prefix=prefix, timeout=10.0)) as state:
            await state.put("k", b"v", 60)
            assert await state.get("k") == b"v"
        for target, files in ((url, ""), (f"rediss://127.0.0.2:{server.tls_port}", ca)):
            async with opened(RedisOptions(parse_url(target), tls_ca=files, timeout=10.0)) as state:
                with pytest.raises(StateError, match="is down"):
                    await state.get("k")

    asyncio.run(check())


def test_a_server_that_is_full_is_down_and_one_that_has_room_again_is_back(guarded, tmp_path, monkeypatch):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.02)
    file = tmp_path / "secret"
    file.write_text(PASSWORD + "\n")

    async def check() -> None:
        with guarded.client() as client:
            async with opened(place(guarded, password_file=str(file))) as state:
                client.config_set("maxmemory", "1")
                client.config_set("maxmemory-policy", "noeviction")
                for _ in range(3):
                    with pytest.raises(StateError, match="maxmemory"):
                        await state.put("k", b"v", 60)
                assert not state.up
                client.config_set("maxmemory", "0")
                async with asyncio.timeout(30):
                    await state.wait_up()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://db", "redis://db:6379/0"),
        ("redis://DB.example.org:7000/3", "redis://db.example.org:7000/3"),
        ("rediss://gate@db", "rediss://db:6379/0"),
        ("redis://[2001:DB8::1]:7000", "redis://[2001:db8::1]:7000/0"),
        ("redis://192.0.2.1/", "redis://192.0.2.1:6379/0"),
    ],
)
def test_a_url_is_read_and_shown_without_its_user(url, shown):
    assert str(parse_url(url)) == shown


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"rediss?://[a-z0-9:@/.\[\]-]{0,60}", fullmatch=True)))
def test_any_text_is_a_url_or_a_value_error_that_does_not_repeat_it(text):
    try:
        server = parse_url(text)
    except ValueError as error:
        assert len(text) < 12 or text not in str(error)
    else:
        assert parse_url(str(server)) == RedisServer(server.host, server.port, server.database, server.tls)
