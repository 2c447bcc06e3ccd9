"""The flow's adapters with somebody watching: the same behaviour, and metrics and vital signs of it.

Watching costs some 40 µs a batch and less than a microsecond a call of a step, 0.2 % of a batch of 5,000. Nothing is
done per event but counting the reasons of rejects.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from domain.catalog import History
from domain.ports import Claim, ClaimRequests, Claims, Ticket
from domain.quota import Signal
from domain.values import Batch, RawBatch
from engines.clickhouse_server import cause_of
from flows.reclaim import Reclaimed
from sources.kafka_feed import Lag
from telemetry import catalogue
from telemetry.logs import Event, logger
from telemetry.recorder import Recorder, Sample
from telemetry.vitals import PartitionVitals, Vitals

PROGRESS_SECONDS = 60.0
"""Progress is logged at most this often."""

P = ParamSpec("P")
R = TypeVar("R")


class Observer:
    """What one process sees of its flow. Implements `operators.probe.Probe` and `sinks.clickhouse.Inserts`.

    Args:
        vitals: Written here, judged elsewhere.
        wall: Unix time in seconds.
    """

    def __init__(self, vitals: Vitals, wall: Callable[[], float] = time.time) -> None:
        self.vitals = vitals
        self._wall = wall
        self.lags: Callable[[], Mapping[int, Lag]] = dict
        """By partition, how far this process is behind; empty where that cannot be told."""
        self._shards: dict[int, tuple[int, int]] = {}
        self._judging = threading.Lock()
        self._outcomes = Counter[str]()
        self._telling = threading.Lock()
        self._told: dict[str, int] = {}
        self._told_at = vitals.clock()
        self.recorder = Recorder(
            catalogue.METRICS,
            {
                catalogue.STEP_SECONDS: lambda: [((step,), s) for step, s in vitals.seconds().items()],
                catalogue.RUNNING: lambda: [((), float(vitals.phase == "running"))],
                catalogue.POSITION: lambda: self._partitions(lambda seen: seen.position),
                catalogue.LAG: lambda: [((str(number),), lag.offsets) for number, lag in self.lags().items()],
                catalogue.LAG_SECONDS: lambda: [((str(number),), lag.seconds) for number, lag in self.lags().items()],
                catalogue.POLLED: lambda: self._partitions(lambda seen: vitals.clock() - seen.polled_at),
                catalogue.ANSWERED: self._answers,
                catalogue.TOTALS: lambda: [((), float(sum(totals for totals, _ in list(self._shards.values()))))],
                catalogue.STATE: lambda: [((), float(sum(size for _, size in list(self._shards.values()))))],
            },
        )
        self.recorder.set(catalogue.BUILD, 1, version("tallyflow"), platform.python_version())
        self.recorder.set(catalogue.STARTED, wall())

    def started(self, history: History, reclaimed: Reclaimed) -> None:
        """The claims are complete, and the flow is about to run."""
        self.recorder.set(catalogue.CATALOG, history.versions[-1].version)
        self.recorder.add(catalogue.CLAIMS_REBUILT, reclaimed.claims)

    def timed(self, step: str, work: Callable[P, R]) -> Callable[P, R]:
        return self.vitals.timed(step, work)

    def judged(self, batch: Batch) -> None:
        outcomes = Counter[str](batch.rejects.reasons)
        outcomes["accepted"] = len(batch.events)
        for outcome, count in outcomes.items():
            if count:
                self.recorder.add(catalogue.EVENTS, count, outcome)
        with self._judging:
            self._outcomes.update(outcomes)
        self.recorder.observe(catalogue.BATCH_ROWS, outcomes.total())

    def signalled(self, log_time_us: int | None, signals: Sequence[Signal]) -> None:
        for signal in signals:
            self.recorder.add(catalogue.SIGNALS, 1, signal.type)
            if log_time_us is not None:
                self.recorder.observe(catalogue.SIGNAL_SECONDS, max(0.0, self._wall() - log_time_us / 1e6))

    def sent(self, channel: str) -> Callable[[Signal], None]:
        """What to call with each signal that a channel acknowledged."""

        def told(signal: Signal) -> None:
            self.recorder.observe(catalogue.SEND_SECONDS, max(0.0, self._wall() - signal.at_us / 1e6), channel)

        return told

    def kept(self, shard: object, totals: int, size_bytes: int) -> None:
        self._shards[id(shard)] = (totals, size_bytes)

    def taken(self, table: str, rows: int, seconds: float) -> None:
        self.recorder.observe(catalogue.FLUSH_SECONDS, seconds, table)
        self.recorder.add(catalogue.FLUSH_ROWS, rows, table)
        self.recorder.set(catalogue.FLUSHED, self._wall())
        self.vitals.answered("clickhouse")

    def refused(self, table: str, rows: int, error: Exception) -> None:
        self.recorder.add(catalogue.FLUSH_ERRORS, 1, table)
        code = getattr(error, "code", None)
        reason = cause_of(error) or type(error).__name__
        reason = reason if code is None else f"{reason} (code {code})"
        logger().warning(Event.FLUSH_FAILED, table=table, rows=rows, reason=reason)

    def read(self, seen: PartitionVitals, raw: RawBatch) -> None:
        """A partition gave a batch."""
        if raw.next_offset != seen.position:
            seen.position, seen.moved_at = raw.next_offset, self.vitals.clock()
        seen.messages += raw.next_offset - raw.start_offset
        self.recorder.add(catalogue.MESSAGES, raw.next_offset - raw.start_offset, str(raw.partition))

    def closed_epoch(self) -> None:
        """The sources were asked for their snapshots."""
        now = self.vitals.epoch_at = self.vitals.clock()
        self.recorder.set(catalogue.SNAPSHOT, self._wall())
        if now - self._told_at < PROGRESS_SECONDS or not self._telling.acquire(blocking=False):
            return
        try:
            self._tell_progress(now)
        finally:
            self._telling.release()

    def _tell_progress(self, now: float) -> None:
        """Log what came of the events since the last time, and how far each partition is."""
        outcomes, before = dict(self._outcomes), self._told
        seconds, self._told_at, self._told = now - self._told_at, now, outcomes
        since = {name: count - before.get(name, 0) for name, count in outcomes.items()}
        partitions = list(self.vitals.partitions.values())
        waiting = [seen.waiting for seen in partitions if seen.waiting is not None]
        logger().info(
            Event.PROGRESS,
            seconds=round(seconds),
            accepted=since.pop("accepted", 0),
            rejected={name: count for name, count in since.items() if count},
            offsets={seen.name: seen.position for seen in partitions},
            **({"waiting": sum(waiting)} if waiting else {}),
        )

    def claimed(self, seconds: float) -> None:
        """Redis answered a batch's claims."""
        self.recorder.observe(catalogue.CLAIM_SECONDS, seconds)
        self.vitals.answered("redis")

    def _partitions(self, value: Callable[[PartitionVitals], float | None]) -> Iterator[Sample]:
        for seen in list(self.vitals.partitions.values()):
            found = value(seen)
            if found is not None:
                yield (str(seen.name),), float(found)

    def _answers(self) -> Iterator[Sample]:
        now = self.vitals.clock()
        for service, at in dict(self.vitals.answers).items():
            if at is not None:
                yield (service,), now - at


class ObservedSource(FixedPartitionedSource[RawBatch, Any]):
    """A source whose partitions are watched. Their names are numbers."""

    def __init__(self, source: FixedPartitionedSource[RawBatch, Any], observer: Observer) -> None:
        self._source = source
        self._observer = observer

    @override
    def list_parts(self) -> list[str]:
        return self._source.list_parts()

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> StatefulSourcePartition[RawBatch, Any]:
        seen = self._observer.vitals.opened(int(for_part))
        if resume_state is not None:
            seen.position = getattr(resume_state, "next_offset", None)
        logger().info(Event.RESUMED, partition=seen.name, offset=seen.position or 0)
        return _ObservedPartition(self._source.build_part(step_id, for_part, resume_state), seen, self._observer)


class _ObservedPartition(StatefulSourcePartition[RawBatch, Any]):
    def __init__(
        self, partition: StatefulSourcePartition[RawBatch, Any], seen: PartitionVitals, observer: Observer
    ) -> None:
        self._partition = partition
        self._seen = seen
        self._observer = observer

    @override
    def next_batch(self) -> Collection[RawBatch]:
        self._seen.polled_at = self._observer.vitals.clock()
        try:
            batches = list(self._partition.next_batch())
        except StopIteration:
            self._observer.vitals.ended(self._seen.name)
            raise
        for raw in batches:
            self._observer.read(self._seen, raw)
        return batches

    @override
    def next_awake(self) -> datetime | None:
        return self._partition.next_awake()

    @override
    def snapshot(self) -> Any:
        self._observer.closed_epoch()
        return self._partition.snapshot()

    @override
    def close(self) -> None:
        self._observer.vitals.ended(self._seen.name)
        self._partition.close()


class ObservedClaims:
    """Claims whose answers are timed. A thread receives its tickets in the order of their sending."""

    def __init__(self, claims: Claims, observer: Observer) -> None:
        self._claims = claims
        self._observer = observer
        self._sent: dict[Ticket, float] = {}
        self._claim = observer.timed("claim", claims.claim)
        self._receive = observer.timed("claim", claims.receive)

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        begun = self._observer.vitals.clock()
        found = self._claim(partition, start_offset, next_offset, requests)
        self._observer.claimed(self._observer.vitals.clock() - begun)
        return found

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        begun = self._observer.vitals.clock()
        ticket = self._claims.send(partition, start_offset, next_offset, requests)
        self._sent[ticket] = begun
        return ticket

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        begun = self._sent.pop(ticket)
        found = self._receive(ticket)
        self._observer.claimed(self._observer.vitals.clock() - begun)
        return found

    def forget(self, log_time_us: int) -> None:
        self._claims.forget(log_time_us)
