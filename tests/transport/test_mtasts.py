"""MTA-STS: records and policies as they are published, what is kept of them, and the fetching over HTTPS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.testing import FakeDns, FakeState, ManualClock
from gateway.transport.mtasts import MAX_AGE, POLICY_OCTETS, Mode, read_policy, read_record
from gateway.transport.policies import PAUSE, REFRESH, Fetched, Policies, Sts
from gateway.transport.policyfetch import PolicyFetcher
from gateway.transport.rule import Failure
from tests.support.certificates import make_ca
from tests.support.policyhost import serving
from tests.transport.peer import run

POLICY = b"version: STSv1\nmode: enforce\nmx: mx.example.net\nmx: *.example.org\nmax_age: 604800\n"


# The record.


@pytest.mark.parametrize(
    ("records", "id"),
    [
        ([b"v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v=spf1 -all", b"v=STSv1; id=1; later=x"], "1"),
        ([b"v=STSv1; id=1", b"v=STSv1; id=2"], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([b"v=STSv1; id=a-b"], None),
        ([b"v=STSv1;"], None),
        ([b"v=STSv1"], None),
        ([b"v=STSv10; id=1"], None),
        ([b" id=1; v=STSv1;"], None),
        ([b"\xff\xfe"], None),
        ([], None),
    ],
)
def test_an_id_is_read_from_exactly_one_good_record(records: list[bytes], id: str | None):
    assert read_record(records) == id


# The policy.


def test_a_policy_is_read_with_either_line_end():
    for text in (POLICY, POLICY.replace(b"\n", b"\r\n"), POLICY + b"unknown: x\nmode: none\n\n"):
        policy = read_policy(text)
        assert (policy.mode, policy.max_age) == (Mode.ENFORCE, 604800)
        assert policy.mx == ("mx.example.net", "*.example.org")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "no version"),
        (b"mode: none\nmax_age: 1\n", "no version"),
        (b"version: STSv2\nmode: none\nmax_age: 1\n", "no version"),
        (b"version: STSv1\nmax_age: 1\n", "mode"),
        (b"version: STSv1\nmode: strict\nmax_age: 1\n", "mode"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n", "no mx"),
        (b"version: STSv1\nmode: none\n", "max_age"),
        (b"version: STSv1\nmode: none\nmax_age: -1\n", "max_age"),
        (b"version: STSv1\nmode: none\nmax_age: 1e3\n", "max_age"),
        (b"version: STSv1\nmode: none\nmax_age: 99999999999\n", "max_age"),
        (b"version: STSv1\nmode: enforce\nmx: *\nmax_age: 1\n", "host name"),
        (b"version: STSv1\nmode: enforce\nmx: a.*.example\nmax_age: 1\n", "host name"),
        (b"version: STSv1\nmode: enforce\nmx:\nmax_age: 1\n", "host name"),
        (b"<html>\n", "line 1"),
        (b"version: STSv1\nnonsense\n", "line 2"),
        (b"version: STSv1\xff\n", "UTF-8"),
        (b"version: STSv1\n" + b"x" * POLICY_OCTETS, "too long"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n" + b"".join(b"mx: a%d.test\n" % n for n in range(1001)), "many"),
    ],
)
def test_what_is_no_policy_is_refused(body: bytes, problem: str):
    with pytest.raises(ValueError, match=problem):
        read_policy(body)


def test_a_policy_lives_for_a_year_at_most():
    assert read_policy(b"version: STSv1\nmode: none\nmax_age: 4000000000").max_age == MAX_AGE


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("mx.example.net", True),
        ("MX.example.net", True),
        ("a.example.org", True),
        ("a.b.example.org", False),
        ("example.org", False),
        ("x.mx.example.net", False),
        ("evil-mx.example.net", False),
    ],
)
def test_a_star_stands_for_one_label(host: str, named: bool):
    assert read_policy(POLICY).names(host) is named


# What is kept.


class Scene:
    """A domain with a record and a policy, and whoever looks at them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.state = FakeState(self.clock)
        self.gives: Fetched | Callable[[], Any] = Fetched(POLICY)
        self.fetched: list[str] = []
        self.record("1")
        self.again()

    def record(self, id: str | None, **more: Any) -> None:
        self.dns = FakeDns(txt={"_mta-sts.example.net": [f"v=STSv1; id={id};"] if id else ["nothing"]}, **more)

    def again(self) -> None:
        """As after a restart."""
        self.policies = Policies(self, self.state, self.clock, lambda: self)

    async def lookup(self, name: str, rdtype: str) -> Any:
        return await self.dns.lookup(name, rdtype)

    async def __call__(self, domain: str) -> Fetched:
        self.fetched.append(domain)
        return self.gives if isinstance(self.gives, Fetched) else await self.gives()

    async def close(self) -> None:
        pass

    async def of(self) -> Sts:
        return await self.policies.of("example.net")

    async def settle(self) -> None:
        """Let what goes on in the background end."""
        await self.policies._tasks.wait()


BROKEN = Fetched(problem="HTTP 500")


def test_a_policy_is_fetched_once_for_its_id_and_survives_a_restart():
    async def main() -> None:
        scene = Scene()
        for _ in range(3):
            assert (await scene.of()).policy == read_policy(POLICY)
            scene.again()
        assert scene.fetched == ["example.net"]
        scene.record("2")
        assert (await scene.of()).policy == read_policy(POLICY)
        assert len(scene.fetched) == 2

    run(main())


def test_without_a_record_there_is_no_policy_and_nothing_is_fetched():
    async def main() -> None:
        for scene, more in ((Scene(), {}), (Scene(), {"fails": ["_mta-sts.example.net"]})):
            scene.record(None, **more)
            assert await scene.of() == Sts() and scene.fetched == []

    run(main())


@pytest.mark.parametrize("more", [{}, {"fails": ["_mta-sts.example.net"]}], ids=["record gone", "no answer"])
def test_a_policy_that_is_kept_holds_though_its_record_is_gone(more: dict[str, Any]):
    async def main() -> None:
        scene = Scene()
        await scene.of()
        scene.record(None, **more)
        scene.again()
        assert (await scene.of()).policy == read_policy(POLICY)
        scene.clock.advance(604801)
        assert (await scene.of()).policy is None

    run(main())


def test_a_new_policy_that_cannot_be_had_leaves_the_old_one_in_force_until_its_time_is_over():
    async def main() -> None:
        scene = Scene()
        await scene.of()
        scene.gives = BROKEN
        scene.record("2")
        assert await scene.of() == Sts(read_policy(POLICY), Failure.STS_FETCH, "HTTP 500")
        scene.clock.advance(604801)
        assert await scene.of() == Sts(None, Failure.STS_FETCH, "HTTP 500")

    run(main())


def test_a_fetch_that_failed_is_not_tried_again_at_once():
    async def main() -> None:
        scene = Scene()
        scene.gives = BROKEN
        for _ in range(3):
            assert (await scene.of()).failure is Failure.STS_FETCH
        assert len(scene.fetched) == 1
        scene.clock.advance(PAUSE + 1)
        scene.gives = Fetched(POLICY)
        assert (await scene.of()).policy is not None

    run(main())


def test_a_policy_that_cannot_be_read_is_none():
    async def main() -> None:
        scene = Scene()
        scene.gives = Fetched(b"<html>")
        assert await scene.of() == Sts(None, Failure.STS_INVALID, "line 1 is no field")

    run(main())


def test_a_policy_is_fetched_anew_in_the_background_before_it_runs_out():
    async def main() -> None:
        scene = Scene()
        await scene.of()
        scene.clock.advance(REFRESH)
        scene.gives = Fetched(POLICY.replace(b"enforce", b"testing"))
        assert (await scene.of()).policy == read_policy(POLICY), "nobody waits for it"
        await scene.settle()
        assert (await scene.of()).policy.mode is Mode.TESTING  # type: ignore[union-attr]
        assert len(scene.fetched) == 2

    run(main())


def test_many_who_ask_at_once_share_one_fetch():
    async def main() -> None:
        scene = Scene()
        gate = asyncio.Event()

        async def slow() -> Fetched:
            await gate.wait()
            return Fetched(POLICY)

        scene.gives = slow
        asked = [asyncio.create_task(scene.of()) for _ in range(5)]  # noqa: TID251 - the loop ends with the test
        await asyncio.sleep(0)
        asked[0].cancel()
        gate.set()
        found = await asyncio.gather(*asked[1:])
        assert [sts.policy for sts in found] == [read_policy(POLICY)] * 4 and len(scene.fetched) == 1

    run(main())


@pytest.mark.parametrize("stored", [b"", b"{}", b"[1]", b"\xff", b'{"id": "1", "fetched": "x", "policy": ""}'])
def test_what_cannot_be_read_in_the_state_store_is_fetched_anew(stored: bytes):
    async def main() -> None:
        scene = Scene()
        await scene.state.put("mta-sts:example.net", stored, 1000.0)
        assert (await scene.of()).policy == read_policy(POLICY)

    run(main())


def test_a_state_store_that_does_not_answer_costs_a_fetch_and_nothing_else():
    async def main() -> None:
        scene = Scene()
        scene.state.broken = True
        for _ in range(2):
            assert (await scene.of()).policy == read_policy(POLICY)
        assert len(scene.fetched) == 1

    run(main())


# Fetching.


CA = make_ca()
HOST = "mta-sts.example.net"


def answer(body: bytes = POLICY, *, status: str = "200 OK", kind: str = "text/plain", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def fetch(
    tmp_path: Path, gives: bytes, *, name: str = HOST, days: tuple[int, int] = (-1, 2), seconds: float = 20.0
) -> tuple[Fetched, list[bytes]]:
    heard: list[bytes] = []

    async def main() -> Fetched:
        context = CA.issue(name, days=days).server(tmp_path)
        ca, _ = CA.write(tmp_path, "ca")
        async with serving(context, gives, heard) as port:
            dns = FakeDns(a={HOST: ["127.0.0.1"]})
            fetcher = PolicyFetcher(dns, port=port, ca_file=str(ca), seconds=seconds)
            try:
                return await fetcher("example.net")
            finally:
                await fetcher.close()

    return run(main()), heard


def test_a_policy_comes_over_https_from_its_host(tmp_path: Path):
    found, (request,) = fetch(tmp_path, answer(kind="text/plain; charset=utf-8"))
    assert found == Fetched(POLICY)
    assert request.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
    assert b"Host: mta-sts.example.net:" in request


@pytest.mark.parametrize(
    ("gives", "problem", "failure"),
    [
        (answer(status="404 Not Found"), "HTTP 404", Failure.STS_FETCH),
        (answer(status="301 Moved", more="Location: /x\r\n"), "HTTP 301", Failure.STS_FETCH),
        (answer(kind="text/html"), "not text/plain", Failure.STS_INVALID),
        (answer(b"x" * (POLICY_OCTETS + 1)), "too long", Failure.STS_INVALID),
        (answer()[:-5], "", Failure.STS_FETCH),
        (b"junk\r\n\r\n", "", Failure.STS_FETCH),
    ],
    ids=["404", "redirect", "html", "long", "cut off", "junk"],
)
def test_an_answer_that_is_no_policy_file_is_a_failure(tmp_path: Path, gives: bytes, problem: str, failure: Failure):
    found, heard = fetch(tmp_path, gives)
    assert found.problem and problem in found.problem and found.failure is failure and len(heard) == 1


@pytest.mark.parametrize(
    ("name", "days"), [("elsewhere.test", (-1, 2)), ("example.net", (-1, 2)), (HOST, (-9, -2))], ids=str
)
def test_nothing_is_asked_of_a_host_with_a_bad_certificate(tmp_path: Path, name: str, days: tuple[int, int]):
    found, heard = fetch(tmp_path, answer(), name=name, days=days)
    assert found.failure is Failure.STS_WEBPKI and heard == []


def test_a_host_that_never_answers_is_left(tmp_path: Path):
    found, _ = fetch(tmp_path, b"", seconds=0.3)
    assert found == Fetched(problem="no response in time")


def test_a_host_that_is_not_there_is_a_failure():
    async def main() -> None:
        fetcher = PolicyFetcher(FakeDns())
        assert (await fetcher("example.net")).failure is Failure.STS_FETCH
        await fetcher.close()

    run(main())


# Whatever is published.


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"v=STSv1; id=1", b"v=STSv1;"]), max_size=4))
def test_no_record_is_too_strange_to_be_read(records: list[bytes]):
    id = read_record(records)
    assert id is None or (0 < len(id) <= 32 and id.isalnum())


LINES = [
    b"version: STSv1",
    b"mode: enforce",
    b"mode: none",
    b"mx: a.example",
    b"max_age: 5",
    b"",
    b":",
    b"mx: *.b.example",
]


@given(st.lists(st.binary(max_size=40) | st.sampled_from(LINES), max_size=12))
def test_a_policy_is_read_or_refused_with_a_word(lines: list[bytes]):
    try:
        policy = read_policy(b"\n".join(lines))
    except ValueError as error:
        assert str(error)
    else:
        assert 0 <= policy.max_age <= MAX_AGE and (policy.mx or policy.mode is Mode.NONE)
