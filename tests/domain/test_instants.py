"""Instants: the strict grammar, read one by one, by the batch, and by `datetime`."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.instants import END_US, EPOCH, INVALID, MIN_US, parse, parse_many, to_datetime, to_text

DIGITS = "0123456789"


def by_datetime(text: str) -> int | None:
    """The same grammar, read by the standard library; only what it is lax about is looked at here."""
    moment, rest = text[:19], text[19:]
    shape = "".join("0" if c in DIGITS else c for c in moment)
    fraction = ""
    if rest.startswith("."):
        fraction = rest[1 : len(rest) - len(rest[1:].lstrip(DIGITS))]
        rest = rest[1 + len(fraction) :]
        if not fraction:
            return None
    if rest in ("Z", "z"):
        rest = "+00:00"
    zone_shape = "".join("0" if c in DIGITS else c for c in rest)
    if shape.upper() != "0000-00-00T00:00:00" or zone_shape not in ("+00:00", "-00:00") or rest[4:5] > "5":
        return None
    try:
        instant = (datetime.fromisoformat(moment.upper() + rest) - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None
    instant += int((fraction + "000000")[:6])
    return instant if MIN_US <= instant < END_US else None


def padded(width: int, *strategies: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    return st.one_of(*strategies).map(lambda n: f"{n:0{width}d}")


years = padded(4, st.sampled_from([1999, 2000, 2024, 2026, 2028, 2100, 2101]), st.integers(0, 9999))
months = padded(2, st.integers(1, 12), st.sampled_from([0, 2, 13, 99]))
days = padded(2, st.integers(1, 31), st.sampled_from([0, 28, 29, 30, 31, 32]))
hours = padded(2, st.integers(0, 23), st.sampled_from([0, 23, 24, 60]))
minutes = padded(2, st.integers(0, 59), st.sampled_from([0, 59, 60, 99]))
marks = st.sampled_from(["T"] * 6 + ["t", " ", "", "_"])
fractions = st.one_of(st.just(""), st.text(DIGITS, max_size=14).map(lambda digits: "." + digits))
zones = st.one_of(
    st.sampled_from(["Z"] * 6 + ["z", "", "+00", "+0000", "UTC", "ZZ"]),
    st.builds(lambda sign, h, m: f"{sign}{h}:{m}", st.sampled_from("+-"), hours, minutes),
)
texts = st.builds(
    lambda y, mo, d, t, h, mi, s, f, z: f"{y}-{mo}-{d}{t}{h}:{mi}:{s}{f}{z}",
    years, months, days, marks, hours, minutes, minutes, fractions, zones,
)  # fmt: skip
strange = st.sampled_from([*"0129:-+.TZtz ,", "\n", "\0", "\u0662", "\uff12", "é", "😀"])


@st.composite
def near_misses(draw: st.DrawFn) -> str:
    """A text that is an instant, or nearly one: a character more, less, or another one."""
    text = draw(texts)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.one_of(st.just(""), strange)) + text[at + draw(st.integers(0, 1)) :]
    return text


@given(near_misses())
@example("2026-03-01T10:00:00.Z")
@example("2026-03-01T10:00:00Z\n")
@example("2026-03-01T10:00:00.1Z\0")
@example("2026-03-01T10:00:00+23:59")
@example("2026-03-01T10:00:00-01:60")
@example("0001-01-01T00:00:00+23:59")
def test_the_grammar_is_the_one_that_datetime_reads(text: str) -> None:
    assert parse(text) == by_datetime(text)


@given(st.lists(near_misses(), max_size=8))
def test_a_batch_is_read_as_one_by_one(batch: list[str]) -> None:
    singly = [parse(text) for text in batch]
    assert [None if us == INVALID else us for us in parse_many(batch).tolist()] == singly


@given(st.integers(MIN_US, END_US - 1))
@example(MIN_US)
@example(END_US - 1)
def test_texts_come_back_as_the_same_instant(us: int) -> None:
    text = to_text(us)
    assert text.endswith("Z")
    assert parse(text) == us
    assert parse_many([text]).tolist() == [us]
    assert (to_datetime(us) - EPOCH) // timedelta(microseconds=1) == us


@given(st.integers(MIN_US, END_US - 1), st.text(DIGITS, min_size=1, max_size=30))
def test_what_is_finer_than_a_microsecond_is_cut(us: int, more: str) -> None:
    text = f"{to_datetime(us):%Y-%m-%dT%H:%M:%S.%f}{more}Z"
    assert parse(text) == us
    assert parse_many([text]).tolist() == [us]


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2000-01-01T00:00:00Z", MIN_US),
        ("1999-12-31T23:59:59.999999Z", None),
        ("2000-01-01T00:30:00+00:30", MIN_US),
        ("2000-01-01T00:30:00+00:31", None),
        ("1999-12-31T00:01:00-23:59", MIN_US),
        ("2100-12-31T23:59:59.9999999Z", END_US - 1),
        ("2101-01-01T00:00:00Z", None),
        ("2101-01-01T23:58:59.999999+23:59", END_US - 1),
        ("2100-12-31T23:59:59-00:01", None),
        ("2100-02-29T00:00:00Z", None),  # no leap year
    ],
)
def test_bounds(text: str, us: int | None) -> None:
    assert parse(text) == us
    assert parse_many([text, text]).tolist() == [INVALID if us is None else us] * 2


def test_nothing_gives_nothing() -> None:
    assert parse_many([]).tolist() == []
