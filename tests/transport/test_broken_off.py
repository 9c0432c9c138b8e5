"""Content that cannot be read any more when some recipients have it already: they must not get it again."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.sdk.testing import BytesContent, ManualClock
from gateway.transport.maildir import MaildirTransport
from gateway.transport.options import PipeOptions
from gateway.transport.pipe import PipeTransport
from gateway.transport.transport import BrokenOff, Destination, Kind, Transport
from tests.transport.peer import Link, delivery, peer, run, statuses, transport
from tests.transport.test_webhook import serving
from tests.transport.test_webhook import transport as webhook

LARGE = b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n" * (600 << 10)


class Once(BytesContent):
    """Can be read once: then the database is gone."""

    left = 1

    async def blocks(self) -> AsyncIterator[bytes]:
        if not self.left:
            raise OSError(errno.EIO, "Input/output error")
        self.left -= 1
        for start in range(0, self.size, 1 << 18):
            yield self.data[start : start + (1 << 18)]


async def takes_all(link: Link) -> None:
    await link.greet()
    while True:
        await link.take()


@pytest.mark.parametrize("kind", [Kind.SMTP, Kind.MAILDIR, Kind.PIPE, Kind.HTTP])
def test_who_had_his_turn_keeps_his_outcome_when_the_content_cannot_be_read_for_the_next(kind: Kind, tmp_path: Path):
    async def made(stack: AsyncExitStack) -> Transport:
        match kind:
            case Kind.MAILDIR:
                return MaildirTransport(Destination(kind, path=f"{tmp_path}/{{local}}"), "gate.test", ManualClock())
            case Kind.PIPE:
                return PipeTransport(PipeOptions(("/bin/cat",)), "gate.test", ManualClock())
            case Kind.HTTP:
                server = await stack.enter_async_context(serving())
                return webhook(f"http://127.0.0.1:{server.port}/", recipients_per_request=1)
        it = await stack.enter_async_context(peer(takes_all))
        return transport(it.port, recipients_per_message=1)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            it = await made(stack)
            with pytest.raises(BrokenOff) as raised:
                await it.deliver(delivery("anna@x.test", "ben@x.test", "carl@x.test", content=Once(LARGE)))
            assert statuses(raised.value.outcomes) == ["delivered 2.0.0"]
            assert isinstance(raised.value.__cause__, OSError)
            await it.close()

    run(main())
