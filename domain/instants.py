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

from domain.values import HOUR_US, MINUTE_US, SECOND_US

INVALID = -(2**63)
"""Stands for a text that is no instant in the results of `parse_many`."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIN_US = int((datetime(2000, 1, 1, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))
END_US = int((datetime(2101, 1, 1, tzinfo=UTC) - EPOCH) / timedelta(microseconds=1))

_PATTERN = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_COMMON_LENGTHS = frozenset({20, *range(22, 33)})
_DIGITS = np.array([0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18])
_FRACTION = (100_000, 10_000, 1_000, 100, 10, 1)
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

    Texts of one length are read together, character by character, if they have the common form
    (`...Z`, at most 11 fraction digits); anything else, also what that reading refuses, is left to
    `parse`.
    """
    result = np.full(len(texts), INVALID, np.int64)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        alike = texts if len(places) == len(texts) else [texts[i] for i in places.tolist()]
        common = np.zeros(len(places), np.bool_)
        if length in _COMMON_LENGTHS:
            joined = "".join(alike)
            if joined.isascii():
                chars = np.frombuffer(joined.encode(), np.uint8).reshape(len(alike), length)
                result[places], common = _read_columns(chars.T.astype(np.int16, order="C"))
        for i in np.flatnonzero(~common).tolist():
            us = parse(alike[i])
            result[places[i]] = INVALID if us is None else us
    return result


def _read_columns(chars: NDArray[np.int16]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Instants of the texts that have the common form, and which texts these are.

    Args:
        chars: Shape (length, texts): row i has the i-th character of each text.
    """
    length = len(chars)
    digits = chars - ord("0")
    is_digit = (digits >= 0) & (digits <= 9)
    ok = is_digit[_DIGITS].all(axis=0) & (chars[-1] == ord("Z"))
    for place, mark in ((4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")):
        ok &= chars[place] == ord(mark)
    fraction = np.zeros(chars.shape[1], np.int64)
    if length > 20:
        ok &= (chars[19] == ord(".")) & is_digit[20:-1].all(axis=0)
        for place in range(20, min(length - 1, 26)):
            fraction += digits[place].astype(np.int64) * _FRACTION[place - 20]

    year = digits[0] * 1000 + digits[1] * 100 + digits[2] * 10 + digits[3]
    month, day = digits[5] * 10 + digits[6], digits[8] * 10 + digits[9]
    hour, minute, second = digits[11] * 10 + digits[12], digits[14] * 10 + digits[15], digits[17] * 10 + digits[18]
    ok &= (month >= 1) & (month <= 12) & (year >= 2000) & (year <= 2100)
    ok &= (hour <= 23) & (minute <= 59) & (second <= 59)
    month = np.where(ok, month, 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    ok &= (day >= 1) & (day <= _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (leap & (month == 2)))
    before = year.astype(np.int64) - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - 719_162
    days += _DAYS_BEFORE[month - 1] + (leap & (month > 2)) + day - 1
    seconds = days * 86_400 + hour.astype(np.int64) * 3600 + minute.astype(np.int64) * 60 + second
    return seconds * SECOND_US + fraction, ok


def to_datetime(us: int) -> datetime:
    """An instant as a UTC-aware datetime."""
    return EPOCH + timedelta(microseconds=us)


def to_text(us: int) -> str:
    """An instant as RFC 3339 text with `Z`, without a fraction where there is none."""
    return to_datetime(us).isoformat().replace("+00:00", "Z")
