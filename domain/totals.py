"""The totals of one shard: merged from partials, emitted as updates, snapshotted as Arrow.

A shard holds every open total of its subjects: meter windows, the price totals of billing periods, and
entitlement periods (`domain.cells` has the algebra, `domain.updates` what is emitted).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pyarrow as pa

from domain.catalog import Aggregation
from domain.cells import Cells
from domain.instants import to_text
from domain.partials import Groups, PricePartial, QuotaPartial, ShardInput, UsagePartial
from domain.ports import TallyError
from domain.pricing import WHOLE
from domain.resets import Crossed, Limit, Resets
from domain.updates import (
    MemberUpdate,
    OtherTotal,
    PeriodKey,
    PriceUpdate,
    QuotaReset,
    QuotaUpdate,
    Total,
    Updates,
    UsageUpdate,
)
from domain.values import HOUR_US

STATE_VERSION = 2
"""The form of a snapshot; raised with every change of it."""

_SWEEP_EVERY_US = HOUR_US
"""Forgetting scans all cells, so it waits until the horizon has moved this far."""

_COMPRESSED_ROWS_MIN = 1_000
"""Compressing takes longer than it saves where there is little to compress."""

Family = tuple[str, str, str, Aggregation]
"""("usage", meter, "", how), ("price", plan, price, how) or ("quota", plan, feature, how): what a catalog
version prices or limits by one aggregation, the next may by another. A period has one version, so one family."""


class ShardTotals:
    """All open totals of one shard.

    Args:
        partitions: Every partition whose log time counts for forgetting; None where log times are not
            monotone, so that nothing is ever forgotten.
        accept_within_us: An event older than this at its log time is never accepted, so a total may be
            forgotten once every partition's log time has passed its end by this much.
        alerting: The plans with spend alerts, in any catalog version.
        snapshot: What `snapshot` gave; None to begin empty.
        lowest: Of each limit with thresholds, the lowest as a quantity; its periods get resets.
    """

    def __init__(
        self,
        partitions: Collection[int] | None,
        accept_within_us: int,
        alerting: Collection[str],
        snapshot: bytes | None,
        lowest: Mapping[Limit, int] = MappingProxyType({}),
    ) -> None:
        self._partitions = partitions
        self._accept_within_us = accept_within_us
        self._alerting = frozenset(alerting)
        self._families: dict[Family, Cells] = {}
        self._prices: dict[str, dict[tuple[str, Aggregation], _PriceCells]] = {}
        self._log_times: dict[int, int] = {}
        self._horizon_us = 0
        self._resets = Resets(lowest, by_log_time=partitions is not None)
        if snapshot is not None:
            self._restore(snapshot)

    def __len__(self) -> int:
        """The number of open totals."""
        return sum(map(len, self._families.values()))

    def apply(self, received: ShardInput) -> Updates:
        """Merge one batch's partials and say what changed.

        Raises:
            TallyError: an event would reopen a window that was forgotten.
        """
        updates = Updates(log_time_us=received.log_time_us)
        for partial in received.partials:
            match partial:
                case UsagePartial():
                    self._merge_usage(partial, received.partition, updates)
                case PricePartial():
                    updates.prices.append(self._merge_price(partial, received.partition))
                case QuotaPartial():
                    updates.quotas.append(self._merge_quota(partial, received.partition))
        if not self._alerting.isdisjoint(update.plan for update in updates.prices):
            updates.others = self._others(updates.prices)
        if received.log_time_us is not None:
            self._resets.advance(received.log_time_us)
        updates.resets = list(map(self._reset, self._resets.take()))
        if received.log_time_us is not None:
            self._advance(received.partition, received.log_time_us)
        return updates

    def _merge_usage(self, partial: UsagePartial, partition: int, updates: Updates) -> None:
        groups = partial.groups
        cells = self._family(("usage", partial.meter, "", partial.aggregation))
        places = cells.places(groups.keys, self._check_open)
        if partial.aggregation is Aggregation.UNIQUE:
            found = zip(groups.keys, cells.new_members(places, groups.values), strict=True)
            updates.members += [
                MemberUpdate(partial.meter, subject, start, end, dims, member)
                for (subject, start, end, _, dims), members in found
                for member in members
            ]
        cells.merge(places, groups.inputs, groups.values, partition)
        updates.usage.append(
            UsageUpdate(
                partial.meter,
                partial.labels,
                partial.aggregation,
                groups.keys,
                cells.aggregates(places),
                [cells.inputs[place] for place in places],
                cells.see_version(places, partial.catalog_version),
            )
        )

    def _merge_price(self, partial: PricePartial, partition: int) -> PriceUpdate:
        groups = partial.groups
        cells = self._family(("price", partial.plan, partial.price, partial.aggregation))
        known = self._prices[partial.plan][partial.price, partial.aggregation]
        known.learn(groups.keys)
        about = (partial.plan, partial.price, partial.pricing_version)
        if known.is_whole:
            whole_before, whole_after, inputs = self._change(cells, groups, partition)
            return PriceUpdate(*about, [key[:3] for key in groups.keys], [*whole_before], [*whole_after], inputs)
        periods: list[PeriodKey] = list(dict.fromkeys([key[:3] for key in groups.keys]))
        before = known.totals(periods)
        self._change(cells, groups, partition)
        after = [total for total in known.totals(periods) if total is not None]
        return PriceUpdate(*about, periods, before, after, known.inputs(periods))

    def _merge_quota(self, partial: QuotaPartial, partition: int) -> QuotaUpdate:
        cells = self._family(("quota", partial.plan, partial.feature, partial.aggregation))
        before, after, inputs = self._change(cells, partial.groups, partition)
        about = (partial.plan, partial.feature, partial.pricing_version)
        groups = partial.groups
        update = QuotaUpdate(*about, groups.keys, [quantity or 0 for quantity in before], after, inputs, groups.since)
        self._resets.see(update, partial.aggregation)
        return update

    def _reset(self, crossed: Crossed) -> QuotaReset:
        cells = self._families["quota", crossed.plan, crossed.feature, crossed.aggregation]
        (used,) = cells.quantities([cells.rows[crossed.key]])
        return QuotaReset(crossed.plan, crossed.feature, crossed.pricing_version, crossed.key, used)

    def _change(self, cells: Cells, groups: Groups, partition: int) -> tuple[list[int | None], list[int], list[int]]:
        """Merge groups; returns each row's quantity before (None: no inputs) and after, and its inputs."""
        found = cells.find(groups.keys)
        known = iter(cells.quantities([place for place in found if place is not None]))
        before = [None if place is None else next(known) for place in found]
        places = cells.complete(groups.keys, found, self._check_open)
        cells.merge(places, groups.inputs, groups.values, partition)
        return before, cells.quantities(places), [cells.inputs[place] for place in places]

    def _others(self, updates: list[PriceUpdate]) -> list[OtherTotal]:
        """The untouched prices of the touched periods of plans with alerts."""
        by_plan: dict[tuple[str, int], list[PriceUpdate]] = {}
        for update in updates:
            if update.plan in self._alerting:
                by_plan.setdefault((update.plan, update.pricing_version), []).append(update)
        out = []
        for (plan, version), group in by_plan.items():
            known = self._prices[plan]
            if len(group) == len(known) and all(update.keys == group[0].keys for update in group):
                continue
            touched: dict[PeriodKey, set[str]] = {}
            for update in group:
                for key in update.keys:
                    touched.setdefault(key, set()).add(update.price)
            for (price, _), cells in known.items():
                keys = [key for key, prices in touched.items() if price not in prices]
                for key, total in zip(keys, cells.totals(keys), strict=True):
                    if total is not None:
                        out.append(OtherTotal(plan, version, key, price, total))
        return out

    def _family(self, name: Family) -> Cells:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Cells(name[3])
            self._index(name, family)
        return family

    def _index(self, name: Family, family: Cells) -> None:
        kind, plan, price, aggregation = name
        if kind == "price":
            self._prices.setdefault(plan, {})[price, aggregation] = _PriceCells(family)

    def _check_open(self, keys: list[tuple[Any, ...]]) -> None:
        if not self._horizon_us:
            return
        for subject, _, end_us, *_ in keys:
            if end_us <= self._horizon_us:
                raise TallyError(
                    f"an event of {subject!r} belongs to a window that ended at {to_text(end_us)}, which was "
                    "forgotten: log times went backwards. Restore the log's order, or start a new deployment from "
                    "the ledger."
                )

    def _advance(self, partition: int, log_time_us: int) -> None:
        """Note how far a partition has come; forget what no event can reach any more."""
        self._log_times[partition] = max(log_time_us, self._log_times.get(partition, 0))
        if self._partitions is None or not all(p in self._log_times for p in self._partitions):
            return
        horizon = min(self._log_times[p] for p in self._partitions) - self._accept_within_us
        if horizon >= self._horizon_us + _SWEEP_EVERY_US:
            self._horizon_us = horizon
            for family in self._families.values():
                family.forget(horizon)

    def snapshot(self) -> bytes:
        """Everything, as immutable bytes."""
        tables = [(name[:3], name[3], _ipc(f.to_arrow())) for name, f in self._families.items() if len(f)]
        log_times = list(self._log_times.items())
        return msgspec.msgpack.encode((STATE_VERSION, self._horizon_us, log_times, tables, self._resets.snapshot()))

    def _restore(self, snapshot: bytes) -> None:
        version, *rest = msgspec.msgpack.decode(snapshot)
        if version != STATE_VERSION:
            raise TallyError(
                f"the saved state has form {version}, this version reads form {STATE_VERSION}: run the tallyflow "
                "version that wrote it, or start a new data directory and run the same input again"
            )
        self._horizon_us, log_times, tables, crossed = rest
        self._log_times = {int(partition): int(us) for partition, us in log_times}
        for (kind, owner, price), aggregation, data in tables:
            name = (kind, owner, price, Aggregation(aggregation))
            cells = self._families[name] = Cells.from_arrow(name[3], pa.ipc.open_stream(data).read_all())
            self._index(name, cells)
            if kind == "quota" and self._partitions is None:
                self._resets.learn(price, cells.rows)
        self._resets.advance(max(self._log_times.values(), default=0))
        self._resets.restore([Crossed._make([*fields, Aggregation(how)]) for *fields, how in crossed])


class _PriceCells:
    """The cells of one price, whose keys are (subject, start, end, part)."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._parts: dict[str, None] = {}
        self.learn(cells.rows)

    def learn(self, keys: Iterable[tuple[Any, ...]]) -> None:
        """Note the parts that occur; anything but a matrix has only the whole."""
        self._parts.update(dict.fromkeys(key[3] for key in keys))

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing but whole quantities."""
        return self._parts.keys() == {WHOLE}

    def totals(self, periods: list[PeriodKey]) -> list[Total | None]:
        """Each period's quantity, or its parts; None without inputs."""
        cells = self._cells
        if self.is_whole:
            places = [cells.rows.get((*period, WHOLE)) for period in periods]
            found = iter(cells.quantities([place for place in places if place is not None]))
            return [None if place is None else next(found) for place in places]
        return [
            dict(zip(parts, cells.quantities(places), strict=True)) or None for parts, places in self._held(periods)
        ]

    def inputs(self, periods: list[PeriodKey]) -> list[int]:
        """Each period's number of inputs."""
        cells = self._cells
        return [sum(cells.inputs[place] for place in places) for _, places in self._held(periods)]

    def _held(self, periods: list[PeriodKey]) -> Iterator[tuple[list[str], list[int]]]:
        """The parts that each period has, and their rows."""
        rows = self._cells.rows
        for period in periods:
            held = {part: place for part in self._parts if (place := rows.get((*period, part))) is not None}
            yield list(held), list(held.values())


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    compression = "lz4" if len(table) >= _COMPRESSED_ROWS_MIN else None
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
