"""Deliberately wrong builds: `python -m tests.crash.mutants NAME run ...`. The crash test must go red on each."""

from __future__ import annotations

import sys
from typing import Any

from bytewax.outputs import DynamicSink, StatelessSinkPartition

import flows.start
from cli.main import app
from domain.ports import Claim, ClaimRequests
from domain.values import Position
from sinks.buffer import Item
from sinks.clickhouse import ClickHouseSink
from stores.claims import RedisClaims


class SeenSet(RedisClaims):
    """Deduplication as it is usually written: `SET key NX`, without who set it."""

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        seen = {}
        for i, (source, name) in enumerate(zip(requests.sources, requests.ids, strict=True)):
            first = self._link.do("SET", f"seen:{len(source)}:{source}:{name}", 1, "NX")
            if first is None:
                seen[i] = Claim(Position(0, 0), requests.contents[i])
        return seen


class _Outside(StatelessSinkPartition[tuple[str, Item]]):
    """Buffers like the real sink, but nobody tells it about epochs."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def write_batch(self, items: list[tuple[str, Item]]) -> None:
        self._inner.write_batch([item for _, item in items])

    def close(self) -> None:
        self._inner.close()


class BufferingSink(DynamicSink[tuple[str, Item]]):
    """A `DynamicSink` that flushes when its buffer is full and at the end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._sink = ClickHouseSink(*arguments, **{**options, "seconds": 3600.0, "rows_max": 10**9})

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Outside:
        return _Outside(self._sink.build_part(step_id, "clickhouse", None))


MUTANTS: dict[str, tuple[str, Any]] = {
    "seen-set": ("RedisClaims", SeenSet),
    "buffer-outside-the-barrier": ("ClickHouseSink", BufferingSink),
}


def main() -> None:
    name, replacement = MUTANTS[sys.argv.pop(1)]
    setattr(flows.start, name, replacement)
    app()


if __name__ == "__main__":
    main()
