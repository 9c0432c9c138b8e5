"""An HTTPS server on loopback that gives the same octets to whoever asks."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.process import free_port


@asynccontextmanager
async def serving(context: ssl.SSLContext, gives: bytes, heard: list[bytes]) -> AsyncIterator[int]:
    """Its port; what it hears goes to `heard`. Without anything to give, it only listens."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            heard.append(head + await reader.readexactly(int(length[1]) if length else 0))
            writer.write(gives)
            await writer.drain()
            if gives:
                writer.close()
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, OSError):
            return

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    try:
        yield port
    finally:
        server.close()
