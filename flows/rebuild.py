"""Rebuilding lost state from the ledger: what is to be rebuilt, and how a start goes about it.

The plan is made once, when a rebuild begins, and kept in the data directory: up to which offset each partition is read
from the ledger, as `progress` had it. A run that was killed goes on with the same plan, whoever wrote rows meanwhile.
Guarantees: a ledger that lacks rows is refused; nothing of it is written or claimed again but the totals, whose rows
come out as they were. Signals that were surely published are not published again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.client import Client

from domain.ports import TallyError
from domain.values import SECOND_US
from engines.data_directory import DataDirectory
from flows.recovery import Saved
from sources.file_places import Wanted
from sources.ledger import Counted, LedgerState

LEDGER = "ledger"
_SAMPLES = 3
"""Events at each end of a partition by which its file is known again."""

_COUNTED = """
SELECT log_partition, next_offset, messages, events, toUnixTimestamp64Micro(log_time)
FROM progress FINAL
WHERE log_topic = {topic:String}
"""
_TOPICS = """
SELECT DISTINCT log_topic FROM (SELECT log_topic FROM progress UNION ALL SELECT log_topic FROM events)
"""
_UNKNOWN = """
SELECT DISTINCT log_partition FROM events
WHERE log_topic = {topic:String}
    AND log_partition NOT IN (SELECT log_partition FROM progress WHERE log_topic = {topic:String})
"""
_UNBALANCED = """
SELECT log_partition, events, accepted, rejected
FROM completeness
WHERE log_topic = {topic:String} AND NOT balanced
ORDER BY log_partition
"""
_LATEST_SIGNAL = "SELECT toUnixTimestamp64Micro(max(at)) FROM signals"
_TOLD = """
SELECT id FROM signals GROUP BY id HAVING max(at) < fromUnixTimestamp64Micro({before:Int64}, 'UTC')
"""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What is rebuilt."""

    topic: str
    store: int
    """The number of the store with which the rebuild began."""
    counted: dict[int, Counted]
    """By partition, what is read from the ledger."""
    told_before_us: int
    """Signals that were written before are known to be published."""

    def record(self) -> dict[str, Any]:
        counted = {str(partition): list(row) for partition, row in self.counted.items()}
        return {
            "topic": self.topic, "store": self.store, "counted": counted, "told_before_us": self.told_before_us
        }  # fmt: skip


def plan(client: Client, topic: str, store: int, doubt_seconds: float) -> Rebuild:
    """Begin a rebuild of everything that the ledger holds.

    Args:
        client: Of the database that holds the ledger.
        topic: The log topic that goes on behind it.
        store: The number that the store of this start will have.
        doubt_seconds: How long a signal may take to be published after it was written: what was written so long
            before the last one is known to be, what came later is published again.

    Raises:
        TallyError: state cannot be rebuilt from this ledger; names the partition.
    """
    others = {name for (name,) in client.query(_TOPICS).result_rows} - {topic}
    if others:
        raise TallyError(
            f"the ledger is of log {', '.join(sorted(others))}, and this run would go on with {topic}: name the log "
            "that was counted (--then, TALLY_KAFKA_TOPIC)"
        )
    unknown = sorted(partition for (partition,) in client.query(_UNKNOWN, {"topic": topic}).result_rows)
    if unknown:
        raise TallyError(
            f"the ledger has events of partition {unknown[0]} of {topic}, but `progress` does not say how far it is "
            "counted: state cannot be rebuilt from it. Restore the table `progress`"
        )
    for partition, events, accepted, rejected in client.query(_UNBALANCED, {"topic": topic}).result_rows:
        raise TallyError(
            f"the ledger of partition {partition} of {topic} is not complete: {events} events were read, {accepted} "
            f"stand in `events` and {rejected} in `rejects`. State rebuilt from it would be wrong: restore both tables"
        )
    rows = client.query(_COUNTED, {"topic": topic}).result_rows
    latest_us = int(client.query(_LATEST_SIGNAL).result_rows[0][0] or 0)
    return Rebuild(
        topic,
        store,
        {int(partition): Counted(*map(int, row)) for partition, *row in rows},
        latest_us - round(doubt_seconds * SECOND_US),
    )


def under_way(directory: DataDirectory, newest: int, topic: str) -> Rebuild | None:
    """The rebuild that the newest store belongs to, if it began with one."""
    record = directory.read("rebuild")
    if record is None or newest < int(record["store"]) or record["topic"] != topic:
        return None
    counted = {int(partition): Counted(*row) for partition, row in record["counted"].items()}
    return Rebuild(topic, int(record["store"]), counted, int(record["told_before_us"]))


def is_over(rebuild: Rebuild, saved: Saved) -> bool:
    """Whether all that was planned is rebuilt."""
    states = {partition: saved.sources.get(partition, LedgerState()) for partition in rebuild.counted}
    return all(states[partition].next_offset >= row.next_offset for partition, row in rebuild.counted.items())


def goes_on(rebuild: Rebuild, saved: Saved) -> bool:
    """Whether there is a partition that does not read the log yet; one whose file is gone never will."""
    return any(isinstance(saved.sources.get(partition, LedgerState()), LedgerState) for partition in rebuild.counted)


def told(client: Client, rebuild: Rebuild) -> frozenset[str]:
    """Ids of the signals that were published before the rebuild began."""
    return frozenset(row[0] for row in client.query(_TOLD, {"before": rebuild.told_before_us}).result_rows)


def samples_of(client: Callable[[], Client], rebuild: Rebuild) -> Mapping[int, Wanted]:
    """By partition, by what its file or its messages are known."""
    with client() as reader:
        return {partition: _wanted(reader, rebuild.topic, partition, row) for partition, row in rebuild.counted.items()}


def _wanted(client: Client, topic: str, partition: int, counted: Counted) -> Wanted:
    samples: dict[tuple[int, int], bytes] = {}
    about = {"topic": topic, "partition": partition, "end": counted.next_offset, "rows": _SAMPLES}
    for table, condition in (("events", ""), ("rejects", "AND reason != 'duplicate'")):
        for order in ("ASC", "DESC"):
            sql = f"""
                SELECT log_offset, log_index, payload FROM {table}
                WHERE log_topic = {{topic:String}} AND log_partition = {{partition:UInt32}}
                    AND log_offset < {{end:UInt64}} {condition}
                ORDER BY log_topic {order}, log_partition {order}, log_offset {order}, log_index {order}
                LIMIT {{rows:UInt64}}
            """
            for offset, element, payload in client.query(sql, about, column_formats={"payload": "bytes"}).result_rows:
                samples[int(offset), int(element)] = payload
    return Wanted(counted.next_offset, counted.events, samples)
