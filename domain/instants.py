"""RFC 3339 instants as microseconds, one by one and by the batch.

The grammar is strict: `YYYY-MM-DD[Tt]HH:MM:SS[.digits](Z|z|+hh:mm|-hh:mm)` in ASCII, no leap second,
the fraction cut (not rounded) to microseconds, years 2000 to 2100 in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from domain.values import DAY_US, HOUR_US, MINUTE_US, SECOND_US

INVALID = -(2**63)
"""Stands for a text that is no instant in the results of `parse_many`."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIN_US = int((datetime(2000, 1, 1, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))
END_US = int((datetime(2101, 1, 1, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))

_PATTERN = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_WIDTH = 33
_DIGITS = np.array([0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18])
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])


def parse(text: str) -> int | None:
    """The instant of one RFC 3339 text, or None if it is none (or out of range)."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), tzinfo=UTC)
    except ValueError:
        return None
    us = (moment - EPOCH) // timedelta(microseconds=1)
    if fraction:
        us += int(fraction[:6].ljust(6, "0"))
    if sign:
        if int(offset_hour) > 23 or int(offset_minute) > 59:
            return None
        offset = int(offset_hour) * HOUR_US + int(offset_minute) * MINUTE_US
        us += -offset if sign == "+" else offset
    return us if MIN_US <= us < END_US else None


def parse_many(texts: Sequence[str]) -> NDArray[np.int64]:
    """The instants of many texts; `INVALID` where a text is none.

    The common form (`...Z`, at most 11 fraction digits) is read column by column; anything else,
    also what that reading refuses, is left to `parse`.
    """
    count = len(texts)
    if count == 0:
        return np.empty(0, np.int64)
    lengths = np.fromiter(map(len, texts), np.int64, count)
    chars = np.array(texts, dtype=f"U{_WIDTH}").view(np.uint32).reshape(count, _WIDTH)
    result, common = _read_columns(chars.astype(np.int64), lengths)
    for i in np.flatnonzero(~common).tolist():
        us = parse(texts[i])
        result[i] = INVALID if us is None else us
    return result


def _read_columns(chars: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Instants of the rows that have the common form, and which rows these are."""
    last = np.minimum(lengths, _WIDTH) - 1
    digits = chars - ord("0")
    is_digit = (digits >= 0) & (digits <= 9)
    zulu = chars[np.arange(len(chars)), last] == ord("Z")
    ok = (lengths >= 20) & (lengths != 21) & (lengths < _WIDTH) & zulu & is_digit[:, _DIGITS].all(axis=1)
    for column, mark in ((4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")):
        ok &= chars[:, column] == ord(mark)
    ok &= (chars[:, 19] == ord(".")) | (lengths == 20)
    columns = np.arange(20, _WIDTH)
    inside = columns < last[:, None]
    ok &= (is_digit[:, 20:] | ~inside).all(axis=1)
    fraction = np.where(inside, digits[:, 20:], 0)[:, :6] @ np.array([100_000, 10_000, 1_000, 100, 10, 1])

    year = digits[:, 0] * 1000 + digits[:, 1] * 100 + digits[:, 2] * 10 + digits[:, 3]
    month = digits[:, 5] * 10 + digits[:, 6]
    day = digits[:, 8] * 10 + digits[:, 9]
    hour = digits[:, 11] * 10 + digits[:, 12]
    minute = digits[:, 14] * 10 + digits[:, 15]
    second = digits[:, 17] * 10 + digits[:, 18]
    ok &= (month >= 1) & (month <= 12) & (year >= 2000) & (year <= 2100)
    ok &= (hour <= 23) & (minute <= 59) & (second <= 59)
    month = np.where(ok, month, 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    month_days = _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (leap & (month == 2))
    ok &= (day >= 1) & (day <= month_days)
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - 719_162
    days = days + _DAYS_BEFORE[month - 1] + (leap & (month > 2)) + day - 1
    us = days * DAY_US + hour * HOUR_US + minute * MINUTE_US + second * SECOND_US + fraction
    return us, ok


def to_datetime(us: int) -> datetime:
    """An instant as a UTC-aware datetime."""
    return EPOCH + timedelta(microseconds=us)


def to_text(us: int) -> str:
    """An instant as RFC 3339 text with `Z`, without a fraction where there is none."""
    return to_datetime(us).isoformat().replace("+00:00", "Z")
