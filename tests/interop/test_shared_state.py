"""Two gateways and one Redis: limits and greylists are theirs together, also after Redis was away."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.settings import maildir
from tests.support.clients import connect, transact
from tests.support.gatepost import GatepostProcess
from tests.support.process import free_port, wait_until
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.slow

GREYLIST = {"greylist": {"when": "always", "delay": "50ms", "learn_after": 0}}
LIMIT = {"ratelimit": {"limits": [{"rate": "5/100d", "key": "sender_domain"}]}}
PASSWORD = "a password of the shared state"


@dataclass
class Pair:
    """Two replicas: one goes on by itself while Redis is down, the other lets `on_error` decide."""

    going_on: GatepostProcess
    deciding: GatepostProcess
    redis: RedisServer

    def __iter__(self) -> Iterator[GatepostProcess]:
        return iter((self.going_on, self.deciding))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("shared")
    (home / "secret").write_text(PASSWORD + "\n")
    redis = RedisServer(password=PASSWORD, save=True)

    def replica(fallback: str, on_error: str) -> GatepostProcess:
        names = ("limited", "grey")
        listeners = [{"address": f"127.0.0.1:{free_port()}", "role": "edge", "pipeline": name} for name in names]
        shared = {"url": redis.url, "password_file": str(home / "secret"), "timeout": "500ms", "fallback": fallback}
        return GatepostProcess(
            {
                "domains": maildir(home),
                "listeners": listeners,
                "pipelines": {
                    "limited": [{**LIMIT, "on_error": on_error}],
                    "grey": [{**GREYLIST, "on_error": on_error}],
                },
                "state": {"path": str(home / fallback), "redis": shared},
                "log": {"format": "json"},
            }
        )

    pair = Pair(replica("local", "defer"), replica("none", "defer"), redis)
    yield pair
    try:
        for gate in pair:
            gate.stop()
    finally:
        for gate in pair:
            gate.kill()
        redis.stop()


def send(gate: GatepostProcess, pipeline: int, sender: str) -> int:
    with connect(gate.ports[pipeline]) as client:
        code, text = transact(client, sender, ["anna@example.org"])
    # What nobody decided but on_error is told apart.
    return 0 if code == 451 and text.startswith("4.3.0 ") else code


def limited(gate: GatepostProcess, sender: str) -> int:
    return send(gate, 0, sender)


def grey(gate: GatepostProcess, sender: str) -> int:
    return send(gate, 1, sender)


def passes(gate: GatepostProcess, sender: str) -> bool:
    wait_until(lambda: grey(gate, sender) == 250, f"{sender} passes")
    return True


def is_down(gate: GatepostProcess, down: bool) -> bool:
    return gate.metric("gatepost_state_down") == down


def test_limits_and_greylists_hold_for_both_together_through_an_outage(pair):
    one, two = pair
    # A limit of both together.
    codes = [limited(gate, "ann@limited.test") for gate in (one, two) * 4]
    assert codes == [250] * 5 + [451] * 3
    # A triplet that is new at one is known at the other.
    assert grey(one, "ann@grey.test") == 451
    assert passes(two, "ann@grey.test")
    assert grey(one, "ann@grey.test") == 250
    seen = one.metric("gatepost_greylist_attempts_total", state="known")
    assert seen == 1, "it passed there since it had passed elsewhere"

    with pair.redis.client() as client:
        keys = [key.decode() for key in client.keys("*")]
    assert {key.split(":")[1] for key in keys} == {"v", "b", "t", "probe"}
    names = {socket.gethostname(), "mx.example.org", *(str(gate.directory) for gate in pair)}
    numbers = {str(number) for gate in pair for number in (gate.process.pid, *gate.workers, *gate.ports)}
    assert not [key for key in keys if any(name in key for name in names)]
    assert not [key for key in keys if numbers & set(re.findall(r"(?<!\w)\d+(?!\w)", key))]

    pair.redis.kill()
    # One goes on, with a limit of its own; of the other every plugin's on_error decides.
    assert [limited(one, "ann@limited.test") for _ in range(7)] == [250] * 5 + [451] * 2
    assert [limited(two, "ann@limited.test") for _ in range(4)] == [0] * 4
    assert is_down(one, True)
    assert is_down(two, True)
    assert grey(one, "eva@grey.test") == 451
    assert passes(one, "eva@grey.test")
    assert grey(two, "eva@grey.test") == 0

    pair.redis.start()
    for gate in pair:
        wait_until(lambda gate=gate: is_down(gate, False), "Redis is back")
    wait_until(lambda: "state.settled" in one.log, "what was learned is everybody's")
    assert grey(two, "eva@grey.test") == 250, "it passed at the other replica while Redis was down"
    assert grey(two, "ann@grey.test") == 250, "what was known before still is"
    assert limited(two, "ann@limited.test") == limited(one, "ann@limited.test") == 451
    for gate in pair:
        assert gate.log.count('"state.down"') == gate.log.count('"state.back"') == 1
        assert PASSWORD not in gate.log
    assert one.metric("gatepost_state_settled_total", outcome="stored") >= 1
    assert one.metric("gatepost_state_stand_in_total") >= 9


def test_a_reload_keeps_the_connections(pair):
    one = pair.going_on
    with pair.redis.client() as client:
        before = client.info("stats")["total_connections_received"]
        status, answer = one.http("POST", "/api/v1/reload")
        assert (status, json.loads(answer)["result"]) == (200, "done")
        assert grey(one, "leo@grey.test") == 451
        assert client.info("stats")["total_connections_received"] == before
