"""The schema: what the migrations declare, what the database then has, and what the sink writes agree."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from domain.ports import TallyError
from sinks import migrate as module
from sinks.migrate import Migration, applied, migrate, migrations, require_current
from tests.sinks import samples

_TABLE = re.compile(r"^CREATE TABLE (\w+)\n\(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r"^    (?!INDEX |PROJECTION )(\w+)\s+(.+?)(?: CODEC\(.+\))?,?$", re.MULTILINE)
_NOT_BY_THE_SINK = {"catalogs", "webhook_dead_letters", "schema_migrations"}


def actual(client: Client) -> dict[str, dict[str, str]]:
    """By table, the type of each column."""
    found: dict[str, dict[str, str]] = {}
    sql = """
        SELECT table, name, type FROM system.columns
        WHERE database = currentDatabase() AND table IN (
            SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'
        )
        ORDER BY table, position
    """
    for table, name, kind in client.query(sql).result_rows:
        found.setdefault(table, {})[name] = kind
    return found


def definitions(client: Client) -> dict[str, str]:
    sql = "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()"
    return {str(name): str(query) for name, query in client.query(sql).result_rows}


def test_the_database_has_the_declared_columns(client: Client) -> None:
    text = "\n".join(migration.sql for migration in migrations())
    declared = {table: dict(_COLUMN.findall(body)) for table, body in _TABLE.findall(text)}
    found = actual(client)
    del found["schema_migrations"]
    assert found == declared


def test_every_column_is_written_and_with_a_fitting_type(client: Client) -> None:
    found = {table: columns for table, columns in actual(client).items() if table not in _NOT_BY_THE_SINK}
    written = {
        table: {name: clickhouse_type(arrow.schema.field(name).type) for name in arrow.column_names}
        for table, arrow in samples.arrow_tables().items()
    }
    assert written == {table: {n: _plain(kind) for n, kind in columns.items()} for table, columns in found.items()}


def test_no_column_of_usage_is_ever_left_out(client: Client) -> None:
    """Nor in another place: tables of several meters are joined."""
    without = samples.usage_table(samples.usage())
    assert without.schema == samples.usage_table(samples.latest()).schema
    assert actual(client)["usage"].keys() == set(without.column_names)
    samples.insert(client, ("usage", without))
    [row] = client.query("SELECT toUnixTimestamp64Micro(latest_time), latest_position FROM usage").result_rows
    assert row[0] == 0
    assert tuple(row[1].values()) == ("", 0, 0, 0)


def clickhouse_type(arrow: pa.DataType) -> str:
    """The one ClickHouse type that holds what an Arrow type holds, no more and no less."""
    if pa.types.is_map(arrow):
        return f"Map({clickhouse_type(arrow.key_type)}, {clickhouse_type(arrow.item_type)})"
    if pa.types.is_list(arrow):
        return f"Array({clickhouse_type(arrow.value_type)})"
    if pa.types.is_struct(arrow):
        return f"Tuple({', '.join(f'{field.name} {clickhouse_type(field.type)}' for field in arrow)})"
    if pa.types.is_decimal(arrow):
        return f"Decimal({arrow.precision}, {arrow.scale})"
    return {
        pa.string(): "String",
        pa.binary(): "String",
        pa.uint32(): "UInt32",
        pa.uint64(): "UInt64",
        pa.date32(): "Date",
        pa.timestamp("us", "UTC"): "DateTime64(6, 'UTC')",
    }[arrow]


def _plain(kind: str) -> str:
    return re.sub(r"(?:LowCardinality|Nullable)\((\w+)\)", r"\1", kind)


@pytest.fixture
def migrated(empty: Client) -> Client:
    """A client of a migrated database that may be changed."""
    migrate(empty)
    return empty


def test_a_second_run_does_nothing(empty: Client) -> None:
    assert migrate(empty) == migrations()
    before, recorded = definitions(empty), applied(empty)
    assert migrate(empty) == []
    assert definitions(empty) == before
    assert applied(empty) == recorded == {m.version: m.sha256 for m in migrations()}


def test_only_a_migrated_database_is_current(empty: Client) -> None:
    with pytest.raises(TallyError, match=r"lacks 0001_tables.sql, .*, 0003_webhooks.sql: run `tally migrate`"):
        require_current(empty)
    migrate(empty)
    require_current(empty)


@pytest.mark.parametrize("do", [migrate, require_current])
def test_a_file_that_changed_after_it_was_applied_is_refused(
    migrated: Client, monkeypatch: pytest.MonkeyPatch, do: Callable[[Client], Any]
) -> None:
    first, *others = migrations()
    changed = Migration(first.version, first.name, first.sql + "\n-- a better comment\n")
    monkeypatch.setattr(module, "migrations", lambda: [changed, *others])
    before = definitions(migrated)
    with pytest.raises(TallyError, match=r"0001_tables.sql was changed after it was applied: restore the file"):
        do(migrated)
    assert definitions(migrated) == before


@pytest.mark.parametrize("do", [migrate, require_current])
def test_a_newer_database_is_refused(migrated: Client, do: Callable[[Client], Any]) -> None:
    migrated.insert("schema_migrations", [[9999, "9999_x.sql", "0"]], column_names=["version", "name", "sha256"])
    with pytest.raises(TallyError, match="has migration 9999, which this version of tallyflow does not know"):
        do(migrated)


def test_a_new_migration_is_applied_to_an_old_database(migrated: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Migration(9999, "9999_more.sql", "-- More.\nCREATE TABLE more (x UInt8) ENGINE = MergeTree ORDER BY x;\n")
    known = [*migrations(), new]
    monkeypatch.setattr(module, "migrations", lambda: known)
    assert migrate(migrated) == [new]
    assert actual(migrated)["more"] == {"x": "UInt8"}


class Breaking:
    """A client whose connection breaks before the nth statement of the migrations, or right after it."""

    def __init__(self, client: Client, statements: int, after: bool) -> None:
        self._client = client
        self._left = statements
        self._after = after

    def command(self, sql: str) -> Any:
        if "schema_migrations" in sql:
            return self._client.command(sql)
        self._left -= 1
        if self._left < 0 and self._after:
            self._client.command(sql)
        if self._left < 0:
            raise DatabaseError("the connection broke")
        return self._client.command(sql)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("after", [False, True])
def test_a_migration_that_broke_off_is_completed(empty: Client, after: bool) -> None:
    statements = sum(len(migration.statements()) for migration in migrations())
    for done in (0, 1, 5, statements - 1):
        with pytest.raises(TallyError, match=r"migration \d+_\w+.sql failed: the connection broke"):
            migrate(Breaking(empty, done, after))  # type: ignore[arg-type]
        with pytest.raises(TallyError, match="lacks"):
            require_current(empty)
    migrate(empty)
    require_current(empty)
    assert definitions(empty).keys() >= {"events", "signals", "catalogs", "usage_by_window", "completeness"}
    assert len(definitions(empty)) == statements + 1
