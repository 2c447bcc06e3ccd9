"""What stands in ClickHouse, in the oracle's form, and how it differs from what should."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from clickhouse_connect.driver.client import Client

from domain.quota import signal_id
from domain.values import AMOUNT_DECIMALS, QUANTITY_DECIMALS
from tests.oracle import Tables

_POSITION = ["log_topic", "log_partition", "log_offset", "log_index"]
_SPAN = ["us(period_start)", "us(period_end)"]
_WINDOW = ["meter", "subject", "us(window_start)", "us(window_end)", "dimensions_key"]
_VERSIONS = ["inputs", "era", "version", "catalog_version"]

_COLUMNS: dict[str, tuple[list[str], list[str]]] = {
    "events": (
        _POSITION,
        ["us(log_time)", "source", "id", "type", "subject", "us(time)", "attributes", "hex(payload)"],
    ),
    "rejects": (
        _POSITION,
        ["us(log_time)", "reason", "source", "id", "subject", "first_position", "hex(payload)"],
    ),
    "subscriptions": (
        _POSITION,
        ["us(log_time)", "subject", "action", "plan", "start", "end", "timezone", "us(effective_from)"],
    ),
    "progress": (_POSITION[:2], ["next_offset", "messages", "events", "us(log_time)"]),
    "usage": (
        [*_WINDOW, "booked_on"],
        ["dimensions", "aggregation", "value", "count", "us(latest_time)", "latest_position", *_VERSIONS],
    ),
    "usage_members": ([*_WINDOW, "member"], []),
    "rated_usage": (
        ["subject", "plan", "price", *_SPAN],
        ["meter", "quantity", "amount", "currency", "tiers", *_VERSIONS],
    ),
    "quotas": (
        ["subject", "plan", "feature", "us(period_start)"],
        ["us(period_end)", "meter", "used", "allowance", "state", *_VERSIONS],
    ),
    "signals": (
        ["type", "subject", "feature", "us(period_start)", "threshold"],
        ["us(period_end)", "allowance", "id"],
    ),
}


def read_tables(client: Client) -> Tables:
    """Every row of every table, as the oracle gives them."""
    found = Tables()
    for table, (keys, others) in _COLUMNS.items():
        rows = client.query(f"SELECT {', '.join(map(_sql, [*keys, *others]))} FROM {table} FINAL").result_rows
        names = list(map(_name, others))
        if table == "usage_members":
            setattr(found, table, {tuple(row) for row in rows})
        else:
            values = {}
            for row in rows:
                named = dict(zip(names, map(_plain, row[len(keys) :]), strict=True))
                if "payload" in named:
                    named["payload"] = bytes.fromhex(named["payload"])
                key = tuple(row[: len(keys)])
                while key in values:  # what ClickHouse keeps apart and must not: shown as one row too many
                    key = (*key, "again")
                values[key] = named
            setattr(found, table, values)
    return found


def expected_tables(tables: Tables) -> Tables:
    """The oracle's rows, with the ids that signals must have (the oracle cannot hash)."""
    for (kind, subject, feature, start, threshold), row in tables.signals.items():
        decimals = AMOUNT_DECIMALS if kind == "spend.threshold_reached" else QUANTITY_DECIMALS
        row["id"] = signal_id(kind, subject, feature, start, int(threshold.scaleb(decimals)))
    return tables


def differences(found: Tables, expected: Tables, limit: int = 5) -> list[str]:
    """What differs, table by table, with a few examples each; empty if nothing does."""
    out = []
    for table in (f.name for f in fields(Tables)):
        have, want = getattr(found, table), getattr(expected, table)
        if isinstance(want, set):
            have, want = dict.fromkeys(have), dict.fromkeys(want)
        missing = [key for key in want if key not in have]
        extra = [key for key in have if key not in want]
        wrong = [key for key in want if key in have and have[key] != want[key]]
        for kind, keys in (("missing", missing), ("too many", extra), ("wrong", wrong)):
            if keys:
                out.append(f"{table}: {len(keys)} of {len(want)} rows {kind}")
                out += [f"  {key}: {_difference(have.get(key), want.get(key))}" for key in keys[:limit]]
    return out


def _difference(have: Any, want: Any) -> str:
    if have is None or want is None:
        return f"{'expected' if have is None else 'found'} {want if have is None else have}"[:600]
    parts = [
        f"{name}: found {have.get(name)!r}, expected {value!r}"
        for name, value in want.items()
        if have.get(name) != value
    ]
    return "; ".join(parts)[:600]


def _sql(column: str) -> str:
    if column.startswith("us("):
        return f"toUnixTimestamp64Micro({column[3:-1]}) AS {_name(column)}_us"
    if column.startswith("hex("):
        return f"hex({column[4:-1]}) AS {_name(column)}_hex"
    return column


def _name(column: str) -> str:
    return column.partition("(")[2][:-1] if column.endswith(")") else column


def _plain(value: Any) -> Any:
    """Named tuples come as dicts, arrays of tuples as lists of dicts."""
    if isinstance(value, dict) and {"log_topic", "log_offset"} <= value.keys():
        return tuple(value.values())
    if isinstance(value, list):
        return [tuple(v.values()) if isinstance(v, dict) else v for v in value]
    return value
