"""``gatepost`` without its imports, which take most of a start: a process that has made them forks for each start.

`tests.support.warm` is its other side. Each message on standard input, a socket, asks for one start: JSON with argv,
cwd and environ, and with it come standard input, output and error, and a pipe. The pid is written to the pipe, and the
exit status when there is one, negative for a signal. An argv that begins with a ``.py`` file is that script's.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import struct
import sys
from typing import Any, Final

MESSAGE_OCTETS: Final = 1 << 17
PID: Final = struct.Struct("=q")
STATUS: Final = struct.Struct("=i")

# Not what imports prometheus_client, which decides then whether it counts for one process or for many.
_IMPORTS: Final = (
    *("gateway.cli", "gateway.pipeline.replay", "gateway.spool.spool", "gateway.transport.dane"),
    *("aiosmtpd.smtp", "dns.asyncresolver", "sqlite3", "uvloop"),
    *("starlette.applications", "starlette.routing", "uvicorn", "uvicorn.lifespan.on", "uvicorn.protocols.http.auto"),
)


def main() -> None:
    """Serve until the other side closes."""
    requests = socket.socket(fileno=os.dup(0))
    for name in _IMPORTS:
        importlib.import_module(name)
    assert "prometheus_client" not in sys.modules
    # Attendants are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(requests, MESSAGE_OCTETS, 4)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _attend(json.loads(message), fds)
            return
        for fd in fds:
            os.close(fd)


def _attend(request: dict[str, Any], fds: list[int]) -> None:
    """Have the program run in a fork, and tell how it ends. Returns from the fork only, when the program does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _run(request, fds)
        return
    *standard, pipe = fds
    for fd in standard:
        os.close(fd)
    os.write(pipe, PID.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(pipe, STATUS.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _run(request: dict[str, Any], fds: list[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    # As the interpreter does at its start.
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]
    sys.argv = request["argv"]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        from gateway.cli import main as program

        program()


if __name__ == "__main__":
    main()
