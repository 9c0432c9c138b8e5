"""The Job that hands over the mail of a pod that is gone for good, run as it is rendered: ``make chart-full``."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chart.helm import only
from tests.chart.images import build_gateway
from tests.chart.pod import Job, Network, Pod, made
from tests.support.clients import MESSAGE, queue_id, transact
from tests.support.process import new_directory, wait_until
from tests.support.scripted_dns import ScriptedDns

HOST: Final = "rel-gatepost-pods.mail.svc.cluster.local"
"""The headless Service, whose addresses are those of the pods that are there."""
SECRETS: Final = {"peers": {"token": "of these pods and of nobody else\n"}}
CLAIM: Final = "queue-rel-gatepost-1"
"""As the controller of StatefulSets names that of the second pod."""
LARGE: Final = MESSAGE + (b"x" * 70 + b"\r\n") * 30_000


class Surroundings:
    """A network of the pods, its nameserver, and a mailbox that they share."""

    def __init__(self) -> None:
        self.network = Network()
        self.dns = ScriptedDns()
        self.dns.stop()
        self.network.inside(self.dns.start)
        self.mail = new_directory("mail")
        self.documents = made(self._values())
        self.pods: list[Pod | Job] = []

    def _values(self) -> dict[str, Any]:
        return {
            "replicas": 1,
            "config": {
                "hostname": "mx.example.org",
                "domains": {"example.org": {"next_hop": "maildir:/mail/box", "recipients": "any"}},
                "retry": {"first": "2s", "max": "2s"},
                "dns": {"nameservers": [self.dns.address], "timeout": "1s"},
            },
            # The Job itself gives up half a minute before it would be ended.
            "evacuate": {"enabled": True, "secret": "peers", "orphans": [1], "jobSeconds": 35},
            "drain": {"delaySeconds": 1, "sessionSeconds": 10},
            "terminationGracePeriodSeconds": 60,
            "extraVolumes": [{"name": "mail", "hostPath": {"path": str(self.mail)}}],
            "extraVolumeMounts": [{"name": "mail", "mountPath": "/mail"}],
        }

    def open(self) -> None:
        """Have the mailbox take mail, which it does not before."""
        self.mail.chmod(0o777)

    def delivered(self) -> list[bytes]:
        return [path.read_bytes() for path in self.mail.glob("box/new/*")]

    def start(self, number: int) -> Pod:
        pod = Pod(self.documents, SECRETS, end=str(number), network=self.network)
        self.pods.append(pod)
        return pod

    def orphan(self) -> tuple[Pod, set[str]]:
        """A pod that has taken mail and is gone with its node; what is left of it is its claim."""
        pod = self.start(1)
        with pod.connect(2525) as client:
            contents = [MESSAGE] * 20 + [LARGE]
            ids = {queue_id(transact(client, "ann@sender.test", ["ben@example.org"], each)) for each in contents}
        pod.signal("KILL")
        pod.vanish()
        return pod, ids

    def job(self, orphan: Pod) -> Job:
        document = only(self.documents, "Job", suffix="-evacuate-1")
        job = Job(document, self.documents, SECRETS, claims={CLAIM: orphan.claim}, network=self.network)
        self.pods.append(job)
        return job

    def close(self) -> None:
        for pod in self.pods:
            pod.remove()
        self.dns.stop()
        self.network.close()
        shutil.rmtree(self.mail)


def held(claim: Path) -> tuple[set[str], int]:
    """Ids of the messages in the databases of a claim, and how many files of contents are beside them."""
    with tempfile.TemporaryDirectory() as scratch:
        # A copy: whoever opens the databases makes files there that others may not write to.
        copied = shutil.copytree(claim, scratch, dirs_exist_ok=True)
        ids: set[str] = set()
        shards = list(Path(copied).glob("spool/shard-*"))
        for shard in shards:
            with closing(sqlite3.connect(shard / "spool.db")) as database:
                ids |= {id for (id,) in database.execute("SELECT id FROM message")}
        assert shards
        return ids, sum(1 for shard in shards for _ in shard.glob("content/*"))


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    build_gateway()
    made = Surroundings()
    yield made
    made.close()


def test_a_job_hands_over_what_a_pod_that_is_gone_has_left_and_each_message_is_delivered_once(
    surroundings: Surroundings,
) -> None:
    orphan, ids = surroundings.orphan()
    assert held(orphan.claim) == (ids, 1), "the large one has a file of its own"
    job = surroundings.job(orphan)

    # Nobody is there: neither in DNS, nor then at the address that DNS has. The Job says so, and nothing is lost by it.
    assert job.run() == 1
    assert f"left: {len(ids)} queued" in job.log and HOST in job.log, job.log
    surroundings.dns.serve([f"{HOST}. 0 IN A 127.0.0.1"])
    job.play()
    wait_until(lambda: job.pid, "it runs")
    status = job.status
    assert status["Uid"].split() == ["10001"] * 4 and status["Gid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert job.writable == {"/tmp", "/var/lib/gatepost", "/mail"}
    assert job.ended() == 1
    assert f"left: {len(ids)} queued" in job.log and "127.0.0.1:9926" in job.log, job.log

    # The controller of Jobs tries again, and now there is a pod.
    receiver = surroundings.start(0)
    assert job.run() == 0, job.log
    assert f"{len(ids)} messages handed over" in job.log
    assert set(receiver.queue()) == ids and not surroundings.delivered()

    # The claim is empty: of messages, as another Job finds, and of their files.
    assert job.run() == 0, job.log
    assert "0 messages handed over" in job.log
    assert held(orphan.claim) == (set(), 0)

    surroundings.open()
    wait_until(lambda: not receiver.queue(), "all is delivered")
    messages = surroundings.delivered()
    assert len(messages) == len(ids), "one was delivered twice"
    assert all(any(id.encode() in message.partition(b"\r\n\r\n")[0] for message in messages) for id in ids)


def test_a_job_with_another_token_hands_nothing_over(surroundings: Surroundings) -> None:
    orphan, ids = surroundings.orphan()
    surroundings.dns.serve([f"{HOST}. 0 IN A 127.0.0.1"])
    receiver = surroundings.start(0)
    job = surroundings.job(orphan)
    job.mounts["handover"].put({"token": "that somebody has made up\n"})
    assert job.run() == 1
    assert f"left: {len(ids)} queued" in job.log and "token" in job.log, job.log
    assert not receiver.queue()
    job.mounts["handover"].put(SECRETS["peers"])
    assert job.run() == 0, job.log
    assert set(receiver.queue()) == ids
