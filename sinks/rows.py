"""From the flow's values to Arrow tables: one function a ClickHouse table, exact decimals included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from domain.catalog import Aggregation
from domain.cells import little_endian
from domain.quota import QuotaStates, Signal, SignalType
from domain.rating import RatedUpdate
from domain.updates import MemberUpdate, PeriodKey, UsageUpdate
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

_SELECTION = pa.map_(pa.string(), pa.list_(pa.string()))
_POSITION = pa.struct(
    [
        ("log_topic", pa.string()),
        ("log_partition", pa.uint32()),
        ("log_offset", pa.uint64()),
        ("log_index", pa.uint32()),
    ]
)
_NO_POSITION = {"log_topic": "", "log_partition": 0, "log_offset": 0, "log_index": 0}


def quantities(values: Sequence[int]) -> pa.Array:
    """Integers scaled by 10^12 as Decimal(38, 12)."""
    return _decimals(values, _QUANTITY, 16)


def amounts(values: Sequence[int]) -> pa.Array:
    """Integers scaled by 10^24 as Decimal(76, 24)."""
    return _decimals(values, _AMOUNT, 32)


def _decimals(values: Sequence[int], kind: pa.DataType, width: int) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(little_endian(values, width))])


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


def _tiers(rows: Sequence[tuple[tuple[int, int], ...]]) -> pa.Array:
    """Per row, the (quantity, amount) of each tier, as a list of structs."""
    flat = [tier for row in rows for tier in row]
    ends = [0, *accumulate(map(len, rows))]
    fields = [quantities([tier[0] for tier in flat]), amounts([tier[1] for tier in flat])]
    structs = pa.StructArray.from_arrays(fields, ["quantity", "amount"])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)


def _text_maps(values: Sequence[dict[str, str] | None] | None, count: int) -> pa.Array:
    """Attributes as maps; None stands for `count` empty ones."""
    if values is None:
        return _repeat([], _TEXT_MAP, count)
    return pa.array([list(value.items()) if value else [] for value in values], _TEXT_MAP)


def _repeat(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    """One nested value, `count` times (pa.repeat is slow on nested types)."""
    return pa.array([value], kind).take(_zeros(count))


def _zeros(count: int) -> pa.Array:
    return pa.repeat(pa.scalar(0, pa.int32()), count)


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
    return pa.table(
        {
            **_place(batch, events.offsets, events.indexes),
            "log_time": _instants(events.log_times_us),
            "source": pa.array(events.sources, pa.string()),
            "id": pa.array(events.ids, pa.string()),
            "type": pa.array(events.types, pa.string()),
            "subject": pa.array(events.subjects, pa.string()),
            "time": _instants(events.times_us),
            "attributes": _text_maps(events.attributes, len(events)),
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


def subscriptions_table(batch: Batch) -> pa.Table:
    """What the subscription events of a batch changed."""
    changes = batch.changes
    return pa.table(
        {
            **_place(batch, [change.offset for change in changes], [change.element for change in changes]),
            "log_time": _instants([change.log_time_us for change in changes]),
            "subject": _texts([change.subject for change in changes]),
            "action": _texts([change.action.value for change in changes]),
            "plan": _texts([change.plan for change in changes]),
            "start": pa.array([change.start for change in changes], pa.date32()),
            "end": pa.array([change.end for change in changes], pa.date32()),
            "timezone": _texts([change.timezone for change in changes]),
            "effective_from": _instants([change.effective_from_us for change in changes]),
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


def progress_table(rows: Sequence[ProgressRow]) -> pa.Table:
    topics, partitions, next_offsets, messages, events, log_times = zip(*rows, strict=True)
    return pa.table(
        {
            "log_topic": _texts(topics),
            "log_partition": _uint32s(partitions),
            "next_offset": _uint64s(next_offsets),
            "messages": _uint64s(messages),
            "events": _uint64s(events),
            "log_time": _instants(log_times),
        }
    )


def usage_table(update: UsageUpdate, topic: str) -> pa.Table:
    count = len(update.keys)
    subjects, starts, ends, booked, keys = zip(*update.keys, strict=True)
    dimensions = [_dimensions(update.labels, key) for key in keys]
    table = {
        "meter": pa.repeat(update.meter, count),
        "subject": _texts(subjects),
        "window_start": _instants(starts),
        "window_end": _instants(ends),
        "dimensions_key": _texts(keys),
        "booked_on": _dates(booked),
        "dimensions": pa.array(dimensions, _TEXT_MAP),
        "aggregation": pa.repeat(update.aggregation.value, count),
        "count": _uint64s(update.inputs),
        "catalog_version": _uint32s(update.catalog_versions),
        **_versions(update.inputs),
    }
    if update.aggregation is Aggregation.LATEST:
        table["value"] = quantities([value[4] for value in update.values])
        table["latest_time"] = _instants([value[0] for value in update.values])
        table["latest_position"] = _positions(topic, [value[1:4] for value in update.values])
    else:
        table["value"] = quantities(update.values)
        table["latest_time"] = pa.repeat(pa.scalar(0, _INSTANT), count)
        table["latest_position"] = _repeat(_NO_POSITION, _POSITION, count)
    return pa.table(table)


def members_table(rows: Sequence[MemberUpdate]) -> pa.Table:
    meters, subjects, starts, ends, keys, members = zip(*rows, strict=True)
    return pa.table(
        {
            "meter": _texts(meters),
            "subject": _texts(subjects),
            "window_start": _instants(starts),
            "window_end": _instants(ends),
            "dimensions_key": _texts(keys),
            "member": _texts(members),
        }
    )


def rated_table(update: RatedUpdate) -> pa.Table:
    count, price = len(update.keys), update.price
    selection = [(label, sorted(values)) for label, values in price.where.items()]
    return pa.table(
        {
            **_periods(update.keys),
            "plan": pa.repeat(update.plan, count),
            "price": pa.repeat(price.key, count),
            "meter": pa.repeat(price.meter, count),
            "model": pa.repeat(type(price.model).__name__.lower(), count),
            "selection": _repeat(selection, _SELECTION, count),
            "quantity": quantities(update.quantities),
            "amount": amounts([rated.amount for rated in update.rated]),
            "currency": pa.repeat(update.currency, count),
            "tiers": _tiers([rated.tiers for rated in update.rated]),
            "catalog_version": pa.repeat(pa.scalar(update.pricing_version, pa.uint32()), count),
            **_versions(update.inputs),
        }
    )


def quotas_table(states: QuotaStates) -> pa.Table:
    count, entitlement = len(states.keys), states.entitlement
    return pa.table(
        {
            **_periods(states.keys),
            "plan": pa.repeat(states.plan, count),
            "feature": pa.repeat(entitlement.feature, count),
            "meter": pa.repeat(entitlement.meter, count),
            "used": quantities(states.used),
            "allowance": quantities([entitlement.limit]).take(_zeros(count)),
            "state": _texts([state.value for state in states.states]),
            "catalog_version": pa.repeat(pa.scalar(states.catalog_version, pa.uint32()), count),
            **_versions(states.inputs),
        }
    )


def _periods(keys: Sequence[PeriodKey]) -> dict[str, pa.Array]:
    subjects, starts, ends = zip(*keys, strict=True)
    return {"subject": _texts(subjects), "period_start": _instants(starts), "period_end": _instants(ends)}


def signals_table(signals: Sequence[Signal]) -> pa.Table:
    """Signals; quantities and amounts share columns, so quantities are brought to the finer scale."""
    scales = [1 if s.type is SignalType.SPEND_REACHED else _AMOUNT_PER_QUANTITY for s in signals]
    scaled = list(zip(signals, scales, strict=True))
    return pa.table(
        {
            "id": _texts([s.id for s in signals]),
            "type": _texts([s.type.value for s in signals]),
            "subject": _texts([s.subject for s in signals]),
            "feature": _texts([s.feature for s in signals]),
            "meter": _texts([s.meter for s in signals]),
            "period_start": _instants([s.period_start_us for s in signals]),
            "period_end": _instants([s.period_end_us for s in signals]),
            "threshold": amounts([s.threshold * scale for s, scale in scaled]),
            "allowance": amounts([s.allowance * scale for s, scale in scaled]),
            "used": amounts([s.used * scale for s, scale in scaled]),
            "at": _instants([s.at_us for s in signals]),
            "catalog_version": _uint32s([s.catalog_version for s in signals]),
        }
    )


def _versions(inputs: Sequence[int]) -> dict[str, pa.Array]:
    """The columns by which the fullest row of a key wins."""
    numbers = np.array(inputs, np.uint64)
    return {
        "inputs": pa.array(numbers),
        "era": pa.repeat(pa.scalar(ERA, pa.uint32()), len(inputs)),
        "version": pa.array(numbers + np.uint64(ERA * _ERA_STEP)),
    }


@lru_cache(maxsize=65_536)
def _dimensions(labels: tuple[str, ...], key: str) -> list[tuple[str, str]]:
    return list(zip(labels, json.loads(key), strict=True)) if key else []
