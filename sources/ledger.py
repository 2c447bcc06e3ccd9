"""The ledger as a log: each partition's accepted events again, up to where it was counted, then the log itself.

For a flow whose saved state is lost or no longer fits. Guarantees: of each partition exactly the events of `events`
before the offset of its row in `progress` come out, in the order of their positions, with the log times, attributes
and places in a CloudEvents batch that they were counted with; behind the last of them the log goes on at that very
offset, with the counters of that row. The running maximum of a partition's log times is at no place greater than it
was when the log was read, so nothing is forgotten that was not forgotten then.

These events were judged before: their batches say `settled`, are not claimed, and may not be refused. A snapshot goes
on in the middle; once a partition reads the log, its snapshots are those of the log's own source.
Failure: what cannot be read stops the flow, which goes on at its last snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from typing_extensions import override

from domain.ports import TallyError
from domain.values import RawBatch

PAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Payloads of one page; a message is never divided, so one that is larger makes a page of its own."""

_PAGE = """
SELECT log_offset, log_index, log_time_us, attributes, payload
FROM
(
    SELECT
        *,
        sum(length(payload)) OVER (
            ORDER BY log_offset, log_index ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) - length(payload) AS bytes_before
    FROM
    (
        SELECT log_offset, log_index, toUnixTimestamp64Micro(log_time) AS log_time_us, attributes, payload
        FROM events
        WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
            AND log_offset >= {start:UInt64} AND log_offset < {end:UInt64}
        ORDER BY log_topic, log_partition, log_offset, log_index
        LIMIT {rows:UInt64}
    )
)
WHERE bytes_before < {bytes:UInt64}
ORDER BY log_offset, log_index
"""


class Counted(NamedTuple):
    """How far a partition was counted: its row in `progress`."""

    next_offset: int
    messages: int
    events: int
    log_time_us: int


class LedgerState(NamedTuple):
    """How far a partition is rebuilt; what Bytewax keeps as its snapshot until the log goes on."""

    next_offset: int = 0


class Row(NamedTuple):
    """An accepted event as the ledger has it."""

    offset: int
    element: int
    log_time_us: int
    attributes: dict[str, str]
    payload: bytes


class Ledger:
    """Reads one partition's events in bounded pages.

    Args:
        client: Of the database that holds the ledger; closed with this.
        topic: The log topic.
        partition: Its number.
        rows_max: Rows of a page.
        bytes_max: Bytes of its payloads, after which it ends.
    """

    def __init__(
        self, client: Client, topic: str, partition: int, *, rows_max: int, bytes_max: int = PAGE_BYTES_MAX
    ) -> None:
        self._client = client
        self._about = {"topic": topic, "partition": partition}
        self._rows_max = rows_max
        self._bytes_max = bytes_max

    def page(self, start_offset: int, end_offset: int) -> list[Row]:
        """The events of whole messages from an offset on; empty only if there are no more before `end_offset`.

        Raises:
            TallyError: ClickHouse does not give them.
        """
        rows_max, bytes_max = self._rows_max, self._bytes_max
        while True:
            rows = self._rows(start_offset, end_offset, rows_max, bytes_max)
            if len(rows) < rows_max and sum(len(row.payload) for row in rows) < bytes_max:
                return _distinct(rows)
            whole = [row for row in rows if row.offset != rows[-1].offset]
            if whole:
                return _distinct(whole)
            rows_max, bytes_max = 2 * rows_max, 2 * bytes_max  # more events in one message than a page has

    def close(self) -> None:
        self._client.close()

    def _rows(self, start: int, end: int, rows_max: int, bytes_max: int) -> list[Row]:
        parameters = {**self._about, "start": start, "end": end, "rows": rows_max, "bytes": bytes_max}
        try:
            found = self._client.query(_PAGE, parameters, column_formats={"payload": "bytes"})
        except ClickHouseError as error:
            raise TallyError(
                f"the ledger of partition {self._about['partition']} could not be read from offset {start} on: "
                f"{str(error).splitlines()[0]}. Nothing is lost: start again once ClickHouse answers."
            ) from error
        return [Row(*row) for row in found.result_rows]


def _distinct(rows: list[Row]) -> list[Row]:
    """Each position once: a row that was written twice may not be merged yet."""
    return list({(row.offset, row.element): row for row in rows}.values())


class LedgerSource(FixedPartitionedSource[RawBatch, Any]):
    """The ledger of a topic, then its log.

    Args:
        log: The source of the log. Its partitions are opened at once, so that what it refuses is known before
            anything is read.
        counted: How far each partition was counted, where it was; others are read from the log only.
        log_state: The snapshot with which the log goes on behind the ledger, by partition.
        ledger: Opens the ledger of a partition.
        monotone: Whether the log gives log times that never fall.
        topic: The log topic.
        stop: Once set, every partition ends at its next poll.
    """

    def __init__(
        self,
        log: FixedPartitionedSource[RawBatch, Any],
        counted: Mapping[int, Counted],
        log_state: Callable[[int], Any],
        ledger: Callable[[int], Ledger],
        *,
        topic: str,
        monotone: bool,
        stop: threading.Event,
    ) -> None:
        self._log = log
        self._counted = counted
        self._log_state = log_state
        self._ledger = ledger
        self._topic = topic
        self._monotone = monotone
        self._stop = stop
        self._open: dict[int, LedgerPartition] = {}

    @override
    def list_parts(self) -> list[str]:
        """Also those that the log does not have any more: a file that was counted may be gone."""
        return sorted({*self._log.list_parts(), *map(str, self._counted)}, key=int)

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> StatefulSourcePartition[RawBatch, Any]:
        number = int(for_part)
        counted = self._counted.get(number)
        if counted is None or not (resume_state is None or isinstance(resume_state, LedgerState)):
            return self._log.build_part(step_id, for_part, resume_state)
        log: StatefulSourcePartition[RawBatch, Any] | None = None
        if for_part in self._log.list_parts():
            log = self._log.build_part(step_id, for_part, self._log_state(number))
        state = resume_state or LedgerState()
        part = LedgerPartition(
            self._ledger(number), number, counted, state, log, self._topic, self._monotone, self._stop
        )
        self._open[number] = part
        return part

    def share_rebuilt(self) -> float:
        """How much of the ledger this process has read, from 0 to 1, by offsets; may be asked by any thread."""
        parts = list(self._open.values())
        whole = sum(part.counted.next_offset for part in parts)
        return sum(part.next_offset for part in parts) / whole if whole else 1.0

    def events_rebuilt(self) -> int:
        """How many events of the ledger this run has read; may be asked by any thread."""
        return sum(part.events for part in list(self._open.values()))


class LedgerPartition(StatefulSourcePartition[RawBatch, Any]):
    """One partition: a page of the ledger a poll; behind the last one, what the log's partition does if it has one."""

    def __init__(
        self,
        ledger: Ledger,
        number: int,
        counted: Counted,
        state: LedgerState,
        log: StatefulSourcePartition[RawBatch, Any] | None,
        topic: str,
        monotone: bool,
        stop: threading.Event,
    ) -> None:
        self.counted = counted
        self.next_offset = state.next_offset
        self.events = 0
        self._ledger = ledger
        self._number = number
        self._log = log
        self._topic = topic
        self._monotone = monotone
        self._stop = stop
        self._log_time_us = 0
        self._rebuilt = False

    @override
    def next_batch(self) -> list[RawBatch]:
        if self._stop.is_set():
            raise StopIteration
        if self._rebuilt:
            if self._log is None:
                raise StopIteration
            return list(self._log.next_batch())
        rows = self._ledger.page(self.next_offset, self.counted.next_offset)
        if rows:
            self._log_time_us = max(self._log_time_us, *(row.log_time_us for row in rows))
            return [self._batch(rows, rows[-1].offset + 1)]
        self._ledger.close()
        self._rebuilt = True
        self._log_time_us = self.counted.log_time_us
        return [self._batch([], self.counted.next_offset)]

    @override
    def next_awake(self) -> datetime | None:
        return self._log.next_awake() if self._rebuilt and self._log is not None else None

    @override
    def snapshot(self) -> Any:
        return self._log.snapshot() if self._rebuilt and self._log is not None else LedgerState(self.next_offset)

    @override
    def close(self) -> None:
        if not self._rebuilt:
            self._ledger.close()
        if self._log is not None:
            self._log.close()

    def _batch(self, rows: list[Row], next_offset: int) -> RawBatch:
        start, self.next_offset = self.next_offset, next_offset
        self.events += len(rows)
        attributes = [row.attributes or None for row in rows]
        return RawBatch(
            topic=self._topic,
            partition=self._number,
            start_offset=start,
            next_offset=next_offset,
            offsets=[row.offset for row in rows],
            indexes=[row.element for row in rows],
            payloads=[row.payload for row in rows],
            messages=self.counted.messages,
            events=self.counted.events,
            attributes=attributes if any(attributes) else None,
            log_times_us=[row.log_time_us for row in rows] if self._monotone else None,
            log_time_us=self._log_time_us if self._monotone else None,
            settled=True,
        )
