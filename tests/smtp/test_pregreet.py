"""Early talkers at the front door: the plugin `pregreet` behind real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.sdk import Services
from gateway.sdk.testing import FakeDirectory, FakeDns, FakeState
from gateway.services.clock import SystemClock
from gateway.smtp.lines import OpenLines
from gateway.smtp.listener import tls_context
from plugins.pregreet import PregreetPlugin
from tests.smtp.door import HOSTNAME, Client, Door, door, networks, run

LONG = "9s"
"""A wait that no test sits out: who is greeted within `PROMPT` seconds has not waited."""
PROMPT = 5.0
SHORT = 0.25

HEALTH_CHECK = b"\r\n\r\n\0\r\nQUIT\n" + b"\x20\x00\x00\x00"
"""PROXY version 2, LOCAL."""
REFUSED = re.compile(r"554 5\.5\.1 data before it was asked for \(ref (\w+)\)\Z")


class Guarded:
    """A front door with `pregreet` and what it remembers."""

    def __init__(self, opened: Door, state: FakeState) -> None:
        self.door = opened
        self.state = state

    async def remembers(self, client: str) -> bool:
        return await self.state.get(f"pregreet {client}") is not None

    async def remember(self, client: str) -> None:
        await self.state.put(f"pregreet {client}", b"1", 60)

    async def refused(self, client: Client) -> dict[str, Any]:
        """The record of the refusal that this client hears, after which the door closes."""
        found = REFUSED.fullmatch(await client.reply())
        assert found, client.heard
        assert await client.ended()
        return await self.door.record(found[1])


@contextlib.asynccontextmanager
async def guarded(options: dict[str, Any], entry: dict[str, Any] | None = None, **given: Any) -> AsyncIterator[Guarded]:
    clock, lines = SystemClock(), OpenLines()
    state = FakeState(clock)
    services = Services(FakeDns(), state, clock, FakeDirectory(), HOSTNAME, HOSTNAME, lines)
    catalog = Catalog({"pregreet": PregreetPlugin}, {})
    made: Pipeline = load("default", [{"pregreet": options, **(entry or {})}], services, known=catalog)
    async with door(pipelines={"default": made}, lines=lines, **given) as opened:
        yield Guarded(opened, state)


def talk(record: dict[str, Any]) -> dict[str, Any]:
    (finding,) = [f for f in record["findings"] if f["finding"] == "EarlyTalk"]
    value: dict[str, Any] = finding["value"]
    return value


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_who_talks_before_its_greeting_is_refused_with_a_reference_and_cut_off_at_once(after):
    async def test() -> None:
        async with guarded({"wait": LONG}) as at:
            began = time.monotonic()
            client = await at.door.connect()
            await asyncio.sleep(after)
            client.send(b"EHLO client.test\r\nMAIL FROM:<a@sender.test>\r\n")
            record = await at.refused(client)
            assert time.monotonic() - began < PROMPT
            assert talk(record)["early"] is True
            assert record["outcome"] == "rejected"
            (verdict,) = record["verdicts"]
            assert (verdict["plugin"], verdict["stage"], verdict["action"]) == ("pregreet", "connect", "disconnect")
            assert not await at.remembers("127.0.0.1")

    run(test)


def test_who_waits_is_greeted_after_the_wait_and_remembered():
    async def test() -> None:
        async with guarded({"wait": SHORT}) as at:
            began = time.monotonic()
            client = await at.door.connect()
            await client.hello()
            assert time.monotonic() - began >= SHORT * 0.95
            assert await at.remembers("127.0.0.1")
            assert (await client.message()).startswith("250 2.0.0 queued as ")

    run(test)


def test_who_is_remembered_is_greeted_at_once_and_its_mail_says_so():
    async def test() -> None:
        async with guarded({"wait": LONG}) as at:
            await at.remember("127.0.0.1")
            began = time.monotonic()
            client = await at.door.session()
            assert time.monotonic() - began < PROMPT
            reply = await client.message()
            assert talk(await at.door.record(reply.split()[-1])) == {"early": False, "waited": 0.0, "remembered": True}

    run(test)


def test_who_is_remembered_and_talks_early_now_is_refused_and_has_to_wait_again():
    async def test() -> None:
        async with guarded({"wait": LONG}, proxy=networks("127.0.0.0/8")) as at:
            await at.remember("192.0.2.7")
            header = b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n"
            record = await at.refused(await at.door.connect(first=header + b"EHLO client.test\r\n"))
            assert talk(record) == {"early": True, "waited": 0.0, "remembered": True}
            assert not await at.remembers("192.0.2.7")

    run(test)


def test_who_hangs_up_before_its_greeting_is_not_remembered():
    async def test() -> None:
        async with guarded({"wait": LONG}) as at:
            client = await at.door.connect()
            while not at.door.servers():
                await asyncio.sleep(0.01)
            client.close()
            began = time.monotonic()
            while at.door.servers():
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < PROMPT
            assert not await at.remembers("127.0.0.1")

    run(test)


def test_a_health_check_behind_the_proxy_does_not_wait():
    async def test() -> None:
        async with guarded({"wait": LONG}, proxy=networks("127.0.0.0/8")) as at:
            began = time.monotonic()
            client = await at.door.connect(first=HEALTH_CHECK)
            await client.greeting()
            # A checker may have said QUIT already: it is no early talker.
            hasty = await at.door.connect(first=HEALTH_CHECK + b"QUIT\r\n")
            await hasty.greeting()
            assert (await hasty.reply()).startswith("221 ")
            assert time.monotonic() - began < PROMPT
            assert not await at.remembers("127.0.0.1")

    run(test)


def test_behind_a_proxy_the_true_client_waits_and_its_wait_begins_after_the_header():
    async def test() -> None:
        async with guarded({"wait": SHORT}, proxy=networks("127.0.0.0/8")) as at:
            client = await at.door.connect(first=b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n")
            await client.hello()
            assert await at.remembers("192.0.2.7")
            assert not await at.remembers("127.0.0.1")

    run(test)


def test_a_client_that_xclient_names_waits_for_its_own_greeting():
    async def test() -> None:
        async with guarded({"wait": SHORT, "exempt": ["127.0.0.0/8"]}, xclient=networks("127.0.0.0/8")) as at:
            client = await at.door.session()
            began = time.monotonic()
            await client.expect("XCLIENT ADDR=192.0.2.7", "220")
            assert time.monotonic() - began >= SHORT * 0.95
            assert await at.remembers("192.0.2.7")
            assert not await at.remembers("127.0.0.1")

    run(test)


@pytest.mark.parametrize(
    ("options", "entry", "given"),
    [
        ({}, {"shadow": True}, {}),
        ({"action": "none"}, {}, {}),
        ({"exempt": ["192.0.2.0/24"]}, {}, {}),
        ({}, {}, {"relay_from": networks("192.0.2.0/24")}),
    ],
    ids=["shadow", "action-none", "exempt", "trusted"],
)
def test_an_early_talker_that_is_not_to_be_refused_goes_on_and_its_mail_says_so(options, entry, given):
    async def test() -> None:
        async with guarded({"wait": LONG, **options}, entry, proxy=networks("127.0.0.0/8"), **given) as at:
            header = b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n"
            client = await at.door.connect(first=header + b"EHLO client.test\r\n")
            await client.greeting()
            assert (await client.reply()).startswith("250-")
            reply = await client.message()
            record = await at.door.record(reply.split()[-1])
            assert talk(record)["early"] is True
            shadowed = [v["action"] for v in record["verdicts"] if v["shadow"]]
            assert shadowed == (["disconnect"] if entry else [])
            assert not await at.remembers("192.0.2.7")

    run(test)


def test_with_implicit_tls_the_wait_comes_after_the_handshake(certificate):
    context = tls_context(str(certificate.certificate), str(certificate.key))

    async def test() -> None:
        async with guarded({"wait": "1s"}, tls=context, implicit=True) as at:
            patient = await at.door.connect_tls()
            await patient.hello()
            assert await at.remembers("127.0.0.1")
            await at.state.delete("pregreet 127.0.0.1")
            hasty = await at.door.connect_tls()
            hasty.send(b"EHLO client.test\r\n")
            assert talk(await at.refused(hasty))["early"] is True

    run(test)


def test_an_early_talker_can_be_told_to_come_back():
    async def test() -> None:
        async with guarded({"wait": LONG, "action": "defer"}) as at:
            client = await at.door.connect(first=b"EHLO client.test\r\n")
            assert (await client.reply()).startswith("421 4.5.1 data before it was asked for (ref ")
            assert await client.ended()

    run(test)


def test_a_state_store_that_fails_defers_as_its_owner_said_or_lets_pass():
    async def test(on_error: str, code: str) -> None:
        async with guarded({"wait": SHORT}, {"on_error": on_error}) as at:
            at.state.broken = True
            client = await at.door.connect()
            await client.greeting(code)

    run(lambda: test("defer", "421"))
    run(lambda: test("proceed", "220"))
