"""aggregate, in a dataflow: which shards are told what, in every process alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import KeyedStream, Stream
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from domain.decode import BatchDecoder
from domain.instants import to_text
from domain.partials import shard_of
from domain.ports import TallyError
from domain.updates import Updates
from domain.values import DAY_US, HOUR_US, Batch, RawBatch
from operators.aggregate import aggregate
from tests.batches import NOON, history, payload, raw, us
from tests.operators.running import run, stopped_by

CATALOG = """
version: 1
timezone: UTC
currency: USD
accept_within: 1d
event_types: {call: {schema: {type: object, properties: {n: {type: integer}}}}}
meters: {calls: {event_type: call, aggregation: count, window: 1h}}
"""
HISTORY = history(CATALOG)
SHARDS = 5
SUBJECTS = [f"cust-{n}" for n in range(12)]


def decoded(raw_batch: RawBatch) -> Batch:
    batch = BatchDecoder(HISTORY).decode(raw_batch)
    assert not len(batch.rejects)
    return batch


def calls(subjects: Sequence[str], start: int = 0, log_time_us: int | None = None) -> Batch:
    return decoded(raw([payload(subject=s) for s in subjects], start=start, log_time_us=log_time_us))


def aggregated(batches: Sequence[Batch], partitions: Collection[int] | None = None) -> list[tuple[str, Updates]]:
    def operator(up: Stream[Batch]) -> KeyedStream[Updates]:
        return aggregate("aggregate", up, HISTORY, SHARDS, partitions)

    return run(batches, operator)


def rows(out: Sequence[tuple[str, Updates]]) -> Iterator[tuple[str, str, int]]:
    """Shard, subject and count of each row of usage, as they came."""
    for shard, updates in out:
        for usage in updates.usage:
            for (subject, *_), count in zip(usage.keys, usage.inputs, strict=True):
                yield shard, subject, count


def counts(out: Sequence[tuple[str, Updates]]) -> dict[str, int]:
    """The last count of each subject."""
    return {subject: count for _, subject, count in rows(out)}


def test_a_subject_is_counted_in_its_own_shard_only() -> None:
    out = aggregated([calls(SUBJECTS), calls(SUBJECTS[:3], start=12)])
    shards = {subject: shard for shard, subject, _ in rows(out)}
    assert shards == {subject: str(shard_of(subject, SHARDS)) for subject in SUBJECTS}
    assert len({*shards.values()}) > 1
    assert counts(out) == dict.fromkeys(SUBJECTS, 1) | dict.fromkeys(SUBJECTS[:3], 2)


def test_every_process_routes_alike() -> None:
    """Two workers hash, exchange and count as one does."""
    batches = [calls(SUBJECTS[i:] + SUBJECTS[:3], start=20 * i) for i in range(4)]
    out: list[tuple[str, Updates]] = []
    flow = Dataflow("test")
    up = op.redistribute("spread", op.input("in", flow, TestingSource(batches)))
    op.output("out", aggregate("aggregate", up, HISTORY, SHARDS, None), TestingSink(out))
    cluster_main(flow, [], 0, worker_count_per_proc=2)
    most: Counter[str] = Counter()
    for shard, subject, seen in rows(out):
        assert shard == str(shard_of(subject, SHARDS))
        most[subject] = max(most[subject], seen)
    assert most == counts(aggregated(batches))


def test_monotone_log_times_are_told_to_every_shard() -> None:
    out = aggregated([calls(["cust-1"], log_time_us=us(NOON))], partitions=[0])
    assert sorted(shard for shard, _ in out) == [str(n) for n in range(SHARDS)]
    touched = [shard for shard, updates in out if updates.usage]
    assert touched == [str(shard_of("cust-1", SHARDS))]


def test_many_small_batches_tell_every_shard_once_a_second() -> None:
    """A broker's batches may be a few events each: 64 shards need not hear of every one."""
    steps_us = [0, 1, 999_998, 999_999, 1_000_000, 1_500_000, 7_000_000]
    batches = [
        calls(["cust-1"] if step else [], start=number, log_time_us=us(NOON) + step)
        for number, step in enumerate(steps_us)
    ]
    out = aggregated(batches, partitions=[0])
    assert len(out) == 3 * SHARDS + 4, "seconds 0, 1 and 7; in between only the shard that counts"


def test_other_log_times_are_told_to_nobody() -> None:
    out = aggregated([calls(["cust-1", "cust-1"]), calls([], start=2)])
    assert [shard for shard, _ in out] == [str(shard_of("cust-1", SHARDS))]


def test_a_batch_without_events_still_tells_how_far_its_partition_is() -> None:
    assert len(aggregated([calls([], log_time_us=us(NOON))], partitions=[0])) == SHARDS
    assert aggregated([calls([])]) == []


def test_windows_that_ended_are_forgotten_and_may_not_come_back() -> None:
    later = us(NOON) + DAY_US + 2 * HOUR_US
    batches = [calls(["cust-1"], log_time_us=us(NOON)), calls([], start=1, log_time_us=later)]
    back = decoded(raw([payload(subject="cust-1", id="2")], start=1, log_time_us=later))
    with stopped_by(TallyError, "'cust-1' belongs to a window that ended at 2026-03-10T13:00:00Z"):
        aggregated([*batches, back], partitions=[0])
    assert counts(aggregated([*batches, back], partitions=None)) == {"cust-1": 2}
    assert counts(aggregated([*batches, back], partitions=[0, 1])) == {"cust-1": 2}, "partition 1 has said nothing"


def test_a_batch_under_two_versions_is_counted_before_its_log_time_is() -> None:
    """The log time is that of the batch's end: told any earlier, it would close windows that the rest still needs."""
    since = to_text(us(NOON) + HOUR_US)
    two = history(CATALOG, (since, CATALOG))
    times = [us(NOON), us(NOON) + 2 * HOUR_US, us(NOON) + 3 * DAY_US]
    written = [payload(id=to_text(t), time=to_text(t)) for t in times]
    found = BatchDecoder(two).decode(raw(written, log_times_us=times, log_time_us=times[-1]))
    assert found.events.catalog_versions == [1, 2, 2]

    def operator(up: Stream[Batch]) -> KeyedStream[Updates]:
        return aggregate("aggregate", up, two, SHARDS, [0])

    out = run([found], operator)
    assert [*rows(out)] == [(str(shard_of("a", SHARDS)), "a", 1)] * 3, "three windows"
    assert len(out) == SHARDS + 1, "the shard of the first version's events, then every shard"


def test_totals_are_resumed(tmp_path: Path) -> None:
    """A second run goes on from the state that the first one saved."""
    init_db_dir(tmp_path, 1)
    batches: list[Any] = [calls(SUBJECTS), TestingSource.EOF(), calls(SUBJECTS[:2], start=12)]
    out: list[tuple[str, Updates]] = []
    flow = Dataflow("test")
    up = op.input("in", flow, TestingSource(batches))
    op.output("out", aggregate("aggregate", up, HISTORY, SHARDS, None), TestingSink(out))
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(tmp_path)))
    assert counts(out) == dict.fromkeys(SUBJECTS, 1)
    out.clear()
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(tmp_path)))
    assert counts(out) == dict.fromkeys(SUBJECTS[:2], 2)
