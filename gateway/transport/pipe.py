"""The pipe transport: each message is the standard input of a command, such as procmail or a Sieve tool.

The message is written whole into a file without a name before the command is started. So a command can never take half
a message for a whole one, not even when we are killed; and it cannot make us wait by reading slowly.

*Promises*: delivered is only what the command said it took, by exit status 0 within its time.

*Fails by*: deferrals with `Fault.OURS` for a command that cannot be started, ends by a signal or takes too long.

*RFCs*: 5321 section 4.4 (Return-Path), 3463 section 3 (status codes).
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.ops import log
from gateway.sdk.services import Clock
from gateway.transport import command
from gateway.transport.arguments import Unsafe, build
from gateway.transport.content import LineFeeds
from gateway.transport.options import LineEnds, PipeOptions
from gateway.transport.storage import (
    DiskError,
    delivered_to,
    from_line,
    in_thread,
    of_the_disk,
    return_path,
    scratch,
    trouble,
    write_all,
)
from gateway.transport.sysexits import Ended, judge
from gateway.transport.transport import Delivery, Fault, Outcome, Result, keeping

_log = log.get()
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


class PipeTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.PIPE`."""

    def __init__(self, options: PipeOptions, hostname: str, clock: Clock) -> None:
        self._options = options
        self._hostname = hostname
        self._clock = clock
        self._program = PurePosixPath(options.command[0]).name
        self._environment = environment(options)

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once, run by run; see `gateway.transport.transport.Transport`."""
        outcomes: list[Outcome] = []
        at_once = self._options.recipients_per_run
        with keeping(outcomes):
            for start in range(0, len(delivery.recipients), at_once):
                some = delivery.recipients[start : start + at_once]
                outcomes += [await self._run(delivery, some)] * len(some)
        return outcomes

    async def close(self) -> None:
        """Nothing is open."""

    async def _run(self, delivery: Delivery, recipients: Sequence[Recipient]) -> Outcome:
        addresses = [recipient.address for recipient in recipients]
        try:
            argv = build(self._options.command, delivery.id, delivery.sender, addresses, self._hostname)
        except Unsafe as error:
            return Outcome(Result.FAILED, Reply(553, "1.7" if error.sender else "1.3", str(error)))
        try:
            async with self._file(delivery, recipients) as stdin:
                ended = await self._start(argv, stdin)
        except DiskError as error:
            return trouble(error.cause, "directory for temporary files")
        return ended if isinstance(ended, Outcome) else judge(ended, self._program, self._options.fail_on)

    async def _start(self, argv: list[bytes], stdin: int) -> Ended | Outcome:
        options = self._options
        try:
            return await command.run(
                argv, stdin=stdin, environment=self._environment, run_as=options.run_as, timeout=options.timeout
            )
        except OSError as error:
            problem = error.strerror or str(error)
            _log.error("pipe.cannot_run", command=options.command[0], reason=problem, fault="ours")
            reply = Reply(451, "3.5", f"{self._program} cannot be run: {problem}")
            return Outcome(Result.DEFERRED, reply, fault=Fault.OURS)

    @contextlib.asynccontextmanager
    async def _file(self, delivery: Delivery, recipients: Sequence[Recipient]) -> AsyncIterator[int]:
        """The whole message in a file without a name, open for reading. Raises `DiskError`."""
        content = delivery.content
        with of_the_disk():
            file = await in_thread(scratch, content.size)
        with file:
            await in_thread(_write, file, self._head(delivery, recipients))
            lines = LineFeeds()
            as_it_is = self._options.line_ends is LineEnds.CRLF
            async for block in content.blocks():
                await in_thread(_write, file, block if as_it_is else lines.feed(block))
            await in_thread(_write, file, lines.end())
            with of_the_disk():
                stdin = _for_reading(file)
            try:
                yield stdin
            finally:
                os.close(stdin)

    def _head(self, delivery: Delivery, recipients: Sequence[Recipient]) -> bytes:
        options = self._options
        out = b""
        if options.from_line:
            now = time.asctime(time.gmtime(self._clock.now()))
            out += from_line(delivery.sender, now).replace(b"\n", b"\r\n")
        if options.return_path:
            out += return_path(delivery.sender)
        if options.delivered_to and len(recipients) == 1:
            out += delivered_to(recipients[0].address)
        return out if options.line_ends is LineEnds.CRLF else out.replace(b"\r\n", b"\n")


def environment(options: PipeOptions) -> dict[str, str]:
    """What every command finds in its environment: nothing of ours, and nothing of the message's."""
    out = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    if "TZ" in os.environ:
        out["TZ"] = os.environ["TZ"]
    return out | dict(options.environment)


def _write(file: io.FileIO, data: bytes) -> None:
    with of_the_disk():
        write_all(file.fileno(), data)


def _for_reading(file: io.FileIO) -> int:
    """The same file opened anew, so that whoever gets it cannot write, and reads from the beginning."""
    # A command that opens /dev/stdin does so with its own rights.
    os.fchmod(file.fileno(), 0o444)
    return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
