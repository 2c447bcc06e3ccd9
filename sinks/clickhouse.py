"""The ClickHouse sink: ledger, rejects, progress, usage, rated usage, quotas and signals.

Rows are buffered and written in the background, by rows, by seconds, and at the epoch barrier: Bytewax
calls `snapshot()` when an epoch closes and makes the source's offsets durable only after it returns, so
whatever the flow will not read again is in ClickHouse by then. Between barriers anything may be written
early or twice; every row is keyed and absolute, so that changes nothing.

A write that fails for a passing reason is tried again with backoff for a bounded time; after that, and on
any other error, the flow stops, and resumes at the last barrier.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Protocol

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from domain.ports import TallyError
from sinks.buffer import Buffer, Item
from sinks.partitions import SharedSink

_INSERT_SETTINGS = {"insert_deduplicate": 0, "max_partitions_per_insert_block": 0}
"""Nothing may depend on insert deduplication: ClickHouse drops different rows under a repeated token."""

_PASSING_CODES = frozenset(
    {159, 202, 203, 209, 210, 225, 236, 241, 242, 243, 252, 279, 285, 286, 289, 319, 394, 425, 439, 999}
)
"""Timeouts, too many queries or parts, network, memory pressure, read-only replicas, full disks, quorums, shutdown,
keeper."""
_PASSING_STATUS = re.compile(r"HTTP status (?:429|500|502|503|504)\b")
"""Of a proxy or balancer before a server that is away; ClickHouse's own refusals have a code."""

_PAUSE_SECONDS_MIN = 0.1
_PAUSE_SECONDS_MAX = 5.0


_Tables = list[tuple[str, pa.Table]]


class Inserts(Protocol):
    """Told how inserts go, by the thread that writes; quick, and raises nothing."""

    def taken(self, table: str, rows: int, seconds: float) -> None:
        """ClickHouse took rows, and needed so long."""
        ...

    def refused(self, table: str, rows: int, error: Exception) -> None:
        """ClickHouse did not take rows this time."""
        ...


class Untold:
    """Tells nobody."""

    def taken(self, table: str, rows: int, seconds: float) -> None:
        pass

    def refused(self, table: str, rows: int, error: Exception) -> None:
        pass


class Insertion:
    """Inserts tables one after the other, with patience.

    Args:
        client: Of the `tallyflow` database.
        retry_seconds: How long a passing failure is tried again.
        inserts: Told how they go.
        rest: Waits so many seconds; true ends the patience.
        where: What errors call the server.
        monotonic: The clock that patience goes by.
    """

    def __init__(
        self,
        client: Client,
        retry_seconds: float,
        inserts: Inserts,
        *,
        rest: Callable[[float], bool],
        where: str = "ClickHouse",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._retry_seconds = retry_seconds
        self._inserts = inserts
        self._rest = rest
        self._where = where
        self._monotonic = monotonic

    def insert(self, name: str, table: pa.Table) -> None:
        """Insert a table; a passing failure is tried again until the bound has run out."""
        give_up = self._monotonic() + self._retry_seconds
        pause, is_over = _PAUSE_SECONDS_MIN, False
        while True:
            try:
                begun = self._monotonic()
                self._client.insert_arrow(name, table, settings=_INSERT_SETTINGS)
                self._inserts.taken(name, len(table), self._monotonic() - begun)
                return
            except ClickHouseError as error:
                self._inserts.refused(name, len(table), error)
                if not passes(error):
                    raise TallyError(f"{self._where} refused {len(table)} rows of {name}: {error}") from error
                if self._monotonic() + pause > give_up or is_over:
                    raise TallyError(
                        f"{self._where} did not take {len(table)} rows of {name} in {self._retry_seconds:g} s: "
                        f"{error}. Nothing is lost: the flow resumes at its last snapshot once ClickHouse takes them."
                    ) from error
            is_over = self._rest(pause)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    def close(self) -> None:
        self._client.close()


class Writer(Protocol):
    """Writes buffers in the order in which they are handed over."""

    @property
    def handed(self) -> int:
        """Buffers handed over so far."""
        ...

    def write(self, buffer: Buffer) -> None:
        """Hand over a buffer; raises what an earlier one failed with. One caller at a time."""
        ...

    def wait(self, count: int) -> None:
        """Return once the first `count` buffers are in ClickHouse, whatever comes after; raises what failed."""
        ...

    def abandon(self) -> None:
        """End, and drop what is not written yet; raises nothing, may be called again."""
        ...


class ThreadedWriter:
    """A `Writer` with a thread of its own. At most one buffer waits while one is written.

    Args:
        topic: The deployment's log topic.
        open: Makes the insertion, given how to rest: woken when the writer is abandoned.
    """

    def __init__(self, topic: str, open: Callable[[Callable[[float], bool]], Insertion]) -> None:
        self._topic = topic
        self._waiting: queue.Queue[_Tables | None] = queue.Queue(maxsize=1)
        self._handed = 0
        self._done = 0
        self._progress = threading.Condition()
        self._error: BaseException | None = None
        self._abandoned = threading.Event()
        self._insertion = open(self._abandoned.wait)
        self._thread = threading.Thread(target=self._run, name="clickhouse-writer", daemon=True)
        self._thread.start()

    @property
    def handed(self) -> int:
        return self._handed

    def write(self, buffer: Buffer) -> None:
        """Its tables are built here, on the flow's own thread: building holds the interpreter lock, and
        would only make the flow wait for that; inserting gives it up. A caller that is faster is held back.
        """
        self._raise()
        self._waiting.put(buffer.tables(self._topic))
        self._handed += 1

    def wait(self, count: int) -> None:
        with self._progress:
            self._progress.wait_for(lambda: self._done >= count)
        self._raise()

    def abandon(self) -> None:
        self._abandoned.set()
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            self._insertion.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (tables := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._write(tables)
            except BaseException as error:  # kept for the flow's own thread, which raises it
                self._error = error
            finally:
                with self._progress:
                    self._done += 1
                    self._progress.notify_all()

    def _write(self, tables: _Tables) -> None:
        for name, table in tables:
            if not self._abandoned.is_set():
                self._insertion.insert(name, table)


def passes(error: ClickHouseError) -> bool:
    """Whether an error may be gone when the same insert is tried again. Transport errors are OperationalErrors."""
    code = getattr(error, "code", None)
    return (
        isinstance(error, OperationalError)
        or code in _PASSING_CODES
        or (code is None and _PASSING_STATUS.search(str(error)) is not None)
    )


class ClickHouseOutlet:
    """Buffers what it is given; empty after every `flush()`. For any number of threads.

    A lock is held while a buffer is handed over, so buffers are written in the order in which they filled:
    `progress` must not come before the events that it counts.
    """

    def __init__(
        self, writer: Writer, *, rows_max: int, seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._rows_max = rows_max
        self._seconds = seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._buffer = Buffer()
        self._since = monotonic()

    def write(self, items: list[Item]) -> None:
        """Take items; hands the buffer over once it is full, or old enough."""
        with self._lock:
            for item in items:
                self._buffer.add(item)
            if self._buffer.count >= self._rows_max or self._monotonic() - self._since >= self._seconds:
                self._hand_over()

    def flush(self) -> None:
        """Return once all that was taken before is in ClickHouse; raises what failed."""
        with self._lock:
            self._hand_over()
            last = self._writer.handed
        self._writer.wait(last)

    def abandon(self) -> None:
        """End without writing what is still buffered; may be called again."""
        self._writer.abandon()

    def _hand_over(self) -> None:
        if self._buffer.count:
            self._writer.write(self._buffer)
            self._buffer = Buffer()
        self._since = self._monotonic()


class ClickHouseSink(SharedSink[Item]):
    """Writes batches, rated updates and quota states.

    Args:
        client: Makes a client of the `tallyflow` database; called once a process.
        topic: The deployment's log topic.
        rows_max: Write when this many rows wait.
        seconds: Write when the oldest row waits this long and another arrives.
        retry_seconds: How long a passing failure is tried again.
        inserts: Told how they go.
        where: What errors call the server.
    """

    def __init__(
        self,
        client: Callable[[], Client],
        *,
        topic: str,
        rows_max: int,
        seconds: float,
        retry_seconds: float,
        inserts: Inserts | None = None,
        where: str = "ClickHouse",
    ) -> None:

        def insertion(rest: Callable[[float], bool]) -> Insertion:
            return Insertion(client(), retry_seconds, inserts or Untold(), rest=rest, where=where)

        super().__init__(lambda: ClickHouseOutlet(ThreadedWriter(topic, insertion), rows_max=rows_max, seconds=seconds))
