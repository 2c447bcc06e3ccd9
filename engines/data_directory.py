"""The data directory: where a run without outside services keeps its state, and who may use it.

Layout:
    lock             held (flock) by the one process that uses the directory; holds its pid, and whether it only reads
    redis/           the embedded Redis: append-only file, log, socket
    clickhouse/      the embedded ClickHouse
    recovery/        the snapshots of the dataflow, a copy for each start
    files.json       which input file is which partition
    topic.json       which Kafka topic is read, by its id
    deployment.json  the identity of this deployment
    rebuild.json     what a rebuild reads from the ledger, until every partition reads the log again
    front.json       address and password of the running flow's ClickHouse front

Records are replaced atomically (written beside, fsynced, renamed): after a crash there is the old
one or the new one. Everything is readable by its owner only, since `front.json` holds a password.
What cannot be read or written raises `TallyError` with the path and a remedy.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from domain.ports import TallyError

QUERY_WAIT_SECONDS_MAX = 60.0
"""How long a run waits for a query that has the directory to itself."""
_WAIT_SECONDS = 0.1
_READS = "query"

RecordName = Literal["files", "topic", "deployment", "front", "forgotten", "rebuild"]

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or choose another directory (--data-dir, TALLY_DATA_DIR)",
    errno.EDQUOT: "the disk quota is used up: free space, or choose another directory (--data-dir, TALLY_DATA_DIR)",
    errno.EROFS: "the file system is read-only: choose another directory (--data-dir, TALLY_DATA_DIR)",
    errno.ENOTDIR: "a part of the path is a file: choose another directory (--data-dir, TALLY_DATA_DIR)",
    errno.EEXIST: "it is a file, not a directory: choose another path (--data-dir, TALLY_DATA_DIR)",
}
_DENIED = "this user may not write there: change its owner, or choose another directory (--data-dir, TALLY_DATA_DIR)"


class DirectoryInUse(TallyError):
    """Another process holds the directory's lock."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        """It is a query, which will end by itself, or a process that is about to begin or to end."""


class DataDirectory:
    """A data directory; nothing is read or made before a method asks for it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def clickhouse(self) -> Path:
        return self.path / "clickhouse"

    @property
    def recovery(self) -> Path:
        return self.path / "recovery"

    @contextmanager
    def acquire(self, *, reads: bool = False, query_wait_seconds_max: float = 0.0) -> Iterator[None]:
        """Make the directory and use it alone until the block ends, or until this process does.

        Args:
            reads: This is a query: a run that comes meanwhile may wait for it.
            query_wait_seconds_max: How long to wait for such a query to end.

        Raises:
            DirectoryInUse: another run holds it; the message names its pid.
            TallyError: it cannot be made or locked.
        """
        self.make()
        deadline = time.monotonic() + query_wait_seconds_max
        while True:
            try:
                descriptor = self._lock(_READS if reads else "run")
                break
            except DirectoryInUse as error:
                if not error.passing or time.monotonic() > deadline:
                    raise
            time.sleep(_WAIT_SECONDS)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def read(self, name: RecordName) -> dict[str, Any] | None:
        """The record, or None if it was never written.

        Raises:
            TallyError: it cannot be read, or is not a JSON object.
        """
        path = self._record(name)
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, "read", error) from error
        except ValueError as error:
            raise TallyError(f"{path} is damaged ({error}): restore it, or use another data directory") from error
        if not isinstance(record, dict):
            raise TallyError(f"{path} is damaged (no JSON object): restore it, or use another data directory")
        return record

    def write(self, name: RecordName, record: dict[str, Any]) -> None:
        """Replace the record; when this returns, it has reached the disk.

        Raises:
            TallyError: it cannot be written; the old record stands.
        """
        path = self._record(name)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write_synced(beside, json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n")
            os.replace(beside, path)
            _sync_directory(self.path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise _unusable(path, "write", error) from error

    def remove(self, name: RecordName) -> None:
        """Delete the record, if there is one.

        Raises:
            TallyError: it cannot be deleted.
        """
        path = self._record(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(path, "remove", error) from error

    def _record(self, name: RecordName) -> Path:
        return self.path / f"{name}.json"

    def make(self) -> None:
        """Make what is missing. A root that exists keeps its mode: it may be shared on purpose.

        Raises:
            TallyError: it cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (self.redis, self.clickhouse, self.recovery):
                part.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _unusable(self.path, "use", error) from error

    def _lock(self, use: str) -> int:
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, "open", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {use}\n".encode(), 0)
        except BlockingIOError:
            holder, _, use = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip().partition(" ")
            os.close(descriptor)
            who = (f"process {holder}" if holder else "another process") + (" (a query)" if use == _READS else "")
            raise DirectoryInUse(
                f"the data directory {self.path} is in use by {who}: wait for it or stop it, "
                "or give this run a directory of its own (--data-dir, TALLY_DATA_DIR)",
                passing=use == _READS or not holder,
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, "lock", error) from error
        return descriptor


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    """A rename is durable only once its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, verb: str, error: OSError) -> TallyError:
    denied = error.errno in (errno.EACCES, errno.EPERM)
    remedy = _DENIED if denied else _REMEDIES.get(error.errno or 0, "check the path and its file system")
    return TallyError(f"cannot {verb} {path}: {error.strerror or error}; {remedy}")
