"""Windows and periods against a scan of the minute grid, around the days on which zones change."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from domain.calendar import (
    PERIODS,
    WINDOWS,
    billing_period,
    calendar_period,
    coverage_us,
    day_start_us,
    window_bounds,
)
from domain.values import DAY_US, HOUR_US, MINUTE_US, SECOND_US

Instants = NDArray[np.int64]

CASES = [
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),  # half an hour
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("America/Havana", date(2026, 3, 8)),  # at 0:00
    ("America/Havana", date(2025, 11, 2)),  # 1:00 back to 0:00
    ("Asia/Kathmandu", date(2026, 5, 5)),  # +5:45
    ("Pacific/Apia", date(2011, 9, 24)),
    ("Pacific/Apia", date(2011, 12, 30)),  # no such day
    ("America/St_Johns", date(2006, 4, 2)),  # at 0:01
    ("America/St_Johns", date(2006, 10, 29)),  # 0:01 back to 23:01 of the day before
    ("Africa/Casablanca", date(2026, 2, 15)),
    ("Africa/Casablanca", date(2026, 3, 22)),
    ("Asia/Gaza", date(2026, 3, 28)),
    ("Asia/Gaza", date(2026, 10, 24)),
    ("America/Sao_Paulo", date(2017, 10, 15)),  # at 0:00
    ("America/Sao_Paulo", date(2018, 2, 18)),  # 0:00 back to 23:00 of the day before
    ("Asia/Beirut", date(2026, 3, 29)),
    ("Asia/Beirut", date(2026, 10, 25)),
    ("Antarctica/Casey", date(2010, 3, 5)),  # three hours back
    ("Asia/Pyongyang", date(2018, 5, 5)),
    ("UTC", date(2026, 3, 1)),
]
ZONES = sorted({zone for zone, _ in CASES})

zones = st.sampled_from(ZONES)
windows = st.sampled_from(list(WINDOWS))
short_windows = st.sampled_from([name for name, minutes in WINDOWS.items() if minutes])
days = st.dates(date(1999, 1, 5), date(2101, 12, 20))
instants = st.integers(915_148_800 * SECOND_US, 4_165_516_800 * SECOND_US)  # 1999 to 2101


def us(text: str) -> int:
    """Give an ISO time with offset in microseconds."""
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_US


def midnight_utc(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND_US


def array(times: list[int]) -> Instants:
    return np.array(times, np.int64)


def bounds(zone: str, window: str, time_us: int) -> tuple[int, int]:
    starts, ends = window_bounds(zone, window, array([time_us]))
    return int(starts[0]), int(ends[0])


# --- the reference: every minute of some days, looked at one by one ---------------------------


@lru_cache(maxsize=64)
def minutes_around(zone: str, day: date, days_around: int) -> tuple[Instants, Instants]:
    """Every minute from so many days before the day (UTC) to so many after, and its UTC offset."""
    info, start = ZoneInfo(zone), midnight_utc(day)
    minutes = range(start - days_around * DAY_US, start + (days_around + 1) * DAY_US, MINUTE_US)
    offsets = [datetime.fromtimestamp(t // SECOND_US, info).utcoffset() or timedelta() for t in minutes]
    return array(list(minutes)), array([int(o.total_seconds()) * SECOND_US for o in offsets])


def scanned_boundaries(zone: str, day: date, width_us: int) -> Instants:
    minutes, offsets = minutes_around(zone, day, 4)
    local = minutes + offsets
    floor_changes = local[1:] // width_us != local[:-1] // width_us
    fresh_start = (offsets[1:] != offsets[:-1]) & (local[1:] % width_us == 0)
    boundaries: Instants = minutes[1:][floor_changes | fresh_start]
    return boundaries


def scanned_day_start(zone: str, day: date) -> int:
    minutes, offsets = minutes_around(zone, day, 1)
    reached = (minutes + offsets) // DAY_US >= (day - date(1970, 1, 1)).days
    return int(minutes[int(np.argmax(reached))])


def assert_agree(zone: str, day: date, width_us: int, window: str, times: Instants) -> None:
    scanned = scanned_boundaries(zone, day, width_us)
    after = scanned.searchsorted(times, side="right")
    starts, ends = window_bounds(zone, window, times)
    np.testing.assert_array_equal(starts, scanned[after - 1])
    np.testing.assert_array_equal(ends, scanned[after])


# --- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [name for name, minutes in WINDOWS.items() if minutes])
@pytest.mark.parametrize(("zone", "day"), CASES)
def test_short_windows_agree_with_the_scan(zone: str, day: date, window: str) -> None:
    start = midnight_utc(day)
    times = np.arange(start - 2 * DAY_US, start + 3 * DAY_US, 7 * MINUTE_US - 1, dtype=np.int64)
    assert_agree(zone, day, (WINDOWS[window] or 0) * MINUTE_US, window, times)


@settings(max_examples=60, deadline=None)
@given(zones, days, short_windows, st.lists(st.integers(-2 * DAY_US, 3 * DAY_US), min_size=1, max_size=20))
def test_short_windows_agree_with_the_scan_on_any_day(zone: str, day: date, window: str, offsets: list[int]) -> None:
    times = array([midnight_utc(day) + offset for offset in offsets])
    assert_agree(zone, day, (WINDOWS[window] or 0) * MINUTE_US, window, times)


@pytest.mark.parametrize(("zone", "day"), CASES)
def test_days_agree_with_the_scan(zone: str, day: date) -> None:
    dates = [day + timedelta(days=n) for n in range(-3, 5)]
    scanned = [scanned_day_start(zone, d) for d in dates]
    assert [day_start_us(zone, d) for d in dates] == scanned
    times = np.arange(scanned[1], scanned[-1], 13 * MINUTE_US - 1, dtype=np.int64)
    starts, ends = window_bounds(zone, "1d", times)
    after = np.searchsorted(scanned, times, side="right")
    np.testing.assert_array_equal(starts, array(scanned)[after - 1])
    np.testing.assert_array_equal(ends, array(scanned)[after])


@settings(max_examples=40, deadline=None)
@given(zones, days, st.data())
def test_days_and_months_agree_with_the_scan_on_any_day(zone: str, day: date, data: st.DataObject) -> None:
    begin, end = scanned_day_start(zone, day), scanned_day_start(zone, day + timedelta(days=1))
    assert day_start_us(zone, day) == begin
    if begin == end:
        return
    time = data.draw(st.integers(begin, end - 1))
    assert bounds(zone, "1d", time) == (begin, end)
    first = day.replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    assert bounds(zone, "1mo", time) == (scanned_day_start(zone, first), scanned_day_start(zone, following))


@settings(max_examples=150, deadline=None)
@given(zones, windows, st.lists(instants, min_size=1, max_size=10))
def test_windows_tumble_and_hold_their_times(zone: str, window: str, times: list[int]) -> None:
    starts, ends = window_bounds(zone, window, array(times))
    assert (starts <= times).all() and (times < ends).all()
    for inside in (starts, ends - 1):
        np.testing.assert_array_equal(window_bounds(zone, window, inside), (starts, ends))
    np.testing.assert_array_equal(window_bounds(zone, window, ends)[0], ends)
    np.testing.assert_array_equal(window_bounds(zone, window, starts - 1)[1], starts)
    assert starts.dtype == ends.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CASES), windows, st.lists(st.integers(-60 * DAY_US, 60 * DAY_US), min_size=1, max_size=10))
def test_a_row_does_not_depend_on_its_batch(case: tuple[str, date], window: str, offsets: list[int]) -> None:
    """Batches take short cuts by their earliest and latest time: none may show."""
    zone, day = case
    times = [midnight_utc(day) + offset for offset in offsets]
    starts, ends = window_bounds(zone, window, array(times))
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [bounds(zone, window, t) for t in times]


NEW_YORK = [
    # The night of 2026-03-08 has no 2:00; that of 2026-11-01 has 1:00 twice.
    ("1h", "2026-03-08T01:30-05:00", "2026-03-08T01:00-05:00", "2026-03-08T03:00-04:00"),
    ("1h", "2026-03-08T03:30-04:00", "2026-03-08T03:00-04:00", "2026-03-08T04:00-04:00"),
    ("2h", "2026-03-08T01:30-05:00", "2026-03-08T00:00-05:00", "2026-03-08T03:00-04:00"),
    ("2h", "2026-03-08T03:30-04:00", "2026-03-08T03:00-04:00", "2026-03-08T04:00-04:00"),
    ("6h", "2026-03-08T03:30-04:00", "2026-03-08T00:00-05:00", "2026-03-08T06:00-04:00"),
    ("1d", "2026-03-08T12:00-04:00", "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00"),
    ("1mo", "2026-03-08T12:00-04:00", "2026-03-01T00:00-05:00", "2026-04-01T00:00-04:00"),
    ("1h", "2026-11-01T01:30-04:00", "2026-11-01T01:00-04:00", "2026-11-01T01:00-05:00"),
    ("1h", "2026-11-01T01:30-05:00", "2026-11-01T01:00-05:00", "2026-11-01T02:00-05:00"),
    ("2h", "2026-11-01T01:30-05:00", "2026-11-01T00:00-04:00", "2026-11-01T02:00-05:00"),
    ("6h", "2026-11-01T01:30-04:00", "2026-11-01T00:00-04:00", "2026-11-01T06:00-05:00"),
    ("1d", "2026-11-01T23:59-05:00", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
    ("1mo", "2026-11-01T00:00-04:00", "2026-11-01T00:00-04:00", "2026-12-01T00:00-05:00"),
]


@pytest.mark.parametrize(("window", "time", "start", "end"), NEW_YORK)
def test_new_york_by_hand(window: str, time: str, start: str, end: str) -> None:
    assert bounds("America/New_York", window, us(time)) == (us(start), us(end))


@pytest.mark.parametrize(
    ("zone", "day", "start"),
    [
        ("Pacific/Apia", date(2011, 12, 30), "2011-12-30T10:00Z"),  # skipped: empty
        ("Pacific/Apia", date(2011, 12, 31), "2011-12-30T10:00Z"),
        ("America/Sao_Paulo", date(2017, 10, 15), "2017-10-15T01:00-02:00"),
        ("America/Sao_Paulo", date(2018, 2, 18), "2018-02-18T00:00-03:00"),
        ("America/Havana", date(2025, 11, 2), "2025-11-02T00:00-04:00"),
        ("America/St_Johns", date(2006, 10, 29), "2006-10-29T00:00-02:30"),
        ("UTC", date(9999, 12, 31), "9999-12-31T00:00Z"),
    ],
)
def test_day_starts_by_hand(zone: str, day: date, start: str) -> None:
    assert day_start_us(zone, day) == us(start)


def test_no_rows_no_window_no_kind() -> None:
    starts, ends = window_bounds("Europe/Berlin", "1h", array([]))
    assert len(starts) == len(ends) == 0
    with pytest.raises(ValueError, match="7m"):
        window_bounds("UTC", "7m", array([0]))
    with pytest.raises(ValueError, match="billing"):
        calendar_period("UTC", "billing", array([0]))


def test_calendar_periods_are_windows() -> None:
    times = array([us("2026-11-01T01:30-05:00")])
    for kind, window in PERIODS.items():
        expected = window_bounds("America/New_York", window, times)
        np.testing.assert_array_equal(calendar_period("America/New_York", kind, times), expected)


# --- billing periods ---------------------------------------------------------------------------


def period_day(start: date, k: int) -> date:
    year, month = divmod(start.year * 12 + start.month - 1 + k, 12)
    return date(year, month + 1, min(start.day, monthrange(year, month + 1)[1]))


@settings(max_examples=60, deadline=None)
@given(zones, st.dates(date(1999, 1, 5), date(2095, 1, 1)), st.integers(0, 70), st.integers(0, 27), st.data())
def test_billing_periods_by_definition(zone: str, start: date, k: int, cut_days: int, data: st.DataObject) -> None:
    begin, end = (scanned_day_start(zone, period_day(start, n)) for n in (k, k + 1))
    time = data.draw(st.integers(begin, end - 1))
    assert billing_period(zone, start, None, time) == (begin, end)
    assert billing_period(zone, start, None, end)[0] == end
    last_day = period_day(start, k) + timedelta(days=cut_days + 1)
    last = scanned_day_start(zone, last_day)
    if time < last:
        assert billing_period(zone, start, last_day, time) == (begin, min(end, last))
    else:
        with pytest.raises(ValueError, match="outside"):
            billing_period(zone, start, last_day, time)


def test_billing_periods_by_hand() -> None:
    zone, start, end = "America/New_York", date(2026, 1, 31), date(2026, 4, 15)
    first, last = us("2026-01-31T00:00-05:00"), us("2026-04-15T00:00-04:00")
    edges = [first, us("2026-02-28T00:00-05:00"), us("2026-03-31T00:00-04:00"), last]
    assert coverage_us(zone, start, end) == (first, last)
    assert coverage_us(zone, start, None) == (first, None)
    for begin, until in pairwise(edges):
        for time in (begin, begin + HOUR_US, until - 1):
            assert billing_period(zone, start, end, time) == (begin, until)
    for time in (first - 1, last):
        with pytest.raises(ValueError, match="outside the subscription"):
            billing_period(zone, start, end, time)
