"""Partial totals of a batch: grouped by columns before anything touches state.

Per meter, the inputs of a batch are grouped three times: into the meter's own windows (`usage`), into
billing periods for each price that reads the meter, and into entitlement periods. The groups are
routed to shards by subject; `domain.totals` merges them. Merging partials is associative and
commutative (the only order is that of positions, for `latest`), so neither the cut into batches nor the
number of workers shows in a total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from sys import intern
from typing import Any

import numpy as np
import xxhash

from domain.accounts import Accounts, Int64s, Spans, assign, pricing_versions, seed_segments
from domain.catalog import Aggregation, Catalog, CatalogVersion, History, Meter, PeriodKind, Price
from domain.inputs import INT64_MAX, Dimensions, Inputs, chosen, dimensions_key, inputs_of
from domain.pricing import WHOLE, Matrix, part_of
from domain.values import DAY_US, QUANTITY_SCALE, Events, Live, Segment


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of one meter's inputs, as parallel lists.

    `values` holds per group: count: 0; sum, avg: the sum; min, max: the extreme; latest: a tuple (time_us,
    offset, index, value); unique: the list of distinct members. Numbers are scaled by 10^12.
    """

    keys: list[tuple[Any, ...]]
    inputs: list[int]
    values: list[Any]
    since: Sequence[int] = ()
    """Of entitlement periods, from when the subject is on the plan; empty for 0, where nobody subscribes."""


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
    """What one batch means for one shard: partials under one catalog version, and how far its partition has come."""

    partition: int
    log_time_us: int | None
    partials: list[Partial]


def shard_of(subject: str, shards: int) -> int:
    """The shard that holds a subject's state; the same in every process."""
    return xxhash.xxh3_64_intdigest(subject.encode()) % shards


class Partitioner:
    """Turns the accepted events of a batch into partial totals by shard. Holds no state."""

    def __init__(self, history: History, shards: int) -> None:
        self._history = history
        self._shards = shards
        self._seeds = {v.version: seed_segments(v.catalog) for v in history.versions}

    def partials(self, events: Events, live: Live) -> list[dict[int, list[Partial]]]:
        """Partial totals by shard, for each catalog version that events fall under; untouched shards are absent.

        `live` has the segments that subscription events made (`domain.subscriber`).
        """
        numbers = events.catalog_versions
        found = []
        for number in dict.fromkeys(numbers):
            rows = None
            if numbers.count(number) != len(numbers):
                rows = [i for i, n in enumerate(numbers) if n == number]
            seeds = self._seeds[number]
            grouping = _BatchGrouping(self._history, self._history.get(number), events, rows, self._shards, seeds, live)
            found.append(grouping.run())
        return found


class _BatchGrouping:
    """The events of a batch that fall under one catalog version, being grouped.

    Texts are grouped by number: subjects are numbered in order of their shard, so that groups sorted by
    subject are sorted by shard. Keys of one batch share their instants, those of all batches their subjects:
    that is a third of what the totals take in memory.
    """

    def __init__(
        self,
        history: History,
        version: CatalogVersion,
        events: Events,
        rows: list[int] | None,
        shards: int,
        seeds: Mapping[str, tuple[Segment, ...]],
        live: Live,
    ) -> None:
        def pick(column: list[Any]) -> list[Any]:
            return column if rows is None else [column[i] for i in rows]

        self._history = history
        self._version = version
        self._catalog: Catalog = version.catalog
        self._out: dict[int, list[Partial]] = {}
        self._types = pick(events.types)
        self._data = pick(events.data)
        self._log_times = np.array(pick(events.log_times_us), np.int64)
        self._times = np.array(pick(events.times_us), np.int64)
        self._offsets, self._indexes = pick(events.offsets), pick(events.indexes)
        subjects = pick(events.subjects)
        unique = list(dict.fromkeys(subjects))
        shard = np.array([shard_of(subject, shards) for subject in unique], np.int64)
        order = shard.argsort(kind="stable")
        self._shards = shard[order]
        self._subjects = [intern(unique[place]) for place in order.tolist()]
        numbers = dict(zip(self._subjects, range(len(unique)), strict=True))
        self._dimensions: dict[str, dict[tuple[str, ...], Dimensions]] = {}
        self._subject_of = np.array(list(map(numbers.__getitem__, subjects)), np.int64)
        places = np.arange(len(subjects)) if rows is None else np.array(rows, np.int64)
        segments, account_of = assign(self._subjects, self._subject_of, places, seeds, live)
        self._pairs_of: dict[PeriodKind, tuple[list[tuple[str, CatalogVersion]], Int64s]] = {}
        self._accounts = Accounts(self._catalog, segments, account_of, self._times)

    def run(self) -> dict[int, list[Partial]]:
        by_type: dict[str, list[int]] = {}
        for i, name in enumerate(self._types):
            by_type.setdefault(name, []).append(i)
        for meter in self._catalog.meters.values():
            rows = by_type.get(meter.event_type)
            if rows:
                getter = self._catalog.event_types[meter.event_type].schema.getter
                data = self._data if len(rows) == len(self._data) else [self._data[i] for i in rows]
                known = self._dimensions.setdefault(meter.event_type, {})
                inputs = inputs_of(meter, getter, rows, data, known)
                if len(inputs.rows):
                    self._usage(meter, inputs)
                    self._prices(meter, inputs)
                    self._quotas(meter, inputs)
        return self._out

    def _usage(self, meter: Meter, inputs: Inputs) -> None:
        spans = self._accounts.windows(meter.window)
        log_times = self._log_times[inputs.rows]
        late = log_times >= spans.ends[inputs.rows] + meter.grace_us
        days, booked = np.unique(np.where(late, log_times // DAY_US, 0), return_inverse=True)
        found = self._group(meter, inputs, None, spans, [(booked, len(days)), (inputs.dimensions, len(inputs.texts))])
        texts = [dimensions_key(texts) for texts in inputs.texts]
        labels = [texts[number] for number in inputs.dimensions[found.firsts].tolist()]
        keys = list(zip(*found.columns, days[booked[found.firsts]].tolist(), labels, strict=True))

        def build(part: Groups) -> Partial:
            return UsagePartial(meter.name, meter.aggregation, meter.group_by, self._version.version, part)

        self._route(found, keys, build)

    def _prices(self, meter: Meter, inputs: Inputs) -> None:
        spans = self._accounts.periods(PeriodKind.BILLING)
        for plan, version, places in self._plans(inputs, PeriodKind.BILLING):
            for price in version.catalog.plans[plan].prices:
                if price.meter == meter.name:
                    places_chosen = chosen(inputs, price.where, meter.group_by, places)
                    if places_chosen is None or len(places_chosen):
                        self._price(meter, plan, version.version, price, inputs, places_chosen, spans)

    def _price(
        self,
        meter: Meter,
        plan: str,
        pricing_version: int,
        price: Price,
        inputs: Inputs,
        places: Int64s | None,
        spans: Spans,
    ) -> None:
        parts, part_of_input = [WHOLE], np.zeros(len(inputs.rows), np.int64)
        if isinstance(price.model, Matrix):
            label = meter.group_by.index(price.model.dimension)
            named = [part_of(price.model, texts[label]) for texts in inputs.texts]
            parts = list(dict.fromkeys(named))
            part_of_input = np.array([parts.index(name) for name in named], np.int64)[inputs.dimensions]
        found = self._group(meter, inputs, places, spans, [(part_of_input, len(parts))])
        keys = list(zip(*found.columns, [parts[n] for n in part_of_input[found.firsts].tolist()], strict=True))

        def build(part: Groups) -> Partial:
            return PricePartial(plan, price.key, meter.aggregation, pricing_version, part)

        self._route(found, keys, build)

    def _quotas(self, meter: Meter, inputs: Inputs) -> None:
        for kind in PeriodKind:
            if not self._is_limited(meter, kind):
                continue
            spans = self._accounts.periods(kind)
            for plan, version, places in self._plans(inputs, kind):
                features = [
                    e.feature
                    for e in version.catalog.plans[plan].entitlements
                    if e.kind == "metered" and e.meter == meter.name and e.period is kind
                ]
                if features:
                    found = self._group(meter, inputs, places, spans, [])
                    keys = list(zip(*found.columns, strict=True))
                    since: list[int] = []
                    if self._accounts.is_subscribed:
                        rows = inputs.rows[found.lasts]
                        now = np.maximum(self._log_times[rows], self._times[rows])
                        since = self._accounts.since(plan, rows, now, *found.columns[1:])
                    for feature in features:
                        self._route(found, keys, _quota_builder(plan, feature, meter, version.version), since)

    def _is_limited(self, meter: Meter, kind: PeriodKind) -> bool:
        """Whether any plan of any version limits a meter by periods of a kind (a cheap first look)."""
        return any(
            e.meter == meter.name and e.period is kind and e.kind == "metered"
            for version in self._history.versions
            for plan in version.catalog.plans.values()
            for e in plan.entitlements
        )

    def _plans(self, inputs: Inputs, kind: PeriodKind) -> list[tuple[str, CatalogVersion, Int64s | None]]:
        """The (plan, pricing version) pairs among inputs, with their places; None for all of them."""
        pairs, pair_of_row = self._pairs(kind)
        pair_of = pair_of_row[inputs.rows]
        out: list[tuple[str, CatalogVersion, Int64s | None]] = []
        for number in np.unique(pair_of).tolist():
            if number >= 0:
                places = np.flatnonzero(pair_of == number)
                out.append((*pairs[number], None if len(places) == len(pair_of) else places))
        return out

    def _pairs(self, kind: PeriodKind) -> tuple[list[tuple[str, CatalogVersion]], Int64s]:
        """The (plan, pricing version) pairs of the batch for periods of a kind, and each row's; -1 for none."""
        known = self._pairs_of.get(kind)
        if known is None:
            pairs: list[tuple[str, CatalogVersion]] = []
            plan_of, starts = self._accounts.plan_of, self._accounts.periods(kind).starts
            pair_of = np.full(len(plan_of), -1, np.int64)
            for number, plan in enumerate(self._accounts.plans):
                rows = np.flatnonzero(plan_of == number)
                versions = pricing_versions(self._history, plan, starts[rows])
                for version in np.unique(versions).tolist():
                    if version:
                        pair_of[rows[versions == version]] = len(pairs)
                        pairs.append((plan, self._history.get(version)))
            known = self._pairs_of[kind] = pairs, pair_of
        return known

    def _group(
        self,
        meter: Meter,
        inputs: Inputs,
        places: Int64s | None,
        spans: Spans,
        keys: list[tuple[Int64s, int]],
    ) -> _Found:
        """Group inputs (those at `places`; None for all) by subject, span and keys; sorted by shard.

        Every key is a small number below a bound, so together they make one number to sort by. A key is
        given for all inputs.
        """
        at = np.arange(len(inputs.rows)) if places is None else places
        rows = inputs.rows[at]
        number, below = self._subject_of[rows], len(self._subjects)
        for key, bound in [(spans.numbers[inputs.rows], spans.count), *keys]:
            if below * bound > INT64_MAX:
                distinct, number = np.unique(number, return_inverse=True)
                below = len(distinct)
            number, below = number * bound + key[at], below * bound
        order = np.argsort(number, kind="stable")
        in_order = number[order]
        edges = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
        starts = np.concatenate(([0], edges))
        firsts, lasts = at[order[starts]], at[order[np.append(edges, len(order)) - 1]]
        rows = inputs.rows[firsts]
        subjects = self._subject_of[rows]
        return _Found(
            self._shards[subjects],
            firsts,
            lasts,
            (
                [self._subjects[number] for number in subjects.tolist()],
                *spans.at(rows),
            ),
            np.diff(np.append(starts, len(order))).tolist(),
            self._values(meter, inputs, at[order], starts),
        )

    def _values(self, meter: Meter, inputs: Inputs, places: Int64s, starts: Int64s) -> list[Any]:
        """The value of each group; `places` are inputs in order of groups, which begin at `starts`."""
        match meter.aggregation:
            case Aggregation.COUNT:
                return [0] * len(starts)
            case Aggregation.UNIQUE:
                texts = [inputs.values[place] for place in places.tolist()]
                bounds = pairwise([*starts.tolist(), len(texts)])
                return [list(dict.fromkeys(texts[low:high])) for low, high in bounds]
            case Aggregation.LATEST:
                return self._latest(meter, inputs, places, starts)
        reduce = {Aggregation.MIN: np.minimum, Aggregation.MAX: np.maximum}.get(meter.aggregation, np.add)
        return _scaled(meter, self._catalog, reduce.reduceat(inputs.numbers()[places], starts).tolist())

    def _latest(self, meter: Meter, inputs: Inputs, places: Int64s, starts: Int64s) -> list[Any]:
        """Of each group the input with the greatest time, the greatest position where times are equal."""
        rows = inputs.rows[places].tolist()
        times = self._times[inputs.rows[places]].tolist()
        values = _scaled(meter, self._catalog, [inputs.values[place] for place in places.tolist()])
        found = [
            (us, self._offsets[row], self._indexes[row], value)
            for us, row, value in zip(times, rows, values, strict=True)
        ]
        return [max(found[low:high]) for low, high in pairwise([*starts.tolist(), len(found)])]

    def _route(
        self,
        found: _Found,
        keys: list[tuple[Any, ...]],
        build: Callable[[Groups], Partial],
        since: Sequence[int] = (),
    ) -> None:
        """Hand each shard its slice of the groups."""
        bounds = [0, *(np.flatnonzero(np.diff(found.shards)) + 1).tolist(), len(keys)]
        for low, high in pairwise(bounds):
            part = Groups(keys[low:high], found.inputs[low:high], found.values[low:high], since[low:high])
            self._out.setdefault(int(found.shards[low]), []).append(build(part))


@dataclass(frozen=True, slots=True)
class _Found:
    """Groups, sorted by shard."""

    shards: Int64s
    firsts: Int64s
    """The first input of each group."""
    lasts: Int64s
    columns: tuple[list[str], list[int], list[int]]
    """Subject, start and end."""
    inputs: list[int]
    values: list[Any]


def _quota_builder(plan: str, feature: str, meter: Meter, pricing_version: int) -> Callable[[Groups], Partial]:
    def build(part: Groups) -> Partial:
        return QuotaPartial(plan, feature, meter.aggregation, pricing_version, part)

    return build


def _scaled(meter: Meter, catalog: Catalog, values: list[int]) -> list[int]:
    """Numbers scaled by 10^12: a property of type number is so already, an integer is not."""
    assert meter.value is not None
    described = catalog.event_types[meter.event_type].schema.describe(meter.value)
    if described is not None and described.type == "number":
        return values
    return [value * QUANTITY_SCALE for value in values]
