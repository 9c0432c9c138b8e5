"""Probes of DNS lists: who is bypassed, when, and how lists come back. Nothing here waits: `turn` is called by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY

from gateway.sdk import Dnsbl, Services
from gateway.sdk.testing import FakeDirectory, FakeDns, FakeState, ManualClock, make_session
from gateway.services.dns import DnsOptions, Resolver
from plugins.dnsbl import DnsblOptions, DnsblPlugin
from plugins.dnsbl.probe import Health, Prober
from tests.contract.dnsserver import DnsServer, Fault

CLIENT = make_session("192.0.2.7")
LISTED, CLEAN = "2.0.0.127.bl.test", "1.0.0.127.bl.test"
LISTED6 = "2.0.0.0.0.0.f.7.f.f.f.f" + ".0" * 20 + ".bl.test"
CLEAN6 = "1.0.0.0.0.0.f.7.f.f.f.f" + ".0" * 20 + ".bl.test"
HIT = {"7.2.0.192.bl.test": ["127.0.0.2"]}
GOOD = {**HIT, LISTED: ["127.0.0.2"]}
EVERYBODY = {**GOOD, CLEAN: ["127.0.0.2"]}


class ChangingDns(FakeDns):
    """`becomes` replaces what the DNS says."""

    def __init__(self, a: dict[str, list[str]], fails: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.becomes(a, fails)

    def becomes(self, a: dict[str, list[str]], fails: tuple[str, ...] = ()) -> None:
        now = FakeDns(a=a, fails=fails)
        self._records, self._fails = now._records, now._fails

    @property
    def probes(self) -> int:
        return sum(name.startswith("2.0.0") for name, _ in self.asked)


class Rig:
    """Plugins of one configuration, as workers have them: one clock, one state, one DNS."""

    def __init__(self, dns: Any, options: dict[str, Any] | None = None) -> None:
        self.clock = ManualClock()
        self.state = FakeState(self.clock)
        self.dns = dns
        self.options = DnsblOptions.model_validate({"zones": {"bl.test": 3}} | (options or {}))

    async def worker(self) -> DnsblPlugin:
        services = Services(self.dns, self.state, self.clock, FakeDirectory(), "mx.test", "mx.test")
        plugin = DnsblPlugin(self.options, services)
        await plugin.start()
        return plugin


def run(test: Callable[[], Awaitable[None]]) -> list[Any]:
    """Run it; gives what was logged."""
    with structlog.testing.capture_logs() as logs:
        asyncio.run(test())  # type: ignore[arg-type]
    return logs


def bypassed(family: str = "ipv4") -> float | None:
    return REGISTRY.get_sample_value("gatepost_dnsbl_bypassed", {"list": "bl.test", "family": family})


async def ask(worker: DnsblPlugin, client: str = "192.0.2.7") -> Dnsbl:
    return await worker.listed(make_session(client))


def test_a_list_that_passes_counts():
    async def check() -> None:
        worker = await Rig(ChangingDns(GOOD)).worker()
        await worker.prober.turn()
        assert (await ask(worker)).score == 3
        assert bypassed() == 0
        await worker.close()

    assert run(check) == []


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (EVERYBODY, "lists everybody"),
        ({**GOOD, CLEAN: ["127.255.255.254"]}, "error code 127.255.255.254"),
        ({**HIT, LISTED: ["127.255.255.252"]}, "error code 127.255.255.252"),
        ({**GOOD, CLEAN: ["203.0.113.9"]}, "no list any more"),
    ],
)
def test_a_list_that_lists_everybody_or_does_not_serve_us_is_bypassed_at_once(answers, words):
    async def check() -> None:
        rig = Rig(ChangingDns(answers))
        worker = await rig.worker()
        assert (await ask(worker)).score == 3, "believed until it is probed"
        await worker.prober.turn()
        rig.dns.asked.clear()
        assert await ask(worker) == Dnsbl(0, (), ("bl.test",))
        assert rig.dns.asked == [], "a list that is bypassed is not asked"
        assert bypassed() == 1
        await worker.close()
        assert bypassed() == 0

    (event,) = run(check)
    assert (event["event"], event["log_level"], event["list"]) == ("dnsbl.bypassed", "warning", "bl.test")
    assert words in event["reason"]


def test_127_0_0_1_as_the_answer_for_127_0_0_1_is_no_listing():
    async def check() -> None:
        worker = await Rig(ChangingDns({**GOOD, CLEAN: ["127.0.0.1"]})).worker()
        await worker.prober.turn()
        assert (await ask(worker)).score == 3
        await worker.close()

    assert run(check) == []


@pytest.mark.parametrize(("answers", "fails"), [(HIT, ()), (GOOD, (LISTED,)), (GOOD, (CLEAN,))])
def test_a_list_without_its_test_entry_or_an_answer_is_bypassed_the_second_time_in_a_row(answers, fails):
    async def check() -> None:
        rig = Rig(ChangingDns(answers, fails))
        worker = await rig.worker()
        await worker.prober.turn()
        assert (await ask(worker)).score == 3
        await worker.prober.turn()
        assert rig.dns.probes == 1, "not before its time"
        rig.clock.advance(60)
        await worker.prober.turn()
        assert (await ask(worker)).failed == ("bl.test",)
        await worker.close()

    (event,) = run(check)
    assert event["event"] == "dnsbl.bypassed"


def test_one_failure_between_two_good_probes_is_forgotten():
    async def check() -> None:
        rig = Rig(ChangingDns(GOOD))
        worker = await rig.worker()
        for fails, wait in (((LISTED,), 60), ((), 600), ((LISTED,), 60), ((), 600)):
            rig.dns.becomes(GOOD, fails)
            await worker.prober.turn()
            assert (await ask(worker)).score == 3
            rig.clock.advance(wait)
        await worker.close()

    assert run(check) == []


def test_a_list_comes_back_by_itself_with_the_first_probe_that_it_passes():
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        worker = await rig.worker()
        await worker.prober.turn()
        rig.dns.becomes(GOOD)
        await worker.prober.turn()
        assert (await ask(worker)).failed == ("bl.test",)
        rig.clock.advance(60)
        await worker.prober.turn()
        assert (await ask(worker)).score == 3
        assert bypassed() == 0
        rig.clock.advance(599)
        await worker.prober.turn()
        assert rig.dns.probes == 2, "and is probed as seldom as before"
        rig.clock.advance(1)
        await worker.prober.turn()
        assert rig.dns.probes == 3
        await worker.close()

    assert [event["event"] for event in run(check)] == ["dnsbl.bypassed", "dnsbl.restored"]


def test_workers_share_what_one_of_them_found_out():
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        workers = [await rig.worker() for _ in range(4)]
        await asyncio.gather(*(worker.prober.turn() for worker in workers))
        for worker in workers:
            await worker.prober.turn()
        assert rig.dns.probes == 1
        assert [(await ask(worker)).failed for worker in workers] == [("bl.test",)] * 4
        for worker in workers:
            await worker.close()

    assert [event["event"] for event in run(check)] == ["dnsbl.bypassed"], "and only one says so"


def test_a_restart_forgets_nothing():
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        worker = await rig.worker()
        await worker.prober.turn()
        await worker.close()
        worker = await rig.worker()
        assert (await ask(worker)).failed == ("bl.test",)
        assert bypassed() == 1
        await worker.close()

    assert [event["event"] for event in run(check)] == ["dnsbl.bypassed", "dnsbl.bypassed"]


def test_without_the_state_store_each_worker_probes_for_itself():
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        rig.state.broken = True
        worker = await rig.worker()
        await worker.prober.turn()
        assert (await ask(worker)).failed == ("bl.test",)
        await worker.close()

    assert [event["event"] for event in run(check)] == ["dnsbl.bypassed"]


@pytest.mark.parametrize(
    "garbage",
    [b"", b"[]", b"{}", b"null", b"\xff", b'["x", 1e999, true, 0]', b'["x", 1, true, "x"]', b'["", 0, false, NaN]'],
)
def test_garbage_in_the_state_is_probed_over(garbage):
    assert Health.load(garbage) is None

    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        worker = await rig.worker()
        await worker.prober.turn()
        (key,) = (key for key in rig.state._entries if key.startswith("dnsbl:probe:"))
        assert "bl.test" not in key
        await rig.state.put(key, garbage or b"[", 1000)
        again = await rig.worker()
        await again.prober.turn()
        assert (await ask(again)).failed == ("bl.test",)
        await worker.close()
        await again.close()

    run(check)


def test_a_pipeline_that_is_reloaded_away_does_not_hide_what_the_next_one_bypasses():
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        old = await rig.worker()
        await old.prober.turn()
        new = await rig.worker()
        await old.close()
        assert bypassed() == 1
        await new.close()
        assert bypassed() == 0

    run(check)


def test_a_clock_that_is_ahead_elsewhere_does_not_keep_a_list_from_being_probed():
    async def check() -> None:
        rig = Rig(ChangingDns(GOOD))
        worker = await rig.worker()
        await worker.prober.turn()
        (key,) = rig.state._entries
        await rig.state.put(key, Health("", 0, False, rig.clock.now() + 1e6).dump(), 1e7)
        again = await rig.worker()
        rig.clock.advance(600)
        await rig.state.delete(key)
        await again.prober.turn()
        assert rig.dns.probes == 2
        await worker.close()
        await again.close()

    run(check)


def test_a_bug_in_a_probe_is_logged_without_its_text_and_the_others_go_on():
    class Broken(ChangingDns):
        async def lookup(self, name, rdtype):
            if "bad" in name:
                raise RuntimeError(f"cannot ask for {name}")
            return await super().lookup(name, rdtype)

    async def check() -> None:
        rig = Rig(Broken(EVERYBODY), {"zones": {"bl.test": 3, "bad0123456789abcdef.bl2.test": 3}})
        worker = await rig.worker()
        await worker.prober.turn()
        assert worker.prober.bypasses(worker._zones[0], 4)
        assert not worker.prober.bypasses(worker._zones[1], 4)
        await worker.close()

    logs = run(check)
    assert sorted(event["event"] for event in logs) == ["dnsbl.bypassed", "dnsbl.probe_failed"]
    assert {"event": "dnsbl.probe_failed", "list": "bl2.test", "error": "RuntimeError", "log_level": "error"} in logs
    assert "bad0123456789abcdef" not in str(logs)


@pytest.mark.parametrize("options", [{"probe": 0}, {"zones": {"bl.test": {"weight": 3, "probe": False}}}])
def test_who_is_not_to_be_probed_is_not(options):
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY), options)
        worker = await rig.worker()
        await worker.prober.turn()
        assert rig.dns.asked == []
        assert (await ask(worker)).score == 3
        await worker.close()

    assert run(check) == []


def test_a_list_that_knows_ipv6_is_probed_for_it_and_bypassed_for_it_alone():
    async def check() -> None:
        zones = {"bl.test": {"weight": 3, "ipv6": True}}
        rig = Rig(ChangingDns({**GOOD, LISTED6: ["127.0.0.2"], CLEAN6: ["127.0.0.2"]}), {"zones": zones})
        worker = await rig.worker()
        await worker.prober.turn()
        assert {name for name, _ in rig.dns.asked} == {LISTED, CLEAN, LISTED6, CLEAN6}
        assert (await ask(worker)).score == 3
        assert (await ask(worker, "2001:db8::1")).failed == ("bl.test",)
        assert (bypassed(), bypassed("ipv6")) == (0, 1)
        await worker.close()

    (event,) = run(check)
    assert event["family"] == "ipv6"


def test_a_list_that_knows_no_ipv6_is_not_asked_for_it():
    async def check() -> None:
        rig = Rig(ChangingDns(GOOD), {"zones": {"bl.test": {"weight": 3, "ipv6": False}}})
        worker = await rig.worker()
        assert await ask(worker, "2001:db8::1") == Dnsbl(0)
        assert rig.dns.asked == []
        await worker.close()

    run(check)


def test_the_background_task_probes_by_itself_and_ends_with_the_plugin(monkeypatch):
    async def check() -> None:
        rig = Rig(ChangingDns(EVERYBODY))
        turns = asyncio.Event()
        pauses: list[float] = []
        pause = asyncio.sleep

        async def at_once(seconds: float) -> None:
            pauses.append(seconds)
            await pause(0)

        turn = Prober.turn

        async def counted(self: Prober) -> None:
            await turn(self)
            turns.set()

        monkeypatch.setattr("plugins.dnsbl.probe.asyncio.sleep", at_once)
        monkeypatch.setattr(Prober, "turn", counted)
        before = asyncio.all_tasks()
        worker = await rig.worker()
        await turns.wait()
        assert (await ask(worker)).failed == ("bl.test",)
        assert set(pauses) == {5.0}
        await worker.close()
        assert asyncio.all_tasks() == before

    run(check)


def test_with_a_real_nameserver_a_silent_list_is_bypassed_and_costs_no_time_any_more():
    async def check() -> None:
        clock = ManualClock()
        faults = {f"{name}.": Fault.SILENT for name in (LISTED, CLEAN, "7.2.0.192.bl.test")}
        async with DnsServer([], faults=faults) as server:
            dns = Resolver(DnsOptions((server.address,), 0.1), clock)
            rig = Rig(dns)
            rig.clock = clock
            rig.state = FakeState(clock)
            worker = await rig.worker()
            await worker.prober.turn()
            clock.advance(60)
            await worker.prober.turn()
            server.asked.clear()
            assert await worker.listed(CLIENT) == Dnsbl(0, (), ("bl.test",))
            assert server.asked == []
            await worker.close()
            await dns.close()

    (event,) = run(check)
    assert event["reason"] == "it does not answer (timeout)"
