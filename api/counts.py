"""What the ingest counts, for metrics and for tests.

Plain numbers that only grow (but for `inflight_bytes`), written by the event loop's thread alone; reading them from
another thread gives a number that was true a moment ago.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class IngestCounts:
    """Totals since the process started."""

    requests: Counter[int] = field(default_factory=Counter)
    """Answers to `POST /v1/events`, by HTTP status."""
    events: Counter[str] = field(default_factory=Counter)
    """Events by outcome: `accepted`, `unconfirmed`, or the reason for which they were rejected."""
    keys: Counter[str] = field(default_factory=Counter)
    """Accepted events by the name of the API key."""
    body_bytes: int = 0
    """Bytes of event bodies read, unpacked."""
    inflight_bytes: int = 0
    """Bytes of bodies that are held in memory now: being read, or waiting for Kafka."""
    store_seconds: float = 0.0
    """Time spent waiting for Kafka, summed over requests."""
    stores: int = 0
    """Requests that waited for Kafka."""
