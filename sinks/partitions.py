"""The partitions that every sink of the flow has, and what those of one process share.

Bytewax spreads a sink's partitions over all workers of all processes: in order of their names, each to the
worker that has the fewest so far. `PARTITIONS` is fixed: with fewer than a snapshot knows, Bytewax refuses to
go on. It builds a partition when something is first routed to it, calls `snapshot()` of every partition that
was written to in an epoch as that epoch closes, and `close()` as the flow ends, well or badly.

Partitions hold nothing themselves. Those of one process share one `Outlet`, so that writes are as large, and
connections as few, as if there were one partition. No state is kept, so partitions may move between workers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from typing_extensions import override

X = TypeVar("X")

PARTITIONS = 64
"""Each of up to this many workers has one. It may grow from one version to the next, never shrink."""

_NAMES = [f"{number:02}" for number in range(PARTITIONS)]


def partition_of(process: int, workers: int) -> str:
    """A partition that is in this process, of which each has so many workers: as a key, it keeps items here.

    Any partition will do, as none has state of its own; but what goes to another process is pickled and sent.
    """
    return _NAMES[process * workers % PARTITIONS]


class Outlet(Protocol[X]):
    """Where the partitions of one process write to. Called by several threads."""

    def write(self, items: list[X]) -> None:
        """Take items; may raise what earlier ones failed with. Holds a caller back that is too fast."""
        ...

    def flush(self) -> None:
        """Return once all that was taken before this call is where it belongs; raises what failed."""
        ...

    def abandon(self) -> None:
        """End and drop what is not written yet; raises nothing, may be called again."""
        ...


class _Partition(StatefulSinkPartition[X, None], Generic[X]):
    def __init__(self, sink: SharedSink[X], outlet: Outlet[X], name: str) -> None:
        self._sink = sink
        self._outlet = outlet
        self._name = name

    @override
    def write_batch(self, values: list[X]) -> None:
        self._outlet.write(values)

    @override
    def snapshot(self) -> None:
        """Flush what this process took, so at least what this partition was given."""
        self._outlet.flush()
        self._sink.barriers[self._name] += 1

    @override
    def close(self) -> None:
        """End without writing: what counts is behind a barrier, and an error stops the flow without a flush.

        Never raises: Bytewax also calls this while an error unwinds, where another one would abort the process.
        """
        self._sink.closed(self._outlet)


class SharedSink(FixedPartitionedSink[X, None], Generic[X]):
    """A sink whose partitions share one outlet in each process; it lives as long as any of them.

    Args:
        open: Makes the outlet; called when the first partition of this process is built.
    """

    def __init__(self, open: Callable[[], Outlet[X]]) -> None:
        self._open = open
        self._lock = threading.Lock()
        self._outlet: Outlet[X] | None = None
        self._users = 0
        self.barriers: Counter[str] = Counter()
        """By partition of this process, how many epochs it has seen closing."""

    def close(self) -> None:
        """End what the flow leaves behind when it fails; what is not written yet is dropped."""
        with self._lock:
            outlet, self._outlet, self._users = self._outlet, None, 0
        if outlet is not None:
            outlet.abandon()

    @override
    def list_parts(self) -> list[str]:
        return list(_NAMES)

    @override
    def part_fn(self, item_key: str) -> int:
        """Keys are names of partitions."""
        return int(item_key)

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition[X]:
        with self._lock:
            if self._outlet is None:
                self._outlet = self._open()
            self._users += 1
            return _Partition(self, self._outlet, for_part)

    def closed(self, outlet: Outlet[X]) -> None:
        """Note that a partition ended; with the last one its outlet does."""
        with self._lock:
            if outlet is not self._outlet:
                return
            self._users -= 1
            if self._users:
                return
            self._outlet = None
        outlet.abandon()
