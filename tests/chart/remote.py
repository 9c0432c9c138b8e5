"""The server's part of ``kubectl exec``: Kubernetes' remote command protocol, version 5, in a WebSocket (RFC 6455).

Each message is a number that says what it is (1 output, 2 errors, 3 how it ended) and then the octets. Nothing is read
from the client but that it goes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from http.server import BaseHTTPRequestHandler
from typing import Final

PROTOCOL: Final = "v5.channel.k8s.io"
_KEY: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OUTPUT, _ERRORS, _STATUS = 1, 2, 3
_BINARY, _CLOSE = 2, 8
_SECONDS: Final = 10.0


def answer(handler: BaseHTTPRequestHandler, output: bytes, errors: bytes, status: int) -> None:
    """Take a request for a command that has ended like this, and say so."""
    wanted = [name.strip() for name in handler.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if PROTOCOL not in wanted:
        handler.send_error(400, f"only {PROTOCOL} is spoken")
        return
    key = handler.headers["Sec-WebSocket-Key"].encode()
    handler.send_response(101)
    handler.send_header("Upgrade", "websocket")
    handler.send_header("Connection", "Upgrade")
    handler.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key + _KEY).digest()).decode())
    handler.send_header("Sec-WebSocket-Protocol", PROTOCOL)
    handler.end_headers()
    handler.close_connection = True
    for channel, data in ((_OUTPUT, output), (_ERRORS, errors), (_STATUS, json.dumps(_ended(status)).encode())):
        if data:
            handler.wfile.write(_frame(_BINARY, bytes([channel]) + data))
    handler.wfile.write(_frame(_CLOSE, struct.pack(">H", 1000)))
    handler.wfile.flush()
    handler.connection.settimeout(_SECONDS)
    while handler.rfile.read1(4096):
        pass


def _ended(status: int) -> dict[str, object]:
    if status == 0:
        return {"metadata": {}, "status": "Success"}
    causes = [{"reason": "ExitCode", "message": str(status)}]
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with exit code {status}",
        "details": {"causes": causes},
    }


def _frame(kind: int, data: bytes) -> bytes:
    """A whole message, not masked: a server's are not."""
    if len(data) < 126:
        return bytes([0x80 | kind, len(data)]) + data
    if len(data) < 65536:
        return struct.pack(">BBH", 0x80 | kind, 126, len(data)) + data
    return struct.pack(">BBQ", 0x80 | kind, 127, len(data)) + data
