"""The saved state of the flow: Bytewax's recovery store, a copy of its own for each start.

Bytewax keys a snapshot by step, state key and epoch, and every execution goes on with the epoch after the
last. An instance that was paused, and wakes after its successor has started, would therefore replace the
successor's snapshots by its own. So every start goes on from a copy, and what a zombie writes is never
read again. (Fencing tokens cannot number the copies: a Redis that is flushed begins to count anew.)

For the same reason a copy lacks what a dead execution saved for epochs that were not closed everywhere. Bytewax
does not resume from such snapshots, but keeps them: once a later execution has passed their epoch without
writing the same key, it would resume from them, and count what they hold twice. (A source that waits for a
broker lets epochs pass before it reads anything again, so that happens.)

Layout, under the data directory's `recovery/`:
    00000017/part-0.sqlite3 ...    what the 17th start goes on from, and saves to

A copy is complete once it has its name: it is made beside, synced and renamed. Older ones are then removed. All files
of a store bear one mark, made anew by each start, so that files of different starts are told from each other.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytewax.recovery import init_db_dir

from domain.ports import TallyError

_PATTERN = "part-*.sqlite3"
_DIGITS = 8
_SOURCE = "metering.source"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a store holds, as far as the start of a flow looks at it."""

    steps: frozenset[str]
    """The steps whose state it has."""
    sources: dict[int, Any]
    """By partition, the snapshot that its source goes on from."""


def newest(root: Path) -> Path | None:
    """The directory that the latest start saves to; None if there was none."""
    return max(_stores(root), key=lambda store: int(store.name), default=None)


def examine(store: Path) -> Saved:
    """Look into a store that a start is about to go on from.

    Raises:
        TallyError: files are missing, damaged, or of different starts.
    """
    files = sorted(store.glob(_PATTERN))
    marks, indexes, counts = set(), set(), set()
    steps: set[str] = set()
    sources: dict[int, tuple[int, bytes | None]] = {}
    try:
        before = resume_epoch(files)
        for file in files:
            with _opened(file) as database:
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                ((index, count),) = database.execute("SELECT part_index, part_count FROM parts")
                indexes.add(index)
                counts.add(count)
                marks.add(_mark(database))
                steps.update(step for (step,) in database.execute("SELECT DISTINCT step_id FROM snaps"))
                for key, epoch, state in database.execute(
                    "SELECT state_key, snap_epoch, ser_change FROM snaps WHERE step_id = ?", (_SOURCE,)
                ):
                    if before is not None and epoch < before and epoch >= sources.get(int(key), (0, b""))[0]:
                        sources[int(key)] = epoch, state
    except (OSError, sqlite3.Error, ValueError) as error:
        raise TallyError(f"the saved state {store} is damaged ({error})") from error
    if len(counts) != 1 or indexes != set(range(counts.pop())):
        raise TallyError(f"the saved state {store} lacks files: there are {', '.join(file.name for file in files)}")
    if len(marks) > 1:
        raise TallyError(f"the saved state {store} is mixed: its files were written by different starts")
    saved = {number: state for number, (_, state) in sources.items() if state is not None}
    found = {number: pickle.loads(state) for number, state in saved.items()}  # noqa: S301 # as Bytewax itself does
    return Saved(frozenset(steps), found)


def begin(root: Path, partitions: int, *, anew: bool = False) -> Path:
    """Make the store of a start: a copy of the newest, or an empty one. One start at a time may do so.

    Args:
        root: The directory of all stores.
        partitions: Files of an empty store.
        anew: Make it empty, whatever there is.

    Raises:
        TallyError: the newest store cannot be copied, or another start made one at the same time.
    """
    before = newest(root)
    store = root / f"{1 if before is None else int(before.name) + 1:0{_DIGITS}}"
    making = root / f".{store.name}"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700, parents=True)
        if before is None or anew:
            init_db_dir(making, partitions)
        else:
            for file in sorted(before.glob(_PATTERN)):
                _copy(file, making / file.name)
            _forget_unfinished(making)
        _put_mark(making)
        for file in making.iterdir():
            _sync(file)
        _sync(making)
        making.rename(store)
        _sync(root)
    except (OSError, sqlite3.Error) as error:
        raise TallyError(
            f"the saved state {before or root} cannot be copied to {store}: {error}. See that no other instance "
            f"starts at the same time, that there is space, and that {root} may be written to"
        ) from error
    for old in _stores(root):
        if old != store:
            shutil.rmtree(old, ignore_errors=True)
    return store


def _stores(root: Path) -> list[Path]:
    return [path for path in root.glob("[0-9]*") if path.name.isdigit() and any(path.glob(_PATTERN))]


def _copy(source: Path, target: Path) -> None:
    """Copy a database as one transaction sees it, what is still in its write-ahead log included."""
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
    finally:
        writer.close()
        reader.close()


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A database; what the block changes is committed."""
    database = sqlite3.connect(file)
    try:
        with database:
            yield database
    finally:
        database.close()


def _put_mark(store: Path) -> None:
    mark = secrets.token_hex(8)
    for file in store.glob(_PATTERN):
        with _opened(file) as database:
            database.execute("CREATE TABLE IF NOT EXISTS tally_start (mark TEXT NOT NULL)")
            database.execute("DELETE FROM tally_start")
            database.execute("INSERT INTO tally_start VALUES (?)", (mark,))


def _mark(database: sqlite3.Connection) -> str | None:
    """None in a store of a version that made no marks."""
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'tally_start'").fetchone():
        return None
    (mark,) = database.execute("SELECT mark FROM tally_start").fetchone()
    return str(mark)


def _forget_unfinished(store: Path) -> None:
    """Remove the snapshots of epochs from which the next execution will not resume."""
    files = sorted(store.glob(_PATTERN))
    epoch = resume_epoch(files)
    for file in files if epoch is not None else []:
        with _opened(file) as database:
            database.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,))


def resume_epoch(files: Iterable[Path]) -> int | None:
    """The epoch with which the next execution begins; None if there was no execution yet.

    As Bytewax 0.21 computes it: of the last execution, the least frontier of its workers; a worker that closed no
    epoch is where the execution began. Each row may stand in any of the files.
    """
    executions: dict[int, tuple[int, int]] = {}
    fronts: dict[tuple[int, int], int] = {}
    for file in files:
        with _opened(file) as database:
            for number, workers, epoch in database.execute("SELECT ex_num, worker_count, resume_epoch FROM exs"):
                executions[number] = workers, epoch
            for number, worker, front in database.execute("SELECT ex_num, worker_index, worker_frontier FROM fronts"):
                fronts[number, worker] = max(front, fronts.get((number, worker), 0))
    if not executions:
        return None
    last = max(executions)
    workers, began = executions[last]
    return min(max(fronts.get((last, worker), 0), began) for worker in range(workers))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
