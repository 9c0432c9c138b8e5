"""A pipeline on the bench: the real loader, runner and front door's steps, with fakes behind; all of it synchronous.

    pipeline = PipelineBench("- dnsbl: {zones: {bl.test: 1}}\\n- my-policy", MyPolicy, dns=FakeDns(a={...}))
    judged = pipeline.judge(b"Subject: x\\r\\n\\r\\nHello\\r\\n", client="192.0.2.7")
    assert judged.outcome is Outcome.REJECTED and judged.decided.entry == "my-policy"

Tests get one from the fixture `gatepost_pipeline`, which closes it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from gateway.app.scene import Line, Nowhere, Played, Scene, play
from gateway.kit.record import DecisionRecord, Said
from gateway.kit.setting import Entries, Setting, start_setting
from gateway.mail.address import NULL_SENDER, parse_forward_path, parse_reverse_path
from gateway.mail.edit import Edit
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session, new_session_id
from gateway.sdk.ending import Outcome
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy
from gateway.sdk.stage import Message
from gateway.sdk.testing import Bench, make_message
from gateway.sdk.verdict import Verdict
from gateway.smtp.intake import Desk
from gateway.spool.spool import State

__all__ = [
    "Judged",
    "PipelineBench",
    "Queued",
]

_F = TypeVar("_F", bound=Finding)

HELLO: Final = (
    b"From: ben@sender.example\r\nTo: anna@example.org\r\nSubject: test\r\n"
    b"Date: Sat, 01 Nov 2025 10:00:00 +0000\r\nMessage-ID: <1@sender.example>\r\n\r\nHello\r\n"
)


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that the front door queued or would have: `content` with trace fields and edits.

    `state` says whether it is to be delivered or is in quarantine, for `reason`.
    """

    id: str
    state: State
    envelope: Envelope
    content: bytes
    reason: str = ""

    @property
    def message(self) -> Message:
        """The same as a policy would see it: ``queued.message.first("Subject")``."""
        return make_message(self.content)

    @property
    def recipients(self) -> tuple[str, ...]:
        """The envelope recipients as texts."""
        return tuple(str(recipient.address) for recipient in self.envelope.recipients)


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a message. `record` is that of its first transaction, which is the only one unless recipients have
    different pipelines; `records` are all. `taken` says that the client heard 250 after its final dot.
    """

    record: DecisionRecord
    records: tuple[DecisionRecord, ...]
    dialogue: tuple[Line, ...]
    queued: tuple[Queued, ...]
    taken: bool

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        return self.record.outcome

    @property
    def reply(self) -> Reply | None:
        """The reply that ended it, without the reference."""
        return self.record.reply

    @property
    def said(self) -> tuple[Said, ...]:
        """All verdicts in the order in which they were given, those of shadow entries too."""
        return self.record.said

    @property
    def decided(self) -> Said | None:
        """Who decided; None where nobody did, but a limit, relay control, or that nobody had an objection."""
        return self.record.decided

    @property
    def verdict(self) -> Verdict:
        """The verdict that decided; `PROCEED` where nobody's did."""
        return self.record.verdict

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was changed, but for a new body, which stands in `queued`."""
        return self.record.edits

    def found(self, kind: type[_F]) -> _F | None:
        """The last finding of this kind, None where nothing was found."""
        return self.record.found(kind)


class PipelineBench:
    """Judges whole transactions. What plugins and fakes remember lasts from one to the next, until `close`.

    For the arguments see `gateway.kit.setting.make_setting`. To be used where no event loop runs.
    """

    def __init__(self, pipeline: Entries, *things: type[Plugin] | type[Policy], **more: Any) -> None:
        self._runner = asyncio.Runner()
        self._executor = ThreadPoolExecutor(1)
        try:
            self._setting: Setting = self._runner.run(start_setting(pipeline, *things, **more))
        except BaseException:
            self._end()
            raise

    @property
    def bench(self) -> Bench:
        """The fakes: ``pipeline.bench.clock.advance(300)``."""
        return self._setting.bench

    def judge(
        self,
        message: bytes = HELLO,
        *,
        client: str = "192.0.2.1",
        helo: str = "client.example",
        name: str = "",
        sender: str = "ben@sender.example",
        recipients: Sequence[str] = ("anna@example.org",),
        pipeline: str = "default",
        findings: Iterable[Finding] = (),
    ) -> Judged:
        """Play a session in which a client sends this message, with its line ends made CRLF.

        The empty sender is the null sender. `name` is the client's, as a trusted XCLIENT would give it. `findings` are
        taken as found: their plugins stand in the pipeline, and are not asked. Raises ValueError for a finding that
        no plugin of the pipeline gives, for what is no address, and for no recipients.
        """
        if not recipients:
            raise ValueError("a message needs a recipient")
        given = {type(finding): finding for finding in findings}
        self._fix(given)
        played = Played()
        try:
            with tempfile.TemporaryDirectory(prefix="gatepost-kit-") as directory:
                content = Path(directory, "message")
                content.write_bytes(message)
                scene = Scene(
                    ipaddress.ip_address(client),
                    helo,
                    parse_reverse_path(sender, utf8=True) if sender else NULL_SENDER,
                    tuple(Recipient(parse_forward_path(recipient, utf8=True)) for recipient in recipients),
                    content,
                    name,
                    pipeline,
                )
                self._runner.run(self._play(scene, Path(directory), played))
        finally:
            self._fix({})
        return _judged(played)

    def close(self) -> None:
        """Close the plugins."""
        try:
            self._runner.run(self._setting.close())
        finally:
            self._end()

    def __enter__(self) -> PipelineBench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        self._runner.close()
        self._executor.shutdown()

    def _fix(self, given: dict[type[Finding], Finding]) -> None:
        offered = {kind for pipeline in self._setting.pipelines.values() for kind in pipeline.findings.values()}
        for kind in given:
            if kind not in offered:
                names = ", ".join(sorted(k.__name__ for k in offered)) or "nothing"
                raise ValueError(f"no plugin of the pipeline finds {kind.__name__}; they find {names}")
        for pipeline in self._setting.pipelines.values():
            pipeline.fix(given)

    async def _play(self, scene: Scene, directory: Path, played: Played) -> None:
        setting = self._setting
        clock = setting.bench.clock
        session = Session(
            id=new_session_id(),
            client=scene.client,
            client_port=40_000,
            peer=scene.client,
            listener="127.0.0.1:25",
            started=clock.now(),
            name=scene.name,
            trusted=scene.client in setting.options.relay_from,
        )
        spool = Nowhere(directory, self._executor, played)
        desk = Desk(setting.options, setting.domains, setting.pipelines, spool, clock, lambda: None)
        await play(desk, session, scene, played)
        await setting.told()


def _judged(played: Played) -> Judged:
    records = tuple(DecisionRecord(played.records[id]) for id in sorted(played.records))
    queued = tuple(
        Queued(id, message.state, message.envelope, played.contents[id], message.reason)
        for id, message in sorted(played.messages.items())
    )
    return Judged(records[0], records, tuple(played.dialogue), queued, played.taken)
