"""Working on the queue of a running Gatepost: suspended destinations, mail that is moved, the check of its spool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import delivered, unreachable
from tests.spool.places import Place, spool_section
from tests.support.clients import connect, queue_id, transact
from tests.support.process import wait_until

pytestmark = pytest.mark.slow


def test_a_suspended_destination_gets_nothing_and_its_mail_can_be_moved(gatepost, directory: Path, place: Place):
    spool = {"spool": spool_section(place.options)} if place.options.postgres else {}
    gate = gatepost(workers=2, domains=unreachable(), retry={"first": "1h"}, **spool)
    destination = gate.options["domains"]["example.org"]["next_hop"]

    def api(path: str, **body: Any) -> Any:
        status, text = gate.http("POST", path, body)
        assert status == 200, text
        return json.loads(text)

    api("/api/v1/destinations/suspend", destination=destination, reason="moving", by="anna")
    wait_until(lambda: gate.log.count("destination.suspended") == 2, "both workers know")
    ids = set()
    for _ in range(6):
        with connect(gate.port) as client:
            ids.add(queue_id(transact(client, "ann@sender.test", ["ben@example.org"])))

    def put_off() -> bool:
        queued = json.loads(gate.http("GET", "/api/v1/queue?reason=suspended+by+the+postmaster")[1])["messages"]
        return {message["id"] for message in queued} == ids and not any(message["claimed"] for message in queued)

    wait_until(put_off, "all of them are put off")
    assert gate.metric("gatepost_attempts_total") == 0
    (why,) = json.loads(gate.http("GET", f"/api/v1/queue/{min(ids)}")[1])["why"]
    assert why["code"] == "suspended" and "anna" in why["text"]
    listed = gate.cli("queue", "list", "--domain", "example.org", "--next-hop", destination)
    assert {message["id"] for message in listed} == ids
    # After a restart too.
    gate.stop()
    gate.start()
    moved = sorted(ids)[:3]
    api("/api/v1/queue/reroute", ids=moved, to=f"maildir:{directory}/mail", wait=10)
    wait_until(lambda: len(delivered(directory)) == 3, "what was moved is delivered elsewhere")
    assert gate.metric("gatepost_attempts_total", transport="lmtp") == 0
    api("/api/v1/destinations/resume", destination=destination)
    wait_until(lambda: gate.metric("gatepost_attempts_total", transport="lmtp") >= 3, "the others are tried at once")
    # Beside it the check only looks.
    report = gate.cli("fsck")
    assert (report["running"], report["findings"]) == (True, [])
    # And where nothing is suspended, what is left can be sent elsewhere as a whole.
    left = api("/api/v1/queue/redirect", select={"domain": "example.org"}, to=["max@example.org"], wait=10, yes=True)
    assert left["messages"] == 3 and left["others"] == {}
    assert gate.metric("gatepost_queue_operations_total", operation="redirected", outcome="done") == 3
    assert gate.log.count("queue.amended") == 2
