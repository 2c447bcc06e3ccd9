"""Windows and periods cut in local time: where each begins and ends, as instants.

Instants are `int` microseconds since 1970-01-01 UTC; every window and period is `[start, end)` and
they tumble: the end of one is the start of the next.

- A window shorter than a day, of width w: an instant is a boundary iff `floor(local clock, w)`
  changes there, or the UTC offset changes there and the new local time is a multiple of w. The
  repeated hour of an autumn night is thus two windows of 1h, but lies in one window of 2h.
- A local day starts at the first instant whose local date is that date or later. Where clocks are
  set back over midnight, the day begun stays begun; a date that a zone skipped is an empty day.
- A month starts with its first day; a billing period with the subscription's day of the month.

The functions are pure but for the zone rules, which `zoneinfo` reads from the machine's tz database:
two machines agree on future windows only with equal databases. Zone names must be valid
(`ZoneInfoNotFoundError` otherwise); the catalog checks them. Caches are bounded and hold only what
follows from their key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from types import MappingProxyType
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
from numpy.typing import NDArray

from domain.values import DAY_US, MINUTE_US, SECOND_US

Instants = NDArray[np.int64]

DAY = "1d"
MONTH = "1mo"

WINDOWS: Mapping[str, int | None] = MappingProxyType(
    {
        "1m": 1, "5m": 5, "10m": 10, "15m": 15, "30m": 30,
        "1h": 60, "2h": 120, "3h": 180, "4h": 240, "6h": 360, "12h": 720,
        DAY: None, MONTH: None,
    }
)  # fmt: skip
"""The windows a meter may have -> minutes; None for those that the calendar measures."""

PERIODS: Mapping[str, str] = MappingProxyType({"hour": "1h", "day": DAY, "month": MONTH})
"""The calendar periods an entitlement may have -> their window."""

YEAR_US = 31_556_952 * SECOND_US
"""The mean Gregorian year: `1970 + instant // YEAR_US` is the year, or the one beside it near its edge."""

CHUNK_US = 400 * DAY_US
"""Billing period starts are computed and cached for this much time at once."""

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class _Spans:
    """The spans of constant UTC offset of a zone, in order, without gaps, both as tuples and arrays."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    offsets: tuple[int, ...]
    """Local time minus UTC, in microseconds."""
    starts_array: Instants
    ends_array: Instants
    offsets_array: Instants

    def steady(self, low_us: int, high_us: int) -> int | None:
        """Give the offset if it is the same from two days before `low_us` to two days after `high_us`."""
        index = bisect_right(self.starts, low_us - 2 * DAY_US) - 1
        return self.offsets[index] if high_us + 2 * DAY_US < self.ends[index] else None


def window_bounds(zone: str, window: str, times_us: Instants) -> tuple[Instants, Instants]:
    """Find the window that holds each time.

    Args:
        zone: an IANA zone name.
        window: one of `WINDOWS`.
        times_us: instants, in any order; may be empty.

    Returns:
        Two new arrays of the same length: each window's start and end (exclusive).

    Raises:
        ValueError: there is no such window.
    """
    assert times_us.dtype == np.int64, times_us.dtype  # others would be computed in floats
    if window not in WINDOWS:
        raise ValueError(f"no such window: {window!r}; choose one of {', '.join(WINDOWS)}")
    if not len(times_us):
        return times_us.copy(), times_us.copy()
    low, high = int(times_us.min()), int(times_us.max())
    years = _year(low) - 1, _year(high) + 1
    if window == MONTH:
        return _between(_month_starts(zone, *years), times_us)
    minutes = WINDOWS[window]
    width = DAY_US if minutes is None else minutes * MINUTE_US
    offset = _spans(zone, *years).steady(low, high)
    if offset is not None:
        starts = _floor(times_us, offset, width)
        return starts, starts + width
    if window == DAY:
        return _between(_day_starts(zone, *years), times_us)
    return _changing_bounds(zone, width, years, times_us)


def calendar_period(zone: str, kind: str, times_us: Instants) -> tuple[Instants, Instants]:
    """Find the calendar period (`kind`: one of `PERIODS`) that holds each time, as `window_bounds` does."""
    if kind not in PERIODS:
        raise ValueError(f"not a calendar period: {kind!r}; choose one of {', '.join(PERIODS)}")
    return window_bounds(zone, PERIODS[kind], times_us)


@lru_cache(maxsize=65_536)
def day_start_us(zone: str, day: date) -> int:
    """Give the first instant whose local date is `day` or later (ValueError for the years 1 and 2)."""
    midnight = (day.toordinal() - _EPOCH_ORDINAL) * DAY_US
    spans = _spans(zone, day.year - 1, min(day.year + 1, 9998))
    for start, end, offset in zip(spans.starts, spans.ends, spans.offsets, strict=True):
        begins = max(start, midnight - offset)
        if begins < end:
            return begins
    return midnight - spans.offsets[-1]  # the end of the last year but one that datetime can tell, and the last


@lru_cache(maxsize=65_536)
def coverage_us(zone: str, start: date, end: date | None) -> tuple[int, int | None]:
    """Give the instants between which a subscription holds: local day `start` until before local day `end`."""
    return day_start_us(zone, start), None if end is None else day_start_us(zone, end)


def billing_period(zone: str, start: date, end: date | None, time_us: int) -> tuple[int, int]:
    """Find the billing period of a subscription that holds a time.

    Period k begins with the local day that has the start's day of the month (or is the month's
    last, if that is shorter) in the k-th month after the start's; the last is cut at `end`.

    Args:
        zone: the subscription's zone.
        start: its first local day.
        end: the local day before which it ends; None: never.
        time_us: an instant.

    Returns:
        The period's start and end (exclusive).

    Raises:
        ValueError: the subscription does not cover the time.
    """
    first, last = coverage_us(zone, start, end)
    if time_us < first or (last is not None and time_us >= last):
        raise ValueError(f"{time_us} us is outside the subscription from {start} to {end} in {zone}")
    anchors = _anchors(zone, start.day, time_us // CHUNK_US)
    index = bisect_right(anchors, time_us)
    until = anchors[index]
    return anchors[index - 1], until if last is None or until < last else last


def billing_bounds(zone: str, day_of_month: int, times_us: Instants) -> tuple[Instants, Instants]:
    """Find the billing period that holds each time, by the day of the month on which periods begin; none is cut.

    Args:
        zone: the subscription's zone.
        day_of_month: of its start.
        times_us: instants, in any order, at least one.

    Returns:
        Two new arrays of the same length: each period's start and end (exclusive).
    """
    chunks = range(int(times_us.min()) // CHUNK_US, int(times_us.max()) // CHUNK_US + 1)
    known = [_anchors_array(zone, day_of_month, chunk) for chunk in chunks]
    return _between(known[0] if len(known) == 1 else np.unique(np.concatenate(known)), times_us)


def local_day(zone: str, time_us: int) -> date:
    """Give the date that the zone's clocks show."""
    seconds = time_us // SECOND_US
    return datetime.fromtimestamp(seconds, ZoneInfo(zone)).date()


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Give the names of all zones."""
    return frozenset(available_timezones())


def _year(time_us: int) -> int:
    return 1970 + time_us // YEAR_US


def _floor(times_us: Instants, offsets_us: int | Instants, width_us: int) -> Instants:
    """Floor the local time to a multiple of the width, back in UTC."""
    starts = times_us + offsets_us
    starts //= width_us
    starts *= width_us
    starts -= offsets_us
    return starts


def _between(boundaries: Instants, times_us: Instants) -> tuple[Instants, Instants]:
    """Pick the neighbours of each time. Equal boundaries (an empty day) enclose nothing."""
    after = boundaries.searchsorted(times_us, side="right")
    return boundaries[after - 1], boundaries[after]


def _changing_bounds(zone: str, width: int, years: tuple[int, int], times_us: Instants) -> tuple[Instants, Instants]:
    """Find windows shorter than a day where the offset may change: floor inside each span, mend at its edges."""
    spans = _spans(zone, *years)
    heads, tails = _edges(zone, width, *years)
    index = spans.starts_array.searchsorted(times_us, side="right") - 1
    starts = _floor(times_us, spans.offsets_array[index], width)
    ends = starts + width
    starts = np.where(starts < spans.starts_array[index], heads[index], starts)
    # A window that would end exactly with its span goes on if the clock is then set back into it.
    ends = np.where(ends >= spans.ends_array[index], tails[index], ends)
    return starts, ends


@lru_cache(maxsize=4_096)
def _edges(zone: str, width: int, first_year: int, last_year: int) -> tuple[Instants, Instants]:
    """For each span: the start of the window that holds its first instant, the end of the one of its last."""
    spans = _spans(zone, first_year, last_year)
    heads, tails = list(spans.starts), list(spans.ends)
    for i in range(1, len(heads)):
        change, old, new = spans.starts[i], spans.offsets[i - 1], spans.offsets[i]
        before = (change - 1 + old) // width
        after, rest = divmod(change + new, width)
        if rest and before == after:  # no boundary: one window reaches over the change
            heads[i] = before * width - old
            tails[i - 1] = (after + 1) * width - new
            # Changes since 1999 are a week apart at least, and set back by 3 h at most: no window spans two.
            assert heads[i] >= spans.starts[i - 1] and tails[i - 1] <= spans.ends[i], (zone, change)
    return np.array(heads, np.int64), np.array(tails, np.int64)


@lru_cache(maxsize=512)
def _day_starts(zone: str, first_year: int, last_year: int) -> Instants:
    """`day_start_us` of every day of the years, but the first and last, which may reach into others."""
    spans = _spans(zone, first_year, last_year)
    days = np.arange(_ordinal_day(first_year) + 1, _ordinal_day(last_year + 1), dtype=np.int64)
    midnights = days * DAY_US
    result = midnights - spans.offsets[-1]
    # Backwards, so that of the spans that reach the date the earliest has the last word.
    for start, end, offset in zip(spans.starts[::-1], spans.ends[::-1], spans.offsets[::-1], strict=True):
        begins = np.maximum(midnights - offset, start)
        result = np.where(begins < end, begins, result)
    return result


@lru_cache(maxsize=1_024)
def _month_starts(zone: str, first_year: int, last_year: int) -> Instants:
    days = [date(year, month, 1) for year in range(first_year, last_year + 1) for month in range(1, 13)]
    return np.array([day_start_us(zone, day) for day in days], np.int64)


@lru_cache(maxsize=16_384)
def _anchors(zone: str, day_of_month: int, chunk: int) -> tuple[int, ...]:
    """Starts of billing periods, from at least one at or before the chunk to at least one after it."""
    first = datetime.fromtimestamp(chunk * CHUNK_US // SECOND_US, UTC)
    start_month = first.year * 12 + first.month - 1
    # Two months on either side: one for the local date, one for the day of the month.
    months = range(start_month - 2, start_month + CHUNK_US // (28 * DAY_US) + 3)
    return tuple(_anchor(zone, day_of_month, *divmod(month, 12)) for month in months)


@lru_cache(maxsize=16_384)
def _anchors_array(zone: str, day_of_month: int, chunk: int) -> Instants:
    return np.array(_anchors(zone, day_of_month, chunk), np.int64)


def _anchor(zone: str, day_of_month: int, year: int, month_index: int) -> int:
    month = month_index + 1
    return day_start_us(zone, date(year, month, min(day_of_month, monthrange(year, month)[1])))


@lru_cache(maxsize=1_024)
def _spans(zone: str, first_year: int, last_year: int) -> _Spans:
    """Give the zone's spans of constant offset from the start (UTC) of the first year to the end of the last."""
    begin, end = _ordinal_day(first_year) * DAY_US, _ordinal_day(last_year + 1) * DAY_US
    offset = _offset_seconds(ZoneInfo(zone), begin // SECOND_US - 1) * SECOND_US
    changes = [change for year in range(first_year, last_year + 1) for change in _changes(zone, year)]
    starts = (begin, *(at for at, _ in changes))
    ends = (*starts[1:], end)
    offsets = (offset, *(after for _, after in changes))
    arrays = (np.array(values, np.int64) for values in (starts, ends, offsets))
    return _Spans(starts, ends, offsets, *arrays)


@lru_cache(maxsize=16_384)
def _changes(zone: str, year: int) -> tuple[tuple[int, int], ...]:
    """Find the (instant, new offset) of every change of the zone's offset in a year (UTC).

    `zoneinfo` does not publish its transitions: look once a day, then halve. No zone changes twice
    within a day.
    """
    info = ZoneInfo(zone)
    begin, end = _ordinal_day(year) * DAY_US // SECOND_US, _ordinal_day(year + 1) * DAY_US // SECOND_US
    seen = begin - 1
    offset = _offset_seconds(info, seen)
    changes: list[tuple[int, int]] = []
    for second in (*range(begin, end, DAY_US // SECOND_US), end - 1):
        if _offset_seconds(info, second) != offset:
            at = _first_change(info, seen, second)
            offset = _offset_seconds(info, at)
            changes.append((at * SECOND_US, offset * SECOND_US))
        seen = second
    return tuple(changes)


def _first_change(info: ZoneInfo, same: int, changed: int) -> int:
    """Find the first second in `(same, changed]` with another offset than at `same`."""
    offset = _offset_seconds(info, same)
    seconds = range(same, changed + 1)
    return same + bisect_left(seconds, True, key=lambda second: _offset_seconds(info, second) != offset)


def _offset_seconds(info: ZoneInfo, second: int) -> int:
    offset = datetime.fromtimestamp(second, info).utcoffset()
    assert offset is not None, info
    return offset.days * 86_400 + offset.seconds


def _ordinal_day(year: int) -> int:
    """Days from 1970-01-01 to the first day of the year."""
    return date(year, 1, 1).toordinal() - _EPOCH_ORDINAL
