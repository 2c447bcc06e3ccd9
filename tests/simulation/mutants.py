"""Deliberately wrong builds, as such flows are often written. The simulation must go red on each of them.

Undisturbed they are right, so it is what goes wrong around them that finds them: but for lateness by the clock, which
is right only where every event is read in the microsecond of its log time.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from domain import partials
from domain.catalog import Aggregation
from domain.partials import ShardInput
from domain.ports import Claim, ClaimRequests, Ticket
from domain.totals import ShardTotals
from domain.updates import Updates
from domain.values import FUTURE_SKEW_US, QUANTITY_DECIMALS, Position
from operators import aggregate
from sinks import clickhouse, rows
from sinks.buffer import Buffer, Item
from tests.fakes.clickhouse import Row, Table
from tests.simulation.world import World

Arguments = dict[str, Any]
"""Of `flows.metering.build`."""


@dataclass(frozen=True)
class Mutant:
    """A wrong build: other arguments, or other code behind them while the run lasts."""

    what: str
    arguments: Callable[[World, Arguments], Arguments] = lambda world, arguments: arguments
    patched: Callable[[World], AbstractContextManager[Any]] = lambda world: nullcontext()


class SeenSet:
    """Claims as a set of seen keys: whoever finds his key there is a repeat, his own replay too.

    It notes position and content of the first, so that, undisturbed, it reports what the real store does.
    """

    def __init__(self, world: World, accept_within_us: int) -> None:
        self._server = world.redis
        self._generation_us = accept_within_us + FUTURE_SKEW_US
        self._answers: dict[Ticket, dict[int, Claim]] = {}

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        ticket = Ticket(len(self._answers))
        self._answers[ticket] = self._server.step(lambda: self._seen(partition, requests))
        return ticket

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        return self._answers[ticket]

    def _seen(self, partition: int, requests: ClaimRequests) -> dict[int, Claim]:
        found = {}
        for i, key in enumerate(zip(requests.sources, requests.ids, strict=True)):
            generation = requests.log_times_us[i] // self._generation_us
            near = [self._server.fields(("seen", generation + step)).get(key) for step in (-1, 0, 1)]
            first = next((claim for claim in near if claim is not None), None)
            if first is not None:
                found[i] = first
            else:
                position = Position(partition, requests.offsets[i], requests.indexes[i])
                self._server.put(("seen", generation), key, Claim(position, requests.contents[i]))
        return found


def _seen_set(world: World, arguments: Arguments) -> Arguments:
    catalog = arguments["history"].versions[0].catalog
    return arguments | {"claims": SeenSet(world, catalog.accept_within_us)}


class _Outside(StatelessSinkPartition[tuple[str, Item]]):
    """Buffers like the real sink, but nobody tells it about epochs."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def write_batch(self, items: list[tuple[str, Item]]) -> None:
        self._inner.write_batch([item for _, item in items])

    def close(self) -> None:
        self._inner.snapshot()
        self._inner.close()


class BufferingSink(DynamicSink[tuple[str, Item]]):
    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Outside:
        return _Outside(self._sink.build_part(step_id, "00", None))


class _Marked(int):
    """A total that carries something on the way to its row."""

    mark: int

    @classmethod
    def of(cls, total: int, mark: int) -> _Marked:
        marked = cls(total)
        marked.mark = mark
        return marked


class _Remembering(ShardTotals):
    """Totals with something more in their state, by meter and key."""

    def __init__(self, partitions: Any, accept_within_us: int, alerting: Any, snapshot: Any, *more: Any) -> None:
        inner, known = (None, {}) if snapshot is None else pickle.loads(snapshot)
        self.known: dict[Any, Any] = known
        super().__init__(partitions, accept_within_us, alerting, inner, *more)

    def snapshot(self) -> bytes:
        return pickle.dumps((super().snapshot(), self.known))


class Revised(_Remembering):
    """Each emission of a shard has a number, and of a row the last one wins."""

    def apply(self, received: ShardInput) -> Updates:
        updates = super().apply(received)
        emission = self.known["emissions"] = self.known.get("emissions", 0) + bool(updates.usage)
        updates.usage = [
            replace(usage, inputs=[_Marked.of(count, emission) for count in usage.inputs]) for usage in updates.usage
        ]
        return updates


class _RevisedTable(Table):
    """The row of the latest revision, told as the product's rows are: the numbers themselves are the mutant's own."""

    def final(self) -> list[Row]:
        return [{**row, "version": row["inputs"]} for row in super().final()]


@contextmanager
def _revisions(world: World) -> Iterator[None]:
    def versions(inputs: Collection[int]) -> dict[str, pa.Array]:
        columns = honest(inputs)  # type: ignore[arg-type]
        return columns | {"version": pa.array([getattr(count, "mark", count) for count in inputs], pa.uint64())}

    honest = rows._versions
    usage = world.clickhouse.tables["usage"]
    world.clickhouse.tables["usage"] = _RevisedTable(usage.columns, usage.key, usage.version)
    with patch.object(aggregate, "ShardTotals", Revised), patch.object(rows, "_versions", versions):
        yield


ADDITIVE = (Aggregation.COUNT, Aggregation.SUM, Aggregation.AVG)


class Differing(_Remembering):
    """Says of each window what was added to it."""

    def apply(self, received: ShardInput) -> Updates:
        updates = super().apply(received)
        for n, usage in enumerate(updates.usage):
            if usage.aggregation not in ADDITIVE:
                continue
            values: list[int] = []
            inputs: list[int] = []
            for key, value, count in zip(usage.keys, usage.values, usage.inputs, strict=True):
                value_before, count_before = self.known.get((usage.meter, key), (0, 0))
                self.known[usage.meter, key] = value, count
                values.append(_Marked.of(value, value - value_before))
                inputs.append(_Marked.of(count, count - count_before))
            updates.usage[n] = replace(usage, values=values, inputs=inputs)
        return updates


@dataclass(slots=True)
class _AddingBuffer(Buffer):
    """Gathers what was added to each window, and writes that."""

    added: defaultdict[tuple[Any, ...], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, item: Item) -> None:
        Buffer.add(self, item)
        for usage in getattr(getattr(item, "updates", None), "usage", ()):
            if usage.aggregation in ADDITIVE:
                for key, value, count in zip(usage.keys, usage.values, usage.inputs, strict=True):
                    found = self.added[usage.meter, *key]
                    found[0] += value.mark
                    found[1] += count.mark

    def tables(self, topic: str) -> list[tuple[str, pa.Table]]:
        return [
            (name, self._differences(table) if name == "usage" else table) for name, table in Buffer.tables(self, topic)
        ]

    def _differences(self, table: pa.Table) -> pa.Table:
        written = table.to_pylist()
        for row in written:
            start, end = (_us(row[name]) for name in ("window_start", "window_end"))
            booked = (row["booked_on"] - date(1970, 1, 1)).days
            added = self.added.get((row["meter"], row["subject"], start, end, booked, row["dimensions_key"]))
            if added is not None:
                row["value"] = Decimal(added[0]).scaleb(-QUANTITY_DECIMALS)
                row["count"] = row["inputs"] = added[1]
        return pa.Table.from_pylist(written, schema=table.schema)


def _us(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000)


class _SummingTable(Table):
    """Adds up the rows of a key, as a SummingMergeTree does."""

    def final(self) -> list[Row]:
        found = {tuple(row[name] for name in self.key): dict(row) for row in super().final()}
        sums: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [Decimal(0), 0])
        for row in self.rows:
            if row["aggregation"] in ADDITIVE:
                total = sums[tuple(row[name] for name in self.key)]
                total[0] += row["value"]
                total[1] += row["inputs"]
        for key, (value, inputs) in sums.items():
            found[key] |= {"value": value, "count": inputs, "inputs": inputs, "version": inputs}
        return list(found.values())


@contextmanager
def _additive(world: World) -> Iterator[None]:
    usage = world.clickhouse.tables["usage"]
    world.clickhouse.tables["usage"] = _SummingTable(usage.columns, usage.key, usage.version)
    with patch.object(aggregate, "ShardTotals", Differing), patch.object(clickhouse, "Buffer", _AddingBuffer):
        yield


def _by_the_clock(world: World) -> AbstractContextManager[Any]:
    honest = partials._BatchGrouping

    class ByTheClock(honest):  # type: ignore[misc, valid-type]
        """An event is late if it comes late, whenever it was logged."""

        def _usage(self, *arguments: Any) -> None:
            logged: Any = self._log_times  # type: ignore[has-type]
            self._log_times = np.full_like(logged, world.clock.now_us)
            super()._usage(*arguments)
            self._log_times = logged

    return patch.object(partials, "_BatchGrouping", ByTheClock)


MUTANTS = {
    "seen-set": Mutant("a set of seen keys instead of claims", arguments=_seen_set),
    "outside-the-barrier": Mutant(
        "a buffering DynamicSink", arguments=lambda world, a: a | {"sink": BufferingSink(a["sink"])}
    ),
    "revisions": Mutant("the latest emission wins, instead of the fullest", patched=_revisions),
    "wall-clock": Mutant("lateness by the clock instead of log time", patched=_by_the_clock),
    "additive": Mutant("rows are added up instead of replaced", patched=_additive),
}
