"""From the flow's values to Arrow tables: one function a ClickHouse table, exact decimals included."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from domain.quota import QuotaRow, Signal, SignalType
from domain.rating import RatedRow
from domain.totals import MemberUpdate, UsageUpdate
from domain.values import AMOUNT_DECIMALS, AMOUNT_SCALE, QUANTITY_DECIMALS, QUANTITY_SCALE, Batch

ERA = 0
"""Raised only by a deliberate recomputation."""

_ERA_STEP = 2**40
_INSTANT = pa.timestamp("us", "UTC")
_TEXT_MAP = pa.map_(pa.string(), pa.string())
_QUANTITY = pa.decimal128(38, QUANTITY_DECIMALS)
_AMOUNT = pa.decimal256(76, AMOUNT_DECIMALS)
_AMOUNT_PER_QUANTITY = AMOUNT_SCALE // QUANTITY_SCALE
_NOWHERE = (0, 0, 0)

_Column = tuple[str, Callable[[Any], pa.Array] | None]


def quantities(values: Sequence[int]) -> pa.Array:
    """Integers scaled by 10^12 as Decimal(38, 12)."""
    return _decimals(values, _QUANTITY, 16)


def amounts(values: Sequence[int]) -> pa.Array:
    """Integers scaled by 10^24 as Decimal(76, 24)."""
    return _decimals(values, _AMOUNT, 32)


def _decimals(values: Sequence[int], kind: pa.DataType, width: int) -> pa.Array:
    joined = b"".join([value.to_bytes(width, "little", signed=True) for value in values])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(joined)])


def _instants(values: Sequence[int]) -> pa.Array:
    return pa.array(values, _INSTANT)


def _texts(values: Sequence[str]) -> pa.Array:
    return pa.array(values, pa.string())


def _uint32s(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.uint32())


def _uint64s(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.uint64())


def _dates(days: Sequence[int]) -> pa.Array:
    return pa.array(days, pa.int32()).cast(pa.date32())


def _selections(values: Sequence[dict[str, list[str]]]) -> pa.Array:
    return pa.array([list(value.items()) for value in values], pa.map_(pa.string(), pa.list_(pa.string())))


def _tiers(rows: Sequence[tuple[tuple[int, int], ...]]) -> pa.Array:
    """Per row, the (quantity, amount) of each tier, as a list of structs."""
    flat = [tier for row in rows for tier in row]
    ends = [0, *accumulate(map(len, rows))]
    fields = [quantities([tier[0] for tier in flat]), amounts([tier[1] for tier in flat])]
    structs = pa.StructArray.from_arrays(fields, ["quantity", "amount"])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)


def _positions(topic: str, positions: Iterable[tuple[int, int, int] | None]) -> pa.Array:
    """Positions as tuples with their topic; ('', 0, 0, 0) for none."""
    known = list(positions)
    partitions, offsets, indexes = zip(*[position or _NOWHERE for position in known], strict=True)
    return pa.StructArray.from_arrays(
        [
            pa.array(["" if position is None else topic for position in known], pa.string()),
            pa.array(partitions, pa.uint32()),
            pa.array(offsets, pa.uint64()),
            pa.array(indexes, pa.uint32()),
        ],
        ["log_topic", "log_partition", "log_offset", "log_index"],
    )


def _place(batch: Batch, offsets: list[int], indexes: list[int]) -> dict[str, pa.Array]:
    count = len(offsets)
    return {
        "log_topic": pa.repeat(batch.raw.topic, count),
        "log_partition": pa.repeat(pa.scalar(batch.raw.partition, pa.uint32()), count),
        "log_offset": pa.array(offsets, pa.uint64()),
        "log_index": pa.array(indexes, pa.uint32()),
    }


def events_table(batch: Batch) -> pa.Table:
    """The accepted events of a batch."""
    events = batch.events
    attributes = events.attributes or [None] * len(events)
    return pa.table(
        {
            **_place(batch, events.offsets, events.indexes),
            "log_time": _instants(events.log_times_us),
            "source": pa.array(events.sources, pa.string()),
            "id": pa.array(events.ids, pa.string()),
            "type": pa.array(events.types, pa.string()),
            "subject": pa.array(events.subjects, pa.string()),
            "time": _instants(events.times_us),
            "attributes": pa.array([list(a.items()) if a else [] for a in attributes], _TEXT_MAP),
            "payload": pa.array(events.payloads, pa.binary()),
            "content_hash": pa.array(events.contents, pa.uint64()),
        }
    )


def rejects_table(batch: Batch) -> pa.Table:
    """The rejected events of a batch."""
    rejects = batch.rejects
    return pa.table(
        {
            **_place(batch, rejects.offsets, rejects.indexes),
            "log_time": _instants(rejects.log_times_us),
            "reason": pa.array([reason.value for reason in rejects.reasons], pa.string()),
            "detail": pa.array(rejects.details, pa.string()),
            "source": pa.array(rejects.sources, pa.string()),
            "id": pa.array(rejects.ids, pa.string()),
            "subject": pa.array(rejects.subjects, pa.string()),
            "first_position": _positions(batch.raw.topic, rejects.firsts),
            "first_content": pa.array(rejects.first_contents, pa.uint64()),
            "payload": pa.array(rejects.payloads, pa.binary()),
        }
    )


class ProgressRow(NamedTuple):
    """How far a partition is counted: a row of `progress`."""

    log_topic: str
    log_partition: int
    next_offset: int
    messages: int
    events: int
    log_time_us: int


def progress_row(batch: Batch) -> ProgressRow:
    raw = batch.raw
    return ProgressRow(raw.topic, raw.partition, raw.next_offset, raw.messages, raw.events, raw.log_time_us or 0)


def _table(rows: Sequence[tuple[Any, ...]], columns: Sequence[_Column]) -> dict[str, pa.Array]:
    """Rows as Arrow columns; a column without a builder is left out."""
    transposed = zip(*rows, strict=True)
    return {name: build(values) for (name, build), values in zip(columns, transposed, strict=True) if build}


_PROGRESS: tuple[_Column, ...] = (
    ("log_topic", _texts),
    ("log_partition", _uint32s),
    ("next_offset", _uint64s),
    ("messages", _uint64s),
    ("events", _uint64s),
    ("log_time", _instants),
)
_USAGE: tuple[_Column, ...] = (
    ("meter", _texts),
    ("subject", _texts),
    ("window_start", _instants),
    ("window_end", _instants),
    ("dimensions_key", _texts),
    ("booked_on", _dates),
    ("labels", None),
    ("aggregation", _texts),
    ("value", quantities),
    ("count", _uint64s),
    ("catalog_version", _uint32s),
    ("latest", None),
)
_MEMBERS: tuple[_Column, ...] = (
    ("meter", _texts),
    ("subject", _texts),
    ("window_start", _instants),
    ("window_end", _instants),
    ("dimensions_key", _texts),
    ("member", _texts),
)
_RATED: tuple[_Column, ...] = (
    ("subject", _texts),
    ("plan", _texts),
    ("price", _texts),
    ("period_start", _instants),
    ("period_end", _instants),
    ("meter", _texts),
    ("quantity", quantities),
    ("amount", amounts),
    ("model", _texts),
    ("selection", _selections),
    ("currency", _texts),
    ("tiers", _tiers),
    ("inputs", _uint64s),
    ("catalog_version", _uint32s),
)
_QUOTAS: tuple[_Column, ...] = (
    ("subject", _texts),
    ("plan", _texts),
    ("feature", _texts),
    ("period_start", _instants),
    ("period_end", _instants),
    ("meter", _texts),
    ("used", quantities),
    ("allowance", quantities),
    ("state", _texts),
    ("inputs", _uint64s),
    ("catalog_version", _uint32s),
)
_SIGNALS: tuple[_Column, ...] = (
    ("id", _texts),
    ("type", _texts),
    ("subject", _texts),
    ("feature", _texts),
    ("meter", _texts),
    ("period_start", _instants),
    ("period_end", _instants),
    ("threshold", amounts),
    ("allowance", amounts),
    ("used", amounts),
    ("at", _instants),
    ("catalog_version", _uint32s),
)


def progress_table(rows: Sequence[ProgressRow]) -> pa.Table:
    return pa.table(_table(rows, _PROGRESS))


def usage_table(rows: Sequence[UsageUpdate], topic: str) -> pa.Table:
    table = _table(rows, _USAGE)
    dimensions = [_dimensions(row.labels, row.dimensions_key) for row in rows]
    table["dimensions"] = pa.array(dimensions, _TEXT_MAP)
    table |= _versions([row.inputs for row in rows])
    if any(row.latest for row in rows):
        table["latest_time"] = _instants([row.latest[0] if row.latest else 0 for row in rows])
        table["latest_position"] = _positions(topic, [row.latest[1:] if row.latest else None for row in rows])
    return pa.table(table)


def members_table(rows: Sequence[MemberUpdate]) -> pa.Table:
    return pa.table(_table(rows, _MEMBERS))


def rated_table(rows: Sequence[RatedRow]) -> pa.Table:
    return pa.table(_table(rows, _RATED) | _versions([row.inputs for row in rows]))


def quotas_table(rows: Sequence[QuotaRow]) -> pa.Table:
    return pa.table(_table(rows, _QUOTAS) | _versions([row.inputs for row in rows]))


def signals_table(rows: Sequence[Signal]) -> pa.Table:
    """Signals; quantities and amounts share columns, so quantities are brought to the finer scale."""
    alike = [
        row
        if row.type is SignalType.SPEND_REACHED
        else row._replace(
            threshold=row.threshold * _AMOUNT_PER_QUANTITY,
            allowance=row.allowance * _AMOUNT_PER_QUANTITY,
            used=row.used * _AMOUNT_PER_QUANTITY,
        )
        for row in rows
    ]
    return pa.table(_table(alike, _SIGNALS))


def _versions(inputs: Sequence[int]) -> dict[str, pa.Array]:
    """The columns by which the fullest row of a key wins."""
    return {
        "inputs": _uint64s(inputs),
        "era": pa.repeat(pa.scalar(ERA, pa.uint32()), len(inputs)),
        "version": _uint64s([ERA * _ERA_STEP + n for n in inputs]),
    }


@lru_cache(maxsize=65_536)
def _dimensions(labels: tuple[str, ...], key: str) -> list[tuple[str, str]]:
    return list(zip(labels, json.loads(key), strict=True)) if key else []
