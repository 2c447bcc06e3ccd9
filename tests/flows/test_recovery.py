"""Each start saves to a copy of what the last one saved, and what an older one writes is never read."""

from __future__ import annotations

import sqlite3
import time
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.recovery import RecoveryConfig
from bytewax.testing import TestingSink, run_main

from domain.ports import TallyError
from flows import recovery

PARTITIONS = 2


def write(store: Path, state: str) -> None:
    with sqlite3.connect(store / "part-0.sqlite3") as database:
        database.execute("INSERT OR REPLACE INTO snaps VALUES ('now', 'step', 'key', 1, ?)", (state.encode(),))
    database.close()


def state(store: Path) -> list[bytes]:
    database = sqlite3.connect(store / "part-0.sqlite3")
    try:
        return [row[0] for row in database.execute("SELECT ser_change FROM snaps")]
    finally:
        database.close()


def test_a_start_goes_on_from_a_copy_of_the_last(tmp_path: Path) -> None:
    assert recovery.newest(tmp_path) is None
    first = recovery.begin(tmp_path, PARTITIONS)
    assert sorted(file.name for file in first.glob("*.sqlite3")) == ["part-0.sqlite3", "part-1.sqlite3"]
    write(first, "first")
    second = recovery.begin(tmp_path, PARTITIONS + 5)
    assert recovery.newest(tmp_path) == second
    assert (state(second), len(list(second.glob("*.sqlite3")))) == ([b"first"], PARTITIONS)
    assert not first.exists()


def test_what_a_paused_instance_writes_after_its_successor_started_is_not_read(tmp_path: Path) -> None:
    zombie = sqlite3.connect(recovery.begin(tmp_path, PARTITIONS) / "part-0.sqlite3")
    zombie.execute("PRAGMA journal_mode = wal")
    zombie.execute("INSERT INTO snaps VALUES ('now', 'step', 'key', 1, CAST('before' AS BLOB))")
    zombie.commit()
    successor = recovery.begin(tmp_path, PARTITIONS)
    write(successor, "successor")
    try:
        zombie.execute("UPDATE snaps SET ser_change = CAST('zombie' AS BLOB)")
        zombie.commit()
    except sqlite3.Error:
        pass  # its files are gone
    finally:
        zombie.close()
    assert state(successor) == [b"successor"]
    assert state(recovery.begin(tmp_path, PARTITIONS)) == [b"successor"]


def test_a_start_that_was_killed_while_copying_leaves_the_last_as_it_is(tmp_path: Path) -> None:
    first = recovery.begin(tmp_path, PARTITIONS)
    write(first, "first")
    (tmp_path / ".00000002").mkdir()
    (tmp_path / ".00000002" / "part-0.sqlite3").write_bytes(b"half")
    assert recovery.newest(tmp_path) == first
    assert state(recovery.begin(tmp_path, PARTITIONS)) == [b"first"]


def test_a_store_that_cannot_be_copied_is_refused_and_kept(tmp_path: Path) -> None:
    first = recovery.begin(tmp_path, PARTITIONS)
    (first / "part-1.sqlite3").write_bytes(b"this is no database, and long enough to be looked at" * 100)
    with pytest.raises(TallyError, match="cannot be copied"):
        recovery.begin(tmp_path, PARTITIONS)
    assert recovery.newest(tmp_path) == first


class _Slow(StatefulSourcePartition[str, int]):
    """Waits before it reads on, as a source does that has to find its broker; then it may die of that."""

    def __init__(self, read: int, wait_seconds: float, items: int) -> None:
        self._read = read
        self._ready = time.monotonic() + wait_seconds
        self._items = items

    def next_batch(self) -> list[str]:
        if time.monotonic() < self._ready:
            return []
        if self._items == 0:
            raise AbortExecution
        if self._read >= self._items:
            raise StopIteration
        self._read += 1
        return [f"{self._read}"]

    def snapshot(self) -> int:
        return self._read


class _Source(FixedPartitionedSource[str, int]):
    def __init__(self, wait_seconds: float, items: int) -> None:
        self._how = (wait_seconds, items)

    def list_parts(self) -> list[str]:
        return ["0"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Slow:
        return _Slow(resume_state or 0, *self._how)


def counted(store: Path, source: _Source) -> list[int]:
    """Run a flow that counts items; each count."""
    out: list[tuple[str, int]] = []
    flow = Dataflow("test")
    keyed = op.key_on("key", op.input("in", flow, source), lambda item: "all")
    counts = op.stateful_map("count", keyed, lambda count, item: ((count or 0) + 1, (count or 0) + 1))
    op.output("out", counts, TestingSink(out))
    config = RecoveryConfig(str(store))
    run_main(flow, epoch_interval=timedelta(milliseconds=20), recovery_config=config)
    return [count for _, count in out]


def run_and_die_before_an_epoch_is_closed(store: Path, source: _Source) -> list[int]:
    """Run, and leave only what is there before the first epoch is closed: snapshots, and that there was a run."""
    (file,) = store.glob("*.sqlite3")
    before, after = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    _copy(file, before)
    counts = counted(store, source)
    _copy(file, after)
    for table in ("exs", "snaps"):
        for row in after.execute(f"SELECT * FROM {table}").fetchall():
            before.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    before.commit()
    with sqlite3.connect(file) as database:
        before.backup(database)
    for connection in (before, after, database):
        connection.close()
    return counts


def _copy(file: Path, target: sqlite3.Connection) -> None:
    with sqlite3.connect(file) as database:
        database.backup(target)
    database.close()


def test_what_a_dead_execution_left_unfinished_is_never_resumed_from(tmp_path: Path) -> None:
    assert counted(recovery.begin(tmp_path, 1), _Source(0, items=5)) == [1, 2, 3, 4, 5]
    assert run_and_die_before_an_epoch_is_closed(recovery.begin(tmp_path, 1), _Source(0, items=8)) == [6, 7, 8]
    assert counted(recovery.begin(tmp_path, 1), _Source(0.3, items=0)) == [], "epochs pass, and nothing is read"
    assert counted(recovery.begin(tmp_path, 1), _Source(0, items=8)) == [6, 7, 8], "not on top of the dead one's"
