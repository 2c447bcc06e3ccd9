"""The totals of one shard: merged from partials, emitted as updates, snapshotted as Arrow.

A shard holds every open total of its subjects: meter windows, the price totals of billing periods, and
entitlement periods (`domain.cells` has the algebra). Updates carry absolute totals, so emitting one
twice, or only the last of several, changes nothing downstream.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import pyarrow as pa

from domain.catalog import Aggregation
from domain.cells import Cells, aggregate_of, empty, quantity
from domain.instants import to_text
from domain.partials import PricePartial, QuotaPartial, ShardInput, UsagePartial
from domain.ports import TallyError
from domain.values import HOUR_US

STATE_VERSION = 1
"""The form of a snapshot; raised with every change of it."""

_SWEEP_EVERY_US = HOUR_US
"""Forgetting scans all cells, so it waits until the horizon has moved this far."""

Family = tuple[str, str, str]
"""("usage", meter, ""), ("price", plan, price) or ("quota", plan, feature)."""


class UsageUpdate(NamedTuple):
    """One window of a meter, absolute: a row of `usage`."""

    meter: str
    subject: str
    window_start_us: int
    window_end_us: int
    dimensions_key: str
    booked_on_day: int
    labels: tuple[str, ...]
    aggregation: Aggregation
    value: int
    inputs: int
    catalog_version: int
    latest: tuple[int, int, int, int] | None
    """Of `latest` meters: (time_us, partition, offset, index)."""


class MemberUpdate(NamedTuple):
    """A distinct value seen in a window of a `unique` meter: a row of `usage_members`."""

    meter: str
    subject: str
    window_start_us: int
    window_end_us: int
    dimensions_key: str
    member: str


class PriceTotal(NamedTuple):
    """What one price applies to: its parts ("" but for a matrix) and the number of inputs."""

    parts: dict[str, int]
    inputs: int


class PeriodUpdate(NamedTuple):
    """A billing period of a subject: every total that its plan's prices have, before and after."""

    subject: str
    plan: str
    period_start_us: int
    period_end_us: int
    pricing_version: int
    before: dict[str, PriceTotal]
    """Of the prices whose totals changed: what they were."""
    after: dict[str, PriceTotal]
    """Of every price that has inputs."""


class QuotaUpdate(NamedTuple):
    """An entitlement period of a subject; quantities scaled by 10^12."""

    subject: str
    plan: str
    feature: str
    period_start_us: int
    period_end_us: int
    pricing_version: int
    before: int
    after: int
    inputs: int


PeriodKey = tuple[str, str, int, int, int]
"""(subject, plan, period_start_us, period_end_us, pricing_version)"""


@dataclass(slots=True)
class Updates:
    """What one batch changed in one shard."""

    usage: list[UsageUpdate] = field(default_factory=list)
    members: list[MemberUpdate] = field(default_factory=list)
    periods: list[PeriodUpdate] = field(default_factory=list)
    quotas: list[QuotaUpdate] = field(default_factory=list)


class ShardTotals:
    """All open totals of one shard.

    Args:
        partitions: Every partition whose log time counts for forgetting; None where log times are not
            monotone, so that nothing is ever forgotten.
        accept_within_us: An event older than this at its log time is never accepted, so a total may be
            forgotten once every partition's log time has passed its end by this much.
        snapshot: What `snapshot` gave; None to begin empty.
    """

    def __init__(self, partitions: Collection[int] | None, accept_within_us: int, snapshot: bytes | None) -> None:
        self._partitions = partitions
        self._accept_within_us = accept_within_us
        self._families: dict[Family, Cells] = {}
        self._parts: dict[tuple[str, str], list[str]] = {}
        self._prices: dict[str, list[str]] = {}
        self._log_times: dict[int, int] = {}
        self._horizon_us = 0
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
        updates = Updates()
        before: dict[PeriodKey, dict[str, PriceTotal]] = {}
        for partial in received.partials:
            match partial:
                case UsagePartial():
                    self._merge_usage(partial, received.partition, updates)
                case PricePartial():
                    self._merge_price(partial, received.partition, before)
                case QuotaPartial():
                    self._merge_quota(partial, received.partition, updates)
        updates.periods = [PeriodUpdate(*key, old, self._price_totals(key)) for key, old in before.items()]
        if received.log_time_us is not None:
            self._advance(received.partition, received.log_time_us)
        return updates

    def _merge_usage(self, partial: UsagePartial, partition: int, updates: Updates) -> None:
        meter, labels, aggregation = partial.meter, partial.labels, partial.aggregation
        number = partial.catalog_version
        family = self._family(("usage", meter, ""), aggregation)
        by_key, merge, rows = family.by_key, family.merge, updates.usage
        groups = partial.groups
        for key, inputs, value in zip(groups.keys, groups.inputs, groups.values, strict=True):
            subject, start, end, booked, dims = key
            cell = by_key.get(key)
            if cell is None:
                self._check_open(subject, end)
                cell = by_key[key] = empty(aggregation)
            new = merge(cell, inputs, value, partition)
            if cell[2] < number:
                cell[2] = number
            if new:
                updates.members += [MemberUpdate(meter, subject, start, end, dims, member) for member in new]
            latest = cell[1][:4] if aggregation is Aggregation.LATEST else None
            total = aggregate_of(aggregation, cell)
            rows.append(
                UsageUpdate(
                    meter, subject, start, end, dims, booked, labels, aggregation, total, cell[0], cell[2], latest
                )
            )

    def _merge_price(
        self, partial: PricePartial, partition: int, before: dict[PeriodKey, dict[str, PriceTotal]]
    ) -> None:
        plan, price, version = partial.plan, partial.price, partial.pricing_version
        aggregation = partial.aggregation
        family = self._family(("price", plan, price), aggregation)
        by_key, merge = family.by_key, family.merge
        groups = partial.groups
        for key, inputs, value in zip(groups.keys, groups.inputs, groups.values, strict=True):
            subject, start, end, part = key
            period = (subject, plan, start, end, version)
            old = before.get(period)
            if old is None:
                old = before[period] = {}
            if price not in old:
                old[price] = self._price_total(plan, price, family, subject, start, end)
            cell = by_key.get(key)
            if cell is None:
                self._check_open(subject, end)
                cell = by_key[key] = empty(aggregation)
                self._know_part(plan, price, part)
            merge(cell, inputs, value, partition)

    def _merge_quota(self, partial: QuotaPartial, partition: int, updates: Updates) -> None:
        plan, feature, version = partial.plan, partial.feature, partial.pricing_version
        aggregation = partial.aggregation
        family = self._family(("quota", plan, feature), aggregation)
        by_key, merge, rows = family.by_key, family.merge, updates.quotas
        groups = partial.groups
        for key, inputs, value in zip(groups.keys, groups.inputs, groups.values, strict=True):
            subject, start, end = key
            cell = by_key.get(key)
            if cell is None:
                self._check_open(subject, end)
                cell = by_key[key] = empty(aggregation)
            before = quantity(aggregation, cell) if cell[0] else 0
            merge(cell, inputs, value, partition)
            after = quantity(aggregation, cell)
            rows.append(QuotaUpdate(subject, plan, feature, start, end, version, before, after, cell[0]))

    def _price_totals(self, key: PeriodKey) -> dict[str, PriceTotal]:
        """Every price of a period that has inputs."""
        subject, plan, start, end, _ = key
        totals = {}
        for price in self._prices[plan]:
            family = self._families["price", plan, price]
            total = self._price_total(plan, price, family, subject, start, end)
            if total.inputs:
                totals[price] = total
        return totals

    def _price_total(self, plan: str, price: str, family: Cells, subject: str, start: int, end: int) -> PriceTotal:
        parts, inputs = {}, 0
        for part in self._parts.get((plan, price), ()):
            cell = family.by_key.get((subject, start, end, part))
            if cell is not None:
                parts[part] = quantity(family.aggregation, cell)
                inputs += cell[0]
        return PriceTotal(parts, inputs)

    def _family(self, name: Family, aggregation: Aggregation) -> Cells:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Cells(aggregation)
            if name[0] == "price":
                self._prices.setdefault(name[1], []).append(name[2])
        return family

    def _know_part(self, plan: str, price: str, part: str) -> None:
        parts = self._parts.setdefault((plan, price), [])
        if part not in parts:
            parts.append(part)

    def _check_open(self, subject: str, end_us: int) -> None:
        if end_us <= self._horizon_us:
            raise TallyError(
                f"an event of {subject!r} belongs to a window that ended at {to_text(end_us)}, which was forgotten: "
                "log times went backwards. Restore the log's order, or start a new deployment from the ledger."
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
        tables = [(name, f.aggregation.value, _ipc(f.to_arrow())) for name, f in self._families.items() if len(f)]
        return msgspec.msgpack.encode((STATE_VERSION, self._horizon_us, list(self._log_times.items()), tables))

    def _restore(self, snapshot: bytes) -> None:
        version, self._horizon_us, log_times, tables = msgspec.msgpack.decode(snapshot)
        if version != STATE_VERSION:
            raise TallyError(
                f"the saved state has form {version}, this version reads form {STATE_VERSION}: run the tallyflow "
                "version that wrote it, or start a new data directory and run the same input again"
            )
        self._log_times = {int(partition): int(us) for partition, us in log_times}
        for (kind, owner, name), aggregation, data in tables:
            cells = Cells.from_arrow(Aggregation(aggregation), pa.ipc.open_stream(data).read_all())
            self._families[kind, owner, name] = cells
            if kind == "price":
                self._prices.setdefault(owner, []).append(name)
                self._parts[owner, name] = list(dict.fromkeys(key[3] for key in cells.by_key))


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
