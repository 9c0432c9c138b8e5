"""One message through one connection to clamd.

Sending and reading go on at once, since clamd answers a stream that is too long before its end, and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from gateway.sdk import Content, Dns, Endpoint, dial
from plugins.clamd.codec import REPLY_OCTETS, Instream, Reply


async def scan(endpoint: Endpoint, dns: Dns, content: Content) -> Reply:
    """Stream the content to clamd; gives its reply. Raises OSError when there is none."""
    reader, writer = await dial(endpoint, dns)
    exchange = Instream()
    with _second_handle(writer) as spare:
        try:
            sent, received = await asyncio.gather(
                _send(writer, exchange, content), _receive(reader, writer, exchange), return_exceptions=True
            )
        finally:
            writer.transport.abort()
        if exchange.reply is None and isinstance(received, ConnectionError):
            _last_words(spare, exchange)
    if exchange.reply is not None:
        return exchange.reply
    if sent is not None and not isinstance(sent, ConnectionError):
        # Content that could not be read explains all else.
        raise sent
    if sent is not None and isinstance(received, ConnectionError):
        raise ConnectionError(f"clamd hung up while the message was sent: {received}")
    raise received or ConnectionError("clamd answered nothing")


def _second_handle(writer: asyncio.StreamWriter) -> socket.socket:
    return socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))


def _last_words(spare: socket.socket, exchange: Instream) -> None:
    """Read what clamd said before it hung up. A write that fails ends the stream, but the kernel still has it."""
    spare.setblocking(False)
    with contextlib.suppress(ConnectionError, BlockingIOError):
        if data := spare.recv(REPLY_OCTETS + 1):
            exchange.receive(data)


async def _send(writer: asyncio.StreamWriter, exchange: Instream, content: Content) -> None:
    try:
        writer.write(exchange.begin())
        async for block in content.blocks():
            for chunk in exchange.chunks(block):
                writer.write(chunk)
                await writer.drain()
                if exchange.reply is not None:
                    return
        writer.write(exchange.end())
        await writer.drain()
    except BaseException:
        # Nobody needs to wait for an answer to half a message.
        writer.transport.abort()
        raise


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Instream) -> None:
    try:
        while exchange.reply is None:
            if not (data := await reader.read(REPLY_OCTETS + 1)):
                exchange.closed()
                return
            exchange.receive(data)
    finally:
        # Whoever still sends need not wait for a peer that no longer reads.
        writer.transport.abort()
