"""Forgetting claims that nobody can ask for any more, so that Redis does not grow for ever.

For sources with monotone log times only. Guarantees: a claim is dropped only when the slowest partition is two
generations past it *at the offsets from which a restart would resume*, so a replay finds every claim that it found
the first time. Those offsets are not known here, but bounded: rows of `progress` that this run has written, and that
were read before an epoch's barrier, are behind what is durable at the barrier after it, because Bytewax opens an epoch
only when the one before it is stored in all workers. Rows of earlier runs may be ahead of where this one began: a
partition counts once its log time has passed what was written before.
Failure: what cannot be read or dropped now is so later; claims that are lost or fenced are the flow's own to report.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from domain.values import HOUR_US
from engines.data_directory import DataDirectory
from stores.claims import RedisClaims

EVERY_SECONDS = 30.0
SLACK_US = HOUR_US
"""Brokers' clocks differ, and so a new leader's log times may begin a little before the last one's."""

_LOG_TIMES = """
SELECT log_partition, toUnixTimestamp64Micro(max(log_time)) FROM progress
WHERE log_topic = {topic:String} GROUP BY log_partition
"""


class _Read(NamedTuple):
    """The slowest partition's log time, and how many barriers were passed when it was known."""

    log_time_us: int
    barriers: dict[str, int]


class Forgotten:
    """What was forgotten of a ledger, in the data directory: a start whose Redis lost its claims restores no more than
    it would still hold. Written before anything is dropped.
    """

    def __init__(self, directory: DataDirectory, ledger: str, claims: RedisClaims) -> None:
        self._directory = directory
        self._ledger = ledger
        self._claims = claims

    @property
    def kept_since_us(self) -> int:
        """The log time from which claims are kept; 0 if none was forgotten."""
        record = self._directory.read("forgotten")
        return int(record["kept_since_us"]) if record is not None and record.get("ledger") == self._ledger else 0

    def forget(self, log_time_us: int) -> None:
        """Drop what nobody can ask for any more once every partition is at `log_time_us` for good."""
        kept_since_us = self._claims.kept_since_us(log_time_us)
        if kept_since_us > self.kept_since_us:
            self._directory.write("forgotten", {"ledger": self._ledger, "kept_since_us": kept_since_us})
        self._claims.forget(log_time_us)


class Forgetting:
    """One run's, in one of its processes; made before the flow runs.

    Args:
        forget: Told how far the slowest partition is; may be told so again.
        partitions: Every partition of the log.
        log_times: Reads how far each partition's rows are written, by its log time.
        barriers: By partition of a sink of this process, how many epochs it has seen closing.
    """

    def __init__(
        self,
        forget: Callable[[int], None],
        partitions: Collection[int],
        log_times: Callable[[], Mapping[int, int]],
        barriers: Callable[[], Mapping[str, int]],
    ) -> None:
        self._forget = forget
        self._partitions = frozenset(partitions)
        self._log_times = log_times
        self._barriers = barriers
        self._before = log_times()
        self._read: _Read | None = None

    def step(self) -> None:
        """To be called now and then; forgets what was read two barriers ago, and reads anew.

        Raises:
            TallyError: what `forget` raises.
        """
        if self._read is not None:
            if not self._is_durable(self._read):
                return
            self._forget(self._read.log_time_us - SLACK_US)
            self._read = None
        written = self._log_times()
        if all(written.get(partition, 0) > self._before.get(partition, 0) for partition in self._partitions):
            slowest = min((written[partition] for partition in self._partitions), default=0)
            self._read = _Read(slowest, dict(self._barriers()))

    def _is_durable(self, read: _Read) -> bool:
        return any(count >= read.barriers.get(part, 0) + 2 for part, count in self._barriers().items())


def written_log_times(client: Callable[[], Client], topic: str) -> Mapping[int, int]:
    """By partition, the log time up to which its rows are in ClickHouse."""
    with client() as reader:
        return {int(partition): int(us) for partition, us in reader.query(_LOG_TIMES, {"topic": topic}).result_rows}


@contextmanager
def stepping(forgetting: Forgetting) -> Iterator[None]:
    """Step every `EVERY_SECONDS` on a thread while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(EVERY_SECONDS):
            with suppress(TallyError, ClickHouseError):
                forgetting.step()

    thread = threading.Thread(target=run, name="forget", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
