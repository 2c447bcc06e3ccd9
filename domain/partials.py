"""Partial totals of a batch: grouped by columns before anything touches state.

Per meter, the inputs of a batch are grouped three times: into the meter's own windows (`usage`), into
billing periods for each price that reads the meter, and into entitlement periods. The groups are
routed to shards by subject; `domain.totals` merges them. Merging partials is associative and
commutative (the only order is that of positions, for `latest`), so neither the cut into batches nor the
number of workers shows in a total.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from domain.accounts import Accounts, Int64s, pricing_versions
from domain.catalog import Aggregation, Catalog, CatalogVersion, History, Meter, PeriodKind, Price, Where
from domain.pricing import Matrix, part_of
from domain.values import DAY_US, QUANTITY_SCALE, Events

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of one meter's inputs, as parallel lists.

    `values` holds per group: count: 0; sum, avg: the sum; min, max: the extreme; latest: a tuple (time_us,
    offset, index, value); unique: the list of distinct members. Numbers are scaled by 10^12.
    """

    keys: list[tuple[Any, ...]]
    inputs: list[int]
    values: list[Any]


@dataclass(frozen=True, slots=True)
class UsagePartial:
    """Keys: (subject, window_start, window_end, booked_on in days, dimensions_key)."""

    meter: str
    aggregation: Aggregation
    labels: tuple[str, ...]
    catalog_version: int
    groups: Groups


@dataclass(frozen=True, slots=True)
class PricePartial:
    """Keys: (subject, period_start, period_end, part of a matrix or "")."""

    plan: str
    price: str
    aggregation: Aggregation
    pricing_version: int
    groups: Groups


@dataclass(frozen=True, slots=True)
class QuotaPartial:
    """Keys: (subject, period_start, period_end)."""

    plan: str
    feature: str
    aggregation: Aggregation
    pricing_version: int
    groups: Groups


Partial = UsagePartial | PricePartial | QuotaPartial


@dataclass(frozen=True, slots=True)
class ShardInput:
    """What one batch means for one shard: partials, and how far the batch's partition has come."""

    partition: int
    log_time_us: int | None
    partials: list[Partial]


def shard_of(subject: str, shards: int) -> int:
    """The shard that holds a subject's state; the same in every process."""
    return xxhash.xxh3_64_intdigest(subject.encode()) % shards


@lru_cache(maxsize=65_536)
def dimensions_key(values: tuple[str, ...]) -> str:
    """Group-by values as one text that cannot collide: a JSON array, "" without group_by."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) if values else ""


def text_form(value: Any) -> str:
    """A property as text, for group_by, where and unique."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


class Partitioner:
    """Turns the accepted events of a batch into partial totals by shard. Holds no state."""

    def __init__(self, history: History, shards: int) -> None:
        self._history = history
        self._shards = shards

    def partials(self, events: Events, partition: int) -> dict[int, list[Partial]]:
        """Partial totals by shard; shards that no event touches are absent."""
        out: dict[int, list[Partial]] = {}
        numbers = events.catalog_versions
        for number in dict.fromkeys(numbers):
            rows = None
            if numbers.count(number) != len(numbers):
                rows = [i for i, n in enumerate(numbers) if n == number]
            _BatchGrouping(self._history, self._history.get(number), events, rows, partition, self._shards, out).run()
        return out


class _BatchGrouping:
    """The events of a batch that fall under one catalog version, being grouped."""

    def __init__(
        self,
        history: History,
        version: CatalogVersion,
        events: Events,
        rows: list[int] | None,
        partition: int,
        shards: int,
        out: dict[int, list[Partial]],
    ) -> None:
        def pick(column: list[Any]) -> list[Any]:
            return column if rows is None else [column[i] for i in rows]

        self._history = history
        self._version = version
        self._catalog: Catalog = version.catalog
        self._partition = partition
        self._out = out
        self._types = pick(events.types)
        self._data = pick(events.data)
        self._log_times = np.array(pick(events.log_times_us), np.int64)
        times = np.array(pick(events.times_us), np.int64)
        subjects = pick(events.subjects)
        self._accounts = Accounts(self._catalog, subjects, times)
        shard = {s: shard_of(s, shards) for s in set(subjects)}
        self._frame = pl.DataFrame(
            {
                "subject": pl.Series(subjects, dtype=pl.String),
                "shard": pl.Series([shard[s] for s in subjects], dtype=pl.Int32),
                "time": times,
                "offset": pl.Series(pick(events.offsets), dtype=pl.Int64),
                "index": pl.Series(pick(events.indexes), dtype=pl.Int64),
            }
        )

    def run(self) -> None:
        by_type: dict[str, list[int]] = {}
        for i, name in enumerate(self._types):
            by_type.setdefault(name, []).append(i)
        for meter in self._catalog.meters.values():
            rows = by_type.get(meter.event_type)
            if rows:
                self._meter(meter, rows)

    def _meter(self, meter: Meter, rows: list[int]) -> None:
        """Group one meter's inputs for its windows, its prices and its entitlements."""
        schema = self._catalog.event_types[meter.event_type].schema
        data = self._data if len(rows) == len(self._data) else [self._data[i] for i in rows]
        keep, columns = _inputs(meter, schema.getter, data)
        if keep is not None:
            rows = [rows[i] for i in keep]
            if not rows:
                return
        index = np.array(rows, np.int64)
        frame = self._frame if len(rows) == len(self._frame) else self._frame[index]
        labels = {f"d{i}": pl.Series(column, dtype=pl.String) for i, column in enumerate(columns[1:])}
        frame = frame.with_columns(**labels)
        if columns[0] is not None:
            frame = frame.with_columns(value=columns[0])
        self._usage(meter, frame, index)
        self._prices(meter, frame, index)
        self._quotas(meter, frame, index)

    def _usage(self, meter: Meter, frame: pl.DataFrame, index: NDArray[np.int64]) -> None:
        starts, ends = self._accounts.windows(meter.window)
        log_times, end = self._log_times[index], ends[index]
        booked = np.where(log_times >= end + meter.grace_us, log_times // DAY_US, 0)
        frame = frame.with_columns(start=starts[index], end=end, booked=booked)
        dims = [f"d{i}" for i in range(len(meter.group_by))]
        shards, columns, groups = self._group(meter, frame, ["subject", "start", "end", "booked", *dims])
        key_texts = [dimensions_key(v) for v in zip(*columns[4:], strict=True)] if dims else [""] * len(shards)
        keys = list(zip(*columns[:4], key_texts, strict=True))

        def build(part: Groups) -> Partial:
            return UsagePartial(meter.name, meter.aggregation, meter.group_by, self._version.version, part)

        self._route(shards, Groups(keys, *groups), build)

    def _prices(self, meter: Meter, frame: pl.DataFrame, index: NDArray[np.int64]) -> None:
        starts, ends = self._accounts.periods(PeriodKind.BILLING)
        for plan, version, rows in self._plans(index, starts[index]):
            for price in version.catalog.plans[plan].prices:
                if price.meter == meter.name:
                    self._price(meter, plan, version.version, price, frame, rows, starts[index], ends[index])

    def _price(
        self,
        meter: Meter,
        plan: str,
        pricing_version: int,
        price: Price,
        frame: pl.DataFrame,
        rows: NDArray[np.int64] | None,
        starts: Int64s,
        ends: Int64s,
    ) -> None:
        keys = ["subject", "start", "end"]
        frame = frame.with_columns(start=starts, end=ends)
        frame = frame if rows is None else frame[rows]
        frame = _select(frame, price.where, meter.group_by)
        if isinstance(price.model, Matrix):
            column = f"d{meter.group_by.index(price.model.dimension)}"
            parts = [part_of(price.model, value) for value in frame[column].to_list()]
            frame = frame.with_columns(part=pl.Series(parts, dtype=pl.String))
            keys = [*keys, "part"]
        if frame.is_empty():
            return
        shards, columns, groups = self._group(meter, frame, keys)
        texts = columns[3] if len(columns) > 3 else [""] * len(shards)
        tuples = list(zip(*columns[:3], texts, strict=True))

        def build(part: Groups) -> Partial:
            return PricePartial(plan, price.key, meter.aggregation, pricing_version, part)

        self._route(shards, Groups(tuples, *groups), build)

    def _quotas(self, meter: Meter, frame: pl.DataFrame, index: NDArray[np.int64]) -> None:
        for kind in PeriodKind:
            if not self._is_limited(meter, kind):
                continue
            starts, ends = (bounds[index] for bounds in self._accounts.periods(kind))
            timed = frame.with_columns(start=starts, end=ends)
            for plan, version, rows in self._plans(index, starts):
                features = [
                    e.feature
                    for e in version.catalog.plans[plan].entitlements
                    if e.kind == "metered" and e.meter == meter.name and e.period is kind
                ]
                if features:
                    chosen = timed if rows is None else timed[rows]
                    shards, columns, groups = self._group(meter, chosen, ["subject", "start", "end"])
                    keyed = Groups(list(zip(*columns, strict=True)), *groups)
                    for feature in features:
                        self._route(shards, keyed, _quota_builder(plan, feature, meter, version.version))

    def _is_limited(self, meter: Meter, kind: PeriodKind) -> bool:
        """Whether any plan of any version limits a meter by periods of a kind (a cheap first look)."""
        return any(
            e.meter == meter.name and e.period is kind and e.kind == "metered"
            for version in self._history.versions
            for plan in version.catalog.plans.values()
            for e in plan.entitlements
        )

    def _plans(
        self, index: NDArray[np.int64], starts: Int64s
    ) -> list[tuple[str, CatalogVersion, NDArray[np.int64] | None]]:
        """The (plan, pricing version) pairs among rows, with their places; None for all of them."""
        out: list[tuple[str, CatalogVersion, NDArray[np.int64] | None]] = []
        plan_of = self._accounts.plan_of[index]
        for number, plan in enumerate(self._accounts.plans):
            rows = np.flatnonzero(plan_of == number)
            if not len(rows):
                continue
            versions = pricing_versions(self._history, plan, starts[rows])
            for found in np.unique(versions).tolist():
                places = rows[versions == found]
                if found:
                    whole = len(places) == len(plan_of)
                    out.append((plan, self._history.get(found), None if whole else places))
        return out

    def _group(
        self, meter: Meter, frame: pl.DataFrame, keys: list[str]
    ) -> tuple[list[int], list[list[Any]], tuple[list[int], list[Any]]]:
        """Group inputs by keys; the groups come sorted by shard.

        Returns:
            The shard of each group, the key columns, and (number of inputs, values).
        """
        aggregated = frame.group_by(keys).agg(pl.col("shard").first(), pl.len().alias("n"), *_aggregate(meter, frame))
        aggregated = aggregated.sort("shard")
        columns = [aggregated[key].to_list() for key in keys]
        inputs = aggregated["n"].to_list()
        return aggregated["shard"].to_list(), columns, (inputs, self._values(meter, aggregated))

    def _values(self, meter: Meter, frame: pl.DataFrame) -> list[Any]:
        match meter.aggregation:
            case Aggregation.COUNT:
                return [0] * len(frame)
            case Aggregation.UNIQUE:
                return frame["value"].to_list()
            case Aggregation.LATEST:
                places = (frame[name].to_list() for name in ("time", "offset", "index"))
                values = _scaled(meter, self._catalog, frame["value"].to_list())
                return list(zip(*places, values, strict=True))
            case _:
                return _scaled(meter, self._catalog, frame["value"].to_list())

    def _route(self, shards: list[int], groups: Groups, build: Callable[[Groups], Partial]) -> None:
        """Hand each shard its slice of groups (sorted by shard)."""
        edges = np.flatnonzero(np.diff(np.array(shards, np.int64))) + 1
        bounds = [0, *edges.tolist(), len(shards)]
        for low, high in pairwise(bounds):
            part = Groups(groups.keys[low:high], groups.inputs[low:high], groups.values[low:high])
            self._out.setdefault(shards[low], []).append(build(part))


def _quota_builder(plan: str, feature: str, meter: Meter, pricing_version: int) -> Callable[[Groups], Partial]:
    def build(part: Groups) -> Partial:
        return QuotaPartial(plan, feature, meter.aggregation, pricing_version, part)

    return build


def _inputs(meter: Meter, getter: Callable[[tuple[str, ...]], Callable[[Any], Any]], data: Sequence[Any]) -> Any:
    """Which events are inputs of a meter (None: all), and their columns: value or None, then group-by texts."""
    keep: list[int] | None = None
    for path, allowed in meter.where.items():
        texts = [text_form(v) for v in map(getter(tuple(path.split("."))), data)]
        places = range(len(data)) if keep is None else keep
        keep = [i for i in places if texts[i] in allowed]
    values = None
    if meter.value is not None:
        values = list(map(getter(meter.value), data))
        if None in values:
            places = range(len(data)) if keep is None else keep
            keep = [i for i in places if values[i] is not None]
    if keep is not None and len(keep) == len(data):
        keep = None
    if keep is not None:
        data = [data[i] for i in keep]
        values = None if values is None else [values[i] for i in keep]
    columns: list[Any] = [None if values is None else _value_series(meter, values)]
    for label in meter.group_by:
        columns.append([text_form(v) for v in map(getter(tuple(label.split("."))), data)])
    return keep, columns


def _value_series(meter: Meter, values: list[Any]) -> pl.Series:
    if meter.aggregation is Aggregation.UNIQUE:
        return pl.Series("value", [text_form(v) for v in values], dtype=pl.String)
    largest = max(max(values, default=0), -min(values, default=0))
    wide = largest * max(len(values), 1) > _INT64_MAX
    return pl.Series("value", values, dtype=pl.Int128 if wide else pl.Int64)


def _aggregate(meter: Meter, frame: pl.DataFrame) -> list[pl.Expr]:
    value = pl.col("value")
    match meter.aggregation:
        case Aggregation.COUNT:
            return []
        case Aggregation.SUM | Aggregation.AVG:
            return [value.sum()]
        case Aggregation.MIN:
            return [value.min()]
        case Aggregation.MAX:
            return [value.max()]
        case Aggregation.UNIQUE:
            return [value.unique()]
        case Aggregation.LATEST:
            order = ["time", "offset", "index"]
            names = [*order, "value"]
            return [pl.col(name).sort_by(order).last() for name in names]


def _scaled(meter: Meter, catalog: Catalog, values: list[int]) -> list[int]:
    """Numbers scaled by 10^12: a property of type number is so already, an integer is not."""
    assert meter.value is not None
    described = catalog.event_types[meter.event_type].schema.describe(meter.value)
    if described is not None and described.type == "number":
        return values
    return [value * QUANTITY_SCALE for value in values]


def _select(frame: pl.DataFrame, where: Where, labels: tuple[str, ...]) -> pl.DataFrame:
    for label, allowed in where.items():
        frame = frame.filter(pl.col(f"d{labels.index(label)}").is_in(list(allowed)))
    return frame
