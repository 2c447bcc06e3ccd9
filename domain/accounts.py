"""Who each event is billed to: plan, time zone and periods, for a whole batch at once.

Without a subscription that covers an event's time, its subject is on the catalog's default plan, in
the catalog's zone, and is billed by calendar month.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domain import calendar
from domain.catalog import Catalog, History, PeriodKind, Subscription

Int64s = NDArray[np.int64]

NO_PLAN = -1


@dataclass(frozen=True, slots=True)
class Spans:
    """The windows or periods of a batch's rows: start and end of each row's, and its number below `count`."""

    starts: Int64s
    ends: Int64s
    numbers: Int64s
    count: int

    @classmethod
    def of(cls, starts: Int64s, ends: Int64s) -> Spans:
        """Number the distinct spans; two may begin together and end apart (in different zones)."""
        first, by_start = np.unique(starts, return_inverse=True)
        last, by_end = np.unique(ends, return_inverse=True)
        return cls(starts, ends, by_start * len(last) + by_end, len(first) * len(last))


_PERIOD_WINDOWS = {PeriodKind.HOUR: "1h", PeriodKind.DAY: "1d", PeriodKind.MONTH: "1mo"}


class Accounts:
    """Plan, zone and periods of every row of a batch, under one catalog.

    Attributes:
        plans: The plans that occur; `plan_of` holds each row's index in it, or `NO_PLAN`.
    """

    def __init__(self, catalog: Catalog, subjects: Sequence[str], times_us: Int64s) -> None:
        count = len(subjects)
        self._times = times_us
        self._zones = [catalog.timezone]
        self._zone_of = np.zeros(count, np.int64)
        self._spans: dict[str, Spans] = {}
        self._subscribed: list[tuple[int, Subscription]] = []
        self.plans: list[str] = [] if catalog.default_plan is None else [catalog.default_plan]
        self.plan_of = np.full(count, NO_PLAN if catalog.default_plan is None else 0, np.int64)
        if catalog.subscriptions:
            self._subscribe(catalog, subjects)

    def _subscribe(self, catalog: Catalog, subjects: Sequence[str]) -> None:
        """Give the rows that a subscription covers its plan and zone."""
        plans = {name: i for i, name in enumerate(self.plans)}
        zones = {name: i for i, name in enumerate(self._zones)}
        subscriptions = catalog.subscriptions
        rows = [i for i, subject in enumerate(subjects) if subject in subscriptions]
        covers = {subject: _coverages(subscriptions[subject]) for subject in {subjects[row] for row in rows}}
        for row, time_us in zip(rows, self._times[rows].tolist(), strict=True):
            found = _covering(covers[subjects[row]], time_us)
            if found is not None:
                self._subscribed.append((row, found))
                self.plan_of[row] = plans.setdefault(found.plan, len(plans))
                self._zone_of[row] = zones.setdefault(found.timezone, len(zones))
        self.plans, self._zones = list(plans), list(zones)

    def windows(self, window: str) -> Spans:
        """The window that holds each row, cut in the row's zone."""
        spans = self._spans.get(window)
        if spans is None:
            spans = self._spans[window] = Spans.of(*self._cut(window))
        return spans

    def _cut(self, window: str) -> tuple[Int64s, Int64s]:
        if len(self._zones) == 1:
            return calendar.window_bounds(self._zones[0], window, self._times)
        starts, ends = np.empty_like(self._times), np.empty_like(self._times)
        for number, zone in enumerate(self._zones):
            rows = np.flatnonzero(self._zone_of == number)
            if len(rows):
                starts[rows], ends[rows] = calendar.window_bounds(zone, window, self._times[rows])
        return starts, ends

    def periods(self, kind: PeriodKind) -> Spans:
        """The period of a kind that holds each row."""
        if kind is not PeriodKind.BILLING:
            return self.windows(_PERIOD_WINDOWS[kind])
        spans = self._spans.get(kind)
        if spans is None:
            spans = self._spans[kind] = self._billing()
        return spans

    def _billing(self) -> Spans:
        months = self.windows("1mo")
        if not self._subscribed:
            return months
        starts, ends = months.starts.copy(), months.ends.copy()
        for row, found in self._subscribed:
            time_us = int(self._times[row])
            starts[row], ends[row] = calendar.billing_period(found.timezone, found.start, found.end, time_us)
        return Spans.of(starts, ends)


_Coverage = tuple[int, int | None, Subscription]


def covering(subscriptions: tuple[Subscription, ...], time_us: int) -> Subscription | None:
    """The one of a subject's subscriptions that covers a time."""
    return _covering(_coverages(subscriptions), time_us)


def _coverages(subscriptions: tuple[Subscription, ...]) -> list[_Coverage]:
    return [(*calendar.coverage_us(s.timezone, s.start, s.end), s) for s in subscriptions]


def _covering(coverages: list[_Coverage], time_us: int) -> Subscription | None:
    for start, end, subscription in coverages:
        if start <= time_us and (end is None or time_us < end):
            return subscription
    return None


def pricing_versions(history: History, plan: str, period_starts_us: Int64s) -> Int64s:
    """`History.pricing` for many periods of one plan; 0 where no version has the plan."""
    if len(history.versions) == 1:
        only = history.versions[0]
        return np.full(len(period_starts_us), only.version if plan in only.catalog.plans else 0, np.int64)
    starts = [v.effective_from_us for v in history.versions]
    unique, inverse = np.unique(period_starts_us, return_inverse=True)
    in_force = [max(bisect_right(starts, int(us)) - 1, 0) for us in unique]
    by_place = []
    for place in range(len(starts)):
        found = next((v.version for v in history.versions[place:] if plan in v.catalog.plans), 0)
        by_place.append(found)
    return np.array([by_place[place] for place in in_force], np.int64)[inverse]
