"""One message through one connection to spamd, which serves one request and closes."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.sdk import Content, Dns, Endpoint, dial
from plugins.spamd.codec import Command, Response, ResponseReader, request

_OCTETS: Final = 1 << 16


async def ask(
    endpoint: Endpoint, dns: Dns, command: Command, content: Content, *, head: bytes = b"", user: str = ""
) -> Response:
    """Send `head` and the content to spamd; gives its response. Raises OSError when there is none.

    `head` are header fields that stand before those of the content.
    """
    opening = request(command, len(head) + content.size, user) + head
    reader, writer = await dial(endpoint, dns)
    answer = ResponseReader(command)
    try:
        sent, received = await asyncio.gather(
            _send(writer, opening, content), _receive(reader, writer, answer), return_exceptions=True
        )
    finally:
        writer.transport.abort()
    if sent is not None and not isinstance(sent, ConnectionError):
        raise sent
    if received is not None:
        raise received
    if answer.response is None or sent is not None:
        raise ConnectionError("spamd answered before it had the message")
    return answer.response


async def _send(writer: asyncio.StreamWriter, opening: bytes, content: Content) -> None:
    try:
        writer.write(opening)
        async for block in content.blocks():
            for at in range(0, len(block), _OCTETS):
                writer.write(block[at : at + _OCTETS])
                await writer.drain()
    except BaseException:
        # Nobody needs to wait for an answer to half a message.
        writer.transport.abort()
        raise


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: ResponseReader) -> None:
    try:
        while answer.response is None:
            if data := await reader.read(_OCTETS):
                answer.receive(data)
            else:
                answer.closed()
    finally:
        # Whoever still sends need not wait for a peer that no longer reads.
        writer.transport.abort()
