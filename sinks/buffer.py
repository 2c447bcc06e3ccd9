"""Rows on their way to ClickHouse, gathered by table; of a key only the newest absolute row is kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from domain.quota import QuotaStates, Signal, Watched
from domain.rating import RatedUpdate, RatedUpdates
from domain.updates import MemberUpdate, UsageUpdate
from domain.values import Batch
from sinks import rows

Item = Batch | RatedUpdates | Watched

_ByKey = dict[tuple[Any, ...], tuple[Any, ...]]
"""The columns of a row that are not part of its key, by its key."""


@dataclass(slots=True)
class Buffer:
    """What is to be written together.

    Updates of one meter (price, entitlement) differ in their columns only, so one of them stands for
    the family and a dict holds the rows.
    """

    count: int = 0
    """Rows added, the repeats of a key too."""
    _events: list[pa.Table] = field(default_factory=list)
    _rejects: list[pa.Table] = field(default_factory=list)
    _changes: list[pa.Table] = field(default_factory=list)
    _progress: dict[int, rows.ProgressRow] = field(default_factory=dict)
    _usage: dict[str, tuple[UsageUpdate, _ByKey]] = field(default_factory=dict)
    _members: set[MemberUpdate] = field(default_factory=set)
    _rated: dict[tuple[Any, ...], tuple[RatedUpdate, _ByKey]] = field(default_factory=dict)
    _quotas: dict[tuple[Any, ...], tuple[QuotaStates, _ByKey]] = field(default_factory=dict)
    _signals: dict[str, Signal] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        match item:
            case Batch():
                if len(item.events):
                    self._events.append(rows.events_table(item))
                if len(item.rejects):
                    self._rejects.append(rows.rejects_table(item))
                if item.changes:
                    self._changes.append(rows.subscriptions_table(item))
                self._progress[item.raw.partition] = rows.progress_row(item)
                self.count += len(item.raw.offsets) + 1
            case RatedUpdates():
                self._add_rated(item)
            case Watched():
                self._add_watched(item)

    def _add_rated(self, item: RatedUpdates) -> None:
        for usage in item.updates.usage:
            _, held = self._usage.setdefault(usage.meter, (usage, {}))
            held.update(
                zip(usage.keys, zip(usage.values, usage.inputs, usage.catalog_versions, strict=True), strict=True)
            )
            self.count += len(usage.keys)
        for rated in item.rated:
            family = (rated.plan, rated.price.key, rated.pricing_version)
            _, held = self._rated.setdefault(family, (rated, {}))
            held.update(zip(rated.keys, zip(rated.quantities, rated.rated, rated.inputs, strict=True), strict=True))
            self.count += len(rated.keys)
        self._members.update(item.updates.members)
        self.count += len(item.updates.members)

    def _add_watched(self, item: Watched) -> None:
        for states in item.quotas:
            family = (states.plan, states.entitlement.feature, states.catalog_version)
            _, held = self._quotas.setdefault(family, (states, {}))
            held.update(zip(states.keys, zip(states.used, states.states, states.inputs, strict=True), strict=True))
            self.count += len(states.keys)
        for signal in item.signals:
            self._signals.setdefault(signal.id, signal)
        self.count += len(item.signals)

    def tables(self, topic: str) -> list[tuple[str, pa.Table]]:
        """The tables to insert, in order: progress last, so that it never claims what is not there."""
        found = [
            ("events", self._events),
            ("rejects", self._rejects),
            ("subscriptions", self._changes),
            ("usage_members", [rows.members_table(list(self._members))] if self._members else []),
            ("usage", [rows.usage_table(_usage(*family), topic) for family in self._usage.values()]),
            ("rated_usage", [rows.rated_table(_rated(*family)) for family in self._rated.values()]),
            ("quotas", [rows.quotas_table(_quotas(*family)) for family in self._quotas.values()]),
            ("signals", [rows.signals_table(list(self._signals.values()))] if self._signals else []),
            ("progress", [rows.progress_table(list(self._progress.values()))] if self._progress else []),
        ]
        return [(name, pa.concat_tables(tables)) for name, tables in found if tables]


def _usage(update: UsageUpdate, held: _ByKey) -> UsageUpdate:
    values, inputs, versions = map(list, zip(*held.values(), strict=True))
    return replace(update, keys=list(held), values=values, inputs=inputs, catalog_versions=versions)


def _rated(update: RatedUpdate, held: _ByKey) -> RatedUpdate:
    quantities, rated, inputs = map(list, zip(*held.values(), strict=True))
    return replace(update, keys=list(held), quantities=quantities, rated=rated, inputs=inputs)


def _quotas(states: QuotaStates, held: _ByKey) -> QuotaStates:
    used, found, inputs = map(list, zip(*held.values(), strict=True))
    return replace(states, keys=list(held), used=used, states=found, inputs=inputs)
