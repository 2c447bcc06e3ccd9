"""Each start saves to a copy of what the last one saved, and what an older one writes is never read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

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
