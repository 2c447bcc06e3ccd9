"""Bytewax's recovery store as its writers leave it, in the same SQLite files, so that `flows.recovery` reads them.

A snapshot is written some time after it was taken, in transactions of any cut, those of one epoch mixed with those of
none other. A worker's frontier follows once every snapshot of the epoch is written; then what no execution can resume
from any more is collected, a file at a time.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

from flows.recovery import resume_epoch
from tests.simulation.effects import Effects

FIRST_EPOCH = 1

States = dict[str, dict[str, Any]]
"""By step and key, what an execution goes on from."""

_SNAPSHOT = """
INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)
ON CONFLICT (step_id, state_key, snap_epoch) DO UPDATE SET ser_change = excluded.ser_change
"""
_FRONT = """
INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (?, ?, ?)
ON CONFLICT (ex_num, worker_index) DO UPDATE SET worker_frontier = excluded.worker_frontier
"""
_COMMIT = """
INSERT INTO commits (part_index, commit_epoch) VALUES (?, ?)
ON CONFLICT (part_index) DO UPDATE SET commit_epoch = excluded.commit_epoch
"""
_COLLECT = """
DELETE FROM snaps WHERE snap_epoch < (
    SELECT max(newer.snap_epoch) FROM snaps newer
    WHERE newer.step_id = snaps.step_id AND newer.state_key = snaps.state_key AND newer.snap_epoch <= ?
)
"""
_STATES = "SELECT step_id, state_key, snap_epoch, ser_change FROM snaps WHERE snap_epoch < ?"


class Store:
    """One execution's, on a directory that `bytewax.recovery.init_db_dir` or `flows.recovery.begin` made."""

    def __init__(self, directory: Path, workers: int, effects: Effects, rng: Random) -> None:
        self._effects = effects
        self._rng = rng
        self._files = [directory / f"part-{n}.sqlite3" for n in range(len(list(directory.glob("part-*.sqlite3"))))]
        self.epoch = resume_epoch(self._files) or FIRST_EPOCH
        """The first of this execution."""
        self._databases = [sqlite3.connect(file, isolation_level=None) for file in self._files]
        for database in self._databases:
            database.execute("PRAGMA synchronous = off")  # the machine itself does not fail here
        self._number = max(self._next_number(database) for database in self._databases)
        self._waiting: list[list[tuple[Any, ...]]] = [[] for _ in self._files]
        self._unannounced: int | None = workers

    def states(self) -> States:
        """Of each key the newest snapshot of an epoch before this execution's first."""
        found: dict[tuple[str, str], tuple[int, bytes | None]] = {}
        for database in self._databases:
            for step, key, epoch, change in database.execute(_STATES, (self.epoch,)):
                if (step, key) not in found or found[step, key][0] < epoch:
                    found[step, key] = epoch, change
        states: States = {}
        for (step, key), (_, change) in sorted(found.items()):
            if change is not None:
                states.setdefault(step, {})[key] = pickle.loads(change)
        return states

    def take(self, step: str, key: str, epoch: int, change: bytes | None) -> None:
        """A key's pickled state as an epoch closes, or that it has none any more; to be written later."""
        file = crc32(f"{step}\0{key}".encode()) % len(self._files)
        self._waiting[file].append((step, key, epoch, change))

    @property
    def is_behind(self) -> bool:
        """Whether anything that was taken is not written."""
        return self._unannounced is not None or any(self._waiting)

    def write(self) -> None:
        """One transaction of what waits."""
        files = [n for n, waiting in enumerate(self._waiting) if waiting]
        if self._unannounced is not None and (not files or self._rng.random() < 0.5):
            file = self._number % len(self._files)
            with self._transaction(file, "execution") as database:
                row = (self._number, self._unannounced, self.epoch)
                database.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (?, ?, ?)", row)
            self._unannounced = None
            return
        file = self._rng.choice(files)
        waiting = self._waiting[file]
        count = self._rng.randint(1, len(waiting))
        with self._transaction(file, "snapshots") as database:
            database.executemany(_SNAPSHOT, waiting[:count])
        del waiting[:count]

    def front(self, worker: int, epoch: int) -> None:
        """A worker's part of every epoch before this one is stored."""
        with self._transaction(worker % len(self._files), "front") as database:
            database.execute(_FRONT, (self._number, worker, epoch))

    def collect(self, epoch: int) -> None:
        """An epoch is stored in all workers: drop what only earlier ones could be followed from."""
        for file in range(len(self._files)):
            with self._transaction(file, "collect") as database:
                database.execute(_COMMIT, (file, epoch))
                database.execute(_COLLECT, (epoch,))

    def close(self) -> None:
        """Whatever is not written is lost."""
        for database in self._databases:
            database.close()

    @contextmanager
    def _transaction(self, file: int, what: str) -> Iterator[sqlite3.Connection]:
        self._effects.before(f"recovery.{what}")
        database = self._databases[file]
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")
        self._effects.after(f"recovery.{what}")

    @staticmethod
    def _next_number(database: sqlite3.Connection) -> int:
        return int(database.execute("SELECT ifnull(max(ex_num), -1) + 1 FROM exs").fetchone()[0])
