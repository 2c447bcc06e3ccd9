"""Deliberately wrong builds: `python -m tests.faults.mutants NAME run ...`. The kills must show on each."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from bytewax.outputs import DynamicSink, StatelessSinkPartition

import flows.start
from cli.main import app
from domain.ports import Claim, ClaimRequests, Ticket
from domain.values import Position, SubscriptionChange
from flows.subscriptions import SavedSubscriptions
from sinks.buffer import Item
from sinks.clickhouse import ClickHouseSink
from stores.claims import RedisClaims


class SeenSet(RedisClaims):
    """Deduplication as it is usually written: whoever finds the key set is a repeat, its own replay too.

    It notes position and content of the first, so that, undisturbed, it reports what the real store does.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._answers: dict[Ticket, dict[int, Claim]] = {}

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        ticket = Ticket(next(self._numbers))
        self._answers[ticket] = self._seen(partition, requests)
        return ticket

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        return self._answers.pop(ticket)

    def _seen(self, partition: int, requests: ClaimRequests) -> dict[int, Claim]:
        places = zip(requests.offsets, requests.indexes, requests.contents, strict=True)
        seen = {}
        for i, (offset, element, content) in enumerate(places):
            generation = requests.log_times_us[i] // self._generation_us
            name = f"{len(requests.sources[i])}:{requests.sources[i]}:{requests.ids[i]}"
            near = [f"seen:{generation + step}:{name}" for step in (-1, 0, 1)]
            first = next((found for found in self._link.do("MGET", *near) if found), None)
            if first is None:
                self._link.do("SET", near[1], f"{partition} {offset} {element} {content}", "NX")
            else:
                *place, of_first = map(int, first.split())
                seen[i] = Claim(Position(*place), of_first)
        return seen


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
    """A `DynamicSink` that flushes when its buffer is full and at the end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._sink = ClickHouseSink(*arguments, **{**options, "seconds": 3600.0, "rows_max": 10**9})

    def close(self) -> None:
        self._sink.close()

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Outside:
        return _Outside(self._sink.build_part(step_id, "00", None))


class ForgottenSubscriptions(SavedSubscriptions):
    """Subscriptions kept in memory only: each run begins without any."""

    def changes(self, partition: int, before_offset: int) -> Iterable[SubscriptionChange]:
        return ()


MUTANTS: dict[str, tuple[str, Any]] = {
    "seen-set": ("RedisClaims", SeenSet),
    "forgotten-subscriptions": ("SavedSubscriptions", ForgottenSubscriptions),
    "buffer-outside-the-barrier": ("ClickHouseSink", BufferingSink),
}


def main() -> None:
    name, replacement = MUTANTS[sys.argv.pop(1)]
    setattr(flows.start, name, replacement)
    app()


if __name__ == "__main__":
    main()
