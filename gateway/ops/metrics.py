"""All of Gatepost's metrics, in one place, right across worker processes.

prometheus-client keeps the values of several processes in files, in the directory that PROMETHEUS_MULTIPROC_DIR names
when the library is imported; the command line sets it before. docs/metrics.md lists every name (a test compares).
"""

from __future__ import annotations

import os
import struct
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, values

_process: list[int] = [os.getpid()]
_lock = threading.Lock()
_write = struct.Struct("=dd").pack_into


def _note_process() -> None:
    _process[0] = os.getpid()


if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    # The library asks the kernel for our process id at each count, in case we forked. We know when we fork.
    os.register_at_fork(after_in_child=_note_process)
    _Shared: Any = values.MultiProcessValue(lambda: _process[0])  # type: ignore[no-untyped-call]

    class _Value(_Shared):  # type: ignore[misc]  # it is made by a function
        """A value in a file that all processes share. A message counts some sixty times, so counting is made short."""

        _process = -1

        def inc(self, amount: float) -> None:
            if self._process != _process[0]:
                # First the library's way, which opens this process's own file.
                super().inc(amount)
                self._process = _process[0]
                self._place = self._file._positions[self._key]
                return
            with _lock:
                self._value += amount
                _write(self._file._m, self._place, self._value, 0.0)

    values.ValueClass = _Value


def counting(counter: Counter) -> Callable[[int], None]:
    """The short way to count, for what is counted at every stage of every message: a bound counter's own value."""
    count: Callable[[int], None] = counter._value.inc
    return count


def observing(histogram: Histogram) -> Callable[[float], None]:
    """The short way to observe, with a bound histogram."""
    bounds: list[float] = histogram._upper_bounds
    add, counts = histogram._sum.inc, [bucket.inc for bucket in histogram._buckets]

    def observe(amount: float) -> None:
        add(amount)
        counts[bisect_left(bounds, amount)](1)

    return observe


_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SLOW = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3600.0, 14400.0, 86400.0, 432000.0)
_SIZES = (1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 16e6, 64e6)
_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

SESSIONS = Counter("gatepost_sessions", "Connections by listener and how they ended.", ["listener", "end"])
SESSIONS_OPEN = Gauge("gatepost_sessions_open", "Connections open now.", multiprocess_mode="livesum")
REPLIES = Counter("gatepost_replies", "Replies sent, by command and code.", ["command", "code"])
MESSAGES = Counter("gatepost_messages", "Transactions that reached a final reply, by outcome.", ["outcome"])
MESSAGE_BYTES = Histogram("gatepost_message_bytes", "Size of accepted messages in octets.", buckets=_SIZES)
STAGE_SECONDS = Histogram("gatepost_stage_seconds", "Time of a pipeline stage.", ["stage"], buckets=_FAST)
PLUGIN_SECONDS = Histogram(
    "gatepost_plugin_seconds", "Time a plugin took for a finding.", ["plugin", "stage"], buckets=_FAST
)
FINDINGS = Counter("gatepost_findings", "Findings by plugin and how the look-up ended.", ["plugin", "outcome"])
VERDICTS = Counter(
    "gatepost_verdicts", "Verdicts by stage, plugin entry and action.", ["stage", "plugin", "action", "shadow"]
)
BREAKER_OPEN = Gauge(
    "gatepost_breaker_open",
    "1 while a plugin entry's breaker is open at a stage.",
    ["plugin", "stage"],
    multiprocess_mode="livemax",
)
SPOOL_COMMIT_SECONDS = Histogram(
    "gatepost_spool_commit_seconds",
    "Time of one synced write: a group commit, or a content file.",
    ["kind"],
    buckets=_FAST,
)
SPOOL_GROUP = Histogram("gatepost_spool_group_size", "Steps made durable by one group commit.", buckets=_GROUPS)
SPOOL_ERRORS = Counter("gatepost_spool_errors", "Spool steps that failed.", ["kind"])
SPOOL_CONNECTIONS_FAILED = Counter(
    "gatepost_spool_connections_failed", "Connections to the spool's database that were lost or could not be made."
)
SPOOL_TAKEN_OVER = Counter("gatepost_spool_taken_over", "Messages taken over from workers that died.")
SPOOL_LEASES_LOST = Counter(
    "gatepost_spool_leases_lost", "Results of deliveries not stored, since others had taken the message over."
)
RECORDS = Gauge("gatepost_records_kept", "Decision records that are kept.", multiprocess_mode="livesum")
RECORDS_OCTETS = Gauge(
    "gatepost_records_octets", "Octets of decision records and delivery attempts.", multiprocess_mode="livesum"
)
RECORDS_DROPPED = Counter("gatepost_records_dropped", "Decision records dropped, by age or size.", ["reason"])
QUEUE_MESSAGES = Gauge(
    "gatepost_queue_messages", "Messages in the spool by state.", ["state"], multiprocess_mode="livesum"
)
QUEUE_OLDEST = Gauge(
    "gatepost_queue_oldest_seconds",
    "Age of the oldest message by state, counted from when it was accepted; 0 where there is none.",
    ["state"],
    multiprocess_mode="livemax",
)
DESTINATIONS = Gauge(
    "gatepost_destinations",
    "Destinations in memory, by whether they are reached.",
    ["state"],
    multiprocess_mode="livesum",
)
DESTINATION_ATTEMPTS = Gauge(
    "gatepost_destination_attempts", "Attempts under way, by destination.", ["destination"], multiprocess_mode="livesum"
)
DESTINATION_WAITING = Gauge(
    "gatepost_destination_waiting",
    "Messages that wait in memory, by destination.",
    ["destination"],
    multiprocess_mode="livesum",
)
DESTINATION_DEAD = Gauge(
    "gatepost_destination_dead",
    "Destinations that are left alone or probed, all workers together.",
    ["destination"],
    multiprocess_mode="livesum",
)
QUEUE_OPERATIONS = Counter(
    "gatepost_queue_operations",
    "What postmasters did to messages over the admin API, by what came of it.",
    ["operation", "outcome"],
)
HANDOVER_SENT = Counter(
    "gatepost_handover_sent", "Messages offered to other gateways, by what came of the offer.", ["outcome"]
)
HANDOVER_RECEIVED = Counter(
    "gatepost_handover_received", "Messages that other gateways offered, by what came of it.", ["outcome"]
)
QUARANTINE_EXPIRED = Counter("gatepost_quarantine_expired", "Messages dropped since they were in quarantine for long.")
ATTEMPTS = Counter("gatepost_attempts", "Delivery attempts per recipient.", ["outcome", "transport"])
ATTEMPT_SECONDS = Histogram("gatepost_attempt_seconds", "Time of a delivery attempt.", ["transport"], buckets=_FAST)
DELIVERY_DELAY = Histogram(
    "gatepost_delivery_delay_seconds", "From acceptance to delivery, per recipient.", buckets=_SLOW
)
TLS_OUT = Counter(
    "gatepost_tls_out",
    "TLS towards next hops, per connection, by the policy that applied and the result.",
    ["policy", "result"],
)
TLS_RESUMED = Counter(
    "gatepost_tls_out_resumed", "Those of the connections with TLS that took up an earlier session.", ["policy"]
)
AUTH_OUT = Counter("gatepost_auth_out", "Logins at next hops, by result.", ["result"])
STS_FETCHES = Counter("gatepost_sts_fetches", "MTA-STS policies fetched, by result.", ["result"])
TLS_REPORTS = Counter("gatepost_tls_reports", "Daily TLS reports, and what became of them.", ["outcome"])
DSNS = Counter("gatepost_dsns", "Delivery status notifications queued.", ["kind"])
OWN_SIGNATURES = Counter(
    "gatepost_own_signatures", "Mail of Gatepost's own that was to be signed, by what came of it.", ["outcome"]
)
DOUBLE_BOUNCES = Counter(
    "gatepost_double_bounces", "Bounces that could not be delivered, by what became of them.", ["outcome"]
)
RETURN_PATHS = Counter(
    "gatepost_return_paths", "Senders that were to be rewritten on the way out, per attempt.", ["kind", "outcome"]
)
SRS_RECIPIENTS = Counter("gatepost_srs_recipients", "Rewritten addresses of ours that RCPT named.", ["outcome"])
DNS_LOOKUPS = Counter(
    "gatepost_dns_lookups", "Questions asked by Gatepost, by type, result and cache.", ["rdtype", "result"]
)
DNS_SECONDS = Histogram("gatepost_dns_seconds", "Time of DNS questions that went to the network.", buckets=_FAST)
STATE_DOWN = Gauge("gatepost_state_down", "1 while the shared state store counts as down.", multiprocess_mode="livemax")
STATE_CALLS = Counter("gatepost_state_calls", "Calls of the shared state store, by what came of them.", ["result"])
STATE_SECONDS = Histogram("gatepost_state_seconds", "Time of a call of the shared state store.", buckets=_FAST)
STATE_STAND_IN = Counter("gatepost_state_stand_in", "Calls that this replica's own store answered in its place.")
STATE_SETTLED = Counter(
    "gatepost_state_settled",
    "What was learned while the shared store was down, by what became of it.",
    ["outcome"],
)
CONFIG_GENERATION = Gauge(
    "gatepost_config_generation",
    "Number of the configuration that a worker gives to sessions which begin.",
    ["worker"],
    multiprocess_mode="livemax",
)
RELOADS = Counter("gatepost_config_reloads", "Reloads, by what came of them.", ["result"])
RELOADED = Gauge(
    "gatepost_config_last_reload_success_timestamp_seconds",
    "When the configuration in force was taken, epoch seconds.",
    multiprocess_mode="livemax",
)
RELOAD_OK = Gauge(
    "gatepost_config_last_reload_successful",
    "1 when the last reload was done, or there was none; 0 when it was refused or failed.",
    multiprocess_mode="livemax",
)
CLIENT_CERTIFICATES = Counter(
    "gatepost_client_certificates",
    "Certificates that clients showed, by whether a CA of the listener's vouches for them.",
    ["listener", "result"],
)
CLIENTS_HIDDEN = Gauge(
    "gatepost_clients_hidden",
    "1 while a listener seems to see only a proxy's or a node's address in place of its clients'.",
    ["listener"],
    multiprocess_mode="livemax",
)
CERTIFICATE_EXPIRY = Gauge(
    "gatepost_certificate_expiry_timestamp_seconds",
    "When a listener's certificate ends, epoch seconds.",
    ["listener"],
    multiprocess_mode="livemax",
)
WORKER_RESTARTS = Counter("gatepost_worker_restarts", "Workers that died and were started again.")
GUEST_ANSWERS = Counter(
    "gatepost_guest_answers", "Answers to another MTA, by protocol, stage and answer.", ["through", "stage", "answer"]
)
GUEST_LEFT_OUT = Counter("gatepost_guest_left_out", "Edits that the other MTA could not be told.", ["through"])
