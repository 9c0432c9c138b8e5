"""A webhook on loopback: an HTTPS server that keeps what it is sent."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.process import free_port
from tests.support.servers import Certificate


@dataclass(frozen=True)
class Posted:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Hook:
    """Answers with each of `answers` in turn and then with the last one: a status and Retry-After.

    With `hang` it reads no body until `go` is called.
    """

    def __init__(
        self,
        certificate: Certificate | None,
        answers: Sequence[tuple[int, str]] = ((200, ""),),
        *,
        port: int = 0,
        hang: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.begun = 0
        self._free = threading.Event()
        if not hang:
            self.go()
        self.posted: list[Posted] = []
        self.answers = list(answers)
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                hook.begun += 1
                hook._free.wait()
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if len(body) < int(self.headers["Content-Length"]):
                    return
                hook.posted.append(Posted(self.path, {n.lower(): v for n, v in self.headers.items()}, body))
                status, retry_after = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                self.send_response(status)
                if retry_after:
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"noted")

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.certificate, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go(self) -> None:
        """Read what is sent, from now on."""
        self._free.set()

    def stop(self) -> None:
        self.go()
        self._server.shutdown()
        self._server.server_close()


def token(directory: Path, text: str) -> str:
    """A token file; gives its name."""
    path = directory / "token"
    path.write_text(text + "\n")
    return str(path)
