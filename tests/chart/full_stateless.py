"""Pods of the chart's Deployment with a queue in PostgreSQL: they come and go, mail stays: ``make chart-full``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.chart.images import build_gateway
from tests.chart.pod import Pod, made
from tests.support.clients import MESSAGE, queue_id, transact
from tests.support.postgres_server import PostgresServer
from tests.support.process import new_directory, wait_until

PASSWORD: Final = "of nobody else"
NAMES: Final = ("7c9f6d5b8-x2x4z", "7c9f6d5b8-q9w8v", "7c9f6d5b8-tt2b4")
"""As a ReplicaSet makes them."""


class Surroundings:
    """A database that wants a password, by a socket that pods have in a volume, and a mailbox that they share."""

    def __init__(self) -> None:
        self.sockets, self.mail = new_directory("sockets"), new_directory("mail")
        self.sockets.chmod(0o777)
        self.open(False)
        self.database = PostgresServer(f"unix_socket_directories={self.sockets}")
        self.database.query(f"CREATE ROLE gatepost LOGIN PASSWORD '{PASSWORD}'")
        self.database.query("GRANT CREATE ON DATABASE postgres TO gatepost")
        (self.database.home / "data/pg_hba.conf").write_text(
            "local all gatepost scram-sha-256\nhost all test 127.0.0.1/32 trust\n"
        )
        self.database.query("SELECT pg_reload_conf()")

    def open(self, is_open: bool) -> None:
        """Whether mailboxes take mail."""
        self.mail.chmod(0o777 if is_open else 0o755)

    def queued(self) -> set[str]:
        return {id for (id,) in self.database.query("SELECT id FROM message WHERE state = 'queued'")}

    def delivered(self) -> list[bytes]:
        return [path.read_bytes() for path in self.mail.glob("box/new/*")]

    def values(self) -> dict[str, Any]:
        return {
            "config": {
                "hostname": "mx.example.org",
                "domains": {"example.org": {"next_hop": "maildir:/mail/box", "recipients": "any"}},
                "retry": {"first": "2s", "max": "2s"},
                "dns": {"nameservers": ["127.0.0.1:9"], "timeout": "1s"},
                "spool": {
                    "postgres": {
                        "url": f"postgresql://gatepost@%2Frun%2Fpostgres:{self.database.port}/postgres",
                        "password_file": "/etc/gatepost/secrets/postgres/password",
                        "timeout": "2s",
                        "lease": "5s",
                    }
                },
            },
            "secrets": {"postgres": "database"},
            "drain": {"delaySeconds": 1, "sessionSeconds": 10},
            "terminationGracePeriodSeconds": 60,
            "extraVolumes": [
                {"name": "sockets", "hostPath": {"path": str(self.sockets)}},
                {"name": "mail", "hostPath": {"path": str(self.mail)}},
            ],
            "extraVolumeMounts": [
                {"name": "sockets", "mountPath": "/run/postgres"},
                {"name": "mail", "mountPath": "/mail"},
            ],
        }

    def close(self) -> None:
        self.database.stop()
        shutil.rmtree(self.sockets)
        shutil.rmtree(self.mail)


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    made = Surroundings()
    yield made
    made.close()


@pytest.fixture
def start(surroundings: Surroundings) -> Iterator[Callable[[str], Pod]]:
    """Starts a pod with this end of its name."""
    build_gateway()
    started: list[Pod] = []

    def start(end: str) -> Pod:
        started.append(Pod(made(surroundings.values()), {"database": {"password": PASSWORD}}, end=end))
        return started[-1]

    yield start
    for pod in started:
        pod.remove()


def take(pod: Pod, count: int) -> set[str]:
    """Have a pod take messages, one of them too large for its memory; gives their ids."""
    with pod.connect(2525) as client:
        contents = [MESSAGE] * count + [MESSAGE + (b"x" * 70 + b"\r\n") * 30_000]
        return {queue_id(transact(client, "ann@sender.test", ["ben@example.org"], content)) for content in contents}


def test_pods_come_and_go_and_the_queue_stays(surroundings: Surroundings, start: Callable[[str], Pod]) -> None:
    first, second = start(NAMES[0]), start(NAMES[1])
    assert not first.claim.exists()
    for text in (*(path.read_text() for path in first.directory.glob("config/*.yaml")), first.log):
        assert text and PASSWORD not in text, "the password is in the Secret and nowhere else"
    ids = take(first, 5)
    assert surroundings.queued() == ids

    # A node dies: its pod is gone, with all that it had on its disk.
    first.signal("KILL")
    first.vanish()
    ids |= take(second, 3)

    # Scaled to none, and up again: the last one hands nothing over.
    second.signal("TERM")
    assert second.ended() == 0, second.log
    second.vanish()
    start(NAMES[2])
    assert surroundings.queued() == ids

    surroundings.open(True)
    wait_until(lambda: not surroundings.queued(), "all is delivered")
    messages = surroundings.delivered()
    assert len(messages) == len(ids), "one was delivered twice"
    assert all(any(id.encode() in message.partition(b"\r\n\r\n")[0] for message in messages) for id in ids)
