"""Daily TLS reports: to whom they go, when, and only once."""

from __future__ import annotations

import asyncio
import email
import gzip
import json
from typing import Any

import pytest

from gateway.app.tlsreports import LEASE, WAIT, ReportOptions, TlsReports
from gateway.sdk.services import StateError
from gateway.sdk.testing import FakeDns, FakeOutbox, FakeState, ManualClock
from gateway.transport.rule import Applied, Failure
from gateway.transport.tlsresults import DAY, Results, Session


class Scene:
    """A worker whose yesterday saw two sessions with example.net and one with a domain that wants no report."""

    def __init__(self, record: str = "v=TLSRPTv1; rua=mailto:r@example.net") -> None:
        self.clock = ManualClock()
        self.state = FakeState(self.clock)
        self.outbox = FakeOutbox()
        self.dns = FakeDns(txt={"_smtp._tls.example.net": [record]})
        self.posted: list[tuple[str, bytes]] = []
        self.problem = ""
        options = ReportOptions("tls@example.org", "Example", "postmaster@example.org")
        self.reports = TlsReports(options, self, self.state, self.clock, self.outbox, self.post)  # type: ignore[arg-type]

    async def lookup(self, name: str, rdtype: str) -> Any:
        return await self.dns.lookup(name, rdtype)

    async def post(self, url: str, packed: bytes) -> str:
        self.posted.append((url, packed))
        return self.problem

    async def a_day(self, after: float = 1.0) -> Scene:
        """It passes, and the time at which reports are made, by so many seconds."""
        results = Results(self.state, self.clock)
        results.count(Session("example.net", Applied("tlsa", ("3 1 1 ab",))))
        results.count(Session("example.net", Applied(), Failure.NO_STARTTLS, host="mx.example.net"))
        results.count(Session("example.com", Applied()))
        await results.close()
        self.clock.advance(DAY - self.clock.now() % DAY + WAIT + after)
        return self

    @property
    def report(self) -> dict[str, Any]:
        ((_, _, content),) = self.outbox.sent
        attachment = email.message_from_bytes(content).get_payload()[1]
        data: dict[str, Any] = json.loads(gzip.decompress(attachment.get_payload(decode=True)))  # type: ignore[union-attr]
        return data


def test_a_domain_that_asks_for_it_gets_its_report_once():
    async def main() -> None:
        scene = await Scene().a_day()
        assert await scene.reports.report() == 1
        ((sender, recipients, _),) = scene.outbox.sent
        assert (str(sender), [str(r) for r in recipients]) == ("tls@example.org", ["r@example.net"])
        by_kind = {policy["policy"]["policy-type"]: policy["summary"] for policy in scene.report["policies"]}
        assert by_kind == {
            "tlsa": {"total-successful-session-count": 1, "total-failure-session-count": 0},
            "no-policy-found": {"total-successful-session-count": 0, "total-failure-session-count": 1},
        }
        scene.clock.advance(LEASE + 1)
        assert await scene.reports.report() == 0

    asyncio.run(main())


def test_while_only_a_stand_in_answers_for_the_shared_store_there_is_no_report(monkeypatch):
    async def main() -> None:
        away = FakeState(ManualClock())
        away.broken = True
        with monkeypatch.context() as patched:
            patched.setattr(FakeState, "exact", property(lambda self: away))
            scene = await Scene().a_day()
            with pytest.raises(StateError):
                await scene.reports.report()
        assert scene.outbox.sent == []

    asyncio.run(main())


def test_a_day_is_reported_when_it_is_over_and_all_workers_have_stored_it():
    async def main() -> None:
        scene = await Scene().a_day(after=-1.0)
        assert await scene.reports.report() == 0 and scene.outbox.sent == []

    asyncio.run(main())


def test_two_workers_do_not_both_report():
    async def main() -> None:
        scene = await Scene().a_day()
        assert await asyncio.gather(scene.reports.report(), scene.reports.report()) in ([1, 0], [0, 1])
        assert len(scene.outbox.sent) == 1

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["outbox", "dns", "https"])
def test_a_report_that_could_not_be_sent_is_tried_again(trouble: str):
    async def main() -> None:
        scene = Scene("v=TLSRPTv1; rua=https://r.example/") if trouble == "https" else Scene()
        await scene.a_day()
        good, scene.outbox.broken, scene.problem = scene.dns, trouble == "outbox", "HTTP 500"
        if trouble == "dns":
            scene.dns = FakeDns(fails=["_smtp._tls.example.net"])
        assert await scene.reports.report() == 0
        scene.dns, scene.outbox.broken, scene.problem = good, False, ""
        scene.clock.advance(LEASE + 1)
        assert await scene.reports.report() == 1

    asyncio.run(main())


def test_a_report_goes_by_https_first_and_by_mail_when_that_fails():
    async def main() -> None:
        record = "v=TLSRPTv1; rua=mailto:r@example.net,https://r.example/v1"
        scene = await Scene(record).a_day()
        assert await scene.reports.report() == 1
        ((url, packed),) = scene.posted
        assert url == "https://r.example/v1" and scene.outbox.sent == []
        assert json.loads(gzip.decompress(packed))["organization-name"] == "Example"
        scene = await Scene(record).a_day()
        scene.problem = "HTTP 500"
        assert await scene.reports.report() == 1 and len(scene.outbox.sent) == 1

    asyncio.run(main())


@pytest.mark.parametrize("end", [StateError("gone"), asyncio.CancelledError()])
def test_a_report_that_was_not_even_made_is_left_to_the_next_worker(monkeypatch, end: BaseException):
    """As when the store goes away meanwhile, or a reload or the end of the worker calls it off."""

    async def main() -> None:
        scene = await Scene().a_day()
        with monkeypatch.context() as patched:

            async def policies(self: TlsReports, rows: Any) -> Any:
                raise end

            patched.setattr(TlsReports, "_policies", policies)
            with pytest.raises(type(end)):
                await scene.reports.report()
        scene.clock.advance(LEASE + 1)
        assert await scene.reports.report() == 1 and len(scene.outbox.sent) == 1

    asyncio.run(main())
