"""aggregate: every total that somebody needs, by shard of subjects. The only stateful operator."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic, Stream
from typing_extensions import override

from domain.catalog import History
from domain.partials import Partitioner, ShardInput
from domain.quota import lowest_thresholds
from domain.totals import ShardTotals
from domain.updates import Updates
from domain.values import SECOND_US, Batch, RawBatch
from operators.probe import UNOBSERVED, Probe


class _Shard(StatefulBatchLogic[ShardInput, Updates, bytes]):
    """One shard's totals as Bytewax state. Never discarded: the number of shards is fixed."""

    def __init__(self, totals: ShardTotals, probe: Probe) -> None:
        self._totals = totals
        self._probe = probe
        self._apply = probe.timed("totals", totals.apply)

    @override
    def on_batch(self, values: list[ShardInput]) -> tuple[Iterable[Updates], bool]:
        return [self._apply(received) for received in values], self.RETAIN

    @override
    def snapshot(self) -> bytes:
        kept = self._totals.snapshot()
        self.tell(len(kept))
        return kept

    def tell(self, size_bytes: int) -> None:
        self._probe.kept(self, len(self._totals), size_bytes)


@operator
def aggregate(
    step_id: str,
    up: Stream[Batch],
    history: History,
    shards: int,
    partitions: Collection[int] | None,
    probe: Probe = UNOBSERVED,
) -> KeyedStream[Updates]:
    """Keep windows, billing periods and entitlement periods; emit what each batch changed.

    Args:
        step_id: Unique id of this step.
        up: Batches whose events are all accepted.
        history: The catalogs.
        shards: Fixed for the life of a deployment; state is keyed by `shard_of(subject)`.
        partitions: Every partition of a source with monotone log times; None for other sources, whose
            windows are never forgotten.
        probe: Watches.
    """
    partials = probe.timed("partials", Partitioner(history, shards).partials)
    accept_within_us = history.versions[0].catalog.accept_within_us
    alerting = {p.name for v in history.versions for p in v.catalog.plans.values() if p.alerts}
    lowest = lowest_thresholds(history)
    everyone = range(shards)
    told: dict[int, int] = {}

    def passes_a_second(raw: RawBatch) -> bool:
        """Whether log time came to another second. Windows and periods end on whole ones, so no end is told late."""
        if raw.log_time_us is None or told.get(raw.partition) == raw.log_time_us // SECOND_US:
            return False
        told[raw.partition] = raw.log_time_us // SECOND_US
        return True

    def route(batch: Batch) -> Iterable[tuple[str, ShardInput]]:
        raw = batch.raw
        groups = partials(batch.events, batch.live) or [{}]
        for group in groups[:-1]:
            yield from ((str(shard), ShardInput(raw.partition, None, found)) for shard, found in group.items())
        last = groups[-1]
        for shard in everyone if passes_a_second(raw) else last:
            yield str(shard), ShardInput(raw.partition, raw.log_time_us, last.get(shard, []))

    def build(snapshot: bytes | None) -> _Shard:
        shard = _Shard(ShardTotals(partitions, accept_within_us, alerting, snapshot, lowest), probe)
        shard.tell(len(snapshot or b""))
        return shard

    return op.stateful_batch("totals", op.flat_map("partials", up, route), build)
