"""ClickHouse, embedded (chDB) or a server: clients for both.

A server is reached by `connect` (see `engines.clickhouse_server`).

chDB admits one process a directory and one directory a process. Within the process any number of
clients may be open; each has session state of its own, and its calls are serialised, so a thread
that should not wait for another takes a client of its own.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self, cast

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from engines.clickhouse_server import UNKNOWN_DATABASE as UNKNOWN_DATABASE
from engines.clickhouse_server import connect as connect
from engines.clickhouse_server import refused

_INSTALL = "install the extra `embedded` (pip install 'tallyflow[embedded]'), or set TALLY_CLICKHOUSE_URL"


class Connection(Protocol):
    """What we use of `chdb.state.sqlitelike.Connection`, which is not typed; errors are RuntimeErrors."""

    def query(self, query: str | bytes, format: str = "CSV") -> Any:
        """Run any statement, and give its result as a whole."""

    def send_query(self, query: str | bytes, format: str = "CSV") -> Any:
        """Start a SELECT, and give its result block by block; one at a time on a connection."""

    def send_insert(self, query: str | bytes, format: str = "CSV") -> Any:
        """Start an INSERT whose data is appended in pieces."""

    def close(self) -> None:
        """After its streams have been closed."""


class EmbeddedClickHouse:
    """The engine over one directory, open until `close()`.

    The caller keeps other processes out of the directory (the data directory's lock).

    Raises:
        TallyError: chDB is not installed, or cannot open the directory.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        if "?" in str(self.path):
            raise TallyError(f"{self.path}: the embedded ClickHouse cannot be in a path with '?': choose another one")
        self._first: Connection | None = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def client(self, database: str | None = None) -> Client:
        """A new client, to be closed by its user; `database` is the one that plain table names are in.

        Raises:
            TallyError: the engine is closed, or there is no such database.
        """
        self._check_open()
        try:
            return clickhouse_connect.get_client(interface="chdb", path=str(self.path), database=database or "default")
        except ClickHouseError as error:
            where = f"the embedded ClickHouse in {self.path}"
            if getattr(error, "code", None) == UNKNOWN_DATABASE:
                raise TallyError(f"{where} has no database {database!r} yet: let `tally run` make it") from error
            raise refused(error, where, database) from error

    def connection(self) -> Connection:
        """A new raw connection, to be closed by its user; it takes and gives bytes in any format.

        Raises:
            TallyError: the engine is closed.
        """
        self._check_open()
        return self._open()

    def close(self) -> None:
        """Give the engine up; it ends, and its directory is free, once every client is closed too."""
        first, self._first = self._first, None
        if first is not None:
            first.close()

    def _check_open(self) -> None:
        if self._first is None:
            raise TallyError(f"the embedded ClickHouse in {self.path} is closed")

    def _open(self) -> Connection:
        try:
            import chdb
        except ImportError as error:
            raise TallyError(f"the embedded ClickHouse needs the package chdb ({error}): {_INSTALL}") from error
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            connection = cast(Connection, chdb.connect(str(self.path)))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:
            raise TallyError(
                f"cannot open the embedded ClickHouse in {self.path}: {error} "
                "(is another process using it, or this process another directory? is it writable, the disk not full?)"
            ) from error
        return connection


def require_embedded() -> None:
    """Raises TallyError, with a remedy, if the embedded engine is not installed."""
    if find_spec("chdb") is None:
        raise TallyError(f"the embedded ClickHouse needs the package chdb: {_INSTALL}")
