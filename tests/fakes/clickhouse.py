"""ClickHouse in memory: the product's tables, by its own DDL, and the statements by which its flow reads them.

A table keeps every row that was inserted. With FINAL the row of a key that has the highest version is read, of equal
ones the last (ReplacingMergeTree); without it all of them, as before any merge. It passes the same contract suite
as the embedded engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any, NamedTuple

import pyarrow as pa
from clickhouse_connect.driver.exceptions import OperationalError

from flows import catalogs, forget, open_quotas, reclaim, subscriptions
from tests.simulation.effects import Effects

Row = dict[str, Any]
"""Plain values: instants are `int` microseconds, named tuples dicts."""

_TABLE = re.compile(
    r"CREATE TABLE (\w+)\n\((.*?)\n\)\nENGINE = ReplacingMergeTree(?:\((\w+)\))?\nORDER BY ([^;\n]+)", re.S
)
_COLUMN = re.compile(r"^    (\w+)\s+(.+?)(?: CODEC\(.*\))?,?$", re.M)
_FINAL = re.compile(r"SELECT (.+) FROM (\w+) FINAL")
_REPEATS = ("duplicate", "conflict", "subscription_invalid")


@dataclass
class Table:
    """What the DDL says of a table, and its rows."""

    columns: dict[str, str]
    """Types by name."""
    key: list[str]
    version: str | None
    rows: list[Row] = field(default_factory=list)
    _final: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    _merged: int = 0
    """Rows that `_final` knows."""

    def insert(self, table: pa.Table) -> None:
        assert set(table.column_names) <= set(self.columns), set(table.column_names) - set(self.columns)
        inserted = {name: _plain(table.column(name)) for name in table.column_names}
        absent = {name: _default(kind) for name, kind in self.columns.items() if name not in inserted}
        for values in zip(*inserted.values(), strict=True):
            self.rows.append({**absent, **dict(zip(inserted, values, strict=True))})

    def final(self) -> list[Row]:
        """One row of each key."""
        for row in self.rows[self._merged :]:
            key = tuple(row[name] for name in self.key)
            before = self._final.get(key)
            if before is None or self.version is None or before[self.version] <= row[self.version]:
                self._final[key] = row
        self._merged = len(self.rows)
        return list(self._final.values())


class Result(NamedTuple):
    result_rows: Sequence[Sequence[Any]]


class ClickHouseServer:
    """The tables of the database `tallyflow`, as the migrations make them."""

    def __init__(self) -> None:
        ddl = files("sinks").joinpath("migrations/0001_tables.sql").read_text()
        self.tables = {
            name: Table(
                {column: kind for column, kind in _COLUMN.findall(columns) if column not in ("INDEX", "PROJECTION")},
                re.findall(r"\w+", key),
                version or None,
            )
            for name, columns, version, key in _TABLE.findall(ddl)
        }

    def client(self, effects: Effects | None = None) -> FakeClient:
        return FakeClient(self, effects)


class FakeClient:
    """In place of a `clickhouse_connect` client; knows the statements that the flow's start and tests read by."""

    def __init__(self, server: ClickHouseServer, effects: Effects | None) -> None:
        self._tables = server.tables
        self._effects = effects

    def insert_arrow(self, name: str, table: pa.Table, settings: Mapping[str, Any] | None = None) -> None:
        self._bracketed("clickhouse.insert", lambda: self._tables[name].insert(table))

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Result:
        found: list[Result] = []
        self._bracketed("clickhouse.query", lambda: found.append(Result(self._read(sql, dict(parameters or {})))))
        return found[-1]

    @contextmanager
    def query_row_block_stream(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> Iterator[Iterator[Sequence[Sequence[Any]]]]:
        rows = self.query(sql, parameters).result_rows
        yield (rows[begin : begin + 1000] for begin in range(0, len(rows), 1000))

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _bracketed(self, name: str, act: Callable[[], None]) -> None:
        if self._effects is not None:
            self._effects.before(name, OperationalError)
        act()
        if self._effects is not None:
            self._effects.after(name, OperationalError)

    def _read(self, sql: str, given: dict[str, Any]) -> list[list[Any]]:
        """The rows of a statement of the product's, or of a plain SELECT ... FINAL."""
        match sql:
            case reclaim._EVENTS:
                return [
                    [
                        row[n]
                        for n in (
                            "log_partition",
                            "log_offset",
                            "log_index",
                            "log_time",
                            "source",
                            "id",
                            "content_hash",
                        )
                    ]
                    for row in self._beyond("events", given)
                    if row["log_time"] >= given["since"]
                ]
            case reclaim._FIRSTS:
                return [
                    [
                        *list(row["first_position"].values())[1:],
                        *(row[name] for name in ("log_time", "source", "id", "first_content")),
                    ]
                    for row in self._beyond("rejects", given)
                    if row["reason"] in _REPEATS and row["log_time"] >= given["since"]
                ]
            case reclaim._ENDS:
                ends = [row["log_offset"] + 1 for name in ("events", "rejects") for row in self._beyond(name, given)]
                ends += [row["next_offset"] for row in self._of_partition("progress", given)]
                return [[max(ends, default=0)]]
            case reclaim._PARTITIONS:
                tables = [self._tables[name].rows for name in ("events", "rejects", "progress")]
                known = {r["log_partition"] for rows in tables for r in rows if r["log_topic"] == given["topic"]}
                return [[partition] for partition in known]
            case subscriptions._CHANGES:
                rows = [
                    row
                    for row in self._final_of_partition("subscriptions", given)
                    if row["log_offset"] < given["offset"]
                ]
                return sorted(map(_change, rows), key=lambda change: change[:2])
            case subscriptions._ALL:
                rows = self._tables["subscriptions"].final()
                return sorted([[r["log_topic"], r["log_partition"], *_change(r)] for r in rows], key=lambda r: r[:4])
            case open_quotas._OPEN:
                names = "subject feature used allowance state period_start period_end inputs era plan catalog_version"
                rows = [row for row in self._tables["quotas"].final() if row["period_end"] > given["now_us"]]
                return [[_text(row[name]) for name in names.split()] for row in rows]
            case forget._LOG_TIMES:
                latest: dict[int, int] = {}
                for row in self._tables["progress"].rows:
                    if row["log_topic"] == given["topic"]:
                        latest[row["log_partition"]] = max(row["log_time"], latest.get(row["log_partition"], 0))
                return [list(item) for item in latest.items()]
            case catalogs._APPLIED:
                rows = sorted(self._tables["catalogs"].final(), key=lambda row: int(row["version"]))
                return [[row[name] for name in ("version", "effective_from", "yaml", "sha256")] for row in rows]
            case catalogs._LATEST_LOG_TIME:
                tables = [self._tables[name].rows for name in ("events", "rejects", "progress")]
                return [[max((row["log_time"] for rows in tables for row in rows), default=0)]]
            case reclaim._LEDGER_MADE:
                return [[min((r["applied_at"] for r in self._tables["catalogs"].rows if r["version"] == 1), default=0)]]
        match = _FINAL.fullmatch(sql)
        assert match is not None, f"the fake does not know this statement: {sql}"
        rows = self._tables[match[2]].final()
        columns = [_selected(rows, column) for column in match[1].split(", ")]
        return [list(row) for row in zip(*columns, strict=True)]

    def _beyond(self, table: str, given: Mapping[str, Any]) -> list[Row]:
        return [row for row in self._of_partition(table, given) if row["log_offset"] >= given["offset"]]

    def _of_partition(self, table: str, given: Mapping[str, Any]) -> list[Row]:
        return [row for row in self._tables[table].rows if _is_of(row, given)]

    def _final_of_partition(self, table: str, given: Mapping[str, Any]) -> list[Row]:
        return [row for row in self._tables[table].final() if _is_of(row, given)]


def _is_of(row: Row, given: Mapping[str, Any]) -> bool:
    return bool(row["log_partition"] == given["partition"] and row["log_topic"] == given["topic"])


def _change(row: Row) -> list[Any]:
    dates = [str(row["start"]), "" if row["end"] is None else str(row["end"])]
    names = ("log_offset", "log_index", "log_time", "subject", "action", "plan")
    return [*(row[name] for name in names), *dates, row["timezone"], row["effective_from"]]


def _text(value: Any) -> Any:
    """As `toString` writes decimals."""
    return f"{value:f}" if isinstance(value, Decimal) else value


def _selected(rows: Sequence[Row], column: str) -> list[Any]:
    expression, _, _ = column.partition(" AS ")
    if expression.startswith("hex("):
        name = expression[4:-1]
        return [row[name].hex().upper() for row in rows]
    name = expression.removeprefix("toUnixTimestamp64Micro(").removesuffix(")")
    return [row[name] for row in rows]


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        found: list[Any] = column.cast(pa.int64()).to_pylist()
        return found
    values: list[Any] = column.to_pylist()
    return [dict(value) for value in values] if pa.types.is_map(column.type) else values


def _default(kind: str) -> Any:
    """What ClickHouse puts where nothing is given."""
    if kind.startswith("Nullable"):
        return None
    for begin, value in (("Map", {}), ("Array", []), ("Date", date(1970, 1, 1)), ("Decimal", Decimal(0))):
        if kind.startswith(begin) and not kind.startswith("DateTime"):
            return value
    return "" if "String" in kind and not kind.startswith("Tuple") else 0
