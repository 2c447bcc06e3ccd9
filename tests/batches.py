"""Short ways to write histories, events and batches of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from config.catalog import load_history
from domain.catalog import History
from domain.instants import parse, to_text
from domain.values import Events, RawBatch

TOPIC = "file"
NOON = "2026-03-10T12:00:00Z"


def us(text: str) -> int:
    """The instant of a text that is one."""
    found = parse(text)
    assert found is not None, text
    return found


def history(*versions: str | tuple[str, str]) -> History:
    """Catalog versions 1, 2 ...: YAML, from the second on with the log time from which it holds."""
    dated = [("", version) if isinstance(version, str) else version for version in versions]
    return load_history([(n, us(since) if since else 0, text) for n, (since, text) in enumerate(dated, start=1)])


def event(**changes: Any) -> dict[str, Any]:
    """An event's attributes and data; a change to None leaves one out."""
    whole = {
        "specversion": "1.0", "id": "1", "source": "s", "type": "call", "subject": "a", "time": NOON,
        "data": {"n": 1},
    } | changes  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}


def payload(**changes: Any) -> bytes:
    """`event` as JSON; characters beyond ASCII as they are."""
    return json.dumps(event(**changes), ensure_ascii=False).encode()


def timed(time_us: int, log_time_us: int | None = None) -> dict[str, str]:
    """An event's `time`, and `logtime` if there is one."""
    return {"time": to_text(time_us)} | ({} if log_time_us is None else {"logtime": to_text(log_time_us)})


def raw(
    payloads: Sequence[bytes],
    *,
    partition: int = 0,
    start: int = 0,
    attributes: Sequence[Mapping[str, str] | None] | None = None,
    log_times_us: Sequence[int] | None = None,
    log_time_us: int | None = None,
) -> RawBatch:
    """A batch of messages with one event each, at the offsets from `start` on."""
    after = start + len(payloads)
    return RawBatch(
        TOPIC, partition, start, after, list(range(start, after)), [0] * len(payloads), list(payloads), after, after,
        None if attributes is None else [None if a is None else dict(a) for a in attributes],
        None if log_times_us is None else list(log_times_us),
        log_time_us,
    )  # fmt: skip


def between(events: Events, low: int, high: int) -> Events:
    """A slice of events."""
    return events.without({*range(len(events))} - {*range(low, high)})
