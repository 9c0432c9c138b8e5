"""Who connects to the admin server and asks nothing is let go, and who asks is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.ops.callers import Caller

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNREAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"


class Hasty(Caller):
    patience = 0.02


async def serve(answered: asyncio.Event, dialogue: Callable[[int, ServerState], Awaitable[None]]) -> None:
    """A dialogue with a server that answers a request when `answered` is set."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answered.wait()
        await Response("here")(scope, receive, send)

    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=60)
    config.load()
    state = ServerState()
    made: Any = lambda: Hasty(config, state, {})  # noqa: E731
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(10):
            await dialogue(server.sockets[0].getsockname()[1], state)
    finally:
        server.close()


@pytest.mark.parametrize("said", [b"", REQUEST[:-2], REQUEST, UNREAD], ids=["nothing", "half", "served", "unread"])
def test_who_asks_nothing_more_is_let_go_and_counts_no_more(said: bytes) -> None:
    async def dialogue(port: int, state: ServerState) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        try:
            assert (b"here" in await reader.read()) == (said in (REQUEST, UNREAD))
        except ConnectionResetError:
            pass
        while state.connections:
            await asyncio.sleep(0)
        writer.close()

    answered = asyncio.Event()
    answered.set()
    asyncio.run(serve(answered, dialogue))


def test_an_answer_may_take_its_time() -> None:
    answered = asyncio.Event()

    async def dialogue(port: int, state: ServerState) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        asyncio.get_running_loop().call_later(Hasty.patience * 5, answered.set)
        assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200 ")
        writer.close()

    asyncio.run(serve(answered, dialogue))
