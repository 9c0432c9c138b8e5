"""A client and a sink with clocks: how long a message takes from its final dot to its 250, and to the sink.

Both run in the benchmark's own process, so both gateways bear them alike. The client does not wait for one message
before it sends the next, as the world does not: messages leave at a rate, each over a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from dataclasses import dataclass, field

_NUMBER = re.compile(rb"<user(\d+)@", re.IGNORECASE)
_PATIENCE = 60.0


@dataclass
class Times:
    """By number of the message: when its final dot left, had its 250, and came to the sink; seconds, monotonic."""

    dot: dict[int, float] = field(default_factory=dict)
    taken: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)

    def to_taken(self) -> list[float]:
        return [self.taken[number] - self.dot[number] for number in sorted(self.taken)]

    def to_sink(self) -> list[float]:
        return [self.arrived[number] - self.dot[number] for number in sorted(self.arrived)]


class ClockedSink:
    """A next hop that takes everything and notes when."""

    def __init__(self, times: Times) -> None:
        self._times = times

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; it is cut off when the stream is over."""
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 sink ESMTP\r\n")
        number = -1
        while line := await reader.readline():
            word = line[:4].upper()
            if word == b"EHLO":
                writer.write(b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
            elif word == b"DATA":
                writer.write(b"354 go on\r\n")
                while (await reader.readline()) not in (b".\r\n", b""):
                    pass
                self._times.arrived.setdefault(number, time.monotonic())
                writer.write(b"250 2.0.0 taken\r\n")
            elif word == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                if match := _NUMBER.search(line):
                    number = int(match[1])
                writer.write(b"250 2.0.0 ok\r\n")


async def _send(port: int, number: int, to: str, body: bytes, times: Times) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def say(line: bytes) -> None:
        writer.write(line)
        await _reply(reader)

    await _reply(reader)
    await say(b"EHLO client.test\r\n")
    await say(b"MAIL FROM:<sender@client.test>\r\n")
    await say(b"RCPT TO:<user%d@%s>\r\n" % (number, to.encode()))
    await say(b"DATA\r\n")
    writer.write(body)
    await writer.drain()
    times.dot[number] = time.monotonic()
    writer.write(b".\r\n")
    await _reply(reader)
    times.taken[number] = time.monotonic()
    writer.write(b"QUIT\r\n")
    await reader.read()
    writer.close()


async def _reply(reader: asyncio.StreamReader) -> None:
    while line := await reader.readline():
        if line[:1] not in (b"2", b"3"):
            raise RuntimeError(f"refused: {line!r}")
        if line[3:4] != b"-":
            return
    raise RuntimeError("the connection was closed")


def stream(port: int, sink_port: int, to: str, *, rate: float, messages: int, size: int) -> Times:
    """Send `messages` at `rate` a second through the gateway at `port`, whose next hop is the clocked sink."""
    times = Times()
    body = b"Subject: clocked\r\n\r\n" + (b"0123456789" * 7 + b"\r\n") * (size // 72)
    failed: list[BaseException] = []

    async def main() -> None:
        server = await asyncio.start_server(ClockedSink(times).serve, "127.0.0.1", sink_port)
        async with server, asyncio.timeout(messages / rate + _PATIENCE):
            begun = time.monotonic()
            sending: list[asyncio.Task[None]] = []
            for number in range(messages):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                sending.append(asyncio.get_running_loop().create_task(_send(port, number, to, body, times)))
            await asyncio.gather(*sending)
            while len(times.arrived) < messages:
                await asyncio.sleep(0.01)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return times
