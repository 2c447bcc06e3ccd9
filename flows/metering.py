"""The metering flow: from raw usage events to usage, rated usage, quota states and signals.

`build` is the table of contents. Everything it is given is an adapter or a value, so tests run the
same flow over fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import FixedPartitionedSink

from domain.catalog import History
from domain.decode import BatchDecoder
from domain.ports import Claims, SubscriptionLog
from domain.quota import Watched
from domain.values import Batch, RawBatch
from operators.aggregate import aggregate
from operators.deduplicate import deduplicate
from operators.probe import UNOBSERVED, Probe
from operators.rate import rate
from operators.subscribe import subscribe
from operators.watch_quotas import watch_quotas
from sinks.buffer import Item

STATEFUL_STEPS = frozenset(
    {"metering.source", "metering.aggregate.totals", "metering.clickhouse", "metering.redis", "metering.kafka"}
)
"""The steps under whose ids Bytewax saves state; state of any other is of another version."""


def build(
    source: Source[RawBatch],
    *,
    history: History,
    claims: Claims,
    subscriptions: SubscriptionLog,
    sink: FixedPartitionedSink[Item, None],
    outlets: Mapping[str, FixedPartitionedSink[Watched, None]],
    here: str,
    shards: int,
    partitions: Collection[int] | None,
    now_us: Callable[[], int],
    probe: Probe = UNOBSERVED,
    told: Collection[str] = frozenset(),
) -> Dataflow:
    """Wire the flow. Step ids name saved state: renaming one orphans it (a test pins them).

    Args:
        source: Emits raw batches, in order of offset within a partition.
        history: Every applied catalog.
        claims: Who claimed an idempotency key first.
        subscriptions: What subscription events changed before the offsets that the flow resumes at.
        sink: Takes what is durable; flushes at the epoch barrier.
        outlets: By step id, where signals and quota states go for products to act on, at once.
        here: Key of the sinks' partition in this process: what has to leave it would be pickled.
        shards: Of the aggregate's state; fixed for the life of a deployment.
        partitions: Every partition of a source with monotone log times, else None.
        now_us: The clock that stamps signals.
        probe: Watches the steps.
        told: Ids of signals that products have heard of, and need not hear of again.
    """
    flow = Dataflow("metering")
    raw = op.input("source", flow, source)
    claimed = deduplicate("deduplicate", raw, probe.timed("decode", BatchDecoder(history).decode), claims)
    batches = subscribe("subscribe", claimed, history, subscriptions)
    updates = aggregate("aggregate", batches, history, shards, partitions, probe)
    rated = rate("rate", updates, history, probe)
    watched = watch_quotas("watch_quotas", rated, history, now_us, probe, told)

    def durable(batch: Batch) -> list[tuple[str, Batch]]:
        if batch.raw.settled:
            return []
        probe.judged(batch)
        return [("", batch.durable())]

    ledger = op.flat_map("durable", batches, durable)
    rows = op.merge("rows", ledger, rated, watched)
    op.output("clickhouse", op.map("rows_here", rows, lambda item: (here, item[1])), sink)
    watched_here = op.map("watched_here", watched, lambda item: (here, item[1]))
    for name, outlet in outlets.items():
        op.output(name, watched_here, outlet)
    return flow
