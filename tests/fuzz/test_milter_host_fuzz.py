"""Whatever a milter class does with its context, and whatever a message holds: answers or failures, and sound edits."""

from __future__ import annotations

import asyncio
from typing import Any

import Milter
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sdk import MilterAction, MilterReply, apply_edits
from gateway.sdk.testing import make_message
from plugins.milter.context import Context, Limits, Notices
from plugins.milter.host import Host, Visit
from plugins.milter.hosted import OFFERED_STEPS
from plugins.milter.packets import MilterError, Steps
from plugins.milter.policy import verdict_of
from tests.plugins.hosting import Guest

TEXT = st.text(max_size=40) | st.sampled_from(
    ["", "\0", "a\r\nb", "\udcff", "<a@example.org>", "Subject", "550", "5.7.1"]
)
ANYTHING = TEXT | st.none() | st.integers(-(1 << 40), 1 << 40) | st.binary(max_size=40)
METHODS = (
    "addheader",
    "chgheader",
    "addrcpt",
    "delrcpt",
    "chgfrom",
    "replacebody",
    "quarantine",
    "setreply",
    "getsymval",
    "progress",
)
DEEDS = st.lists(st.tuples(st.sampled_from(METHODS), st.lists(ANYTHING, max_size=4)), max_size=12)
CODES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 10, -1, None, "x", 42])
FAILURES = (MilterError, Milter.error, TypeError, ValueError, OverflowError)


@settings(max_examples=300)
@given(DEEDS)
def test_a_context_refuses_with_the_errors_of_pymilter_and_keeps_to_its_limits(deeds):
    context = Context(Milter.error, Limits(5, 30), {})
    context.actions = type(context.actions)(0x1FF)
    context.notices = Notices(lambda: None, lambda: None)
    context.begin_end()
    for method, arguments in deeds:
        try:
            getattr(context, method)(*arguments)
        except FAILURES:
            continue
    if context.broken:
        return
    assert len(context.finish_end()) <= 6


class Wild(Milter.Base):
    """Does at each callback what the test says."""

    codes: dict[str, Any] = {}
    deeds: list[tuple[str, list[Any]]] = []

    def _any(self, callback: str) -> Any:
        for method, arguments in self.deeds:
            try:
                getattr(self._ctx, method)(*arguments)
            except FAILURES:
                continue
        return self.codes.get(callback, 0)


for _name in ("connect", "hello", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"):
    setattr(Wild, _name, lambda self, *arguments, _name=_name: self._any(_name))


def session(codes: dict[str, Any], deeds: list[tuple[str, list[Any]]], content: bytes, steps: int) -> list[Any]:
    """What comes of a session: a reply or a failure for each stage."""

    class Made(Wild):
        def negotiate(self, opts: list[int]) -> int:
            opts[1] = steps
            return 0

    Made.codes, Made.deeds = codes, deeds

    async def run() -> list[Any]:
        guest = Guest({"class": "Milter:Base"})
        shared = guest.plugin._host
        host = Host("wild", Made, Milter.error, None, True, Limits(20, 100), {}, shared.crew)
        guest.plugin._host = host
        guest.plugin.finders = type(guest.plugin).finders
        out: list[Any] = []
        message = make_message(content)
        for step in (guest.connect(), guest.helo(), guest.mail(), guest.rcpt(), guest.data(), guest.message(message)):
            try:
                out.append(await step)
            except FAILURES as error:
                out.append(error)
        try:
            await guest.hang_up()
        except FAILURES as error:
            out.append(error)
        assert not any(isinstance(visit, Visit) for visit in guest.plugin._visits.values())
        await guest.plugin.close()
        return out

    return asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["connect", "hello", "envfrom", "envrcpt", "data", "header", "body", "eom"]), CODES
    ),
    DEEDS,
    st.binary(max_size=200) | st.builds(lambda body: b"A: 1\r\nB: 2\r\n\r\n" + body, st.binary(max_size=100)),
    st.integers(0, int(OFFERED_STEPS)),
)
def test_a_session_with_a_wild_class_ends_in_answers_or_failures_and_its_edits_can_be_made(
    codes, deeds, content, steps
):
    out = session(codes, deeds, content, int(Steps(steps)))
    message = make_message(content)
    for reply in out:
        if not isinstance(reply, MilterReply):
            assert isinstance(reply, FAILURES)
            continue
        verdict_of(reply)
        assert reply.to_json()
        if reply.action in (MilterAction.CONTINUE, MilterAction.ACCEPT):
            apply_edits(message.fields, reply.edits)
