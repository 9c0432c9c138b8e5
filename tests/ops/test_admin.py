"""The admin server: who may ask, what is answered, and the server itself in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.multiprocess import mark_process_dead

from gateway.app.destinations import Destinations
from gateway.config import parse
from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import Envelope, MailParameters, Recipient
from gateway.ops.admin import Deps, app
from gateway.ops.board import Board, WorkerState
from gateway.ops.requests import Requests
from gateway.spool.opening import open_all, open_worker
from gateway.spool.spool import NewMessage, SpoolError, SpoolOptions, State
from tests.support.process import free_port, wait_until

PLACES = Destinations(
    parse(
        b'hostname: mx.example.org\nlisteners: [{address: "127.0.0.1:2525"}]\n'
        b"domains: {example.org: {next_hop: 'smtp:store.example.org', recipients: any}}\n",
        "gatepost.yaml",
    )
)
TOKEN = "a-token-of-sixteen-or-more"
SESSION = "0ABCDEFGHJKMN"
IDS = [f"{SESSION}{n}" for n in "123"]


@dataclass
class Bench:
    """The application over a real spool, asked without a network."""

    folder: Path
    token: str = ""
    board: Board = field(default_factory=lambda: Board.create(1, time.monotonic()))
    drained: list[bool] = field(default_factory=list)
    requests: Requests = field(default_factory=Requests)
    outcome: dict[str, Any] = field(default_factory=dict)
    spool: SpoolOptions | None = None
    """Of a spool that is not files in the folder."""

    def ask(self, path: str, method: str = "GET", *, content: bytes = b"", **headers: str) -> tuple[int, Any]:
        options = self.spool or SpoolOptions(str(self.folder), min_free=1)
        deps = Deps(
            self.board,
            self.token,
            lambda: self.drained.append(True),
            lambda: open_all(options),
            SpoolError,
            State,
            lambda: PLACES,
            self.requests,
            lambda: self.requests.answer(self.requests.asked(), self.outcome),
        )
        return asyncio.run(call(app(deps), path, method, {"host": "127.0.0.1:9925", **headers}, content))


async def call(asgi: Any, path: str, method: str, headers: dict[str, str], content: bytes = b"") -> tuple[int, Any]:
    """One request to an ASGI application: status and JSON body (octets where it is no JSON)."""
    sent: list[dict[str, Any]] = []
    path, _, query = path.partition("?")
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path},
        **{"raw_path": path.encode(), "query_string": query.encode(), "scheme": "http", "root_path": ""},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("127.0.0.1", 9925),
        "client": ("127.0.0.1", 3),
    }

    said = False

    async def receive() -> dict[str, Any]:
        nonlocal said
        if said:
            await asyncio.Event().wait()  # the client stays until it has its answer
        said = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asgi(scope, receive, send)
    body = b"".join(m.get("body", b"") for m in sent)
    is_json = dict(sent[0]["headers"]).get(b"content-type", b"").startswith(b"application/json")
    return sent[0]["status"], json.loads(body) if is_json else body


async def fill(options: SpoolOptions) -> None:
    spool = await open_worker(options)
    for id in IDS:
        draft = spool.draft(id)
        await draft.write(b"Subject: hello\r\n\r\nbody\r\n")
        sender = NULL_SENDER if id == IDS[2] else parse_mailbox("anna@sender.example")
        envelope = Envelope(sender, (Recipient(parse_mailbox("ben@example.org")),), MailParameters(envid="x"))
        state = State.HOLD if id == IDS[1] else State.QUEUED
        record = {"id": id, "session": SESSION, "time": 1.7e9, "outcome": "accepted"}
        await spool.commit(draft, NewMessage(id, envelope, 1.7e9, b"", state=state, record=record))
    await spool.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    asyncio.run(fill(SpoolOptions(str(tmp_path), min_free=1)))
    return Bench(tmp_path)


def test_probes_answer_with_the_state_of_the_workers(bench: Bench) -> None:
    assert bench.ask("/livez")[0] == 200
    status, body = bench.ask("/readyz")
    assert (status, body["why"]) == (503, ["worker 0: starting"])
    assert bench.ask("/startupz")[0] == 503
    bench.board.slot(0).set_state(WorkerState.READY)
    assert [bench.ask(path)[0] for path in ("/readyz", "/startupz")] == [200, 200]


def test_a_reload_is_answered_with_its_outcome_and_kept_for_the_status(bench: Bench) -> None:
    assert bench.ask("/api/v1/status")[1]["last_reload"] is None
    bench.outcome = {"result": "done", "generation": 2}
    assert bench.ask("/api/v1/reload", "POST") == (200, bench.outcome)
    bench.outcome = {"result": "refused", "generation": 2}
    assert bench.ask("/api/v1/reload", "POST") == (409, bench.outcome)
    status, body = bench.ask("/api/v1/status")
    assert (status, body["last_reload"]) == (200, bench.outcome)
    assert [worker["worker"] for worker in body["workers"]] == [0]


def test_a_reload_is_for_those_who_may_drain(bench: Bench) -> None:
    assert bench.ask("/api/v1/reload", "POST", origin="http://elsewhere.test")[0] == 403
    assert bench.ask("/api/v1/reload", "POST", host="evil.test")[0] == 403
    bench.token = TOKEN
    assert bench.ask("/api/v1/reload", "POST")[0] == 401
    assert bench.requests.asked() == 0
    bench.outcome = {"result": "done"}
    assert bench.ask("/api/v1/reload", "POST", authorization=f"Bearer {TOKEN}")[0] == 200
    assert bench.ask("/api/v1/reload")[0] == 405


def test_the_queue_comes_in_pages_in_the_order_of_ids(bench: Bench) -> None:
    status, body = bench.ask("/api/v1/queue?limit=2")
    assert status == 200
    assert [m["id"] for m in body["messages"]] == IDS[:2] and body["next"] == IDS[1]
    _, body = bench.ask(f"/api/v1/queue?limit=2&after={body['next']}")
    assert [m["id"] for m in body["messages"]] == IDS[2:] and body["next"] is None


def test_the_queue_can_be_asked_for_one_state(bench: Bench) -> None:
    _, body = bench.ask("/api/v1/queue?state=hold")
    assert [m["id"] for m in body["messages"]] == [IDS[1]]


def test_a_message_is_shown_with_its_envelope(bench: Bench) -> None:
    status, body = bench.ask(f"/api/v1/queue/{IDS[0]}")
    assert status == 200
    assert (body["sender"], body["state"], body["envid"]) == ("anna@sender.example", "queued", "x")
    assert body["recipients"][0]["address"] == "ben@example.org"
    assert bench.ask(f"/api/v1/queue/{IDS[2]}")[1]["sender"] == ""


def test_explain_takes_a_queue_id_and_a_session_id(bench: Bench) -> None:
    status, body = bench.ask(f"/api/v1/explain/{IDS[0]}")
    assert (status, len(body), body[0]["record"]["id"], body[0]["stored"]["id"]) == (200, 1, IDS[0], IDS[0])
    assert len(bench.ask(f"/api/v1/explain/{SESSION}")[1]) == 3


def test_drain_is_accepted_and_passed_on(bench: Bench) -> None:
    assert bench.ask("/drain", "POST") == (202, {"draining": True})
    assert bench.drained == [True]
    assert bench.ask("/drain")[0] == 405


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/queue?state=nosuch", 400),
        ("/api/v1/queue?limit=0", 400),
        ("/api/v1/queue?limit=1001", 400),
        ("/api/v1/queue?limit=99999999999999999999", 400),
        ("/api/v1/queue?limit=%C2%B2", 400),
        ("/api/v1/queue?after='%20OR%201", 400),
        ("/api/v1/queue/" + "A" * 65, 400),
        ("/api/v1/queue/0NOSUCH", 404),
        ("/api/v1/explain/0NOSUCH", 404),
        ("/nosuch", 404),
    ],
)
def test_a_wrong_question_gets_a_status_and_a_reason(bench: Bench, path: str, status: int) -> None:
    got, body = bench.ask(path)
    assert got == status and body["error"]


def test_without_a_spool_the_api_says_so_and_the_probes_still_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "nothing")
    assert bench.ask("/api/v1/queue") == (503, {"error": "the spool does not answer; see the log"})
    assert bench.ask("/livez")[0] == 200


@pytest.mark.parametrize("path", ["/api/v1/queue", "/metrics", f"/api/v1/explain/{SESSION}"])
def test_with_a_token_only_its_bearer_is_answered(bench: Bench, path: str) -> None:
    bench.token = TOKEN
    assert bench.ask(path)[0] == 401
    assert bench.ask(path, authorization="Bearer wrong")[0] == 401
    assert bench.ask(path, authorization="Bearer \u00e9")[0] == 401
    assert bench.ask("/drain", "POST")[0] == 401 and not bench.drained
    assert bench.ask("/livez")[0] == 200
    if path != "/metrics":
        assert bench.ask(path, authorization=f"Bearer {TOKEN}", host="gateway.example:9925")[0] == 200


def test_without_a_token_a_web_page_cannot_reach_it_by_a_name_of_its_own(bench: Bench) -> None:
    assert bench.ask("/api/v1/queue", host="evil.example")[0] == 403
    assert bench.ask("/drain", "POST", origin="http://evil.example")[0] == 403
    assert bench.drained == []
    for host in ("localhost:9925", "127.0.0.1", "[::1]:9925"):
        assert bench.ask("/api/v1/queue", host=host)[0] == 200


SERVER = """
import os, signal, socket, sys, time
from gateway.ops import metrics
from gateway.ops.admin import Deps, run_admin
from gateway.ops.board import Board, WorkerState
from gateway.spool.spool import SpoolError, SpoolOptions, State
from gateway.spool.sqlite import open_all

port, spool = int(sys.argv[1]), sys.argv[2]
board = Board.create(2, time.monotonic())
workers = []
for i in range(2):
    workers.append(os.fork())
    if workers[i] == 0:
        board.slot(i).begin(time.monotonic())
        board.slot(i).set_state(WorkerState.READY)
        metrics.DSNS.labels("failure").inc(i + 1)
        metrics.QUEUE_OLDEST.labels("queued").set(300 * (i + 1))
        os._exit(0)
for _ in range(2):
    os.wait()
print(*workers, flush=True)
metrics.QUEUE_OLDEST.labels("queued").set(40)
sock = socket.create_server(("127.0.0.1", port))
options = SpoolOptions(spool, min_free=1)
drain = lambda: os.kill(os.getpid(), signal.SIGTERM)
class Nowhere:
    hop = staticmethod(lambda *_: "")
run_admin(sock, Deps(board, "", drain, lambda: open_all(options), SpoolError, State, Nowhere))
print("ended")
"""


def test_the_server_gives_all_processes_metrics_and_ends_with_status_0_when_drained(bench: Bench) -> None:
    counters = bench.folder / "counters"
    counters.mkdir()
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port), str(bench.folder)]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(counters)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        get = asker(port)
        wait_until(lambda: get("/readyz").startswith('{"ok":true'), "the admin server")
        shown = get("/metrics")
        assert 'gatepost_dsns_total{kind="failure"} 3.0' in shown
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert 'gatepost_queue_oldest_seconds{state="queued"} 600.0' in shown, "the largest, and no sum"
        for number, oldest in ((1, "300.0"), (0, "40.0")):
            # As the supervisor does it for who has ended.
            mark_process_dead(workers[number], str(counters))  # type: ignore[no-untyped-call]
            shown = get("/metrics")
            assert f'gatepost_queue_oldest_seconds{{state="queued"}} {oldest}' in shown
            assert 'gatepost_dsns_total{kind="failure"} 3.0' in shown
        assert json.loads(get("/api/v1/queue"))["messages"][0]["id"] == IDS[0]
        assert get("/drain", "POST") == '{"draining":true}'
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and output.endswith("ended\n")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def asker(port: int) -> Callable[..., str]:
    def get(path: str, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())

    return get
