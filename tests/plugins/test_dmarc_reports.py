"""Aggregate reports: what is counted, what the report says of it, who gets it, and that it goes out once."""

from __future__ import annotations

import asyncio
import email
import email.policy
import gzip
from collections.abc import Callable, Coroutine
from typing import Any
from xml.etree import ElementTree

import pytest

from gateway.sdk import (
    Arc,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Ending,
    Finding,
    Outcome,
    Spf,
    SpfResult,
    Stage,
    StateError,
)
from gateway.sdk.testing import Bench, FakeDns, FakeState, ManualClock, make_session, make_transaction
from plugins.dmarc import DmarcPlugin
from plugins.dmarc.options import ReportOptions, Rules
from plugins.dmarc.record import parse_record
from plugins.dmarc.report import NAMESPACE, Report, render_xml
from plugins.dmarc.tally import OVERFLOW, Period, Row
from tests.support.xmlschema import schema_errors

DAY = 86_400
NOON = 11_574 * DAY + 43_200.0
RECORD = "v=DMARC1; p=reject; rua=mailto:d@example.com"
NAMES = {"r": NAMESPACE}


def options(**more: Any) -> dict[str, Any]:
    return {"reports": {"org_name": "Example & Co", "email": "reports@mx.example.org", **more}}


def bench(dns: FakeDns | None = None) -> Bench:
    return Bench(dns=dns or FakeDns(txt={"_dmarc.example.com": [RECORD]}), clock=ManualClock(NOON))


def dmarc(result: AuthResult = AuthResult.FAIL, **more: Any) -> Dmarc:
    values: dict[str, Any] = {
        "organizational": "example.com",
        "record_domain": "example.com",
        "policy": DmarcPolicy.REJECT,
        "published": RECORD,
    }
    return Dmarc(result, "example.com", **{**values, **more})


SPF = Spf(SpfResult.SOFTFAIL, "bounce.test", SpfResult.NONE, "client.example")


def end(
    bench: Bench,
    found: Dmarc,
    outcome: Outcome = Outcome.REJECTED,
    *,
    client: str = "192.0.2.7",
    sender: str = "x@bounce.test",
    recipients: tuple[str, ...] = ("anna@example.org",),
    stage: Stage = Stage.MESSAGE,
    trusted: bool = False,
    findings: tuple[Finding, ...] = (SPF,),
    with_options: dict[str, Any] | None = None,
) -> None:
    session = make_session(client, trusted=trusted)
    transaction = make_transaction(session, sender=sender, recipients=recipients)
    bench.end(
        "dmarc",
        with_options or options(),
        outcome=outcome,
        stage=stage,
        session=session,
        transaction=transaction,
        findings=[found, *findings],
    )


def report(bench: Bench, with_options: dict[str, Any] | None = None, *, at: float | None = None) -> int:
    """Let one worker report."""

    async def run(plugin: DmarcPlugin) -> int:
        return await plugin.report(at or bench.clock.now())

    return with_plugin(bench, with_options or options(), run)


def with_plugin(bench: Bench, given: dict[str, Any], work: Callable[[DmarcPlugin], Coroutine[Any, Any, int]]) -> int:
    async def run() -> int:
        plugin = DmarcPlugin(DmarcPlugin.Options.model_validate(given), bench.services)
        await plugin.start()
        try:
            return await work(plugin)
        finally:
            await plugin.close()

    return asyncio.run(run())


def sent(bench: Bench) -> list[tuple[tuple[str, ...], bytes]]:
    outbox: Any = bench.outbox
    return [(tuple(str(r) for r in recipients), content) for _, recipients, content in outbox.sent]


def xml_of(content: bytes) -> bytes:
    message = email.message_from_bytes(content, policy=email.policy.default)
    (attachment,) = message.iter_attachments()
    assert attachment.get_content_type() == "application/gzip"
    return gzip.decompress(attachment.get_content())


def only_report(bench: Bench, with_options: dict[str, Any] | None = None) -> ElementTree.Element:
    """The next day's report, valid by the schema."""
    bench.clock.advance(DAY)
    assert report(bench, with_options) == 1
    ((_, content),) = sent(bench)
    xml = xml_of(content)
    assert schema_errors(xml) == ""
    return ElementTree.fromstring(xml)


def texts(root: ElementTree.Element, path: str) -> list[str]:
    found = root.findall("/".join(f"r:{part}" for part in path.split("/")), NAMES)
    return [element.text or "" for element in found]


def rows(root: ElementTree.Element) -> list[tuple[str, ...]]:
    """Client, count, disposition, dkim, spf and reason of each."""
    out = []
    for record in root.findall("r:record", NAMES):
        line = tuple(
            (record.findtext(f"r:row/{path}", "", NAMES))
            for path in (
                "r:source_ip",
                "r:count",
                "r:policy_evaluated/r:disposition",
                "r:policy_evaluated/r:dkim",
                "r:policy_evaluated/r:spf",
                "r:policy_evaluated/r:reason/r:type",
            )
        )
        out.append(line)
    return sorted(out)


# --- what is counted ---


def test_a_days_mail_becomes_one_report():
    here = bench()
    for _ in range(3):
        end(here, dmarc())
    end(here, dmarc(AuthResult.PASS, spf=True), Outcome.ACCEPTED, client="2001:db8::7", sender="")
    root = only_report(here)
    assert rows(root) == [
        ("192.0.2.7", "3", "reject", "fail", "fail", ""),
        ("2001:db8::7", "1", "pass", "fail", "pass", ""),
    ]
    assert texts(root, "report_metadata/org_name") == ["Example & Co"]
    assert texts(root, "report_metadata/email") == ["reports@mx.example.org"]
    assert texts(root, "report_metadata/date_range/begin") == [str(11_574 * DAY)]
    assert texts(root, "report_metadata/date_range/end") == [str(11_575 * DAY - 1)]
    assert texts(root, "policy_published/domain") == ["example.com"]
    assert texts(root, "policy_published/discovery_method") == ["treewalk"]
    assert texts(root, "policy_published/np") == ["reject"]
    assert texts(root, "record/identifiers/envelope_from") == ["bounce.test", ""]
    assert texts(root, "record/auth_results/spf/result") == ["softfail", "softfail"]


DISPOSITIONS = [
    # finding, options, outcome, disposition, reason
    (dmarc(), {}, Outcome.REJECTED, "reject", ""),
    (dmarc(), {}, Outcome.DISCARDED, "reject", ""),
    (dmarc(), {}, Outcome.ACCEPTED, "none", "local_policy"),
    (dmarc(), {}, Outcome.QUARANTINED, "quarantine", "local_policy"),
    (dmarc(), {"reject": "quarantine"}, Outcome.QUARANTINED, "quarantine", "local_policy"),
    (dmarc(), {"reject": "none"}, Outcome.REJECTED, "none", "local_policy"),
    (dmarc(policy=DmarcPolicy.QUARANTINE), {}, Outcome.QUARANTINED, "quarantine", ""),
    (dmarc(policy=DmarcPolicy.QUARANTINE), {}, Outcome.REJECTED, "quarantine", ""),
    (dmarc(policy=DmarcPolicy.QUARANTINE, testing=True), {}, Outcome.QUARANTINED, "quarantine", "policy_test_mode"),
    (dmarc(policy=DmarcPolicy.NONE, testing=True), {}, Outcome.ACCEPTED, "none", "policy_test_mode"),
    (dmarc(policy=DmarcPolicy.NONE, testing=True), {"rules": "rfc7489"}, Outcome.ACCEPTED, "none", "other"),
    (dmarc(policy=DmarcPolicy.NONE), {}, Outcome.ACCEPTED, "none", ""),
    (dmarc(AuthResult.PASS), {}, Outcome.ACCEPTED, "pass", ""),
    (dmarc(AuthResult.PASS), {}, Outcome.REJECTED, "pass", ""),
    (dmarc(AuthResult.PASS, published=RECORD.replace("reject", "none")), {}, Outcome.ACCEPTED, "none", ""),
    (dmarc(AuthResult.TEMPERROR), {}, Outcome.ACCEPTED, "none", "other"),
    (dmarc(), {"exempt_networks": ["192.0.2.0/24"]}, Outcome.ACCEPTED, "none", "trusted_forwarder"),
    (dmarc(), {"exempt_domains": ["example.com"]}, Outcome.ACCEPTED, "none", "local_policy"),
]


@pytest.mark.parametrize(("found", "more", "outcome", "disposition", "reason"), DISPOSITIONS)
def test_what_was_done_and_why_stands_in_the_row(found, more, outcome, disposition, reason):
    here, given = bench(), {**options(), **more}
    end(here, found, outcome, with_options=given)
    ((_, count, said, _, _, why),) = rows(only_report(here, given))
    assert (count, said, why) == ("1", disposition, reason)


def test_a_mailing_list_that_a_trusted_chain_vouches_for_is_named_as_the_reason():
    here = bench()
    arc = Arc(AuthResult.PASS, ("lists.test",), True, (("dmarc", "pass", "example.com"),))
    end(here, dmarc(list_id="<l.lists.test>"), Outcome.ACCEPTED, findings=(SPF, arc))
    root = only_report(here)
    assert texts(root, "record/row/policy_evaluated/reason/type") == ["mailing_list"]
    assert texts(root, "record/row/policy_evaluated/reason/comment") == [
        "ARC sealed by lists.test: dmarc=pass for example.com"
    ]


@pytest.mark.parametrize(
    "case",
    [
        {"outcome": Outcome.DEFERRED},
        {"outcome": Outcome.ABORTED},
        {"outcome": Outcome.DISCONNECTED},
        {"stage": Stage.RCPT},
        {"trusted": True},
        {"recipients": ("reports@mx.example.org",)},
        {"recipients": ("Reports@MX.example.org", "other@example.org")},
        {"found": dmarc(AuthResult.NONE)},
        {"found": dmarc(published="v=DMARC1; p=reject")},
        {"found": dmarc(published="v=DMARC1; p=reject; rua=https://example.com/")},
    ],
)
def test_what_is_not_counted(case):
    here, given = bench(), options(exclude=["Other@example.org"])
    end(here, case.pop("found", dmarc()), with_options=given, **case)
    here.clock.advance(DAY)
    assert report(here, given) == 0
    assert sent(here) == []


def test_nothing_is_counted_unless_reports_are_wanted():
    for given in ({"reports": None}, options(enabled=False)):
        here = bench()
        end(here, dmarc(), with_options=given)
        here.clock.advance(DAY)
        assert report(here, given) == 0
        assert report(here) == 0


def test_signatures_come_in_the_order_of_their_worth():
    here = bench()
    signatures = Dkim(
        (
            DkimSignature(AuthResult.FAIL, "example.com", "bad"),
            DkimSignature(AuthResult.PASS, "other.test", "s3"),
            DkimSignature(AuthResult.PASS, "a.example.com", "s2"),
            DkimSignature(AuthResult.PASS, "example.com", "s1"),
            *(DkimSignature(AuthResult.FAIL, f"d{i}.test", "x") for i in range(30)),
        )
    )
    found = dmarc(AuthResult.PASS, dkim=True, aligned=("example.com", "a.example.com"))
    end(here, found, Outcome.ACCEPTED, findings=(SPF, signatures))
    root = only_report(here)
    assert texts(root, "record/auth_results/dkim/selector")[:4] == ["s1", "s2", "s3", "bad"]
    assert len(texts(root, "record/auth_results/dkim")) == 10


def test_a_row_that_would_not_fit_loses_its_last_signatures():
    long = tuple((f"{'d' * 240}{i}.test", "\U0001f4e7" * 63, "fail") for i in range(10))
    row = Row("192.0.2.1", "none", False, False, "a" * 253, "b" * 253, "", "", "c" * 253, "none", long)
    member = row.to_member()
    assert len(member) <= 2_000
    again = Row.from_member(member)
    assert again.header_from == row.header_from
    assert 0 < len(again.signatures) < 10


def test_too_many_different_rows_are_counted_and_not_told_apart():
    here, given = bench(), options(max_rows=5)
    for i in range(12):
        end(here, dmarc(), client=f"192.0.2.{i}", with_options=given)
    end(here, dmarc(), client="192.0.2.0", with_options=given)
    root = only_report(here, given)
    assert len(rows(root)) == 5
    assert sum(int(row[1]) for row in rows(root)) == 6
    assert texts(root, "report_metadata/error") == ["7 messages more are not shown, there were too many different ones"]


def test_one_worker_that_is_full_still_counts_the_rows_it_knows():
    here, given = bench(), options(max_rows=2)

    async def run(plugin: DmarcPlugin) -> int:
        for client in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.3", "192.0.2.1"):
            session = make_session(client)
            transaction = make_transaction(session, recipients=["anna@example.org"])
            await plugin.ended(Ending(Outcome.REJECTED, Stage.MESSAGE, session, transaction, findings=(dmarc(), SPF)))
        return 0

    with_plugin(here, given, run)
    tally = asyncio.run(here.state.tally(Period.of(NOON, DAY).key("rows", "example.com")))
    assert tally.pop(OVERFLOW) == 2
    assert sorted(n for n in tally.values() if n > 0) == [1, 2]


def test_only_so_many_domains_are_reported_on():
    domains = [f"d{i}.example" for i in range(6)]
    here = bench(FakeDns(txt={f"_dmarc.{d}": [RECORD] for d in domains}))
    given = options(max_domains=3)
    for domain in domains:
        text = f"v=DMARC1; p=none; rua=mailto:d@{domain}"
        end(here, dmarc(record_domain=domain, published=text), with_options=given)
    here.clock.advance(DAY)
    assert report(here, given) == 3
    assert [recipients for recipients, _ in sent(here)] == [(f"d@d{i}.example",) for i in range(3)]


def test_the_last_record_seen_is_the_one_that_is_reported():
    here = bench()
    end(here, dmarc())
    end(here, dmarc(published="v=DMARC1; p=none; sp=reject; adkim=s; t=y; rua=mailto:new@example.com"))
    root = only_report(here)
    assert [texts(root, f"policy_published/{name}") for name in ("p", "sp", "adkim", "aspf", "testing")] == [
        ["none"],
        ["reject"],
        ["s"],
        ["r"],
        ["y"],
    ]
    assert sent(here)[0][0] == ("new@example.com",)


# --- when, and once ---


def test_a_report_goes_out_once_whoever_looks():
    here = bench()
    end(here, dmarc())
    assert report(here) == 0, "the day is not over"
    here.clock.advance(43_200 + 60)
    assert report(here) == 0, "what ends late is waited for"
    here.clock.advance(600)
    assert [report(here) for _ in range(4)] == [1, 0, 0, 0]
    here.clock.advance(3_600)
    assert report(here) == 0
    here.clock.advance(DAY)
    assert report(here) == 0


def test_two_workers_at_once_send_it_once():
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)

    async def both(one: DmarcPlugin) -> int:
        other = DmarcPlugin(one.options, here.services)
        await other.start()
        try:
            return sum(await asyncio.gather(*(p.report(here.clock.now()) for p in (one, other, one, other))))
        finally:
            await other.close()

    assert with_plugin(here, options(), both) == 1


def test_what_cannot_be_queued_is_tried_again():
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    outbox: Any = here.outbox
    outbox.broken = True
    assert report(here) == 0
    outbox.broken = False
    assert report(here) == 0, "somebody else may be at it"
    here.clock.advance(1_000)
    assert report(here) == 1


def test_a_worker_that_died_over_it_is_replaced_and_nothing_is_sent_twice():
    domains = ["a.example", "b.example", "c.example"]
    here = bench(FakeDns(txt={f"_dmarc.{d}": [RECORD] for d in domains}))
    for domain in domains:
        end(here, dmarc(record_domain=domain, published=f"v=DMARC1; p=none; rua=mailto:d@{domain}"))
    here.clock.advance(DAY)
    outbox: Any = here.outbox
    true_send, calls = outbox.send, []

    async def dying(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) == 2:
            raise asyncio.CancelledError
        return str(await true_send(*arguments))

    outbox.send = dying
    with pytest.raises(asyncio.CancelledError):
        report(here)
    outbox.send = true_send
    here.clock.advance(1_000)
    assert report(here) == 1
    assert sorted(r for recipients, _ in sent(here) for r in recipients) == ["d@a.example", "d@c.example"]


def test_a_worker_that_is_stopped_while_it_still_asks_the_dns_leaves_the_report_to_the_next_one():
    """As by a reload or a restart."""

    class Stopped(FakeDns):
        async def lookup(self, name: str, rdtype: str) -> Any:
            raise asyncio.CancelledError

    here = bench(Stopped())
    end(here, dmarc(published="v=DMARC1; p=reject; rua=mailto:d@other.test"))
    here.clock.advance(DAY)
    with pytest.raises(asyncio.CancelledError):
        report(here)
    dns = FakeDns(txt={"example.com._report._dmarc.other.test": ["v=DMARC1"]})
    next_one = Bench(dns=dns, clock=here.clock, state=here.state, outbox=here.outbox)
    here.clock.advance(1_000)
    assert report(next_one) == 1


def test_a_store_that_breaks_over_a_report_does_not_lose_it(monkeypatch):
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    state: Any = here.state

    async def broken(key: str, limit: int = 10_000) -> dict[str, int]:
        if ":rows:" in key:
            raise StateError("away")
        return await tally(key, limit)

    tally = state.tally
    monkeypatch.setattr(state, "tally", broken)
    with pytest.raises(StateError):
        report(here)
    monkeypatch.undo()
    here.clock.advance(1_000)
    assert report(here) == 1


def test_a_broken_store_breaks_nothing_but_the_report():
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    state: Any = here.state
    state.broken = True
    with pytest.raises(StateError):
        report(here)
    state.broken = False
    assert report(here) == 1


def test_while_only_a_stand_in_answers_for_the_shared_store_there_is_no_report(monkeypatch):
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    away = FakeState(here.clock)
    away.broken = True
    monkeypatch.setattr(FakeState, "exact", property(lambda self: away))
    with pytest.raises(StateError):
        report(here)
    monkeypatch.undo()
    assert report(here) == 1, "nobody has claimed it meanwhile"


def test_the_task_reports_by_itself_and_ends_with_the_plugin(monkeypatch):
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    naps = []
    true_sleep = asyncio.sleep

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        await true_sleep(0)

    async def run(plugin: DmarcPlugin) -> int:
        monkeypatch.setattr("plugins.dmarc.plugin.asyncio.sleep", nap)
        while len(naps) < 5:
            await true_sleep(0)
        return len(sent(here))

    assert with_plugin(here, options(), run) == 1
    assert {nap for nap in naps if nap} == {600.0}
    assert asyncio.run(_no_task_is_left()) == []


async def _no_task_is_left() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("dmarc")]


# --- to whom ---

DESTINATIONS = [
    # rua, DNS, who gets it
    ("mailto:d@example.com", {}, ["d@example.com"]),
    ("mailto:d@sub.example.com", {}, ["d@sub.example.com"]),
    ("mailto:d@other.test", {}, []),
    ("mailto:d@other.test", {"example.com._report._dmarc.other.test": ["v=DMARC1"]}, ["d@other.test"]),
    ("mailto:d@other.test", {"example.com._report._dmarc.other.test": ["v=DMARC1;"]}, ["d@other.test"]),
    ("mailto:d@other.test", {"example.com._report._dmarc.other.test": ["x", "v=DMARC1"]}, ["d@other.test"]),
    ("mailto:d@other.test", {"example.com._report._dmarc.other.test": ["v=spf1 -all"]}, []),
    (
        "mailto:d@other.test",
        {"example.com._report._dmarc.other.test": ["v=DMARC1; rua=mailto:e@other.test"]},
        ["e@other.test"],
    ),
    ("mailto:d@other.test", {"example.com._report._dmarc.other.test": ["v=DMARC1; rua=mailto:e@victim.test"]}, []),
    ("mailto:d@" + "x" * 60 + "." + "y" * 60 + "." + "z" * 60 + "." + "w" * 40 + ".test", {}, []),
    ("mailto:a@example.com,https://x.test,mailto:b@example.com", {}, ["a@example.com", "b@example.com"]),
    (
        ",".join(f"mailto:d{i}@example.com" for i in range(9)),
        {},
        ["d0@example.com", "d1@example.com", "d2@example.com", "d3@example.com"],
    ),
    ("mailto:small@example.com!10", {}, ["small@example.com"]),
]


@pytest.mark.parametrize(("rua", "records", "who"), DESTINATIONS)
def test_who_gets_a_report(rua, records, who):
    here = bench(FakeDns(txt={"_dmarc.example.com": [RECORD], **records}))
    end(here, dmarc(published=f"v=DMARC1; p=reject; rua={rua}"))
    here.clock.advance(DAY)
    assert report(here) == bool(who)
    assert [list(recipients) for recipients, _ in sent(here)] == ([who] if who else [])


def test_size_limits_are_obeyed_by_the_old_rules():
    here, given = bench(), {**options(), "rules": "rfc7489"}
    found = dmarc(published="v=DMARC1; p=reject; rua=mailto:small@example.com!10,mailto:big@example.com!1m")
    end(here, found, with_options=given)
    root = only_report(here, given)
    assert sent(here)[0][0] == ("big@example.com",)
    assert texts(root, "policy_published/discovery_method") == ["psl"]
    assert texts(root, "policy_published/np") == []


def test_dns_trouble_puts_a_report_off():
    here = bench(FakeDns(fails=["example.com._report._dmarc.other.test"]))
    end(here, dmarc(published="v=DMARC1; p=reject; rua=mailto:d@other.test"))
    here.clock.advance(DAY)
    assert report(here) == 0
    better = Bench(
        dns=FakeDns(txt={"example.com._report._dmarc.other.test": ["v=DMARC1"]}),
        clock=here.clock,
        state=here.state,
        outbox=here.outbox,
    )
    here.clock.advance(1_000)
    assert report(better) == 1


# --- the mail and the XML ---


def test_the_mail_is_as_the_standard_wants_it():
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    report(here)
    ((_, content),) = sent(here)
    outbox: Any = here.outbox
    assert str(outbox.sent[0][0]) == "reports@mx.example.org"
    assert b"\n" not in content.replace(b"\r\n", b"")
    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 998
    message = email.message_from_bytes(content, policy=email.policy.default)
    (attachment,) = message.iter_attachments()
    begin, last = 11_574 * DAY, 11_575 * DAY - 1
    id = message["Message-ID"].split("@")[0].removeprefix("<")
    assert id.isalnum()
    assert attachment.get_filename() == f"mx.example.org!example.com!{begin}!{last}!{id}.xml.gz"
    assert " ".join(message["Subject"].split()) == (
        f"Report Domain: example.com Submitter: mx.example.org Report-ID: <{id}>"
    )
    assert (message["From"], message["To"]) == ("reports@mx.example.org", "d@example.com")
    assert message["Auto-Submitted"] == "auto-generated"
    assert texts(ElementTree.fromstring(xml_of(content)), "report_metadata/report_id") == [id]


def test_whatever_strangers_chose_the_xml_is_valid():
    nasty = '<&>"]]>\x00\x01\x0b\ud800\ufffe' + "x" * 5_000
    row = Row(
        "2001:db8::1", "none", False, True, nasty, nasty, "other", nasty, nasty, "none", ((nasty, nasty, "pass"),)
    )
    record = parse_record(b"v=DMARC1; p=none; adkim=q; fo=1:d; rua=mailto:x")
    assert record is not None
    made = Report("example.com", "mx.example.org", Period(0, DAY), record, Rules.RFC9989, [(row, 3)], more=4)
    xml = render_xml(made, ReportOptions(org_name="Example \x07", email="r@mx.example.org", contact="<b>"))
    assert schema_errors(xml) == ""
    root = ElementTree.fromstring(xml)
    assert texts(root, "report_metadata/error") == [
        "rua is wrong; adkim is wrong; 4 messages more are not shown, there were too many different ones"
    ]
    assert all(len(text) <= 500 for text in root.itertext())


def test_the_schema_check_itself_finds_errors():
    here = bench()
    end(here, dmarc())
    here.clock.advance(DAY)
    report(here)
    xml = xml_of(sent(here)[0][1])
    assert "forwarded" in schema_errors(xml.replace(b"<disposition>reject", b"<disposition>forwarded"))
    assert schema_errors(xml.replace(b"dmarc-2.0", b"dmarc-9.9")) != ""
