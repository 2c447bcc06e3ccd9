"""The second look: which reason it names, and that an event without fault comes back in plain form."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.classify import examine, gap_text
from domain.decode import BatchDecoder
from domain.values import EVENT_BYTES_MAX, Reason, Refusal
from tests.batches import NOON, history, payload, raw, us

CATALOG = """
version: 1
timezone: UTC
currency: USD
event_types:
  call: {schema: {type: object, properties: {n: {type: integer}, x: {type: number}, who: {type: string}}}}
"""
HISTORY = history(CATALOG)
SLOW_DIGITS = 2_000_000
"""Python takes minutes to convert an integer of so many digits."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["1" * 1200, "\\", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.booleans())
def test_an_event_without_fault_comes_back_as_the_same_json(extra: object, ascii_only: bool) -> None:
    whole = json.loads(payload(extension=extra, data={"n": 1, "who": "é", "undeclared": extra}))
    found = examine(json.dumps(whole, ensure_ascii=ascii_only).encode(), None, None, HISTORY)
    assert isinstance(found, bytes)
    assert json.loads(found, parse_float=Decimal) == json.loads(json.dumps(whole), parse_float=Decimal)


@given(st.sampled_from(["", "-"]), st.integers(999, 1500), st.sampled_from(["", ".5", "e3", "E-7", ".0e5"]))
def test_long_numbers_in_skipped_fields_do_no_harm(sign: str, digits: int, rest: str) -> None:
    number = sign + "7" * digits + rest
    written = payload(a="%", b=f"{number}\\", data={"n": 1}).replace(b'"%"', number.encode())
    found = examine(written, None, None, HISTORY)
    assert isinstance(found, bytes)
    assert json.loads(found)["b"] == f"{number}\\"
    done = BatchDecoder(HISTORY).decode(raw([written]))
    assert done.events.payloads == [written]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"n": ' + "9" * SLOW_DIGITS + "}", "at most 1048576"),
        ('{"n": ' + "9" * 900_000 + "}", "data.n: must be an integer"),
        ('{"n": -' + "9" * 900_000 + "}", "data.n: must be an integer"),
        ('{"x": ' + "9" * 900_000 + "}", "data.x: must be less than 10^15"),
        ('{"x": 0.' + "9" * 900_000 + "}", "data.x: has more than 12 decimals"),
        ('{"x": 1e' + "9" * 900_000 + "}", "data.x: must be less than 10^15"),
        ('{"x": 1e999999999999999999}', "data.x: must be less than 10^15"),
        ('{"x": -1e999999999999}', "data.x: must be less than 10^15"),
        ('{"x": 1e-999999999999}', "data.x: has more than 12 decimals"),
    ],
    ids=lambda value: value[:30],
)
def test_numbers_out_of_reach_are_refused_at_once(text: str, detail: str) -> None:
    written = payload(data="%").replace(b'"%"', text.encode())
    found = examine(written, None, None, HISTORY)
    assert isinstance(found, Refusal)
    assert detail in found.detail
    rejects = BatchDecoder(HISTORY).decode(raw([written])).rejects
    assert (rejects.reasons, rejects.details) == ([found.reason], [found.detail])


def test_what_is_known_of_a_refused_event() -> None:
    def refused(log_time_us: int | None, **changes: object) -> Refusal:
        found = examine(payload(**changes), None, log_time_us, HISTORY)
        assert isinstance(found, Refusal)
        return found

    logged = us(NOON) + 5
    assert refused(None, id=1)[2:] == (0, "", "", "")
    assert refused(logged, id=1)[2:] == (logged, "", "", "")
    assert refused(None, type="x")[2:] == (us(NOON), "s", "1", "a")
    assert refused(None, type="x", logtime="2026-03-10T12:00:00.000001Z").log_time_us == us(NOON) + 1
    assert refused(logged, type="x", logtime="x")[2:] == (logged, "s", "1", "a")
    assert refused(logged, data=None).reason is Reason.SCHEMA_VIOLATION


def test_the_largest_event_is_measured_in_bytes() -> None:
    empty = len(payload(pad=""))
    fits = payload(pad="é" * ((EVENT_BYTES_MAX - empty) // 2))
    assert isinstance(examine(fits, None, None, HISTORY), bytes)
    found = examine(payload(pad="é" * ((EVENT_BYTES_MAX - empty) // 2 + 1)), None, None, HISTORY)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.OVERSIZED


def test_a_long_value_is_not_repeated_in_the_detail() -> None:
    found = examine(payload(id={"a": "x" * 1000}), None, None, HISTORY)
    assert isinstance(found, Refusal)
    assert found.detail.endswith("...")
    assert len(found.detail) < 150


def test_gap_text() -> None:
    assert gap_text(us(NOON) + 1, us(NOON)) == (
        "time: 2026-03-10T12:00:00.000001Z is 0.000001 s after the log time 2026-03-10T12:00:00Z"
    )
    assert "3600.000000 s before" in gap_text(us(NOON) - 3_600_000_000, us(NOON))
