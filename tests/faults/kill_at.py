"""`tally` that dies at a named point: `python -m tests.faults.kill_at POINT N run ...`, by `kill -9`, the Nth time.

The product knows nothing of this: functions of it are wrapped before it starts. A process that never comes to the
point for the Nth time ends as it would otherwise.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import engines.data_directory
import flows.opening
import flows.recovery
import sinks.clickhouse
import sinks.kafka
import sinks.migrate
import sinks.partitions
import sinks.redis_quotas
import sources.files
import sources.kafka
import sources.kafka_reader
from cli.main import app
from operators import aggregate
from stores.claims import RedisClaims


class Point(NamedTuple):
    """Where a process dies: before or after a function does its work."""

    owner: Any
    function: str
    after: bool = True


POINTS: dict[str, Point] = {
    "claim sent": Point(RedisClaims, "send"),
    "claimed": Point(RedisClaims, "receive"),
    "table inserted": Point(sinks.clickhouse.Insertion, "insert"),
    "quotas written": Point(sinks.redis_quotas.Quotas, "write"),
    "signal published": Point(sinks.redis_quotas.Quotas, "publish"),
    "signal produced": Point(sinks.kafka.KafkaOutlet, "_send"),
    "signals acknowledged": Point(sinks.kafka.KafkaOutlet, "flush"),
    "in the sink's snapshot": Point(sinks.clickhouse.ClickHouseOutlet, "flush", after=False),
    "behind the sink's snapshot": Point(sinks.partitions._Partition, "snapshot"),
    "in a file's snapshot": Point(sources.files.FilePartition, "snapshot"),
    "in a partition's snapshot": Point(sources.kafka.KafkaPartition, "snapshot"),
    "in a shard's snapshot": Point(aggregate._Shard, "snapshot"),
    "offsets committed": Point(sources.kafka_reader.Reader, "_commit"),
    "claims taken over": Point(RedisClaims, "take_over"),
    "claims restored": Point(RedisClaims, "restore"),
    "claims published": Point(RedisClaims, "publish"),
    "saved state copied": Point(flows.recovery, "_copy"),
    "before the copy's name": Point(flows.recovery, "_forget_unfinished"),
    "saved state synced": Point(flows.recovery, "_sync"),
    "before a statement of a migration": Point(sinks.migrate, "_repeatable", after=False),
    "before the catalog": Point(flows.opening, "apply_catalog", after=False),
    "catalog applied": Point(flows.opening, "apply_catalog"),
    "before a record's name": Point(engines.data_directory, "_write_synced"),
}
"""The last but the fourth are passed at start-up; `saved state synced` also just behind the renaming."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, passing: int, act: Callable[[], None] = die) -> None:
    """Let something happen when this process passes a point for the Nth time, counted over all threads."""
    point = POINTS[name]
    work: Callable[..., Any] = getattr(point.owner, point.function)
    lock = threading.Lock()
    left = passing

    def pass_by() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                act()

    @functools.wraps(work)
    def watched(*arguments: Any, **options: Any) -> Any:
        if not point.after:
            pass_by()
        result = work(*arguments, **options)
        if point.after:
            pass_by()
        return result

    setattr(point.owner, point.function, watched)


def main() -> None:
    arm(sys.argv.pop(1), int(sys.argv.pop(1)))
    app()


if __name__ == "__main__":
    main()
