"""One embedded engine for all tests of this folder, closed after them: chDB admits one directory a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from clickhouse_connect.driver.client import Client

from engines.clickhouse import EmbeddedClickHouse
from sinks.migrate import migrate
from tests.sinks.workload_run import Run, count_workload

_numbers = count()


@pytest.fixture(scope="package")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    with EmbeddedClickHouse(tmp_path_factory.mktemp("sinks") / "clickhouse") as engine:
        yield engine


@pytest.fixture
def empty(engine: EmbeddedClickHouse) -> Iterator[Client]:
    """A client of a database of this test, without tables."""
    name = f"test_{next(_numbers)}"
    with engine.client() as admin:
        admin.command(f"CREATE DATABASE {name}")
        with engine.client(name) as client:
            yield client
        admin.command(f"DROP DATABASE {name}")


@pytest.fixture(scope="package")
def clients(engine: EmbeddedClickHouse) -> Callable[[], Client]:
    """Makes clients of a migrated database that all tests of this folder share; `client` empties it."""
    with engine.client() as admin:
        admin.command("CREATE DATABASE shared")
    with engine.client("shared") as client:
        migrate(client)
    return lambda: engine.client("shared")


@pytest.fixture
def client(clients: Callable[[], Client]) -> Iterator[Client]:
    """A client of a migrated database without rows."""
    with clients() as client:
        yield client
        tables = client.query("""
            SELECT name FROM system.tables
            WHERE database = 'shared' AND engine LIKE '%MergeTree' AND name != 'schema_migrations' AND total_rows > 0
        """)
        for (table,) in tables.result_rows:
            client.command(f"TRUNCATE TABLE {table}")


@pytest.fixture(scope="package")
def run(engine: EmbeddedClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The kitchen-sink workload, counted into a database that only this fixture writes to."""
    with engine.client() as admin:
        admin.command("CREATE DATABASE workload")
    with engine.client("workload") as client:
        migrate(client)
    found = count_workload(lambda: engine.client("workload"), tmp_path_factory.mktemp("workload"))
    yield found
    found.client.close()
