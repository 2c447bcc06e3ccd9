"""What happens to accepted events: a bounded buffer, and one background thread that owns the producer.

Guarantees: `put` does no I/O and waits for no longer than it is told; an accepted event stays in the
buffer, and counts against its bounds, until the broker has acknowledged it or it has been reported
as failed: never neither, never both. A batch that Kafka's client gives up is sent again, through a
new producer if need be, with the same bytes and so the same id: what arrived twice counts once.
Failure: an event that is not acknowledged within `delivery_seconds_max` is reported with the last
error; so is everything that is still here when `close` runs out of time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from tallyflow._producer import Options, Producer, open_producer
from tallyflow.events import UsageEvent

log = logging.getLogger("tallyflow")

BATCH_EVENTS_MAX = 1000
RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 2.0
OVERDUE_SECONDS_MAX = 5.0
"""How long after its time an event may still be with Kafka's client, which should have given it back."""
EVENT_OVERHEAD_BYTES = 512
"""What an event costs besides its body, roughly; counted against `buffer_bytes_max`."""
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
"""The broker will refuse such an event the next time as well. But to Kafka's client it is fatal: it fails everything
that it holds with the same error, so the events that came back have to be told apart."""

OnFull = Literal["raise", "drop", "block"]
Reason = Literal["buffer_full", "timed_out", "refused", "closed"]


class BufferFull(Exception):
    """The buffer is full, so the event was not taken: the broker is down, slow, or refuses what is sent."""


class EmitterClosed(RuntimeError):
    """The emitter is closed and takes no more events."""


@dataclass(frozen=True)
class Undelivered:
    """Events that are not known to be in the log, and why. They may be sent again later: see `UsageEmitter.resend`."""

    events: tuple[UsageEvent, ...]
    reason: Reason
    """`buffer_full` (never accepted), `timed_out`, `refused` by the broker, or `closed` before they were delivered."""
    error: str
    """The last error met, for a log."""


@dataclass(frozen=True)
class EmitterStats:
    """What an emitter did in this process. accepted = delivered + failed + pending_events."""

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    """Never accepted, since the buffer was full: `on_full` was `drop`, or `emit` raised `BufferFull`."""
    pending_events: int = 0
    pending_bytes: int = 0
    last_error: str = ""


@dataclass
class _Entry:
    number: int
    event: UsageEvent
    deadline: float
    bytes: int


@dataclass
class _Flush:
    """Somebody who waits until `remaining` of the events before `mark` are done."""

    mark: int
    remaining: int


@dataclass
class _Returned:
    """An event that a producer gave back."""

    entry: _Entry
    producer: Producer
    error: BaseException


@dataclass
class _Counts:
    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    bytes: int = 0
    last_error: str = ""


@dataclass
class _Batch:
    """What the thread has to do next."""

    entries: list[_Entry] = field(default_factory=list)
    suspected: bool = False
    """The entries are suspects: see `Delivery._take_suspects`."""
    timed_out: list[_Entry] = field(default_factory=list)
    refused: list[_Entry] = field(default_factory=list)
    failed_producer: bool = False


class Delivery:
    """The buffer and its thread. For any number of callers; the thread starts with the first event."""

    def __init__(self, options: Options, report: Callable[[Undelivered], None]) -> None:
        self.options = options
        self._report = report
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._pending: dict[int, _Entry] = {}
        self._queue: deque[_Entry] = deque()
        self._returned: deque[_Returned] = deque()
        self._suspects: list[_Entry] = []
        self._alone: int | None = None
        self._flushes: list[_Flush] = []
        self._reporting = 0
        """Failed events that `report` is being told of."""
        self._waiting = 0
        self._counts = _Counts()
        self._closing = self._closed = self._abandoned = False
        self._thread: threading.Thread | None = None
        self._producer: Producer | None = None
        self._failures = 0

    @property
    def started(self) -> bool:
        return self._thread is not None

    def put(self, event: UsageEvent, on_full: OnFull) -> bool:
        """Take an event. False: the buffer is full, also after the wait that `block` allows.

        Raises:
            EmitterClosed: after `close`.
        """
        size = len(event.body) + EVENT_OVERHEAD_BYTES
        with self._lock:
            self._require_open()
            if not self._fits(size) and on_full == "block":
                self._waiting += 1
                try:
                    self._done.wait_for(lambda: self._closing or self._fits(size), self.options.block_seconds_max)
                finally:
                    self._waiting -= 1
                self._require_open()
            if not self._fits(size):
                self._counts.dropped += 1
                return False
            if self._thread is None:
                self._start()
            self._counts.accepted += 1
            self._counts.bytes += size
            deadline = time.monotonic() + self.options.delivery_seconds_max
            entry = _Entry(self._counts.accepted, event, deadline, size)
            self._pending[entry.number] = entry
            self._queue.append(entry)
            self._work.notify()
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until every event taken so far is delivered or reported; False if the time was too short."""
        with self._lock:
            remaining = len(self._pending) + self._reporting
            if not remaining:
                return True
            flush = _Flush(self._counts.accepted, remaining)
            self._flushes.append(flush)
            try:
                return self._done.wait_for(lambda: flush.remaining == 0, timeout_seconds)
            finally:
                self._flushes.remove(flush)

    def close(self, timeout_seconds: float) -> bool:
        """Refuse new events, flush, then report what is left and let the thread end. Once; later calls do nothing."""
        with self._lock:
            if self._closing:
                return not self._pending
            self._closing = True
            self._done.notify_all()  # blocked callers
        self.flush(timeout_seconds)
        with self._lock:
            left = list(self._pending.values())
            self._fail(left)
            self._abandoned = bool(left)
            self._closed = True
            self._work.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)  # it may wait for a broker; it ends by itself then
        self._tell(left, "closed")
        return not left

    def stats(self) -> EmitterStats:
        with self._lock:
            counts = self._counts
            return EmitterStats(
                counts.accepted,
                counts.delivered,
                counts.failed,
                counts.dropped,
                len(self._pending),
                counts.bytes,
                counts.last_error,
            )

    def _require_open(self) -> None:
        if self._closing:
            raise EmitterClosed("the emitter is closed")

    def _fits(self, size: int) -> bool:
        options, counts = self.options, self._counts
        return len(self._pending) < options.buffer_events_max and counts.bytes + size <= options.buffer_bytes_max

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="tallyflow-emitter", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is going down
            self._thread = None
            raise

    # The background thread.

    def _run(self) -> None:
        while self._step():
            pass
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=0 if self._abandoned else 1)

    def _step(self) -> bool:
        """One turn; False once the buffer is closed. Nothing that fails here may end the thread."""
        with self._lock:
            self._work.wait_for(self._has_work, OVERDUE_SECONDS_MAX)
            if self._closed:
                return False
            batch = self._take()
        self._tell(batch.timed_out, "timed_out")
        self._tell(batch.refused, "refused")
        if batch.failed_producer:
            self._discard()
            self._pause()
        unsent = deque(batch.entries)
        try:
            self._send(unsent)
        except Exception as error:
            self._trouble(error)
            with self._lock:
                if batch.suspected:
                    self._suspects.extend(unsent)
                else:
                    self._queue.extendleft(reversed(unsent))
            self._pause()
        return True

    def _has_work(self) -> bool:
        if self._closed or self._returned:
            return True
        return not self._in_flight() if self._suspects else bool(self._queue)

    def _in_flight(self) -> int:
        """How many events Kafka's client holds."""
        return len(self._pending) - len(self._queue) - len(self._suspects) - len(self._returned)

    def _take(self) -> _Batch:
        """The next events to send, and those that it is too late for. Under the lock."""
        batch, now = _Batch(), time.monotonic()
        self._sort_returned(batch)
        self._take_overdue(batch, now)
        while self._queue and self._queue[0].deadline <= now:
            batch.timed_out.append(self._queue.popleft())
        if self._suspects:
            self._take_suspects(batch, now)
        else:
            while self._queue and len(batch.entries) < BATCH_EVENTS_MAX:
                batch.entries.append(self._queue.popleft())
        self._fail(batch.timed_out + batch.refused)
        return batch

    def _sort_returned(self, batch: _Batch) -> None:
        """What happens to events that a producer gave back."""
        again = []
        while self._returned:
            back = self._returned.popleft()
            entry = back.entry
            self._counts.last_error = _text(back.error)
            batch.failed_producer |= back.producer is self._producer
            if not isinstance(back.error, _TOO_LARGE):
                again.append(entry)
            elif entry.number == self._alone:
                batch.refused.append(entry)
            else:
                self._suspects.append(entry)
        self._queue.extendleft(reversed(again))

    def _take_overdue(self, batch: _Batch, now: float) -> None:
        """Events that Kafka's client should have given back long ago: one that has stopped working never does."""
        for entry in self._pending.values():
            if entry.deadline + OVERDUE_SECONDS_MAX > now:
                return
            if entry not in self._queue and entry not in self._suspects:
                batch.timed_out.append(entry)
                batch.failed_producer = True

    def _take_suspects(self, batch: _Batch, now: float) -> None:
        """Of the events that came back as too large, send the smaller half, and nothing else meanwhile.

        If they pass, they are cleared; if not, they come back and are halved again. One that comes back alone is
        refused. So one event that is too large costs a few rounds, however many others came back with it.
        """
        if self._in_flight():
            return
        batch.timed_out.extend(entry for entry in self._suspects if entry.deadline <= now)
        left = sorted((entry for entry in self._suspects if entry.deadline > now), key=lambda entry: entry.bytes)
        half = (len(left) + 1) // 2
        batch.entries, batch.suspected = left[:half], True
        self._suspects = left[half:]
        self._alone = left[0].number if half == 1 else None

    def _send(self, unsent: deque[_Entry]) -> None:
        """Hand events to Kafka's client, taking each from `unsent` once its outcome will be told."""
        if not unsent:
            return
        if self._producer is None:
            self._producer = open_producer(self.options)
        producer = self._producer
        while unsent and not self._closed:
            entry = unsent[0]
            event = entry.event
            try:
                future = producer.send(self.options.topic, value=event.body, key=event.subject.encode())
            except MessageSizeTooLargeError as error:
                unsent.popleft()
                self._came_back(entry, producer, error)
                continue
            unsent.popleft()
            future.add_callback(partial(self._acknowledged, entry))
            future.add_errback(partial(self._came_back, entry, producer))

    def _acknowledged(self, entry: _Entry, _metadata: Any) -> None:
        """Called by Kafka's thread."""
        with self._lock:
            if entry.number in self._pending:
                self._failures = 0
                self._counts.delivered += 1
                self._remove([entry])
                self._settle([entry])
                if self._suspects:
                    self._work.notify()

    def _came_back(self, entry: _Entry, producer: Producer, error: BaseException) -> None:
        """Called by Kafka's thread, so it only takes note."""
        with self._lock:
            if entry.number in self._pending:
                self._returned.append(_Returned(entry, producer, error))
                self._work.notify()

    def _fail(self, entries: Sequence[_Entry]) -> None:
        """Take entries out, to be told of: only then is whoever flushes told that they are done. Under the lock."""
        self._remove(entries)
        self._counts.failed += len(entries)
        self._reporting += len(entries)

    def _remove(self, entries: Sequence[_Entry]) -> None:
        """Take entries from the buffer for good. Under the lock."""
        for entry in entries:
            if self._pending.pop(entry.number, None) is not None:
                self._counts.bytes -= entry.bytes

    def _settle(self, entries: Sequence[_Entry]) -> None:
        """Wake up whoever waits for these entries, or for their room. Under the lock."""
        for entry in entries:
            for flush in self._flushes:
                if entry.number <= flush.mark:
                    flush.remaining -= 1
        if self._waiting or any(flush.remaining == 0 for flush in self._flushes):
            self._done.notify_all()

    def _trouble(self, error: Exception) -> None:
        with self._lock:
            first = not self._failures
            self._counts.last_error = _text(error)
            waiting = len(self._pending)
        if first and waiting:
            log.warning("usage events wait (%d): %s", waiting, _text(error))

    def _discard(self) -> None:
        """Give the producer up: one that failed a batch may be broken for good. What it still holds comes back."""
        if self._producer is not None:
            self._producer.close(timeout=0)
            self._producer = None

    def _pause(self) -> None:
        seconds = min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(self._failures, 10))
        self._failures += 1
        with self._lock:
            self._work.wait_for(lambda: self._closed, seconds)

    def _tell(self, entries: Sequence[_Entry], reason: Reason) -> None:
        """Report entries that failed."""
        if not entries:
            return
        with self._lock:
            error = self._counts.last_error
        self._report(Undelivered(tuple(entry.event for entry in entries), reason, error))
        with self._lock:
            self._reporting -= len(entries)
            self._settle(entries)


def _text(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    return text if text.startswith(name) else f"{name}: {text}"  # Kafka's errors name themselves
