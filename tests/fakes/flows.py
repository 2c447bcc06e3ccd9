"""A source and a sink in memory, for flows as Bytewax really runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from typing_extensions import override

from domain.values import Batch, RawBatch, SubscriptionChange
from sinks.buffer import Item


class _Log(StatefulSourcePartition[RawBatch, int]):
    """Emits one batch a poll; its state is how many it has emitted."""

    def __init__(self, batches: Sequence[RawBatch], emitted: int) -> None:
        self._batches = batches
        self._emitted = emitted

    @override
    def next_batch(self) -> list[RawBatch]:
        if self._emitted == len(self._batches):
            raise StopIteration
        self._emitted += 1
        return [self._batches[self._emitted - 1]]

    @override
    def snapshot(self) -> int:
        return self._emitted


class FakeSource(FixedPartitionedSource[RawBatch, int]):
    """The given batches of each partition, in order."""

    def __init__(self, batches: Mapping[int, Sequence[RawBatch]]) -> None:
        self._batches = batches

    @override
    def list_parts(self) -> list[str]:
        return [str(partition) for partition in self._batches]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Log:
        return _Log(self._batches[int(for_part)], resume_state or 0)


class _Kept(StatefulSinkPartition[Item, None]):
    def __init__(self, sink: FakeSink) -> None:
        self._sink = sink

    @override
    def write_batch(self, values: list[Item]) -> None:
        with self._sink.lock:
            self._sink.items.extend(values)

    @override
    def snapshot(self) -> None:
        return None


class FakeSink(FixedPartitionedSink[Any, None]):
    """Keeps every item, in the order of arrival."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.lock = Lock()

    @override
    def list_parts(self) -> list[str]:
        return ["all"]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Kept:
        return _Kept(self)


class FakeSubscriptions:
    """A `SubscriptionLog` over batches that a sink has kept."""

    def __init__(self, items: Sequence[Item] = ()) -> None:
        self._items = items

    def changes(self, partition: int, before_offset: int) -> list[SubscriptionChange]:
        batches = [item for item in self._items if isinstance(item, Batch) and item.raw.partition == partition]
        known = {change[:2]: change for batch in batches for change in batch.changes if change.offset < before_offset}
        return [known[place] for place in sorted(known)]
