"""The metrics of the ingest: what `IngestCounts` counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from api.counts import IngestCounts
from telemetry.catalogue import Kind, Metric
from telemetry.recorder import Looked, Recorder, Sample

REQUESTS: Final = Metric(
    "tally_ingest_requests_total",
    Kind.COUNTER,
    "requests",
    "Answers to `POST /v1/events`, by HTTP status; 499: the client left.",
    ("status",),
)
EVENTS: Final = Metric(
    "tally_ingest_events_total",
    Kind.COUNTER,
    "events",
    "Events by outcome: `accepted`, `unconfirmed`, or the reason of the rejection.",
    ("outcome",),
)
ACCEPTED: Final = Metric(
    "tally_ingest_accepted_total", Kind.COUNTER, "events", "Accepted events, by the name of the API key.", ("key",)
)
BODY_BYTES: Final = Metric("tally_ingest_body_bytes_total", Kind.COUNTER, "bytes", "Bodies read, unpacked.")
INFLIGHT: Final = Metric(
    "tally_ingest_inflight_bytes", Kind.GAUGE, "bytes", "Bodies held now: being read, or waiting for Kafka."
)
STORES: Final = Metric("tally_ingest_stores_total", Kind.COUNTER, "requests", "Requests that waited for Kafka.")
STORE_SECONDS: Final = Metric(
    "tally_ingest_store_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time that they waited; divided by `tally_ingest_stores_total`, the time of one.",
)

METRICS: Final = (REQUESTS, EVENTS, ACCEPTED, BODY_BYTES, INFLIGHT, STORES, STORE_SECONDS)
"""In the order of the documentation (docs/ingest.md)."""


def recorder(counts: IngestCounts) -> Recorder:
    """What the ingest has counted, looked up when somebody asks."""
    looked: dict[Metric, Looked] = {
        REQUESTS: lambda: _each({str(status): n for status, n in list(counts.requests.items())}),
        EVENTS: lambda: _each(dict(counts.events)),
        ACCEPTED: lambda: _each(dict(counts.keys)),
        BODY_BYTES: lambda: [((), counts.body_bytes)],
        INFLIGHT: lambda: [((), counts.inflight_bytes)],
        STORES: lambda: [((), counts.stores)],
        STORE_SECONDS: lambda: [((), counts.store_seconds)],
    }
    return Recorder(METRICS, looked)


def _each(counted: Mapping[str, int]) -> list[Sample]:
    return [((label,), float(count)) for label, count in counted.items()]
