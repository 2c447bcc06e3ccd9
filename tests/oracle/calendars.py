"""Local windows and billing periods, found by looking at every minute of a day.

Instants are `int` microseconds since 1970-01-01 UTC. Since 2000 every zone's offset is a whole
number of minutes and changes on a whole minute, which is asserted, so a minute is fine enough.
"""

from __future__ import annotations

import calendar
from array import array
from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_DATE = date(1970, 1, 1)
MINUTE_US = 60_000_000
DAY_MINUTES = 1440

Span = tuple[int, int]
"""[start, end)"""


@cache
def offset_minutes(zone: str, minute: int) -> int:
    """The zone's UTC offset at a UTC minute (since 1970)."""
    local = (EPOCH + timedelta(minutes=minute)).astimezone(ZoneInfo(zone))
    offset = local.utcoffset()
    assert offset is not None and offset % timedelta(minutes=1) == timedelta(0)
    return offset // timedelta(minutes=1)


@cache
def wall_clock(zone: str, day: int) -> array[int]:
    """What the zone's clocks show, in minutes since 1970-01-01 00:00, at each minute of a UTC day.

    No zone changes its offset twice within an hour, so an hour with equal ends is all alike.
    """
    shown = array("q")
    for first in range(day * DAY_MINUTES, (day + 1) * DAY_MINUTES, 60):
        offset = offset_minutes(zone, first)
        if offset == offset_minutes(zone, first + 60):
            shown.extend(range(first + offset, first + offset + 60))
        else:
            shown.extend(minute + offset_minutes(zone, minute) for minute in range(first, first + 60))
    return shown


@cache
def boundaries(zone: str, width: int, day: int) -> list[int]:
    """The minutes of a UTC day at which a window of `width` minutes starts in the zone.

    That is each at which the wall clock, rounded down to the width, changes, or at which the clock
    is set and then shows a multiple of the width. On most days it is not set: then that is each multiple.
    """
    before, clock = wall_clock(zone, day - 1)[-1], wall_clock(zone, day)
    if clock == array("q", range(before + 1, before + 1 + DAY_MINUTES)):
        return list(range(day * DAY_MINUTES + -clock[0] % width, (day + 1) * DAY_MINUTES, width))
    found = []
    for index, shown in enumerate(clock):
        was_set = shown != before + 1
        if shown // width != before // width or (was_set and shown % width == 0):
            found.append(day * DAY_MINUTES + index)
        before = shown
    return found


def clock_window(zone: str, width: int, instant: int) -> Span:
    """The window of `width` minutes, less than a day, that holds an instant."""
    minute = instant // MINUTE_US
    day = minute // DAY_MINUTES
    near = boundaries(zone, width, day)
    if not near or not near[0] <= minute < near[-1]:
        near = [b for d in (day - 1, day, day + 1) for b in boundaries(zone, width, d)]
    after = bisect_right(near, minute)
    return near[after - 1] * MINUTE_US, near[after] * MINUTE_US


@cache
def day_start(zone: str, local: date) -> int:
    """The first instant whose local date is that date or later."""
    number = (local - EPOCH_DATE).days
    for day in range(number - 2, number + 3):
        if max(wall_clock(zone, day)) < number * DAY_MINUTES:
            continue
        for index, shown in enumerate(wall_clock(zone, day)):
            if shown >= number * DAY_MINUTES:
                return (day * DAY_MINUTES + index) * MINUTE_US
    raise AssertionError("no zone is two days away from UTC")


def _around(instant: int) -> list[date]:
    """Dates near an instant in any zone, ascending."""
    middle = EPOCH_DATE + timedelta(days=instant // (DAY_MINUTES * MINUTE_US))
    return [middle + timedelta(days=days) for days in range(-3, 4)]


def local_day(zone: str, instant: int) -> Span:
    """The local day that holds an instant."""
    starts = [day_start(zone, local) for local in _around(instant)]
    return _holding(starts, instant)


@cache
def add_months(first: date, months: int, day: int) -> date:
    """The day of the month, clamped to its end, that many months after `first`'s month."""
    year, month0 = divmod(first.year * 12 + first.month - 1 + months, 12)
    last = calendar.monthrange(year, month0 + 1)[1]
    return date(year, month0 + 1, min(day, last))


def local_month(zone: str, instant: int) -> Span:
    """The calendar month, in the zone, that holds an instant."""
    middle = EPOCH_DATE + timedelta(days=instant // (DAY_MINUTES * MINUTE_US))
    starts = [day_start(zone, add_months(middle, months, 1)) for months in (-1, 0, 1, 2)]
    return _holding(starts, instant)


def billing_period(zone: str, start: date, end: date | None, instant: int) -> Span:
    """The billing period of a subscription (which covers the instant) that holds an instant."""
    months = 0
    while day_start(zone, add_months(start, months + 1, start.day)) <= instant:
        months += 1
    first = day_start(zone, add_months(start, months, start.day))
    last = day_start(zone, add_months(start, months + 1, start.day))
    return first, last if end is None else min(last, day_start(zone, end))


def _holding(starts: list[int], instant: int) -> Span:
    return max(s for s in starts if s <= instant), min(s for s in starts if s > instant)


WINDOW_MINUTES = {
    "1m": 1, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60, "2h": 120, "3h": 180,
    "4h": 240, "6h": 360, "12h": 720, "hour": 60,
}  # fmt: skip


@cache
def window(zone: str, name: str, instant: int) -> Span:
    """The window (`5m`, `1d`, `1mo` ...) or calendar period (`hour`, `day`, `month`) that holds an instant."""
    match name:
        case "1d" | "day":
            return local_day(zone, instant)
        case "1mo" | "month":
            return local_month(zone, instant)
        case _:
            return clock_window(zone, WINDOW_MINUTES[name], instant)
