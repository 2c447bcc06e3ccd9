"""Every metric there is: this list is the documentation (`docs/metrics.md` is made from it), and the only way to one.

Names follow Prometheus: base units, the unit last, `_total` for what only grows. Label values come from small closed
sets (outcomes, tables, steps, partitions), never from events: a subject is no label.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    COUNTER = "counter"
    """Grows while the process lives; begins at 0 with it."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of this process."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of histograms only; one without bound is added."""


_FAST: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LATENCY: Final = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_ROWS: Final = (1.0, 10.0, 100.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0)

BUILD = Metric("tally_build_info", Kind.GAUGE, "", "1, with what runs as labels.", ("version", "python"))
STARTED = Metric("tally_start_time_seconds", Kind.GAUGE, "Unix time", "When this process began to start the flow.")
RUNNING = Metric("tally_running", Kind.GAUGE, "", "1 while the flow runs, 0 while it starts or ends.")
CATALOG = Metric("tally_catalog_version", Kind.GAUGE, "", "The newest applied version of the catalog.")
CLAIMS_REBUILT = Metric(
    "tally_claims_rebuilt_total", Kind.COUNTER, "claims", "Claims that the start wrote to Redis from the ledger."
)

EVENTS = Metric(
    "tally_events_total",
    Kind.COUNTER,
    "events",
    "Events judged, by outcome: `accepted`, or the reason of the rejection. What is read again after a restart counts "
    "again.",
    ("outcome",),
)
MESSAGES = Metric("tally_messages_total", Kind.COUNTER, "messages", "Messages read, by partition.", ("partition",))
BATCH_ROWS = Metric("tally_batch_rows", Kind.HISTOGRAM, "events", "Events of a batch.", (), _ROWS)
STEP_SECONDS = Metric(
    "tally_step_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time spent in a step of the flow, summed over threads: divided by the rate of `tally_batch_rows_count`, "
    "the seconds that a batch takes.",
    ("step",),
)
CLAIM_SECONDS = Metric(
    "tally_claim_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "How long a batch's claims were under way, from being sent to Redis to their answer being taken.",
    (),
    _FAST,
)

SIGNALS = Metric("tally_signals_total", Kind.COUNTER, "signals", "Signals made, by type.", ("type",))
SIGNAL_SECONDS = Metric(
    "tally_event_to_signal_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From the log time of the newest event in the batch that crossed a threshold until the signal was made and handed "
    "to the sinks. Kafka only: the log times of files are no clock.",
    (),
    _LATENCY,
)
SEND_SECONDS = Metric(
    "tally_signal_send_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "From a signal being made until its channel, `kafka` or `redis`, had acknowledged it.",
    ("channel",),
    _FAST,
)

FLUSH_SECONDS = Metric(
    "tally_flush_seconds", Kind.HISTOGRAM, "seconds", "An insert into ClickHouse, by table.", ("table",), _FAST
)
FLUSH_ROWS = Metric("tally_flush_rows_total", Kind.COUNTER, "rows", "Rows that ClickHouse took, by table.", ("table",))
FLUSH_ERRORS = Metric(
    "tally_flush_errors_total",
    Kind.COUNTER,
    "inserts",
    "Inserts that ClickHouse did not take, by table; most are tried again.",
    ("table",),
)
FLUSHED = Metric(
    "tally_last_flush_time_seconds", Kind.GAUGE, "Unix time", "When ClickHouse last took an insert; 0 before that."
)
SNAPSHOT = Metric(
    "tally_last_snapshot_time_seconds",
    Kind.GAUGE,
    "Unix time",
    "When the sources were last asked for a snapshot, which is when an epoch closes; 0 before that.",
)

POSITION = Metric("tally_position_offset", Kind.GAUGE, "offset", "The next offset to be read.", ("partition",))
LAG = Metric(
    "tally_lag_offsets",
    Kind.GAUGE,
    "offsets",
    "From the next offset to the end of the partition: messages, markers, and those of open transactions (Kafka only).",
    ("partition",),
)
LAG_SECONDS = Metric(
    "tally_lag_seconds",
    Kind.GAUGE,
    "seconds",
    "Age of the next message to be read, at most; 0 where there is none (Kafka only).",
    ("partition",),
)
POLLED = Metric(
    "tally_last_poll_age_seconds",
    Kind.GAUGE,
    "seconds",
    "Since the partition was last asked for a batch.",
    ("partition",),
)

TOTALS = Metric(
    "tally_open_totals",
    Kind.GAUGE,
    "totals",
    "Totals in this process's state: windows, billing and entitlement periods; as of the last snapshot.",
)
STATE = Metric("tally_state_bytes", Kind.GAUGE, "bytes", "Size of this process's state in its last snapshot.")
ANSWERED = Metric(
    "tally_service_answer_age_seconds",
    Kind.GAUGE,
    "seconds",
    "Since a service last answered, by service; absent before its first answer.",
    ("service",),
)

WEBHOOK_ATTEMPTS = Metric(
    "tally_webhook_attempts_total",
    Kind.COUNTER,
    "attempts",
    "Requests that `tally webhooks` made, by endpoint and outcome: `delivered` or `failed`.",
    ("endpoint", "outcome"),
)
WEBHOOK_DEAD = Metric(
    "tally_webhook_dead_letters_total",
    Kind.COUNTER,
    "signals",
    "Signals given up and stored in `webhook_dead_letters`, by endpoint.",
    ("endpoint",),
)
WEBHOOK_WAITING = Metric(
    "tally_webhook_undelivered_signals",
    Kind.GAUGE,
    "signals",
    "Signals that `tally webhooks` has read and not delivered yet, by endpoint.",
    ("endpoint",),
)
WEBHOOK_FAILING = Metric(
    "tally_webhook_failing_seconds",
    Kind.GAUGE,
    "seconds",
    "For how long the subject that has failed longest has done so, by endpoint; 0 if none fails.",
    ("endpoint",),
)

METRICS: Final = (
    BUILD, STARTED, RUNNING, CATALOG, CLAIMS_REBUILT,
    EVENTS, MESSAGES, BATCH_ROWS, STEP_SECONDS, CLAIM_SECONDS,
    SIGNALS, SIGNAL_SECONDS, SEND_SECONDS,
    FLUSH_SECONDS, FLUSH_ROWS, FLUSH_ERRORS, FLUSHED, SNAPSHOT,
    POSITION, LAG, LAG_SECONDS, POLLED,
    TOTALS, STATE, ANSWERED,
    WEBHOOK_ATTEMPTS, WEBHOOK_DEAD, WEBHOOK_WAITING, WEBHOOK_FAILING,
)  # fmt: skip
"""In the order of the documentation."""
