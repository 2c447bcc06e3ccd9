"""One embedded engine for all tests of this folder, closed after them: chDB admits one directory a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from engines.front import ClickHouseFront


@pytest.fixture(scope="package")
def held_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataDirectory]:
    directory = DataDirectory(tmp_path_factory.mktemp("tally") / "data")
    with directory.acquire():
        yield directory


@pytest.fixture(scope="package")
def engine(held_directory: DataDirectory) -> Iterator[EmbeddedClickHouse]:
    with EmbeddedClickHouse(held_directory.clickhouse) as engine:
        client = engine.client()
        client.command("CREATE DATABASE tallyflow")
        client.close()
        yield engine


@pytest.fixture
def front(engine: EmbeddedClickHouse, held_directory: DataDirectory) -> Iterator[ClickHouseFront]:
    with ClickHouseFront(engine, held_directory, read_only=False) as front:
        yield front


@pytest.fixture
def table(engine: EmbeddedClickHouse) -> Iterator[str]:
    client = engine.client("tallyflow")
    client.command("CREATE TABLE t (x UInt64, s String, d Decimal(38, 12)) ENGINE = MergeTree ORDER BY x")
    yield "tallyflow.t"
    client.command("DROP TABLE t")
    client.close()
