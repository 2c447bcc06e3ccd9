"""Who each event is billed to: plan, time zone and periods, for a whole batch at once.

A subject's segments say what it is on and when, by subscriptions of the catalog or of the log's events. Where
none covers an event's time, its subject is on the catalog's default plan, in the catalog's zone, and is billed
by calendar month.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domain import calendar
from domain.catalog import Catalog, History, PeriodKind, Subscription
from domain.values import FOREVER_US, Live, Segment

Int64s = NDArray[np.int64]

NO_PLAN = -1


@dataclass(frozen=True, slots=True)
class Spans:
    """The windows or periods of a batch's rows: start and end of each row's, and its number below `count`."""

    starts: Int64s
    ends: Int64s
    numbers: Int64s
    count: int
    _firsts: NDArray[np.object_]
    _lasts: NDArray[np.object_]

    @classmethod
    def of(cls, starts: Int64s, ends: Int64s) -> Spans:
        """Number the distinct spans; two may begin together and end apart (in different zones)."""
        first, by_start = np.unique(starts, return_inverse=True)
        last, by_end = np.unique(ends, return_inverse=True)
        numbers, count = by_start * len(last) + by_end, len(first) * len(last)
        return cls(starts, ends, numbers, count, first.astype(object), last.astype(object))

    def at(self, rows: Int64s) -> tuple[list[int], list[int]]:
        """Starts and ends of rows; an instant is one object, wherever it occurs."""
        by_start, by_end = np.divmod(self.numbers[rows], max(len(self._lasts), 1))
        return self._firsts[by_start].tolist(), self._lasts[by_end].tolist()


_PERIOD_WINDOWS = {PeriodKind.HOUR: "1h", PeriodKind.DAY: "1d", PeriodKind.MONTH: "1mo"}


class Accounts:
    """Plan, zone and periods of every row of a batch, under one catalog.

    Args:
        catalog: Its default plan and zone hold where no segment covers a row's time.
        segments: Of each account, what its subject is on, and when; empty for most where few subscribe.
            An account is a subject, or one up to an event that changed its subscriptions.
        account_of: Each row's account.
        times_us: Each row's time.

    Attributes:
        plans: The plans that occur; `plan_of` holds each row's index in it, or `NO_PLAN`.
        is_subscribed: Whether any subject has a segment.
    """

    def __init__(
        self, catalog: Catalog, segments: Sequence[Sequence[Segment]], account_of: Int64s, times_us: Int64s
    ) -> None:
        count = len(times_us)
        self._times = times_us
        self._default_plan = catalog.default_plan
        self._account_of = account_of
        self._held = segments
        self._stays: dict[int, Stays] = {}
        self._zones = [catalog.timezone]
        self._zone_of = np.zeros(count, np.int64)
        self._spans: dict[str, Spans] = {}
        self._subscribed: Int64s = np.empty(0, np.int64)
        self._segment_of: Int64s = np.empty(0, np.int64)
        self._segments: list[Segment] = []
        self.plans: list[str] = [] if catalog.default_plan is None else [catalog.default_plan]
        self.plan_of = np.full(count, NO_PLAN if catalog.default_plan is None else 0, np.int64)
        self.is_subscribed = count > 0 and any(segments)
        if self.is_subscribed:
            self._subscribe(segments, account_of)

    def _subscribe(self, segments: Sequence[Sequence[Segment]], account_of: Int64s) -> None:
        """Give the rows that a segment covers its plan and zone."""
        low, high = int(self._times.min()), int(self._times.max())
        known: list[Segment] = []
        firsts, counts = [], []
        for some in segments:
            near = [one for one in some if one.start_us <= high and low < one.end_us]
            firsts.append(len(known))
            counts.append(len(near))
            known += near
        if not known:
            return
        starts = np.array([one.start_us for one in known], np.int64)
        ends = np.array([one.end_us for one in known], np.int64)
        first_of, count_of = np.array(firsts, np.int64)[account_of], np.array(counts, np.int64)[account_of]
        found = np.full(len(account_of), -1, np.int64)
        for place in range(max(counts)):
            rows = np.flatnonzero((count_of > place) & (found < 0))
            tried = first_of[rows] + place
            times = self._times[rows]
            fits = (starts[tried] <= times) & (times < ends[tried])
            found[rows[fits]] = tried[fits]
        plans = {name: i for i, name in enumerate(self.plans)}
        zones = {name: i for i, name in enumerate(self._zones)}
        plan_of = np.array([plans.setdefault(one.plan, len(plans)) for one in known], np.int64)
        zone_of = np.array([zones.setdefault(one.timezone, len(zones)) for one in known], np.int64)
        rows = np.flatnonzero(found >= 0)
        self._subscribed, self._segment_of, self._segments = rows, found[rows], known
        self.plan_of[rows], self._zone_of[rows] = plan_of[self._segment_of], zone_of[self._segment_of]
        self.plans, self._zones = list(plans), list(zones)

    def since(self, plan: str, rows: Int64s, nows_us: Int64s, starts: list[int], ends: list[int]) -> list[int]:
        """From when the subjects of rows are on a plan, as `on_plan_since` says; each with its period, and the time."""
        groups = zip(self._account_of[rows].tolist(), nows_us.tolist(), starts, ends, strict=True)
        return [on_plan_since(self._history(account), plan, start, end, now) for account, now, start, end in groups]

    def _history(self, account: int) -> Stays:
        known = self._stays.get(account)
        if known is None:
            known = self._stays[account] = stays(self._held[account], self._default_plan)
        return known

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
        if not len(self._subscribed):
            return months
        starts, ends = months.starts.copy(), months.ends.copy()
        anchors: dict[tuple[str, int], int] = {}
        number_of = [anchors.setdefault((one.timezone, one.billing_day), len(anchors)) for one in self._segments]
        anchor_of = np.array(number_of, np.int64)[self._segment_of]
        for number, (zone, day) in enumerate(anchors):
            rows = self._subscribed[anchor_of == number]
            if len(rows):
                starts[rows], ends[rows] = calendar.billing_bounds(zone, day, self._times[rows])
        until = np.array([one.billing_until_us for one in self._segments], np.int64)[self._segment_of]
        ends[self._subscribed] = np.minimum(ends[self._subscribed], until)
        return Spans.of(starts, ends)


Stays = list[tuple[int, int, str | None]]
"""What a subject is on in all its time: (from, until, plan)."""


def stays(segments: Iterable[Segment], default_plan: str | None) -> Stays:
    """Segments, and the default plan in the gaps."""
    found: Stays = []
    until = 0
    for one in sorted(segments):
        found += [(until, one.start_us, default_plan), (one.start_us, one.end_us, one.plan)]
        until = max(until, one.end_us)
    return [*found, (until, FOREVER_US, default_plan)]


def on_plan_since(known: Stays, plan: str, start_us: int, end_us: int, now_us: int) -> int:
    """From when a subject is on a plan: where the last stay begins that meets a period and has begun.

    Of two plans' periods it says which is the newer one, whatever their zones and days. 0: for ever, or not yet.
    """
    return max(
        (
            since
            for since, until, name in known
            if name == plan and since <= now_us and since < end_us and start_us < until
        ),
        default=0,
    )


def seed_segments(catalog: Catalog) -> dict[str, tuple[Segment, ...]]:
    """What the catalog's own subscriptions put its subjects on."""
    return {subject: tuple(map(_seed_segment, seeds)) for subject, seeds in catalog.subscriptions.items()}


def _seed_segment(seed: Subscription) -> Segment:
    start_us, end_us = calendar.coverage_us(seed.timezone, seed.start, seed.end)
    until_us = FOREVER_US if end_us is None else end_us
    return Segment(start_us, until_us, seed.plan, seed.timezone, seed.start.day, until_us)


def assign(
    subjects: Sequence[str], subject_of: Int64s, places: Int64s, seeds: Mapping[str, tuple[Segment, ...]], live: Live
) -> tuple[list[tuple[Segment, ...]], Int64s]:
    """The segments of each account, and each row's account.

    An account is a subject (of the same number), or a subject from an event on that changed its subscriptions.

    Args:
        subjects: The distinct subjects.
        subject_of: Each row's subject, by its number.
        places: Each row's place in the batch's events.
        seeds: By subject, what the catalog says.
        live: What events say; it has precedence.
    """
    known = [seeds.get(subject, ()) for subject in subjects]
    if not live:
        return known, subject_of
    account_of = subject_of.copy()
    order = subject_of.argsort(kind="stable")
    firsts = subject_of[order].searchsorted(np.arange(len(subjects) + 1))
    for number, subject in enumerate(subjects):
        for since, segments in live.get(subject, ()):
            whole = together(segments, seeds.get(subject, ()))
            if since == 0:
                known[number] = whole
            else:
                rows = order[firsts[number] : firsts[number + 1]]
                account_of[rows[places[rows] >= since]] = len(known)
                known.append(whole)
    return known, account_of


def together(live: tuple[Segment, ...], seeds: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """A subject's segments: those that events made, and those of the catalog where the first leave room."""
    if not seeds or not live:
        return live or seeds
    free = list(seeds)
    for one in live:
        free = [part for seed in free for part in _around(seed, one)]
    return (*live, *free)


def _around(segment: Segment, other: Segment) -> Iterator[Segment]:
    """What of a segment lies before and after another."""
    before = segment._replace(end_us=min(segment.end_us, other.start_us))
    after = segment._replace(start_us=max(segment.start_us, other.end_us))
    yield from (part for part in (before, after) if part.start_us < part.end_us)


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
