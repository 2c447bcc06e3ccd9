"""Instants: the strict grammar, read one by one, by the batch, and by `datetime`."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import example, given, settings
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


ALIKE = [
    "2026-03-01T10:00:00Z",
    "2028-02-29T23:59:59Z",
    "2100-02-28T00:00:60Z",
    "2000-01-01T00:00:00Z",
    "1999-12-31T23:59:59Z",
    "2026-03-01T10:00:00.123Z",
    "2026-13-01T10:00:00.999Z",
    "2026-03-01T10:00:00.123456Z",
    "2026-02-30T10:00:00.000001Z",
    "2026-03-01T10:00:00+01:30",
    "2026-03-01T10:00:00.1234Z",
    "2026-03-01T10:00:00.00000000001Z",
    "2026-03-01T10:00:00.99999999999Z",
    "2026-03-01T10:00:00.000001-23:59",
    "2026-03-01T10:00:00.999999999999Z",
    "2026-03-01T10:00:00.999999-23:599",
    "2026-03-01T10:00:00.123456789012345Z",
]
"""Several of one length, with and without the common form."""
others = st.sampled_from([*"0129:-+.TZtz /", "\0", "\x7f", "\x80", "\u0662", "\uff12", "é", "😀", "\ud800", "\udcff"])


@st.composite
def replaced(draw: st.DrawFn) -> str:
    """A text with up to two characters replaced by others, so that its length is still that of many."""
    text = draw(st.sampled_from(ALIKE))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(others) + text[at + 1 :]
    return text


tails = st.sampled_from(["\0", "\0\0", "", "Z", "é"])
padded_texts = st.builds(lambda text, tail: text + tail, replaced(), tails)


@settings(max_examples=300)
@given(st.lists(replaced() | replaced() | padded_texts | st.text(max_size=2), min_size=1, max_size=24))
@example(["2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z\0", "2026-03-01T10:00:00\0Z", "\0" * 20, "\0", ""])
@example(["2026-03-01T10:00:00Z", "2026-03-01T10:00:0\u0662Z", "é026-03-01T10:00:00Z", "2026-03-01T10:00:01Z"])
@example(["2026-03-01T10:00:00.1Z", "2026-03-01T10:00:00ééZ", "2026-03-01T10:00:00.2Z", "2026-03-01T10:00:00.\0Z"])
def test_a_batch_of_any_lengths_and_characters_is_read_as_one_by_one(batch: list[str]) -> None:
    """Texts of one length are read together: each is still read by itself."""
    for chosen in (batch, batch * 2, batch[::-1]):
        singly = [parse(text) for text in chosen]
        assert [None if us == INVALID else us for us in parse_many(chosen).tolist()] == singly


def test_every_character_at_every_place_is_read_as_by_itself() -> None:
    """Alone among good texts of its length."""
    for good in ("2026-03-01T10:00:00Z", "2026-10-31T19:35:09.25Z"):
        strange = [chr(code) for code in range(0x80)]
        batch = [good[:at] + char + good[at + 1 :] for at in range(len(good)) for char in strange]
        singly = [parse(text) for text in batch]
        assert [None if us == INVALID else us for us in parse_many(batch).tolist()] == singly
        assert 30 < sum(us is not None for us in singly) < len(batch) // 4


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
