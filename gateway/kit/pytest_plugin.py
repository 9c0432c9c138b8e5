"""The pytest plugin: fixtures for authors' tests. pytest finds it by its entry point where Gatepost is installed.

Everything is imported when a test asks for it, so a test run that uses none of this pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from gateway.kit.door import SmtpSession
    from gateway.kit.messages import MessageFactory
    from gateway.kit.pipeline import PipelineBench
    from gateway.kit.setting import Entries
    from gateway.sdk.plugin import Plugin
    from gateway.sdk.policy import Policy

# So that a failed contract says what it compared, as tests of one's own do.
pytest.register_assert_rewrite("gateway.kit.contracts", "gateway.kit.checks")


class MakePipeline(Protocol):
    """What `gatepost_pipeline` is."""

    def __call__(self, pipeline: Entries, *things: type[Plugin] | type[Policy], **more: Any) -> PipelineBench: ...


class OpenSession(Protocol):
    """What `smtp_session` is."""

    def __call__(
        self, pipeline: Entries = (), *things: type[Plugin] | type[Policy], client: str = "192.0.2.1", **more: Any
    ) -> SmtpSession: ...


@pytest.fixture
def gatepost_pipeline() -> Iterator[MakePipeline]:
    """``gatepost_pipeline("- my-policy", MyPolicy)``: a pipeline that judges whole messages, with fakes behind it.

    See `gateway.kit.pipeline.PipelineBench`. It is closed when the test ends.
    """
    from contextlib import ExitStack

    from gateway.kit.pipeline import PipelineBench

    with ExitStack() as stack:

        def make(pipeline: Entries, *things: type[Plugin] | type[Policy], **more: Any) -> PipelineBench:
            return stack.enter_context(PipelineBench(pipeline, *things, **more))

        yield make


@pytest.fixture
def smtp_session(tmp_path: Path) -> Iterator[OpenSession]:
    """``smtp_session("- my-policy", MyPolicy)``: a client's session with a real front door of its own.

    See `gateway.kit.door.SmtpSession`; ``session.door.connect()`` makes another one with the same door. Everything is
    closed when the test ends.
    """
    from contextlib import ExitStack

    from gateway.kit.door import Door

    with ExitStack() as stack:
        count = 0

        def open_session(
            pipeline: Entries = (), *things: type[Plugin] | type[Policy], client: str = "192.0.2.1", **more: Any
        ) -> SmtpSession:
            nonlocal count
            count += 1
            return stack.enter_context(Door(tmp_path / f"spool-{count}", pipeline, *things, **more)).connect(client)

        yield open_session


@pytest.fixture
def message_factory() -> MessageFactory:
    """``message_factory(subject="Hi", html="<p>Hi</p>")``: messages as octets; see `gateway.kit.messages`."""
    from gateway.kit.messages import MessageFactory

    return MessageFactory()


__all__ = ["MakePipeline", "OpenSession", "gatepost_pipeline", "message_factory", "smtp_session"]
